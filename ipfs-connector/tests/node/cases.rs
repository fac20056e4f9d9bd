//! The cases that every implementation must pass. Each makes its own data, so that they may run on one node one after
//! the other.

use std::time::Duration;

use cid::Cid;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use ipfs_connector::node::{Block, IpfsNode, NodeError, PinAdd, PinEvent, PinState};
use ipld_core::ipld;
use multihash_codetable::{Code, Multihash};
use pinfold_common::pin::PinMode;

use crate::dag::*;

/// The node under test, and another one that it can fetch from. Its pin timeout is `PIN_TIMEOUT`.
pub struct Fixture {
    pub node: Box<dyn IpfsNode>,
    pub other: Box<dyn IpfsNode>,
}

pub const PIN_TIMEOUT: Duration = Duration::from_secs(3);

type Case = for<'a> fn(&'a Fixture) -> BoxFuture<'a, ()>;

pub const CASES: &[(&str, Case)] = &[
    ("id", |f| Box::pin(id(f))),
    ("put_and_get", |f| Box::pin(put_and_get(f))),
    ("wrong_blocks_are_refused", |f| Box::pin(wrong_blocks_are_refused(f))),
    ("recursive_pin", |f| Box::pin(recursive_pin(f))),
    ("pin_fetches", |f| Box::pin(pin_fetches(f))),
    ("pin_of_every_codec", |f| Box::pin(pin_of_every_codec(f))),
    ("a_hole_is_no_pin", |f| Box::pin(a_hole_is_no_pin(f))),
    ("direct_pin", |f| Box::pin(direct_pin(f))),
    ("both_versions", |f| Box::pin(both_versions(f))),
    ("listing", |f| Box::pin(listing(f))),
    ("unpin_is_idempotent", |f| Box::pin(unpin_is_idempotent(f))),
    ("gc_keeps_what_is_pinned", |f| Box::pin(gc_keeps_what_is_pinned(f))),
    ("gc_keeps_shared_blocks", |f| Box::pin(gc_keeps_shared_blocks(f))),
    ("dropping_cancels", |f| Box::pin(dropping_cancels(f))),
    ("identity_cids", |f| Box::pin(identity_cids(f))),
    ("get_block_fetches", |f| Box::pin(get_block_fetches(f))),
    ("paths", |f| Box::pin(paths(f))),
    ("pin_update_is_a_hint", |f| Box::pin(pin_update_is_a_hint(f))),
    ("sizes", |f| Box::pin(sizes(f))),
];

async fn id(f: &Fixture) {
    let id = f.node.id().await.unwrap();
    assert_eq!(id.peer_id, f.node.id().await.unwrap().peer_id);
    assert_ne!(id.peer_id, f.other.id().await.unwrap().peer_id);
    assert!(id.agent.contains('/'), "{}", id.agent);
}

/// Blocks of different codecs and hashes in one put keep their CIDs; a block is not there before it is put.
async fn put_and_get(f: &Fixture) {
    let blocks = [
        leaf(10),
        leaf(1_000_000),
        block(RAW, Code::Sha2_512, unique(100)),
        block(RAW, Code::Blake2b256, unique(100)),
        block(RAW, Code::Sha3_256, unique(100)),
        block(RAW, Code::Blake3_256, unique(100)),
        dag_pb(&[("a", &leaf(10))], None),
        dag_cbor(&ipld!({"n": rand::random::<u32>(), "l": leaf(1).cid})),
    ];
    assert_eq!(count_here(&*f.node, &blocks).await, 0);
    let report = f.node.put_blocks(stream(&blocks)).await.unwrap();
    assert_eq!(report.blocks, blocks.len() as u64);
    assert_eq!(report.bytes, blocks.iter().map(|block| block.data.len() as u64).sum::<u64>());
    assert_eq!(count_here(&*f.node, &blocks).await, blocks.len());
    put(&*f.node, &blocks).await;
    let nothing = f.node.put_blocks(stream(&[])).await.unwrap();
    assert_eq!(nothing.blocks, 0);
    // By content, not by name.
    let renamed = Cid::new_v1(DAG_CBOR, *blocks[0].cid.hash());
    assert_eq!(f.node.get_block_local(&renamed).await.unwrap(), Some(blocks[0].data.clone()));
}

