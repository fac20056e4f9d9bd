//! The ordinary life of items, seen through the services.

use std::sync::Arc;
use std::time::Duration;

use pinfold_common::pin::PinMode;
use pinfold_common::status::TrackerStatus;
use pinfold_proto::connector::holdings_reply::Answer;
use pinfold_proto::connector::{Block, GetBlocks, Held, HoldingsCall, PutBlocks, RecoverAllCall, StatusAllCall};
use pinfold_proto::types::Reason;

use super::node::{Plan, TestNode};
use super::{House, cid, eventually};
use crate::node::embedded::{EmbeddedConfig, EmbeddedNode};
use crate::node::{IpfsNode as _, NodeError, PinProgress, PinState};

/// Goal: pinned when it is allocated here, remote otherwise, unpinned when it goes; and reads wait for the index.
#[tokio::test(flavor = "multi_thread")]
async fn pin_and_unpin() {
    let (house, node) = (House::new().await, TestNode::new());
    let connector = house.start(node.clone()).await;
    let index = house.pinset.put([house.here(&cid(1)), house.elsewhere(&cid(2))]);
    assert_eq!(connector.status(&cid(2), index).await, TrackerStatus::Remote);
    let info = connector.until(&cid(1), TrackerStatus::Pinned).await;
    assert_eq!((info.name.as_str(), info.peer), ("a name", house.own().to_bytes()));
    assert_eq!(info.timestamp, info.created);
    assert!(node.has(&cid(1)) && !node.has(&cid(2)));
    assert_eq!(connector.status(&cid(3), index).await, TrackerStatus::Unpinned);

    house.pinset.remove(&cid(1).to_bytes());
    connector.until(&cid(1), TrackerStatus::Unpinned).await;
    assert!(!node.has(&cid(1)));
    let moved = house.pinset.put([house.here(&cid(4))]);
    connector.until(&cid(4), TrackerStatus::Pinned).await;
    let moved = house.pinset.put([house.elsewhere(&cid(4))]).max(moved);
    assert_eq!(connector.status(&cid(4), moved).await, TrackerStatus::Remote);
    eventually("the copy goes", async || if node.has(&cid(4)) { Err(String::new()) } else { Ok(()) }).await;
    connector.stop().await;
}

/// Goal: what somebody else pinned on the node is used, and never unpinned (protocols.md 8).
#[tokio::test(flavor = "multi_thread")]
async fn foreign_pins_survive() {
    let (house, node) = (House::new().await, TestNode::new());
    let connector = house.start(node.clone()).await;
    connector.status(&cid(0), house.pinset.put([house.here(&cid(0))])).await;
    connector.until(&cid(0), TrackerStatus::Pinned).await;
    node.add_pin(&cid(1), PinMode::Recursive);
    house.pinset.put([house.here(&cid(1))]);
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    assert_eq!(node.count("add"), 1, "the foreign one is not pinned again");
    let index = house.pinset.remove(&cid(1).to_bytes());
    assert_eq!(connector.status(&cid(1), index).await, TrackerStatus::Unpinned);
    house.pinset.remove(&cid(0).to_bytes());
    connector.until(&cid(0), TrackerStatus::Unpinned).await;
    eventually("ours goes", async || if node.has(&cid(0)) { Err(String::new()) } else { Ok(()) }).await;
    assert!(node.has(&cid(1)));
    connector.stop().await;
}

/// Goal: CIDs that nobody has do not hold up good ones, and say how far they are (protocols.md 8).
#[tokio::test(flavor = "multi_thread")]
async fn dead_cids_wait_aside() {
    let (house, node) = (House::new().await, TestNode::new());
    for dead in 0..20 {
        node.plan(&cid(dead), Plan::Hang);
    }
    let moving = PinProgress { blocks: 7, bytes: 70 };
    node.plan(&cid(20), Plan::Stop(moving));
    let connector = house.start(node.clone()).await;
    house.pinset.put((0..30).map(|n| house.here(&cid(n))));
    for good in 21..30 {
        connector.until(&cid(good), TrackerStatus::Pinned).await;
    }
    let info = connector.until(&cid(20), TrackerStatus::Pinning).await;
    assert_eq!((info.blocks, info.bytes, info.attempt_count), (7, 70, 1));
    assert!(info.last_block.is_some());
    eventually("all dead ones are tried at once", async || {
        let pinning = connector.list(TrackerStatus::Pinning.bit()).await.len();
        if pinning == 21 { Ok(()) } else { Err(pinning.to_string()) }
    })
    .await;
    connector.stop().await;
}

