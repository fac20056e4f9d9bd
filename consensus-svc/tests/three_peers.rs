//! Three peers: one hop to the leader, reads anywhere, losing peers. Joining and removing: `peerset.rs`.

mod harness;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use harness::{Cluster, Peer, cid, leader, pin, request, until};
use pinfold_common::{Code, Error};
use pinfold_proto::WIRE_VERSION;
use pinfold_proto::consensus::follow_reply::Message;
use pinfold_proto::consensus::*;
use serde_json::json;

async fn get(peer: &Peer, call: GetCall) -> GetReply {
    peer.pins().get(call).await.unwrap().into_inner()
}

/// Goal: peers join one after the other with all their addresses, every peer takes requests, and what was acknowledged
/// at one is read at another, by its index or by a linearizable read.
#[tokio::test(flavor = "multi_thread")]
async fn requests_go_anywhere() {
    let (cluster, peers) = Cluster::started(3).await;
    for (number, peer) in (0..).zip(&peers) {
        let reply = pin(peer, number).await.unwrap();
        for reader in &peers {
            let by_index = GetCall { cid: cid(number), min_index: reply.index, ..GetCall::default() };
            assert_eq!(get(reader, by_index).await.pin.unwrap().revision, reply.index);
        }
        let reply = pin(peer, 100 + number).await.unwrap();
        for reader in &peers {
            let consistency = Consistency::Linearizable as i32;
            let read = get(reader, GetCall { cid: cid(100 + number), consistency, ..GetCall::default() }).await;
            assert!(read.index >= reply.index && read.pin.is_some());
        }
        let unpin = UnpinCall { cid: cid(number), request_key: Vec::new() };
        assert_eq!(peer.pins().unpin(unpin).await.unwrap().into_inner().pin.unwrap().cid, cid(number));
        let missing = peer.pins().unpin(UnpinCall { cid: cid(number), request_key: Vec::new() }).await.unwrap_err();
        assert_eq!(Error::from(missing), Error::not_in_pinset(), "errors survive the hop");
        let allocated = peer.pins().allocate_for_add(AllocateCall::default()).await.unwrap().into_inner();
        assert_eq!((allocated.everywhere, allocated.replication_factor_max), (false, 2));
    }
    for peer in &peers {
        let set = peer.status().await.unwrap().peerset.unwrap();
        assert_eq!(set.peers.len(), 3);
        for row in &set.peers {
            let addresses = row.addresses.clone().unwrap();
            assert!(row.name.starts_with("peer-") && row.wire_version == WIRE_VERSION);
            assert!(
                [addresses.consensus, addresses.monitor, addresses.connector, addresses.gateway]
                    .iter()
                    .all(|address| address.contains(':'))
            );
        }
    }
    until("contacts reach the monitors", || async { cluster.monitors.contacts.lock().len() == 3 }).await;
}