/// Data of another hash, a hash nobody knows, and a block that is too large end a put, and get nowhere.
async fn wrong_blocks_are_refused(f: &Fixture) {
    let wrong = Block { cid: leaf(10).cid, data: unique(10) };
    let too_large = leaf(ipfs_connector::node::MAX_BLOCK_BYTES + 1);
    let unknown = Block { cid: Cid::new_v1(RAW, Multihash::wrap(0x7012, &[1; 32]).unwrap()), data: unique(10) };
    for bad in [wrong, too_large, unknown] {
        let error = f.node.put_blocks(stream(&[leaf(10), bad.clone()])).await.unwrap_err();
        assert!(matches!(error, NodeError::Refused(_)), "{error:?}");
        if bad.cid.hash().code() == 0x12 {
            assert_eq!(f.node.get_block_local(&bad.cid).await.unwrap(), None);
        }
    }
    let broken = futures::stream::iter([Ok(leaf(10)), Err(NodeError::Other("the client went away".into()))]).boxed();
    let error = f.node.put_blocks(broken).await.unwrap_err();
    assert_eq!(error, NodeError::Other("the client went away".into()));
}

/// A DAG that is here is pinned, and again at once.
async fn recursive_pin(f: &Fixture) {
    let blocks = tree(3, 4);
    put(&*f.node, &blocks).await;
    let root = blocks[0].cid;
    assert_eq!(f.node.pin_state(&root).await.unwrap(), PinState::NotPinned);
    let done = pin(&*f.node, root, PinMode::Recursive).await.unwrap();
    assert_eq!(done.blocks, 16);
    assert_eq!(f.node.pin_state(&root).await.unwrap(), PinState::Recursive);
    assert_eq!(f.node.pin_state(&blocks[1].cid).await.unwrap(), PinState::NotPinned, "indirect is not pinned");
    pin(&*f.node, root, PinMode::Recursive).await.unwrap();
}

/// What is missing comes from the other node, and is here when the pin is done.
async fn pin_fetches(f: &Fixture) {
    let blocks = tree(5, 50);
    put(&*f.other, &blocks).await;
    pin(&*f.other, blocks[0].cid, PinMode::Recursive).await.unwrap();
    put(&*f.node, &blocks[100..150]).await;
    let done = pin(&*f.node, blocks[0].cid, PinMode::Recursive).await.unwrap();
    assert_eq!(done.blocks, blocks.len() as u64);
    assert_eq!(count_here(&*f.node, &blocks).await, blocks.len());
}

/// Links of dag-cbor and dag-pb, across each other, also of a block that is inside its CID.
async fn pin_of_every_codec(f: &Fixture) {
    let leaves: Vec<Block> = (0..4).map(|_| leaf(100)).collect();
    let pb = dag_pb(&[("x", &leaves[0]), ("y", &leaves[1])], None);
    let inline = serde_ipld_dagcbor::to_vec(&ipld!([leaves[3].cid])).unwrap();
    let inline = Cid::new_v1(DAG_CBOR, Multihash::wrap(0, &inline).unwrap());
    let root = dag_cbor(&ipld!({"list": [leaves[2].cid, {"deep": pb.cid}], "inline": inline}));
    let mut all = leaves.clone();
    all.extend([pb, root.clone()]);
    put(&*f.other, &all).await;
    pin(&*f.node, root.cid, PinMode::Recursive).await.unwrap();
    assert_eq!(count_here(&*f.node, &all).await, all.len());
}

