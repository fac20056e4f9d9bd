//! What an upload does to the cluster: who gets blocks, what is pinned, and that a broken one leaves nothing.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use pinfold_common::Code;
use pinfold_common::ids::parse_cid;

use super::super::sink::{BATCH_BYTES, QUEUE_BATCHES};
use super::content::Content;
use super::*;

fn added(event: &Event) -> (&str, &Cid, &[PeerId]) {
    match event {
        Event::Added { name, cid, allocations, .. } => (name, cid, allocations),
        Event::Progress { .. } => panic!("progress was not asked for"),
    }
}

/// Goal: all destinations get all blocks; the pin has the user's options, no `pin_update`, and the destinations.
#[tokio::test]
async fn every_destination_gets_every_block_and_the_root_is_pinned() {
    let destinations = peers(3);
    let cluster = Arc::new(FakeCluster::new(&destinations, 2));
    let other = parse_cid("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn").unwrap();
    let pin = PinOptions { name: "as given".to_owned(), pin_update: Some(other), ..PinOptions::default() };
    let params = AddParams { pin, request_key: b"key".to_vec(), ..AddParams::default() };
    let content = Content::new(1).take(3_000_000);
    let (done, events) = run(cluster.clone(), PeerId::random(), params, file("x", &content)).await;

    let done = done.unwrap();
    assert_eq!((done.index, done.failed.len()), (7, 0));
    assert_eq!(added(&events[0]), ("x", &done.root, destinations.as_slice()));
    let seen = cluster.seen.lock();
    assert_eq!(seen.allocate_calls, 1);
    let first = &seen.blocks[&destinations[0]];
    assert_eq!(first.len(), 13, "twelve leaves and a root");
    assert!(destinations.iter().all(|peer| seen.blocks[peer] == *first));
    let (request, key) = &seen.pins[0];
    assert_eq!((request.cid, request.max_depth, key.as_slice()), (done.root, -1, b"key".as_slice()));
    assert_eq!((request.options.name.as_str(), request.options.pin_update), ("as given", None));
    assert_eq!(request.allocations, destinations);
    assert_eq!(done.pin.unwrap().allocations, destinations);
}

/// Goal: several top entries without a wrapper are all added, and the last one is pinned (rest-api.md 9.2).
#[tokio::test]
async fn the_last_top_entry_is_pinned() {
    let cluster = Arc::new(FakeCluster::new(&peers(1), 1));
    let input =
        [file("a", b"1"), file("dir/b", b"2"), file("dir/c", b"3"), file("a", b"4"), file("a", b"5")].concat_all();
    let (done, events) = run(cluster.clone(), PeerId::random(), AddParams::default(), input).await;
    let names: Vec<&str> = events.iter().map(|event| added(event).0).collect();
    assert_eq!(names, ["a", "dir/b", "dir/c", "dir", "a", "a"]);
    let root = done.unwrap().root;
    assert_eq!(&root, added(&events[5]).1);
    assert_eq!(cluster.seen.lock().pins[0].0.cid, root);
}

trait ConcatAll {
    fn concat_all(self) -> Vec<Result<Input>>;
}

impl<const N: usize> ConcatAll for [Vec<Result<Input>>; N] {
    fn concat_all(self) -> Vec<Result<Input>> {
        self.into_iter().flatten().collect()
    }
}

/// Goal: a client that breaks off leaves nothing in the pinset.
#[tokio::test]
async fn a_broken_input_leaves_nothing() {
    let content = Content::new(1).take(5_000_000);
    for cut in [1, 2, 40, 70] {
        let cluster = Arc::new(FakeCluster::new(&peers(2), 1));
        let mut input: Vec<Result<Input>> = file("x", &content).into_iter().take(cut).collect();
        input.push(Err(Error::unavailable("the client has left")));
        let (done, events) = run(cluster.clone(), PeerId::random(), AddParams::default(), input).await;
        assert_eq!(done.unwrap_err().message, "the client has left");
        assert!(events.is_empty());
        assert!(cluster.seen.lock().pins.is_empty());
    }
    // The input may also just end.
    let cluster = Arc::new(FakeCluster::new(&peers(2), 1));
    let mut input = file("x", &content);
    input.pop();
    assert!(run(cluster.clone(), PeerId::random(), AddParams::default(), input).await.0.is_err());
    assert!(cluster.seen.lock().pins.is_empty());
}

