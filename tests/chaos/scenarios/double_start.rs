//! A second process on the folder of one that runs (fault:P14).

use std::sync::Mutex;

use pinfold_common::tls::ClusterSecret;

use crate::report::Report;
use crate::solo::Solo;

/// The folder is somebody else's.
const EXIT_LOCKED: i32 = 75;
const REQUESTS: usize = 10;

/// Goal: the second process ends with 75 and names the first one; the first one has not noticed.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i7_fault_p14_second_process_on_a_folder() {
    let mut report = Report::new("fault:P14 double start");
    let folder = tempfile::Builder::new().prefix("pinfold-double-").tempdir().expect("a temporary folder");
    let peer = Solo::prepare(&folder.path().join("peer"), &ClusterSecret::generate());
    let first = peer.start(None, None);
    peer.ready().await;
    let pinned = Mutex::default();
    for number in 0..REQUESTS {
        assert!(peer.pin("before", number, &pinned).await, "{}", peer.words());
    }
    let before = peer.status().await.expect("it runs");
    // Nothing but the folder is shared: a port that is taken would be found first.
    let mut second = peer.start_elsewhere();
    let ended = second.ends().await.expect("the second process ends by itself");
    assert_eq!(ended.code(), Some(EXIT_LOCKED), "{ended}\n{}", peer.words());
    assert!(peer.words().contains("another process"), "{}", peer.words());
    report.fault("second process refused");
    peer.verify("the first goes on", &pinned).await;
    let after = peer.status().await.expect("it runs");
    assert_eq!((after.node_id, after.term), (before.node_id, before.term), "the first was not disturbed");
    first.kill().await;
    let pinned = pinned.into_inner().unwrap();
    pinned.count(&mut report);
    report.finish();
}