/// measured.md B, trap 3: a recursive pin with a block missing everywhere fails and is not there afterwards; what came
/// stays for the next attempt, and the next attempt succeeds when the block is there.
async fn a_hole_is_no_pin(f: &Fixture) {
    let blocks = tree(2, 5);
    let (last, rest) = blocks.split_last().unwrap();
    put(&*f.node, rest).await;
    let root = blocks[0].cid;
    let error = pin(&*f.node, root, PinMode::Recursive).await.unwrap_err();
    assert!(matches!(error, NodeError::NoProviders(_) | NodeError::Stalled(_)), "{error:?}");
    assert_eq!(f.node.pin_state(&root).await.unwrap(), PinState::NotPinned);
    assert!(!all_pins(f, PinMode::Recursive).await.contains(&root));
    put(&*f.node, std::slice::from_ref(last)).await;
    pin(&*f.node, root, PinMode::Recursive).await.unwrap();
    // With nothing of it anywhere it is said that nobody has it.
    let error = pin(&*f.node, tree(1, 1)[0].cid, PinMode::Recursive).await.unwrap_err();
    assert!(matches!(error, NodeError::NoProviders(_)), "{error:?}");
}

/// A direct pin needs and fetches one block, becomes recursive, and not direct again.
async fn direct_pin(f: &Fixture) {
    let blocks = tree(1, 3);
    put(&*f.other, &blocks).await;
    let root = blocks[0].cid;
    pin(&*f.node, root, PinMode::Direct).await.unwrap();
    assert_eq!(f.node.pin_state(&root).await.unwrap(), PinState::Direct);
    assert_eq!(count_here(&*f.node, &blocks).await, 1);
    let removed = gc(&*f.node).await;
    assert!(!removed.iter().any(|cid| cid.hash() == root.hash()));
    assert!(has(&*f.node, &blocks[0]).await);
    pin(&*f.node, root, PinMode::Recursive).await.unwrap();
    assert_eq!(f.node.pin_state(&root).await.unwrap(), PinState::Recursive);
    assert_eq!(count_here(&*f.node, &blocks).await, blocks.len());
    let error = pin(&*f.node, root, PinMode::Direct).await.unwrap_err();
    assert!(matches!(error, NodeError::Refused(_)), "{error:?}");
}

/// v0 and v1 of one block are two pins.
async fn both_versions(f: &Fixture) {
    let blocks = tree(1, 2);
    put(&*f.node, &blocks).await;
    let (one, zero) = (blocks[0].cid, v0(&blocks[0].cid));
    pin(&*f.node, zero, PinMode::Recursive).await.unwrap();
    assert_eq!(f.node.pin_state(&zero).await.unwrap(), PinState::Recursive);
    assert_eq!(f.node.pin_state(&one).await.unwrap(), PinState::NotPinned);
    pin(&*f.node, one, PinMode::Direct).await.unwrap();
    assert_eq!(f.node.pin_state(&one).await.unwrap(), PinState::Direct);
    assert!(all_pins(f, PinMode::Recursive).await.contains(&zero));
    assert!(all_pins(f, PinMode::Direct).await.contains(&one));
    f.node.pin_rm(&zero).await.unwrap();
    assert_eq!(f.node.pin_state(&one).await.unwrap(), PinState::Direct);
}

async fn all_pins(f: &Fixture, mode: PinMode) -> Vec<Cid> {
    f.node
        .pin_ls(mode)
        .map(|pin| {
            let (cid, listed) = pin.unwrap();
            assert_eq!(listed, mode);
            cid
        })
        .collect()
        .await
}

/// Each pin is in the list of its mode, once, and not in the other.
async fn listing(f: &Fixture) {
    let leaves: Vec<Block> = (0..20).map(|_| leaf(50)).collect();
    put(&*f.node, &leaves).await;
    for (at, leaf) in leaves.iter().enumerate() {
        let mode = if at % 2 == 0 { PinMode::Recursive } else { PinMode::Direct };
        pin(&*f.node, leaf.cid, mode).await.unwrap();
    }
    let (recursive, direct) = (all_pins(f, PinMode::Recursive).await, all_pins(f, PinMode::Direct).await);
    for (at, leaf) in leaves.iter().enumerate() {
        let count = |list: &[Cid]| list.iter().filter(|cid| **cid == leaf.cid).count();
        assert_eq!((count(&recursive), count(&direct)), if at % 2 == 0 { (1, 0) } else { (0, 1) });
    }
}

