//! Flipped bytes, cut files, full disks: refused with the file named, or made good; never silently empty.

use std::path::Path;

use pinfold_common::member::Member;
use pinfold_proto::consensus::{PinManyCall, UnpinCall, pin_result};

use crate::harness::{Cluster, cid, request};
use crate::{Running, copy_folder, export, list, pin_some};

/// Goal: whichever byte of whichever file flips, the peer refuses to start and names the file, or has all of its pins: it
/// is never silently empty or wrong (seed:I12, fault:D7, fault:D8).
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_flipped_bytes_are_seen() {
    let cluster = Cluster::new();
    let mut peer = cluster.peer().await;
    peer.set("backup.interval", "0s".into());
    peer.write_folder();
    let running = Running::start(&peer).await;
    pin_some(&peer, 0..300).await;
    peer.pins().unpin(UnpinCall { cid: cid(7), ..UnpinCall::default() }).await.unwrap();
    // Killed, so that the write-ahead logs have something.
    running.kill();
    let raft = peer.path().join("raft");
    let kept = tempfile::tempdir().unwrap();
    let kept = kept.path().join("raft");
    copy_folder(&raft, &kept);
    let whole = export(&peer);
    let member = std::fs::read(peer.path().join("member.json")).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    let mut seed: u64 = 1;
    // And once more without them: everything is in the files themselves.
    let whole_files = kept.with_file_name("whole");
    copy_folder(&raft, &whole_files);
    assert!(!whole_files.join("state.db-wal").exists());
    let all = ["log.db", "log.db-wal", "state.db", "state.db-wal"].map(|name| (&kept, name));
    for (kept, name) in all.into_iter().chain(["log.db", "state.db"].map(|name| (&whole_files, name))) {
        let bytes = std::fs::read(kept.join(name)).unwrap();
        assert!(!bytes.is_empty(), "{name}");
        for _ in 0..16 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (seed >> 33) as usize % bytes.len();
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (seed >> 60 & 7);
            std::fs::remove_dir_all(&raft).unwrap();
            copy_folder(kept, &raft);
            std::fs::write(raft.join(name), flipped).unwrap();
            let (code, stdout, stderr) = peer.run_program(&["state", "export"], "");
            match code {
                0 => {
                    assert_eq!(stdout, whole, "byte {at} of {name} made a wrong answer");
                    harmless += 1;
                }
                74 | 78 => {
                    assert_eq!(stdout, "", "byte {at} of {name}: half an answer");
                    assert!(stderr.contains("raft/"), "byte {at} of {name}: {stderr}");
                    refused += 1;
                }
                other => panic!("byte {at} of {name}: exit code {other}: {stderr}"),
            }
        }
    }
    eprintln!("{refused} flips refused, {harmless} harmless");
    assert!(refused > 20, "only {refused} of 96 were seen");

    // A file that is cut, or gone.
    for (name, length) in [("log.db", 4096), ("state.db", 8192), ("state.db", 0), ("log.db", 100)] {
        std::fs::remove_dir_all(&raft).unwrap();
        copy_folder(&kept, &raft);
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(raft.join(format!("{name}{suffix}"))); // there is one or not
        }
        let bytes = std::fs::read(raft.join(name)).unwrap();
        std::fs::write(raft.join(name), &bytes[..bytes.len().min(length)]).unwrap();
        let (code, stdout, stderr) = peer.run_program(&["state", "export"], "");
        assert!(code != 0 || stdout == whole, "{name} cut to {length}: {stderr}");
        assert!(code == 0 || stdout.is_empty());
    }
    std::fs::remove_dir_all(&raft).unwrap();
    copy_folder(&kept, &raft);
    for flipped in 0..member.len() {
        let mut bytes = member.clone();
        bytes[flipped] ^= 2;
        std::fs::write(peer.path().join("member.json"), &bytes).unwrap();
        if Member::load(peer.path()).is_ok_and(|found| found.is_some_and(|found| found == original(&member))) {
            continue;
        }
        let error = Member::load(peer.path()).expect_err("damage is seen");
        assert!(error.to_string().contains("member.json"), "{error}");
    }
    std::fs::write(peer.path().join("member.json"), &member).unwrap();
    peer.start(&[]).await;
    peer.ready().await;
    assert_eq!(list(&peer).await.len(), 299);
    peer.stop().await.unwrap();
}

fn original(member: &[u8]) -> Member {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("member.json"), member).unwrap();
    Member::load(folder.path()).unwrap().unwrap()
}

