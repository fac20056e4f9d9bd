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

mod columns;
mod copy;
mod files;
mod fill;
mod gather;
mod read;
mod rows;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::checkpoints::{Checkpoints, STATE_WAL_BYTES};
use super::error::{Error, Failure, Result};
use super::readers::Readers;
use super::recent::Recent;
use super::record::{LogId, Membership, Record};
use super::sqlite::{self, Many, Purpose};
use crate::pinset::{Outcome, PeerTable, View};
pub use copy::{Copy, Incoming, Keeps, Reading};
pub use files::{FIRST as FIRST_FILE, replace};
pub use fill::Fill;
pub use read::{Chunk, Digest, Holding};
use rows::{Rows, Scope, Statements};
pub use writer::Applied;
use writer::{Batch, Op, Writer};

/// What waits for the writer.
const QUEUE: usize = 1024;
/// Bytes of commands among it, as counted by [`LEAST_RECORD_BYTES`].
const QUEUE_BYTES: usize = 8 << 20;
/// No entry counts as less.
const LEAST_RECORD_BYTES: usize = 256;
const READERS: usize = 4;

/// How far the state has come, and the newest membership it has seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    pub applied: Option<LogId>,
    /// So many of the entries up to that one were not on this peer's disk yet, as its log has them.
    pub unlogged: u64,
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

/// Creates the tables, or brings those of an older format up to date, and verifies what is there: everything that is
/// about to be rehearsed, and what is small.
async fn prepare(connection: &mut SqliteConnection, path: &Path, scope: Scope) -> Result<()> {
    let found = sqlite::prepare(connection, path, rows::VERSION, rows::SCHEMA).await?;
    match scope {
        Scope::Committed if found == 1 => {
            sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut *connection).await.map_err(Error::sqlite(MIGRATING))?;
            sqlx::raw_sql(rows::FROM_1).execute(&mut *connection).await.map_err(Error::sqlite(MIGRATING))?;
            sqlx::raw_sql("COMMIT").execute(&mut *connection).await.map_err(Error::sqlite(MIGRATING))?;
        }
        Scope::Committed => {}
        Scope::Rehearsed => {
            sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut *connection).await.map_err(Error::sqlite(MIGRATING))?;
            if found == 1 {
                sqlx::raw_sql(rows::FROM_1).execute(&mut *connection).await.map_err(Error::sqlite(MIGRATING))?;
            }
        }
    }
    match scope {
        Scope::Committed if sqlite::is_large(path) => Ok(()),
        Scope::Committed | Scope::Rehearsed => verify::verify_in_transaction(connection).await,
    }
}

const MIGRATING: &str = "bring the state to this version's format";

/// Cheap to clone.
#[derive(Clone)]
pub struct State {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Op>,
    room: Arc<Semaphore>,
}

struct Shared {
    folder: PathBuf,
    /// Replaced when a snapshot is installed.
    generation: RwLock<Arc<Generation>>,
    meta: Mutex<Meta>,
    pin_count: AtomicU64,
    applied: watch::Sender<u64>,
    /// How many wait for an index: see [`State::wait_applied`].
    waiting: watch::Sender<usize>,
    facts: watch::Sender<Arc<Facts>>,
    recent: Recent,
    failure: Failure,
    /// Whether the file was left to be verified while it serves.
    unverified: watch::Sender<bool>,
    pins_by_cid: Many,
}