/// Either mode can be removed, and what is not pinned too.
async fn unpin_is_idempotent(f: &Fixture) {
    let blocks = tree(1, 1);
    put(&*f.node, &blocks).await;
    let root = blocks[0].cid;
    f.node.pin_rm(&root).await.unwrap();
    for mode in [PinMode::Recursive, PinMode::Direct] {
        pin(&*f.node, root, mode).await.unwrap();
        f.node.pin_rm(&root).await.unwrap();
        f.node.pin_rm(&root).await.unwrap();
        assert_eq!(f.node.pin_state(&root).await.unwrap(), PinState::NotPinned);
    }
    // Indirectly pinned is not pinned either.
    pin(&*f.node, root, PinMode::Recursive).await.unwrap();
    f.node.pin_rm(&blocks[1].cid).await.unwrap();
    assert_eq!(f.node.pin_state(&root).await.unwrap(), PinState::Recursive);
}

/// measured.md B, trap 1: GC works by multihash. One DAG pinned as v0 and as v1 stays whole as long as one of them is
/// pinned; then it goes, and nothing else does.
async fn gc_keeps_what_is_pinned(f: &Fixture) {
    let (blocks, garbage) = (tree(2, 10), tree(1, 5));
    put(&*f.node, &blocks).await;
    let (one, zero) = (blocks[0].cid, v0(&blocks[0].cid));
    for cid in [one, zero] {
        pin(&*f.node, cid, PinMode::Recursive).await.unwrap();
    }
    put(&*f.node, &garbage).await;
    pin(&*f.node, garbage[0].cid, PinMode::Recursive).await.unwrap();
    f.node.pin_rm(&garbage[0].cid).await.unwrap();

    let removed = gc(&*f.node).await;
    assert_eq!(count_here(&*f.node, &garbage).await, 0);
    for block in &garbage {
        assert_eq!(removed.iter().filter(|cid| cid.hash() == block.cid.hash()).count(), 1);
    }
    assert_eq!(count_here(&*f.node, &blocks).await, blocks.len());
    f.node.pin_rm(&one).await.unwrap();
    gc(&*f.node).await;
    assert_eq!(count_here(&*f.node, &blocks).await, blocks.len(), "the pin of v0 is left");
    f.node.pin_rm(&zero).await.unwrap();
    gc(&*f.node).await;
    assert_eq!(count_here(&*f.node, &blocks).await, 0);
    assert_eq!(gc(&*f.node).await, []);
}

/// A block that two DAGs share stays with the one that is left.
async fn gc_keeps_shared_blocks(f: &Fixture) {
    let (shared, alone) = (leaf(100), leaf(100));
    let first = dag_pb(&[("s", &shared), ("a", &alone)], None);
    let second = dag_cbor(&ipld!([shared.cid]));
    put(&*f.node, &[shared.clone(), alone.clone(), first.clone(), second.clone()]).await;
    pin(&*f.node, first.cid, PinMode::Recursive).await.unwrap();
    pin(&*f.node, second.cid, PinMode::Recursive).await.unwrap();
    f.node.pin_rm(&first.cid).await.unwrap();
    gc(&*f.node).await;
    assert!(has(&*f.node, &shared).await && has(&*f.node, &second).await);
    assert!(!has(&*f.node, &alone).await && !has(&*f.node, &first).await);
}

/// A dropped pin leaves no pin and nothing in the way of the next one.
async fn dropping_cancels(f: &Fixture) {
    let blocks = tree(1, 2);
    let root = blocks[0].cid;
    for _ in 0..5 {
        let mut events = f.node.pin_add(PinAdd::new(root, PinMode::Recursive));
        let first = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
        assert!(!matches!(first, Ok(Some(Ok(PinEvent::Done(_))))));
        drop(events);
    }
    assert_eq!(f.node.pin_state(&root).await.unwrap(), PinState::NotPinned);
    put(&*f.other, &blocks).await;
    pin(&*f.node, root, PinMode::Recursive).await.unwrap();
}

