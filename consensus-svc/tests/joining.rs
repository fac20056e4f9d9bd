//! How peers become members: by bootstrap, as founders, invited; who is refused, and in which words.

mod harness;

use harness::{Cluster, Peer, cid, leader, pin, request, until};
use pinfold_common::{Code, Error};
use pinfold_proto::WIRE_VERSION;
use pinfold_proto::consensus::*;
use pinfold_proto::types::PeerSet;
use serde_json::json;

async fn peerset(peer: &Peer) -> PeerSet {
    peer.status().await.and_then(|status| status.peerset).unwrap_or_default()
}

/// Waits until the peer says why it is not ready, in these words.
async fn says(peer: &Peer, words: &[&str]) {
    until(&format!("it says {words:?}"), || async {
        let reason = peer.status().await.map(|status| status.not_ready_reason).unwrap_or_default();
        words.iter().all(|word| reason.contains(word))
    })
    .await;
}

fn add(peer: &Peer, address: String) -> AddPeerCall {
    AddPeerCall { peer_id: peer.id(), address }
}

/// Goal: a clean peer joins by the first of several addresses that works, gets the peerset, the addresses and the pins,
/// and comes back later without a flag; where the others are is in its peerstore when it has stopped.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f6_f8_f9_c16_join_and_come_back() {
    let (cluster, peers) = Cluster::started(2).await;
    pin(&peers[0], 1).await.unwrap();
    let mut joiner = cluster.peer().await;
    let nobody = cluster.peer().await.multiaddress();
    joiner.start(&[format!("{nobody}, {}", peers[1].multiaddress())]).await;
    joiner.ready().await;
    let status = joiner.status().await.unwrap();
    assert_eq!(status.pins, 1);
    let set = status.peerset.unwrap();
    assert!(set.peers.len() == 3 && set.peers.iter().all(|row| row.addresses.is_some() && row.voter));
    for peer in &peers {
        until("everybody lists it", || async { peerset(peer).await.peers.len() == 3 }).await;
    }
    joiner.stop().await.unwrap();
    let peerstore = std::fs::read_to_string(joiner.path().join("peerstore")).unwrap();
    assert_eq!(peerstore.lines().count(), 2);
    assert!(peers.iter().all(|peer| peerstore.contains(&peer.multiaddress())), "{peerstore}");
    joiner.start(&[]).await;
    joiner.ready().await;
    assert_eq!(joiner.status().await.unwrap().node_id, status.node_id);
}

/// Goal: founders with the same `init_peerset` become one cluster, whatever the order they start in.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f7_c16_founders_find_each_other() {
    let cluster = Cluster::new();
    let mut peers = vec![cluster.peer().await, cluster.peer().await, cluster.peer().await];
    let ids: Vec<String> = peers.iter().map(|peer| peer.identity.peer_id.to_string()).collect();
    let addresses: Vec<String> = peers.iter().map(Peer::multiaddress).collect();
    for peer in &mut peers {
        peer.set("consensus.raft.init_peerset", json!(ids));
        // One half knows the others by the configuration, the other half by the peerstore.
        std::fs::write(peer.path().join("peerstore"), addresses[1..].join("\n")).unwrap();
        peer.set("cluster.peer_addresses", json!([addresses[0]]));
        peer.start(&[]).await;
    }
    for peer in &peers {
        peer.ready().await;
    }
    pin(&peers[1], 1).await.unwrap();
    for peer in &peers {
        until("every row is whole", || async {
            let set = peerset(peer).await;
            set.peers.len() == 3 && set.peers.iter().all(|row| row.name.starts_with("peer-") && row.voter)
        })
        .await;
    }
}

