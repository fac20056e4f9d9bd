//! A disk that takes nothing more, or gives nothing back: read-only after an error, without room for files (fault:D5), and
//! unreadable (fault:D3). The process ends as after any error of its disk, and on a disk that works it has everything.

use std::sync::Mutex;

use pinfold_common::tls::ClusterSecret;
use pinfold_tests::cluster::PATIENCE;
use pinfold_tests::needs::{self, Need};

use crate::disk::LoopDisk;
use crate::extent::extent;
use crate::report::Report;
use crate::scenarios::{EXIT_DISK, EXIT_REFUSED};
use crate::solo::{Pinned, Solo};
use crate::trace::Trace;

const DISK: [Need; 3] = [Need::Root, Need::LoopDevice, Need::Mkfs];
const DISK_MIB: u64 = 96;
const INODES: u32 = 64;
const REQUESTS: usize = 20;
const MOST_REQUESTS: usize = 2_000;

/// Goal: a file system that the kernel made read-only ends the process with 74 at the next write, as often as it is started;
/// mounted again, it has every acknowledged pin.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_fault_d5_read_only_disk() {
    if !needs::are_met("seed_i12_fault_d5_read_only_disk", &DISK) {
        return;
    }
    let mut report = Report::new("fault:D5 read-only disk, one peer");
    let folder = tempfile::Builder::new().prefix("pinfold-read-only-").tempdir().expect("a temporary folder");
    let disk = LoopDisk::new(folder.path(), DISK_MIB);
    let mut peer = Solo::prepare(&disk.folder.join("peer"), &ClusterSecret::generate());
    peer.log_to(folder.path().join("peer.log"));
    let pinned = Mutex::default();
    for round in 0..extent().choose(1, 10) {
        let mut running = peer.start(None, None);
        peer.verify(&format!("round {round}"), &pinned).await;
        for number in 0..REQUESTS {
            assert!(peer.pin(&format!("{round}"), number, &pinned).await, "{}", peer.words());
        }
        disk.make_read_only();
        let ended = running.work(&peer, &format!("{round}, read-only"), MOST_REQUESTS, &pinned).await;
        let ended = ended.expect("it ends by itself");
        assert_eq!(ended.code(), Some(EXIT_DISK), "{ended}\n{}", peer.words());
        let again = peer.start(None, None).ends().await.expect("it ends by itself");
        assert_eq!(again.code(), Some(EXIT_DISK), "{again}\n{}", peer.words());
        disk.power_on();
        report.fault("read-only disk");
    }
    let running = peer.start(None, None);
    peer.verify("writable again", &pinned).await;
    running.kill().await;
    tell(report, pinned.into_inner().unwrap());
}

/// Goal: with no room for another file, the peer goes on or ends with 74, and so do its starts; with room it has every
/// acknowledged pin.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_fault_d5_no_inodes() {
    if !needs::are_met("seed_i12_fault_d5_no_inodes", &DISK) {
        return;
    }
    let mut report = Report::new("fault:D5 no inodes, one peer");
    let folder = tempfile::Builder::new().prefix("pinfold-inodes-").tempdir().expect("a temporary folder");
    let disk = LoopDisk::with_inodes(folder.path(), DISK_MIB, INODES);
    let mut peer = Solo::prepare(&disk.folder.join("peer"), &ClusterSecret::generate());
    peer.log_to(folder.path().join("peer.log"));
    let pinned = Mutex::default();
    let mut running = peer.start(None, None);
    peer.verify("at first", &pinned).await;
    let filler = disk.fill_with_files();
    report.fault("no inodes");
    match running.work(&peer, "no inodes", REQUESTS, &pinned).await {
        None => {
            report.note("it goes on".to_owned());
            running.kill().await;
        }
        Some(ended) => {
            assert_eq!(ended.code(), Some(EXIT_DISK), "{ended}\n{}", peer.words());
            report.note("it ends".to_owned());
        }
    }
    // It counts its starts in a file that is replaced, which needs another one.
    let again = peer.start(None, None).ends().await.expect("it ends by itself");
    assert_eq!(again.code(), Some(EXIT_DISK), "{again}\n{}", peer.words());
    assert!(peer.words().contains("No space left"), "{}", peer.words());
    std::fs::remove_dir_all(filler).expect("the files are ours");
    let running = peer.start(None, None);
    peer.verify("room again", &pinned).await;
    running.kill().await;
    tell(report, pinned.into_inner().unwrap());
}

