//! The whole connector against a Kubo that is stopped, hangs, lies, loses its disk and changes its identity (seed:D9,
//! fault:F16, fault:K1 to fault:K12).

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use multihash_codetable::{Code, MultihashDigest as _};
use pinfold_common::Cid;
use pinfold_common::pin::PinMode;
use pinfold_common::status::TrackerStatus;
use pinfold_proto::connector::node_client::NodeClient;
use pinfold_proto::connector::{GcCall, ResolveCall};
use pinfold_proto::types::Reason;

use super::kubo_sim::{KuboSim, ListFault, Mood, PinFault};
use super::{Connector, House, cid, eventually};
use crate::node::{Block, IpfsNode as _, PinAdd, PinState};

/// Short, so that stalls are seen; longer than a busy machine needs for a block.
const PIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The node has these CIDs' blocks.
async fn give(sim: &KuboSim, numbers: std::ops::Range<u32>) {
    let blocks = numbers.map(|n| Ok(Block { cid: cid(n), data: n.to_be_bytes().to_vec().into() }));
    sim.engine().put_blocks(stream::iter(blocks.collect::<Vec<_>>()).boxed()).await.unwrap();
}

async fn start() -> (House, KuboSim, Connector) {
    let (house, sim) = (House::new().await, KuboSim::start().await);
    let connector = house.start(Arc::new(sim.node(PIN_TIMEOUT))).await;
    (house, sim, connector)
}

async fn all_pinned(connector: &Connector, numbers: std::ops::Range<u32>) {
    for n in numbers {
        connector.until(&cid(n), TrackerStatus::Pinned).await;
    }
}

/// Goal: Kubo is stopped with pins in flight and started again: everything waits as queued and says why, the services
/// go on answering, requests are few while it is down, and everything is pinned seconds after it is back.
#[tokio::test(flavor = "multi_thread")]
async fn seed_d9_kubo_is_restarted() {
    let (house, sim, connector) = start().await;
    give(&sim, 0..40).await;
    house.pinset.put([house.here(&cid(0))]);
    all_pinned(&connector, 0..1).await;
    sim.set_fault(&cid(1), PinFault::Stall { blocks: 1 });
    house.pinset.put([house.here(&cid(1))]);
    connector.until(&cid(1), TrackerStatus::Pinning).await;
    sim.stop();
    sim.clear_fault(&cid(1));
    let index = house.pinset.put((2..40).map(|n| house.here(&cid(n))));
    eventually("they wait for the node", async || {
        let waiting = connector.list(TrackerStatus::PinQueued.bit()).await;
        let say_why = waiting.iter().all(|info| info.reason == Reason::NodeDown as i32 && info.attempt_count == 0);
        if waiting.len() == 39 && say_why { Ok(()) } else { Err(format!("{} {:?}", waiting.len(), waiting.first())) }
    })
    .await;
    assert!(!connector.node().await.error.is_empty());
    assert_eq!(connector.status(&cid(0), index).await, TrackerStatus::Pinned, "what is known stays known");
    sim.start_again().await;
    all_pinned(&connector, 1..40).await;
    assert!(connector.node().await.error.is_empty());
    connector.stop().await;
}

/// Goal: fault:K1, fault:K4. A Kubo that takes connections and is silent, and one that answers nonsense, are down; the
/// services answer meanwhile, nothing is counted against the pins, and all goes on when it is well.
#[tokio::test(flavor = "multi_thread")]
async fn a_kubo_that_hangs_or_answers_nonsense() {
    for mood in [Mood::Hung, Mood::Broken(500, "<html>gateway error</html>"), Mood::Broken(200, "{\"ID\":")] {
        let (house, sim, connector) = start().await;
        give(&sim, 0..5).await;
        eventually("it is up", async || match connector.node().await.error.as_str() {
            "" => Ok(()),
            error => Err(error.to_owned()),
        })
        .await;
        sim.set_mood(mood.clone());
        house.pinset.put((0..5).map(|n| house.here(&cid(n))));
        eventually("it is down", async || {
            let info = connector.info(&cid(0), 5).await;
            if info.reason == Reason::NodeDown as i32 { Ok(()) } else { Err(format!("{mood:?}: {info:?}")) }
        })
        .await;
        sim.set_mood(Mood::Well);
        all_pinned(&connector, 0..5).await;
        connector.stop().await;
    }
}

