//! Peers die, one or several, and their items get their copies back: real processes, killed hard.

use std::time::Duration;

use ctl::local::peer::Peer;
use futures::future::join_all;
use pinfold_common::config::Overrides;
use pinfold_common::tls::Room;
use pinfold_proto::types::repin_change_call::Switch;
use pinfold_proto::types::repin_status_reply::Phase;
use pinfold_proto::types::{
    MaintainCall, RepinChangeCall, RepinStatusCall, RepinStatusReply, UnsatisfiedCall, peer_repin,
};
use pinfold_proto::{api, types};
use pinfold_tests::cluster::{PATIENCE, TestCluster, eventually};
use pinfold_tests::content;
use pinfold_tests::pins::{self, Pinset, pin_all};
use serde_json::json;

/// Pings every second, so that a silence is noticed after two, and a grace as given.
pub(super) fn settings(grace: &str) -> Overrides {
    vec![
        ("cluster.monitor_ping_interval", json!("1s")),
        ("monitor.pubsubmon.check_interval", json!("1s")),
        ("repin.grace", json!(grace)),
        ("repin.pins_per_second", json!(1000)),
    ]
}

pub(super) async fn start(peers: u16, settings: Overrides) -> TestCluster {
    let ipfs = ctl::local::cluster::Ipfs::Embedded { gateways: Vec::new() };
    TestCluster::with(peers, ipfs, settings).await
}

/// Pins with everything that a pin may have.
async fn pin_many(cluster: &TestCluster, at: usize, label: &str, count: usize, factors: (i32, i32)) {
    let request = |number: usize| {
        let mut request = pins::request(label, number, factors);
        let options = request.options.get_or_insert_default();
        options.expire_at_seconds = 4_000_000_000;
        options.metadata = vec![types::KeyValue { key: "kept".to_owned(), value: label.to_owned() }];
        request
    };
    for chunk in (0..count).collect::<Vec<usize>>().chunks(500) {
        let requests = chunk.iter().map(|number| request(*number)).collect();
        pin_all(cluster.pins(at), requests).await;
    }
}

pub(super) async fn pinset(cluster: &TestCluster, at: usize) -> Option<Pinset> {
    pins::list(cluster.pins(at)).await
}

pub(super) async fn status(cluster: &TestCluster, at: usize) -> Option<RepinStatusReply> {
    Some(cluster.repin(at).status(RepinStatusCall::default()).await.ok()?.into_inner())
}

/// The status as soon as it is as wanted.
pub(super) async fn status_when(
    cluster: &TestCluster,
    at: usize,
    what: &str,
    is_so: impl Fn(&RepinStatusReply) -> bool,
) -> RepinStatusReply {
    eventually(what, || async { status(cluster, at).await.filter(&is_so) }).await
}

fn state_of(status: &RepinStatusReply, peer: &[u8]) -> Option<peer_repin::State> {
    status.peers.iter().find(|told| told.peer_id == peer).map(types::PeerRepin::state)
}

pub(super) fn id(cluster: &TestCluster, index: usize) -> Vec<u8> {
    cluster.peer(index).peer_id.to_bytes()
}

/// All but the peers, which are what may change.
pub(super) fn without_peers(pin: &types::Pin) -> types::Pin {
    types::Pin { allocations: Vec::new(), leaving: Vec::new(), revision: 0, ..pin.clone() }
}

