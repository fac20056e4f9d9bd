//! A real Kubo daemon, where `ipfs` is on the PATH: on loopback, without bootstrap and mDNS, in a folder of its own.

#![allow(dead_code, reason = "three test programs use it, each in part")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a daemon may take to be there on a busy machine.
pub const START_DEADLINE: Duration = Duration::from_secs(60);

pub fn is_on_path() -> bool {
    Command::new("ipfs").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Whether the calling test has its daemon; when not, it says so and returns. `make test` counts them at its end.
pub fn is_here(test: &str) -> bool {
    if is_on_path() {
        return true;
    }
    println!("kubo: not on the PATH, {test} skipped");
    if let Some(folder) = std::env::var_os("PINFOLD_SKIPPED") {
        let _ = std::fs::write(Path::new(&folder).join(test), "kubo");
    }
    false
}

/// A daemon; killed when dropped.
pub struct Daemon {
    pub child: Child,
    /// The multiaddress of its RPC.
    pub api: String,
    pub folder: TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ipfs(folder: &Path, arguments: &[&str]) {
    let status = Command::new("ipfs")
        .args(arguments)
        .env("IPFS_PATH", folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "ipfs {arguments:?}");
}

pub fn start() -> Daemon {
    start_with(&[], &[])
}

/// The same with further keys of its configuration, as JSON, and options of `ipfs daemon`.
pub fn start_with(configuration: &[(&str, &str)], options: &[&str]) -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    // Loopback and random ports, no bootstrap, no mDNS.
    ipfs(folder.path(), &["init", "--profile=test"]);
    ipfs(folder.path(), &["config", "--json", "Routing", r#"{"Type":"none"}"#]);
    ipfs(folder.path(), &["config", "--json", "AutoConf", r#"{"Enabled":false}"#]);
    ipfs(folder.path(), &["config", "--json", "Provide", r#"{"Enabled":false}"#]);
    for (key, value) in configuration {
        ipfs(folder.path(), &["config", "--json", key, value]);
    }
    let child = Command::new("ipfs")
        .arg("daemon")
        .args(options)
        .env("IPFS_PATH", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut daemon = Daemon { child, api: String::new(), folder };
    let started = Instant::now();
    loop {
        if let Ok(api) = std::fs::read_to_string(daemon.folder.path().join("api"))
            && !api.is_empty()
        {
            daemon.api = api.trim().to_owned();
            return daemon;
        }
        assert!(started.elapsed() < START_DEADLINE, "kubo has not started");
        std::thread::sleep(Duration::from_millis(50));
    }
}
