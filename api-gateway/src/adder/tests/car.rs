//! Uploads in CAR form: what Kubo exports is taken, and everything that is broken is refused without a pin.

use multihash_codetable::{Code as Hash, MultihashDigest as _};
use pinfold_common::Code;

use super::super::dag::{DAG_CBOR, DAG_PB, MAX_BLOCK_BYTES, RAW};
use super::*;

const SMALL_CAR: &[u8] = include_bytes!("../../../../tests/testdata/cids/small.car");
/// The same in a CAR of version 2, with an index, as go-car writes it.
const SMALL_CAR_V2: &[u8] = include_bytes!("../../../../tests/testdata/cids/small-v2.car");

fn params() -> AddParams {
    AddParams { format: Format::Car, ..AddParams::default() }
}

/// Uploads a file in small pieces: the blocks that arrived, the events, the pins.
async fn upload(car: &[u8]) -> (Result<Done>, Vec<Event>, Seen) {
    let cluster = Arc::new(FakeCluster::new(&peers(1), 1));
    let mut input = vec![Ok(Input::File { path: "x.car".to_owned(), attributes: Attributes::default() })];
    input.extend(car.chunks(7_001).map(|piece| Ok(Input::Data(Bytes::copy_from_slice(piece)))));
    input.push(Ok(Input::EndOfFile));
    input.extend(file("ignored", b"further parts are ignored"));
    let (done, events) = run(cluster.clone(), PeerId::random(), params(), input).await;
    let seen = std::mem::take(&mut *cluster.seen.lock());
    (done, events, seen)
}

async fn refused(car: &[u8], reason: &str) {
    let (done, events, seen) = upload(car).await;
    let error = done.unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument, "{error}");
    assert!(error.message.contains(reason), "{error} does not say {reason:?}");
    assert!(events.is_empty() && seen.pins.is_empty() && seen.whole.is_empty());
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn frame(content: &[u8]) -> Vec<u8> {
    [varint(content.len() as u64), content.to_vec()].concat()
}

fn section(cid: &Cid, data: &[u8]) -> Vec<u8> {
    frame(&[&cid.to_bytes(), data].concat())
}

#[derive(serde::Serialize)]
struct Header {
    roots: Vec<Cid>,
    version: u64,
}

fn header(version: u64, roots: &[Cid]) -> Vec<u8> {
    frame(&serde_ipld_dagcbor::to_vec(&Header { roots: roots.to_vec(), version }).unwrap())
}

fn cid_of(codec: u64, data: &[u8]) -> Cid {
    Cid::new_v1(codec, Hash::Sha2_256.digest(data))
}

fn raw(data: &[u8]) -> (Cid, Vec<u8>) {
    let cid = cid_of(RAW, data);
    (cid, section(&cid, data))
}

/// A dag-cbor list of links.
fn list(links: &[Cid]) -> (Cid, Vec<u8>) {
    let data = serde_ipld_dagcbor::to_vec(&links.to_vec()).unwrap();
    let cid = cid_of(DAG_CBOR, &data);
    (cid, section(&cid, &data))
}

/// Goal: Kubo's export arrives block by block, is told once with the bytes of its blocks, and its root is pinned.
#[tokio::test]
async fn an_export_of_kubo() {
    let (done, events, seen) = upload(SMALL_CAR).await;
    let done = done.unwrap();
    let blocks = seen.blocks.values().next().unwrap();
    let bytes: usize = blocks.iter().map(|(_, data)| data.len()).sum();
    assert_eq!(blocks.len(), 7, "two directories, two files, one of three leaves");
    assert_eq!(seen.pins[0].0.cid, done.root);
    assert_eq!(done.root, blocks[0].0);
    match &events[..] {
        [Event::Added { name, cid, bytes: told, size, allocations }] => {
            assert_eq!((name.as_str(), cid, *told, *size), ("x.car", &done.root, Some(bytes as u64), 0));
            assert_eq!(allocations.len(), 1);
        }
        other => panic!("{other:?}"),
    }
}

/// Goal: the version 1 within a version 2 arrives as if it had come alone: with and without an index, with padding. A data
/// section that is cut off or out of place is an error, and so is a version 2 within.
#[tokio::test]
async fn version_2() {
    let (_, plain_events, plain) = upload(SMALL_CAR).await;
    let without_index = SMALL_CAR_V2[..51 + SMALL_CAR.len()].to_vec();
    for car in [SMALL_CAR_V2.to_vec(), without_index.clone(), version_2_of(SMALL_CAR, 51 + 4_000)] {
        let (done, events, seen) = upload(&car).await;
        assert_eq!(seen.pins[0].0.cid, done.unwrap().root);
        assert_eq!(seen.blocks.values().next(), plain.blocks.values().next());
        let told = |events: &[Event]| {
            events
                .iter()
                .map(|event| format!("{event:?}"))
                .map(|text| text.split("allocations").next().map(str::to_owned))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(&events), told(&plain_events));
    }
    for end in 0..without_index.len() {
        let (done, _, seen) = upload(&without_index[..end]).await;
        assert_eq!(done.unwrap_err().code, Code::InvalidArgument, "cut at {end}");
        assert!(seen.pins.is_empty());
    }
    refused(&version_2_of(SMALL_CAR, 50), "data offset").await;
    refused(&version_2_of(&[], 51), "data size").await;
    refused(&version_2_of(SMALL_CAR_V2, 51), "within").await;
    let mut shorter = without_index;
    shorter[51 - 16..51 - 8].copy_from_slice(&(SMALL_CAR.len() as u64 - 1).to_le_bytes());
    refused(&shorter, "leads out").await;
}

