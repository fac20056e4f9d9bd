//! Peers that are removed: from anywhere, whoever they are, as an order that waits and is carried out by the leader.

mod harness;

use std::time::Duration;

use consensus_svc::error::Error as Ended;
use harness::{Cluster, Peer, cid, leader, pin, pin_only_at, until};
use pinfold_common::{Code, Error};
use pinfold_proto::consensus::*;
use pinfold_proto::types::Departure;
use pinfold_proto::types::departure::Phase;
use pinfold_proto::types::peer::State;
use serde_json::json;

/// One call that waits as long as a client would.
async fn remove(asked: &Peer, gone: &Peer) -> Result<Departure, Error> {
    let call = RemovePeerCall { peer_id: gone.id(), force: false, wait_ms: 20_000 };
    Ok(asked.peers().remove(call).await.map_err(Error::from)?.into_inner().departure.unwrap())
}

/// The order alone.
async fn order(asked: &Peer, gone: &Peer) -> Result<Departure, Error> {
    let call = RemovePeerCall { peer_id: gone.id(), force: false, wait_ms: 1 };
    Ok(asked.peers().remove(call).await.map_err(Error::from)?.into_inner().departure.unwrap())
}

async fn force(asked: &Peer, gone: &Peer) -> Result<Departure, Error> {
    let call = RemovePeerCall { peer_id: gone.id(), force: true, wait_ms: 20_000 };
    Ok(asked.peers().remove(call).await.map_err(Error::from)?.into_inner().departure.unwrap())
}

async fn undrain(asked: &Peer, peer: &Peer) {
    asked.peers().drain(DrainPeerCall { peer_id: peer.id(), draining: false }).await.unwrap();
}

async fn unpin(asked: &Peer, number: u32) {
    asked.pins().unpin(UnpinCall { cid: cid(number), request_key: Vec::new() }).await.unwrap();
}

/// Waits until `peer` lists exactly `count` members, and all of them vote.
async fn sees(peer: &Peer, count: usize) {
    until(&format!("{count} members that vote"), || async {
        let set = peer.status().await.and_then(|status| status.peerset).unwrap_or_default();
        set.peers.len() == count && set.peers.iter().all(|row| row.voter)
    })
    .await;
}

async fn stops_as_removed(peer: &mut Peer) {
    let ended = peer.ended().await.unwrap_err();
    assert!(matches!(ended, Ended::Removed(_)), "{ended}");
    assert!(peer.path().join("raft.old.0/log.db").exists() && !peer.path().join("raft").exists());
    assert!(peer.path().join("removed.json").exists());
}

/// Goal: any peer can be removed from any peer: another one, the one that is asked, the leader; each time nobody lists
/// it any more, it stops by itself with its state set aside, and the others go on. Who is no member is removed already.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f15_f16_any_peer_from_any_peer() {
    let (cluster, mut peers) = Cluster::started(4).await;
    // Another one, from a follower.
    let first = leader(&peers).await;
    let mut gone = peers.remove((first + 1) % 4);
    cluster.monitors.peers.lock().retain(|peer| *peer != gone.id());
    let asked = &peers[(leader(&peers).await + 1) % 3];
    assert_eq!(remove(asked, &gone).await.unwrap().phase(), Phase::Removed);
    assert_eq!(remove(asked, &gone).await.unwrap().phase(), Phase::Removed);
    stops_as_removed(&mut gone).await;
    for peer in &peers {
        sees(peer, 3).await;
        let removed = peer.status().await.unwrap().peerset.unwrap().removed;
        // The others do not know where it was (beh:B4.5).
        assert!(removed.len() == 1 && removed[0].addresses.is_none() && removed[0].multiaddresses.is_empty());
    }
    // The leader, from a follower.
    let first = leader(&peers).await;
    let mut gone = peers.remove(first);
    cluster.monitors.peers.lock().retain(|peer| *peer != gone.id());
    assert_eq!(remove(&peers[0], &gone).await.unwrap().phase(), Phase::Removed);
    stops_as_removed(&mut gone).await;
    leader(&peers).await;
    // Itself.
    let mut gone = peers.remove(0);
    cluster.monitors.peers.lock().retain(|peer| *peer != gone.id());
    sees(&gone, 2).await;
    assert_eq!(remove(&gone, &gone).await.unwrap().phase(), Phase::Removed);
    stops_as_removed(&mut gone).await;
    sees(&peers[0], 1).await;
    peers[0].ready().await;
    pin(&peers[0], 1).await.unwrap();
}