/// Goal: the root is told only when all is stored and pinned: a client that reads no further than the lines takes no
/// CID for good that is not, where the disks turn out to be full at the very end or nobody can pin (attack:A10).
#[tokio::test]
async fn the_root_is_told_when_it_is_pinned() {
    let destinations = peers(2);
    let full = FakeCluster { broken: destinations.clone(), ..FakeCluster::new(&destinations, 1) };
    let unled = FakeCluster { refuses_pins: true, ..FakeCluster::new(&destinations, 1) };
    let well = FakeCluster::new(&destinations, 1);
    for (cluster, expected) in [(full, 2), (unled, 2), (well, 3)] {
        let input = [file("d/x", b"1"), file("d/y", b"2")].concat_all();
        let (done, events) = run(Arc::new(cluster), PeerId::random(), AddParams::default(), input).await;
        let names: Vec<&str> = events.iter().map(|event| added(event).0).collect();
        assert_eq!(names, ["d/x", "d/y", "d"][..expected], "{done:?}");
        assert_eq!(done.is_ok(), expected == 3);
    }
}

/// Goal: malformed uploads are refused as the client's mistake, without a pin.
#[tokio::test]
async fn malformed_uploads() {
    let plain = AddParams::default;
    let wrapped = || AddParams { wrap_with_directory: true, ..plain() };
    let car = || AddParams { format: Format::Car, ..plain() };
    let directory =
        |path: &str| vec![Ok(Input::Directory { path: path.to_owned(), attributes: Attributes::default() })];
    for (params, input) in [
        (plain(), vec![]),
        (plain(), vec![Ok(Input::Data(Bytes::from_static(b"x")))]),
        (plain(), vec![Ok(Input::EndOfFile)]),
        (plain(), file("../x", b"x")),
        (plain(), directory("")),
        (plain(), [file("d/x", b"1"), file("d/x", b"2")].concat_all()),
        (plain(), [file("d/x", b"1"), file("d/x/y", b"2")].concat_all()),
        (
            plain(),
            [vec![Ok(Input::File { path: "x".to_owned(), attributes: Attributes::default() })], file("y", b"2")]
                .concat_all(),
        ),
        (wrapped(), file("", b"x")),
        (AddParams { cid_version: 2, ..plain() }, file("x", b"x")),
        (AddParams { hash: "md5".to_owned(), ..plain() }, file("x", b"x")),
        (AddParams { wrap_with_directory: true, ..car() }, file("x", b"x")),
        (car(), directory("x")),
        (car(), vec![]),
    ] {
        let cluster = Arc::new(FakeCluster::new(&peers(1), 1));
        let (done, _) = run(cluster.clone(), PeerId::random(), params, input).await;
        assert_eq!(done.unwrap_err().code, Code::InvalidArgument);
        assert!(cluster.seen.lock().pins.is_empty());
    }
}

/// Goal: progress is told at every 256 KiB and at the end, under the path inside the top entry.
#[tokio::test]
async fn progress() {
    let params = AddParams { progress: true, ..AddParams::default() };
    let content = Content::new(1).take(600_000);
    for (path, wrap, name) in [("x", false, ""), ("dir/sub/x", false, "sub/x"), ("dir/x", true, "dir/x")] {
        let params = AddParams { wrap_with_directory: wrap, ..params.clone() };
        let cluster = Arc::new(FakeCluster::new(&peers(1), 1));
        let (_, events) = run(cluster, PeerId::random(), params, file(path, &content)).await;
        let expected = [262_144, 524_288, 600_000].map(|bytes| Event::Progress { name: name.to_owned(), bytes });
        assert_eq!(events[..3], expected);
    }
}

/// Goal: `no_pin` stores and does not pin; `local` sends to this peer only and keeps it among the allocations; a pin
/// everywhere has no allocations.
#[tokio::test]
async fn who_is_pinned() {
    let (destinations, own) = (peers(2), PeerId::random());
    let run_with = async |params: AddParams, min: i32| {
        let cluster = Arc::new(FakeCluster::new(&destinations, min));
        let (done, events) = run(cluster.clone(), own, params, file("x", b"content")).await;
        let told = added(&events[0]).2.to_vec();
        let seen = std::mem::take(&mut *cluster.seen.lock());
        (done.unwrap(), told, seen)
    };
    let (done, _, seen) = run_with(AddParams { no_pin: true, ..AddParams::default() }, 1).await;
    assert!(done.pin.is_none() && seen.pins.is_empty() && seen.whole.len() == 2);

    let (_, told, seen) = run_with(AddParams { local: true, ..AddParams::default() }, 1).await;
    assert_eq!((seen.whole, told), (vec![own], vec![destinations[0], own]));
    assert_eq!(seen.pins[0].0.allocations, [destinations[0], own]);

    let user_allocations = vec![destinations[1]];
    let (_, _, seen) = run_with(AddParams { local: true, user_allocations, ..AddParams::default() }, 1).await;
    assert_eq!(seen.whole, [own]);
    assert_eq!(seen.pins[0].0.allocations, destinations);

    let (_, told, seen) = run_with(AddParams::default(), -1).await;
    assert_eq!((seen.whole.len(), told), (2, destinations.clone()));
    assert!(seen.pins[0].0.allocations.is_empty());
}

