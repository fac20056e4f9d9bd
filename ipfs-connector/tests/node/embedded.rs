//! The embedded node: the common cases with a second node as its only source, and what only it promises.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use ipfs_connector::node::embedded::exchange::{BlockExchange, Want};
use ipfs_connector::node::embedded::{EmbeddedConfig, EmbeddedNode};
use ipfs_connector::node::verify::Verified;
use ipfs_connector::node::{GcEvent, IpfsNode, NodeError, PinAdd, PinState, Result};
use pinfold_common::pin::PinMode;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::cases::{CASES, Fixture, PIN_TIMEOUT};
use crate::dag::*;

/// Another node in the same process, in the place of a sibling.
pub struct Beside {
    pub node: EmbeddedNode,
    /// Blocks that are still given out; then requests wait.
    pub allowed: Arc<Semaphore>,
    pub asked: Arc<AtomicUsize>,
}

impl Beside {
    pub fn new(node: EmbeddedNode) -> Beside {
        Beside { node, allowed: Arc::new(Semaphore::new(1_000_000)), asked: Arc::default() }
    }
}

#[async_trait]
impl BlockExchange for Beside {
    fn name(&self) -> &'static str {
        "beside"
    }

    async fn fetch(&self, want: Want) -> Result<Option<Verified>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let data = self.node.get_block_local(&want.cid).await?;
        let Some(data) = data else { return Ok(None) };
        self.allowed.acquire().await.unwrap().forget();
        Verified::check(want.cid, data).map(Some)
    }
}

pub fn config(folder: &TempDir) -> EmbeddedConfig {
    EmbeddedConfig {
        storage_max_bytes: Some(1_000_000_000),
        pin_timeout: PIN_TIMEOUT,
        ..EmbeddedConfig::new(folder.path().join("ipfs"))
    }
}

pub async fn open(folder: &TempDir, exchanges: Vec<Arc<dyn BlockExchange>>) -> EmbeddedNode {
    EmbeddedNode::open(config(folder), exchanges).await.unwrap()
}

struct Pair {
    node: EmbeddedNode,
    other: EmbeddedNode,
    allowed: Arc<Semaphore>,
    asked: Arc<AtomicUsize>,
    folders: [TempDir; 2],
}

async fn pair() -> Pair {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let other = open(&folders[1], Vec::new()).await;
    let beside = Beside::new(other.clone());
    let (allowed, asked) = (beside.allowed.clone(), beside.asked.clone());
    let node = open(&folders[0], vec![Arc::new(beside)]).await;
    Pair { node, other, allowed, asked, folders }
}

/// Goal: the embedded node passes every common case.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn common_cases() {
    for (name, case) in CASES {
        let pair = pair().await;
        let fixture = Fixture { node: Box::new(pair.node), other: Box::new(pair.other) };
        println!("embedded: {name}");
        case(&fixture).await;
        drop(pair.folders);
    }
}

/// Goal: a put beyond the limit is `DiskFull`, stores nothing more, and there is room again after a GC.
#[tokio::test]
async fn the_limit_holds() {
    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig { storage_max_bytes: Some(250_000), hold: Duration::ZERO, ..self::config(&folder) };
    let node = EmbeddedNode::open(config, Vec::new()).await.unwrap();
    let fits = [leaf(100_000), leaf(100_000)];
    put(&node, &fits).await;
    let error = node.put_blocks(stream(&[leaf(100_000)])).await.unwrap_err();
    assert!(matches!(error, NodeError::DiskFull(_)), "{error:?}");
    assert_eq!(node.repo_stat().await.unwrap().size_bytes, 200_000);
    put(&node, &fits).await;
    assert_eq!(gc(&node).await.len(), 2);
    assert_eq!(node.repo_stat().await.unwrap().size_bytes, 0);
    put(&node, &[leaf(100_000)]).await;
}

