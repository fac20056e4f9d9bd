//! The Raft log and the vote: `log.db`, its cache in memory, and the handle that the consensus library's adapter uses.
//!
//! The newest entries are served from memory, at most [`MAX_CACHE_BYTES`] of them; older ones are read from the file.
//! Only what is on disk leaves the cache. One caller writes (`append`, `truncate_after`, `purge`, `save_vote` in its
//! order); any number read.

mod cache;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};

use super::error::{Error, Failure, Result};
use super::readers::Readers;
use super::record::{LogId, Record, Vote, split_group};
use super::sqlite::{self, Purpose};
use super::wal;
use cache::{Cache, Cached};
use writer::{Op, Writer};

/// Entries in memory, by the estimate of [`Cached::size_bytes`].
pub const MAX_CACHE_BYTES: usize = 4 << 20;
/// Writes that wait for the disk. A full queue holds up the consensus library, which holds up its clients.
const QUEUE: usize = 1024;
/// Groups that one query for old entries reads: at most 16 MiB.
const GROUPS_PER_READ: i64 = 16;
const READERS: usize = 2;
const VERSION: i64 = 2;
const SCHEMA: &str = "
    BEGIN;
    CREATE TABLE groups (
        first INTEGER PRIMARY KEY,
        last INTEGER NOT NULL,
        committed BLOB,
        entries BLOB NOT NULL,
        sum INTEGER
    );
    CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL, sum INTEGER) WITHOUT ROWID;
    PRAGMA user_version = 2;
    COMMIT;
";
/// From the first format, which had no sums.
const FROM_1: &str = "
    BEGIN IMMEDIATE;
    ALTER TABLE groups ADD COLUMN sum INTEGER;
    ALTER TABLE facts ADD COLUMN sum INTEGER;
    PRAGMA user_version = 2;
    COMMIT;
";

/// All columns that the sum is over.
const READ_GROUPS: &str = "SELECT first, last, committed, entries, sum FROM groups WHERE first < ? AND last >= ? \
                           ORDER BY first LIMIT +?";

/// Called once, when the entries are on disk or can't be any more.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    cache: Mutex<Cache>,
    queue: mpsc::Sender<Op>,
    readers: Readers,
    failure: Failure,
}

/// The ends of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStatus {
    pub purged: Option<LogId>,
    /// Of the newest entry, or `purged` when there is none.
    pub last: Option<LogId>,
}

impl Log {
    pub(super) async fn open(folder: &Path, failure: Failure) -> Result<Log> {
        Log::open_bounded(folder, failure, MAX_CACHE_BYTES).await
    }

    async fn open_bounded(folder: &Path, failure: Failure, cache_bytes: usize) -> Result<Log> {
        let path = folder.join(super::LOG_FILE);
        // Before SQLite looks at it, and forgets what is behind the damage.
        wal::check(&path)?;
        let (connection, cache) = Log::load(&path, cache_bytes).await.map_err(|error| error.in_file(&path))?;
        let (queue, ops) = mpsc::channel(QUEUE);
        let readers = Readers::new(&path, READERS);
        let shared = Arc::new(Shared { cache: Mutex::new(cache), queue, readers, failure });
        tokio::spawn(Writer::new(connection, Arc::downgrade(&shared), shared.failure.clone()).run(ops));
        Ok(Log(shared))
    }

    async fn load(path: &Path, cache_bytes: usize) -> Result<(SqliteConnection, Cache)> {
        let mut connection = sqlite::open_writer(path, Purpose::Log).await?;
        if sqlite::prepare(&mut connection, path, VERSION, SCHEMA).await? == 1 {
            let doing = "bring the log to this version's format";
            sqlx::raw_sql(FROM_1).execute(&mut connection).await.map_err(Error::sqlite(doing))?;
        }
        if !sqlite::is_large(path) {
            sqlite::check_structure(&mut connection).await?;
        }
        // What is read here is told to others as what is on this disk.
        sqlite::sync(&mut connection, path).await?;
        let cache = writer::load(&mut connection, cache_bytes).await?;
        Ok((connection, cache))
    }

    pub(super) async fn is_of_older_format(folder: &Path) -> Result<bool> {
        sqlite::is_older(&folder.join(super::LOG_FILE), VERSION).await
    }

    /// A new log that begins after `purged`.
    pub(super) async fn seed(folder: &Path, purged: LogId, vote: Vote) -> Result<()> {
        let log = Log::open(folder, Failure::default()).await?;
        log.save_vote(vote).await?;
        log.purge(purged).await?;
        log.close().await;
        Ok(())
    }

    pub fn status(&self) -> LogStatus {
        let cache = self.0.cache.lock();
        LogStatus { purged: cache.purged, last: cache.last.or(cache.purged) }
    }

    /// The vote as it is on disk.
    pub fn vote(&self) -> Option<Vote> {
        self.0.cache.lock().vote
    }

    /// Answered when it is on disk.
    pub async fn save_vote(&self, vote: Vote) -> Result<()> {
        let (done, written) = oneshot::channel();
        self.send(Op::Vote { vote, done }).await?;
        written.await.map_err(|_| Error::Closed)?
    }

