//! A disk of its own, as a file: ext4 on a loop device, whose power can be cut. What was not synced is gone then, and
//! every write fails until the disk is there again.

use std::path::{Path, PathBuf};
use std::process::Command;

pub struct LoopDisk {
    image: PathBuf,
    /// Where it is mounted.
    pub folder: PathBuf,
}

impl LoopDisk {
    /// `within` is a folder of the test's own; the disk lies and is mounted in it.
    pub fn new(within: &Path, size_mib: u64) -> LoopDisk {
        let disk = LoopDisk { image: within.join("disk.img"), folder: within.join("disk") };
        let image = std::fs::File::create(&disk.image).expect("a file for the disk");
        image.set_len(size_mib * 1024 * 1024).expect("a sparse file");
        std::fs::create_dir_all(&disk.folder).expect("a folder to mount it on");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image));
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.folder));
    }

    /// Everything that no fsync confirmed is gone; proven by a write that fails. ext4's shutdown ioctl, without a flush
    /// of its journal.
    pub fn cut_power(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.folder));
        let written = std::fs::write(self.folder.join("after-the-cut"), b"x");
        assert!(written.is_err(), "the disk at {} still takes writes after its power was cut", self.folder.display());
    }

    /// The disk is there again, as its journal has it. Nobody may have a file open on it.
    pub fn power_on(&self) {
        run(Command::new("umount").arg(&self.folder));
        self.mount();
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // A process of a test that failed may still hold it; the kernel lets it go with that process.
        let unmounted = Command::new("umount").arg("-l").arg(&self.folder).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted: umount -l {0}", self.folder.display());
        }
    }
}

/// Runs a tool of the machine, which must succeed.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