/// Goal: peers whose addresses all changed while they were stopped find each other by what an operator wrote down.
#[tokio::test(flavor = "multi_thread")]
async fn seed_c16_moved_peers_find_each_other() {
    let (_cluster, mut peers) = Cluster::started(2).await;
    pin(&peers[0], 1).await.unwrap();
    for peer in &mut peers {
        peer.stop().await.unwrap();
        peer.moves().await;
    }
    let addresses: Vec<String> = peers.iter().map(Peer::multiaddress).collect();
    for peer in &mut peers {
        peer.set("cluster.peer_addresses", json!(addresses));
        peer.start(&[]).await;
    }
    for peer in &peers {
        peer.ready().await;
    }
    pin(&peers[1], 2).await.unwrap();
    until("the rows have the new addresses", || async {
        let set = peerset(&peers[0]).await;
        peers.iter().all(|peer| {
            let row = set.peers.iter().find(|row| row.peer_id == peer.id());
            row.and_then(|row| row.addresses.as_ref()).is_some_and(|addresses| addresses.consensus == peer.address)
        })
    })
    .await;
}

/// Goal: founders whose lists differ do not wait in silence: the key and the other's list are named.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f7_differing_lists_are_named() {
    let cluster = Cluster::new();
    let mut peers = [cluster.peer().await, cluster.peer().await, cluster.peer().await];
    peers.sort_by_key(|peer| peer.identity.peer_id);
    let ids: Vec<String> = peers.iter().map(|peer| peer.identity.peer_id.to_string()).collect();
    let addresses: Vec<String> = peers.iter().map(Peer::multiaddress).collect();
    for (peer, list) in peers.iter_mut().zip([&ids[..], &ids[..2], &ids[..]]) {
        peer.set("consensus.raft.init_peerset", json!(list));
        peer.set("cluster.peer_addresses", json!(addresses));
    }
    // The first would be enough of a majority with either of the others: it stays away.
    let [_, second, third] = &mut peers;
    second.start(&[]).await;
    third.start(&[]).await;
    says(third, &["consensus.raft.init_peerset", &ids[1]]).await;
}

/// Goal: a peer that runs and has nothing of its own is added from the member's side, whether it founded a cluster of
/// one or waits to be let in; one that can't be reached, or has pins, becomes no member and is told why.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f11_adding_from_the_members_side() {
    let (cluster, peers) = Cluster::started(1).await;
    let mut alone = cluster.peer().await;
    let unreachable = Error::from(peers[0].peers().add(add(&alone, alone.multiaddress())).await.unwrap_err());
    assert_eq!(unreachable.code, Code::Unavailable, "{unreachable}");
    let unknown = Error::from(peers[0].peers().add(add(&alone, String::new())).await.unwrap_err());
    assert!(unknown.message.contains("address") && unknown.message.contains("--bootstrap"), "{unknown}");
    assert_eq!(peerset(&peers[0]).await.peers.len(), 1);

    alone.start(&[]).await;
    alone.ready().await;
    let founded = alone.status().await.unwrap().cluster_id;
    peers[0].peers().add(add(&alone, alone.multiaddress())).await.unwrap();
    peers[0].peers().add(add(&alone, String::new())).await.unwrap();
    until("it is a member like the others", || async {
        alone.status().await.is_some_and(|status| status.ready && status.cluster_id != founded)
    })
    .await;
    // Nothing was thrown away.
    assert!(alone.path().join("raft.old.0/log.db").exists());
    pin(&alone, 1).await.unwrap();

    let mut waiting = cluster.peer().await;
    let nobody = cluster.peer().await.multiaddress();
    waiting.start(&[nobody]).await;
    says(&waiting, &["joining by"]).await;
    alone.peers().add(add(&waiting, waiting.multiaddress())).await.unwrap();
    waiting.ready().await;

    let mut rich = cluster.peer().await;
    cluster.monitors.peers.lock().push(rich.id());
    rich.start(&[]).await;
    rich.ready().await;
    let mut everywhere = request(7);
    let options = everywhere.options.as_mut().unwrap();
    (options.replication_factor_min, options.replication_factor_max) = (-1, -1);
    rich.pins().pin(PinCall { request: Some(everywhere), request_key: Vec::new() }).await.unwrap();
    let refused = Error::from(peers[0].peers().add(add(&rich, rich.multiaddress())).await.unwrap_err());
    assert!(refused.code == Code::Rejected && refused.message.contains("1 pins"), "{refused}");
    assert_eq!(rich.status().await.unwrap().pins, 1);
}