/// Goal: failures show with their reason and a plan, and end when the cause does; refusals wait for a person.
#[tokio::test(flavor = "multi_thread")]
async fn failures_and_recover() {
    let (house, node) = (House::new().await, TestNode::new());
    node.plan(&cid(1), Plan::Fail(NodeError::NoProviders("nobody has it".to_owned())));
    node.plan(&cid(2), Plan::Fail(NodeError::Refused("unknown codec".to_owned())));
    let connector = house.start(node.clone()).await;
    house.pinset.put([house.here(&cid(1)), house.here(&cid(2))]);
    let failed = connector.until(&cid(1), TrackerStatus::PinError).await;
    assert_eq!((failed.reason, failed.error.as_str()), (Reason::NoProviders as i32, "nobody has it"));
    assert!(failed.next_try.is_some() && failed.attempt_count >= 1);
    let refused = connector.until(&cid(2), TrackerStatus::PinError).await;
    assert_eq!((refused.reason, refused.next_try), (Reason::Refused as i32, None));
    node.unplan(&cid(1));
    connector.until(&cid(1), TrackerStatus::Pinned).await;

    node.unplan(&cid(2));
    let mut stream = connector.tracker().recover_all(RecoverAllCall {}).await.unwrap().into_inner();
    let reply = stream.message().await.unwrap().unwrap();
    assert_eq!(reply.infos.iter().map(|info| info.cid.clone()).collect::<Vec<_>>(), [cid(2).to_bytes()]);
    connector.until(&cid(2), TrackerStatus::Pinned).await;
    let (info, requeued) = connector.recover(&cid(2)).await;
    assert_eq!((TrackerStatus::from_proto(info.status), requeued), (TrackerStatus::Pinned, false));
    node.lose(&cid(2));
    assert!(connector.recover(&cid(2)).await.1, "recover looks at the node");
    connector.until(&cid(2), TrackerStatus::Pinned).await;
    connector.stop().await;
}

/// Goal: while the node is away everything waits as pin_queued and says why; nothing is tried for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn node_down_leaves_pins_queued() {
    let (house, node) = (House::new().await, TestNode::new());
    node.set_down(true);
    let connector = house.start(node.clone()).await;
    house.pinset.put((0..50).map(|n| house.here(&cid(n))));
    eventually("it is known to be down", async || {
        let info = connector.info(&cid(7), 50).await;
        let down = info.reason == Reason::NodeDown as i32 && info.error.contains("connection refused");
        if down { Ok(()) } else { Err(format!("{info:?}")) }
    })
    .await;
    let queued = connector.list(TrackerStatus::PinQueued.bit()).await;
    assert_eq!(queued.len(), 50);
    assert!(queued.iter().all(|info| info.attempt_count == 0));
    node.set_down(false);
    for n in 0..50 {
        connector.until(&cid(n), TrackerStatus::Pinned).await;
    }
    assert_eq!(node.count("add"), 50);
    connector.stop().await;
}

/// Goal: a full disk is told, and does not hold up what makes room.
#[tokio::test(flavor = "multi_thread")]
async fn full_disk() {
    let (house, node) = (House::new().await, TestNode::new());
    let connector = house.start(node.clone()).await;
    house.pinset.put([house.here(&cid(1))]);
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    node.plan(&cid(2), Plan::Fail(NodeError::DiskFull("no space left".to_owned())));
    house.pinset.put([house.here(&cid(2))]);
    let info = connector.until(&cid(2), TrackerStatus::PinError).await;
    assert_eq!(info.reason, Reason::DiskFull as i32);
    house.pinset.remove(&cid(1).to_bytes());
    connector.until(&cid(1), TrackerStatus::Unpinned).await;
    assert!(!node.has(&cid(1)));
    connector.stop().await;
}

