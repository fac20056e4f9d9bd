//! How this room uses SQLite: the options of its connections, statements over many rows, the version it insists on.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pinfold_common::files::sync_folder;
use sqlx::sqlite::{Sqlite, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ColumnIndex, ConnectOptions, Connection, Decode, Row, Type};

use super::error::{Error, Result};

/// Rows in one statement. A statement per row costs a hop to SQLite's thread each.
pub const ROWS: usize = 64;
/// Statements of every size and kind stay prepared.
const STATEMENT_CACHE: usize = 1024;
/// How long a connection waits for another one's lock. The writers never wait for each other: one per file.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);
/// Rows that SQLite's thread may be ahead of a reader.
const ROW_BUFFER: usize = 1024;
/// The write-ahead log's file is cut back to this after a checkpoint: what a busy one has while it is moved fits.
const WAL_KEEP_BYTES: u64 = 256 << 20;
/// What is not in them is in the kernel's page cache, a microsecond away. The state is written all over the place, the log at
/// its ends.
const STATE_CACHE_KIB: i32 = 4 << 10;
const LOG_CACHE_KIB: i32 = 1 << 10;
/// Nearly every pin has a leaf of the index of CIDs, which are random, written for itself alone: to the write-ahead log,
/// then to the file. SQLite's usual 4 KiB are twice as much of both; at 1 KiB the trees get so deep that it costs more again.
/// A file keeps the size it was created with.
pub const STATE_PAGE_BYTES: u32 = 2048;
pub const LOG_PAGE_BYTES: u32 = 4096;
const READER_CACHE_KIB: i32 = 1 << 10;
/// Imports in any order find their place by a tree over random keys.
const BUILDER_CACHE_KIB: i32 = 128 << 10;

/// The first release without the WAL-reset bug, which silently loses committed data.
const OLDEST: (u32, u32, u32) = (3, 51, 3);

/// Files up to this size are checked when they are opened, which takes a fraction of a second; larger ones as they are
/// read, and in the background.
const CHECKED_AT_START_BYTES: u64 = 32 << 20;

/// The write-ahead log of `database`.
pub fn wal_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Forces the write-ahead log of `database` to disk, if there is one. Opening that file, unlike the database itself, drops
/// no lock of SQLite's: it keeps none there.
pub fn sync_wal(database: &Path) -> Result<()> {
    match File::open(wal_of(database)) {
        Ok(file) => file.sync_data().map_err(Error::io("sync a write-ahead log")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("open a write-ahead log")(error)),
    }
}

/// Forces every commit of `database` to disk, as copies in its file. After an error of the disk the write-ahead log may be
/// whole in the kernel's memory alone, and syncing it again says nothing.
pub async fn sync(connection: &mut SqliteConnection, database: &Path) -> Result<()> {
    let doing = "checkpoint a database";
    let row = sqlx::query("PRAGMA wal_checkpoint(FULL)").fetch_one(connection).await.map_err(Error::sqlite(doing))?;
    let is_blocked = row.get::<i64, _>(0) != 0;
    if is_blocked {
        // A reader holds an old page back. The write-ahead log itself is enough, once it is synced, and that it is there.
        let database = database.to_owned();
        let synced = tokio::task::spawn_blocking(move || {
            sync_wal(&database)?;
            database.parent().map_or(Ok(()), sync_folder).map_err(Error::io("sync the folder of a database"))
        });
        synced.await.map_err(|_| Error::Closed)??;
    }
    Ok(())
}

/// Whether the file is too large to be checked at every start.
pub fn is_large(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > CHECKED_AT_START_BYTES)
}

/// What a file is written for, and so when a commit is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// When it is answered.
    Log,
    /// At the next checkpoint; until then a power cut may take the newest commits, in order.
    State,
}

/// Refuses an SQLite that loses data.
pub async fn check_version() -> Result<()> {
    let doing = "ask SQLite for its version";
    let mut connection = SqliteConnection::connect("sqlite::memory:").await.map_err(Error::sqlite(doing))?;
    let row = sqlx::query("SELECT sqlite_version()").fetch_one(&mut connection).await.map_err(Error::sqlite(doing))?;
    let text: String = row.get(0);
    connection.close().await.map_err(Error::sqlite(doing))?;
    accept(&text)
}

