//! What storing blocks costs, for people who change it.

use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use multihash_codetable::{Code, MultihashDigest as _};
use pinfold_common::Cid;

use crate::node::embedded::{EmbeddedConfig, EmbeddedNode};
use crate::node::{Block, IpfsNode as _};

const BLOCKS: u64 = 2048;
const BLOCK_BYTES: usize = 256 * 1024;
const ROUNDS: u64 = 3;

/// A block like no other.
fn block(number: u64) -> Block {
    let mut data = vec![0x5a; BLOCK_BYTES];
    data[..8].copy_from_slice(&number.to_be_bytes());
    Block { cid: Cid::new_v1(0x55, Code::Sha2_256.digest(&data)), data: Bytes::from(data) }
}

/// Goal: how fast an embedded node checks blocks and makes them durable, as an upload brings them. Hashing and the kernel do
/// most of it, so that a debug build says something too. Run with `--ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn blocks_into_an_embedded_node() {
    let folder = tempfile::tempdir().unwrap();
    let node = EmbeddedNode::open(EmbeddedConfig::new(folder.path().join("ipfs")), Vec::new()).await.unwrap();
    for round in 0..ROUNDS {
        let blocks: Vec<_> = (round * BLOCKS..(round + 1) * BLOCKS).map(|number| Ok(block(number))).collect();
        let began = Instant::now();
        let report = node.put_blocks(stream::iter(blocks).boxed()).await.unwrap();
        let rate = report.bytes as f64 / 1e6 / began.elapsed().as_secs_f64();
        eprintln!("{} blocks of {} KiB: {rate:.0} MB/s", report.blocks, BLOCK_BYTES / 1024);
    }
    node.close().await.unwrap();
}