/// Goal: five peers, two killed at the same moment with the leader among them (the run in which the original leaves half
/// of the pins with too few copies for ever). Everything gets its copies back, on peers that are there, with all its
/// options, although the process that does it is killed again and again; what has its minimum is not written; and when
/// the dead return, nobody has more than the maximum.
#[tokio::test(flavor = "multi_thread")]
async fn seed_h1_h2_h3_h4_h6_h9_1_h9_2_h9_4_h9_5_h9_8_two_of_five_killed_at_once() {
    const PINS: usize = 300;
    let cluster = start(5, settings("1s")).await;
    pin_many(&cluster, 0, "two", PINS, (2, 2)).await;
    pin_many(&cluster, 0, "leeway", PINS, (1, 3)).await;
    pin_many(&cluster, 0, "everywhere", 10, (-1, -1)).await;
    let before = pinset(&cluster, 0).await.expect("a list");
    let leader = cluster.leader(&[0, 1, 2, 3, 4]).await;
    let dead = [leader, (leader + 1) % 5];
    let dead_ids = dead.map(|index| id(&cluster, index));
    let alive: Vec<usize> = (0..5).filter(|index| !dead.contains(index)).collect();
    tokio::join!(cluster.peer(dead[0]).kill(), cluster.peer(dead[1]).kill());

    // Three of five are left, so each of these kills takes the quorum away until the process is back.
    for round in 0..3 {
        let at = cluster.leader(&alive).await;
        let service = cluster.peer(at).service(Room::Consensus).unwrap();
        service.kill_and_hold().await;
        service.resume().await;
        status_when(&cluster, alive[0], &format!("a leader after kill {round}"), |_| true).await;
    }
    let counts = |pin: &types::Pin| pin.allocations.iter().filter(|peer| !dead_ids.contains(peer)).count();
    let after = eventually("two live copies of everything", || async {
        let pins = pinset(&cluster, alive[0]).await?;
        let is_whole = |pin: &types::Pin| {
            let min = usize::try_from(pin.options.as_ref().unwrap().replication_factor_min).unwrap_or(0);
            counts(pin) >= min && pin.leaving.is_empty()
        };
        (pins.len() == before.len() && pins.values().all(is_whole)).then_some(pins)
    })
    .await;
    let mut moved = 0;
    for (cid, pin) in &after {
        let old = &before[cid];
        assert_eq!(without_peers(pin), without_peers(old), "all options are kept");
        let (min, max) = factors(pin);
        if min == -1 || counts(old) >= min as usize {
            assert_eq!(pin, old, "it had its minimum: nothing was written");
        } else {
            assert_eq!(pin.allocations.len(), max.min(3) as usize, "filled up");
            assert_eq!(pin.allocations.len(), counts(pin), "with peers that are there");
            moved += 1;
        }
    }
    assert!(moved > PINS / 4, "{moved}");
    for (cid, pin) in after.iter().step_by(40) {
        let min = usize::try_from(factors(pin).0).unwrap_or(alive.len());
        let cid = pinfold_common::ids::cid_from_bytes(cid).unwrap().to_string();
        eventually(&format!("{cid} is pinned where it says"), || async {
            let info = cluster.rest(alive[0]).status(&cid).await;
            let live = |peer: &String| !dead_ids.iter().any(|dead| is_id(dead, peer));
            let held = info.peer_map.iter().filter(|(peer, there)| live(peer) && there.status == "pinned").count();
            (held >= min.max(1)).then_some(())
        })
        .await;
    }

    for index in dead {
        cluster.peer(index).resume().await;
    }
    status_when(&cluster, alive[0], "everybody is back", |status| status.peers.is_empty()).await;
    eventually("surplus goes, and nothing more", || async {
        let pins = pinset(&cluster, dead[0]).await?;
        let is_settled = |pin: &types::Pin| {
            let (_, max) = factors(pin);
            pin.leaving.is_empty() && (max == -1 || pin.allocations.len() <= max as usize)
        };
        (pins.len() == before.len() && pins.values().all(is_settled)).then_some(())
    })
    .await;
}

fn factors(pin: &types::Pin) -> (i32, i32) {
    let options = pin.options.as_ref().unwrap();
    (options.replication_factor_min, options.replication_factor_max)
}

fn is_id(bytes: &[u8], text: &str) -> bool {
    pinfold_common::ids::peer_from_bytes(bytes).is_ok_and(|peer| peer.to_string() == text)
}

