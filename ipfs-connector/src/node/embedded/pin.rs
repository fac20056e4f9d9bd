//! One pin: walks the DAG from its root, fetches what is not here, and says done only when every block was seen on this
//! disk (measured.md B, trap 3). Its row is written first, so that GC keeps what there is of it, and a pin that is
//! broken off and asked for again goes on where it was.
//!
//! Memory: pending links are bounded by `MAX_PENDING`, seen ones by `KeySet`, blocks by the number fetched in parallel.

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Duration, Instant, timeout_at};

use pinfold_common::Cid;
use pinfold_common::pin::PinMode;

use super::Inner;
use super::exchange::Want;
use super::key::Key;
use super::keyset::KeySet;
use super::links::{check_codec_known, is_leaf, links};
use crate::node::verify::inline_data;
use crate::node::{NodeError, PinAdd, PinEvent, PinProgress, PinState, Result};

/// Links that wait to be followed (25 MB of CIDs). A DAG that has more at once is refused.
const MAX_PENDING: usize = 262_144;
/// Leaves that are looked for together.
const LEAVES_AT_ONCE: usize = 256;
/// Jobs at the same time; most of them wait for the disk, which takes what waits as one batch. Only `fetch_parallel` of
/// them fetch, and one that fetched gives its place away when the queue of blocks to write has room for its block.
const RUNNING_JOBS: usize = 256;
/// How often progress is told, at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Pins; progress and the end go to `events`.
pub async fn add(inner: &Inner, request: PinAdd, events: mpsc::Sender<Result<PinEvent>>) -> Result<()> {
    let PinAdd { cid, mode, .. } = request;
    let index = inner.store.index();
    let state = index.pin(&cid).await?.map_or(PinState::NotPinned, |row| row.state());
    let done = if state.is(mode) {
        PinProgress::default()
    } else if state == PinState::Recursive {
        return Err(NodeError::Refused(format!("pin {cid}: already pinned recursively, not direct")));
    } else if is_whole(&cid, mode).map_err(|error| error.context(format!("pin {cid}")))? {
        index.pinned(&cid, mode).await?;
        PinProgress::default()
    } else {
        let _running = inner.running(cid);
        index.pin_started(&cid, mode).await?;
        let mut walk = Walk::new(inner, cid, events.clone());
        let root = match mode {
            PinMode::Recursive => Job::Node(cid),
            PinMode::Direct => Job::Leaves(stored(cid).into_iter().collect()),
        };
        let progress = walk.run(root).await.map_err(|error| error.context(format!("pin {cid}")))?;
        if !index.pin_done(&cid, mode).await? {
            return Err(NodeError::Other(format!("pin {cid}: it was unpinned meanwhile")));
        }
        progress
    };
    // Nobody listens any more: the pin is there all the same, and the next look finds it.
    let _ = events.send(Ok(PinEvent::Done(done))).await;
    Ok(())
}

/// Whether the CID carries all there is to pin.
fn is_whole(cid: &Cid, mode: PinMode) -> Result<bool> {
    let Some(data) = inline_data(cid) else { return Ok(false) };
    match mode {
        PinMode::Direct => Ok(true),
        PinMode::Recursive => {
            check_codec_known(cid)?;
            Ok(links(cid, &Bytes::copy_from_slice(data))?.is_empty())
        }
    }
}

/// The CID if it has a block at all.
fn stored(cid: Cid) -> Option<Cid> {
    inline_data(&cid).is_none().then_some(cid)
}

enum Job {
    /// Is it here, what does it link to?
    Node(Cid),
    /// Are they here?
    Leaves(Vec<Cid>),
    /// A leaf that is not.
    Missing(Cid),
}

impl Job {
    fn len(&self) -> usize {
        match self {
            Job::Node(_) | Job::Missing(_) => 1,
            Job::Leaves(cids) => cids.len(),
        }
    }
}

/// What a job found.
#[derive(Default)]
struct Found {
    progress: PinProgress,
    links: Vec<Cid>,
    missing: Vec<Cid>,
}

struct Walk<'a> {
    inner: &'a Inner,
    root: Cid,
    seen: KeySet,
    /// Last in, first out: the walk goes down before it goes on, so that what waits stays small.
    jobs: Vec<Job>,
    pending: usize,
    progress: PinProgress,
    events: mpsc::Sender<Result<PinEvent>>,
    told: Option<Instant>,
}

