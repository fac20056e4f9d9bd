//! The rows of the state: their tables, and how the writer loads and writes many at once.

use std::collections::HashMap;
use std::sync::Arc;

use pinfold_proto::{storage, types};
use prost::Message;
use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Row};

use super::Meta;
use crate::pinset::{KeyRange, PeerTable, View};
use crate::store::checkpoints::Checkpoints;
use crate::store::error::{Error, Result};
use crate::store::record::{LogId, Membership};
use crate::store::sqlite::{Many, ROWS, field};
use crate::store::sum;

pub const VERSION: i64 = 2;
/// `pins` has a row ID of its own, so that the tree by CID carries no values: CIDs are random, and whole rows in such a
/// tree cost two thirds of the write rate. `allocations` finds the pins of a peer, and those with something leaving;
/// peers stand in it by a small number. Rows have sums of what they hold; `pins_sum` is the sum of those of the pins, so
/// that a row that is missing is missed.
pub const SCHEMA: &str = "
    BEGIN;
    CREATE TABLE status (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        applied BLOB,
        membership BLOB,
        cluster_id BLOB NOT NULL,
        lineage INTEGER NOT NULL,
        pin_count INTEGER NOT NULL,
        pruned_minute INTEGER NOT NULL,
        peers_index INTEGER NOT NULL,
        pins_sum INTEGER NOT NULL,
        sum INTEGER
    );
    INSERT INTO status VALUES (1, NULL, NULL, x'', 0, 0, 0, 0, 0, NULL);
    CREATE TABLE pins (
        id INTEGER PRIMARY KEY,
        cid BLOB NOT NULL UNIQUE,
        kind INTEGER NOT NULL,
        expire_at INTEGER,
        v BLOB NOT NULL,
        sum INTEGER
    );
    CREATE INDEX pins_by_expiry ON pins (expire_at) WHERE expire_at IS NOT NULL;
    CREATE TABLE holders (slot INTEGER PRIMARY KEY, peer BLOB NOT NULL UNIQUE);
    CREATE TABLE allocations (
        leaving INTEGER NOT NULL,
        holder INTEGER NOT NULL,
        pin INTEGER NOT NULL,
        PRIMARY KEY (leaving, holder, pin)
    ) WITHOUT ROWID;
    CREATE TABLE peers (node_id INTEGER PRIMARY KEY, v BLOB NOT NULL, sum INTEGER);
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL, sum INTEGER) WITHOUT ROWID;
    CREATE TABLE keys (
        id INTEGER PRIMARY KEY,
        name BLOB NOT NULL UNIQUE,
        at_seconds INTEGER NOT NULL,
        v BLOB NOT NULL,
        sum INTEGER
    );
    CREATE INDEX keys_by_time ON keys (at_seconds);
    PRAGMA user_version = 2;
    COMMIT;
";
/// From the first format, which had no sums: its rows go without until they are written again.
pub const FROM_1: &str = "
    ALTER TABLE status ADD COLUMN pins_sum INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE status ADD COLUMN sum INTEGER;
    ALTER TABLE pins ADD COLUMN sum INTEGER;
    ALTER TABLE peers ADD COLUMN sum INTEGER;
    ALTER TABLE settings ADD COLUMN sum INTEGER;
    ALTER TABLE keys ADD COLUMN sum INTEGER;
    PRAGMA user_version = 2;
";
const LOADING: &str = "load the state";
const WRITING: &str = "write the state";
const BEGIN: &str = "BEGIN IMMEDIATE";
/// Statements of at most so many rows wait for the next one.
const ROWS_TOGETHER: usize = 8;

/// One row of `allocations`, without the pin.
pub type Held = (bool, i64);

/// What a pin's row was when the batch began.
pub struct Loaded {
    pub id: i64,
    pub held: Vec<Held>,
    /// 0 without one.
    pub sum: i64,
}

/// A pin as it is written, with its sum.
pub struct Put {
    pub id: i64,
    pub pin: Arc<types::Pin>,
    pub bytes: Vec<u8>,
    pub sum: i64,
}

impl Put {
    pub fn new(id: i64, pin: Arc<types::Pin>) -> Put {
        let bytes = pin.encode_to_vec();
        let sum = sum::of(&[&bytes]);
        Put { id, pin, bytes, sum }
    }
}