/// Goal: a pin that does not fit says so.
#[tokio::test]
async fn a_pin_beyond_the_limit() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let other = open(&folders[1], Vec::new()).await;
    let config = EmbeddedConfig { storage_max_bytes: Some(5_000), ..config(&folders[0]) };
    let node = EmbeddedNode::open(config, vec![Arc::new(Beside::new(other.clone()))]).await.unwrap();
    let blocks = tree(1, 10);
    put(&other, &blocks).await;
    let error = pin(&node, blocks[0].cid, PinMode::Recursive).await.unwrap_err();
    assert!(matches!(error, NodeError::DiskFull(_)), "{error:?}");
    assert!(node.repo_stat().await.unwrap().size_bytes <= 5_000);
}

/// Goal: what was put and not pinned yet survives a GC as long as it is held, and no longer.
#[tokio::test]
async fn puts_are_held() {
    let folder = tempfile::tempdir().unwrap();
    let node = open(&folder, Vec::new()).await;
    let held = tree(1, 3);
    put(&node, &held).await;
    assert_eq!(gc(&node).await, []);
    assert_eq!(count_here(&node, &held).await, held.len());
    // A pin ends the hold: unpinned, it is garbage at once.
    pin(&node, held[0].cid, PinMode::Recursive).await.unwrap();
    node.pin_rm(&held[0].cid).await.unwrap();
    assert_eq!(gc(&node).await.len(), held.len());
}

/// Goal: measured.md B, trap 7. A GC that begins and runs while a pin is fetching takes nothing from it, neither what
/// the pin found here nor what it fetched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gc_beside_a_running_pin() {
    let pair = pair().await;
    let blocks = tree(4, 25);
    put(&pair.other, &blocks).await;
    // Half of the leaves are here, and nothing protects them but the pin.
    put(&pair.node, &blocks[50..]).await;
    let first = leaf(10);
    put(&pair.node, std::slice::from_ref(&first)).await;
    pair.allowed.forget_permits(1_000_000);
    let mut events = pair.node.pin_add(PinAdd::new(blocks[0].cid, PinMode::Recursive));
    for _ in 0..60 {
        gc(&pair.node).await;
        pair.allowed.add_permits(1);
    }
    pair.allowed.add_permits(1000);
    while let Some(event) = events.next().await {
        event.unwrap();
        gc(&pair.node).await;
    }
    assert_eq!(pair.node.pin_state(&blocks[0].cid).await.unwrap(), PinState::Recursive);
    gc(&pair.node).await;
    assert_eq!(count_here(&pair.node, &blocks).await, blocks.len());
}

/// Goal: seed:D3. GC after GC while adds and pins go on side by side: nothing that was put is taken before its pin, and
/// nothing of a pin after it; what is unpinned goes, also while the others run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_d3_gc_beside_adds_and_pins() {
    const ADDERS: usize = 3;
    const ADDS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let node = Arc::new(open(&folder, Vec::new()).await);
    let adders: Vec<_> = (0..ADDERS)
        .map(|_| {
            let node = Arc::clone(&node);
            tokio::spawn(async move {
                let mut kept = Vec::new();
                for nth in 0..ADDS {
                    let blocks = tree(2, 10);
                    put(&*node, &blocks).await;
                    pin(&*node, blocks[0].cid, PinMode::Recursive).await.unwrap();
                    match nth % 2 {
                        0 => kept.push(blocks),
                        _ => node.pin_rm(&blocks[0].cid).await.unwrap(),
                    }
                }
                kept
            })
        })
        .collect();
    let mut collections = 0;
    while !adders.iter().all(tokio::task::JoinHandle::is_finished) {
        gc(&*node).await;
        collections += 1;
    }
    assert!(collections > 1, "the GC ran beside them");
    gc(&*node).await;
    let mut left = 0;
    for adder in adders {
        for blocks in adder.await.unwrap() {
            assert_eq!(count_here(&*node, &blocks).await, blocks.len());
            assert_eq!(node.pin_state(&blocks[0].cid).await.unwrap(), PinState::Recursive);
            left += blocks.len() as u64;
        }
    }
    assert_eq!(node.repo_stat().await.unwrap().blocks, Some(left), "what nobody pins any more is gone");
}

