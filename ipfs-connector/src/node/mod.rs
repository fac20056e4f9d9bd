//! The IPFS node beside this peer: one trait, two implementations (`kubo`: a Kubo daemon over its RPC; `embedded`: a
//! small node of our own). Nothing outside this folder knows how an IPFS node is talked to, and nothing inside knows
//! of pinsets, allocations or retries: each call does one thing once and says plainly why it failed.
//!
//! Every method is safe to cancel by dropping its future or stream.

pub mod embedded;
mod error;
pub mod kubo;
mod task_stream;
pub mod verify;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use multiaddr::Multiaddr;
use pinfold_common::pin::PinMode;
use pinfold_common::{Cid, PeerId};

pub use error::{NodeError, Result};

/// The largest block that is taken or kept, as in bitswap and in `connector.v1.PutBlocks`.
pub const MAX_BLOCK_BYTES: usize = 2 * 1024 * 1024;
/// How long blocks that were put and are not pinned yet are safe from GC, where the node can do that at all.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(3600);

/// A block with the CID it was asked for or announced under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub cid: Cid,
    pub data: Bytes,
}

/// Blocks on their way in. An error in it ends the put.
pub type Blocks = BoxStream<'static, Result<Block>>;

/// Any number of `PinEvent::Progress`, then either one `PinEvent::Done` or one error, then the end.
/// Dropping it cancels the work; what was fetched until then may stay on the node's disk.
pub type PinEvents = BoxStream<'static, Result<PinEvent>>;

/// Pins as the node lists them, in no particular order. An error is the last item: the list is then incomplete.
pub type PinList = BoxStream<'static, Result<(Cid, PinMode)>>;

/// What GC removed, one by one, with what it could not remove in between. A failure of the GC itself is an `Err`
/// and the last item.
pub type GcEvents = BoxStream<'static, Result<GcEvent>>;

/// Who the node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeId {
    pub peer_id: PeerId,
    /// Multiaddresses, most with `/p2p/<id>` at the end. Empty for the embedded node, which nobody can dial.
    pub addresses: Vec<String>,
    /// Name and version, such as `kubo/0.44.0/`.
    pub agent: String,
}

/// What to pin, and hints about how.
#[derive(Clone, Debug)]
pub struct PinAdd {
    pub cid: Cid,
    pub mode: PinMode,
    /// Addresses of IPFS nodes that are said to have it; the first `MAX_ORIGINS_DIALED` are tried, failures ignored.
    pub origins: Vec<Multiaddr>,
    /// A similar DAG that is perhaps pinned already (beh:B13.5). Only a hint.
    pub pin_update: Option<Cid>,
    pub known: Known,
}

/// What the caller knows of the pin, to save the node a question (beh:B13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Nothing,
    /// It was looked for already.
    NotPinned,
}

/// beh:B13.6
pub const MAX_ORIGINS_DIALED: usize = 10;

impl PinAdd {
    /// A pin without hints.
    pub fn new(cid: Cid, mode: PinMode) -> PinAdd {
        PinAdd { cid, mode, origins: Vec::new(), pin_update: None, known: Known::Nothing }
    }
}

/// How far a running pin is: blocks of the DAG seen on this node's disk so far, and their bytes. Neither shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinProgress {
    pub blocks: u64,
    /// 0 where the node does not say.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinEvent {
    Progress(PinProgress),
    /// Every block is on the node's disk and the pin is recorded.
    Done(PinProgress),
}

/// What the node's pinner says of one CID. Indirect pins are not asked for: on either node that costs a walk of
/// every recursive pin, and nobody here needs the answer (an indirect pin is not a pin, beh:B12.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinState {
    NotPinned,
    Direct,
    Recursive,
}

impl PinState {
    pub fn is(self, mode: PinMode) -> bool {
        match (self, mode) {
            (PinState::Direct, PinMode::Direct) | (PinState::Recursive, PinMode::Recursive) => true,
            (PinState::NotPinned | PinState::Recursive, PinMode::Direct)
            | (PinState::NotPinned | PinState::Direct, PinMode::Recursive) => false,
        }
    }
}