/// Goal: a peer that was started once without `--bootstrap`, and has nothing, joins when it is started with it; one
/// that has pins keeps them and stays where it is.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f6_f12_only_who_has_nothing_gives_up_its_own_cluster() {
    let (cluster, peers) = Cluster::started(1).await;
    let mut empty = cluster.peer().await;
    empty.start(&[]).await;
    empty.ready().await;
    empty.stop().await.unwrap();
    empty.start(&[peers[0].multiaddress()]).await;
    until("it joins", || async { peerset(&empty).await.peers.len() == 2 }).await;
    empty.ready().await;

    let mut rich = cluster.peer().await;
    rich.start(&[]).await;
    rich.ready().await;
    let mut everywhere = request(7);
    let options = everywhere.options.as_mut().unwrap();
    (options.replication_factor_min, options.replication_factor_max) = (-1, -1);
    rich.pins().pin(PinCall { request: Some(everywhere), request_key: Vec::new() }).await.unwrap();
    rich.stop().await.unwrap();
    rich.start(&[peers[0].multiaddress()]).await;
    rich.ready().await;
    let status = rich.status().await.unwrap();
    assert_eq!((status.pins, status.peerset.unwrap().peers.len()), (1, 1));
    assert_eq!(peerset(&peers[0]).await.peers.len(), 2);
}

/// Goal: ten restarts of a healthy member with `--bootstrap` left in cost nothing: same node, same data, no backups.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f12_bootstrap_left_in_costs_nothing() {
    let (_cluster, mut peers) = Cluster::started(2).await;
    pin(&peers[0], 1).await.unwrap();
    let bootstrap = [peers[0].multiaddress()];
    let before = peers[1].status().await.unwrap();
    for _ in 0..10 {
        peers[1].stop().await.unwrap();
        peers[1].start(&bootstrap).await;
        peers[1].ready().await;
    }
    let after = peers[1].status().await.unwrap();
    assert_eq!((after.node_id, after.pins), (before.node_id, 1));
    assert_eq!(after.peerset.unwrap().peers.len(), 2);
    assert!(!peers[1].path().join("raft.old.0").exists());
}

/// Goal: five peers that join at the same moment, by different members, all join and all vote.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f13_five_at_the_same_moment() {
    let (cluster, members) = Cluster::started(2).await;
    let mut joiners = Vec::new();
    for _ in 0..5 {
        joiners.push(cluster.peer().await);
    }
    for (number, joiner) in joiners.iter_mut().enumerate() {
        joiner.start(&[members[number % 2].multiaddress()]).await;
    }
    for joiner in &joiners {
        joiner.ready().await;
    }
    until("all vote", || async {
        let set = peerset(&members[0]).await;
        set.peers.len() == 7 && set.peers.iter().all(|row| row.voter)
    })
    .await;
}

/// Goal: a joiner that gives a member's address for its own is not taken, and is told whose address it is (fault:M4).
#[tokio::test(flavor = "multi_thread")]
async fn seed_f13_an_address_is_one_peers() {
    let (cluster, peers) = Cluster::started(2).await;
    let mut joiner = cluster.peer().await;
    let taken = peers[1].multiaddress();
    let taken = taken.split_once("/p2p/").unwrap().0;
    joiner.set("services.consensus.announce_multiaddress", taken.into());
    joiner.start(&[peers[0].multiaddress()]).await;
    says(&joiner, &[&peers[1].identity.peer_id.to_string(), "ctl peers rm"]).await;
    assert_eq!(peerset(&peers[0]).await.peers.len(), 2);
}

/// Goal: another secret is named as that; this peer's own address and a peer that is gone are no reason to end.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f14_another_secret_is_named() {
    let (_cluster, peers) = Cluster::started(1).await;
    let other = Cluster::new();
    let mut joiner = other.peer().await;
    joiner.start(&[peers[0].multiaddress()]).await;
    says(&joiner, &["another cluster secret"]).await;
    assert_eq!(peerset(&peers[0]).await.peers.len(), 1);
}

