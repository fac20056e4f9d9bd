//! Folders that are not those of the peer, or not all of them: swapped, older (fault:D9), gone (fault:D10). The peer is
//! refused with the way back, the others go on, and on that way it comes back with everything.

use std::path::Path;

use pinfold_common::member::Member;
use pinfold_tests::cluster::programs;
use tokio::process::Command;

use crate::extent::seed;
use crate::house::{House, Wish};
use crate::load::Load;
use crate::report::Report;
use crate::scenarios::membership::{everybody_votes, remove};
use crate::solo::copy;

const WRITES: u64 = 30;
const WRITES_DURING: u64 = 10;
const WAY_BACK: [&str; 3] = ["ctl peers rm", "state clean", "--bootstrap"];

/// Goal: an older copy of one peer's data, and the data of two peers in each other's place, never vote: the peers refuse
/// to run and say how to come back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes longer than every test run has time for: make chaos"]
async fn seed_i1_i2_fault_d9_older_and_swapped_folders() {
    let mut report = Report::new("fault:D9 an older folder, two swapped ones");
    let mut house = House::start(Wish::default()).await;
    let load = Load::start(&house, seed());
    load.more_writes(WRITES).await;
    let leader = house.leader().await;
    let [first, second] = house.others(leader)[..] else { panic!("three peers") };

    let raft = house.peers[first].folder.join("raft");
    let (older, newer) = (raft.with_file_name("older"), raft.with_file_name("newer"));
    house.peers[first].kill().await;
    copy(&raft, &older);
    house.peers[first].resume().await;
    house.peer_ready(first).await;
    load.more_writes(WRITES).await;
    house.peers[first].kill().await;
    rename(&raft, &newer);
    rename(&older, &raft);
    house.peers[first].resume().await;
    house.refuses(first, &["is an older copy"]).await;
    house.refuses(first, &WAY_BACK).await;
    load.more_writes_at(&[leader, second], WRITES_DURING).await;
    report.fault("older copy refused");
    take_in_anew(&mut house, first, leader).await;
    load.more_writes(WRITES_DURING).await;
    report.fault("taken in anew");

    let theirs = house.peers[second].folder.join("raft");
    let swap = || {
        rename(&raft, &newer.with_file_name("swapped"));
        rename(&theirs, &raft);
        rename(&newer.with_file_name("swapped"), &theirs);
    };
    for turn in ["swapped", "put back"] {
        house.peers[first].kill().await;
        house.peers[second].kill().await;
        swap();
        house.peers[first].resume().await;
        house.peers[second].resume().await;
        if turn == "swapped" {
            for peer in [first, second] {
                house.refuses(peer, &["the folders of two peers were mixed up", "put each back"]).await;
            }
            assert!(!load.try_pin(leader).await, "a pin, with one of three peers at work");
            report.fault("swapped folders refused");
        }
    }
    load.finish(&house, &mut report).await;
    house.stop().await;
    report.finish();
}

/// Goal: a peer whose identity is there and whose data is not, does not vote and does not found a cluster of its own; it
/// comes back as a new node, with everything.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes longer than every test run has time for: make chaos"]
async fn seed_i1_i12_fault_d10_lost_data() {
    let mut report = Report::new("fault:D10 data gone, identity kept");
    let mut house = House::start(Wish::default()).await;
    let load = Load::start(&house, seed());
    load.more_writes(WRITES).await;
    let leader = house.leader().await;
    let [first, second] = house.others(leader)[..] else { panic!("three peers") };
    let folder = house.peers[first].folder.clone();

    // The log alone.
    house.peers[first].kill().await;
    let kept = folder.join("kept");
    copy(&folder.join("raft"), &kept);
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(folder.join(format!("raft/log.db{suffix}"))).expect("a kill leaves all three");
    }
    house.peers[first].resume().await;
    house.refuses(first, &["its data in", "is gone", "state clean"]).await;
    load.more_writes_at(&[leader, second], WRITES_DURING).await;
    report.fault("no log.db: refused");
    house.peers[first].kill().await;
    std::fs::remove_dir_all(folder.join("raft")).expect("the folder is ours");
    rename(&kept, &folder.join("raft"));
    house.peers[first].resume().await;
    house.peer_ready(first).await;

    // All of raft/.
    house.peers[first].kill().await;
    std::fs::remove_dir_all(folder.join("raft")).expect("the folder is ours");
    house.peers[first].resume().await;
    house.refuses(first, &["its data in", "is gone", "state clean"]).await;
    load.more_writes_at(&[leader, second], WRITES_DURING).await;
    report.fault("no raft/: refused");
    take_in_anew(&mut house, first, leader).await;
    load.more_writes(WRITES_DURING).await;

    // And what says that it was a member: nothing is left to refuse by, and the others know better.
    let before = node_of(&folder);
    house.peers[first].kill().await;
    std::fs::remove_dir_all(folder.join("raft")).expect("the folder is ours");
    pinfold_common::member::forget(&folder).expect("the folder is ours");
    let by = house.leader_of(&[leader, second]).await;
    house.join_again(first, by);
    house.peer_ready(first).await;
    everybody_votes(&house).await;
    assert_ne!(node_of(&folder), before, "the node that lost its log votes again");
    report.fault("no raft/ and no member.json: another node");
    load.finish(&house, &mut report).await;
    house.stop().await;
    report.finish();
}

/// What the refusals say: removed by another one, cleaned, started with --bootstrap.
async fn take_in_anew(house: &mut House, peer: usize, by: usize) {
    let gone = house.peers[peer].peer_id.to_bytes();
    let before = node_of(&house.peers[peer].folder);
    house.peers[peer].kill().await;
    remove(house, by, &gone).await;
    let mut clean = Command::new(programs().path("consensus-svc").expect("consensus-svc is built"));
    let clean = clean.arg("--config").arg(&house.peers[peer].folder).args(["state", "clean", "-f"]).output().await;
    let clean = clean.expect("the program starts");
    assert!(clean.status.success(), "state clean: {}", String::from_utf8_lossy(&clean.stderr));
    house.join_again(peer, by);
    house.peer_ready(peer).await;
    everybody_votes(house).await;
    assert_ne!(node_of(&house.peers[peer].folder), before, "it is a new node");
}

fn node_of(folder: &Path) -> u64 {
    Member::load(folder).expect("a whole member.json").expect("a member").node_id
}

fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap_or_else(|error| panic!("{} to {}: {error}", from.display(), to.display()));
}