/// Goal: a peer that is missed and back within the grace costs no log entry and moves nothing, twice over.
#[tokio::test(flavor = "multi_thread")]
async fn seed_h9_7_back_within_the_grace() {
    let cluster = start(3, settings("30s")).await;
    pin_many(&cluster, 0, "still", 50, (2, 2)).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let flaps = (leader + 1) % 3;
    let index_of = || async { status_index(&cluster, leader).await };
    let (before, at) = (pinset(&cluster, leader).await.unwrap(), index_of().await);
    for _ in 0..2 {
        cluster.peer(flaps).kill().await;
        let doubted =
            |status: &RepinStatusReply| state_of(status, &id(&cluster, flaps)) == Some(peer_repin::State::Doubted);
        status_when(&cluster, leader, "it is missed", doubted).await;
        cluster.peer(flaps).resume().await;
        status_when(&cluster, leader, "it is heard again", |status| status.peers.is_empty()).await;
    }
    assert_eq!(cluster.leader(&[0, 1, 2]).await, leader);
    assert_eq!(index_of().await, at, "no entry was written");
    assert_eq!(pinset(&cluster, leader).await.unwrap(), before);
}

/// How far the peer's log goes.
async fn status_index(cluster: &TestCluster, at: usize) -> u64 {
    let cid = content::identity_cid("nowhere").to_bytes();
    let missing = api::GetRequest { cid, consistent: true };
    let _ = cluster.pins(at).get(missing).await;
    cluster.consensus_status(at).await.applied_index
}

