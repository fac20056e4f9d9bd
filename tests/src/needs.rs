//! What a test needs of the machine beside the toolchain. A test that lacks something says so and returns; `make test`
//! counts such tests by name at its end.

use std::path::Path;

use crate::small_disk::SmallDisk;

/// Names a folder in which a skipped test leaves a file of its name.
const SKIPPED: &str = "PINFOLD_SKIPPED";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Namespaces, mounts, and tracing of other processes.
    Root,
    Strace,
    Nft,
    Ip,
    /// `xfs_io -c shutdown` cuts the power of any file system that knows that ioctl, ext4 too.
    XfsIo,
    Mkfs,
    LoopDevice,
    /// To be mounted, which being root does not always allow.
    Tmpfs,
}

impl Need {
    const fn name(self) -> &'static str {
        match self {
            Need::Root => "root",
            Need::Strace => "strace",
            Need::Nft => "nft",
            Need::Ip => "ip",
            Need::XfsIo => "xfs_io",
            Need::Mkfs => "mkfs.ext4",
            Need::LoopDevice => "loop devices",
            Need::Tmpfs => "a tmpfs to mount",
        }
    }

    fn is_met(self) -> bool {
        match self {
            Need::Root => rustix::process::geteuid().is_root(),
            Need::Strace | Need::Nft | Need::Ip | Need::XfsIo | Need::Mkfs => {
                ctl::local::on_path(self.name()).is_some() || Path::new("/usr/sbin").join(self.name()).is_file()
            }
            Need::LoopDevice => Path::new("/dev/loop-control").exists(),
            Need::Tmpfs => {
                let folder = tempfile::tempdir().expect("a temporary folder");
                SmallDisk::over(folder.path(), "64k").is_some()
            }
        }
    }
}

/// What of it is missing here, in words; `None` when all is there.
pub fn missing(needs: &[Need]) -> Option<String> {
    let missing: Vec<&str> = needs.iter().filter(|need| !need.is_met()).map(|need| need.name()).collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// Whether all of it is here; when not, the calling test says so and returns.
pub fn are_met(test: &str, needs: &[Need]) -> bool {
    let Some(missing) = missing(needs) else { return true };
    eprintln!("faults: {test} skipped: this machine lacks {missing}");
    if let Some(folder) = std::env::var_os(SKIPPED) {
        let line = format!("faults: {missing}\n");
        std::fs::write(Path::new(&folder).join(test), line).expect("the folder of skipped tests is writable");
    }
    false
}
