//! What a restart, a lost folder, a restored pinset and a forgetful node do.

use pinfold_common::pin::PinMode;
use pinfold_common::status::TrackerStatus;

use super::node::{Plan, TestNode};
use super::{House, cid, eventually, remove_folder};

/// Goal: a restart in the middle of the queue goes on with what is left, and pins nothing twice.
#[tokio::test(flavor = "multi_thread")]
async fn restart_in_the_middle_of_the_queue() {
    let (house, node) = (House::new().await, TestNode::new());
    for n in 50..100 {
        node.plan(&cid(n), Plan::Hang);
    }
    let connector = house.start(node.clone()).await;
    house.pinset.put((0..100).map(|n| house.here(&cid(n))));
    for n in 0..50 {
        connector.until(&cid(n), TrackerStatus::Pinned).await;
    }
    connector.stop().await;
    for n in 50..100 {
        node.unplan(&cid(n));
    }
    let before = node.count("add");
    let connector = house.start(node.clone()).await;
    for n in 0..100 {
        connector.until(&cid(n), TrackerStatus::Pinned).await;
    }
    assert_eq!(node.count("add") - before, 50);
    // Ours over the restart: an unpin takes them away.
    house.pinset.remove(&cid(3).to_bytes());
    house.pinset.remove(&cid(70).to_bytes());
    connector.until(&cid(70), TrackerStatus::Unpinned).await;
    connector.until(&cid(3), TrackerStatus::Unpinned).await;
    assert!(!node.has(&cid(3)) && !node.has(&cid(70)));
    connector.stop().await;
}

/// Goal: what happened while the connector was away is found by comparing, without the guard.
#[tokio::test(flavor = "multi_thread")]
async fn compares_after_compaction() {
    let (house, node) = (House::new().await, TestNode::new());
    let connector = house.start(node.clone()).await;
    house.pinset.put((0..20).map(|n| house.here(&cid(n))));
    for n in 0..20 {
        connector.until(&cid(n), TrackerStatus::Pinned).await;
    }
    connector.stop().await;
    for n in 0..10 {
        house.pinset.remove(&cid(n).to_bytes());
    }
    house.pinset.put([house.here(&cid(20)), house.elsewhere(&cid(19))]);
    house.pinset.compact();
    let connector = house.start(node.clone()).await;
    connector.until(&cid(20), TrackerStatus::Pinned).await;
    for n in 0..10 {
        connector.until(&cid(n), TrackerStatus::Unpinned).await;
        assert!(!node.has(&cid(n)));
    }
    connector.until(&cid(19), TrackerStatus::Remote).await;
    eventually("the moved one goes", async || if node.has(&cid(19)) { Err(String::new()) } else { Ok(()) }).await;
    assert!(node.has(&cid(15)));
    connector.stop().await;
}

/// Goal: a restored pinset that would unpin much is not obeyed in silence: unpins are held, pins go on.
#[tokio::test(flavor = "multi_thread")]
async fn lineage_change_is_guarded() {
    let (house, node) = (House::new().await, TestNode::new());
    let connector = house.start(node.clone()).await;
    house.pinset.put((0..20).map(|n| house.here(&cid(n))));
    for n in 0..20 {
        connector.until(&cid(n), TrackerStatus::Pinned).await;
    }
    house.pinset.restore((10..21).map(|n| house.here(&cid(n))));
    connector.until(&cid(20), TrackerStatus::Pinned).await;
    let held = connector.until(&cid(0), TrackerStatus::UnpinQueued).await;
    assert!(held.error.contains("mass-unpin guard") && held.next_try.is_none(), "{held:?}");
    assert_eq!(node.count("rm"), 0);
    // Ordinary unpins are not held up by it.
    house.pinset.remove(&cid(15).to_bytes());
    connector.until(&cid(15), TrackerStatus::Unpinned).await;
    assert!(!node.has(&cid(15)));
    // What is pinned again is not held any more.
    house.pinset.put([house.here(&cid(0))]);
    connector.until(&cid(0), TrackerStatus::Pinned).await;
    assert!((0..10).all(|n| node.has(&cid(n))));
    connector.stop().await;
}

/// Goal: a restored pinset that takes away little is obeyed.
#[tokio::test(flavor = "multi_thread")]
async fn lineage_change_below_the_guard() {
    let (house, node) = (House::new().await, TestNode::new());
    let connector = house.start(node.clone()).await;
    house.pinset.put((0..40).map(|n| house.here(&cid(n))));
    for n in 0..40 {
        connector.until(&cid(n), TrackerStatus::Pinned).await;
    }
    house.pinset.restore((1..40).map(|n| house.here(&cid(n))));
    connector.until(&cid(0), TrackerStatus::Unpinned).await;
    assert!(!node.has(&cid(0)) && node.has(&cid(1)));
    connector.stop().await;
}

/// Goal: after `tracker/` was lost, what the node has is adopted: in order, not pinned again, never unpinned by itself.
#[tokio::test(flavor = "multi_thread")]
async fn lost_tracker_adopts() {
    let (house, node) = (House::new().await, TestNode::new());
    let connector = house.start(node.clone()).await;
    house.pinset.put((0..10).map(|n| house.here(&cid(n))));
    for n in 0..10 {
        connector.until(&cid(n), TrackerStatus::Pinned).await;
    }
    connector.stop().await;
    remove_folder(&house.tracker_folder());
    node.lose(&cid(9));
    let before = node.count("add");
    let connector = house.start(node.clone()).await;
    for n in 0..10 {
        connector.until(&cid(n), TrackerStatus::Pinned).await;
    }
    assert_eq!(node.count("add") - before, 1);
    house.pinset.remove(&cid(0).to_bytes());
    house.pinset.remove(&cid(9).to_bytes());
    connector.until(&cid(9), TrackerStatus::Unpinned).await;
    let held = connector.until(&cid(0), TrackerStatus::UnpinQueued).await;
    assert!(held.error.contains("approval"), "{held:?}");
    assert!(node.has(&cid(0)) && !node.has(&cid(9)));
    connector.stop().await;
}

/// Goal: a pin that the node lost is found by the check at the next start and fetched again; an unlisted foreign pin of
/// the node is none of our business.
#[tokio::test(flavor = "multi_thread")]
async fn check_finds_lost_pins() {
    let (house, node) = (House::new().await, TestNode::new());
    let connector = house.start(node.clone()).await;
    house.pinset.put((0..10).map(|n| house.here(&cid(n))));
    for n in 0..10 {
        connector.until(&cid(n), TrackerStatus::Pinned).await;
    }
    connector.stop().await;
    node.lose(&cid(4));
    node.plan(&cid(4), Plan::Hang);
    node.add_pin(&cid(77), PinMode::Recursive);
    let connector = house.start(node.clone()).await;
    connector.until(&cid(4), TrackerStatus::Pinning).await;
    assert_eq!(connector.list(TrackerStatus::Pinned.bit()).await.len(), 9);
    connector.stop().await;
    node.unplan(&cid(4));
    let connector = house.start(node.clone()).await;
    connector.until(&cid(4), TrackerStatus::Pinned).await;
    assert_eq!(node.count("rm"), 0);
    assert!(node.has(&cid(77)));
    connector.stop().await;
}
