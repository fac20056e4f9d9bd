//! What the entry and the configuration say about the attempts at an item, seen on the node's side.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use pinfold_common::pin::PinMode;
use pinfold_common::status::TrackerStatus;
use pinfold_proto::types::{self, Reason};

use super::kubo_sim::KuboSim;
use super::node::{Plan, TestNode};
use super::{Connector, House, cid, eventually};
use crate::node::{Block, IpfsNode as _, NodeError, PinAdd, PinState};

/// Longer than a busy machine needs for a block.
const PIN_TIMEOUT: Duration = Duration::from_secs(2);

async fn start() -> (House, KuboSim, Connector) {
    let (house, sim) = (House::new().await, KuboSim::start().await);
    let connector = house.start(Arc::new(sim.node(PIN_TIMEOUT))).await;
    (house, sim, connector)
}

/// The node has the block of this CID.
async fn give(sim: &KuboSim, number: u32) {
    let block = Block { cid: cid(number), data: number.to_be_bytes().to_vec().into() };
    sim.engine().put_blocks(stream::iter([Ok(block)]).boxed()).await.unwrap();
}

async fn node_has(sim: &KuboSim, number: u32, expected: PinState) {
    eventually("the node agrees", async || {
        let state = sim.engine().pin_state(&cid(number)).await.unwrap();
        if state == expected { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
}

/// Goal: no node makes a recursive pin direct by itself: ours is removed and made anew; somebody else's is wider than
/// what is asked for, and stays as it is. A direct pin becomes recursive without being removed.
#[tokio::test(flavor = "multi_thread")]
async fn modes_change_on_the_node() {
    let (house, sim, connector) = start().await;
    for number in 0..3 {
        give(&sim, number).await;
    }
    house.pinset.put([house.here(&cid(0)), house.direct(&cid(1))]);
    connector.until(&cid(0), TrackerStatus::Pinned).await;
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    node_has(&sim, 0, PinState::Recursive).await;
    node_has(&sim, 1, PinState::Direct).await;

    let index = house.pinset.put([house.direct(&cid(0)), house.here(&cid(1))]);
    connector.info(&cid(0), index).await;
    connector.until(&cid(0), TrackerStatus::Pinned).await;
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    node_has(&sim, 0, PinState::Direct).await;
    node_has(&sim, 1, PinState::Recursive).await;
    assert_eq!(sim.journal("pin/rm"), [cid(0).to_string()], "only the wider one had to go first");

    let events: Vec<_> = sim.engine().pin_add(PinAdd::new(cid(2), PinMode::Recursive)).collect().await;
    assert!(events.last().is_some_and(Result::is_ok));
    house.pinset.put([house.direct(&cid(2))]);
    connector.until(&cid(2), TrackerStatus::Pinned).await;
    node_has(&sim, 2, PinState::Recursive).await;
    assert_eq!(sim.journal("pin/rm").len(), 1);
    connector.stop().await;
}

/// Goal: a node that is down when ours is to be removed leaves the item as it was, and it is narrowed when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn narrowing_waits_for_the_node() {
    let (house, sim, connector) = start().await;
    give(&sim, 0).await;
    house.pinset.put([house.here(&cid(0))]);
    connector.until(&cid(0), TrackerStatus::Pinned).await;
    sim.stop();
    house.pinset.put([house.direct(&cid(0))]);
    eventually("it waits for the node", async || {
        let info = connector.info(&cid(0), 2).await;
        let waits = info.status == TrackerStatus::PinQueued.to_proto() as i32 && info.reason == Reason::NodeDown as i32;
        if waits { Ok(()) } else { Err(format!("{info:?}")) }
    })
    .await;
    sim.start_again().await;
    connector.until(&cid(0), TrackerStatus::Pinned).await;
    node_has(&sim, 0, PinState::Direct).await;
    connector.stop().await;
}

/// Goal: beh:B13.4. With `unpin_disable` nothing is taken from the node: the unpin is an error that names the key and
/// waits, for what is gone as for what moved elsewhere; without it, it is done when a person asks.
#[tokio::test(flavor = "multi_thread")]
async fn unpin_disable_takes_nothing_away() {
    let (mut house, node) = (House::new().await, TestNode::new());
    house.unpin_disable = true;
    let connector = house.start(node.clone()).await;
    house.pinset.put([house.here(&cid(0)), house.here(&cid(1))]);
    connector.until(&cid(0), TrackerStatus::Pinned).await;
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    house.pinset.remove(&cid(0).to_bytes());
    house.pinset.put([house.elsewhere(&cid(1))]);
    let refused = |info: &types::PinInfo| {
        info.reason == Reason::Refused as i32 && info.error.contains("unpin_disable") && info.next_try.is_none()
    };
    for _ in 0..2 {
        let gone = connector.until(&cid(0), TrackerStatus::UnpinError).await;
        assert!(refused(&gone), "{gone:?}");
        let tried = gone.attempt_count;
        assert!(connector.recover(&cid(0)).await.1);
        eventually("it was tried again", async || {
            let info = connector.info(&cid(0), 0).await;
            if refused(&info) && info.attempt_count > tried { Ok(()) } else { Err(format!("{info:?}")) }
        })
        .await;
    }
    eventually("the one that moved is refused too", async || {
        let info = connector.info(&cid(1), 0).await;
        let is_so = refused(&info) && TrackerStatus::from_proto(info.status) == TrackerStatus::Remote;
        if is_so { Ok(()) } else { Err(format!("{info:?}")) }
    })
    .await;
    assert_eq!(node.count("rm"), 0);
    assert!(node.has(&cid(0)) && node.has(&cid(1)));
    connector.stop().await;

    house.unpin_disable = false;
    let connector = house.start(node.clone()).await;
    connector.until(&cid(0), TrackerStatus::UnpinError).await;
    assert!(connector.recover(&cid(0)).await.1 && connector.recover(&cid(1)).await.1);
    connector.until(&cid(0), TrackerStatus::Unpinned).await;
    eventually("both are gone", async || if node.has(&cid(1)) { Err(String::new()) } else { Ok(()) }).await;
    assert!(!node.has(&cid(0)));
    connector.stop().await;
}

/// Goal: a pin is given up after `max_pin_attempts` failures, says so, and stays given up over a restart; a person's
/// *recover* begins anew. What fails because of the node is never given up.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_have_a_limit() {
    let (mut house, node) = (House::new().await, TestNode::new());
    house.max_attempts = 2;
    node.plan(&cid(0), Plan::Fail(NodeError::NoProviders("nobody has it".to_owned())));
    node.plan(&cid(1), Plan::Fail(NodeError::DiskFull("no space left".to_owned())));
    let connector = house.start(node.clone()).await;
    house.pinset.put([house.here(&cid(0)), house.here(&cid(1))]);
    let given_up = async |connector: &Connector| {
        eventually("it is given up", async || {
            let info = connector.info(&cid(0), 0).await;
            let is_over = TrackerStatus::from_proto(info.status) == TrackerStatus::PinError;
            let is_final = is_over && info.attempt_count == 2 && info.next_try.is_none();
            if is_final { Ok(info) } else { Err(format!("{info:?}")) }
        })
        .await
    };
    let info = given_up(&connector).await;
    assert_eq!(info.error, "given up after 2 attempts: nobody has it");
    eventually("a full disk is tried more often", async || {
        let info = connector.info(&cid(1), 0).await;
        if info.attempt_count >= 3 && info.next_try.is_some() { Ok(()) } else { Err(format!("{info:?}")) }
    })
    .await;
    assert_eq!(node.count_of("add", &cid(0)), 2);
    connector.stop().await;

    let connector = house.start(node.clone()).await;
    house.pinset.put([house.here(&cid(2))]);
    connector.until(&cid(2), TrackerStatus::Pinned).await;
    given_up(&connector).await;
    assert_eq!(node.count_of("add", &cid(0)), 2);

    assert!(connector.recover(&cid(0)).await.1);
    eventually("it is tried again as from the start", async || {
        let tried = node.count_of("add", &cid(0));
        if tried == 4 { Ok(()) } else { Err(tried.to_string()) }
    })
    .await;
    given_up(&connector).await;
    node.unplan(&cid(0));
    assert!(connector.recover(&cid(0)).await.1);
    connector.until(&cid(0), TrackerStatus::Pinned).await;
    connector.stop().await;
}

/// Goal: beh:B8.20, B13.5. `pin_update` is tried in the first attempt, once; neither the next attempts nor a pin that
/// the node lost come back to it.
#[tokio::test(flavor = "multi_thread")]
async fn b8_20_pin_update_is_tried_once() {
    let (house, sim, connector) = start().await;
    give(&sim, 0).await;
    house.pinset.put([house.here(&cid(0))]);
    connector.until(&cid(0), TrackerStatus::Pinned).await;
    let updated = |number: u32| {
        let mut pin = house.here(&cid(number));
        pin.options.as_mut().unwrap().pin_update = cid(0).to_bytes();
        pin
    };
    // Nobody has the block of the first one yet.
    give(&sim, 2).await;
    house.pinset.put([updated(1), updated(2)]);
    connector.until(&cid(2), TrackerStatus::Pinned).await;
    assert!(!sim.journal("pin/add").contains(&cid(2).to_string()), "the update was enough");
    let failed = connector.until(&cid(1), TrackerStatus::PinError).await;
    assert_eq!(failed.reason, Reason::NoProviders as i32, "{failed:?}");
    give(&sim, 1).await;
    connector.until(&cid(1), TrackerStatus::Pinned).await;
    let tried = sim.journal("pin/add").iter().filter(|argument| **argument == cid(1).to_string()).count();
    assert!(tried >= 2, "after the update in the first attempt, and in the next: {tried}");
    assert_eq!(sim.journal("pin/update").len(), 2, "one for each");

    sim.engine().pin_rm(&cid(2)).await.unwrap();
    assert!(connector.recover(&cid(2)).await.1, "recover looks at the node");
    connector.until(&cid(2), TrackerStatus::Pinned).await;
    node_has(&sim, 2, PinState::Recursive).await;
    assert!(sim.journal("pin/add").contains(&cid(2).to_string()));
    assert_eq!(sim.journal("pin/update").len(), 2);
    connector.stop().await;
}
