//! The task that owns the writing connection: takes the changes that are waiting, up to a bound, applies them in one
//! transaction, and answers when it is flushed. Changes of one kind are few statements, as each statement is a hand-over
//! to SQLite's thread and back.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use sqlx::{Connection as _, QueryBuilder, Row as _, Sqlite, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use pinfold_common::Cid;
use pinfold_common::pin::PinMode;

use super::{BlockRow, Counters, failed, now, number_of, signed};
use crate::lists::{LENGTHS, owned_pieces, pieces};
use crate::node::embedded::key::Key;
use crate::node::{NodeError, Result};

/// Changes in one transaction.
const CHANGES_AT_ONCE: usize = 256;

pub type Answer<T> = oneshot::Sender<Result<T>>;

pub enum Change {
    Blocks(BlockChange),
    Pin(PinChange),
    Close(Answer<()>),
}

pub enum BlockChange {
    Stored(Vec<BlockRow>, Answer<()>),
    Removed(Vec<Key>, Answer<Vec<Key>>),
    Lost(Key, Answer<()>),
    Released(Vec<Key>),
}

pub enum PinChange {
    Started(Cid, PinMode, Answer<()>),
    Done(Cid, PinMode, Answer<bool>),
    /// Started and done at once: there was nothing to fetch.
    Pinned(Cid, PinMode, Answer<()>),
    Removed(Cid, Answer<()>),
}

impl PinChange {
    fn cid(&self) -> &Cid {
        match self {
            PinChange::Started(cid, ..)
            | PinChange::Done(cid, ..)
            | PinChange::Pinned(cid, ..)
            | PinChange::Removed(cid, ..) => cid,
        }
    }
}

/// An answer that waits for the commit.
type Pending = Box<dyn FnOnce(Result<()>) + Send>;

/// What a transaction does to the counters.
#[derive(Default, PartialEq)]
struct Delta {
    blocks: i64,
    bytes: i64,
    held_until: i64,
}

pub async fn run(
    mut connection: SqliteConnection,
    mut queue: mpsc::Receiver<Change>,
    counters: std::sync::Arc<Counters>,
) {
    let mut changes = Vec::with_capacity(CHANGES_AT_ONCE);
    while queue.recv_many(&mut changes, CHANGES_AT_ONCE).await > 0 {
        let closing = changes.iter().any(|change| matches!(change, Change::Close(_)));
        let mut pending = Vec::with_capacity(changes.len());
        let outcome = apply(&mut connection, &mut changes, &mut pending).await;
        changes.clear();
        match outcome {
            Ok(delta) => {
                add(&counters.blocks, delta.blocks);
                add(&counters.bytes, delta.bytes);
                counters.held_until.fetch_max(delta.held_until, Ordering::Relaxed);
                pending.into_iter().for_each(|answer| answer(Ok(())));
            }
            Err(error) => {
                tracing::error!(%error, changes = pending.len(), "changes of the embedded node's index not written");
                pending.into_iter().for_each(|answer| answer(Err(error.clone())));
            }
        }
        if closing {
            // Moves the write-ahead log into the database; without it the next start does.
            let _ = connection.close().await;
            return;
        }
    }
}

fn add(counter: &std::sync::atomic::AtomicU64, delta: i64) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.saturating_add_signed(delta), Ordering::Relaxed);
}

/// Applies all of them; an error rolls all of them back. Changes that were not reached are answered by the channel
/// being dropped.
async fn apply(
    connection: &mut SqliteConnection,
    changes: &mut Vec<Change>,
    pending: &mut Vec<Pending>,
) -> Result<Delta> {
    let mut delta = Delta::default();
    let mut steps = steps(changes.drain(..));
    if let [Step::Pins(pins)] = steps.as_mut_slice()
        && pins.is_one_statement()
    {
        // A statement of its own is a transaction of its own.
        write_pins(connection, std::mem::take(pins), pending).await?;
        return Ok(delta);
    }
    let mut transaction = connection.begin().await.map_err(failed("begin"))?;
    for step in steps {
        match step {
            Step::Pins(pins) => write_pins(&mut transaction, pins, pending).await?,
            Step::Blocks(change) => write_blocks(&mut transaction, change, pending, &mut delta).await?,
            Step::Close(answer) => {
                let outcome = sqlx::query("UPDATE meta SET value = 1 WHERE key = 'clean'")
                    .execute(&mut *transaction)
                    .await
                    .map(drop)
                    .map_err(failed("close"));
                later(pending, answer, outcome)?;
            }
        }
    }
    if delta != Delta::default() {
        count(&mut transaction, &delta).await?;
    }
    transaction.commit().await.map_err(failed("commit"))?;
    Ok(delta)
}

async fn count(connection: &mut SqliteConnection, delta: &Delta) -> Result<()> {
    sqlx::query(
        "UPDATE meta SET value = CASE key WHEN 'blocks' THEN value + ? WHEN 'bytes' THEN value + ?
         ELSE max(value, ?) END WHERE key IN ('blocks', 'bytes', 'held_until')",
    )
    .bind(delta.blocks)
    .bind(delta.bytes)
    .bind(delta.held_until)
    .execute(connection)
    .await
    .map(drop)
    .map_err(failed("count"))
}