/// Goal: the monitor has metrics and the node's ID at once, and again after it forgot them.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_reach_the_monitor() {
    let (mut house, node) = (House::new().await, TestNode::new());
    let monitor = house.serve_monitor().await;
    let connector = house.start(node.clone()).await;
    let has = async || {
        let names = monitor.names();
        let complete =
            ["freespace", "pinqueue", "tag:group"].iter().all(|name| names.iter().any(|known| known == name));
        if complete && monitor.knows_ipfs() { Ok(()) } else { Err(format!("{names:?}")) }
    };
    eventually("everything is published", has).await;
    monitor.forget();
    eventually("it is published again", has).await;
    connector.stop().await;
}

/// Goal: seed:C13, seed:G4: metrics come every half of the TTL that is configured, and carry it.
#[tokio::test(flavor = "multi_thread")]
async fn seed_c13_g4_metrics_every_half_ttl() {
    let (mut house, node) = (House::new().await, TestNode::new());
    house.metric_ttl = Duration::from_millis(400);
    let monitor = house.serve_monitor().await;
    let connector = house.start(node).await;
    let after = async |count: u32| {
        let seen = || ["freespace", "pinqueue", "tag:group"].map(|name| monitor.count(name));
        let enough =
            async || if seen().iter().all(|one| *one >= count) { Ok(()) } else { Err(format!("{:?}", seen())) };
        eventually("published", enough).await;
        std::time::Instant::now()
    };
    let first = after(1).await;
    assert_eq!(monitor.get("freespace").unwrap().ttl_ms, 400);
    let sixth = after(6).await;
    // A node that turns out to be there is measured once more at once.
    assert!(sixth - first >= house.metric_ttl / 2 * 3, "{:?}", sixth - first);
    connector.stop().await;
}

/// Goal: unpins wait until nothing committed is missing; pins do not (protocols.md 8).
#[tokio::test(flavor = "multi_thread")]
async fn unpins_wait_until_caught_up() {
    let (house, node) = (House::new().await, TestNode::new());
    let connector = house.start(node.clone()).await;
    house.pinset.put([house.here(&cid(1))]);
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    house.pinset.set_caught_up(false);
    house.pinset.remove(&cid(1).to_bytes());
    house.pinset.put([house.here(&cid(2))]);
    connector.until(&cid(2), TrackerStatus::Pinned).await;
    assert_eq!(connector.status(&cid(1), 0).await, TrackerStatus::UnpinQueued);
    assert!(node.has(&cid(1)));
    house.pinset.set_caught_up(true);
    connector.until(&cid(1), TrackerStatus::Unpinned).await;
    connector.stop().await;
}

/// Goal: an order that overtakes a running attempt breaks it off, and the later one is what counts.
#[tokio::test(flavor = "multi_thread")]
async fn overtaken_attempts() {
    let (house, node) = (House::new().await, TestNode::new());
    node.plan(&cid(1), Plan::Hang);
    let connector = house.start(node.clone()).await;
    house.pinset.put([house.here(&cid(1))]);
    connector.until(&cid(1), TrackerStatus::Pinning).await;
    // The same work under a newer order goes on.
    let index = house.pinset.put([house.here(&cid(1))]);
    assert_eq!(connector.status(&cid(1), index).await, TrackerStatus::Pinning);
    assert_eq!(node.count("add"), 1);
    house.pinset.remove(&cid(1).to_bytes());
    connector.until(&cid(1), TrackerStatus::Unpinned).await;
    assert!(node.count("rm") >= 1, "it was claimed, so it is unpinned to be sure");
    node.unplan(&cid(1));
    house.pinset.put([house.here(&cid(1))]);
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    connector.stop().await;
}