/// Those that insert many new rows say `OR FAIL`: after an error the whole transaction is taken back anyway, and SQLite
/// would otherwise copy every page aside that a statement changes, to take back the statement alone.
pub struct Statements {
    load_pins: Many,
    load_keys: Many,
    insert_pins: Many,
    update_pins: Many,
    delete_pins: Many,
    put_allocations: Many,
    delete_allocations: Many,
    put_keys: Many,
    delete_keys: Many,
}

impl Statements {
    pub fn new() -> Statements {
        Statements {
            load_pins: Many::new("SELECT id, cid, v, sum FROM pins WHERE cid IN (", "?", ")"),
            load_keys: Many::new("SELECT name, v, sum FROM keys WHERE name IN (", "?", ")"),
            insert_pins: Many::new(
                "INSERT OR FAIL INTO pins (id, cid, kind, expire_at, v, sum) VALUES ",
                "(?,?,?,?,?,?)",
                "",
            ),
            update_pins: Many::new(
                "INSERT INTO pins (id, cid, kind, expire_at, v, sum) VALUES ",
                "(?,?,?,?,?,?)",
                " ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, expire_at = excluded.expire_at, v = excluded.v, \
                 sum = excluded.sum",
            ),
            delete_pins: Many::new("DELETE FROM pins WHERE id IN (", "?", ")"),
            put_allocations: Many::new("INSERT OR FAIL INTO allocations (leaving, holder, pin) VALUES ", "(?,?,?)", ""),
            delete_allocations: Many::new(
                "DELETE FROM allocations WHERE (leaving, holder, pin) IN (VALUES ",
                "(?,?,?)",
                ")",
            ),
            put_keys: Many::new(
                "INSERT INTO keys (name, at_seconds, v, sum) VALUES ",
                "(?,?,?,?)",
                " ON CONFLICT (name) DO UPDATE SET at_seconds = excluded.at_seconds, v = excluded.v, sum = excluded.sum",
            ),
            delete_keys: Many::new("DELETE FROM keys WHERE name IN (", "?", ")"),
        }
    }
}

/// What becomes of what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each batch is a transaction.
    Committed,
    /// All batches are one transaction, which is taken back at the end.
    Rehearsed,
}

/// The rows of the tables with many rows, by way of one connection.
pub struct Rows {
    pub connection: SqliteConnection,
    pub statements: Arc<Statements>,
    scope: Scope,
    /// The sum of the sums of all pins, wrapping.
    pins_sum: i64,
    slots: HashMap<Vec<u8>, i64>,
    next_pin: i64,
    waiting: Waiting,
    checkpoints: Checkpoints,
}

/// See [`Rows::mark`].
pub struct Mark {
    pins_sum: i64,
    slots: i64,
    next_pin: i64,
}

/// Statements that go to SQLite's thread as one. The hop there and back costs more than a small statement. With a large one
/// goes nothing but the begin and the end of the transaction, so that few different texts have to stay prepared.
#[derive(Default)]
struct Waiting {
    sql: String,
    arguments: SqliteArguments,
    has_large: bool,
}

type Bound = std::result::Result<(), BoxDynError>;

impl Rows {
    /// Reads what is kept in memory: the slots of holders and the next row ID.
    pub async fn open(
        mut connection: SqliteConnection,
        statements: Arc<Statements>,
        checkpoints: Checkpoints,
    ) -> Result<Rows> {
        let mut slots = HashMap::new();
        let found = sqlx::query("SELECT slot, peer FROM holders").fetch_all(&mut connection).await;
        for row in found.map_err(Error::sqlite(LOADING))? {
            slots.insert(field(&row, 1)?, field(&row, 0)?);
        }
        let max = sqlx::query("SELECT coalesce(max(id), 0) FROM pins").fetch_one(&mut connection).await;
        let next_pin = max.map_err(Error::sqlite(LOADING))?.get::<i64, _>(0) + 1;
        let row = sqlx::query("SELECT pins_sum FROM status").fetch_one(&mut connection).await;
        let pins_sum = row.map_err(Error::sqlite(LOADING))?.get(0);
        Ok(Rows {
            connection,
            statements,
            scope: Scope::Committed,
            pins_sum,
            slots,
            next_pin,
            waiting: Waiting::default(),
            checkpoints,
        })
    }

    /// From here on, in a transaction that was begun already, everything is one rehearsal.
    pub fn rehearse(&mut self) {
        self.scope = Scope::Rehearsed;
    }