/// What is written together.
enum Step {
    Pins(Pins),
    Blocks(BlockChange),
    Close(Answer<()>),
}

/// Changes of different pins, so that their order does not matter, by kind.
#[derive(Default)]
struct Pins {
    cids: HashSet<Cid>,
    started: Vec<(Cid, PinMode, Answer<()>)>,
    done: Vec<(Cid, PinMode, Answer<bool>)>,
    pinned: Vec<(Cid, PinMode, Answer<()>)>,
    removed: Vec<(Cid, Answer<()>)>,
}

impl Pins {
    /// All of one kind, and as many as there is a statement for.
    fn is_one_statement(&self) -> bool {
        let all = self.cids.len();
        let kinds = [self.started.len(), self.done.len(), self.pinned.len(), self.removed.len()];
        kinds.contains(&all) && LENGTHS.contains(&all)
    }
}

/// In order for each pin. Blocks and pins are different tables: of those the order does not matter.
fn steps(changes: impl Iterator<Item = Change>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut pins = Pins::default();
    for change in changes {
        let change = match change {
            Change::Blocks(change) => {
                steps.push(Step::Blocks(change));
                continue;
            }
            Change::Close(answer) => {
                steps.push(Step::Close(answer));
                continue;
            }
            Change::Pin(change) => change,
        };
        if !pins.cids.insert(*change.cid()) {
            steps.push(Step::Pins(std::mem::take(&mut pins)));
            pins.cids.insert(*change.cid());
        }
        match change {
            PinChange::Started(cid, mode, answer) => pins.started.push((cid, mode, answer)),
            PinChange::Done(cid, mode, answer) => pins.done.push((cid, mode, answer)),
            PinChange::Pinned(cid, mode, answer) => pins.pinned.push((cid, mode, answer)),
            PinChange::Removed(cid, answer) => pins.removed.push((cid, answer)),
        }
    }
    if !pins.cids.is_empty() {
        steps.push(Step::Pins(pins));
    }
    steps
}

async fn write_pins(connection: &mut SqliteConnection, pins: Pins, pending: &mut Vec<Pending>) -> Result<()> {
    let Pins { started, done, pinned, removed, .. } = pins;
    let now = now();
    for piece in owned_pieces(started) {
        let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO pins ");
        insert.push_values(&piece, |mut values, (cid, mode, _)| {
            values.push_bind(cid.to_bytes()).push("0").push_bind(number_of(*mode)).push_bind(now);
        });
        insert.push(" ON CONFLICT (cid) DO UPDATE SET pinning = excluded.pinning, touched_at = excluded.touched_at");
        execute(insert, connection, "start pins").await?;
        piece.into_iter().try_for_each(|(_, _, answer)| later(pending, answer, Ok(())))?;
    }
    for piece in owned_pieces(done) {
        let mut update =
            QueryBuilder::<Sqlite>::new("UPDATE pins SET mode = max(mode, v.column2), pinning = 0, touched_at = ");
        update.push_bind(now).push(" FROM (");
        update.push_values(&piece, |mut values, (cid, mode, _)| {
            values.push_bind(cid.to_bytes()).push_bind(number_of(*mode));
        });
        update.push(") v WHERE pins.cid = v.column1 RETURNING pins.cid");
        let rows = update.build().fetch_all(&mut *connection).await.map_err(failed("finish pins"))?;
        let there: HashSet<Vec<u8>> = rows.iter().map(|row| row.get(0)).collect();
        let mut answers = piece.into_iter();
        answers.try_for_each(|(cid, _, answer)| later(pending, answer, Ok(there.contains(&cid.to_bytes()))))?;
    }
    for piece in owned_pieces(pinned) {
        let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO pins ");
        insert.push_values(&piece, |mut values, (cid, mode, _)| {
            values.push_bind(cid.to_bytes()).push_bind(number_of(*mode)).push("0").push_bind(now);
        });
        insert.push(
            " ON CONFLICT (cid) DO UPDATE SET mode = max(mode, excluded.mode), pinning = 0,
             touched_at = excluded.touched_at",
        );
        execute(insert, connection, "write pins").await?;
        piece.into_iter().try_for_each(|(_, _, answer)| later(pending, answer, Ok(())))?;
    }
    for piece in owned_pieces(removed) {
        let mut delete = QueryBuilder::<Sqlite>::new("DELETE FROM pins WHERE cid IN (");
        let mut list = delete.separated(", ");
        for (cid, _) in &piece {
            list.push_bind(cid.to_bytes());
        }
        list.push_unseparated(")");
        execute(delete, connection, "remove pins").await?;
        piece.into_iter().try_for_each(|(_, answer)| later(pending, answer, Ok(())))?;
    }
    Ok(())
}

