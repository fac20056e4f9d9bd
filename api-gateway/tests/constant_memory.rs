//! A gigabyte through the adder: Kubo's CID, in memory that does not grow with the file. In a process of its own, because
//! it is the process that is measured.

#[path = "../src/adder/tests/content.rs"]
mod content;

use std::sync::Arc;
use std::time::Duration;

use api_gateway::adder::{AddContext, AddParams, Allocation, Attributes, Cluster, Input, add};
use bytes::Bytes;
use content::Content;
use futures::stream;
use pinfold_common::pin::{Pin, PinOptions, PinRequest};
use pinfold_common::{Cid, Error, PeerId, Result};
use pinfold_proto::connector::{PutBlocks, PutBlocksReply};
use pinfold_proto::types::PinInfo;
use serde::Deserialize;
use tokio::sync::mpsc;

const PIECE_BYTES: u64 = 1 << 20;
const MIN_VECTOR_BYTES: u64 = 1 << 30;
const MAX_GROWTH_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct FileVector {
    bytes: u64,
    seed: u64,
    cid_version: u32,
    raw_leaves: bool,
    cid: String,
}

/// Takes all blocks and keeps none.
struct Drain;

#[tonic::async_trait]
impl Cluster for Drain {
    async fn allocate(&self, _: &PinOptions, _: &[PeerId]) -> Result<Allocation> {
        let peers = vec![PeerId::random(), PeerId::random(), PeerId::random()];
        Ok(Allocation { peers, everywhere: false, replication_factor_min: 2 })
    }

    async fn put(&self, _: PeerId, mut batches: mpsc::Receiver<PutBlocks>) -> Result<PutBlocksReply> {
        let mut reply = PutBlocksReply::default();
        while let Some(batch) = batches.recv().await {
            reply.blocks += batch.blocks.len() as u64;
        }
        Ok(reply)
    }

    async fn status(&self, _: PeerId, _: &Cid, _: u64) -> Result<PinInfo> {
        Err(Error::internal("nothing is pinned here"))
    }

    async fn pin(&self, _: PinRequest, _: Vec<u8>) -> Result<(Pin, u64)> {
        Err(Error::rejected("nothing is pinned here"))
    }
}

/// Goal: the gigabyte vectors of tests/testdata/cids, with flat memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte() {
    let vectors: Vec<FileVector> = serde_json::from_str(include_str!("../../tests/testdata/cids/files.json")).unwrap();
    let large: Vec<FileVector> = vectors.into_iter().filter(|vector| vector.bytes >= MIN_VECTOR_BYTES).collect();
    assert_eq!(large.len(), 2);
    for vector in large {
        let before = memory("VmRSS:");
        let mut content = Content::new(vector.seed);
        let data =
            (0..vector.bytes / PIECE_BYTES).map(move |_| Input::Data(Bytes::from(content.take(PIECE_BYTES as usize))));
        let begin = [Input::File { path: "x".to_owned(), attributes: Attributes::default() }];
        let input = stream::iter(begin.into_iter().chain(data).chain([Input::EndOfFile]).map(Ok));
        let params = AddParams {
            cid_version: vector.cid_version,
            raw_leaves: Some(vector.raw_leaves),
            no_pin: true,
            ..AddParams::default()
        };
        let context =
            AddContext { cluster: Arc::new(Drain), own: PeerId::random(), stall_deadline: Duration::from_secs(30) };
        let (output, _events) = mpsc::channel(16);
        let done = add(&context, params, input, output).await.unwrap();
        assert_eq!(done.root.to_string(), vector.cid);
        let growth = memory("VmHWM:").saturating_sub(before);
        assert!(growth < MAX_GROWTH_BYTES, "memory grew by {growth} bytes");
    }
}

/// A line of this process's status, in bytes.
fn memory(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