/// Goal: reads that fail end the process with 74 or, where SQLite takes them for damage, 78, at start and while it serves;
/// nobody gets a part for the whole; on a disk that can be read it has everything.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_fault_d3_unreadable_files() {
    if !needs::are_met("seed_i12_fault_d3_unreadable_files", &[Need::Strace]) {
        return;
    }
    let mut report = Report::new("fault:D3 EIO at reads, one peer");
    let folder = tempfile::Builder::new().prefix("pinfold-unreadable-").tempdir().expect("a temporary folder");
    let secret = ClusterSecret::generate();
    let template = Solo::prepare(&folder.path().join("template").join("peer"), &secret);
    let pinned = Mutex::default();
    let running = template.start(None, None);
    template.ready().await;
    for number in 0..REQUESTS {
        assert!(template.pin("before", number, &pinned).await, "{}", template.words());
    }
    // Everything is in the files themselves then.
    running.stop().await;
    let pinned = pinned.into_inner().unwrap();
    for file in ["raft/log.db", "raft/state.db"] {
        for nth in extent().choose(vec![1, 4], (1..16).collect()) {
            let name = format!("{file} from read {nth} of a start on");
            let own = tempfile::tempdir_in(folder.path()).expect("a temporary folder");
            let victim = template.copy_to(&own.path().join("peer"), &secret);
            let trace = Trace::unreadable(&victim.folder.join(file), nth, own.path().join("strace"));
            let mut running = victim.start(None, Some(&trace));
            let ended = tokio::select! {
                ended = running.ended() => ended,
                () = victim.ready() => {
                    // A start needs fewer, or has made the state again from the log.
                    let is_made_good = trace.injected() > 0;
                    let words = victim.words();
                    assert!(!is_made_good || words.contains("from an earlier one"), "{name}: it serves\n{words}");
                    running.kill().await;
                    if is_made_good {
                        again(&victim, &name, &pinned).await;
                        report.fault(&format!("EIO at a start's reads of {file}, made good"));
                    }
                    continue;
                }
            };
            assert!(trace.injected() > 0, "{name}: the fault did not take effect");
            assert!(matches!(ended.code(), Some(EXIT_DISK | EXIT_REFUSED)), "{name}: {ended}\n{}", victim.words());
            assert!(victim.words().contains(file), "{name}: not named\n{}", victim.words());
            again(&victim, &name, &pinned).await;
            report.fault(&format!("EIO at a start's reads of {file}"));
        }
    }
    let own = tempfile::tempdir_in(folder.path()).expect("a temporary folder");
    let victim = template.copy_to(&own.path().join("peer"), &secret);
    let mut running = victim.start(None, None);
    victim.ready().await;
    let trace = Trace::unreadable(&victim.folder.join("raft/state.db"), 1, own.path().join("strace"));
    let attached = trace.attach(running.pid()).await;
    // The connections that read have seen nothing yet, and so have nothing of their own to answer from.
    let listed = tokio::time::timeout(PATIENCE, victim.try_list()).await.expect("an answer or an error");
    if let Ok(listed) = listed {
        assert!(listed.len() >= pinned.acknowledged.len(), "{} pins for the whole pinset", listed.len());
    }
    let ended = running.ends().await;
    assert!(trace.injected() > 0, "the fault did not take effect");
    let ended = ended.unwrap_or_else(|| panic!("it goes on\n{}", victim.words()));
    assert!(matches!(ended.code(), Some(EXIT_DISK | EXIT_REFUSED)), "{ended}\n{}", victim.words());
    attached.detach().await;
    again(&victim, "state.db while it serves", &pinned).await;
    report.fault("EIO at reads while it serves");
    tell(report, pinned);
}

/// On a disk that works, the peer has everything.
async fn again(peer: &Solo, context: &str, pinned: &Pinned) {
    let running = peer.start(None, None);
    peer.verify(context, &Mutex::new(pinned.clone())).await;
    running.kill().await;
}

fn tell(mut report: Report, pinned: Pinned) {
    pinned.count(&mut report);
    report.finish();
}