async fn execute(
    mut query: QueryBuilder<Sqlite>,
    connection: &mut SqliteConnection,
    doing: &'static str,
) -> Result<()> {
    query.build().execute(connection).await.map(drop).map_err(failed(doing))
}

async fn write_blocks(
    connection: &mut SqliteConnection,
    change: BlockChange,
    pending: &mut Vec<Pending>,
    delta: &mut Delta,
) -> Result<()> {
    match change {
        BlockChange::Stored(rows, answer) => {
            let outcome = stored(connection, rows, delta).await;
            later(pending, answer, outcome)
        }
        BlockChange::Removed(keys, answer) => {
            let outcome = removed(connection, &keys, now(), delta).await;
            later(pending, answer, outcome)
        }
        BlockChange::Lost(key, answer) => {
            let outcome = removed(connection, &[key], i64::MAX, delta).await.map(drop);
            later(pending, answer, outcome)
        }
        BlockChange::Released(keys) => hold_until(connection, &keys, Hold::Over).await,
    }
}

/// Keeps an outcome until the commit. An error is everybody's: the transaction is rolled back.
fn later<T: Send + 'static>(pending: &mut Vec<Pending>, answer: Answer<T>, outcome: Result<T>) -> Result<()> {
    let (outcome, failure) = match outcome {
        Ok(value) => (Some(value), Ok(())),
        Err(error) => (None, Err(error)),
    };
    pending.push(Box::new(move |committed| {
        let said = match (committed, outcome) {
            (Ok(()), Some(value)) => Ok(value),
            (Err(error), _) => Err(error),
            (Ok(()), None) => Err(NodeError::Other("embedded node: index: a failed change was committed".into())),
        };
        // Whoever asked may have gone.
        let _ = answer.send(said);
    }));
    failure
}

/// Many rows in a statement: each one is a hand-over to SQLite's thread and back.
async fn stored(connection: &mut SqliteConnection, rows: Vec<BlockRow>, delta: &mut Delta) -> Result<()> {
    for (_, rows) in pieces(&rows) {
        let mut insert = QueryBuilder::<Sqlite>::new("INSERT OR IGNORE INTO blocks (multihash, size, held_until) ");
        insert.push_values(rows, |mut values, row| {
            values.push_bind(row.key.as_bytes().to_vec()).push_bind(signed(row.size_bytes)).push_bind(row.held_until);
        });
        insert.push(" RETURNING size");
        let inserted = insert.build().fetch_all(&mut *connection).await.map_err(failed("store blocks"))?;
        delta.blocks += signed(inserted.len() as u64);
        delta.bytes += inserted.iter().map(|row| row.get::<i64, _>(0)).sum::<i64>();
        let until = rows.iter().map(|row| row.held_until).max().unwrap_or(0);
        delta.held_until = delta.held_until.max(until);
        if until > 0 && inserted.len() < rows.len() {
            let keys: Vec<Key> = rows.iter().map(|row| row.key.clone()).collect();
            hold_until(connection, &keys, Hold::AtLeast(until)).await?;
        }
    }
    Ok(())
}

enum Hold {
    Over,
    AtLeast(i64),
}

async fn hold_until(connection: &mut SqliteConnection, keys: &[Key], hold: Hold) -> Result<()> {
    for (_, keys) in pieces(keys) {
        let mut update = QueryBuilder::<Sqlite>::new("UPDATE blocks SET held_until = ");
        match hold {
            Hold::Over => update.push("0 WHERE held_until > 0"),
            Hold::AtLeast(until) => update.push_bind(until).push(" WHERE held_until < ").push_bind(until),
        };
        push_keys(&mut update, keys);
        update.build().execute(&mut *connection).await.map_err(failed("hold blocks"))?;
    }
    Ok(())
}

/// Removes rows that are held no longer than `held_at_most`; which they were.
async fn removed(
    connection: &mut SqliteConnection,
    keys: &[Key],
    held_at_most: i64,
    delta: &mut Delta,
) -> Result<Vec<Key>> {
    let mut gone = Vec::with_capacity(keys.len());
    for (_, keys) in pieces(keys) {
        let mut delete = QueryBuilder::<Sqlite>::new("DELETE FROM blocks WHERE held_until <= ");
        delete.push_bind(held_at_most);
        push_keys(&mut delete, keys);
        delete.push(" RETURNING multihash, size");
        let rows = delete.build().fetch_all(&mut *connection).await.map_err(failed("remove blocks"))?;
        delta.blocks -= signed(rows.len() as u64);
        delta.bytes -= rows.iter().map(|row| row.get::<i64, _>(1)).sum::<i64>();
        gone.extend(rows.iter().map(|row| Key::from_bytes(row.get(0))));
    }
    Ok(gone)
}

fn push_keys(query: &mut QueryBuilder<Sqlite>, keys: &[Key]) {
    query.push(" AND multihash IN (");
    let mut list = query.separated(", ");
    for key in keys {
        list.push_bind(key.as_bytes().to_vec());
    }
    list.push_unseparated(")");
}