/// Goal: a removal waits for what only that peer has, shows how much is left, gets nothing new, can be ordered again,
/// survives a change of the leader, and is done as soon as nothing is left. It can be called off.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f16_f21_a_removal_waits_for_copies() {
    let (cluster, mut peers) = Cluster::started(3).await;
    let first = leader(&peers).await;
    let (stays, goes) = ((first + 1) % 3, (first + 2) % 3);
    pin_only_at(&peers[stays], 1, &peers[goes]).await;
    // The test's monitor places as the real one would: not on a peer that drains.
    let bytes = peers[goes].id();
    cluster.monitors.peers.lock().retain(|peer| *peer != bytes);
    let waits = order(&peers[stays], &peers[goes]).await.unwrap();
    assert_eq!((waits.phase(), waits.allocated + waits.leaving, waits.removing), (Phase::Reallocating, 1, true));
    undrain(&peers[stays], &peers[goes]).await;
    until("it is called off", || async {
        let departures = peers[stays].peers().departures(DeparturesCall {}).await.unwrap().into_inner().departures;
        departures.is_empty()
    })
    .await;
    order(&peers[stays], &peers[goes]).await.unwrap();
    assert_eq!(order(&peers[goes], &peers[goes]).await.unwrap().phase(), Phase::Reallocating);
    for number in 2..10 {
        let pin = pin(&peers[stays], number).await.unwrap().pin.unwrap();
        assert!(!pin.allocations.contains(&bytes));
    }
    peers[first].stop().await.unwrap();
    until("the others see the order without the leader that took it", || async {
        let Ok(departures) = peers[stays].peers().departures(DeparturesCall {}).await else { return false };
        let departures = departures.into_inner().departures;
        departures.len() == 1 && departures[0].removing && departures[0].peer_id == bytes
    })
    .await;
    peers[first].start(&[]).await;
    peers[first].ready().await;
    assert_eq!(order(&peers[stays], &peers[goes]).await.unwrap().phase(), Phase::Reallocating);
    unpin(&peers[stays], 1).await;
    stops_as_removed(&mut peers[goes]).await;
    sees(&peers[stays], 2).await;
}

/// Goal: where nothing is moved, the only copy blocks a removal at once, and force is what it says; what is held
/// elsewhere too blocks nothing.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f16_f21_without_repinning_the_only_copy_stays() {
    let (_cluster, mut peers) = Cluster::started_with(3, &[("cluster.disable_repinning", json!(true))]).await;
    let first = leader(&peers).await;
    let (stays, goes) = ((first + 1) % 3, (first + 2) % 3);
    pin_only_at(&peers[stays], 1, &peers[goes]).await;
    let refused = order(&peers[stays], &peers[goes]).await.unwrap_err();
    assert_eq!(refused.code, Code::Rejected);
    assert!(refused.message.contains("only copy"), "{refused}");
    let row =
        |set: pinfold_proto::types::PeerSet| set.peers.into_iter().find(|row| row.peer_id == peers[goes].id()).unwrap();
    // Nothing was left half done.
    assert_eq!(row(peers[stays].status().await.unwrap().peerset.unwrap()).state(), State::Healthy);
    let gone = force(&peers[stays], &peers[goes]).await.unwrap();
    assert_eq!((gone.phase(), gone.allocated), (Phase::Removed, 1));
    stops_as_removed(&mut peers[goes]).await;
    // Two copies of each: one of the two peers that are left can go.
    sees(&peers[stays], 2).await;
    pin(&peers[stays], 2).await.unwrap();
    unpin(&peers[stays], 1).await;
    assert_eq!(remove(&peers[stays], &peers[first]).await.unwrap().phase(), Phase::Removed);
}