/// A CID that holds its data needs no block, and can be pinned all the same.
async fn identity_cids(f: &Fixture) {
    let data = unique(30);
    let cid = Cid::new_v1(RAW, Multihash::wrap(0, &data).unwrap());
    assert_eq!(f.node.get_block_local(&cid).await.unwrap(), Some(data.clone()));
    assert_eq!(f.node.get_block(&cid, Duration::from_secs(5)).await.unwrap(), data);
    f.node.put_blocks(stream(&[Block { cid, data }, leaf(10)])).await.unwrap();
    for mode in [PinMode::Direct, PinMode::Recursive] {
        pin(&*f.node, cid, mode).await.unwrap();
        assert!(f.node.pin_state(&cid).await.unwrap().is(mode));
        f.node.pin_rm(&cid).await.unwrap();
    }
}

/// `get_block_local` never fetches, `get_block` does, and says so when nobody has it.
async fn get_block_fetches(f: &Fixture) {
    let there = leaf(5000);
    put(&*f.other, std::slice::from_ref(&there)).await;
    assert_eq!(f.node.get_block_local(&there.cid).await.unwrap(), None);
    assert_eq!(f.node.get_block(&there.cid, Duration::from_secs(10)).await.unwrap(), there.data);
    let error = f.node.get_block(&leaf(10).cid, Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, NodeError::NoProviders(_)), "{error:?}");
}

/// Paths through directories and maps; what is not there is `NotFound`.
async fn paths(f: &Fixture) {
    const DIRECTORY: &[u8] = &[0x08, 0x01];
    let file = leaf(100);
    let inner = dag_pb(&[("file", &file)], Some(DIRECTORY));
    let outer = dag_pb(&[("inner", &inner)], Some(DIRECTORY));
    put(&*f.node, &[file.clone(), inner.clone(), outer.clone()]).await;
    let root = outer.cid;
    for (path, leads_to) in [
        (root.to_string(), root),
        (format!("/ipfs/{root}"), root),
        (format!("/ipfs/{root}/inner"), inner.cid),
        (format!("/ipfs/{root}/inner/file"), file.cid),
        (format!("/ipfs/{}/inner/file", v0(&root)), file.cid),
    ] {
        assert_eq!(f.node.resolve(&path).await.unwrap(), leads_to, "{path}");
    }
    let error = f.node.resolve(&format!("/ipfs/{root}/inner/nothing")).await.unwrap_err();
    assert!(matches!(error, NodeError::NotFound(_)), "{error:?}");
    assert!(f.node.resolve("/ipfs/nonsense").await.is_err());
    assert!(f.node.resolve("/ipns/example.invalid").await.is_err());
}

/// A pin with `pin_update` is pinned, whether that one is pinned or not, and leaves that one alone.
async fn pin_update_is_a_hint(f: &Fixture) {
    let old = tree(2, 3);
    let extra = leaf(100);
    let new = dag_pb(&[("old", &old[0]), ("extra", &extra)], None);
    put(&*f.node, &old).await;
    put(&*f.node, &[extra, new.clone()]).await;
    let request = || PinAdd { pin_update: Some(old[0].cid), ..PinAdd::new(new.cid, PinMode::Recursive) };
    for is_old_pinned in [false, true] {
        if is_old_pinned {
            pin(&*f.node, old[0].cid, PinMode::Recursive).await.unwrap();
        }
        let events: Vec<_> = f.node.pin_add(request()).collect().await;
        assert!(matches!(events.last(), Some(Ok(PinEvent::Done(_)))), "{events:?}");
        assert_eq!(f.node.pin_state(&new.cid).await.unwrap(), PinState::Recursive);
        assert_eq!(f.node.pin_state(&old[0].cid).await.unwrap().is(PinMode::Recursive), is_old_pinned);
        f.node.pin_rm(&new.cid).await.unwrap();
    }
}

/// Size goes up with a put and there is room left.
async fn sizes(f: &Fixture) {
    let before = f.node.repo_stat().await.unwrap();
    put(&*f.node, &[leaf(500_000), leaf(500_000)]).await;
    let after = f.node.repo_stat().await.unwrap();
    assert!(after.size_bytes >= before.size_bytes + 1_000_000, "{before:?} {after:?}");
    assert!(after.free_bytes() > 0 && after.storage_max_bytes == before.storage_max_bytes);
    if let (Some(before), Some(after)) = (before.blocks, after.blocks) {
        assert_eq!(after, before + 2);
    }
    assert_eq!(f.node.swarm_connect(&[]).await, Ok(()));
}