    /// How often a process was started on this log.
    pub fn starts(&self) -> u64 {
        self.0.cache.lock().starts
    }

    /// The node that was last started on it.
    pub fn node(&self) -> Option<u64> {
        self.0.cache.lock().node
    }

    /// Answered when both are on disk.
    pub async fn save_starts(&self, starts: u64, node: u64) -> Result<()> {
        let (done, written) = oneshot::channel();
        self.send(Op::Starts { starts, node, done }).await?;
        written.await.map_err(|_| Error::Closed)?
    }

    pub fn committed(&self) -> Option<LogId> {
        self.0.cache.lock().committed
    }

    /// Remembered now, written with the next entries: after a crash it may be lower, never higher than what was
    /// committed.
    pub fn save_committed(&self, committed: Option<LogId>) {
        self.0.cache.lock().committed = committed;
    }

    /// The entries can be read when this returns; `done` is called when they are on disk.
    pub async fn append(&self, records: Vec<Record>, done: Done) -> Result<()> {
        if records.is_empty() {
            done(Ok(()));
            return Ok(());
        }
        let entries: Vec<Cached> = records.into_iter().map(Cached::new).collect();
        let encoded = entries.iter().map(|entry| (entry.record.id.index, entry.encoded.clone())).collect();
        let epoch = self.0.cache.lock().append(entries)?;
        self.send(Op::Append { entries: encoded, epoch, done }).await
    }

    /// How many of the entries up to `index` are not on this disk yet. A majority of others may have them.
    pub fn unlogged(&self, index: u64) -> u64 {
        self.0.cache.lock().unlogged(index)
    }

    /// Removes every entry after `keep`, all without it. Answered when that is on disk.
    pub async fn truncate_after(&self, keep: Option<LogId>) -> Result<()> {
        self.0.cache.lock().truncate_after(keep);
        let (done, written) = oneshot::channel();
        self.send(Op::Truncate { keep: keep.map(|id| id.index), done }).await?;
        written.await.map_err(|_| Error::Closed)?
    }

    /// Removes every entry up to and with `upto`, which may lie behind the last one. Answered when that is on disk.
    pub async fn purge(&self, upto: LogId) -> Result<()> {
        self.0.cache.lock().purge(upto);
        let (done, written) = oneshot::channel();
        self.send(Op::Purge { upto, done }).await?;
        written.await.map_err(|_| Error::Closed)?
    }

    /// The entries with `start <= index < end` that there are, in order and without a hole; at least one, if there is
    /// one, and otherwise not more than `max_bytes` of them.
    pub async fn read(&self, start: u64, end: u64, max_bytes: usize) -> Result<Vec<Record>> {
        let mut found: Vec<Record> = Vec::new();
        let mut bytes = 0;
        let mut next = start;
        while next < end {
            let cached_from = {
                let cache = self.0.cache.lock();
                next = next.max(cache.oldest());
                if cache.covers(next) {
                    cache.read(next, end, max_bytes, &mut bytes, &mut found);
                    return Ok(found);
                }
                cache.first()
            };
            let records = self.read_file(next, end.min(cached_from)).await?;
            if records.first().is_none_or(|(record, _)| record.id.index != next) {
                // Purged meanwhile, or truncated.
                let cache = self.0.cache.lock();
                if cache.covers(next) || cache.oldest() > next {
                    continue;
                }
                return Err(Error::damaged(format!("log entry {next} is missing")));
            }
            for (record, size) in records {
                if record.id.index != next {
                    return Err(Error::damaged(format!("log entry {next} is missing")));
                }
                if !found.is_empty() && bytes + size > max_bytes {
                    return Ok(found);
                }
                bytes += size;
                found.push(record);
                next += 1;
            }
        }
        Ok(found)
    }

    /// Entries of the first groups that reach into the range.
    async fn read_file(&self, start: u64, end: u64) -> Result<Vec<(Record, usize)>> {
        let mut reader = self.0.readers.acquire().await?;
        let rows = sqlx::query(READ_GROUPS)
            .bind(end as i64)
            .bind(start as i64)
            .bind(GROUPS_PER_READ)
            .fetch_all(&mut *reader)
            .await
            .map_err(Error::sqlite("read log entries"))
            .inspect_err(|error| self.0.failure.set_by_read(error, self.0.readers.path()))?;
        let mut records = Vec::new();
        for row in rows {
            for entry in split_group(writer::checked_entries(&row)?)? {
                let size = entry.len();
                let record = Record::decode(entry)?;
                if (start..end).contains(&record.id.index) {
                    records.push((record, size));
                }
            }
        }
        Ok(records)
    }

    /// Writes what is queued and closes the file. Idempotent.
    pub(super) async fn close(&self) {
        // The writer last: only a connection that may write can put the write-ahead log away.
        self.0.readers.close().await;
        let (done, closed) = oneshot::channel();
        if self.0.queue.send(Op::Close { done }).await.is_ok() {
            // The writer drops the sender when it ends for another reason.
            let _ = closed.await;
        }
    }

    async fn send(&self, op: Op) -> Result<()> {
        self.0.queue.send(op).await.map_err(|_| self.0.failure.get().unwrap_or(Error::Closed))
    }
}
