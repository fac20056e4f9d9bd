//! Files that the service's user may not read or write (fault:D12): said by name, with nothing made in their place.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::sync::Mutex;

use pinfold_common::tls::ClusterSecret;
use pinfold_tests::cluster::programs;
use pinfold_tests::needs::{self, Need};

use crate::report::Report;
use crate::scenarios::{EXIT_DISK, EXIT_REFUSED};
use crate::solo::Solo;

const NOBODY: u32 = 65534;
const REQUESTS: usize = 5;

/// Goal: each file in turn belongs to root alone: the service refuses with 78 or 74, names it and the reason, and has
/// everything when it is given back.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_fault_d12_files_of_somebody_else() {
    if !needs::are_met("seed_i12_fault_d12_files_of_somebody_else", &[Need::Root]) {
        return;
    }
    let mut report = Report::new("fault:D12 files of somebody else, one peer");
    let folder = tempfile::Builder::new().prefix("pinfold-owner-").tempdir().expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("the folder is ours");
    // Where the programs are built, another user may not come to them.
    let program = folder.path().join("consensus-svc");
    std::fs::copy(programs().path("consensus-svc").expect("consensus-svc is built"), &program).expect("a copy");
    let peer = Solo::prepare(&folder.path().join("peer"), &ClusterSecret::generate());
    give(&peer.folder, NOBODY);
    let pinned = Mutex::default();
    let running = peer.start_as(NOBODY, &program);
    peer.ready().await;
    for number in 0..REQUESTS {
        assert!(peer.pin("before", number, &pinned).await, "{}", peer.words());
    }
    running.stop().await;
    for file in ["service.json", "identity.json", "member.json", "raft/log.db", "raft/state.db", "raft"] {
        let path = peer.folder.join(file);
        let mode = std::fs::metadata(&path).expect("it is there").permissions();
        chown(&path, Some(0), Some(0)).expect("we are root");
        let private = if path.is_dir() { 0o700 } else { 0o600 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(private)).expect("we are root");
        let ended = peer.start_as(NOBODY, &program).ends().await.expect("it ends by itself");
        let words = peer.words();
        assert!(matches!(ended.code(), Some(EXIT_REFUSED | EXIT_DISK)), "{file}: {ended}\n{words}");
        let last = words.lines().last().unwrap_or_default();
        assert!(last.contains(file), "{file} is not named\n{words}");
        report.fault(file);
        chown(&path, Some(NOBODY), Some(NOBODY)).expect("we are root");
        std::fs::set_permissions(&path, mode).expect("we are root");
    }
    let running = peer.start_as(NOBODY, &program);
    peer.verify("given back", &pinned).await;
    running.kill().await;
    let pinned = pinned.into_inner().unwrap();
    pinned.count(&mut report);
    report.finish();
}

fn give(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).expect("we are root");
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("a folder").flatten() {
            give(&entry.path(), user);
        }
    }
}
