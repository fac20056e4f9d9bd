//! What the embedded node knows about its blocks and pins, in SQLite: the only place of the node that speaks SQL
//! (beside `keyset`'s throw-away table). Rows of blocks give sizes, holds and the O(1) counter; whether a block is there
//! is for its file to say. A row is written after its file and removed before it, so that the counter never counts
//! what is not there.
//!
//! All changes go through one task, which takes what is waiting as one transaction: an answer means that the change is
//! on disk, and many callers share one flush.

mod look_up;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Row as _, SqlitePool};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use pinfold_common::Cid;
use pinfold_common::ids::cid_from_bytes;
use pinfold_common::pin::PinMode;

use super::key::Key;
use crate::node::{NodeError, PinState, Result};
use look_up::Question;
use writer::{BlockChange, Change, PinChange};

const FILE: &str = "index.db";
const READERS: u32 = 4;
/// Changes waiting for the writer; then their callers wait.
const QUEUED_CHANGES: usize = 256;
/// Look-ups waiting for the reader; then their callers wait.
const QUEUED_QUESTIONS: usize = 1024;
/// Negative: KiB of page cache of a connection. What is not in it is in the kernel's.
const WRITER_CACHE: &str = "-2048";
const READER_CACHE: &str = "-512";
const BUSY_DEADLINE: Duration = Duration::from_secs(10);
/// What the tables below are called among versions of them; another one is refused.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
-- held_until: Unix seconds up to which GC leaves it alone without a pin
CREATE TABLE IF NOT EXISTS blocks (multihash BLOB PRIMARY KEY, size INTEGER NOT NULL, held_until INTEGER NOT NULL)
    WITHOUT ROWID;
-- mode: what it is pinned as; pinning: what is being worked on. 0 none, 1 direct, 2 recursive.
CREATE TABLE IF NOT EXISTS pins (cid BLOB PRIMARY KEY, mode INTEGER NOT NULL, pinning INTEGER NOT NULL,
    touched_at INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('schema', 1), ('blocks', 0), ('bytes', 0), ('held_until', 0), ('clean', 1);
";

/// A row of `pins`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinRow {
    pub cid: Cid,
    pub pinned: Option<PinMode>,
    pub pinning: Option<PinMode>,
    /// When it was last started or finished, in Unix seconds.
    pub touched_at: i64,
}

impl PinRow {
    pub fn state(&self) -> PinState {
        match self.pinned {
            None => PinState::NotPinned,
            Some(PinMode::Direct) => PinState::Direct,
            Some(PinMode::Recursive) => PinState::Recursive,
        }
    }
}

/// A row of `blocks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRow {
    pub key: Key,
    pub size_bytes: u64,
    pub held_until: i64,
}

/// What the counters say; they are written with every transaction.
#[derive(Debug, Default)]
struct Counters {
    blocks: AtomicU64,
    bytes: AtomicU64,
    /// The latest end of any hold there ever was.
    held_until: AtomicI64,
}

pub struct Index {
    changes: mpsc::Sender<Change>,
    questions: mpsc::Sender<Question>,
    closing: CancellationToken,
    /// For lists.
    readers: SqlitePool,
    counters: Arc<Counters>,
    /// Whether the last process closed it.
    was_closed: bool,
}

