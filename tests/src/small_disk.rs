//! A disk that is really full after a few megabytes: a tmpfs of its own. Needs root, and mounts that are allowed.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Over this folder, which is there; `None` where nothing can be mounted. `size` is in tmpfs's words, `16m`.
    pub fn over(folder: &Path, size: &str) -> Option<SmallDisk> {
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], folder).then(|| SmallDisk(folder.to_owned()))
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// What lies on it stays.
    pub fn grow(&self, size: &str) {
        assert!(mount(&["-o", &format!("remount,size={size}")], &self.0), "a larger disk");
    }
}

fn mount(arguments: &[&str], folder: &Path) -> bool {
    Command::new("mount").args(arguments).arg(folder).output().is_ok_and(|output| output.status.success())
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// A process of a test that failed may still hold it; the kernel lets it go with that process.
pub fn unmount(folder: &Path) {
    let unmounted = Command::new("umount").arg("-l").arg(folder).status();
    if !unmounted.is_ok_and(|status| status.success()) {
        eprintln!("{} stays mounted: umount -l {0}", folder.display());
    }
}