    /// Takes back what was rehearsed.
    pub async fn leave(&mut self) -> Result<()> {
        match self.scope {
            Scope::Committed => Ok(()),
            Scope::Rehearsed => self.execute("ROLLBACK").await,
        }
    }

    pub fn scope(&self) -> Scope {
        self.scope
    }

    async fn execute(&mut self, sql: &'static str) -> Result<()> {
        sqlx::query(sql).execute(&mut self.connection).await.map_err(Error::sqlite(WRITING))?;
        Ok(())
    }

    /// Writes within the transaction, at the latest at its end.
    async fn write(&mut self, sql: &str, rows: usize, bind: impl FnOnce(&mut SqliteArguments) -> Bound) -> Result<()> {
        let is_first = self.waiting.sql.is_empty() || self.waiting.sql == BEGIN;
        if self.waiting.has_large || rows > ROWS_TOGETHER && !is_first {
            self.flush().await?;
        }
        self.push(sql, rows, bind)
    }

    /// The same with whatever waits.
    fn push(&mut self, sql: &str, rows: usize, bind: impl FnOnce(&mut SqliteArguments) -> Bound) -> Result<()> {
        self.checkpoints.wrote(rows, 0);
        self.waiting.has_large |= rows > ROWS_TOGETHER;
        if !self.waiting.sql.is_empty() {
            self.waiting.sql.push(';');
        }
        self.waiting.sql.push_str(sql);
        bind(&mut self.waiting.arguments).map_err(sqlx::Error::Encode).map_err(Error::sqlite(WRITING))
    }

    /// Waits until nobody but this connection works at the file's write-ahead log.
    pub async fn settle(&mut self) -> Result<()> {
        self.checkpoints.settle().await
    }

    /// Between transactions; within a rehearsal there is nothing to keep up with.
    pub async fn keep_up(&mut self) -> Result<()> {
        match self.scope {
            Scope::Committed => self.checkpoints.keep_up(&mut self.connection).await,
            Scope::Rehearsed => Ok(()),
        }
    }

    pub async fn flush(&mut self) -> Result<()> {
        let Waiting { sql, arguments, .. } = std::mem::take(&mut self.waiting);
        if sql.is_empty() {
            return Ok(());
        }
        let query = sqlx::query_with(AssertSqlSafe(sql), arguments);
        query.execute(&mut self.connection).await.map_err(Error::sqlite(WRITING))?;
        Ok(())
    }

    /// What a transaction changes in memory, for [`Rows::return_to`].
    pub fn mark(&self) -> Mark {
        Mark { pins_sum: self.pins_sum, slots: self.slots.len() as i64, next_pin: self.next_pin }
    }

    /// Takes the transaction back.
    pub async fn roll_back(&mut self) -> Result<()> {
        self.waiting = Waiting::default();
        self.execute("ROLLBACK").await
    }

    /// What was counted in memory is as it was; no transaction is open.
    pub fn return_to(&mut self, mark: Mark) {
        self.waiting = Waiting::default();
        self.pins_sum = mark.pins_sum;
        self.slots.retain(|_, slot| *slot < mark.slots);
        self.next_pin = mark.next_pin;
    }

    pub fn next_pin(&mut self) -> i64 {
        self.next_pin += 1;
        self.next_pin - 1
    }

    /// Loads the rows of `cids` that are not in the view yet; those that do not exist become `None`.
    pub async fn load_pins(
        &mut self,
        view: &mut View,
        loaded: &mut HashMap<Vec<u8>, Loaded>,
        cids: Vec<Vec<u8>>,
    ) -> Result<()> {
        for chunk in cids.chunks(ROWS) {
            let mut query = sqlx::query(self.statements.load_pins.rows(chunk.len()));
            for cid in chunk {
                query = query.bind(cid.as_slice());
            }
            for row in query.fetch_all(&mut self.connection).await.map_err(Error::sqlite(LOADING))? {
                let pin = pin_in(&row)?;
                let held = self.known_held(&pin)?;
                let cid: Vec<u8> = field(&row, 1)?;
                let sum = field::<Option<i64>>(&row, 3)?.unwrap_or(0);
                loaded.insert(cid.clone(), Loaded { id: field(&row, 0)?, held, sum });
                view.pins.insert(cid, Some(Arc::new(pin)));
            }
        }
        for cid in cids {
            view.pins.entry(cid).or_insert(None);
        }
        Ok(())
    }

