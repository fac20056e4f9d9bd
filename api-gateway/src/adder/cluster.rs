//! What an upload needs of the cluster, as a seam: tests put blocks into servers of their own and pins nowhere. The one
//! real implementation is in `services`.

use pinfold_common::pin::{Pin, PinOptions, PinRequest};
use pinfold_common::{Cid, PeerId, Result};
use pinfold_proto::connector::{PutBlocks, PutBlocksReply};
use pinfold_proto::types::PinInfo;
use tokio::sync::mpsc;

/// Where the blocks of an upload should go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Every live peer when pinned everywhere.
    pub peers: Vec<PeerId>,
    pub everywhere: bool,
    /// Defaults applied; -1 when pinned everywhere.
    pub replication_factor_min: i32,
}

/// A test seam.
#[tonic::async_trait]
pub trait Cluster: Send + Sync + 'static {
    async fn allocate(&self, options: &PinOptions, user_allocations: &[PeerId]) -> Result<Allocation>;
    /// Sends batches to one peer's connector until the channel ends; the answer means that all are on its disk.
    async fn put(&self, peer: PeerId, batches: mpsc::Receiver<PutBlocks>) -> Result<PutBlocksReply>;
    /// What the tracker of that peer says of a CID, once it has followed the log to `min_index`.
    async fn status(&self, peer: PeerId, cid: &Cid, min_index: u64) -> Result<PinInfo>;
    /// The committed pin and its log index.
    async fn pin(&self, request: PinRequest, request_key: Vec<u8>) -> Result<(Pin, u64)>;
}
