//! A small IPFS node of our own, for machines without Kubo (measured.md B, stage 1): block files, an index in SQLite,
//! blocks from the siblings' connectors and from configured trustless gateways. It speaks no libp2p: it cannot be
//! dialled, does not search the public network, and does not provide to it.

pub mod exchange;
mod files;
mod gc;
mod index;
mod key;
mod keyset;
mod links;
mod pin;
mod resolve;
mod store;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use multiaddr::Multiaddr;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::task::JoinHandle;

use pinfold_common::files::{lock_folder, read_small};
use pinfold_common::identity::{IDENTITY_FILE, Identity};
use pinfold_common::pin::PinMode;
use pinfold_common::{Cid, PeerId};

use super::task_stream::task_stream;
use super::verify::{Verified, inline_data};
use super::{
    Blocks, Capabilities, Collection, DEFAULT_HOLD, Disk, GcEvents, IpfsNode, NodeError, NodeId, PinAdd, PinEvents,
    PinList, PinState, PutReport, RepoStat, Result,
};
use exchange::{BlockExchange, Gateways, Sources, Want};
use index::Index;
use store::Store;

/// Blocks fetched at the same time for one pin.
pub const DEFAULT_FETCH_PARALLEL: usize = 32;
/// Blocks of one upload that are on their way to disk at the same time.
const PARALLEL_PUTS: usize = 256;
/// Rows of a listing read at once.
const PINS_AT_ONCE: u32 = 1000;
/// Without a limit given: so much of what is free at the start, in percent.
const DEFAULT_SHARE_OF_FREE: u64 = 90;
const IDENTITY_FOLDER: &str = "identity";
const MAX_IDENTITY_BYTES: u64 = 64 * 1024;

/// How the embedded node is set up.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// `<peer folder>/ipfs`; made when it is not there.
    pub folder: PathBuf,
    /// Without one: 90 % of what is free at the start, beside what is here already.
    pub storage_max_bytes: Option<u64>,
    /// Trustless gateways, asked in this order after the siblings: `https://host[/path]`.
    pub gateways: Vec<String>,
    /// Blocks fetched at the same time for one pin, at least 1.
    pub fetch_parallel: usize,
    /// A pin without progress for so long is given up.
    pub pin_timeout: Duration,
    /// How long blocks that were put and are not pinned yet are safe from GC.
    pub hold: Duration,
}

impl EmbeddedConfig {
    pub fn new(folder: impl Into<PathBuf>) -> EmbeddedConfig {
        EmbeddedConfig {
            folder: folder.into(),
            storage_max_bytes: None,
            gateways: Vec::new(),
            fetch_parallel: DEFAULT_FETCH_PARALLEL,
            pin_timeout: Duration::from_secs(120),
            hold: DEFAULT_HOLD,
        }
    }
}

/// The embedded node. Clones are the same one.
#[derive(Clone)]
pub struct EmbeddedNode(Arc<Inner>);

struct Inner {
    config: EmbeddedConfig,
    peer_id: PeerId,
    store: Store,
    sources: Sources,
    /// A GC runs.
    collecting: AtomicBool,
    /// Pins being worked on, and by how many callers.
    running: Mutex<HashMap<Cid, usize>>,
    /// Compares files and rows after a crash; ends with the node.
    repairing: Mutex<Option<JoinHandle<()>>>,
    /// Held while this process uses the folder.
    _lock: File,
}

