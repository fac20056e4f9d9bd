//! One peer, whole: it founds a cluster, pins, answers, is followed, stops and goes on.

mod harness;

use std::sync::atomic::Ordering;
use std::time::Duration;

use harness::{Cluster, Peer, cid, request, until};
use pinfold_common::{Code, Error};
use pinfold_proto::consensus::follow_reply::Message;
use pinfold_proto::consensus::status_reply::Role;
use pinfold_proto::consensus::*;
use pinfold_proto::types;
use prost::Message as _;
use tonic::Streaming;

async fn pin(peer: &Peer, request: types::PinRequest) -> Result<PinReply, Error> {
    let call = PinCall { request: Some(request), request_key: Vec::new() };
    Ok(peer.pins().pin(call).await.map_err(Error::from)?.into_inner())
}

async fn list(peer: &Peer, call: ListCall) -> Vec<types::Pin> {
    let mut stream = peer.pins().list(call).await.unwrap().into_inner();
    let mut pins = Vec::new();
    while let Some(reply) = stream.message().await.unwrap() {
        pins.extend(reply.pins.into_iter().map(|pin| types::Pin::decode(pin).unwrap()));
    }
    pins
}

async fn next(stream: &mut Streaming<FollowReply>) -> Message {
    let message = tokio::time::timeout(harness::DEADLINE, stream.message()).await.expect("a message in time");
    message.unwrap().expect("the stream goes on").message.unwrap()
}

async fn follow(peer: &Peer, cursor: Option<Cursor>) -> Streaming<FollowReply> {
    peer.pins().follow(FollowCall { cursor }).await.unwrap().into_inner()
}

/// Goal: the first peer founds a cluster of one and does a pinset's whole life; what was acknowledged is there after a
/// restart, in the same cluster, as the same node.
#[tokio::test(flavor = "multi_thread")]
async fn found_pin_list_restart() {
    let (_cluster, mut peers) = Cluster::started(1).await;
    let peer = &mut peers[0];
    let before = peer.status().await.unwrap();
    assert_eq!((before.role(), before.leader.clone(), before.pins), (Role::Leader, peer.id(), 0));
    assert_eq!(before.cluster_id.len(), 16);

    let mut asked = request(1);
    asked.options.as_mut().unwrap().name = "one".into();
    let reply = pin(peer, asked).await.unwrap();
    let written = reply.pin.unwrap();
    assert_eq!((written.revision, written.allocations.clone()), (reply.index, vec![peer.id()]));
    let read = GetCall { cid: cid(1), min_index: reply.index, ..GetCall::default() };
    let got = peer.pins().get(read).await.unwrap().into_inner();
    assert!(!got.stale);
    assert_eq!(got.pin.as_ref().unwrap().options, written.options);
    assert_eq!(got.pin.unwrap().timestamp.unwrap().nanos, 0, "the state keeps whole seconds");

    for number in 2..600 {
        let requests = vec![request(number)];
        peer.pins().pin_many(PinManyCall { requests, request_key: Vec::new() }).await.unwrap();
        if number % 7 == 0 {
            let reply = peer.pins().unpin(UnpinCall { cid: cid(number), ..UnpinCall::default() }).await.unwrap();
            assert_eq!(reply.into_inner().pin.unwrap().cid, cid(number));
        }
    }
    let consistent = ListCall { consistency: Consistency::Linearizable as i32, ..ListCall::default() };
    let all = list(peer, consistent.clone()).await;
    assert_eq!(all.len(), 599 - 85);
    assert!(all.windows(2).all(|pair| pair[0].cid < pair[1].cid), "in key order");
    let some = list(peer, ListCall { after: cid(10), limit: 300, ..ListCall::default() }).await;
    assert_eq!((some.len(), some[0].cid.clone()), (300, cid(11)));
    let shards = ListCall { types: vec![types::PinType::Shard as i32], ..ListCall::default() };
    assert_eq!(list(peer, shards).await, vec![]);

    peer.stop().await.unwrap();
    peer.start(&[]).await;
    peer.ready().await;
    let after = peer.status().await.unwrap();
    assert_eq!((after.cluster_id, after.node_id, after.pins), (before.cluster_id, before.node_id, all.len() as u64));
    assert_eq!(list(peer, consistent).await, all);
}