impl Index {
    pub async fn open(folder: &Path) -> Result<Index> {
        let options = SqliteConnectOptions::new()
            .filename(folder.join(FILE))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_DEADLINE)
            .disable_statement_logging();
        let writing = options.clone().pragma("cache_size", WRITER_CACHE);
        let options = options.pragma("cache_size", READER_CACHE);
        let mut connection = writing.connect().await.map_err(failed("open"))?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await.map_err(failed("make tables"))?;
        let rows =
            sqlx::query("SELECT key, value FROM meta").fetch_all(&mut connection).await.map_err(failed("read"))?;
        let meta =
            |key: &str| rows.iter().find(|row| row.get::<&str, _>(0) == key).map_or(0, |row| row.get::<i64, _>(1));
        if meta("schema") != SCHEMA_VERSION {
            return Err(NodeError::Refused(format!(
                "embedded node: index has version {}, this program reads {SCHEMA_VERSION}",
                meta("schema")
            )));
        }
        let counters = Arc::new(Counters {
            blocks: AtomicU64::new(unsigned(meta("blocks"))),
            bytes: AtomicU64::new(unsigned(meta("bytes"))),
            held_until: AtomicI64::new(meta("held_until")),
        });
        let was_closed = meta("clean") == 1;
        sqlx::query("UPDATE meta SET value = 0 WHERE key = 'clean'")
            .execute(&mut connection)
            .await
            .map_err(failed("mark as open"))?;
        let looking_up = options.clone().connect().await.map_err(failed("open"))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            // A file does not go away like a server: no question before each use.
            .test_before_acquire(false)
            .connect_lazy_with(options);
        let (questions, queue) = mpsc::channel(QUEUED_QUESTIONS);
        let closing = CancellationToken::new();
        tokio::spawn(look_up::run(looking_up, queue, closing.clone()));
        let (changes, queue) = mpsc::channel(QUEUED_CHANGES);
        tokio::spawn(writer::run(connection, queue, counters.clone()));
        Ok(Index { changes, questions, closing, readers, counters, was_closed })
    }

    pub fn was_closed(&self) -> bool {
        self.was_closed
    }

    pub fn blocks(&self) -> u64 {
        self.counters.blocks.load(Ordering::Relaxed)
    }

    pub fn size_bytes(&self) -> u64 {
        self.counters.bytes.load(Ordering::Relaxed)
    }

    /// Whether any hold may be running.
    pub fn has_holds(&self) -> bool {
        self.counters.held_until.load(Ordering::Relaxed) > now()
    }

    /// These blocks have their files. An existing row keeps the later hold.
    pub async fn stored(&self, rows: Vec<BlockRow>) -> Result<()> {
        self.change(|answer| Change::Blocks(BlockChange::Stored(rows, answer))).await
    }

    /// Removes the rows of blocks that are not held any more; answers which.
    pub async fn removed(&self, keys: Vec<Key>) -> Result<Vec<Key>> {
        self.change(|answer| Change::Blocks(BlockChange::Removed(keys, answer))).await
    }

    /// Removes the row of a block whose file is gone.
    pub async fn lost(&self, key: Key) -> Result<()> {
        self.change(|answer| Change::Blocks(BlockChange::Lost(key, answer))).await
    }

    /// Ends the holds of blocks that a pin protects now. Nobody has to wait: a hold that stays only keeps longer.
    pub async fn release(&self, keys: Vec<Key>) {
        if self.changes.send(Change::Blocks(BlockChange::Released(keys))).await.is_err() {
            tracing::debug!("holds not released: the index is closed");
        }
    }

    /// Work on a pin begins: from now on GC keeps what there is of it.
    pub async fn pin_started(&self, cid: &Cid, mode: PinMode) -> Result<()> {
        self.change(|answer| Change::Pin(PinChange::Started(*cid, mode, answer))).await
    }

    /// Everything is on disk. `false`: it was unpinned meanwhile.
    pub async fn pin_done(&self, cid: &Cid, mode: PinMode) -> Result<bool> {
        self.change(|answer| Change::Pin(PinChange::Done(*cid, mode, answer))).await
    }

    /// A pin of which nothing has to be fetched: started and done.
    pub async fn pinned(&self, cid: &Cid, mode: PinMode) -> Result<()> {
        self.change(|answer| Change::Pin(PinChange::Pinned(*cid, mode, answer))).await
    }

    /// Forgets a pin, done or not, or none.
    pub async fn pin_removed(&self, cid: &Cid) -> Result<()> {
        self.change(|answer| Change::Pin(PinChange::Removed(*cid, answer))).await
    }

    /// Writes what is waiting and marks the index as whole.
    pub async fn close(&self) -> Result<()> {
        self.readers.close().await;
        self.closing.cancel();
        self.questions.closed().await;
        self.change(Change::Close).await
    }

    pub async fn pin(&self, cid: &Cid) -> Result<Option<PinRow>> {
        let closed = || NodeError::Down("embedded node: its index is closed".into());
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question { cid: *cid, answer }).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// At most `limit` rows behind `after`, in the order of their CID bytes.
    pub async fn pins_after(&self, after: Option<&Cid>, limit: u32) -> Result<Vec<PinRow>> {
        sqlx::query("SELECT cid, mode, pinning, touched_at FROM pins WHERE cid > ? ORDER BY cid LIMIT +?")
            .bind(after.map(Cid::to_bytes).unwrap_or_default())
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .map_err(failed("list pins"))?
            .iter()
            .map(pin_row)
            .collect()
    }

    /// At most `limit` rows behind `after`, in the order of their keys.
    pub async fn blocks_after(&self, after: Option<&Key>, limit: u32) -> Result<Vec<BlockRow>> {
        let rows = sqlx::query(
            "SELECT multihash, size, held_until FROM blocks WHERE multihash > ? ORDER BY multihash LIMIT +?",
        )
        .bind(after.map(|key| key.as_bytes().to_vec()).unwrap_or_default())
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(failed("list blocks"))?;
        Ok(rows
            .iter()
            .map(|row| BlockRow {
                key: Key::from_bytes(row.get(0)),
                size_bytes: unsigned(row.get(1)),
                held_until: row.get(2),
            })
            .collect())
    }

    /// Whether there is a row.
    pub async fn knows(&self, key: &Key) -> Result<bool> {
        sqlx::query("SELECT 1 FROM blocks WHERE multihash = ?")
            .bind(key.as_bytes().to_vec())
            .fetch_optional(&self.readers)
            .await
            .map(|row| row.is_some())
            .map_err(failed("read block"))
    }

    async fn change<T>(&self, make: impl FnOnce(oneshot::Sender<Result<T>>) -> Change) -> Result<T> {
        let closed = || NodeError::Down("embedded node: its index is closed".into());
        let (answer, answered) = oneshot::channel();
        self.changes.send(make(answer)).await.map_err(|_| closed())?;
        // Dropped without an answer: another change of the same transaction failed, or the writer has ended.
        answered.await.map_err(|_| NodeError::Other("embedded node: index: the change was not written".into()))?
    }
}