fn accept(version: &str) -> Result<()> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    if (next(), next(), next()) >= OLDEST {
        return Ok(());
    }
    let (major, minor, patch) = OLDEST;
    Err(Error::Refused(format!(
        "SQLite {version} can lose committed data when its write-ahead log is reset; at least {major}.{minor}.{patch} is needed"
    )))
}

/// The one connection that writes `path`, which is created when it is not there.
pub async fn open_writer(path: &Path, purpose: Purpose) -> Result<SqliteConnection> {
    let (synchronous, cache_kib, page_bytes) = match purpose {
        Purpose::Log => (SqliteSynchronous::Full, LOG_CACHE_KIB, LOG_PAGE_BYTES),
        Purpose::State => (SqliteSynchronous::Normal, STATE_CACHE_KIB, STATE_PAGE_BYTES),
    };
    let options = writing(path, cache_kib).create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
    options
        .page_size(page_bytes)
        .synchronous(synchronous)
        .connect()
        .await
        .map_err(Error::sqlite("open a database for writing"))
}

/// A connection beside the one that writes, which moves its write-ahead log to the file.
pub async fn open_mover(path: &Path) -> Result<SqliteConnection> {
    let options = writing(path, READER_CACHE_KIB).synchronous(SqliteSynchronous::Normal);
    options.connect().await.map_err(Error::sqlite("open a database for a checkpoint"))
}

fn writing(path: &Path, cache_kib: i32) -> SqliteConnectOptions {
    options(path, cache_kib)
        // SQLite's own checkpoints keep an error of the disk to themselves: see `checkpoints`.
        .pragma("wal_autocheckpoint", "0")
        .pragma("journal_size_limit", WAL_KEEP_BYTES.to_string())
}

/// The one connection that fills a new state, which counts for nothing until it is whole and synced.
pub async fn open_builder(path: &Path) -> Result<SqliteConnection> {
    options(path, BUILDER_CACHE_KIB)
        .create_if_missing(true)
        .page_size(STATE_PAGE_BYTES)
        .journal_mode(SqliteJournalMode::Off)
        .synchronous(SqliteSynchronous::Off)
        .connect()
        .await
        .map_err(Error::sqlite("create a database"))
}

/// One connection that only reads `path`.
pub async fn open_reader(path: &Path) -> Result<SqliteConnection> {
    reading(path).connect().await.map_err(Error::sqlite("open a database for reading"))
}

/// The same of a state, to write what it reads to another file, which need not survive a crash.
pub async fn open_copier(path: &Path) -> Result<SqliteConnection> {
    let options = reading(path).page_size(STATE_PAGE_BYTES).synchronous(SqliteSynchronous::Off);
    options.connect().await.map_err(Error::sqlite("open a database for copying"))
}

fn reading(path: &Path) -> SqliteConnectOptions {
    options(path, READER_CACHE_KIB).read_only(true)
}

fn options(path: &Path, cache_kib: i32) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_DEADLINE)
        .statement_cache_capacity(STATEMENT_CACHE)
        .row_buffer_size(ROW_BUFFER)
        .foreign_keys(false)
        .pragma("cache_size", (-cache_kib).to_string())
        .pragma("temp_store", "MEMORY")
        .disable_statement_logging()
}

/// The same statement for 1 to [`ROWS`] rows: `head`, the row as often as needed with commas between, `tail`.
pub struct Many(Vec<Arc<str>>);

impl Many {
    pub fn new(head: &str, row: &str, tail: &str) -> Many {
        Many((1..=ROWS).map(|rows| format!("{head}{}{tail}", vec![row; rows].join(",")).into()).collect())
    }

    /// `rows` is 1 to [`ROWS`].
    pub fn rows(&self, rows: usize) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(self.0[rows - 1].clone())
    }

    /// The same, to be part of a longer text.
    pub fn text(&self, rows: usize) -> &str {
        &self.0[rows - 1]
    }
}

