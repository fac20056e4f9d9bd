//! Small files that must be whole or absent, and the lock that keeps a folder to one process.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Code, Error, Result};

/// Mode of files that hold keys or the secret.
pub const PRIVATE: u32 = 0o600;
/// Mode of folders of a peer.
pub const PRIVATE_FOLDER: u32 = 0o700;
const LOCK_FILE: &str = "lock";
const OTHERS_READ: u32 = 0o004;
const OTHERS_ENTER: u32 = 0o001;

/// Writes `bytes` to `path` so that a reader, or a start after a power cut, sees the old file or the new one: a
/// temporary file beside it, fsync, rename, fsync of the folder.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let folder = parent(path);
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path names no file"))?;
    let unique = format!(".{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let mut temporary = name.to_owned();
    temporary.push(unique);
    let temporary = folder.join(temporary);

    let written = write_new(&temporary, bytes, mode).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary); // the write's own error is the one to report
        return Err(error);
    }
    sync_folder(folder)
}

/// Forces to disk which files `folder` has.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Writes a file that must not exist yet, and syncs it and its folder.
pub fn write_once(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write_new(path, bytes, mode)?;
    sync_folder(parent(path))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Refuses a file that holds a key and that every user of the machine can read: by its mode, in a folder that lets them in
/// (fault:D12). One that is not there is no matter of this.
pub fn check_private(path: &Path) -> Result<()> {
    let mode = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode(path) & OTHERS_READ == 0 || mode(parent(path)) & OTHERS_ENTER == 0 {
        return Ok(());
    }
    let path = path.display();
    Err(Error::invalid(format!("{path}: every user of this machine can read the key in it: chmod 600 {path}")))
}

/// A regular file of at most `max_bytes`, whole; `None` when there is none.
pub fn read_small(path: &Path, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    // Asked before opening: to open a FIFO is to wait for its writer.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {max_bytes} bytes")));
    }
    Ok(Some(bytes))
}

/// Makes the folder when it is missing and holds `<folder>/lock` until the returned file is dropped or the process
/// ends. A second process is refused with the first one's process ID.
pub fn lock_folder(folder: &Path) -> Result<File> {
    let failed = |error: io::Error| Error::internal(format!("lock folder {}: {error}", folder.display()));
    std::fs::DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(folder).map_err(failed)?;
    let path = folder.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = (&mut file).take(32).read_to_string(&mut holder); // only for the message
            let holder = if holder.trim().is_empty() { String::new() } else { format!(" ({})", holder.trim()) };
            return Err(Error::new(
                Code::Rejected,
                format!("lock folder {}: another process{holder} works in it; stop that first", folder.display()),
            ));
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "process {}", std::process::id()).map_err(failed)?;
    Ok(file)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a file is replaced as a whole, with the mode asked for, and nothing is left beside it.
    #[test]
    fn replaces_whole_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        write_atomically(&path, b"first, and long", PRIVATE).unwrap();
        write_atomically(&path, b"second", PRIVATE).unwrap();
        assert_eq!(read_small(&path, 100).unwrap().unwrap(), b"second");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_once(&path, b"third", PRIVATE).is_err());
    }

    /// Goal: reading is bounded, tells absent from unreadable, and does not hang on what is not a file.
    #[test]
    fn reads_small_regular_files_only() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_small(&folder.path().join("none"), 10).unwrap().is_none());
        assert!(read_small(folder.path(), 10).is_err());
        let path = folder.path().join("large");
        write_once(&path, &[0; 11], PRIVATE).unwrap();
        assert!(read_small(&path, 10).is_err());
    }

    /// Goal: one holder at a time, named to the second, and free again when the first is gone.
    #[test]
    fn a_folder_has_one_holder() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("raft");
        let first = lock_folder(&folder).unwrap();
        let refused = lock_folder(&folder).unwrap_err();
        assert!(refused.message.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        lock_folder(&folder).unwrap();
    }
}