/// Goal: a pin that is broken off keeps what it fetched through a GC, and the next attempt asks only for the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_off_pin_goes_on() {
    let pair = pair().await;
    let blocks = tree(4, 25);
    put(&pair.other, &blocks).await;
    pair.allowed.forget_permits(1_000_000);
    pair.allowed.add_permits(40);
    let events = pair.node.pin_add(PinAdd::new(blocks[0].cid, PinMode::Recursive));
    while pair.node.repo_stat().await.unwrap().blocks != Some(40) {
        tokio::task::yield_now().await;
    }
    drop(events);
    gc(&pair.node).await;
    assert_eq!(count_here(&pair.node, &blocks).await, 40);
    pair.allowed.add_permits(1000);
    pair.asked.store(0, Ordering::SeqCst);
    pin(&pair.node, blocks[0].cid, PinMode::Recursive).await.unwrap();
    assert_eq!(pair.asked.load(Ordering::SeqCst), blocks.len() - 40);
    // Given up for good, it is garbage.
    pair.node.pin_rm(&blocks[0].cid).await.unwrap();
    assert_eq!(gc(&pair.node).await.len(), blocks.len());
}

/// Goal: a pin whose source has stopped in the middle ends with `Stalled`, and cancelled requests are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_pin() {
    let pair = pair().await;
    let blocks = tree(1, 20);
    put(&pair.other, &blocks).await;
    pair.allowed.forget_permits(1_000_000);
    pair.allowed.add_permits(10);
    let error = pin(&pair.node, blocks[0].cid, PinMode::Recursive).await.unwrap_err();
    assert!(
        matches!(&error, NodeError::Stalled(text) if text.contains("after 10 blocks"))
            || matches!(&error, NodeError::NoProviders(text) if text.contains("no answer within")),
        "{error:?}"
    );
}

/// Goal: a DAG with a codec or hash that is not known is refused as such, and not called pinned.
#[tokio::test]
async fn unknown_codecs_and_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let node = open(&folder, Vec::new()).await;
    let git = block(0x78, multihash_codetable::Code::Sha2_256, unique(50));
    let root = dag_cbor(&ipld_core::ipld!([git.cid]));
    put(&node, &[git, root.clone()]).await;
    let error = pin(&node, root.cid, PinMode::Recursive).await.unwrap_err();
    assert!(matches!(&error, NodeError::Refused(text) if text.contains("unknown codec 0x78")), "{error:?}");
    let unknown = cid::Cid::new_v1(RAW, multihash_codetable::Multihash::wrap(0x7012, &[1; 32]).unwrap());
    let root = dag_cbor(&ipld_core::ipld!([unknown]));
    put(&node, std::slice::from_ref(&root)).await;
    let error = pin(&node, root.cid, PinMode::Recursive).await.unwrap_err();
    assert!(matches!(&error, NodeError::Refused(text) if text.contains("unknown hash function 0x7012")), "{error:?}");
    assert_eq!(node.pin_state(&root.cid).await.unwrap(), PinState::NotPinned);
}

