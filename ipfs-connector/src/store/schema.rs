//! The tables, and how they are opened.

use std::path::Path;
use std::time::Duration;

use pinfold_common::status::TrackerStatus;
use pinfold_proto::consensus::Cursor;
use prost::Message as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Row as _, SqliteConnection, SqlitePool};

use super::{Counts, failed};
use crate::error::{ConnectorError, Result};

/// `PRAGMA user_version` of the tables below.
const VERSION: i64 = 3;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Pages in the WAL before it is folded into the file: rows that change several times within it are written once.
const CHECKPOINT_PAGES: &str = "8000";
/// Negative: KiB of page cache, for the writer and for each reader. What is not in them is in the kernel's, a microsecond
/// away. The file is not mapped: all of it that was ever read would count as this service's memory.
const WRITER_CACHE: &str = "-4096";
const READER_CACHE: &str = "-512";
/// Rows that run ahead of a reader.
const ROW_BUFFER: usize = 256;

/// `next_try` is set exactly while work is planned, so the index of planned work is as large as the queue, not the
/// table. Rows have their own key beside the CID: new rows go to the end of the file, only the CID's index is written
/// all over the place.
const TABLES: &str = "
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    cid BLOB NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    class INTEGER NOT NULL,
    status INTEGER NOT NULL,
    todo INTEGER NOT NULL,
    ownership INTEGER NOT NULL,
    hold INTEGER NOT NULL,
    direct INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    next_try INTEGER,
    attempts INTEGER NOT NULL,
    reason INTEGER NOT NULL,
    error TEXT NOT NULL,
    changed INTEGER NOT NULL,
    pin BLOB NOT NULL,
    blocks INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    last_block INTEGER
) STRICT;
CREATE INDEX items_planned ON items (lane, next_try) WHERE next_try IS NOT NULL;
CREATE INDEX items_in_error ON items (cid) WHERE status IN (4, 8, 4096);
CREATE INDEX items_held ON items (hold, cid) WHERE hold > 0;
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
PRAGMA user_version = 3;
";

/// From version 1: how far attempts came, and what is held in CID order.
const FROM_1: &str = "
DROP INDEX items_held;
CREATE INDEX items_held ON items (hold, cid) WHERE hold > 0;
ALTER TABLE items ADD COLUMN blocks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE items ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE items ADD COLUMN last_block INTEGER;
";

/// From version 2: what was tried has a lane of its own. Only where something is planned, which has an index: the others get
/// theirs when they are planned again.
const FROM_2: &str = "
UPDATE items SET lane = 4 WHERE lane = 0 AND next_try IS NOT NULL AND attempts > 0;
PRAGMA user_version = 3;
";

pub(super) const CURSOR_KEY: &str = "cursor";
pub(super) const REBUILT_KEY: &str = "rebuilt_index";
/// The peer ID of the IPFS node whose pins the rows claim.
pub(super) const NODE_KEY: &str = "node";

/// What was found on disk.
pub(super) struct Opened {
    pub cursor: Option<Cursor>,
    pub rebuilt_index: u64,
    pub node: Option<Vec<u8>>,
    pub counts: Counts,
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .row_buffer_size(ROW_BUFFER)
}

/// The writer's connection.
pub(super) async fn connect(path: &Path) -> Result<SqliteConnection> {
    let options = options(path)
        .create_if_missing(true)
        .pragma("cache_size", WRITER_CACHE)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES);
    SqliteConnection::connect_with(&options).await.map_err(failed("open tracker.db"))
}

pub(super) async fn readers(path: &Path, count: u32) -> Result<SqlitePool> {
    let options = options(path).read_only(true).pragma("cache_size", READER_CACHE);
    SqlitePoolOptions::new()
        .max_connections(count)
        // A file does not go away like a server: no question before each use.
        .test_before_acquire(false)
        .connect_with(options)
        .await
        .map_err(failed("open tracker.db"))
}

/// Makes the tables when the file is new, and reads what is not in rows. A new file means that everything up to the
/// first time the follower is caught up may have been ours before.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<Opened> {
    let version: i64 = sqlx::query_scalar("PRAGMA user_version")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed("read the version"))?;
    match version {
        0 => {
            change_tables(connection, &[TABLES]).await?;
            set_meta(connection, REBUILT_KEY, &i64::MAX.to_be_bytes()).await?;
        }
        1 => change_tables(connection, &[FROM_1, FROM_2]).await?,
        2 => change_tables(connection, &[FROM_2]).await?,
        VERSION => {}
        other => {
            return Err(ConnectorError::Corrupt { what: format!("version {other} of the tables is not known here") });
        }
    }
    let cursor = meta(connection, CURSOR_KEY)
        .await?
        .map(|bytes| Cursor::decode(bytes.as_slice()))
        .transpose()
        .map_err(|error| ConnectorError::Corrupt { what: format!("the cursor: {error}") })?;
    let rebuilt = meta(connection, REBUILT_KEY).await?.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    let node = meta(connection, NODE_KEY).await?;
    let counts = Counts::default();
    let rows = sqlx::query("SELECT status, count(*) FROM items GROUP BY status")
        .fetch_all(connection)
        .await
        .map_err(failed("count the rows"))?;
    for row in rows {
        let status: i64 = row.get(0);
        counts.add(TrackerStatus::from_bit(u32::try_from(status).unwrap_or(0)), row.get(1));
    }
    Ok(Opened { cursor, rebuilt_index: rebuilt.map_or(0, u64::from_be_bytes), node, counts })
}

async fn change_tables(connection: &mut SqliteConnection, steps: &[&'static str]) -> Result<()> {
    let mut transaction = connection.begin().await.map_err(failed("begin"))?;
    for statements in steps {
        sqlx::raw_sql(*statements).execute(&mut *transaction).await.map_err(failed("change the tables"))?;
    }
    transaction.commit().await.map_err(failed("change the tables"))
}

async fn meta(connection: &mut SqliteConnection, key: &'static str) -> Result<Option<Vec<u8>>> {
    sqlx::query_scalar("SELECT value FROM meta WHERE key = ?")
        .bind(key)
        .fetch_optional(connection)
        .await
        .map_err(failed("read meta"))
}

pub(super) async fn set_meta(connection: &mut SqliteConnection, key: &'static str, value: &[u8]) -> Result<()> {
    sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
        .bind(key)
        .bind(value)
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(failed("write meta"))
}
