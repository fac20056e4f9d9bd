//! The replicated state on disk: what the entries up to `applied` made of the pinset and the peerset.
//!
//! Written by one task, batch by batch ([`State::apply`]); read through connections of its own. Rows come as they lie on
//! disk, encoded `types.v1.Pin`, so that a list is decoded as late as possible or not at all.
//!
//! **Compare** (protocols.md 8) needs the whole pinset at one index while writes go on. It takes no long transaction,
//! which would hold up the write-ahead log. Let S be [`State::applied_index`] before the first page. Every page is read
//! at some index p >= S, so it shows every change up to S. A change at c > S is either in its page already (c <= p), or
//! it is among `recent().since(S)`, which the follower gets after the last page; replaying one that the page had brings
//! nothing new, because rows carry their revision, and replaying in log order ends at the newest one. So pages plus
//! changes after S are the pinset at the end of the replay, and the cursor of the comparison is S. When the ring does
//! not reach back to S any more by then, the comparison starts over.

mod copy;
mod files;
mod read;
mod rows;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

use super::error::{Error, Failure, Result};
use super::readers::Readers;
use super::recent::Recent;
use super::record::{LogId, Membership, Record};
use super::sqlite::{self, Many, Sync};
use crate::pinset::{Outcome, PeerTable, View};
pub use copy::{Copy, Incoming};
pub use read::{Chunk, Digest, Holding};
use rows::{Rows, Statements};
use writer::{Op, Writer};

/// Batches that wait for the writer. The consensus library sends one at a time.
const QUEUE: usize = 16;
const READERS: usize = 4;

/// How far the state has come, and the newest membership it has seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    pub applied: Option<LogId>,
    pub membership: Membership,
}

/// What is small and always in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Empty until the cluster's first command is applied here.
    pub cluster_id: Vec<u8>,
    pub lineage: u64,
    pub peers: PeerTable,
    pub settings: BTreeMap<String, String>,
}

impl Facts {
    fn of(view: &View) -> Facts {
        Facts {
            cluster_id: view.cluster_id.clone(),
            lineage: view.lineage,
            peers: view.peers.clone(),
            settings: view.settings.clone(),
        }
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct State {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Op>,
}

struct Shared {
    folder: PathBuf,
    /// Replaced when a snapshot is installed.
    generation: RwLock<Arc<Generation>>,
    meta: Mutex<Meta>,
    pin_count: AtomicU64,
    applied: watch::Sender<u64>,
    facts: watch::Sender<Arc<Facts>>,
    recent: Recent,
    failure: Failure,
    pins_by_cid: Many,
}

/// One file of the state, and the connections that read it.
struct Generation {
    path: PathBuf,
    readers: Readers,
}

impl Generation {
    fn open(path: &Path) -> Generation {
        Generation { path: path.to_owned(), readers: Readers::new(path, READERS) }
    }
}

impl State {
    pub(super) async fn open(folder: &Path, failure: Failure) -> Result<State> {
        let path = files::current(folder)?;
        let mut connection = sqlite::open_writer(&path, Sync::Checkpoint).await?;
        sqlite::prepare(&mut connection, &path, rows::VERSION, rows::SCHEMA).await?;
        // What is read here as applied is what the log may be purged up to, even before the first checkpoint: a crash
        // may have left it in the operating system's memory only.
        writer::sync(&mut connection, &path).await?;
        let (view, meta) = rows::load_status(&mut connection).await?;
        let rows = Rows::open(connection, Arc::new(Statements::new())).await?;
        let applied = meta.applied.map_or(0, |id| id.index);
        let (queue, ops) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            generation: RwLock::new(Arc::new(Generation::open(&path))),
            meta: Mutex::new(meta.clone()),
            pin_count: AtomicU64::new(view.pin_count),
            applied: watch::Sender::new(applied),
            facts: watch::Sender::new(Arc::new(Facts::of(&view))),
            recent: Recent::starting_at(applied),
            failure,
            pins_by_cid: Many::new("SELECT v FROM pins WHERE cid IN (", "?", ")"),
        });
        tokio::spawn(Writer { rows, view, meta, path, shared: shared.clone() }.run(ops));
        Ok(State { shared, queue })
    }

    /// Applies committed entries, in order, in one transaction. Returns what each command came to when it is committed;
    /// `None` for other entries. The caller bounds the batch.
    pub async fn apply(&self, records: Vec<Record>) -> Result<Vec<Option<Outcome>>> {
        let (done, applied) = oneshot::channel();
        self.send(Op::Apply { records, done }).await?;
        applied.await.map_err(|_| self.closed())?
    }

    /// Everything up to the returned index is on disk: the log may forget it.
    pub async fn checkpoint(&self) -> Result<Meta> {
        let (done, checkpointed) = oneshot::channel();
        self.send(Op::Checkpoint { done }).await?;
        checkpointed.await.map_err(|_| self.closed())?
    }

    pub fn meta(&self) -> Meta {
        self.shared.meta.lock().clone()
    }

    /// 0 before the first entry.
    pub fn applied_index(&self) -> u64 {
        *self.shared.applied.borrow()
    }

    /// The applied index as it grows. What it promises can be read already.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    /// Entries in the pinset.
    pub fn pin_count(&self) -> u64 {
        self.shared.pin_count.load(Ordering::Acquire)
    }

    /// The peerset and the settings now.
    pub fn facts(&self) -> Arc<Facts> {
        self.shared.facts.borrow().clone()
    }

    /// The peerset and the settings, again on every change.
    pub fn watch_facts(&self) -> watch::Receiver<Arc<Facts>> {
        self.shared.facts.subscribe()
    }

    /// The newest changes, for followers.
    pub fn recent(&self) -> &Recent {
        &self.shared.recent
    }

    pub fn failure(&self) -> &Failure {
        &self.shared.failure
    }

    /// Checkpoints and closes. Idempotent; reads and writes fail afterwards.
    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Op::Close { done }).await.is_ok() {
            // The writer drops the sender when it ended before.
            let _ = closed.await;
        }
        self.generation().readers.close().await;
    }

    fn generation(&self) -> Arc<Generation> {
        self.shared.generation.read().clone()
    }

    async fn send(&self, op: Op) -> Result<()> {
        self.queue.send(op).await.map_err(|_| self.closed())
    }

    fn closed(&self) -> Error {
        self.shared.failure.get().unwrap_or(Error::Closed)
    }
}
