//! A Kubo daemon over its RPC (beh:B13), and nothing but the calls of that table. Built around a Kubo that hangs:
//! every call has a deadline, every stream a time without progress, and a node that is down is not stormed (`gate`).
//!
//! What Kubo cannot do: hold blocks that were put and not pinned yet against its own GC (beh:B19.8: leave its
//! automatic GC off), and say O(1) how many blocks it has.

mod address;
mod classify;
mod collection;
mod gate;
mod lines;
mod pin;
mod put;
mod rpc;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use multiaddr::Multiaddr;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{timeout, timeout_at};

use pinfold_common::ids::{parse_cid, parse_peer_id};
use pinfold_common::pin::PinMode;
use pinfold_common::{Cid, PeerId};

use super::task_stream::task_stream;
use super::verify::{Verified, inline_data};
use super::{
    Blocks, Capabilities, Collection, Disk, GcEvent, GcEvents, IpfsNode, MAX_BLOCK_BYTES, NodeError, NodeId, PinAdd,
    PinEvents, PinList, PinState, PutReport, RepoStat, Result,
};
use rpc::{Call, Rpc};

/// How much longer than Kubo's own deadline for a block ours is.
const BLOCK_DEADLINE_MARGIN: Duration = Duration::from_secs(2);

/// For what the daemon knows of its host; nothing waits for it that matters.
const DISK_DEADLINE: Duration = Duration::from_secs(2);

/// Where the node is and how long it may take (`ipfs_connector.ipfshttp`).
#[derive(Clone, Debug)]
pub struct KuboConfig {
    pub api: Multiaddr,
    /// Calls without a timeout of their own. A listing may take longer in all, but not from one entry to the next.
    pub request_timeout: Duration,
    /// A pin without progress for so long is given up.
    pub pin_timeout: Duration,
    pub unpin_timeout: Duration,
    /// The whole GC.
    pub gc_timeout: Duration,
}

impl KuboConfig {
    /// The original's defaults (spec/config.md 8).
    pub fn new(api: Multiaddr) -> KuboConfig {
        KuboConfig {
            api,
            request_timeout: Duration::from_secs(5 * 60),
            pin_timeout: Duration::from_secs(2 * 60),
            unpin_timeout: Duration::from_secs(3 * 3600),
            gc_timeout: Duration::from_secs(24 * 3600),
        }
    }
}

/// A Kubo daemon. Clones are the same one.
#[derive(Clone)]
pub struct KuboNode(Arc<Shared>);

struct Shared {
    config: KuboConfig,
    rpc: Arc<Rpc>,
    collecting: AtomicBool,
}

impl KuboNode {
    /// Nothing is connected yet; an address that cannot be used is refused here.
    pub fn new(config: KuboConfig) -> Result<KuboNode> {
        let rpc = Arc::new(Rpc::new(&config.api)?);
        Ok(KuboNode(Arc::new(Shared { config, rpc, collecting: AtomicBool::new(false) })))
    }