/// Goal: lists are whole, in the order of bytes, limited and resumable, across many pages.
#[tokio::test(flavor = "multi_thread")]
async fn lists_page_through() {
    let (house, node) = (House::new().await, TestNode::new());
    let connector = house.start(node.clone()).await;
    let total = 2 * crate::tracker::PAGE as u32 + 17;
    house.pinset.put((0..total).map(|n| house.elsewhere(&cid(n))));
    let index = house.pinset.put([house.here(&cid(total))]);
    connector.status(&cid(0), index).await;
    connector.until(&cid(total), TrackerStatus::Pinned).await;
    let infos = connector.list(0).await;
    assert_eq!(infos.len(), total as usize + 1);
    assert!(infos.windows(2).all(|pair| pair[0].cid < pair[1].cid));
    assert_eq!(connector.list(TrackerStatus::Pinned.bit()).await.len(), 1);
    let call = StatusAllCall { after: infos[9].cid.clone(), limit: 5, filter: 0, min_index: 0 };
    let mut stream = connector.tracker().status_all(call).await.unwrap().into_inner();
    let part = stream.message().await.unwrap().unwrap().infos;
    assert_eq!(part, infos[10..15]);
    assert!(stream.message().await.unwrap().is_none());
    connector.stop().await;
}

/// Goal: holdings tell held from not held from not known yet, and the node has the last word (protocols.md 7).
#[tokio::test(flavor = "multi_thread")]
async fn holdings() {
    let (house, node) = (House::new().await, TestNode::new());
    node.plan(&cid(3), Plan::Hang);
    let connector = house.start(node.clone()).await;
    let index = house.pinset.put([house.here(&cid(1)), house.here(&cid(2)), house.here(&cid(3))]);
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    connector.until(&cid(2), TrackerStatus::Pinned).await;
    connector.status(&cid(9), index).await;
    // It stays lost, also when the check at the start finds it first.
    node.plan(&cid(2), Plan::Hang);
    node.lose(&cid(2));
    let held = |n: u32, revision| Held { cid: cid(n).to_bytes(), revision };
    let call =
        HoldingsCall { items: vec![held(1, 1), held(2, 2), held(3, 3), held(1, 99), held(9, index), held(9, 99)] };
    let mut stream = connector.holdings().check(futures::stream::iter([call])).await.unwrap().into_inner();
    let answers = stream.message().await.unwrap().unwrap().answers;
    let expected = [Answer::Held, Answer::No, Answer::No, Answer::Unknown, Answer::No, Answer::Unknown];
    assert_eq!(answers, expected.map(|answer| answer as i32));
    connector.until(&cid(2), TrackerStatus::Pinning).await;
    connector.stop().await;
}

/// Goal: with the embedded node: blocks in, pin, blocks out, unpin, all over the wire.
#[tokio::test(flavor = "multi_thread")]
async fn embedded_node_end_to_end() {
    let house = House::new().await;
    let config = EmbeddedConfig::new(house.folder.path().join("ipfs"));
    let node = Arc::new(EmbeddedNode::open(config, Vec::new()).await.unwrap());
    let connector = house.start(node.clone()).await;
    let (one, data) = (cid(1), 1_u32.to_be_bytes().to_vec());
    let message = PutBlocks { blocks: vec![Block { cid: one.to_bytes(), data: data.clone().into() }] };
    let put = connector.blocks().put(futures::stream::iter([message])).await.unwrap().into_inner();
    assert_eq!((put.blocks, put.bytes), (1, 4));
    let wrong = PutBlocks { blocks: vec![Block { cid: cid(2).to_bytes(), data: data.clone().into() }] };
    assert!(connector.blocks().put(futures::stream::iter([wrong])).await.is_err());

    house.pinset.put([house.here(&one)]);
    connector.until(&one, TrackerStatus::Pinned).await;
    assert_eq!(node.pin_state(&one).await.unwrap(), PinState::Recursive);
    let ask = GetBlocks { cids: vec![one.to_bytes(), cid(2).to_bytes()] };
    let mut stream = connector.blocks().get(futures::stream::iter([ask])).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!((first.found, first.data.as_ref()), (true, data.as_slice()));
    assert!(!stream.message().await.unwrap().unwrap().found);
    house.pinset.remove(&one.to_bytes());
    connector.until(&one, TrackerStatus::Unpinned).await;
    assert_eq!(node.pin_state(&one).await.unwrap(), PinState::NotPinned);
    connector.stop().await;
    tokio::time::timeout(Duration::from_secs(5), node.close()).await.unwrap().unwrap();
}