impl<'a> Walk<'a> {
    fn new(inner: &'a Inner, root: Cid, events: mpsc::Sender<Result<PinEvent>>) -> Walk<'a> {
        Walk {
            inner,
            root,
            seen: KeySet::new(inner.store.scratch()),
            jobs: Vec::new(),
            pending: 0,
            progress: PinProgress::default(),
            events,
            told: None,
        }
    }

    async fn run(&mut self, first: Job) -> Result<PinProgress> {
        let patience = self.inner.config.pin_timeout;
        self.push(first)?;
        let slots = Semaphore::new(self.inner.config.fetch_parallel.max(1));
        let mut running = FuturesUnordered::new();
        let mut moved = Instant::now();
        loop {
            while running.len() < RUNNING_JOBS {
                let Some(job) = self.jobs.pop() else { break };
                self.pending -= job.len();
                running.push(work(self.inner, &slots, self.root, job));
            }
            let found = match timeout_at(moved + patience, running.next()).await {
                Ok(Some(found)) => found?,
                Ok(None) => return Ok(self.progress),
                Err(_) => {
                    return Err(NodeError::Stalled(format!(
                        "no progress for {patience:?} after {} blocks and {} bytes",
                        self.progress.blocks, self.progress.bytes
                    )));
                }
            };
            if found.progress.blocks > 0 {
                moved = Instant::now();
                self.tell(found.progress);
            }
            for cid in found.missing {
                self.push(Job::Missing(cid))?;
            }
            self.follow(found.links).await?;
        }
    }

    /// Queues the links that were not seen before, so that the first of them comes next.
    async fn follow(&mut self, links: Vec<Cid>) -> Result<()> {
        let mut jobs = Vec::new();
        let mut leaves = Vec::new();
        for cid in links {
            // By content and codec: one block read as two codecs has two sets of links.
            if !self.seen.insert(&Cid::new_v1(cid.codec(), *cid.hash()).to_bytes()).await? {
                continue;
            }
            if !is_leaf(&cid) {
                jobs.push(Job::Node(cid));
            } else if let Some(cid) = stored(cid) {
                leaves.push(cid);
                if leaves.len() == LEAVES_AT_ONCE {
                    jobs.push(Job::Leaves(std::mem::take(&mut leaves)));
                }
            }
        }
        if !leaves.is_empty() {
            jobs.push(Job::Leaves(leaves));
        }
        jobs.into_iter().rev().try_for_each(|job| self.push(job))
    }

    fn push(&mut self, job: Job) -> Result<()> {
        self.pending += job.len();
        if self.pending > MAX_PENDING {
            return Err(NodeError::Refused(format!("more than {MAX_PENDING} links wait to be followed")));
        }
        self.jobs.push(job);
        Ok(())
    }

    fn tell(&mut self, more: PinProgress) {
        self.progress.blocks += more.blocks;
        self.progress.bytes += more.bytes;
        if self.told.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL) {
            self.told = Some(Instant::now());
            // A reader that is slow misses some progress, and the pin does not wait for it.
            let _ = self.events.try_send(Ok(PinEvent::Progress(self.progress)));
        }
    }
}

async fn work(inner: &Inner, slots: &Semaphore, root: Cid, job: Job) -> Result<Found> {
    match job {
        Job::Leaves(cids) => look_for(inner, cids).await,
        Job::Missing(cid) => {
            let data = fetch(inner, slots, Want { cid, root }).await?;
            Ok(Found { progress: PinProgress { blocks: 1, bytes: data.len() as u64 }, ..Found::default() })
        }
        Job::Node(cid) => {
            check_codec_known(&cid)?;
            if let Some(data) = inline_data(&cid) {
                let links = links(&cid, &Bytes::copy_from_slice(data))?;
                return Ok(Found { links, ..Found::default() });
            }
            let data = match inner.store.get(&cid).await? {
                Some(data) => {
                    release(inner, || vec![Key::of(&cid)]).await;
                    data
                }
                None => fetch(inner, slots, Want { cid, root }).await?,
            };
            let progress = PinProgress { blocks: 1, bytes: data.len() as u64 };
            Ok(Found { progress, links: links(&cid, &data)?, missing: Vec::new() })
        }
    }
}

async fn look_for(inner: &Inner, cids: Vec<Cid>) -> Result<Found> {
    let mut found = Found::default();
    let sizes = inner.store.sizes(cids.iter().map(Key::of).collect()).await?;
    let mut here = Vec::new();
    for (cid, size) in cids.into_iter().zip(sizes) {
        match size {
            Some(bytes) => {
                found.progress.blocks += 1;
                found.progress.bytes += bytes;
                here.push(cid);
            }
            None => found.missing.push(cid),
        }
    }
    release(inner, || here.iter().map(Key::of).collect()).await;
    Ok(found)
}

/// The pin protects them now; without this, an upload that is unpinned stays until its hold is over.
async fn release(inner: &Inner, keys: impl FnOnce() -> Vec<Key>) {
    if inner.store.index().has_holds() {
        inner.store.index().release(keys()).await;
    }
}

/// From somebody else, onto this disk (trap 4: only then does it count).
async fn fetch(inner: &Inner, slots: &Semaphore, want: Want) -> Result<Bytes> {
    let slot = slots.acquire().await.map_err(|error| NodeError::Other(format!("fetch block: {error}")))?;
    let block = inner.sources.fetch(want, inner.config.pin_timeout).await?;
    let data = block.data().clone();
    let enqueued = inner.store.enqueue(block, Duration::ZERO).await?;
    drop(slot);
    enqueued.on_disk().await?;
    Ok(data)
}
