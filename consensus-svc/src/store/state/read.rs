//! Queries of the state. Each is one short read transaction.

use std::collections::HashMap;

use bytes::Bytes;
use pinfold_proto::{storage, types};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Row};

use super::State;
use super::columns::{Numbers, torn};
use super::rows::{decode, outcome_in, pin_in};
use crate::store::error::{Error, Result};
use crate::store::readers::Reader;
use crate::store::sqlite::{ROWS, field};
use crate::store::sum;

const READING: &str = "read the state";
/// Rows of one chunk of a list.
pub const CHUNK_ROWS: usize = 1000;

/// A stretch of the pinset in CID order.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    /// Encoded `types.v1.Pin`.
    pub pins: Vec<Bytes>,
    /// To be given as `after` for the next chunk; `None`: this was the last one.
    pub next: Option<Vec<u8>>,
    /// At least everything up to here is in it.
    pub index: u64,
}

/// What two peers compare to know whether they have the same pinset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    pub index: u64,
    pub lineage: u64,
    pub pins: u64,
    pub sha256: Vec<u8>,
}

/// A pin and where to resume after it.
#[derive(Clone, Debug)]
pub struct Holding {
    pub row: i64,
    pub pin: types::Pin,
}

/// A stretch of the pinset as one row: what a row costs on its way from SQLite's thread is paid once for all of it. The
/// pins are one behind the other in the order of the inner query; ?1 has a bit for each type that is wanted.
const STRETCH: &str = "
    SELECT count(*), max(cid),
        CAST(group_concat(v, '') FILTER (WHERE (1 << kind) & ?1) AS BLOB),
        group_concat(length(v)) FILTER (WHERE (1 << kind) & ?1),
        group_concat(coalesce(sum, '')) FILTER (WHERE (1 << kind) & ?1)
    FROM (SELECT cid, kind, v, sum FROM pins WHERE cid > ?2 ORDER BY cid LIMIT +?3)";
const ALL_TYPES: i64 = -1;

/// Pins whose CID is above `after`, in CID order, by a connection of the caller's.
pub async fn chunk(connection: &mut SqliteConnection, after: &[u8], limit: usize, index: u64) -> Result<Chunk> {
    let row = stretch(connection, ALL_TYPES, after, limit).await.map_err(Error::sqlite(READING))?;
    chunk_in(&row, limit, index)
}

async fn stretch(
    connection: &mut SqliteConnection,
    types: i64,
    after: &[u8],
    limit: usize,
) -> std::result::Result<SqliteRow, sqlx::Error> {
    sqlx::query(STRETCH).bind(types).bind(after).bind(limit as i64).fetch_one(connection).await
}

/// The pins of a stretch, each once it is known to be what was written.
fn chunk_in(row: &SqliteRow, limit: usize, index: u64) -> Result<Chunk> {
    let next = if field::<i64>(row, 0)? == limit as i64 { field(row, 1)? } else { None };
    let mut values: Bytes = field::<Option<Vec<u8>>>(row, 2)?.unwrap_or_default().into();
    let (mut sizes, mut sums) = (Numbers::of(row, 3)?, Numbers::of(row, 4)?);
    let mut pins = Vec::with_capacity(limit);
    while let Some(size) = sizes.next()? {
        let size = usize::try_from(size).ok().filter(|size| *size <= values.len()).ok_or_else(torn)?;
        let pin = values.split_to(size);
        sum::check(&[&pin], sums.may()?, "a pin")?;
        pins.push(pin);
    }
    if !values.is_empty() || sums.next()?.is_some() {
        return Err(torn());
    }
    Ok(Chunk { pins, next, index })
}

impl State {
    pub async fn get(&self, cid: &[u8]) -> Result<Option<types::Pin>> {
        let mut reader = self.reader().await?;
        let row = sqlx::query("SELECT v, sum FROM pins WHERE cid = ?")
            .bind(cid)
            .fetch_optional(&mut *reader)
            .await
            .map_err(|error| self.unreadable(error))?;
        row.as_ref().map(pin_in).transpose()
    }

