//! A disk of its own, as a file: ext4 on a loop device, whose power can be cut. What was not synced is gone then, and
//! every write fails until the disk is there again.

use std::path::{Path, PathBuf};
use std::process::Command;

use pinfold_tests::small_disk::unmount;

pub struct LoopDisk {
    image: PathBuf,
    /// Where it is mounted.
    pub folder: PathBuf,
}

impl LoopDisk {
    /// `within` is a folder of the test's own; the disk lies and is mounted in it.
    pub fn new(within: &Path, size_mib: u64) -> LoopDisk {
        LoopDisk::made(within, size_mib, &[])
    }

    /// One that has room for so many files only.
    pub fn with_inodes(within: &Path, size_mib: u64, inodes: u32) -> LoopDisk {
        LoopDisk::made(within, size_mib, &["-N", &inodes.to_string()])
    }

    fn made(within: &Path, size_mib: u64, options: &[&str]) -> LoopDisk {
        let disk = LoopDisk { image: within.join("disk.img"), folder: within.join("disk") };
        let image = std::fs::File::create(&disk.image).expect("a file for the disk");
        image.set_len(size_mib * 1024 * 1024).expect("a sparse file");
        std::fs::create_dir_all(&disk.folder).expect("a folder to mount it on");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).args(options).arg(&disk.image));
        disk.mount();
        disk
    }

    /// Never read-only instead, which `mount` does by itself when it is not told; proven by a file.
    fn mount(&self) {
        run(Command::new("mount").args(["--rw", "-o", "loop,errors=remount-ro"]).arg(&self.image).arg(&self.folder));
        let probe = self.folder.join("mounted");
        std::fs::write(&probe, b"x").unwrap_or_else(|error| panic!("{} is mounted: {error}", probe.display()));
        std::fs::remove_file(&probe).expect("our own file");
    }

    /// Everything that no fsync confirmed is gone; proven by a write that fails. ext4's shutdown ioctl, without a flush
    /// of its journal.
    pub fn cut_power(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.folder));
        let written = std::fs::write(self.folder.join("after-the-cut"), b"x");
        assert!(written.is_err(), "the disk at {} still takes writes after its power was cut", self.folder.display());
    }

    /// As after an error in its metadata: the kernel makes it read-only, whoever has files open on it; proven by a write
    /// that fails for that reason.
    pub fn make_read_only(&self) {
        let found = Command::new("losetup").args(["--noheadings", "-O", "NAME", "-j"]).arg(&self.image).output();
        let found = String::from_utf8(found.expect("losetup runs").stdout).expect("text");
        let device = found.trim().strip_prefix("/dev/").expect("a loop device");
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        std::fs::write(&trigger, "1").unwrap_or_else(|error| panic!("{trigger}: {error}"));
        let written = std::fs::write(self.folder.join("after-the-error"), b"x").map_err(|error| error.kind());
        assert_eq!(written, Err(std::io::ErrorKind::ReadOnlyFilesystem));
    }

    /// Makes files until there is no room for another one; proven by the one that fails. The folder with them.
    pub fn fill_with_files(&self) -> PathBuf {
        let folder = self.folder.join("filler");
        std::fs::create_dir_all(&folder).expect("a folder");
        let failed = (0..).find_map(|number| std::fs::write(folder.join(number.to_string()), []).err());
        assert_eq!(failed.map(|error| error.kind()), Some(std::io::ErrorKind::StorageFull));
        folder
    }

    /// The disk is there again, as its journal has it. Nobody may have a file open on it.
    pub fn power_on(&self) {
        run(Command::new("umount").arg(&self.folder));
        self.mount();
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        unmount(&self.folder);
    }
}

/// Runs a tool of the machine, which must succeed.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
