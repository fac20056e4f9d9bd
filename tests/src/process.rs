//! Processes of other programs: programs that start them in other surroundings, and whether they stand still.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Writes a program into `folder` that has the name of `program` and starts it `through` these words of a shell, with its
/// own arguments.
pub fn wrap(folder: &Path, program: &Path, through: &str) -> std::io::Result<()> {
    let path = folder.join(program.file_name().unwrap_or_default());
    std::fs::write(&path, format!("#!/bin/sh\n{through} {} \"$@\"\n", program.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
}

/// Whether the kernel shows the process as stopped.
pub fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may have spaces.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}