/// Goal: with `disable_repinning` a dead peer is away, is told, and nothing moves; by hand it still does.
#[tokio::test(flavor = "multi_thread")]
async fn seed_c3_h5_h7_disabled_moves_nothing_by_itself() {
    let mut keys = settings("1s");
    keys.push(("cluster.disable_repinning", json!(true)));
    let cluster = start(3, keys).await;
    pin_many(&cluster, 0, "stays", 50, (2, 2)).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let dead = (leader + 1) % 3;
    let before = pinset(&cluster, leader).await.unwrap();
    cluster.peer(dead).kill().await;
    let status = status_when(&cluster, leader, "the peer is away, and what it held is counted", |status| {
        state_of(status, &id(&cluster, dead)) == Some(peer_repin::State::Away) && status.under_replicated > 0
    })
    .await;
    assert_eq!((status.phase(), status.moved), (Phase::Disabled, 0));
    assert_eq!(pinset(&cluster, leader).await.unwrap(), before);
    cluster.alert_about(leader, dead).await;

    let on_dead = before.values().find(|pin| pin.allocations.contains(&id(&cluster, dead))).unwrap();
    let cid = pinfold_common::ids::cid_from_bytes(&on_dead.cid).unwrap();
    let answer = cluster.rest(leader).post(&format!("/pins/{cid}?replication-min=2&replication-max=2")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let moved = &pinset(&cluster, leader).await.unwrap()[&on_dead.cid];
    assert!(!moved.allocations.contains(&id(&cluster, dead)), "by hand it moves");
}

/// Goal: all peers killed at once and started again, but for one. Only that one is ever away, a grace after the start; what it
/// held gets its copies back, and nothing else is written.
#[tokio::test(flavor = "multi_thread")]
async fn seed_h9_10_everything_starts_again_but_one() {
    const PINS: usize = 100;
    // Longer than five peers take to start on a machine that has other things to do.
    let cluster = start(5, settings("20s")).await;
    pin_many(&cluster, 0, "two", PINS, (2, 2)).await;
    pin_many(&cluster, 0, "leeway", PINS, (1, 3)).await;
    let before = pinset(&cluster, 0).await.expect("a list");
    let missing = cluster.leader(&[0, 1, 2, 3, 4]).await;
    let there: Vec<usize> = (0..5).filter(|index| *index != missing).collect();
    join_all(cluster.cluster.peers.iter().map(Peer::kill)).await;
    join_all(there.iter().map(|index| cluster.peer(*index).resume())).await;
    for index in &there {
        cluster.peer(*index).wait_ready(PATIENCE, |_| {}).await.unwrap();
    }
    let gone = id(&cluster, missing);
    let live = |pin: &types::Pin| pin.allocations.iter().filter(|peer| **peer != gone).count();
    let needs_one = |pin: &types::Pin| live(pin) < factors(pin).0 as usize;
    assert!(before.values().any(needs_one));
    let after = eventually("two live copies of everything", || async {
        let pins = pinset(&cluster, there[0]).await?;
        (pins.len() == before.len() && pins.values().all(|pin| !needs_one(pin) && pin.leaving.is_empty()))
            .then_some(pins)
    })
    .await;
    for (cid, pin) in &after {
        let old = &before[cid];
        assert_eq!(without_peers(pin), without_peers(old), "all options are kept");
        if !needs_one(old) {
            assert_eq!(pin, old, "it had its minimum: nothing was written");
        }
    }
    for row in cluster.consensus_status(there[0]).await.peerset.expect("members").peers {
        let is_away = row.state() == types::peer::State::Away;
        assert_eq!((is_away, row.back_index), (row.peer_id == gone, 0), "{row:?}");
    }
}

/// Goal: what too few peers can take is listed with the reason, and gets its copies when a peer is there again; pause and
/// maintenance hold everything, and resume goes on.
#[tokio::test(flavor = "multi_thread")]
async fn seed_h9_6_what_cannot_be_satisfied_is_listed_and_retried() {
    let cluster = start(3, settings("1s")).await;
    pin_many(&cluster, 0, "three", 20, (3, 3)).await;
    pin_many(&cluster, 0, "one", 60, (1, 1)).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let (asked, dead) = ((leader + 1) % 3, (leader + 2) % 3);
    let peer_id = id(&cluster, dead);
    let maintained = cluster.repin(asked).maintain(MaintainCall { peer_id: peer_id.clone(), seconds: 3600 }).await;
    assert!(maintained.unwrap().into_inner().until_seconds > 0);
    let pause = RepinChangeCall { switch: Switch::Pause as i32, ..RepinChangeCall::default() };
    cluster.repin(asked).change(pause).await.unwrap();
    cluster.peer(dead).kill().await;
    // Missed for longer than the grace, and not away.
    cluster.alert_about(leader, dead).await;
    tokio::time::timeout(Duration::from_secs(3), async {
        while state_of(&status(&cluster, asked).await.unwrap(), &peer_id) != Some(peer_repin::State::Away) {
            tokio::time::sleep(pinfold_tests::cluster::POLL).await;
        }
    })
    .await
    .expect_err("maintenance holds the verdict back");
    let over = MaintainCall { peer_id: peer_id.clone(), seconds: 0 };
    cluster.repin(asked).maintain(over).await.unwrap();
    let held = status_when(&cluster, asked, "away, counted and paused", |status| {
        state_of(status, &peer_id) == Some(peer_repin::State::Away) && status.under_replicated > 20
    })
    .await;
    assert_eq!((held.phase(), held.moved), (Phase::Paused, 0));

    let resume = RepinChangeCall { switch: Switch::Resume as i32, ..RepinChangeCall::default() };
    cluster.repin(asked).change(resume).await.unwrap();
    status_when(&cluster, asked, "the others moved, these cannot", |status| {
        status.unsatisfied == 20 && status.under_replicated == 20
    })
    .await;
    let listed = cluster.repin(asked).unsatisfied(UnsatisfiedCall::default()).await.unwrap().into_inner();
    assert_eq!((listed.items.len(), listed.total, listed.more), (20, 20, false));
    let item = &listed.items[0];
    assert_eq!((item.live, item.needed, item.candidates), (2, 3, 0));
    assert!(item.reason.contains(&cluster.peer(dead).peer_id.to_string()), "{}", item.reason);

    cluster.peer(dead).resume().await;
    cluster.peer(dead).wait_ready(PATIENCE, |_| {}).await.unwrap();
    status_when(&cluster, asked, "nothing is left", |status| status.unsatisfied == 0 && status.under_replicated == 0)
        .await;
}