/// Goal: a burst at a follower travels in few hops and entries.
#[tokio::test(flavor = "multi_thread")]
async fn bursts_share_their_hops() {
    let (cluster, peers) = Cluster::started(3).await;
    let follower = &peers[(leader(&peers).await + 1) % 3];
    let before = follower.status().await.unwrap().last_log_index;
    let clients: Vec<_> = (0..64u32)
        .map(|client| {
            let mut pins = follower.pins();
            tokio::spawn(async move {
                for number in 0..10 {
                    let call = PinCall { request: Some(request(client * 100 + number)), request_key: Vec::new() };
                    pins.pin(call).await.unwrap();
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let status = follower.status().await.unwrap();
    assert!(status.last_log_index - before < 160, "{} entries for 640 pins", status.last_log_index - before);
    assert!(cluster.monitors.calls.load(Ordering::Acquire) < 160);
}

/// Goal: beh:B8.13, the other half of B8.12. A pin that had to be content with few peers gets up to its maximum when the
/// same is asked for again and there are more; one that only has to be copied keeps what it has.
#[tokio::test(flavor = "multi_thread")]
async fn b8_13_a_repin_by_a_user_grows_to_the_maximum() {
    let (cluster, peers) = Cluster::started(3).await;
    let place = leader(&peers).await;
    let all = cluster.monitors.peers.lock().clone();
    let ask = async |number: u32, from: Option<u32>| {
        let mut asked = request(number);
        let options = asked.options.as_mut().unwrap();
        (options.replication_factor_min, options.replication_factor_max) = (1, 3);
        options.pin_update = from.map(cid).unwrap_or_default();
        let call = PinCall { request: Some(asked), request_key: Vec::new() };
        peers[place].pins().pin(call).await.unwrap().into_inner().pin.unwrap()
    };
    *cluster.monitors.peers.lock() = all[..1].to_vec();
    let few = ask(1, None).await;
    assert_eq!(few.allocations, all[..1]);
    assert_eq!(ask(1, None).await.revision, few.revision, "nobody else is there: nothing to write");
    *cluster.monitors.peers.lock() = all.clone();
    assert_eq!(ask(2, Some(1)).await.allocations, few.allocations, "an update copies");
    let grown = ask(1, None).await;
    assert!(grown.revision > few.revision);
    let mut holders = grown.allocations;
    holders.sort();
    let mut everybody = all;
    everybody.sort();
    assert_eq!(holders, everybody);
}

/// Goal: with its leader's monitor away, a voter's monitor allocates.
#[tokio::test(flavor = "multi_thread")]
async fn another_monitor_allocates() {
    let (_cluster, mut peers) = Cluster::started(2).await;
    let place = leader(&peers).await;
    peers[place].stop_monitor().await;
    let reply = pin(&peers[place], 1).await.unwrap();
    assert_eq!(reply.pin.unwrap().allocations.len(), 2);
}

/// Goal: a rolling restart costs no acknowledged pin and no failed one: a leader that stops hands over; one that vanishes is replaced within seconds; nothing acknowledged is lost, and
/// a client at another peer sees no error but a pause.
#[tokio::test(flavor = "multi_thread")]
async fn seed_e3_e5_leaders_come_and_go() {
    let (_cluster, mut peers) = Cluster::started(3).await;
    let first = leader(&peers).await;
    let other = (first + 1) % 3;
    let mut pins = peers[other].pins();
    let writer = tokio::spawn(async move {
        let (mut acknowledged, mut longest, end) =
            (Vec::new(), Duration::ZERO, Instant::now() + Duration::from_secs(3));
        for number in 0.. {
            let started = Instant::now();
            if started > end {
                break;
            }
            let call = PinCall { request: Some(request(number)), request_key: Vec::new() };
            pins.pin(call).await.unwrap();
            longest = longest.max(started.elapsed());
            acknowledged.push(number);
        }
        (acknowledged, longest)
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    peers[first].stop().await.unwrap();
    let (acknowledged, longest) = writer.await.unwrap();
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    let survivor = &peers[other];
    let linearizable = Consistency::Linearizable as i32;
    for number in &acknowledged {
        let read = GetCall { cid: cid(*number), consistency: linearizable, ..GetCall::default() };
        assert!(get(survivor, read).await.pin.is_some(), "{number} is lost");
    }
    // --bootstrap on a restart of a member changes nothing (beh:B3.8).
    let multiaddress = peers[other].multiaddress();
    let node = peers[other].status().await.unwrap().peerset.unwrap();
    peers[first].start(&[multiaddress]).await;
    peers[first].ready().await;
    let status = peers[first].status().await.unwrap();
    assert_eq!(status.pins, acknowledged.len() as u64);
    assert_eq!(status.peerset.unwrap().peers, node.peers);
}

/// Goal: without a majority writes are refused as retryable and local reads are marked stale; both end with the
/// majority.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f2_c4_a_minority_only_reads() {
    let (_cluster, mut peers) = Cluster::started(3).await;
    pin(&peers[0], 1).await.unwrap();
    let wait = json!("1s");
    peers[0].stop().await.unwrap();
    peers[0].set("consensus.raft.wait_for_leader_timeout", wait);
    peers[0].start(&[]).await;
    peers[0].ready().await;
    peers[1].stop().await.unwrap();
    peers[2].stop().await.unwrap();
    until("the leader is missed", || async { peers[0].status().await.is_some_and(|status| !status.ready) }).await;
    let read = get(&peers[0], GetCall { cid: cid(1), ..GetCall::default() }).await;
    assert!(read.stale && read.pin.is_some());
    assert_eq!(pin(&peers[0], 2).await.unwrap_err().code, Code::Unavailable);
    peers[1].start(&[]).await;
    peers[0].ready().await;
    pin(&peers[0], 2).await.unwrap();
}

/// Goal: a follower's followers are told that they are caught up only when it has what the leader has.
#[tokio::test(flavor = "multi_thread")]
async fn followers_of_followers() {
    let (_cluster, peers) = Cluster::started(3).await;
    let follower = &peers[(leader(&peers).await + 1) % 3];
    let mut stream = follower.pins().follow(FollowCall { cursor: None }).await.unwrap().into_inner();
    let reply = pin(&peers[0], 7).await.unwrap();
    let mut has_pin = false;
    let seen = async {
        loop {
            match stream.message().await.unwrap().unwrap().message.unwrap() {
                Message::Page(page) => has_pin |= page.pins.iter().any(|pin| pin.cid == cid(7)),
                Message::Changes(changes) => {
                    has_pin |= changes.changes.iter().any(|change| change.index == reply.index);
                    if changes.caught_up && changes.cursor.unwrap().index >= reply.index {
                        return has_pin;
                    }
                }
                Message::Behind(_) | Message::Resume(_) | Message::Compare(_) => {}
            }
        }
    };
    assert!(tokio::time::timeout(harness::DEADLINE, seen).await.unwrap());
}

/// Goal: a peer that lost its disk and joins again is another node, and keeps nothing it promised (fault:F3).
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_another_node() {
    let (_cluster, mut peers) = Cluster::started(3).await;
    let first = leader(&peers).await;
    let lost = (first + 1) % 3;
    pin(&peers[lost], 1).await.unwrap();
    let old = peers[lost].status().await.unwrap().node_id;
    peers[lost].stop().await.unwrap();
    std::fs::remove_dir_all(peers[lost].path().join("raft")).unwrap();
    pinfold_common::member::forget(peers[lost].path()).unwrap();
    let bootstrap = [peers[first].multiaddress()];
    peers[lost].start(&bootstrap).await;
    peers[lost].ready().await;
    let status = peers[lost].status().await.unwrap();
    assert!(status.node_id != old && status.pins == 1);
    let set = status.peerset.unwrap();
    assert_eq!((set.peers.len(), set.removed.len()), (3, 1));
}

/// Goal: strangers and old versions are refused by name; own services of another peer are strangers too.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_do_what() {
    let (cluster, peers) = Cluster::started(1).await;
    let stranger = cluster.peer().await;
    let join = JoinCall { wire_version: "0.9".into(), ..JoinCall::default() };
    let nowhere = JoinCall { wire_version: WIRE_VERSION.into(), ..JoinCall::default() };
    let refused = Error::from(stranger.membership_of(&peers[0]).join(nowhere).await.unwrap_err());
    assert_eq!(refused.code, Code::InvalidArgument);
    let refused = Error::from(stranger.membership_of(&peers[0]).join(join).await.unwrap_err());
    assert_eq!(refused.code, Code::Incompatible);
    assert!(refused.message.contains("0.9") && refused.message.contains(WIRE_VERSION), "{refused}");
    let on_behalf = JoinCall {
        wire_version: WIRE_VERSION.into(),
        forwarded: true,
        on_behalf_of: stranger.id(),
        ..JoinCall::default()
    };
    let refused = Error::from(stranger.membership_of(&peers[0]).join(on_behalf).await.unwrap_err());
    assert_eq!(refused.code, Code::PermissionDenied);
    let refused = peers[0]
        .peers()
        .remove(RemovePeerCall { peer_id: peers[0].id(), ..RemovePeerCall::default() })
        .await
        .unwrap_err();
    assert_eq!(Error::from(refused).message, "cannot remove ourselves from a one-peer cluster");
}

/// Goal: two of five may be down, whoever they are: requests and linearizable reads go on anywhere, and what is committed
/// is on every peer that runs.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f1_f3_a_minority_may_be_down() {
    let (_cluster, mut peers) = Cluster::started(5).await;
    pin(&peers[4], 1).await.unwrap();
    let first = leader(&peers).await;
    peers[first].stop().await.unwrap();
    peers[(first + 1) % 5].stop().await.unwrap();
    let running = [2, 3, 4].map(|step| (first + step) % 5);
    for (number, place) in (2..).zip(running) {
        peers[place].ready().await;
        let index = pin(&peers[place], number).await.unwrap().index;
        for other in running {
            let read = GetCall { cid: cid(number), min_index: index, ..GetCall::default() };
            assert!(get(&peers[other], read).await.pin.is_some());
        }
        let read = GetCall { cid: cid(1), consistency: Consistency::Linearizable as i32, ..GetCall::default() };
        assert!(get(&peers[place], read).await.pin.is_some());
    }
    until("everybody has the same pinset", || async {
        let mut digests = Vec::new();
        for place in running {
            digests.push(peers[place].peers().digest(DigestCall {}).await.unwrap().into_inner());
        }
        digests.windows(2).all(|pair| pair[0] == pair[1]) && digests[0].pins == 4
    })
    .await;
}