    /// Those of `cids` that are in the pinset, by CID.
    pub async fn get_many(&self, cids: &[Vec<u8>]) -> Result<HashMap<Vec<u8>, types::Pin>> {
        if cids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut pins = HashMap::with_capacity(cids.len());
        let mut reader = self.reader().await?;
        for chunk in cids.chunks(ROWS) {
            let mut query = sqlx::query(self.shared.pins_by_cid.rows(chunk.len()));
            for cid in chunk {
                query = query.bind(cid.as_slice());
            }
            let rows = query.fetch_all(&mut *reader).await.map_err(|error| self.unreadable(error))?;
            for row in &rows {
                let pin = pin_in(row)?;
                pins.insert(pin.cid.clone(), pin);
            }
        }
        Ok(pins)
    }

    /// Pins whose CID is above `after`, in CID order; from the start when it is empty. `types` empty: all. At most
    /// `limit` and [`CHUNK_ROWS`] rows are looked at, so a chunk may have fewer pins, or none, and yet a `next`.
    pub async fn list(&self, after: &[u8], limit: usize, types: &[i32]) -> Result<Chunk> {
        let limit = limit.min(CHUNK_ROWS);
        let index = self.applied_index();
        let wanted = match types {
            [] => ALL_TYPES,
            [..] => types.iter().filter(|kind| (0..63).contains(*kind)).fold(0, |mask, kind| mask | 1 << kind),
        };
        let mut reader = self.reader().await?;
        let row = stretch(&mut reader, wanted, after, limit).await.map_err(|error| self.unreadable(error))?;
        chunk_in(&row, limit, index)
    }

    /// What the command with this request key came to. Whether the key still counts is for `pinset` to say.
    pub async fn outcome_of(&self, key: &[u8]) -> Result<Option<storage::StoredOutcome>> {
        let mut reader = self.reader().await?;
        let row = sqlx::query("SELECT v, sum FROM keys WHERE name = ?")
            .bind(key)
            .fetch_optional(&mut *reader)
            .await
            .map_err(|error| self.unreadable(error))?;
        row.as_ref().map(outcome_in).transpose()
    }