/// Goal: another wire version is refused in both directions, by both versions' names, and the cluster does not notice:
/// a joiner, and a member that comes back as another version. Patch versions do not matter.
#[tokio::test(flavor = "multi_thread")]
async fn seed_a2_a3_versions() {
    let (cluster, mut peers) = Cluster::started(3).await;
    let mut joiner = cluster.peer().await;
    joiner.speak("9.7");
    joiner.start(&[peers[0].multiaddress()]).await;
    says(&joiner, &["9.7", WIRE_VERSION]).await;
    let first = leader(&peers).await;
    let other = (first + 1) % 3;
    peers[other].stop().await.unwrap();
    let ours = peers[other].channels.clone();
    peers[other].speak("9.7");
    peers[other].start(&[]).await;
    says(&peers[other], &["no leader", "9.7", WIRE_VERSION]).await;
    let its_services =
        ours.to(pinfold_common::tls::Room::Consensus, &peers[other].identity.peer_id, &peers[other].address);
    let refused = peers_client::PeersClient::new(its_services).status(StatusCall {}).await.unwrap_err();
    assert_eq!(Error::from(refused).code, Code::Incompatible);
    let term = peers[first].status().await.unwrap().term;
    pin(&peers[first], 1).await.unwrap();
    let status = peers[first].status().await.unwrap();
    assert_eq!((status.term, status.peerset.unwrap().peers.len()), (term, 3));
    peers[other].stop().await.unwrap();
    peers[other].speak(WIRE_VERSION);
    peers[other].start(&[]).await;
    peers[other].ready().await;
    // Another patch of the product: a member like the others.
    let patched = cluster.peer().await;
    let addresses = pinfold_proto::types::ServiceAddresses {
        consensus: patched.address.clone(),
        monitor: "127.0.0.1:1".into(),
        connector: "127.0.0.1:1".into(),
        gateway: "127.0.0.1:1".into(),
    };
    let join = JoinCall {
        version: "0.1.99".into(),
        wire_version: WIRE_VERSION.into(),
        addresses: Some(addresses),
        ..JoinCall::default()
    };
    let joined = patched.membership_of(&peers[first]).join(join).await.unwrap().into_inner();
    let rows = joined.peerset.unwrap().peers;
    assert!(rows.iter().any(|row| row.version == "0.1.99" && row.peer_id == patched.id()));
    // It does not run: it is a member, and never a voter (seed:F11).
    pin(&peers[other], 2).await.unwrap();
    assert!(peerset(&peers[first]).await.peers.iter().all(|row| row.voter == (row.version != "0.1.99")));
}

/// Goal: with as many voters as there may be, further peers are learners: ready, with all pins, taking requests; one of
/// them takes the place of a voter that is removed.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f4_learners_serve_and_replace_voters() {
    let (cluster, mut peers) = Cluster::started_with(1, &[("consensus.raft.max_voters", json!(3))]).await;
    for _ in 1..5 {
        let mut peer = cluster.peer().await;
        peer.set("consensus.raft.max_voters", json!(3));
        peer.start(&[peers[0].multiaddress()]).await;
        peer.ready().await;
        peers.push(peer);
    }
    let voters = |set: &PeerSet| set.peers.iter().filter(|row| row.voter).count();
    until("three of five vote", || async { voters(&peerset(&peers[0]).await) == 3 }).await;
    let set = peerset(&peers[0]).await;
    let is_learner = |peer: &&Peer| set.peers.iter().any(|row| row.peer_id == peer.id() && !row.voter);
    for learner in peers.iter().filter(is_learner) {
        assert_eq!(learner.status().await.unwrap().role(), status_reply::Role::Learner);
        let reply = pin(learner, 1).await.unwrap();
        let read = GetCall { cid: cid(1), min_index: reply.index, ..GetCall::default() };
        assert!(learner.pins().get(read).await.unwrap().into_inner().pin.is_some());
    }
    let first = leader(&peers).await;
    let gone = peers.remove(first);
    cluster.monitors.peers.lock().retain(|peer| *peer != gone.id());
    peers[0].pins().unpin(UnpinCall { cid: cid(1), request_key: Vec::new() }).await.unwrap();
    let call = RemovePeerCall { peer_id: gone.id(), force: false, wait_ms: 20_000 };
    peers[0].peers().remove(call).await.unwrap();
    until("a learner has the vote", || async {
        let set = peerset(&peers[0]).await;
        set.peers.len() == 4 && voters(&set) == 3
    })
    .await;
    pin(&peers[1], 2).await.unwrap();
}