impl EmbeddedNode {
    /// Opens the folder, which no other process may have open. `exchanges` are asked for missing blocks before the
    /// configured gateways.
    pub async fn open(config: EmbeddedConfig, exchanges: Vec<Arc<dyn BlockExchange>>) -> Result<EmbeddedNode> {
        let at = |error: &dyn std::fmt::Display| {
            NodeError::Other(format!("embedded node: open {}: {error}", config.folder.display()))
        };
        std::fs::create_dir_all(&config.folder).map_err(|error| at(&error))?;
        let lock = lock_folder(&config.folder).map_err(|error| at(&error))?;
        let peer_id = own_peer_id(&config.folder.join(IDENTITY_FOLDER)).map_err(|error| at(&error))?;
        let index = Index::open(&config.folder).await?;
        let storage_max_bytes = match config.storage_max_bytes {
            Some(bytes) => bytes,
            None => {
                let free = disk_of(&config.folder).map_err(|error| at(&error))?.free_bytes;
                index.size_bytes().saturating_add(free / 100 * DEFAULT_SHARE_OF_FREE)
            }
        };
        let needs_repair = !index.was_closed();
        let store = Store::open(&config.folder, index, storage_max_bytes)?;
        let mut exchanges = exchanges;
        if !config.gateways.is_empty() {
            exchanges.push(Arc::new(Gateways::new(&config.gateways)?));
        }
        let inner = Arc::new(Inner {
            config,
            peer_id,
            store,
            sources: Sources::new(exchanges),
            collecting: AtomicBool::new(false),
            running: Mutex::default(),
            repairing: Mutex::new(None),
            _lock: lock,
        });
        if needs_repair {
            let repairing = tokio::spawn(repair(Arc::downgrade(&inner)));
            *inner.repairing.lock() = Some(repairing);
        }
        Ok(EmbeddedNode(inner))
    }

    /// Marks the folder as whole, so that the next start has nothing to repair. Calls that come later fail.
    pub async fn close(&self) -> Result<()> {
        let repairing = self.0.repairing.lock().take();
        match repairing {
            // It was not finished: the next start begins it again.
            Some(repairing) if !repairing.is_finished() => repairing.abort(),
            Some(_) | None => self.0.store.index().close().await?,
        }
        Ok(())
    }
}

async fn repair(inner: std::sync::Weak<Inner>) {
    let Some(inner) = inner.upgrade() else { return };
    match inner.store.repair(inner.config.hold).await {
        Ok(0) => tracing::debug!("embedded node was not closed; its files and its index agree"),
        Ok(repaired) => tracing::warn!(repaired, "embedded node was not closed; its index follows its files again"),
        Err(error) => tracing::error!(%error, "embedded node was not closed, and comparing files and index failed"),
    }
}

impl Inner {
    /// A block from here or from somebody else, without keeping it.
    async fn read(&self, cid: &Cid, deadline: Duration) -> Result<Bytes> {
        if let Some(data) = inline_data(cid) {
            return Ok(Bytes::copy_from_slice(data));
        }
        match self.store.get(cid).await? {
            Some(data) => Ok(data),
            None => Ok(self.sources.fetch(Want { cid: *cid, root: *cid }, deadline).await?.into_data()),
        }
    }

    /// Marks a pin as being worked on until the answer is dropped.
    fn running(&self, cid: Cid) -> Running<'_> {
        *self.running.lock().entry(cid).or_default() += 1;
        Running { inner: self, cid }
    }

    fn is_running(&self, cid: &Cid) -> bool {
        self.running.lock().contains_key(cid)
    }
}

struct Running<'a> {
    inner: &'a Inner,
    cid: Cid,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = self.inner.running.lock();
        if let Some(count) = running.get_mut(&self.cid) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.cid);
            }
        }
    }
}

/// Both fields of `identity.json`. Not `Identity::load`, which lets the environment name the *peer's* identity.
#[derive(Deserialize)]
struct IdentityFile {
    id: String,
    private_key: String,
}

/// The node's own ID: made once, then read. It stands for the node in `id` and will be its libp2p key.
fn own_peer_id(folder: &Path) -> pinfold_common::Result<PeerId> {
    let broken = |error: &dyn std::fmt::Display| pinfold_common::Error::internal(format!("node identity: {error}"));
    std::fs::create_dir_all(folder).map_err(|error| broken(&error))?;
    match read_small(&folder.join(IDENTITY_FILE), MAX_IDENTITY_BYTES).map_err(|error| broken(&error))? {
        Some(bytes) => {
            let file: IdentityFile = serde_json::from_slice(&bytes).map_err(|error| broken(&error))?;
            Ok(Identity::parse(&file.id, &file.private_key)?.peer_id)
        }
        None => {
            let identity = Identity::generate();
            identity.save(folder)?;
            Ok(identity.peer_id)
        }
    }
}