fn pin_row(row: &sqlx::sqlite::SqliteRow) -> Result<PinRow> {
    let cid = cid_from_bytes(row.get(0)).map_err(|error| NodeError::Other(format!("embedded node: pins: {error}")))?;
    Ok(PinRow { cid, pinned: mode_of(row.get(1)), pinning: mode_of(row.get(2)), touched_at: row.get(3) })
}

fn mode_of(number: i64) -> Option<PinMode> {
    match number {
        1 => Some(PinMode::Direct),
        2 => Some(PinMode::Recursive),
        _ => None,
    }
}

fn number_of(mode: PinMode) -> i64 {
    match mode {
        PinMode::Direct => 1,
        PinMode::Recursive => 2,
    }
}

/// Seconds since the Unix epoch; holds must survive a restart, so they cannot be monotonic.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn failed(doing: &'static str) -> impl Fn(sqlx::Error) -> NodeError {
    move |error| {
        let text = format!("embedded node: index: {doing}");
        match &error {
            // SQLITE_FULL: in the words of the files beside it, so that people see the same whoever notices first.
            sqlx::Error::Database(inner) if inner.code().as_deref() == Some("13") => {
                NodeError::DiskFull(format!("{text}: No space left on device: {error}"))
            }
            _ => NodeError::Other(format!("{text}: {error}")),
        }
    }
}