/// Goal: one GC at a time, and a GC whose reader went away leaves the way free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gc_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig { hold: Duration::ZERO, ..config(&folder) };
    let node = EmbeddedNode::open(config, Vec::new()).await.unwrap();
    let leaves: Vec<_> = (0..500).map(|_| leaf(20)).collect();
    put(&node, &leaves).await;
    // Its events are not read, so it waits in the middle.
    let mut first = node.gc();
    assert!(matches!(first.next().await, Some(Ok(GcEvent::Removed(_)))));
    let second: Vec<_> = node.gc().collect().await;
    assert!(matches!(second.as_slice(), [Err(NodeError::Refused(_))]), "{second:?}");
    drop(first);
    loop {
        let events: Vec<_> = node.gc().collect().await;
        if !matches!(events.as_slice(), [Err(NodeError::Refused(_))]) {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(node.repo_stat().await.unwrap().blocks, Some(0));
    assert_eq!(count_here(&node, &leaves).await, 0);
}

/// Goal: a GC says which block of a pinned DAG has got lost, and removes nothing that it cannot decide about.
#[tokio::test]
async fn gc_tells_of_lost_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let node = open(&folder, Vec::new()).await;
    let blocks = tree(2, 2);
    put(&node, &blocks).await;
    pin(&node, blocks[0].cid, PinMode::Recursive).await.unwrap();
    std::fs::remove_file(crate::crash::file_of(&folder, &blocks[1])).unwrap();
    let events: Vec<_> = node.gc().map(Result::unwrap).collect().await;
    assert!(
        events.iter().any(|event| matches!(event, GcEvent::Failed(text) if text.contains("is not on disk"))),
        "{events:?}"
    );
    assert!(has(&node, &blocks[0]).await && has(&node, &blocks[2]).await);
}

/// Goal: a wide sharded directory is resolved through its shards.
#[tokio::test]
async fn sharded_directories() {
    // UnixFS: type HAMT shard, no bits, murmur3, fan-out 256.
    const SHARD: &[u8] = &[0x08, 0x05, 0x12, 0x00, 0x28, 0x22, 0x30, 0x80, 0x02];
    let folder = tempfile::tempdir().unwrap();
    let node = open(&folder, Vec::new()).await;
    let (first, second) = (leaf(10), leaf(10));
    let shard = dag_pb(&[("1Ddeep", &first)], Some(SHARD));
    let root = dag_pb(&[("00", &shard), ("A4flat", &second)], Some(SHARD));
    put(&node, &[shard, root.clone()]).await;
    assert_eq!(node.resolve(&format!("/ipfs/{}/deep", root.cid)).await.unwrap(), first.cid);
    assert_eq!(node.resolve(&format!("/ipfs/{}/flat", root.cid)).await.unwrap(), second.cid);
    let error = node.resolve(&format!("/ipfs/{}/lat", root.cid)).await.unwrap_err();
    assert!(matches!(error, NodeError::NotFound(_)), "{error:?}");
    let cbor = dag_cbor(&ipld_core::ipld!({"a": [1, {"b": root.cid}]}));
    put(&node, std::slice::from_ref(&cbor)).await;
    assert_eq!(node.resolve(&format!("/ipfs/{}/a/1/b/deep", cbor.cid)).await.unwrap(), first.cid);
    assert!(matches!(node.resolve(&format!("/ipfs/{}/a/1", cbor.cid)).await, Err(NodeError::NotFound(_))));
}

/// Goal: a large DAG is pinned, listed and collected in seconds, its counters exact.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_blocks() {
    let pair = pair().await;
    let blocks = tree(100, 100);
    let start = std::time::Instant::now();
    put(&pair.other, &blocks).await;
    println!("embedded: {} blocks put in {:?}", blocks.len(), start.elapsed());
    let start = std::time::Instant::now();
    let done = pin(&pair.node, blocks[0].cid, PinMode::Recursive).await.unwrap();
    println!("embedded: {} blocks fetched and pinned in {:?}", done.blocks, start.elapsed());
    assert_eq!(done.blocks, blocks.len() as u64);
    assert_eq!(pair.node.repo_stat().await.unwrap().blocks, Some(blocks.len() as u64));
    let start = std::time::Instant::now();
    assert_eq!(gc(&pair.node).await, []);
    println!("embedded: gc that keeps all in {:?}", start.elapsed());
    pair.node.pin_rm(&blocks[0].cid).await.unwrap();
    let start = std::time::Instant::now();
    assert_eq!(gc(&pair.node).await.len(), blocks.len());
    println!("embedded: gc that removes all in {:?}", start.elapsed());
    let stat = pair.node.repo_stat().await.unwrap();
    assert_eq!((stat.size_bytes, stat.blocks), (0, Some(0)));
}