/// What a put left on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutReport {
    pub blocks: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GcEvent {
    Removed(Cid),
    /// Something stayed behind; the GC goes on.
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepoStat {
    pub size_bytes: u64,
    pub storage_max_bytes: u64,
    /// `None` where counting is not O(1) (Kubo).
    pub blocks: Option<u64>,
    /// Of the file system with the blocks; `None` where nobody knows.
    pub disk: Option<Disk>,
}

impl RepoStat {
    /// What the node may still take: by its own limit, and by what the file system has (seed:D6).
    pub fn free_bytes(&self) -> u64 {
        let allowed = self.storage_max_bytes.saturating_sub(self.size_bytes);
        self.disk.map_or(allowed, |disk| allowed.min(disk.free_bytes))
    }
}

/// A file system, as it counts for a process without privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub free_bytes: u64,
    pub size_bytes: u64,
}

/// What differs between nodes and matters to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Finds and fetches blocks from the public IPFS network by itself.
    pub public_network: bool,
    /// `swarm_connect` does something.
    pub dials_peers: bool,
    /// `/ipns/…` can be resolved.
    pub resolves_ipns: bool,
    /// Blocks that were put are safe from GC until they are pinned or the hold is over. Where false, no GC may run
    /// between a put and its pin (beh:B19.8).
    pub holds_puts: bool,
    /// Questions cost no request to another process.
    pub answers_at_once: bool,
}

/// When the node removes blocks that no pin needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Collection {
    /// It does not say.
    #[default]
    Unknown,
    /// When it is asked to, and not between a put and its pin.
    OnRequest,
    /// Whenever it likes, also between a put and its pin.
    ByItself,
}

/// One IPFS node. All methods may be called at any time, also while the node is down.
#[async_trait]
pub trait IpfsNode: Send + Sync + 'static {
    /// `kubo` or `embedded`.
    fn name(&self) -> &'static str;

    fn capabilities(&self) -> Capabilities;

    /// Who the node is; also the check whether it is there.
    async fn id(&self) -> Result<NodeId>;

    /// Stores blocks under exactly the CIDs given. Each is checked against its hash; one that does not match, or is
    /// larger than `MAX_BLOCK_BYTES`, ends the put with `Refused`. When this returns, all are on disk.
    async fn put_blocks(&self, blocks: Blocks) -> Result<PutReport>;

    /// A block from the node's own disk; `None` when it is not there. Nothing is fetched.
    async fn get_block_local(&self, cid: &Cid) -> Result<Option<Bytes>>;

    /// A block from wherever the node finds it: `NoProviders` or `Timeout` when it does not within `deadline`.
    async fn get_block(&self, cid: &Cid, deadline: Duration) -> Result<Bytes>;

    /// Fetches what is missing and pins. Already pinned in that mode: `Done` at once. A direct pin becomes a
    /// recursive one; asking for direct where it is recursive is `Refused`.
    /// Without progress for the configured time it ends with `Stalled`.
    fn pin_add(&self, request: PinAdd) -> PinEvents;

    /// Removes a pin of either mode. Not pinned is success.
    async fn pin_rm(&self, cid: &Cid) -> Result<()>;

    /// What the node says of exactly this CID (v0 and v1 of one block are two pins). A pin that is still being
    /// worked on is `NotPinned`.
    async fn pin_state(&self, cid: &Cid) -> Result<PinState>;

    /// All pins of one mode.
    fn pin_ls(&self, mode: PinMode) -> PinList;

    /// Removes blocks that no pin needs. One GC runs at a time; a second call is `Refused`.
    fn gc(&self) -> GcEvents;

    /// When it removes blocks. Cheap; no answer is `Unknown` and nothing else.
    async fn collection(&self) -> Collection;

    /// Size and limit; cheap, called for every metric.
    async fn repo_stat(&self) -> Result<RepoStat>;

    /// The CID that a path leads to: `<cid>`, `/ipfs/<cid>`, `/ipfs/<cid>/a/b`, and `/ipns/<name>…` where the node
    /// can. `NotFound` when a segment is not there.
    async fn resolve(&self, path: &str) -> Result<Cid>;

    /// Connects to the nodes at these addresses; succeeds when one is reached. Without `dials_peers`: success, and
    /// nothing happens.
    async fn swarm_connect(&self, addresses: &[Multiaddr]) -> Result<()>;

    /// IPFS peers this node is connected to.
    async fn swarm_peers(&self) -> Result<Vec<PeerId>>;
}