/// The file system with that folder, as it counts for a process without privileges.
fn disk_of(folder: &Path) -> std::io::Result<Disk> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(Disk {
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        size_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

#[async_trait]
impl IpfsNode for EmbeddedNode {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            public_network: false,
            dials_peers: false,
            resolves_ipns: false,
            holds_puts: true,
            answers_at_once: true,
        }
    }

    async fn id(&self) -> Result<NodeId> {
        let agent = concat!("pinfold-embedded/", env!("CARGO_PKG_VERSION")).to_owned();
        Ok(NodeId { peer_id: self.0.peer_id, addresses: Vec::new(), agent })
    }

    async fn put_blocks(&self, blocks: Blocks) -> Result<PutReport> {
        let hold = self.0.config.hold;
        let puts = blocks.map(|block| async move {
            let block = block?;
            let block = Verified::check(block.cid, block.data)?;
            if inline_data(block.cid()).is_some() {
                return Ok(None);
            }
            let bytes = block.data().len() as u64;
            self.0.store.put(block, hold).await?;
            Ok(Some(bytes))
        });
        let mut puts = puts.buffer_unordered(PARALLEL_PUTS);
        let mut report = PutReport::default();
        while let Some(put) = puts.next().await {
            if let Some(bytes) = put? {
                report.blocks += 1;
                report.bytes += bytes;
            }
        }
        Ok(report)
    }

    async fn get_block_local(&self, cid: &Cid) -> Result<Option<Bytes>> {
        match inline_data(cid) {
            Some(data) => Ok(Some(Bytes::copy_from_slice(data))),
            None => self.0.store.get(cid).await,
        }
    }

    async fn get_block(&self, cid: &Cid, deadline: Duration) -> Result<Bytes> {
        self.0.read(cid, deadline).await
    }

    fn pin_add(&self, request: PinAdd) -> PinEvents {
        let inner = self.0.clone();
        task_stream(move |events| async move { pin::add(&inner, request, events).await })
    }

    async fn pin_rm(&self, cid: &Cid) -> Result<()> {
        self.0.store.index().pin_removed(cid).await
    }

    async fn pin_state(&self, cid: &Cid) -> Result<PinState> {
        Ok(self.0.store.index().pin(cid).await?.map_or(PinState::NotPinned, |row| row.state()))
    }

    fn pin_ls(&self, mode: PinMode) -> PinList {
        let inner = self.0.clone();
        task_stream(move |pins| async move {
            let mut after: Option<Cid> = None;
            loop {
                let rows = inner.store.index().pins_after(after.as_ref(), PINS_AT_ONCE).await?;
                let Some(last) = rows.last() else { return Ok(()) };
                after = Some(last.cid);
                for row in rows.into_iter().filter(|row| row.pinned == Some(mode)) {
                    if pins.send(Ok((row.cid, mode))).await.is_err() {
                        return Ok(());
                    }
                }
            }
        })
    }

    fn gc(&self) -> GcEvents {
        let inner = self.0.clone();
        task_stream(move |events| async move { gc::collect(&inner, events).await })
    }

    async fn collection(&self) -> Collection {
        Collection::OnRequest
    }

    async fn repo_stat(&self) -> Result<RepoStat> {
        let folder = &self.0.config.folder;
        // One call of the kernel's, from its memory: cheaper than a hand-over to another thread.
        let disk = disk_of(folder)
            .inspect_err(|error| tracing::debug!(folder = %folder.display(), %error, "measure the file system"))
            .ok();
        let store = &self.0.store;
        Ok(RepoStat {
            disk,
            size_bytes: store.index().size_bytes(),
            storage_max_bytes: store.storage_max_bytes(),
            blocks: Some(store.index().blocks()),
        })
    }

    async fn resolve(&self, path: &str) -> Result<Cid> {
        resolve::resolve(&self.0, path).await
    }

    async fn swarm_connect(&self, _addresses: &[Multiaddr]) -> Result<()> {
        Ok(())
    }

    async fn swarm_peers(&self) -> Result<Vec<PeerId>> {
        Ok(Vec::new())
    }
}