/// A small disk over a peer's folder, gone when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None` where that is not allowed.
    fn over(path: &Path, size: &str) -> Option<SmallDisk> {
        SmallDisk::mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], path)
            .then(|| SmallDisk(path.to_owned()))
    }

    fn grow(&self, size: &str) {
        assert!(SmallDisk::mount(&["-o", &format!("remount,size={size}")], &self.0));
    }

    fn mount(arguments: &[&str], path: &Path) -> bool {
        let mut mount = std::process::Command::new("mount");
        mount.args(arguments).arg(path).output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Goal: on a full disk the process stops with the reason and exit code 74; what it had acknowledged is there when there is
/// room again; an import that does not fit changes nothing (seed:I12, fault:D4).
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_a_full_disk() {
    let cluster = Cluster::new();
    let mut peer = cluster.peer().await;
    let Some(disk) = SmallDisk::over(peer.path(), "6m") else {
        eprintln!("SKIPPED: no small disk can be mounted here");
        return;
    };
    peer.set("backup.interval", "0s".into());
    peer.write_folder();
    let mut running = Running::start(&peer).await;
    let mut acknowledged = 0;
    loop {
        let requests = (acknowledged..acknowledged + 500).map(request).collect();
        let reply = peer.pins().pin_many(PinManyCall { requests, request_key: Vec::new() }).await;
        let Ok(reply) = reply else { break };
        if !reply.into_inner().results.iter().all(|item| matches!(item.result, Some(pin_result::Result::Pin(_)))) {
            break;
        }
        acknowledged += 500;
        assert!(acknowledged < 100_000, "the disk is not full");
    }
    let status = running.0.wait().unwrap();
    assert_eq!(status.code(), Some(74), "after {acknowledged} pins");
    disk.grow("64m");
    let held: std::collections::BTreeSet<Vec<u8>> = {
        let running = Running::start(&peer).await;
        let held = list(&peer).await.into_iter().map(|pin| pin.cid).collect();
        running.kill();
        held
    };
    assert!((0..acknowledged).all(|number| held.contains(&cid(number))), "all of {acknowledged}");

    let whole = export(&peer);
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("pins.jsonl");
    std::fs::write(&file, whole.replace("\"name\":\"\"", &format!("\"name\":\"{}\"", "x".repeat(1000)))).unwrap();
    let used = 2 << 20;
    std::fs::write(peer.path().join("filler"), vec![0; (64 << 20) - disk_used(peer.path()) - used]).unwrap();
    let (code, _, stderr) = peer.run_program(&["state", "import", "-f", file.to_str().unwrap()], "");
    assert_eq!(code, 74, "{stderr}");
    assert!(!peer.path().join("raft.new").exists() && !peer.path().join("raft.old.0").exists());
    std::fs::remove_file(peer.path().join("filler")).unwrap();
    assert_eq!(export(&peer), whole);
}

/// Bytes of all files below.
fn disk_used(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.metadata().unwrap() {
            metadata if metadata.is_dir() => disk_used(&entry.path()),
            metadata => (metadata.len() as usize).next_multiple_of(4096),
        })
        .sum()
}

/// Goal: a damaged state is made again from the newest backup that the log continues, or from the log alone, and nothing
/// acknowledged is missing; what was damaged is kept. Without either it is refused (seed:I12).
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_falls_back_to_a_backup() {
    use pinfold_proto::consensus::CreateBackupCall;
    let cluster = Cluster::new();
    let mut peer = cluster.peer().await;
    for (key, value) in
        [("snapshot_threshold", 20.into()), ("trailing_logs", 1.into()), ("snapshot_interval", "50ms".into())]
    {
        peer.set(&format!("consensus.raft.{key}"), value);
    }
    peer.set("backup.interval", "0s".into());
    peer.start(&[]).await;
    peer.ready().await;
    pin_some(&peer, 0..400).await;
    peer.stop().await.unwrap();
    let damage = |folder: &Path| {
        let current = std::fs::read_to_string(folder.join("CURRENT")).unwrap_or_else(|_| "state.db".into());
        let path = folder.join(current);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 5000].fill(0x5a);
        std::fs::write(&path, bytes).unwrap();
        assert!(!path.with_extension("db-wal").exists(), "a clean stop leaves none");
    };
    let raft = peer.path().join("raft");
    damage(&raft);
    peer.start(&[]).await;
    peer.ready().await;
    assert_eq!(list(&peer).await.len(), 400, "from the whole log");
    assert!(raft.join("damaged.0/state.db").exists());

    for number in 400..670 {
        pin_some(&peer, number..number + 1).await;
    }
    peer.state().create_backup(CreateBackupCall { with_keys: false }).await.unwrap();
    pin_some(&peer, 750..760).await;
    let expected = list(&peer).await;
    peer.stop().await.unwrap();
    damage(&raft);
    peer.start(&[]).await;
    peer.ready().await;
    assert_eq!(list(&peer).await, expected, "from the backup and the log");
    assert!(raft.join("damaged.1").exists());

    for number in 760..1100 {
        pin_some(&peer, number..number + 1).await;
    }
    peer.stop().await.unwrap();
    damage(&raft);
    peer.start(&[]).await;
    let refused = peer.ended().await.unwrap_err().to_string();
    assert!(refused.contains("raft/state"), "the log was cut behind the backup: {refused}");
}