/// Goal: beh:B8.12. An identical repin is answered without a log entry, and its allocations are looked at anew nevertheless;
/// whatever differs, also by being left out, is an entry.
#[tokio::test(flavor = "multi_thread")]
async fn b8_12_an_identical_repin_writes_nothing() {
    let (cluster, peers) = Cluster::started(1).await;
    let peer = &peers[0];
    let mut named = request(1);
    let options = named.options.as_mut().unwrap();
    options.name = "one".into();
    options.metadata = ["a", "b"].map(|key| types::KeyValue { key: key.into(), value: key.into() }).to_vec();
    let first = pin(peer, named.clone()).await.unwrap().pin.unwrap();
    // After nothing but new pins the next one is taken for new as well, and looked at when it turns out not to be.
    assert_eq!(pin(peer, named.clone()).await.unwrap().pin.unwrap().revision, first.revision);
    let before = peer.status().await.unwrap().last_log_index;
    let mut turned = named.clone();
    turned.options.as_mut().unwrap().metadata.reverse();
    for same in [named.clone(), turned] {
        let asked_before = cluster.monitors.items.load(Ordering::Acquire);
        let reply = pin(peer, same).await.unwrap();
        assert!(reply.index >= first.revision);
        let again = reply.pin.unwrap();
        assert_eq!(
            (again.revision, again.timestamp.unwrap().seconds),
            (first.revision, first.timestamp.unwrap().seconds)
        );
        assert!(cluster.monitors.items.load(Ordering::Acquire) > asked_before);
    }
    assert_eq!(peer.status().await.unwrap().last_log_index, before);
    for (what, entries) in [(request(1), 1), (request(1), 1), (named, 2)] {
        pin(peer, what).await.unwrap();
        assert_eq!(peer.status().await.unwrap().last_log_index - before, entries);
    }
}

/// Goal: an update with an expiry in the past, and a depth that no IPFS node can pin to, are refused by name and change
/// nothing, over the service as well as in the rules.
#[tokio::test(flavor = "multi_thread")]
async fn past_expiries_and_depths_are_refused() {
    let (_cluster, peers) = Cluster::started(1).await;
    let peer = &peers[0];
    pin(peer, request(1)).await.unwrap();
    let mut past = request(2);
    (past.options.as_mut().unwrap().pin_update, past.options.as_mut().unwrap().expire_at_seconds) =
        (cid(1), 1_577_836_800);
    let error = pin(peer, past).await.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (Code::Rejected, "pin.ExpireAt set before current time"));
    let deep = types::PinRequest { max_depth: 2, ..request(3) };
    let error = pin(peer, deep).await.unwrap_err();
    assert_eq!((error.code.http(), error.message.as_str()), (400, "max_depth: 2 is neither -1 nor 0"));
    assert_eq!(peer.status().await.unwrap().pins, 1);
}

/// Goal: what the rules refuse is refused with code and text, also within a batch, and the rest of the batch is done.
#[tokio::test(flavor = "multi_thread")]
async fn refusals() {
    let (cluster, peers) = Cluster::started(1).await;
    let peer = &peers[0];
    let mut too_many = request(1);
    too_many.options.as_mut().unwrap().replication_factor_min = 3;
    too_many.options.as_mut().unwrap().replication_factor_max = 3;
    let error = pin(peer, too_many.clone()).await.unwrap_err();
    assert_eq!(error.code, Code::NotEnoughPeers);
    assert_eq!(
        error.message,
        "not enough peers to allocate CID. Needed at least: 3. Wanted at most: 3. Available candidates: 1. \
         See logs for more info."
    );
    let unpin = peer.pins().unpin(UnpinCall { cid: cid(9), ..UnpinCall::default() }).await;
    assert_eq!(Error::from(unpin.unwrap_err()), Error::not_in_pinset());

    let garbage = types::PinRequest { cid: vec![1, 2, 3], ..request(0) };
    let requests = vec![request(2), garbage, too_many, request(2), request(3)];
    let reply = peer.pins().pin_many(PinManyCall { requests, request_key: b"key".to_vec() }).await.unwrap();
    let codes: Vec<Option<String>> = reply
        .into_inner()
        .results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            pin_result::Result::Pin(_) => None,
            pin_result::Result::Failure(failure) => Some(failure.code),
        })
        .collect();
    let (invalid, too_few) = (Some("invalid_argument".to_owned()), Some("not_enough_peers".to_owned()));
    assert_eq!(codes, vec![None, invalid.clone(), too_few, invalid, None]);

    // A monitor that does not answer makes it retryable, never "not enough peers" (protocols.md 5).
    cluster.monitors.is_down.store(true, Ordering::Release);
    assert_eq!(pin(peer, request(4)).await.unwrap_err().code, Code::Unavailable);
}