    /// The file system of its repository, as the daemon sees it, wherever it runs. A daemon that was started for a
    /// repository elsewhere tells of the wrong one: that is noticed when less is used there than the repository has.
    async fn disk(&self, repo_size_bytes: u64) -> Option<Disk> {
        let answer: Result<SystemAnswer> = self.0.rpc.ask(Call::new("diag/sys"), DISK_DEADLINE).await;
        match answer {
            Ok(answer) => answer.diskinfo.and_then(|told| plausible_disk(told, repo_size_bytes)),
            Err(error) => {
                tracing::debug!(%error, "ask the ipfs node for its file system");
                None
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct IdAnswer {
    #[serde(rename = "ID")]
    id: String,
    addresses: Option<Vec<String>>,
    agent_version: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StatAnswer {
    repo_size: u64,
    storage_max: u64,
}

#[derive(Deserialize)]
struct SystemAnswer {
    diskinfo: Option<DiskAnswer>,
}

#[derive(Clone, Copy, Deserialize)]
struct DiskAnswer {
    total_space: u64,
    free_space: u64,
}

fn plausible_disk(told: DiskAnswer, repo_size_bytes: u64) -> Option<Disk> {
    let used = told.total_space.checked_sub(told.free_space)?;
    (used >= repo_size_bytes).then_some(Disk { free_bytes: told.free_space, size_bytes: told.total_space })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ResolveAnswer {
    path: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PeersAnswer {
    peers: Option<Vec<PeerLine>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PeerLine {
    peer: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PinLine {
    cid: String,
    #[serde(rename = "Type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GcLine {
    key: Option<Link>,
    #[serde(default)]
    error: String,
}

/// A CID as DAG-JSON.
#[derive(Deserialize)]
struct Link {
    #[serde(rename = "/")]
    cid: String,
}

#[async_trait]
impl IpfsNode for KuboNode {
    fn name(&self) -> &'static str {
        "kubo"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            public_network: true,
            dials_peers: true,
            resolves_ipns: true,
            holds_puts: false,
            answers_at_once: false,
        }
    }

    async fn id(&self) -> Result<NodeId> {
        let answer: IdAnswer = self.0.rpc.ask(Call::probe("id"), self.0.config.request_timeout).await?;
        let peer_id =
            parse_peer_id(&answer.id).map_err(|error| NodeError::Other(format!("ipfs answer (id): {error}")))?;
        Ok(NodeId {
            peer_id,
            addresses: answer.addresses.unwrap_or_default(),
            agent: answer.agent_version.unwrap_or_default(),
        })
    }

    async fn put_blocks(&self, blocks: Blocks) -> Result<PutReport> {
        put::put(&self.0.rpc, blocks, self.0.config.request_timeout).await
    }

    async fn get_block_local(&self, cid: &Cid) -> Result<Option<Bytes>> {
        if let Some(data) = inline_data(cid) {
            return Ok(Some(Bytes::copy_from_slice(data)));
        }
        let call = Call::new("block/get").arg(cid).option("offline", true);
        match self.0.rpc.ask_bytes(call, MAX_BLOCK_BYTES, self.0.config.request_timeout).await {
            Ok(data) => Verified::check(*cid, data).map(|block| Some(block.into_data())),
            Err(error) if classify::is_not_local(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get_block(&self, cid: &Cid, deadline: Duration) -> Result<Bytes> {
        if let Some(data) = inline_data(cid) {
            return Ok(Bytes::copy_from_slice(data));
        }
        let call = Call::new("block/get").arg(cid).option("timeout", format!("{}ms", deadline.as_millis()));
        let asked = self.0.rpc.ask_bytes(call, MAX_BLOCK_BYTES, deadline + BLOCK_DEADLINE_MARGIN);
        match timeout(deadline + 2 * BLOCK_DEADLINE_MARGIN, asked).await {
            Ok(Ok(data)) => Verified::check(*cid, data).map(Verified::into_data),
            // The node answered, in time, that it did not find it in time.
            Ok(Err(NodeError::Timeout(text))) if text.contains("context deadline exceeded") => {
                Err(NodeError::NoProviders(text))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(NodeError::Timeout(format!("ipfs node: block/get {cid}: no answer within {deadline:?}"))),
        }
    }

    fn pin_add(&self, request: PinAdd) -> PinEvents {
        let shared = self.0.clone();
        task_stream(move |events| async move { pin::add(&shared, request, events).await })
    }

    async fn pin_rm(&self, cid: &Cid) -> Result<()> {
        let call = Call::new("pin/rm").arg(cid);
        match self.0.rpc.ask::<serde::de::IgnoredAny>(call, self.0.config.unpin_timeout).await {
            Err(error) if !classify::is_not_pinned(&error) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn pin_state(&self, cid: &Cid) -> Result<PinState> {
        pin_state(&self.0, cid).await
    }

    fn pin_ls(&self, mode: PinMode) -> PinList {
        let shared = self.0.clone();
        task_stream(move |pins| async move { list(&shared, mode, pins).await })
    }

    fn gc(&self) -> GcEvents {
        let shared = self.0.clone();
        task_stream(move |events| async move {
            let _one = OneCollection::begin(&shared)?;
            collect(&shared, events).await
        })
    }

    async fn collection(&self) -> Collection {
        collection::ask(&self.0.rpc).await
    }

    async fn repo_stat(&self) -> Result<RepoStat> {
        let call = Call::new("repo/stat").option("size-only", true);
        let answer: StatAnswer = self.0.rpc.ask(call, self.0.config.request_timeout).await?;
        let disk = self.disk(answer.repo_size).await;
        Ok(RepoStat { size_bytes: answer.repo_size, storage_max_bytes: answer.storage_max, blocks: None, disk })
    }

    async fn resolve(&self, path: &str) -> Result<Cid> {
        if let Ok(cid) = parse_cid(path.strip_prefix("/ipfs/").unwrap_or(path)) {
            return Ok(cid);
        }
        let call = Call::new("resolve").arg(path);
        let answer: ResolveAnswer = self.0.rpc.ask(call, self.0.config.request_timeout).await?;
        let leads_to = |why: &str| NodeError::Refused(format!("resolve {path}: leads to {}, {why}", answer.path));
        let Some(rest) = answer.path.strip_prefix("/ipfs/").or_else(|| answer.path.strip_prefix("/ipld/")) else {
            return Err(leads_to("which may change"));
        };
        parse_cid(rest.trim_end_matches('/')).map_err(|_| leads_to("which is not a CID"))
    }

    async fn swarm_connect(&self, addresses: &[Multiaddr]) -> Result<()> {
        pin::connect_any(&self.0.rpc, addresses, self.0.config.request_timeout).await
    }

    async fn swarm_peers(&self) -> Result<Vec<PeerId>> {
        let answer: PeersAnswer = self.0.rpc.ask(Call::new("swarm/peers"), self.0.config.request_timeout).await?;
        let peers = answer.peers.unwrap_or_default();
        Ok(peers.iter().filter_map(|line| parse_peer_id(&line.peer).ok()).collect())
    }
}

/// Two calls, because `type=all` makes Kubo walk every recursive pin for indirect ones.
async fn pin_state(shared: &Shared, cid: &Cid) -> Result<PinState> {
    if is_pinned(shared, cid, PinMode::Recursive).await? {
        return Ok(PinState::Recursive);
    }
    Ok(if is_pinned(shared, cid, PinMode::Direct).await? { PinState::Direct } else { PinState::NotPinned })
}

/// A pin of the other mode counts as none (beh:B13.14).
async fn is_pinned(shared: &Shared, cid: &Cid, mode: PinMode) -> Result<bool> {
    let call = Call::new("pin/ls").option("stream", true).arg(cid).option("type", mode.name());
    let asked = timeout(shared.config.request_timeout, async {
        let mut lines = shared.rpc.open(call).await?;
        let mut found = false;
        while let Some(line) = lines.next::<PinLine>().await? {
            found |= line.kind == mode.name() && parse_cid(&line.cid).is_ok_and(|pinned| pinned == *cid);
        }
        Ok(found)
    });
    match asked.await {
        Ok(Err(error)) if classify::is_not_pinned(&error) => Ok(false),
        Ok(answer) => answer,
        Err(_) => {
            let patience = shared.config.request_timeout;
            Err(NodeError::Timeout(format!("ipfs node: pin/ls {cid}: no answer within {patience:?}")))
        }
    }
}

async fn list(shared: &Shared, mode: PinMode, pins: mpsc::Sender<Result<(Cid, PinMode)>>) -> Result<()> {
    let patience = shared.config.request_timeout;
    let silent = |_| NodeError::Timeout(format!("ipfs node: pin/ls: nothing for {patience:?}"));
    let call = Call::new("pin/ls").option("stream", true).option("type", mode.name());
    let mut lines = timeout(patience, shared.rpc.open(call)).await.map_err(silent)??;
    while let Some(line) = timeout(patience, lines.next::<PinLine>()).await.map_err(silent)?? {
        if line.kind != mode.name() {
            continue;
        }
        let cid = parse_cid(&line.cid).map_err(|error| NodeError::Other(format!("ipfs answer (pin/ls): {error}")))?;
        if pins.send(Ok((cid, mode))).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn collect(shared: &Shared, events: mpsc::Sender<Result<GcEvent>>) -> Result<()> {
    let patience = shared.config.gc_timeout;
    let deadline = tokio::time::Instant::now() + patience;
    let late = |_| NodeError::Timeout(format!("ipfs node: repo/gc: not done within {patience:?}"));
    let mut lines = timeout_at(deadline, shared.rpc.open(Call::new("repo/gc").option("stream-errors", true)))
        .await
        .map_err(late)??;
    let mut failed_before = false;
    loop {
        let line = match timeout_at(deadline, lines.next::<GcLine>()).await.map_err(late)? {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            // Kubo repeats at the end that there were errors; each was told already.
            Err(error) if failed_before && error.to_string().contains("encountered errors during gc") => return Ok(()),
            Err(error) => return Err(error),
        };
        let event = match line.key.map(|key| parse_cid(&key.cid)) {
            Some(Ok(cid)) => GcEvent::Removed(cid),
            Some(Err(error)) => GcEvent::Failed(format!("ipfs answer (repo/gc): {error}")),
            None => GcEvent::Failed(line.error),
        };
        failed_before |= matches!(event, GcEvent::Failed(_));
        if events.send(Ok(event)).await.is_err() {
            return Ok(());
        }
    }
}

/// The right to run the GC; given back when dropped.
struct OneCollection<'a>(&'a Shared);

impl OneCollection<'_> {
    fn begin(shared: &Shared) -> Result<OneCollection<'_>> {
        if shared.collecting.swap(true, Ordering::AcqRel) {
            return Err(NodeError::Refused("ipfs node: a gc is running already".into()));
        }
        Ok(OneCollection(shared))
    }
}

impl Drop for OneCollection<'_> {
    fn drop(&mut self) {
        self.0.collecting.store(false, Ordering::Release);
    }
}