    pub async fn load_keys(&mut self, view: &mut View, keys: Vec<Vec<u8>>) -> Result<()> {
        for chunk in keys.chunks(ROWS) {
            let mut query = sqlx::query(self.statements.load_keys.rows(chunk.len()));
            for key in chunk {
                query = query.bind(key.as_slice());
            }
            for row in query.fetch_all(&mut self.connection).await.map_err(Error::sqlite(LOADING))? {
                let stored = outcome_in(&row)?;
                view.keys.insert(field(&row, 0)?, Some(stored));
            }
        }
        for key in keys {
            view.keys.entry(key).or_insert(None);
        }
        Ok(())
    }

    fn known_held(&self, pin: &types::Pin) -> Result<Vec<Held>> {
        let slot = |peer: &Vec<u8>| {
            self.slots.get(peer).copied().ok_or_else(|| Error::damaged("state: a holder of a pin has no slot"))
        };
        let allocated = pin.allocations.iter().map(|peer| Ok((false, slot(peer)?)));
        let leaving = pin.leaving.iter().map(|peer| Ok((true, slot(peer)?)));
        allocated.chain(leaving).collect()
    }

    /// As [`Rows::known_held`], giving a slot to a peer that had none.
    pub async fn held(&mut self, pin: &types::Pin) -> Result<Vec<Held>> {
        for peer in pin.allocations.iter().chain(&pin.leaving) {
            if self.slots.contains_key(peer) {
                continue;
            }
            let slot = self.slots.len() as i64;
            let sql = "INSERT INTO holders (slot, peer) VALUES (?, ?)";
            self.write(sql, 1, |arguments| {
                arguments.add(slot)?;
                arguments.add(peer.as_slice())
            })
            .await?;
            self.slots.insert(peer.clone(), slot);
        }
        self.known_held(pin)
    }

    /// Rows that are not there. One whose CID is there is an error, see [`Error::is_of_a_known_row`].
    pub async fn insert_pins(&mut self, pins: &[Put]) -> Result<()> {
        let statements = self.statements.clone();
        self.put_pins(&statements.insert_pins, pins).await
    }

    /// Rows that are there.
    pub async fn update_pins(&mut self, pins: &[Put]) -> Result<()> {
        let statements = self.statements.clone();
        self.put_pins(&statements.update_pins, pins).await
    }