/// Our version of the tables, in the file's header.
pub async fn user_version(connection: &mut SqliteConnection) -> Result<i64> {
    let doing = "read the format version of a database";
    let row = sqlx::query("PRAGMA user_version").fetch_one(connection).await.map_err(Error::sqlite(doing))?;
    Ok(i64::from(row.get::<i32, _>(0)))
}

/// Whether the file is there, and its format is older than `version`.
pub async fn is_older(path: &Path, version: i64) -> Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let mut connection = open_reader(path).await.map_err(|error| error.in_file(path))?;
    let found = user_version(&mut connection).await.map_err(|error| error.in_file(path))?;
    connection.close().await.map_err(Error::sqlite("close a database"))?;
    Ok(found != 0 && found < version)
}

/// Creates the tables in an empty file; refuses one of a later version. Returns the version that was found; an empty
/// file has this one.
pub async fn prepare(
    connection: &mut SqliteConnection,
    path: &Path,
    version: i64,
    schema: &'static str,
) -> Result<i64> {
    let found = user_version(connection).await?;
    if found > version {
        return Err(Error::Refused(format!(
            "{} has format {found}, this version knows {version}: it was written by a later Pinfold",
            path.display()
        )));
    }
    if found == 0 {
        let doing = "look for tables";
        let tables = sqlx::query("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *connection).await;
        if tables.map_err(Error::sqlite(doing))?.get::<i64, _>(0) > 0 {
            return Err(Error::damaged(format!("{} has tables and no format version", path.display())));
        }
        sqlx::raw_sql(schema).execute(connection).await.map_err(Error::sqlite("create tables"))?;
        return Ok(version);
    }
    Ok(found)
}

/// Whether the file's pages, trees and indexes are sound. What the rows hold is not looked at.
pub async fn check_structure(connection: &mut SqliteConnection) -> Result<()> {
    check(connection, "PRAGMA integrity_check(1)").await
}

/// The same without a look for each row in each index, which is most of the work.
pub async fn check_pages(connection: &mut SqliteConnection) -> Result<()> {
    check(connection, "PRAGMA quick_check(1)").await
}

/// As [`check_structure`], of one table: `pragma` is `PRAGMA integrity_check(table)`.
pub async fn check_table(connection: &mut SqliteConnection, pragma: &'static str) -> Result<()> {
    check(connection, pragma).await
}

async fn check(connection: &mut SqliteConnection, pragma: &'static str) -> Result<()> {
    let rows = sqlx::query(pragma).fetch_all(connection).await.map_err(Error::sqlite("check a database"))?;
    let verdict: Option<&str> = rows.first().map(|row| row.get(0));
    match verdict {
        Some("ok") => Ok(()),
        Some(verdict) => Err(Error::damaged(format!("the database is damaged: {verdict}"))),
        None => Err(Error::damaged("the database is damaged: its check says nothing")),
    }
}

/// One field of a row. A row of another type than was ever written there is damage, never a reason to panic.
pub fn field<'r, T>(row: &'r SqliteRow, at: impl ColumnIndex<SqliteRow>) -> Result<T>
where
    T: Decode<'r, Sqlite> + Type<Sqlite>,
{
    row.try_get(at).map_err(|error| Error::damaged(format!("a row is not as it was written: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the SQLite we are built with is taken, one with the bug is not.
    #[tokio::test]
    async fn old_sqlite_is_refused() {
        check_version().await.unwrap();
        assert!(accept("3.51.3").is_ok() && accept("3.52.0").is_ok() && accept("4.0").is_ok());
        assert!(accept("3.51.2").is_err() && accept("3.46.1").is_err() && accept("junk").is_err());
    }

    #[test]
    fn many_rows_have_exact_counts() {
        let many = Many::new("INSERT INTO t VALUES ", "(?,?)", " x");
        assert_eq!(&*many.rows(1).0, "INSERT INTO t VALUES (?,?) x");
        assert_eq!(&*many.rows(3).0, "INSERT INTO t VALUES (?,?),(?,?),(?,?) x");
    }
}