/// Goal: the last peer stays, and no removal leaves voters that have no majority running; several orders at once are
/// carried out one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f22_f23_removals_never_lose_the_quorum() {
    let (_cluster, mut peers) = Cluster::started(4).await;
    let first = leader(&peers).await;
    let [a, b, c] = [1, 2, 3].map(|step| (first + step) % 4);
    peers[a].stop().await.unwrap();
    peers[b].stop().await.unwrap();
    // Two of four do not run: no majority, and no leader either.
    until("the majority is missed", || async { peers[first].status().await.is_some_and(|status| !status.ready) }).await;
    peers[b].start(&[]).await;
    peers[b].ready().await;
    until("a leader again", || async { peers[first].status().await.is_some_and(|status| status.ready) }).await;
    // Three of four run: two of the three that would stay are a majority, one of the two after that is none.
    assert_eq!(remove(&peers[first], &peers[b]).await.unwrap().phase(), Phase::Removed);
    let refused = order(&peers[first], &peers[c]).await.unwrap_err();
    assert!(refused.code == Code::Rejected && refused.message.contains("no majority"), "{refused}");
    // The dead one can go, and then the rest but one.
    assert_eq!(remove(&peers[first], &peers[a]).await.unwrap().phase(), Phase::Removed);
    assert_eq!(remove(&peers[first], &peers[c]).await.unwrap().phase(), Phase::Removed);
    sees(&peers[first], 1).await;
    let refused = order(&peers[first], &peers[first]).await.unwrap_err();
    assert_eq!(refused.message, "cannot remove ourselves from a one-peer cluster");
}

/// Goal: several orders at the same moment are carried out one after the other, and the one that stays goes on alone.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f23_orders_at_the_same_moment() {
    let (cluster, mut peers) = Cluster::started(4).await;
    let stays = leader(&peers).await;
    let kept = peers.remove(stays);
    *cluster.monitors.peers.lock() = vec![kept.id()];
    let (first, second, third) =
        tokio::join!(remove(&kept, &peers[0]), remove(&kept, &peers[1]), remove(&kept, &peers[2]));
    for gone in [first, second, third] {
        assert_eq!(gone.unwrap().phase(), Phase::Removed);
    }
    sees(&kept, 1).await;
    pin(&kept, 1).await.unwrap();
}

/// Goal: removal is final: the removed peer refuses to start, with --bootstrap left in too; after its state was cleaned
/// it joins as another node under its old peer ID.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f17_f18_removal_is_final_until_the_state_is_cleaned() {
    let (_cluster, mut peers) = Cluster::started(3).await;
    let first = leader(&peers).await;
    let (stays, goes) = ((first + 1) % 3, (first + 2) % 3);
    let old_node = peers[goes].status().await.unwrap().node_id;
    remove(&peers[stays], &peers[goes]).await.unwrap();
    stops_as_removed(&mut peers[goes]).await;
    let bootstrap = [peers[stays].multiaddress()];
    for addresses in [&[][..], &bootstrap] {
        peers[goes].start(addresses).await;
        let refused = peers[goes].ended().await.unwrap_err();
        assert!(matches!(refused, Ended::Removed(_)), "{refused}");
        assert!(refused.to_string().contains("state clean"), "{refused}");
    }
    pinfold_common::member::forget(peers[goes].path()).unwrap();
    peers[goes].start(&bootstrap).await;
    peers[goes].ready().await;
    assert_ne!(peers[goes].status().await.unwrap().node_id, old_node);
    pin(&peers[goes], 3).await.unwrap();
}

/// Goal: a dead peer can be removed, and is told so when it comes back; it disturbs nobody meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f16_f17_a_sleeper_learns_of_its_removal() {
    let (_cluster, mut peers) = Cluster::started(3).await;
    let first = leader(&peers).await;
    let (stays, goes) = ((first + 1) % 3, (first + 2) % 3);
    peers[goes].stop().await.unwrap();
    remove(&peers[stays], &peers[goes]).await.unwrap();
    let term = peers[stays].status().await.unwrap().term;
    peers[goes].start(&[]).await;
    stops_as_removed(&mut peers[goes]).await;
    assert_eq!(peers[stays].status().await.unwrap().term, term);
}