/// Goal: fault:K2, seed:C14 `pin_timeout`: a pin whose blocks stop coming is given up for now after that time, and says
/// how many came, when the last one did, and when it is tried again; then it succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn seed_c14_pin_timeout_counts_from_the_last_block() {
    let (house, sim, connector) = start().await;
    give(&sim, 1..2).await;
    sim.set_fault(&cid(1), PinFault::Stall { blocks: 3 });
    house.pinset.put([house.here(&cid(1))]);
    let stalled = connector.until(&cid(1), TrackerStatus::PinError).await;
    assert_eq!((stalled.reason, stalled.attempt_count, stalled.blocks), (Reason::Stalled as i32, 1, 3), "{stalled:?}");
    let (last_block, next_try) = (stalled.last_block.unwrap(), stalled.next_try.unwrap());
    let failed_at = stalled.timestamp.unwrap();
    let millis = |time: pinfold_proto::types::Time| time.seconds * 1000 + i64::from(time.nanos) / 1_000_000;
    let waited = millis(failed_at) - millis(last_block);
    let timeout = PIN_TIMEOUT.as_millis() as i64;
    assert!(waited >= timeout - 100 && waited < 10 * timeout, "{waited} ms after the last block");
    assert!(millis(next_try) > millis(failed_at));
    sim.clear_fault(&cid(1));
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    connector.stop().await;
}

/// Goal: fault:K3. An answer that breaks off is neither success nor failure: the node is asked, and the pin that is
/// there is not made again. One that broke off earlier is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_break_off() {
    let (house, sim, connector) = start().await;
    give(&sim, 1..3).await;
    sim.set_fault(&cid(1), PinFault::CutBeforeEnd);
    sim.set_fault(&cid(2), PinFault::CutAfterFirstByte);
    house.pinset.put([house.here(&cid(1)), house.here(&cid(2))]);
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    eventually("the second is tried again", async || {
        let tried = sim.journal("pin/add").iter().filter(|argument| **argument == cid(2).to_string()).count();
        if tried >= 2 { Ok(()) } else { Err(tried.to_string()) }
    })
    .await;
    assert_ne!(connector.status(&cid(2), 0).await, TrackerStatus::Pinned);
    sim.clear_fault(&cid(2));
    connector.until(&cid(2), TrackerStatus::Pinned).await;
    connector.stop().await;
}

/// Goal: fault:K6, seed:D9, the last sentence of seed:D2. A node that comes back empty under its own ID: that is said, and everything is pinned again.
#[tokio::test(flavor = "multi_thread")]
async fn seed_d9_an_emptied_node_is_filled_again() {
    let (house, sim, connector) = start().await;
    give(&sim, 0..20).await;
    house.pinset.put((0..20).map(|n| house.here(&cid(n))));
    all_pinned(&connector, 0..20).await;
    sim.stop();
    eventually("it is down", async || match connector.node().await.error.as_str() {
        "" => Err("up".to_owned()),
        _ => Ok(()),
    })
    .await;
    sim.wipe().await;
    give(&sim, 0..20).await;
    sim.start_again().await;
    eventually("everything is there again", async || {
        let mut missing = 0;
        for n in 0..20 {
            missing += usize::from(sim.engine().pin_state(&cid(n)).await.unwrap() != PinState::Recursive);
        }
        if missing == 0 { Ok(()) } else { Err(missing.to_string()) }
    })
    .await;
    let notice = connector.node().await.notice;
    assert!(notice.contains("lost 20 pins"), "{notice}");
    all_pinned(&connector, 0..20).await;
    assert_eq!(sim.journal("pin/rm"), [""; 0]);
    connector.stop().await;
}