/// Goal: a failed destination is named and left out; all of them failed is the original's error (beh:B19.3, B19.9).
#[tokio::test]
async fn failing_destinations() {
    let destinations = peers(3);
    let content = Content::new(1).take(10_000_000);
    let one = FakeCluster { broken: vec![destinations[1]], ..FakeCluster::new(&destinations, 1) };
    let one = Arc::new(one);
    let (done, _) = run(one.clone(), PeerId::random(), AddParams::default(), file("x", &content)).await;
    assert_eq!(done.unwrap().failed, [(destinations[1], "the disk is broken".to_owned())]);
    let seen = std::mem::take(&mut *one.seen.lock());
    assert_eq!(seen.pins[0].0.allocations, [destinations[0], destinations[2]]);
    assert_eq!(seen.blocks[&destinations[0]], seen.blocks[&destinations[2]]);

    let all = FakeCluster { broken: destinations.clone(), ..FakeCluster::new(&destinations, 1) };
    let all = Arc::new(all);
    let (done, _) = run(all.clone(), PeerId::random(), AddParams::default(), file("x", &content)).await;
    let message = done.unwrap_err().message;
    assert!(message.starts_with("failed to put block on all destinations"), "{message}");
    assert!(all.seen.lock().pins.is_empty());
}

/// Goal: a destination that takes nothing holds the upload up by a bounded buffer only, and is given up in the end.
#[tokio::test]
async fn a_stuck_destination_is_bounded_and_given_up() {
    const PIECE_BYTES: u64 = 1 << 20;
    let destinations = peers(2);
    let cluster = FakeCluster { stuck: vec![destinations[0]], ..FakeCluster::new(&destinations, 1) };
    let stall_deadline = Duration::from_secs(2);
    let context = AddContext { cluster: Arc::new(cluster), own: PeerId::random(), stall_deadline };
    let read = Arc::new(AtomicU64::new(0));
    let counter = read.clone();
    let mut content = Content::new(1);
    let pieces = (0..32).map(move |_| {
        counter.fetch_add(PIECE_BYTES, Ordering::Relaxed);
        Ok(Input::Data(Bytes::from(content.take(PIECE_BYTES as usize))))
    });
    let input = stream::iter(
        [Ok(Input::File { path: "x".to_owned(), attributes: Attributes::default() })].into_iter().chain(pieces),
    );
    let input = futures::StreamExt::chain(input, stream::iter([Ok(Input::EndOfFile)]));
    let (output, _events) = mpsc::channel(16);
    let adding = add(&context, AddParams::default(), Box::pin(input), output);
    tokio::pin!(adding);

    let early = tokio::time::timeout(stall_deadline / 2, &mut adding).await;
    assert!(early.is_err(), "the upload waits for the stuck one");
    // And the piece that is being cut.
    let bound = (QUEUE_BATCHES as u64 + 3) * BATCH_BYTES as u64 + PIECE_BYTES;
    assert!(read.load(Ordering::Relaxed) <= bound, "{}", read.load(Ordering::Relaxed));

    let done = adding.await.unwrap();
    assert_eq!(done.failed.len(), 1);
    assert_eq!(done.failed[0].0, destinations[0]);
    assert_eq!(read.load(Ordering::Relaxed), 32 << 20);
}

/// Goal: every block is what its CID says and under the limit of the wire, and each is sent once in a row (beh:B19.3).
#[tokio::test]
async fn repeated_leaves_are_sent_once() {
    let destinations = peers(1);
    let cluster = Arc::new(FakeCluster::new(&destinations, 1));
    let zeros = vec![0; 10 << 20];
    run(cluster.clone(), PeerId::random(), AddParams::default(), file("x", &zeros)).await.0.unwrap();
    let seen = cluster.seen.lock();
    let blocks = &seen.blocks[&destinations[0]];
    assert_eq!(blocks.len(), 2);
    assert_eq!(blocks.iter().map(|(cid, _)| cid).collect::<HashSet<_>>().len(), 2);
}