/// A CAR of version 2 without an index around one of version 1, which begins at `offset`.
fn version_2_of(inner: &[u8], offset: u64) -> Vec<u8> {
    let mut car = b"\x0a\xa1\x67version\x02".to_vec();
    car.extend([0; 16]);
    car.extend([offset, inner.len() as u64, 0].map(u64::to_le_bytes).concat());
    car.resize(usize::try_from(offset).unwrap().max(51), 0);
    [car, inner.to_vec()].concat()
}

/// Goal: a file root tells its UnixFS size, a dag-cbor root works, inline CIDs need no block, duplicates are dropped.
#[tokio::test]
async fn other_shapes() {
    let (leaf, leaf_section) = raw(b"leaf");
    let (_, events, _) = upload(&[header(1, &[leaf]), leaf_section.clone()].concat()).await;
    assert!(matches!(events[..], [Event::Added { size: 4, bytes: Some(4), .. }]));

    let inline = Cid::new_v1(RAW, multihash::Multihash::wrap(0, b"inline").unwrap());
    let (root, root_section) = list(&[leaf, inline]);
    let car = [header(1, &[root]), leaf_section.clone(), root_section, leaf_section].concat();
    let (done, _, seen) = upload(&car).await;
    assert_eq!(done.unwrap().root, root);
    assert_eq!(seen.blocks.values().next().unwrap().len(), 2);

    // An inline block's links count.
    let inner = serde_ipld_dagcbor::to_vec(&vec![raw(b"missing").0]).unwrap();
    let outer = Cid::new_v1(DAG_CBOR, multihash::Multihash::wrap(0, &inner).unwrap());
    let (root, root_section) = list(&[outer]);
    refused(&[header(1, &[root]), root_section].concat(), "not in the file").await;
}

/// Goal: a CAR that is cut anywhere, or changed in any byte, is never pinned (attack:CR2, CR3).
#[tokio::test]
async fn cut_or_changed_anywhere() {
    for end in 0..SMALL_CAR.len() {
        let (done, _, seen) = upload(&SMALL_CAR[..end]).await;
        assert_eq!(done.unwrap_err().code, Code::InvalidArgument, "cut at {end}");
        assert!(seen.pins.is_empty());
    }
    for at in 0..SMALL_CAR.len() {
        let mut changed = SMALL_CAR.to_vec();
        changed[at] ^= 0x21;
        let (done, _, seen) = upload(&changed).await;
        // A byte of the header that no reader needs may change; then the root is the same.
        if let Ok(done) = done {
            let (same, _, _) = upload(SMALL_CAR).await;
            assert_eq!(done.root, same.unwrap().root, "changed at {at}");
        } else {
            assert!(seen.pins.is_empty());
        }
    }
}

/// Goal: hostile and unsupported files are refused, with a reason (attack:CR1 to CR7).
#[tokio::test]
async fn refusals() {
    let (leaf, leaf_section) = raw(b"leaf");
    let (other, other_section) = raw(b"other");
    let (root, root_section) = list(&[leaf, other]);
    let with = |parts: &[&[u8]]| [&[header(1, &[root]).as_slice()], parts].concat().concat();

    refused(&[header(1, &[leaf, other]), leaf_section.clone()].concat(), "single root").await;
    refused(&[header(1, &[]), leaf_section.clone()].concat(), "single root").await;
    refused(&[header(2, &[leaf]), leaf_section.clone()].concat(), "version 2").await;
    refused(&[header(3, &[leaf]), leaf_section.clone()].concat(), "version 3").await;
    refused(&with(&[&leaf_section, &root_section]), "1 linked blocks are not in the file").await;
    refused(&with(&[&leaf_section, &other_section]), "the root").await;
    refused(&with(&[&[0]]), "length 0").await;
    refused(&with(&[&section(&leaf, b"lead")]), "another hash").await;
    refused(&with(&[&varint(1 << 40)]), "at most").await;
    refused(&with(&[&[0xff; 10]]), "63 bits").await;
    refused(&[varint(1 << 30), vec![0; 100]].concat(), "at most").await;
    refused(&frame(b"no cbor at all"), "header").await;
    let big = vec![0; MAX_BLOCK_BYTES + 1];
    refused(&with(&[&section(&cid_of(RAW, &big), &big)]), "at most").await;
    let json = cid_of(0x0129, b"{}");
    refused(&with(&[&section(&json, b"{}")]), "codec").await;
    let node = b"\x12\xff\xff\xff\xff\x0f";
    refused(&with(&[&section(&cid_of(DAG_PB, node), node)]), "block").await;
    // Nesting, and a list that claims 2^62 items.
    let deep = [vec![0x81; 100_000], vec![0x80]].concat();
    refused(&with(&[&section(&cid_of(DAG_CBOR, &deep), &deep)]), "block").await;
    let huge = [0x9b, 0x40, 0, 0, 0, 0, 0, 0, 0];
    refused(&with(&[&section(&cid_of(DAG_CBOR, &huge), &huge)]), "block").await;
}
