//! A set of keys that may be as large as a repo and does not grow in memory with it: up to `IN_MEMORY` entries are
//! sixteen bytes each in memory (about 18 MB in all), then they go to a table in a file of their own, which is deleted
//! with the set. The visited blocks of a walk and the live set of a GC are such sets.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::key::ShortKeys;
use crate::node::{NodeError, Result};

/// Entries kept in memory: as many as fill a hash table of 2^20 places.
const IN_MEMORY: usize = 900_000;
static NEXT_FILE: AtomicU64 = AtomicU64::new(0);

pub struct KeySet {
    shorten: ShortKeys,
    memory: HashSet<u128>,
    memory_limit: usize,
    spilled: Option<Spilled>,
    /// Where a file may be made.
    folder: PathBuf,
}

/// The file; removed when dropped.
struct Spilled {
    table: SqliteConnection,
    path: PathBuf,
}

impl Drop for Spilled {
    fn drop(&mut self) {
        // What stays is removed at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl KeySet {
    pub fn new(folder: &Path) -> KeySet {
        KeySet::with_limit(folder, IN_MEMORY)
    }

    fn with_limit(folder: &Path, memory_limit: usize) -> KeySet {
        KeySet {
            shorten: ShortKeys::default(),
            memory: HashSet::new(),
            memory_limit,
            spilled: None,
            folder: folder.to_owned(),
        }
    }

    /// Adds; whether it is new.
    pub async fn insert(&mut self, key: &[u8]) -> Result<bool> {
        let short = self.shorten.shorten(key);
        if self.memory.contains(&short) || self.is_spilled(short).await? {
            return Ok(false);
        }
        self.memory.insert(short);
        if self.memory.len() >= self.memory_limit {
            self.spill().await?;
        }
        Ok(true)
    }

    pub async fn contains(&mut self, key: &[u8]) -> Result<bool> {
        let short = self.shorten.shorten(key);
        Ok(self.memory.contains(&short) || self.is_spilled(short).await?)
    }

    async fn is_spilled(&mut self, short: u128) -> Result<bool> {
        let Some(spilled) = &mut self.spilled else { return Ok(false) };
        sqlx::query("SELECT 1 FROM keys WHERE key = ?")
            .bind(short.to_be_bytes().to_vec())
            .fetch_optional(&mut spilled.table)
            .await
            .map(|row| row.is_some())
            .map_err(failed)
    }

    /// Moves everything from memory to the file.
    async fn spill(&mut self) -> Result<()> {
        if self.spilled.is_none() {
            self.spilled = Some(create(&self.folder).await?);
        }
        let Some(spilled) = &mut self.spilled else { return Ok(()) };
        let mut shorts: Vec<u128> = self.memory.drain().collect();
        shorts.sort_unstable();
        let mut transaction = spilled.table.begin().await.map_err(failed)?;
        for short in shorts {
            sqlx::query("INSERT OR IGNORE INTO keys VALUES (?)")
                .bind(short.to_be_bytes().to_vec())
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)
    }
}

async fn create(folder: &Path) -> Result<Spilled> {
    let path = folder.join(format!("keys-{}.db", NEXT_FILE.fetch_add(1, Ordering::Relaxed)));
    // Nothing here outlives the set, so nothing is flushed.
    let mut table = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Off)
        .synchronous(SqliteSynchronous::Off)
        .connect()
        .await
        .map_err(failed)?;
    sqlx::query("CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID").execute(&mut table).await.map_err(failed)?;
    Ok(Spilled { table, path })
}

fn failed(error: sqlx::Error) -> NodeError {
    NodeError::Other(format!("embedded node: set of seen blocks: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the set answers the same whether its entries are in memory or in the file, and the file goes with it.
    #[tokio::test]
    async fn spills_and_remembers() {
        let folder = tempfile::tempdir().unwrap();
        let mut set = KeySet::with_limit(folder.path(), 10);
        for n in 0..35u32 {
            assert!(set.insert(&n.to_be_bytes()).await.unwrap());
            assert!(!set.insert(&(n / 2).to_be_bytes()).await.unwrap());
        }
        assert!(set.memory.len() < 10);
        assert!(set.contains(&3u32.to_be_bytes()).await.unwrap());
        assert!(!set.contains(&35u32.to_be_bytes()).await.unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(set);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
