//! Adds beside IPFS nodes that remove blocks by themselves: done when the pin is there, and not before.

use pinfold_common::Code;
use pinfold_common::status::TrackerStatus;

use super::*;

fn info(status: TrackerStatus, blocks: u64, error: &str) -> PinInfo {
    PinInfo { status: status.to_proto() as i32, blocks, error: error.to_owned(), ..PinInfo::default() }
}

/// Three peers, of which the first keeps what it gets; what the other two say of the pin.
fn cluster(min: i32, second: Vec<PinInfo>, third: Vec<PinInfo>) -> (Vec<PeerId>, FakeCluster) {
    let peers = peers(3);
    let unheld = [(peers[1], second), (peers[2], third)].into();
    let cluster = FakeCluster { unheld, ..FakeCluster::new(&peers, min) };
    (peers, cluster)
}

/// Goal: issue 6, seed:D3. An add beside nodes whose automatic GC is on waits until their pin is there, however long it
/// takes as long as it gets on, and the last line with it; a node that keeps what it gets is not asked.
#[tokio::test(start_paused = true)]
async fn seed_d3_an_add_is_verified_after_its_pin() {
    let queued = vec![info(TrackerStatus::PinQueued, 0, "")];
    let moving = (1..300).map(|blocks| info(TrackerStatus::Pinning, blocks, ""));
    let pinned = vec![info(TrackerStatus::Pinned, 0, "")];
    let (peers, cluster) = cluster(3, queued.into_iter().chain(moving).chain(pinned.clone()).collect(), pinned);
    let cluster = Arc::new(cluster);
    let (done, events) = run(cluster.clone(), peers[0], AddParams::default(), file("x", b"content")).await;
    assert_eq!((done.unwrap().failed.len(), events.len()), (0, 1));
    let asked = &cluster.seen.lock().asked;
    assert_eq!((asked.get(&peers[0]), asked[&peers[1]], asked[&peers[2]]), (None, 301, 1));
}

/// Goal: a node that lost the blocks before its pin is named, and the add fails below the minimum of copies, without its
/// last line; so does one whose pin does not get on.
#[tokio::test(start_paused = true)]
async fn blocks_that_a_gc_took() {
    let lost = vec![info(TrackerStatus::PinError, 0, "no block of it came")];
    let stuck = vec![info(TrackerStatus::Pinning, 3, "")];
    let gone = vec![info(TrackerStatus::Remote, 0, "")];
    for (min, second, third) in
        [(1, &lost, &stuck), (2, &lost, &stuck), (3, &lost, &lost), (2, &stuck, &stuck), (2, &gone, &gone)]
    {
        let (peers, cluster) = cluster(min, second.clone(), third.clone());
        let cluster = Arc::new(cluster);
        let (done, events) = run(cluster.clone(), peers[0], AddParams::default(), file("x", b"content")).await;
        assert_eq!(cluster.seen.lock().pins.len(), 1, "it is in the pinset, and the trackers go on");
        if min == 1 {
            let failed = done.unwrap().failed;
            assert_eq!(failed.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), peers[1..]);
            assert!(failed[0].1.ends_with("no block of it came"), "{failed:?}");
            assert!(failed[1].1.contains("nothing new for 60s"), "{failed:?}");
            continue;
        }
        let error = done.unwrap_err();
        assert!(error.message.contains("1 have them") && events.is_empty(), "{error} {events:?}");
        let code = if second == &stuck { Code::OutcomeUnknown } else { Code::Unavailable };
        assert_eq!(error.code, code, "{error}");
    }
}

/// Goal: what nobody pins has no pin to wait for.
#[tokio::test]
async fn without_a_pin_nothing_is_asked() {
    let lost = vec![info(TrackerStatus::PinError, 0, "")];
    let (peers, cluster) = cluster(3, lost.clone(), lost);
    let params = AddParams { no_pin: true, ..AddParams::default() };
    assert!(run(Arc::new(cluster), peers[0], params, file("x", b"content")).await.0.is_ok());
}