    /// Pins that expire at `until_seconds` or before, the first one first.
    pub async fn expiring(&self, until_seconds: i64, limit: usize) -> Result<Vec<types::Pin>> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query("SELECT v, sum FROM pins WHERE expire_at <= ? ORDER BY expire_at LIMIT +?")
            .bind(until_seconds)
            .bind(limit as i64)
            .fetch_all(&mut *reader)
            .await
            .map_err(|error| self.unreadable(error))?;
        rows.iter().map(pin_in).collect()
    }

    /// When the next pin expires, in Unix seconds.
    pub async fn next_expiry(&self) -> Result<Option<i64>> {
        let mut reader = self.reader().await?;
        let row = sqlx::query("SELECT min(expire_at) FROM pins WHERE expire_at IS NOT NULL")
            .fetch_one(&mut *reader)
            .await
            .map_err(|error| self.unreadable(error))?;
        Ok(row.get(0))
    }

    /// Pins that are allocated to `peer` (not those that only leave it), after row `after` (0: from the start).
    pub async fn allocated_to(&self, peer: &[u8], after: i64, limit: usize) -> Result<Vec<Holding>> {
        let sql = "SELECT a.pin, p.v, p.sum FROM allocations a JOIN pins p ON p.id = a.pin WHERE a.leaving = 0 \
                   AND a.holder = (SELECT slot FROM holders WHERE peer = ?) AND a.pin > ? ORDER BY a.pin LIMIT +?";
        self.holdings(sql, peer, after, limit).await
    }

    pub async fn count_allocated_to(&self, peer: &[u8]) -> Result<u64> {
        let sql = "SELECT count(*) FROM allocations WHERE leaving = 0 \
                   AND holder = (SELECT slot FROM holders WHERE peer = ?)";
        let mut reader = self.reader().await?;
        let row = sqlx::query(sql).bind(peer).fetch_one(&mut *reader).await.map_err(|error| self.unreadable(error))?;
        Ok(row.get::<i64, _>(0) as u64)
    }

    /// How many pins are allocated to `peer`, and how many it is leaving.
    pub async fn count_held_by(&self, peer: &[u8]) -> Result<(u64, u64)> {
        let sql = "SELECT leaving, count(*) FROM allocations WHERE leaving IN (0, 1) \
                   AND holder = (SELECT slot FROM holders WHERE peer = ?) GROUP BY leaving";
        let mut reader = self.reader().await?;
        let rows = sqlx::query(sql).bind(peer).fetch_all(&mut *reader).await.map_err(|error| self.unreadable(error))?;
        let count = |leaving: i64| {
            let row = rows.iter().find(|row| row.get::<i64, _>(0) == leaving);
            row.map_or(0, |row| row.get::<i64, _>(1) as u64)
        };
        Ok((count(0), count(1)))
    }

    /// Whether no pin names `peer` as a holder any more, allocated or leaving.
    pub async fn holds_nothing(&self, peer: &[u8]) -> Result<bool> {
        let sql = "SELECT 1 FROM allocations WHERE leaving IN (0, 1) \
                   AND holder = (SELECT slot FROM holders WHERE peer = ?) LIMIT 1";
        let mut reader = self.reader().await?;
        let row =
            sqlx::query(sql).bind(peer).fetch_optional(&mut *reader).await.map_err(|error| self.unreadable(error))?;
        Ok(row.is_none())
    }

    /// Every peer that an entry names or once named, whether it is still a member or not.
    pub async fn holders(&self) -> Result<Vec<Vec<u8>>> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query("SELECT peer FROM holders ORDER BY slot").fetch_all(&mut *reader).await;
        rows.map_err(|error| self.unreadable(error))?.iter().map(|row| field(row, 0)).collect()
    }

    /// Pins that `peer` is leaving, after row `after` (0: from the start).
    pub async fn leaving(&self, peer: &[u8], after: i64, limit: usize) -> Result<Vec<Holding>> {
        let sql = "SELECT a.pin, p.v, p.sum FROM allocations a JOIN pins p ON p.id = a.pin WHERE a.leaving = 1 \
                   AND a.holder = (SELECT slot FROM holders WHERE peer = ?) AND a.pin > ? ORDER BY a.pin LIMIT +?";
        self.holdings(sql, peer, after, limit).await
    }

    async fn holdings(&self, sql: &'static str, peer: &[u8], after: i64, limit: usize) -> Result<Vec<Holding>> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(sql)
            .bind(peer)
            .bind(after)
            .bind(limit as i64)
            .fetch_all(&mut *reader)
            .await
            .map_err(|error| self.unreadable(error))?;
        rows.iter().map(|row| Ok(Holding { row: field(row, 0)?, pin: pin_in(row)? })).collect()
    }

    /// SHA-256 over the pinset in CID order, and the index that it is of; in one read transaction, in constant memory. A
    /// stretch at a time: rows that are read faster than they are hashed would leave no other task its turn.
    pub async fn digest(&self) -> Result<Digest> {
        let mut reader = self.reader().await?;
        let mut snapshot = reader.begin().await.map_err(|error| self.unreadable(error))?;
        let row = sqlx::query("SELECT applied, lineage, pin_count FROM status").fetch_one(&mut *snapshot).await;
        let row = row.map_err(|error| self.unreadable(error))?;
        let applied = field::<Option<&[u8]>>(&row, 0)?.map(|bytes| decode::<storage::LogId>(bytes, "a log ID"));
        let index = applied.transpose()?.map_or(0, |applied| applied.index);
        let (lineage, pins) = (field::<i64>(&row, 1)? as u64, field::<i64>(&row, 2)? as u64);
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let mut after = Some(Vec::new());
        while let Some(from) = after {
            let row = stretch(&mut snapshot, ALL_TYPES, &from, CHUNK_ROWS).await;
            let chunk = chunk_in(&row.map_err(|error| self.unreadable(error))?, CHUNK_ROWS, index)?;
            for pin in &chunk.pins {
                hash.update(&(pin.len() as u64).to_be_bytes());
                hash.update(pin);
            }
            after = chunk.next;
        }
        Ok(Digest { index, lineage, pins, sha256: hash.finish().as_ref().to_vec() })
    }

    /// A connection to the state's file of the moment. One that is replaced meanwhile can be read for a while.
    async fn reader(&self) -> Result<Reader> {
        let generation = self.generation();
        generation.readers.acquire().await.inspect_err(|error| self.failure().set_by_read(error, &generation.path))
    }

    /// What was asked for cannot be read; if that is the disk's fault, it ends the process.
    fn unreadable(&self, error: sqlx::Error) -> Error {
        let error = Error::sqlite(READING)(error);
        self.failure().set_by_read(&error, &self.generation().path);
        error
    }
}