/// Somebody who waits, counted until dropped.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl Waiting<'_> {
    fn begin(waiting: &watch::Sender<usize>) -> Waiting<'_> {
        waiting.send_modify(|waiting| *waiting += 1);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
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
        let (mut connection, path) = State::connect(folder).await?;
        prepare(&mut connection, &path, Scope::Committed).await.map_err(|error| error.in_file(&path))?;
        // What is read here as applied is what the log may be purged up to, even before the first checkpoint: a crash
        // may have left it in the operating system's memory only.
        sqlite::sync(&mut connection, &path).await.map_err(|error| error.in_file(&path))?;
        State::start(folder, failure, connection, path, Scope::Committed).await
    }

    /// As [`State::open`], for a look at what the log would make of it: what is applied is taken back at the end, and
    /// can be read by [`State::list_rehearsed`] only.
    pub(super) async fn rehearse(folder: &Path, failure: Failure) -> Result<State> {
        let (mut connection, path) = State::connect(folder).await?;
        prepare(&mut connection, &path, Scope::Rehearsed).await.map_err(|error| error.in_file(&path))?;
        State::start(folder, failure, connection, path, Scope::Rehearsed).await
    }

    pub(super) async fn is_of_older_format(folder: &Path) -> Result<bool> {
        if !files::is_in(folder)? {
            return Ok(false);
        }
        sqlite::is_older(&files::current(folder)?, rows::VERSION).await
    }

    /// As [`State::rehearse`], for a state without a log: not a byte of the file changes.
    pub(super) async fn look(folder: &Path, failure: Failure) -> Result<State> {
        let path = files::current(folder)?;
        let mut connection = sqlite::open_reader(&path).await.map_err(|error| error.in_file(&path))?;
        let found = sqlite::user_version(&mut connection).await.map_err(|error| error.in_file(&path))?;
        if found != rows::VERSION {
            return Err(Error::Refused(format!(
                "{} has format {found}, and a state without its log is read in format {} only",
                path.display(),
                rows::VERSION
            )));
        }
        sqlx::query("BEGIN").execute(&mut connection).await.map_err(Error::sqlite("read a state"))?;
        verify::verify_in_transaction(&mut connection).await.map_err(|error| error.in_file(&path))?;
        State::start(folder, failure, connection, path, Scope::Rehearsed).await
    }

    /// Whether there is a state in the folder.
    pub(super) fn is_in(folder: &Path) -> Result<bool> {
        files::is_in(folder)
    }

    async fn connect(folder: &Path) -> Result<(SqliteConnection, PathBuf)> {
        let path = files::current(folder)?;
        let connection = sqlite::open_writer(&path, Purpose::State).await.map_err(|error| error.in_file(&path))?;
        Ok((connection, path))
    }

    /// Reads all of the state and compares it with its sums; takes a second or two per million pins. Errors: what is
    /// damaged, the disk.
    pub async fn verify(&self) -> Result<()> {
        let path = self.generation().path.clone();
        let mut connection = sqlite::open_reader(&path).await?;
        let verified = verify::verify(&mut connection).await;
        connection.close().await.map_err(Error::sqlite("close a database"))?;
        verified.map_err(|error| error.in_file(&path))?;
        let is_current = self.generation().path == path;
        self.shared.unverified.send_if_modified(|unverified| is_current && std::mem::take(unverified));
        Ok(())
    }

    /// Whether [`State::verify`] was left out when the file came into use, because it is large.
    pub fn unverified(&self) -> watch::Receiver<bool> {
        self.shared.unverified.subscribe()
    }

    async fn start(
        folder: &Path,
        failure: Failure,
        mut connection: SqliteConnection,
        path: PathBuf,
        scope: Scope,
    ) -> Result<State> {
        let (view, meta) = rows::load_status(&mut connection).await.map_err(|error| error.in_file(&path))?;
        let checkpoints = Checkpoints::beside(&path, &failure, STATE_WAL_BYTES)?;
        let rows = Rows::open(connection, Arc::new(Statements::new()), checkpoints).await;
        let mut rows = rows.map_err(|error| error.in_file(&path))?;
        match scope {
            Scope::Committed => {}
            Scope::Rehearsed => rows.rehearse(),
        }
        let applied = meta.applied.map_or(0, |id| id.index);
        let (queue, ops) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            generation: RwLock::new(Arc::new(Generation::open(&path))),
            meta: Mutex::new(meta.clone()),
            pin_count: AtomicU64::new(view.pin_count),
            applied: watch::Sender::new(applied),
            waiting: watch::Sender::new(0),
            facts: watch::Sender::new(Arc::new(Facts::of(&view))),
            recent: Recent::starting_at(applied),
            failure,
            unverified: watch::Sender::new(sqlite::is_large(&path)),
            pins_by_cid: Many::new("SELECT v, sum FROM pins WHERE cid IN (", "?", ")"),
        });
        tokio::spawn(Writer { rows, view, meta, path, shared: shared.clone() }.run(ops));
        Ok(State { shared, queue, room: Arc::new(Semaphore::new(QUEUE_BYTES)) })
    }

    /// Pins whose CID is above `after`, as the writer sees them.
    pub(super) async fn list_rehearsed(&self, after: &[u8], limit: usize) -> Result<Chunk> {
        let (done, listed) = oneshot::channel();
        self.send(Op::List { after: after.to_owned(), limit, done }).await?;
        listed.await.map_err(|_| self.closed())?
    }

    /// Whether the state was installed from another peer's, rather than made by the log alone.
    pub(super) fn is_from_snapshot(&self) -> bool {
        self.generation().path.file_name().is_none_or(|name| name != files::FIRST)
    }

    /// Applies committed entries, in order, in one transaction. Returns what each command came to when it is committed;
    /// `None` for other entries. The caller bounds the batch.
    pub async fn apply(&self, records: Vec<Record>) -> Result<Vec<Option<Outcome>>> {
        let (done, applied) = oneshot::channel();
        let done = Box::new(|outcomes| {
            // The caller may have given up; what was written stands.
            let _ = done.send(outcomes);
        });
        self.queue(records, 0, Some(done)).await?;
        applied.await.map_err(|_| self.closed())?
    }

    /// The same, without waiting for it: batches that wait go into one transaction ([`gather`]). Returns when there is room
    /// for this one. The last `unlogged` entries are not on the log's disk. An error is final, and what comes after it is
    /// refused.
    pub async fn queue(&self, records: Vec<Record>, unlogged: u64, done: Option<Applied>) -> Result<()> {
        let bytes: usize = records.iter().map(|record| record.size_bytes().max(LEAST_RECORD_BYTES)).sum();
        let bytes = u32::try_from(bytes.clamp(1, QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| self.closed())?;
        self.send(Op::Apply(Batch { records, unlogged, done, room })).await
    }

    /// Waits until everything that was queued before is committed.
    pub async fn settle(&self) -> Result<()> {
        self.apply(Vec::new()).await.map(drop)
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

    /// Waits until `index` is applied, which is not put off for what may come behind it. The caller sets a deadline.
    pub async fn wait_applied(&self, index: u64) {
        let mut applied = self.applied();
        let is_reached = |applied: &u64| *applied >= index;
        if is_reached(&applied.borrow()) {
            return;
        }
        let _waiting = Waiting::begin(&self.shared.waiting);
        // The sender is never gone before the state, which has it.
        let _ = applied.wait_for(is_reached).await;
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
        // The writer last: only a connection that may write can put the write-ahead log away.
        self.generation().readers.close().await;
        let (done, closed) = oneshot::channel();
        if self.queue.send(Op::Close { done }).await.is_ok() {
            // The writer drops the sender when it ended before.
            let _ = closed.await;
        }
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