/// Goal: without a majority a removal is refused within a bound, as retryable, and nothing is changed.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f5_f10_without_a_majority_the_peerset_stays() {
    let (cluster, mut peers) =
        Cluster::started_with(3, &[("consensus.raft.wait_for_leader_timeout", json!("1s"))]).await;
    let before = peers[0].status().await.unwrap().peerset.unwrap();
    peers[1].stop().await.unwrap();
    peers[2].stop().await.unwrap();
    until("the majority is missed", || async { peers[0].status().await.is_some_and(|status| !status.ready) }).await;
    let refused = order(&peers[0], &peers[1]).await.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable, "{refused}");
    // A joiner keeps asking, says why, and loses nothing.
    let mut joiner = cluster.peer().await;
    joiner.start(&[peers[0].multiaddress()]).await;
    until("the joiner says why it waits", || async {
        joiner.status().await.is_some_and(|status| status.not_ready_reason.contains("leader"))
    })
    .await;
    assert_eq!(peers[0].status().await.unwrap().peerset.unwrap().peers, before.peers);
    peers[1].start(&[]).await;
    peers[1].ready().await;
    joiner.ready().await;
    sees(&joiner, 4).await;
    tokio::time::timeout(Duration::from_secs(30), joiner.stop()).await.unwrap().unwrap();
}

/// Goal: a peer that is to leave on a clean stop is out of the peerset when it has stopped, with its state set aside.
/// One that can't, because nobody else has what it has, stops as a member with its data, says so, and is not removed
/// behind its back; the last one never leaves.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f20_f22_a_clean_stop_leaves_or_says_that_it_could_not() {
    let keys = [("cluster.leave_on_shutdown", json!(true)), ("cluster.leave_timeout", json!("8s"))];
    let (cluster, mut peers) = Cluster::started_with(3, &keys).await;
    let mut goes = peers.remove(2);
    cluster.monitors.peers.lock().retain(|peer| *peer != goes.id());
    goes.stop().await.unwrap();
    sees(&peers[0], 2).await;
    assert!(goes.path().join("raft.old.0/log.db").exists() && !goes.path().join("raft").exists());
    goes.start(&[]).await;
    assert!(matches!(goes.ended().await, Err(Ended::Removed(_))));

    pin_only_at(&peers[0], 1, &peers[1]).await;
    let refused = peers[1].stop().await.unwrap_err();
    assert!(matches!(refused, Ended::NotLeft(_)), "{refused}");
    assert!(peers[1].path().join("raft/log.db").exists() && !peers[1].path().join("removed.json").exists());
    peers[1].start(&[]).await;
    peers[1].ready().await;
    sees(&peers[0], 2).await;
    let rows = peers[1].status().await.unwrap().peerset.unwrap().peers;
    assert!(rows.iter().all(|row| row.state() == State::Healthy && !row.removing));
    peers[0].ready().await;
    unpin(&peers[0], 1).await;
    peers[1].stop().await.unwrap();
    sees(&peers[0], 1).await;
    assert!(matches!(peers[0].stop().await, Err(Ended::NotLeft(_))));
    assert!(peers[0].path().join("raft/log.db").exists());
}

/// Goal: a leave that the quorum check refuses goes on asking, and is done when the voter that was missed is back.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f20_f22_a_refused_leave_is_tried_again() {
    let (_cluster, mut peers) = Cluster::started(3).await;
    let mut goes = peers.remove(2);
    goes.stop().await.unwrap();
    goes.set("cluster.leave_on_shutdown", json!(true));
    goes.set("cluster.leave_timeout", json!("60s"));
    goes.start(&[]).await;
    goes.ready().await;
    let mut missed = peers.remove(1);
    missed.stop().await.unwrap();
    let stays = &peers[0];
    until("a leader", || async { stays.status().await.is_some_and(|status| status.ready) }).await;
    let own = RemovePeerCall { peer_id: goes.id(), force: false, wait_ms: 1 };
    let (left, ()) = tokio::join!(goes.stop(), async {
        // These take as long as the attempt of the leaving peer that began before them, so that it was refused too.
        for _ in 0..2 {
            let refused = Error::from(stays.peers().remove(own.clone()).await.unwrap_err());
            assert!(refused.code == Code::Rejected && refused.message.contains("no majority"), "{refused}");
        }
        missed.start(&[]).await;
    });
    left.unwrap();
    sees(stays, 2).await;
}
