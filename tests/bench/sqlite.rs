//! Yardsticks of SQLite by itself: what the disk and this library make of the same rows without a cluster around them.

use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use crate::rooms::cid;

/// As consensus-svc puts them together.
const ROWS: usize = 64;
const STATEMENTS_A_TRANSACTION: usize = 8;
/// What a pin takes.
const VALUE_BYTES: usize = 300;

/// Rows per second into an empty copy of a state, with its indexes and its upsert, without waiting for the disk once.
pub async fn upserts(empty: &Path, rows: usize) -> Result<f64, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(empty)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Off)
        .disable_statement_logging();
    let mut connection = options.connect().await?;
    let places = vec!["(?,?,?,?,?,?)"; ROWS].join(",");
    let sql = format!(
        "INSERT INTO pins (id, cid, kind, expire_at, v, sum) VALUES {places} ON CONFLICT (id) DO UPDATE SET \
         kind = excluded.kind, expire_at = excluded.expire_at, v = excluded.v, sum = excluded.sum"
    );
    let started = Instant::now();
    let mut id = 0;
    while (id as usize) < rows {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await?;
        for _ in 0..STATEMENTS_A_TRANSACTION {
            let mut query = sqlx::query(AssertSqlSafe(sql.as_str()));
            for _ in 0..ROWS {
                id += 1;
                let value = vec![7_u8; VALUE_BYTES];
                query = query.bind(id).bind(cid(id as u64)).bind(2).bind(None::<i64>).bind(value).bind(id);
            }
            query.execute(&mut connection).await?;
        }
        sqlx::query("COMMIT").execute(&mut connection).await?;
    }
    let rate = id as f64 / started.elapsed().as_secs_f64();
    connection.close().await?;
    Ok(rate)
}

/// A state's file copied by SQLite, copied again, and made durable: what a snapshot is at the least.
pub async fn copies(state: &Path) -> Result<Duration, Box<dyn std::error::Error + Send + Sync>> {
    let (first, second) = (state.with_extension("first"), state.with_extension("second"));
    let mut connection: SqliteConnection =
        SqliteConnectOptions::new().filename(state).read_only(true).connect().await?;
    let target = first.to_str().ok_or("the folder's path is not UTF-8")?;
    let started = Instant::now();
    sqlx::query("VACUUM INTO ?").bind(target).execute(&mut connection).await?;
    std::fs::copy(&first, &second)?;
    std::fs::File::open(&second)?.sync_all()?;
    let took = started.elapsed();
    connection.close().await?;
    std::fs::remove_file(first)?;
    std::fs::remove_file(second)?;
    Ok(took)
}