    async fn put_pins(&mut self, statement: &Many, pins: &[Put]) -> Result<()> {
        for chunk in pins.chunks(ROWS) {
            self.pins_sum = chunk.iter().fold(self.pins_sum, |sum, put| sum.wrapping_add(put.sum));
            self.write(statement.text(chunk.len()), chunk.len(), |arguments| {
                for Put { id, pin, bytes, sum } in chunk {
                    arguments.add(*id)?;
                    arguments.add(pin.cid.as_slice())?;
                    arguments.add(pin.r#type)?;
                    arguments.add(expire_at(pin))?;
                    arguments.add(bytes.as_slice())?;
                    arguments.add(*sum)?;
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// The row is replaced or removed.
    pub fn forget_sum(&mut self, row: &Loaded) {
        self.pins_sum = self.pins_sum.wrapping_sub(row.sum);
    }

    pub async fn delete_pins(&mut self, ids: &[i64]) -> Result<()> {
        let statements = self.statements.clone();
        for chunk in ids.chunks(ROWS) {
            self.write(statements.delete_pins.text(chunk.len()), chunk.len(), |arguments| {
                chunk.iter().try_for_each(|id| arguments.add(*id))
            })
            .await?;
        }
        Ok(())
    }

    pub async fn put_allocations(&mut self, rows: &[(Held, i64)]) -> Result<()> {
        let statements = self.statements.clone();
        self.change_allocations(&statements.put_allocations, rows).await
    }

    pub async fn delete_allocations(&mut self, rows: &[(Held, i64)]) -> Result<()> {
        let statements = self.statements.clone();
        self.change_allocations(&statements.delete_allocations, rows).await
    }

    async fn change_allocations(&mut self, statement: &Many, rows: &[(Held, i64)]) -> Result<()> {
        for chunk in rows.chunks(ROWS) {
            self.write(statement.text(chunk.len()), chunk.len(), |arguments| {
                for ((leaving, holder), pin) in chunk {
                    arguments.add(i64::from(*leaving))?;
                    arguments.add(*holder)?;
                    arguments.add(*pin)?;
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    pub async fn prune_keys(&mut self, range: KeyRange) -> Result<()> {
        self.write("DELETE FROM keys WHERE at_seconds < ? OR at_seconds > ?", 1, |arguments| {
            arguments.add(range.from_seconds)?;
            arguments.add(range.to_seconds)
        })
        .await
    }

    pub async fn put_keys(&mut self, keys: &[(&Vec<u8>, &storage::StoredOutcome)]) -> Result<()> {
        let statements = self.statements.clone();
        for chunk in keys.chunks(ROWS) {
            self.write(statements.put_keys.text(chunk.len()), chunk.len(), |arguments| {
                for (key, stored) in chunk {
                    let bytes = stored.encode_to_vec();
                    let sum = sum::of(&[&bytes]);
                    arguments.add(key.as_slice())?;
                    arguments.add(stored.at_seconds)?;
                    arguments.add(bytes)?;
                    arguments.add(sum)?;
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    pub async fn delete_keys(&mut self, keys: &[&Vec<u8>]) -> Result<()> {
        let statements = self.statements.clone();
        for chunk in keys.chunks(ROWS) {
            self.write(statements.delete_keys.text(chunk.len()), chunk.len(), |arguments| {
                chunk.iter().try_for_each(|key| arguments.add(key.as_slice()))
            })
            .await?;
        }
        Ok(())
    }

    pub async fn put_peer(&mut self, row: &types::Peer) -> Result<()> {
        let sql = "INSERT INTO peers (node_id, v, sum) VALUES (?, ?, ?) \
                   ON CONFLICT (node_id) DO UPDATE SET v = excluded.v, sum = excluded.sum";
        let bytes = row.encode_to_vec();
        let sum = sum::of(&[&bytes]);
        self.write(sql, 1, |arguments| {
            // Two's complement: node IDs of joiners have the top bit.
            arguments.add(row.node_id as i64)?;
            arguments.add(bytes)?;
            arguments.add(sum)
        })
        .await
    }

    pub async fn put_setting(&mut self, name: &str, value: Option<&str>) -> Result<()> {
        match value {
            Some(value) => {
                let sql = "INSERT INTO settings (name, value, sum) VALUES (?, ?, ?) \
                           ON CONFLICT (name) DO UPDATE SET value = excluded.value, sum = excluded.sum";
                let sum = sum::of(&[name.as_bytes(), value.as_bytes()]);
                self.write(sql, 1, |arguments| {
                    arguments.add(name)?;
                    arguments.add(value)?;
                    arguments.add(sum)
                })
                .await
            }
            None => self.write("DELETE FROM settings WHERE name = ?", 1, |arguments| arguments.add(name)).await,
        }
    }

    /// Begins the transaction.
    pub async fn begin(&mut self) -> Result<()> {
        match self.scope {
            Scope::Committed => self.write(BEGIN, 0, |_| Ok(())).await,
            Scope::Rehearsed => Ok(()),
        }
    }

    /// Writes how far the state has come, and ends the transaction; one hop for both, as every batch needs both.
    pub async fn commit(&mut self, meta: &Meta, view: &View) -> Result<()> {
        let sql = "UPDATE status SET applied = ?, membership = ?, cluster_id = ?, lineage = ?, pin_count = ?, \
                   pruned_minute = ?, peers_index = ?, pins_sum = ?, sum = ? WHERE id = 1";
        let applied = meta.applied.map(LogId::to_proto);
        let applied = applied.map(|storage::LogId { leader, index }| {
            storage::Applied { leader, index, unlogged: meta.unlogged }.encode_to_vec()
        });
        let stored = storage::StoredMembership {
            log_id: meta.membership.log_id.map(LogId::to_proto),
            membership: Some(meta.membership.membership.as_ref().clone()),
        };
        let membership = stored.encode_to_vec();
        let numbers =
            [view.lineage as i64, view.pin_count as i64, view.pruned_minute, view.peers.index as i64, self.pins_sum];
        let sum = status_sum(applied.as_deref().unwrap_or_default(), &membership, &view.cluster_id, &numbers);
        self.push(sql, 1, |arguments| {
            arguments.add(applied)?;
            arguments.add(membership)?;
            arguments.add(view.cluster_id.as_slice())?;
            numbers.iter().try_for_each(|number| arguments.add(*number))?;
            arguments.add(sum)
        })?;
        match self.scope {
            Scope::Committed => self.push("COMMIT", 0, |_| Ok(()))?,
            Scope::Rehearsed => {}
        }
        self.flush().await
    }
}

fn status_sum(applied: &[u8], membership: &[u8], cluster_id: &[u8], numbers: &[i64; 5]) -> i64 {
    let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    sum::of(&[applied, membership, cluster_id, &numbers])
}

/// When it expires, for the index; `None`: never.
pub fn expire_at(pin: &types::Pin) -> Option<i64> {
    pin.options.as_ref().map(|options| options.expire_at_seconds).filter(|at| *at != 0)
}

/// What is kept in memory for good: the peerset, the settings, the counters; and how far the state has come.
pub async fn load_status(connection: &mut SqliteConnection) -> Result<(View, Meta)> {
    let sql = "SELECT applied, membership, cluster_id, lineage, pin_count, pruned_minute, peers_index, pins_sum, sum \
               FROM status";
    let row = sqlx::query(sql).fetch_one(&mut *connection).await.map_err(Error::sqlite(LOADING))?;
    let (applied, membership): (Option<&[u8]>, Option<&[u8]>) = (field(&row, 0)?, field(&row, 1)?);
    if let Some(sum) = field::<Option<i64>>(&row, 8)? {
        let numbers = [field(&row, 3)?, field(&row, 4)?, field(&row, 5)?, field(&row, 6)?, field(&row, 7)?];
        let (applied, membership) = (applied.unwrap_or_default(), membership.unwrap_or_default());
        if status_sum(applied, membership, field(&row, 2)?, &numbers) != sum {
            return Err(Error::damaged("the state's status is not what was written: its checksum differs"));
        }
    }
    let applied = applied.map(|bytes| decode::<storage::Applied>(bytes, "what was applied")).transpose()?;
    let membership = membership.map(|bytes| decode::<storage::StoredMembership>(bytes, "a membership")).transpose()?;
    let mut view = View {
        cluster_id: field(&row, 2)?,
        lineage: field::<i64>(&row, 3)? as u64,
        pin_count: field::<i64>(&row, 4)? as u64,
        pruned_minute: field(&row, 5)?,
        peers: PeerTable { index: field::<i64>(&row, 6)? as u64, ..PeerTable::default() },
        ..View::default()
    };
    let peers = sqlx::query("SELECT v, sum FROM peers").fetch_all(&mut *connection).await;
    for row in peers.map_err(Error::sqlite(LOADING))? {
        let peer: types::Peer = decode(value(&row, "a peer")?, "a peer")?;
        view.peers.rows.insert(peer.node_id, peer);
    }
    let settings = sqlx::query("SELECT name, value, sum FROM settings").fetch_all(&mut *connection).await;
    for row in settings.map_err(Error::sqlite(LOADING))? {
        let (name, value): (String, String) = (field(&row, 0)?, field(&row, 1)?);
        sum::check(&[name.as_bytes(), value.as_bytes()], field(&row, 2)?, "a setting")?;
        view.settings.insert(name, value);
    }
    let membership = membership.map_or_else(Membership::default, |stored| Membership {
        log_id: stored.log_id.as_ref().map(LogId::from_proto),
        membership: Arc::new(stored.membership.unwrap_or_default()),
    });
    let unlogged = applied.as_ref().map_or(0, |applied| applied.unlogged);
    let applied =
        applied.map(|storage::Applied { leader, index, .. }| LogId::from_proto(&storage::LogId { leader, index }));
    Ok((view, Meta { applied, unlogged, membership }))
}

/// The value of a row, once it is known to be what was written. Every query that reads a value reads it as `v` with its
/// `sum` beside it and comes here, so that damage is told, never taken for data.
pub fn value<'r>(row: &'r SqliteRow, what: &str) -> Result<&'r [u8]> {
    let bytes = field(row, "v")?;
    sum::check(&[bytes], field(row, "sum")?, what)?;
    Ok(bytes)
}

pub fn pin_in(row: &SqliteRow) -> Result<types::Pin> {
    decode_pin(value(row, "a pin")?)
}

pub fn outcome_in(row: &SqliteRow) -> Result<storage::StoredOutcome> {
    let what = "an outcome";
    decode(value(row, what)?, what)
}

pub fn decode_pin(bytes: &[u8]) -> Result<types::Pin> {
    decode(bytes, "a pin")
}

pub fn decode<M: Message + Default>(bytes: &[u8], what: &str) -> Result<M> {
    M::decode(bytes).map_err(|error| Error::damaged(format!("state: decode {what}: {error}")))
}