/// Goal: how fast items flow, for people who change the path: run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn throughput() {
    const ITEMS: u32 = 20_000;
    let (mut house, node) = (House::new().await, TestNode::new());
    house.concurrent_pins = 10;
    let connector = house.start(node.clone()).await;
    connector.status(&cid(0), house.pinset.put([house.here(&cid(0))])).await;
    let began = std::time::Instant::now();
    let index = house.pinset.put((1..=ITEMS).map(|n| house.here(&cid(n))));
    connector.status(&cid(0), index).await;
    eprintln!("followed {ITEMS} in {:?}", began.elapsed());
    connector.until(&cid(ITEMS), TrackerStatus::Pinned).await;
    while node.count("add") <= ITEMS as usize {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eprintln!("pinned {ITEMS} in {:?}", began.elapsed());
    let other = pinfold_common::identity::Identity::generate().peer_id;
    let pins: Vec<_> = (0..5 * ITEMS).map(|n| house.pin(&cid(1_000_000 + n), &other)).collect();
    let began = std::time::Instant::now();
    house.pinset.put(pins);
    connector.status(&cid(0), index + u64::from(5 * ITEMS)).await;
    eprintln!("followed {} remote ones in {:?}", 5 * ITEMS, began.elapsed());
    let began = std::time::Instant::now();
    let rows = connector.list(0).await.len();
    eprintln!("listed {rows} in {:?}", began.elapsed());
    connector.stop().await;
}

/// Goal: fault:K11. Ten thousand CIDs that nobody has were queued first; a good one does not wait behind them.
#[tokio::test(flavor = "multi_thread")]
async fn dead_cids_queued_first() {
    behind_dead_cids(&Plan::Hang, 4, 1, 500).await;
}

/// Goal: the same when they fail soon and are due again, later than the good one was queued.
#[tokio::test(flavor = "multi_thread")]
async fn dead_cids_that_come_back() {
    // So many at a time that more of them are due again between two looks at the newest than are taken at one.
    behind_dead_cids(&Plan::Fail(NodeError::NoProviders("nobody has it".to_owned())), 32, 2_000, 3_000).await;
}

/// The good one is queued when so many were tried, and fewer than `most` are tried before it.
async fn behind_dead_cids(plan: &Plan, concurrent_pins: usize, tried_before: usize, most: usize) {
    const DEAD: u32 = 10_000;
    let (mut house, node) = (House::new().await, TestNode::new());
    house.concurrent_pins = concurrent_pins;
    for dead in 0..DEAD {
        node.plan(&cid(dead), plan.clone());
    }
    let young = |n| {
        let seconds = crate::store::now_ms() / 1000;
        let timestamp = Some(pinfold_proto::types::Time { seconds, nanos: 0 });
        pinfold_proto::types::Pin { timestamp, ..house.here(&cid(n)) }
    };
    let connector = house.start(node.clone()).await;
    // The first comparison is over: what follows comes as changes.
    house.pinset.put([young(DEAD + 1)]);
    connector.until(&cid(DEAD + 1), TrackerStatus::Pinned).await;
    let index = house.pinset.put((0..DEAD).map(young));
    connector.status(&cid(0), index).await;
    eventually("many were tried", async || {
        let tried = node.count("add");
        if tried >= tried_before { Ok(()) } else { Err(tried.to_string()) }
    })
    .await;
    let before = node.count("add");
    house.pinset.put([young(DEAD)]);
    connector.until(&cid(DEAD), TrackerStatus::Pinned).await;
    let tried = node.count("add") - before;
    assert!(tried < most, "it waited behind {tried} others");
    connector.stop().await;
}
