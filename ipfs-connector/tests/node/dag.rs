//! Blocks and DAGs for tests, different each time they are made.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use cid::Cid;
use futures::StreamExt as _;
use ipfs_connector::node::{Block, Blocks, IpfsNode, PinAdd, PinEvent, PinProgress, Result};
use ipld_core::ipld::Ipld;
use ipld_dagpb::{PbLink, PbNode};
use multihash_codetable::{Code, MultihashDigest as _};
use pinfold_common::pin::PinMode;

pub const RAW: u64 = 0x55;
pub const DAG_PB: u64 = 0x70;
pub const DAG_CBOR: u64 = 0x71;

/// Bytes that no other call returns.
pub fn unique(size: usize) -> Bytes {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut data = format!("{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)).into_bytes();
    data.extend(rand::random::<u64>().to_be_bytes());
    data.resize(size.max(data.len()), 7);
    data.into()
}

pub fn block(codec: u64, hash: Code, data: Bytes) -> Block {
    Block { cid: Cid::new_v1(codec, hash.digest(&data)), data }
}

pub fn leaf(size: usize) -> Block {
    block(RAW, Code::Sha2_256, unique(size))
}

/// A dag-pb node that links to the others by name.
pub fn dag_pb(links: &[(&str, &Block)], data: Option<&'static [u8]>) -> Block {
    let links = links
        .iter()
        .map(|(name, block)| PbLink {
            cid: block.cid,
            name: Some((*name).to_owned()),
            size: Some(block.data.len() as u64),
        })
        .collect();
    let node = PbNode { links, data: data.map(Bytes::from_static) };
    block(DAG_PB, Code::Sha2_256, node.into_bytes().into())
}

pub fn dag_cbor(value: &Ipld) -> Block {
    block(DAG_CBOR, Code::Sha2_256, serde_ipld_dagcbor::to_vec(value).unwrap().into())
}

/// The same block under its CIDv0.
pub fn v0(cid: &Cid) -> Cid {
    Cid::new_v0(*cid.hash()).unwrap()
}

/// A root over `middle` nodes over `leaves` leaves each. The root comes first, then the middle, then the leaves.
pub fn tree(middle: usize, leaves: usize) -> Vec<Block> {
    let (mut nodes, mut bottom) = (Vec::new(), Vec::new());
    for _ in 0..middle {
        let own: Vec<Block> = (0..leaves).map(|_| leaf(1000)).collect();
        let links: Vec<(&str, &Block)> = own.iter().map(|leaf| ("", leaf)).collect();
        nodes.push(dag_pb(&links, None));
        bottom.extend(own);
    }
    let links: Vec<(&str, &Block)> = nodes.iter().map(|node| ("", node)).collect();
    let mut all = vec![dag_pb(&links, None)];
    all.extend(nodes);
    all.extend(bottom);
    all
}

pub fn stream(blocks: &[Block]) -> Blocks {
    futures::stream::iter(blocks.iter().cloned().map(Ok).collect::<Vec<_>>()).boxed()
}

pub async fn put(node: &dyn IpfsNode, blocks: &[Block]) {
    let report = node.put_blocks(stream(blocks)).await.unwrap();
    assert_eq!(report.blocks, blocks.len() as u64);
}

/// Pins to the end.
pub async fn pin(node: &dyn IpfsNode, cid: Cid, mode: PinMode) -> Result<PinProgress> {
    let mut events = node.pin_add(PinAdd::new(cid, mode));
    let mut seen = PinProgress::default();
    while let Some(event) = events.next().await {
        match event? {
            PinEvent::Progress(progress) => {
                assert!(progress.blocks >= seen.blocks && progress.bytes >= seen.bytes, "progress shrinks");
                seen = progress;
            }
            PinEvent::Done(progress) => {
                assert!(events.next().await.is_none(), "nothing comes after done");
                return Ok(progress);
            }
        }
    }
    panic!("a pin ended without done and without an error");
}

pub async fn has(node: &dyn IpfsNode, block: &Block) -> bool {
    match node.get_block_local(&block.cid).await.unwrap() {
        Some(data) => {
            assert_eq!(data, block.data);
            true
        }
        None => false,
    }
}

pub async fn count_here(node: &dyn IpfsNode, blocks: &[Block]) -> usize {
    let mut count = 0;
    for block in blocks {
        count += usize::from(has(node, block).await);
    }
    count
}

/// Runs a GC to its end; the CIDs that it removed.
pub async fn gc(node: &dyn IpfsNode) -> Vec<Cid> {
    let events: Vec<_> = node.gc().collect().await;
    let mut removed = Vec::new();
    for event in events {
        match event.unwrap() {
            ipfs_connector::node::GcEvent::Removed(cid) => removed.push(cid),
            ipfs_connector::node::GcEvent::Failed(text) => panic!("gc: {text}"),
        }
    }
    removed
}