/// Goal: a retry under the same key gets the first result, for pins and for unpins.
#[tokio::test(flavor = "multi_thread")]
async fn retries_are_harmless() {
    let (_cluster, peers) = Cluster::started(1).await;
    let peer = &peers[0];
    let keyed = PinCall { request: Some(request(1)), request_key: b"pin".to_vec() };
    let first = peer.pins().pin(keyed.clone()).await.unwrap().into_inner();
    let unpin = UnpinCall { cid: cid(1), request_key: b"unpin".to_vec() };
    let removed = peer.pins().unpin(unpin.clone()).await.unwrap().into_inner();
    let again = peer.pins().unpin(unpin).await.unwrap().into_inner();
    assert_eq!(removed.pin, again.pin);
    let retried = peer.pins().pin(keyed).await.unwrap().into_inner();
    assert_eq!(retried.pin.unwrap().revision, first.pin.unwrap().revision);
    assert_eq!(peer.status().await.unwrap().pins, 0, "the retry brings nothing back");
}

/// Goal: a follower that knows nothing compares, one that is a little behind resumes, one that is ahead waits; changes
/// come in order, and are caught up when nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn followers_miss_nothing() {
    let (_cluster, mut peers) = Cluster::started(1).await;
    let peer = &mut peers[0];
    let requests = (0..1000).map(request).collect();
    peer.pins().pin_many(PinManyCall { requests, request_key: Vec::new() }).await.unwrap();

    let mut stream = follow(peer, None).await;
    let Message::Compare(compare) = next(&mut stream).await else { panic!("not a comparison") };
    let mut seen = Vec::new();
    loop {
        let Message::Page(page) = next(&mut stream).await else { panic!("not a page") };
        assert_eq!(page.cursor, compare.cursor);
        seen.extend(page.pins.into_iter().map(|pin| pin.cid));
        if page.end {
            break;
        }
        assert_eq!(seen.last(), Some(&page.last));
    }
    assert_eq!(seen.len(), 1000);
    let Message::Changes(first) = next(&mut stream).await else { panic!("not changes") };
    assert!(first.caught_up && first.changes.is_empty());

    pin(peer, request(5000)).await.unwrap();
    peer.pins().unpin(UnpinCall { cid: cid(3), ..UnpinCall::default() }).await.unwrap();
    let (mut changes, mut cursor) = (Vec::new(), None);
    while changes.len() < 2 {
        let Message::Changes(more) = next(&mut stream).await else { panic!("not changes") };
        changes.extend(more.changes);
        cursor = more.cursor;
    }
    assert!(matches!(&changes[0].change, Some(change::Change::Put(pin)) if pin.cid == cid(5000)));
    assert!(matches!(&changes[1].change, Some(change::Change::Removed(gone)) if *gone == cid(3)));
    drop(stream);

    pin(peer, request(5001)).await.unwrap();
    let mut stream = follow(peer, cursor.clone()).await;
    assert!(matches!(next(&mut stream).await, Message::Resume(_)));
    let Message::Changes(missed) = next(&mut stream).await else { panic!("not changes") };
    assert_eq!(missed.changes.len(), 1);

    let cursor = cursor.unwrap();
    let ahead = Cursor { index: cursor.index + 2, ..cursor.clone() };
    let mut stream = follow(peer, Some(ahead)).await;
    assert!(matches!(next(&mut stream).await, Message::Behind(_)));
    pin(peer, request(5002)).await.unwrap();
    assert!(matches!(next(&mut stream).await, Message::Resume(_)));

    let foreign = Cursor { lineage: cursor.lineage + 1, ..cursor.clone() };
    assert!(matches!(next(&mut follow(peer, Some(foreign)).await).await, Message::Compare(_)));

    // After a restart the ring is empty: an older cursor compares.
    peer.stop().await.unwrap();
    peer.start(&[]).await;
    peer.ready().await;
    assert!(matches!(next(&mut follow(peer, Some(cursor)).await).await, Message::Compare(_)));
}

