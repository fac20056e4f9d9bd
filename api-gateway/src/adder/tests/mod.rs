//! Tests of whole uploads, against a cluster in memory and against block services over TLS.

mod car;
mod confirm;
mod content;
mod flow;
mod golden;
mod over_tls;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use parking_lot::Mutex;
use pinfold_common::ids::cid_from_bytes;
use pinfold_common::pin::{Pin, PinOptions, PinRequest};
use pinfold_common::time::Timestamp;
use pinfold_common::{Cid, Error, PeerId, Result};
use pinfold_proto::connector::{PutBlocks, PutBlocksReply};
use pinfold_proto::types::PinInfo;
use tokio::sync::mpsc;

use super::*;

/// A cluster that takes everything and remembers what the tests ask for.
pub(super) struct FakeCluster {
    pub allocation: Allocation,
    /// Peers that refuse all blocks.
    pub broken: Vec<PeerId>,
    /// Peers that never take any.
    pub stuck: Vec<PeerId>,
    /// Peers whose nodes remove blocks by themselves, and what their trackers say of the root, in turn; the last for ever.
    pub unheld: HashMap<PeerId, Vec<PinInfo>>,
    pub refuses_pins: bool,
    pub keep_blocks: bool,
    pub seen: Mutex<Seen>,
}

#[derive(Default)]
pub(super) struct Seen {
    pub allocate_calls: usize,
    /// By peer, in order.
    pub blocks: HashMap<PeerId, Vec<(Cid, Bytes)>>,
    /// Peers whose stream ended as it should.
    pub whole: Vec<PeerId>,
    pub pins: Vec<(PinRequest, Vec<u8>)>,
    /// Questions for the status of the root, by peer.
    pub asked: HashMap<PeerId, usize>,
}

impl FakeCluster {
    pub fn new(peers: &[PeerId], min: i32) -> FakeCluster {
        FakeCluster {
            allocation: Allocation { peers: peers.to_vec(), everywhere: min < 0, replication_factor_min: min },
            broken: Vec::new(),
            stuck: Vec::new(),
            unheld: HashMap::new(),
            refuses_pins: false,
            keep_blocks: true,
            seen: Mutex::default(),
        }
    }
}

#[tonic::async_trait]
impl Cluster for FakeCluster {
    async fn allocate(&self, _: &PinOptions, _: &[PeerId]) -> Result<Allocation> {
        self.seen.lock().allocate_calls += 1;
        Ok(self.allocation.clone())
    }

    async fn put(&self, peer: PeerId, mut batches: mpsc::Receiver<PutBlocks>) -> Result<PutBlocksReply> {
        if self.stuck.contains(&peer) {
            std::future::pending::<()>().await;
        }
        let mut reply = PutBlocksReply { unheld: self.unheld.contains_key(&peer), ..PutBlocksReply::default() };
        while let Some(batch) = batches.recv().await {
            if self.broken.contains(&peer) {
                return Err(Error::internal("the disk is broken"));
            }
            for block in batch.blocks {
                reply.blocks += 1;
                reply.bytes += block.data.len() as u64;
                if self.keep_blocks {
                    let cid = cid_from_bytes(&block.cid)?;
                    self.seen.lock().blocks.entry(peer).or_default().push((cid, block.data));
                }
            }
        }
        self.seen.lock().whole.push(peer);
        Ok(reply)
    }

    async fn status(&self, peer: PeerId, _: &Cid, min_index: u64) -> Result<PinInfo> {
        assert_eq!(min_index, 7, "the index of the pin");
        let mut seen = self.seen.lock();
        let asked = seen.asked.entry(peer).or_default();
        *asked += 1;
        let answers = &self.unheld[&peer];
        Ok(answers[(*asked - 1).min(answers.len() - 1)].clone())
    }

    async fn pin(&self, request: PinRequest, request_key: Vec<u8>) -> Result<(Pin, u64)> {
        if self.refuses_pins {
            return Err(Error::unavailable("no majority"));
        }
        self.seen.lock().pins.push((request.clone(), request_key));
        Ok((pin_of(request), 7))
    }
}

pub(super) fn pin_of(request: PinRequest) -> Pin {
    Pin {
        cid: request.cid,
        kind: request.kind,
        max_depth: request.max_depth,
        options: request.options,
        allocations: request.allocations,
        leaving: Vec::new(),
        reference: None,
        timestamp: Timestamp::default(),
        revision: 7,
    }
}

/// Runs an upload and collects its events.
pub(super) async fn run(
    cluster: Arc<dyn Cluster>,
    own: PeerId,
    params: AddParams,
    input: Vec<Result<Input>>,
) -> (Result<Done>, Vec<Event>) {
    let context = AddContext { cluster, own, stall_deadline: Duration::from_secs(30) };
    let (output, mut events) = mpsc::channel(16);
    let collect = async {
        let mut all = Vec::new();
        while let Some(event) = events.recv().await {
            all.push(event);
        }
        all
    };
    tokio::join!(add(&context, params, stream::iter(input), output), collect)
}

/// A file as input, in pieces of 64 KiB.
pub(super) fn file(path: &str, content: &[u8]) -> Vec<Result<Input>> {
    file_with(path, Attributes::default(), content)
}

pub(super) fn file_with(path: &str, attributes: Attributes, content: &[u8]) -> Vec<Result<Input>> {
    let mut input = vec![Ok(Input::File { path: path.to_owned(), attributes })];
    input.extend(content.chunks(64 * 1024).map(|piece| Ok(Input::Data(Bytes::copy_from_slice(piece)))));
    input.push(Ok(Input::EndOfFile));
    input
}

pub(super) fn peers(count: usize) -> Vec<PeerId> {
    (0..count).map(|_| PeerId::random()).collect()
}
