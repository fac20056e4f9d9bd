//! The peerset changes while things break (fault:M1-M3): a peer joins while the leader is killed, the leader is removed
//! under load, and the removed one may not come back.

use std::collections::BTreeSet;
use std::time::Duration;

use ctl::local::service::State;
use pinfold_common::tls::Room;
use pinfold_proto::api;
use pinfold_tests::cluster::eventually;

use crate::extent::{extent, seed};
use crate::fault::{Fault, Whom};
use crate::house::{House, Wish};
use crate::load::Load;
use crate::report::Report;

const REMOVE_DEADLINE: Duration = Duration::from_secs(30);

/// Goal: joining and removing under load, and with the leader killed in the middle, loses nothing; a removed peer is out
/// for good.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes longer than every test run has time for: make chaos"]
async fn seed_f17_fault_m1_m2_m3_peerset_changes_under_load() {
    let spare = extent().choose(1, 2);
    let mut house = House::start(Wish { spare, ..Wish::default() }).await;
    for round in 0..spare {
        grow(&mut house, seed() + round as u64).await;
    }
    remove_the_leader(&house, seed() + 100).await;
    house.stop().await;
}

/// Goal: two peers that join at the same moment, under load, both come to vote, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes longer than every test run has time for: make chaos"]
async fn seed_f13_fault_m4_two_joins_at_once() {
    let mut report = Report::new("fault:M4 two joins at once");
    let mut house = House::start(Wish { spare: 2, ..Wish::default() }).await;
    let before = house.all();
    let load = Load::start_at(&house, seed(), before.clone());
    load.more_writes(20).await;
    house.join();
    house.join();
    everybody_votes(&house).await;
    load.more_writes_at(&before, 10).await;
    report.fault("two joins");
    load.finish(&house, &mut report).await;
    house.stop().await;
    report.finish();
}

/// A peer joins; the leader is killed meanwhile and comes back.
async fn grow(house: &mut House, seed: u64) {
    let mut report = Report::new("fault:M1 join while the leader is killed");
    let before = house.all();
    let load = Load::start_at(house, seed, before);
    load.more_writes(20).await;
    let joining = house.join();
    let fault = Fault::Kill(Whom::Leader);
    let active = fault.inject(house, &BTreeSet::from([joining])).await.expect("three peers are free");
    // With the leader away and the joiner not in it yet, the rest of the old peerset is a majority still.
    let others: Vec<usize> = house.others(active.victims[0]).into_iter().filter(|peer| *peer != joining).collect();
    load.more_writes_at(&others, 5).await;
    active.prove_and_heal(house).await;
    report.fault(&fault.kind());
    everybody_votes(house).await;
    report.fault("join");
    load.finish(house, &mut report).await;
    report.finish();
}

/// Waits until all peers are voters, for everybody.
pub(super) async fn everybody_votes(house: &House) {
    eventually("all peers vote, for everybody", || async {
        for peer in house.all() {
            let peerset = house.status(peer).await?.peerset?;
            let voters = peerset.peers.iter().filter(|row| row.voter).count();
            (voters == house.len() && peerset.peers.len() == house.len()).then_some(())?;
        }
        Some(())
    })
    .await;
}

async fn remove_the_leader(house: &House, seed: u64) {
    let mut report = Report::new("fault:M2 fault:M3 remove the leader, which comes back");
    let leader = house.leader().await;
    let rest = house.others(leader);
    let load = Load::start_at(house, seed, rest.clone());
    load.more_writes(20).await;
    let gone = house.peers[leader].peer_id.to_bytes();
    eventually("the leader is out of everybody's peerset", || async {
        remove(house, rest[0], &gone).await;
        for peer in &rest {
            let peerset = house.status(*peer).await?.peerset?;
            (!peerset.peers.iter().any(|row| row.peer_id == gone)).then_some(())?;
        }
        Some(())
    })
    .await;
    report.fault("removal of the leader");
    load.more_writes(20).await;
    // It stops by itself and leaves its marker.
    let marker = house.peers[leader].folder.join(pinfold_common::member::REMOVED_FILE);
    eventually("the removed peer's marker", || async { marker.exists().then_some(()) }).await;
    let service = house.peers[leader].service(Room::Consensus).expect("every peer has one");
    service.stop().await;
    service.resume().await;
    eventually("the removed peer refuses to run", || async { (service.state() == State::Removed).then_some(()) }).await;
    report.fault("return of a removed peer");
    load.finish(house, &mut report).await;
    report.finish();
}

/// Whether it was done shows in the peersets; a second removal of the same peer must be harmless.
pub(super) async fn remove(house: &House, at: usize, peer_id: &[u8]) {
    let channel = house.peers[at].channel().expect("a channel");
    let mut client = api::cluster_client::ClusterClient::new(channel);
    // Copies are not what this is about: nothing waits for them.
    let call = api::RemovePeerRequest { peer_id: peer_id.to_vec(), force: true, wait_ms: 1000 };
    if let Ok(Err(status)) = tokio::time::timeout(REMOVE_DEADLINE, client.remove_peer(call)).await {
        eprintln!("removal at peer {at}: {status}");
    }
}