/// Goal: another node in the place of the first: nothing on it counts as ours, so what a person pinned there stays
/// until somebody approves, and everything that the pinset wants is pinned.
#[tokio::test(flavor = "multi_thread")]
async fn another_node_keeps_its_own_pins() {
    let (house, sim, connector) = start().await;
    give(&sim, 0..4).await;
    house.pinset.put((0..4).map(|n| house.here(&cid(n))));
    all_pinned(&connector, 0..4).await;
    sim.stop();
    sim.wipe().await;
    sim.change_identity();
    give(&sim, 0..4).await;
    // On the other node somebody has pinned the first two already.
    for n in 0..2 {
        let events: Vec<_> = sim.engine().pin_add(PinAdd::new(cid(n), PinMode::Recursive)).collect().await;
        assert!(events.last().is_some_and(Result::is_ok));
    }
    sim.start_again().await;
    eventually("the other two are pinned there", async || {
        let state = sim.engine().pin_state(&cid(3)).await.unwrap();
        if state == PinState::Recursive { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    all_pinned(&connector, 0..4).await;
    house.pinset.remove(&cid(0).to_bytes());
    house.pinset.remove(&cid(3).to_bytes());
    connector.until(&cid(3), TrackerStatus::Unpinned).await;
    connector.until(&cid(0), TrackerStatus::UnpinQueued).await;
    let held = connector.held().await;
    assert_eq!(held.iter().map(|item| item.cid.clone()).collect::<Vec<_>>(), [cid(0).to_bytes()]);
    assert!(held[0].why.contains("approval"), "{held:?}");
    assert_eq!(sim.engine().pin_state(&cid(0)).await.unwrap(), PinState::Recursive);
    assert_eq!(connector.approve(&[cid(0)]).await, 1);
    connector.until(&cid(0), TrackerStatus::Unpinned).await;
    assert_eq!(sim.engine().pin_state(&cid(0)).await.unwrap(), PinState::NotPinned);
    connector.stop().await;
}

/// Goal: another node takes the place of the first between two probes, without a moment in which nobody answers: unpins
/// that were ordered for the first one take nothing away there.
#[tokio::test(flavor = "multi_thread")]
async fn another_node_within_one_probe_keeps_its_own_pins() {
    let (house, sim, connector) = start().await;
    give(&sim, 0..8).await;
    house.pinset.put((0..8).map(|n| house.here(&cid(n))));
    all_pinned(&connector, 0..8).await;
    sim.change_identity();
    for n in 0..8 {
        house.pinset.remove(&cid(n).to_bytes());
    }
    eventually("all unpins are held", async || {
        let (held, notice) = (connector.held().await, connector.node().await.notice);
        let is_so = held.len() == 8 && notice.contains("another IPFS node");
        if is_so { Ok(()) } else { Err(format!("{notice} {held:?}")) }
    })
    .await;
    assert_eq!(sim.journal("pin/rm"), [""; 0]);
    assert_eq!(connector.approve(&[cid(0)]).await, 1);
    connector.until(&cid(0), TrackerStatus::Unpinned).await;
    assert_eq!(sim.journal("pin/rm").len(), 1, "a person may say that it goes here too");
    connector.stop().await;
}

/// Goal: fault:F25, fault:K7. A list that is empty or never ends changes nothing: nothing is unpinned, nothing is
/// pinned again, and new pins go on meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn lists_that_lie_or_hang() {
    let (house, sim, connector) = start().await;
    give(&sim, 0..12).await;
    house.pinset.put((0..10).map(|n| house.here(&cid(n))));
    all_pinned(&connector, 0..10).await;
    connector.stop().await;
    for (list, further) in [(ListFault::Empty, 10), (ListFault::Hung, 11)] {
        sim.set_list(list);
        let asked = sim.journal("pin/ls").iter().filter(|argument| argument.is_empty()).count();
        let connector = house.start(Arc::new(sim.node(PIN_TIMEOUT))).await;
        eventually("the node's pins are listed", async || {
            let now = sim.journal("pin/ls").iter().filter(|argument| argument.is_empty()).count();
            if now > asked { Ok(()) } else { Err(String::new()) }
        })
        .await;
        house.pinset.put([house.here(&cid(further))]);
        connector.until(&cid(further), TrackerStatus::Pinned).await;
        all_pinned(&connector, 0..10).await;
        connector.stop().await;
    }
    assert_eq!(sim.journal("pin/add").len(), 12);
    assert_eq!(sim.journal("pin/rm"), [""; 0]);
}

/// Goal: seed:C12. Never more pins at a time than `concurrent_pins`.
#[tokio::test(flavor = "multi_thread")]
async fn seed_c12_concurrent_pins() {
    let (house, sim, connector) = start().await;
    give(&sim, 0..200).await;
    house.pinset.put((0..200).map(|n| house.here(&cid(n))));
    all_pinned(&connector, 0..200).await;
    assert!(sim.most_running() <= house.concurrent_pins, "{} at a time", sim.most_running());
    connector.stop().await;
}

/// Goal: seed:D3, fault:K8. A GC of Kubo's between an add and its pin may take the blocks; then the pin says that they
/// are not there, and never that it is pinned. Pins that come during a GC wait for it and succeed.
#[tokio::test(flavor = "multi_thread")]
async fn seed_d3_no_false_pin_after_a_gc() {
    let (house, sim, connector) = start().await;
    give(&sim, 1..3).await;
    let mut removed = connector.tracker().gc(GcCall {}).await.unwrap().into_inner();
    let mut keys = Vec::new();
    while let Some(reply) = removed.message().await.unwrap() {
        keys.extend(reply.keys.into_iter().map(|key| key.cid));
    }
    assert_eq!(keys.len(), 2, "nothing pinned them");
    house.pinset.put([house.here(&cid(1))]);
    let gone = connector.until(&cid(1), TrackerStatus::PinError).await;
    assert_eq!(gone.reason, Reason::NoProviders as i32, "{gone:?}");
    give(&sim, 1..3).await;
    connector.until(&cid(1), TrackerStatus::Pinned).await;

    sim.set_gc_time(Duration::from_millis(500));
    let mut running = connector.tracker().gc(GcCall {}).await.unwrap().into_inner();
    eventually("it runs", async || if sim.journal("repo/gc").len() == 2 { Ok(()) } else { Err(String::new()) }).await;
    let second = connector.tracker().gc(GcCall {}).await.unwrap().into_inner().message().await;
    assert!(second.unwrap_err().message().contains("gc is running"), "one at a time");
    while running.message().await.unwrap().is_some() {}
    assert_eq!(connector.status(&cid(1), 0).await, TrackerStatus::Pinned);
    connector.stop().await;
}

/// Goal: fault:K12. Pin and unpin in quick turn: the last word wins, on the node too.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_word_wins() {
    let (house, sim, connector) = start().await;
    give(&sim, 0..10).await;
    for n in 0..10 {
        house.pinset.put([house.here(&cid(n))]);
        house.pinset.remove(&cid(n).to_bytes());
        house.pinset.put([house.here(&cid(n))]);
        if n % 2 == 1 {
            house.pinset.remove(&cid(n).to_bytes());
        }
    }
    for n in 0..10 {
        let (status, state) = match n % 2 {
            0 => (TrackerStatus::Pinned, PinState::Recursive),
            _ => (TrackerStatus::Unpinned, PinState::NotPinned),
        };
        connector.until(&cid(n), status).await;
        eventually("the node agrees", async || {
            let now = sim.engine().pin_state(&cid(n)).await.unwrap();
            if now == state { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    }
    connector.stop().await;
}

/// Goal: beh:B13.8. IPNS names and DNSLink domains lead to a CID through the node, with and without a path behind them;
/// what leads to a name again, or nowhere, is an error and no CID.
#[tokio::test(flavor = "multi_thread")]
async fn names_lead_to_cids() {
    let (_house, sim, connector) = start().await;
    give(&sim, 1..2).await;
    let link = ipld_dagpb::PbLink { cid: cid(1), name: Some("guide".to_owned()), size: Some(4) };
    let directory = ipld_dagpb::PbNode { links: vec![link], data: Some(vec![0x08, 0x01].into()) }.into_bytes();
    let root = Cid::new_v1(0x70, Code::Sha2_256.digest(&directory));
    sim.engine().put_blocks(stream::iter([Ok(Block { cid: root, data: directory.into() })]).boxed()).await.unwrap();
    sim.set_name("docs.example", &format!("/ipfs/{root}"));
    sim.set_name("moves.example", "/ipns/docs.example");
    let resolve = async |path: &str| {
        let call = ResolveCall { path: path.to_owned() };
        NodeClient::new(connector.channel.clone()).resolve(call).await.map(|reply| reply.into_inner().cid)
    };
    assert_eq!(resolve("/ipns/docs.example").await.unwrap(), root.to_bytes());
    assert_eq!(resolve("/ipns/docs.example/guide").await.unwrap(), cid(1).to_bytes());
    let moves = resolve("/ipns/moves.example").await.unwrap_err();
    assert!(moves.message().contains("leads to /ipns/docs.example, which may change"), "{moves}");
    for nowhere in ["/ipns/nobody.example", "/ipns/docs.example/no/such/link"] {
        assert!(resolve(nowhere).await.is_err(), "{nowhere}");
    }
    let asked = ["/ipns/docs.example", "/ipns/docs.example/guide", "/ipns/moves.example"];
    assert_eq!(sim.journal("resolve")[..3], asked.map(str::to_owned));
    connector.stop().await;
}

/// Goal: seed:D1. An address that cannot be dialled, private as in the profile `server`, is no failure as long as one
/// can be; and when none can, that is said.
#[tokio::test(flavor = "multi_thread")]
async fn seed_d1_private_addresses_may_fail() {
    let sim = KuboSim::start().await;
    let node = sim.node(PIN_TIMEOUT);
    let id = sim.id();
    let addresses: Vec<String> = ["/ip4/10.1.2.3/tcp/4001", "/ip4/192.168.7.1/tcp/4001", "/ip4/203.0.113.9/tcp/4001"]
        .map(|address| format!("{address}/p2p/{id}"))
        .to_vec();
    let parsed: Vec<multiaddr::Multiaddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    assert!(node.swarm_connect(&parsed).await.is_err());
    sim.set_reachable(&addresses[2]);
    node.swarm_connect(&parsed).await.unwrap();
    assert_eq!(node.swarm_peers().await.unwrap(), [id]);
}