/// Goal: concurrent requests share entries, and requests about one CID keep their order.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_are_batched() {
    let (cluster, peers) = Cluster::started(1).await;
    let peer = &peers[0];
    let before = peer.status().await.unwrap().last_log_index;
    let clients = (0..64).map(|client: u32| {
        let mut pins = peer.pins();
        tokio::spawn(async move {
            for number in 0..20 {
                let call = PinCall { request: Some(request(client * 1000 + number)), request_key: Vec::new() };
                pins.pin(call).await.unwrap();
            }
            let shared = PinCall { request: Some(request(999_999)), request_key: Vec::new() };
            pins.pin(shared).await.unwrap();
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let status = peer.status().await.unwrap();
    assert_eq!(status.pins, 64 * 20 + 1);
    let entries = status.last_log_index - before;
    assert!(entries < 64 * 20 / 4, "{entries} entries for {} pins", 64 * 20);
    let calls = cluster.monitors.calls.load(Ordering::Acquire);
    assert!(calls < 64 * 20 / 4, "{calls} allocations");
}

/// Goal: what is past its time goes by itself; what is not stays.
#[tokio::test(flavor = "multi_thread")]
async fn pins_expire() {
    let (_cluster, peers) = Cluster::started(1).await;
    let peer = &peers[0];
    let now = pinfold_common::time::Timestamp::now().seconds;
    let mut soon = request(1);
    soon.options.as_mut().unwrap().expire_at_seconds = now + 2;
    let mut late = request(2);
    late.options.as_mut().unwrap().expire_at_seconds = now + 3600;
    pin(peer, soon).await.unwrap();
    pin(peer, late).await.unwrap();
    until("one pin expires", || async { peer.status().await.is_some_and(|status| status.pins == 1) }).await;
    let kept = peer.pins().get(GetCall { cid: cid(2), ..GetCall::default() }).await.unwrap().into_inner();
    assert!(kept.pin.is_some());
}

/// Goal: a peer whose log is gone, or whose membership is, does not found another cluster; it refuses with 78.
#[tokio::test(flavor = "multi_thread")]
async fn lost_state_is_refused() {
    let (_cluster, mut peers) = Cluster::started(1).await;
    let peer = &mut peers[0];
    peer.stop().await.unwrap();
    let member = peer.path().join("member.json");
    let kept = std::fs::read(&member).unwrap();
    std::fs::remove_file(&member).unwrap();
    peer.start(&[]).await;
    let refused = peer.ended().await.unwrap_err();
    assert!(matches!(refused, consensus_svc::error::Error::Refused(_)), "{refused}");
    std::fs::write(&member, kept).unwrap();
    std::fs::remove_dir_all(peer.path().join("raft")).unwrap();
    peer.start(&[]).await;
    let refused = peer.ended().await.unwrap_err();
    assert!(matches!(refused, consensus_svc::error::Error::Refused(_)), "{refused}");
}

/// Goal: a peer that cannot reach anybody to join stays up, says why it is not ready, and stops when asked to.
#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_keeps_trying() {
    let cluster = Cluster::new();
    let (nobody, mut peer) = (cluster.peer().await, cluster.peer().await);
    peer.start(&[nobody.multiaddress()]).await;
    until("it says why", || async {
        peer.status().await.is_some_and(|status| {
            status.role() == Role::Joining && !status.ready && status.not_ready_reason.contains(&nobody.address)
        })
    })
    .await;
    tokio::time::timeout(Duration::from_secs(10), peer.stop()).await.unwrap().unwrap();
}

/// Goal: a small request that becomes large entries is split, and bounded by what an answer can carry; large entries can
/// be listed and followed.
#[tokio::test(flavor = "multi_thread")]
async fn large_entries() {
    let (_cluster, peers) = Cluster::started(1).await;
    let peer = &peers[0];
    let mut source = request(0);
    let entry = types::KeyValue { key: "large".into(), value: "x".repeat(16_000) };
    source.options.as_mut().unwrap().metadata = vec![entry];
    pin(peer, source).await.unwrap();
    let before = peer.status().await.unwrap().last_log_index;
    let copy = |number: u32| {
        let mut copy = request(number);
        copy.options.as_mut().unwrap().pin_update = cid(0);
        copy
    };
    let requests = (1..=1000).map(copy).collect();
    let reply = peer.pins().pin_many(PinManyCall { requests, request_key: b"large".to_vec() }).await;
    let results = reply.unwrap().into_inner().results;
    let done = results.iter().filter(|result| matches!(result.result, Some(pin_result::Result::Pin(_)))).count();
    assert!((300..500).contains(&done), "{done} of 1000 fit in an answer");
    let status = peer.status().await.unwrap();
    assert_eq!(status.pins, done as u64 + 1);
    assert!(status.last_log_index - before >= 6, "entries of about a megabyte");
    assert_eq!(list(peer, ListCall::default()).await.len(), done + 1);
    let mut stream = follow(peer, None).await;
    let mut seen = 0;
    loop {
        if let Message::Page(page) = next(&mut stream).await {
            seen += page.pins.len();
            if page.end {
                break;
            }
        }
    }
    assert_eq!(seen, done + 1);
}
