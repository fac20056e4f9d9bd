//! The task that owns the writing connection: takes the changes that are waiting, up to a bound, applies them in one
//! transaction, and answers when it is flushed.

use std::sync::atomic::Ordering;

use sqlx::{Connection as _, QueryBuilder, Row as _, Sqlite, SqliteConnection, Transaction};
use tokio::sync::{mpsc, oneshot};

use pinfold_common::Cid;
use pinfold_common::pin::PinMode;

use super::{BlockRow, Counters, failed, now, number_of, signed};
use crate::node::embedded::key::Key;
use crate::node::{NodeError, Result};

/// Changes in one transaction.
const CHANGES_AT_ONCE: usize = 256;
/// Rows named in one statement.
const KEYS_IN_STATEMENT: usize = 500;

pub type Answer<T> = oneshot::Sender<Result<T>>;

pub enum Change {
    Stored(Vec<BlockRow>, Answer<()>),
    Removed(Vec<Key>, Answer<Vec<Key>>),
    Lost(Key, Answer<()>),
    Released(Vec<Key>),
    PinStarted(Cid, PinMode, Answer<()>),
    PinDone(Cid, PinMode, Answer<bool>),
    PinRemoved(Cid, Answer<()>),
    Close(Answer<()>),
}

/// An answer that waits for the commit.
type Pending = Box<dyn FnOnce(Result<()>) + Send>;

/// What a transaction does to the counters.
#[derive(Default)]
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
    let mut transaction = connection.begin().await.map_err(failed("begin"))?;
    let mut delta = Delta::default();
    for change in changes.drain(..) {
        apply_one(&mut transaction, change, pending, &mut delta).await?;
    }
    sqlx::query(
        "UPDATE meta SET value = CASE key WHEN 'blocks' THEN value + ? WHEN 'bytes' THEN value + ?
         ELSE max(value, ?) END WHERE key IN ('blocks', 'bytes', 'held_until')",
    )
    .bind(delta.blocks)
    .bind(delta.bytes)
    .bind(delta.held_until)
    .execute(&mut *transaction)
    .await
    .map_err(failed("count"))?;
    transaction.commit().await.map_err(failed("commit"))?;
    Ok(delta)
}

async fn apply_one(
    transaction: &mut Transaction<'_, Sqlite>,
    change: Change,
    pending: &mut Vec<Pending>,
    delta: &mut Delta,
) -> Result<()> {
    match change {
        Change::Stored(rows, answer) => {
            let outcome = stored(transaction, rows, delta).await;
            later(pending, answer, outcome)
        }
        Change::Removed(keys, answer) => {
            let outcome = removed(transaction, &keys, now(), delta).await;
            later(pending, answer, outcome)
        }
        Change::Lost(key, answer) => {
            let outcome = removed(transaction, &[key], i64::MAX, delta).await.map(drop);
            later(pending, answer, outcome)
        }
        Change::Released(keys) => hold_until(transaction, &keys, Hold::Over).await,
        Change::PinStarted(cid, mode, answer) => {
            let outcome = sqlx::query(
                "INSERT INTO pins VALUES (?, 0, ?, ?) ON CONFLICT (cid) DO UPDATE
                 SET pinning = excluded.pinning, touched_at = excluded.touched_at",
            )
            .bind(cid.to_bytes())
            .bind(number_of(mode))
            .bind(now())
            .execute(&mut **transaction)
            .await
            .map(drop)
            .map_err(failed("start pin"));
            later(pending, answer, outcome)
        }
        Change::PinDone(cid, mode, answer) => {
            let outcome = sqlx::query("UPDATE pins SET mode = max(mode, ?), pinning = 0, touched_at = ? WHERE cid = ?")
                .bind(number_of(mode))
                .bind(now())
                .bind(cid.to_bytes())
                .execute(&mut **transaction)
                .await
                .map(|done| done.rows_affected() > 0)
                .map_err(failed("finish pin"));
            later(pending, answer, outcome)
        }
        Change::PinRemoved(cid, answer) => {
            let outcome = sqlx::query("DELETE FROM pins WHERE cid = ?")
                .bind(cid.to_bytes())
                .execute(&mut **transaction)
                .await
                .map(drop)
                .map_err(failed("remove pin"));
            later(pending, answer, outcome)
        }
        Change::Close(answer) => {
            let outcome = sqlx::query("UPDATE meta SET value = 1 WHERE key = 'clean'")
                .execute(&mut **transaction)
                .await
                .map(drop)
                .map_err(failed("close"));
            later(pending, answer, outcome)
        }
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

/// One statement for all rows: each statement is a hand-over to SQLite's thread and back.
async fn stored(transaction: &mut Transaction<'_, Sqlite>, rows: Vec<BlockRow>, delta: &mut Delta) -> Result<()> {
    for rows in rows.chunks(KEYS_IN_STATEMENT) {
        let mut insert = QueryBuilder::<Sqlite>::new("INSERT OR IGNORE INTO blocks (multihash, size, held_until) ");
        insert.push_values(rows, |mut values, row| {
            values.push_bind(row.key.as_bytes().to_vec()).push_bind(signed(row.size_bytes)).push_bind(row.held_until);
        });
        insert.push(" RETURNING size");
        let inserted =
            insert.build().persistent(false).fetch_all(&mut **transaction).await.map_err(failed("store blocks"))?;
        delta.blocks += signed(inserted.len() as u64);
        delta.bytes += inserted.iter().map(|row| row.get::<i64, _>(0)).sum::<i64>();
        let until = rows.iter().map(|row| row.held_until).max().unwrap_or(0);
        delta.held_until = delta.held_until.max(until);
        if until > 0 && inserted.len() < rows.len() {
            let keys: Vec<Key> = rows.iter().map(|row| row.key.clone()).collect();
            hold_until(transaction, &keys, Hold::AtLeast(until)).await?;
        }
    }
    Ok(())
}

enum Hold {
    Over,
    AtLeast(i64),
}

async fn hold_until(transaction: &mut Transaction<'_, Sqlite>, keys: &[Key], hold: Hold) -> Result<()> {
    for keys in keys.chunks(KEYS_IN_STATEMENT) {
        let mut update = QueryBuilder::<Sqlite>::new("UPDATE blocks SET held_until = ");
        match hold {
            Hold::Over => update.push("0 WHERE held_until > 0"),
            Hold::AtLeast(until) => update.push_bind(until).push(" WHERE held_until < ").push_bind(until),
        };
        push_keys(&mut update, keys);
        update.build().persistent(false).execute(&mut **transaction).await.map_err(failed("hold blocks"))?;
    }
    Ok(())
}

/// Removes rows that are held no longer than `held_at_most`; which they were.
async fn removed(
    transaction: &mut Transaction<'_, Sqlite>,
    keys: &[Key],
    held_at_most: i64,
    delta: &mut Delta,
) -> Result<Vec<Key>> {
    let mut gone = Vec::with_capacity(keys.len());
    for keys in keys.chunks(KEYS_IN_STATEMENT) {
        let mut delete = QueryBuilder::<Sqlite>::new("DELETE FROM blocks WHERE held_until <= ");
        delete.push_bind(held_at_most);
        push_keys(&mut delete, keys);
        delete.push(" RETURNING multihash, size");
        let rows =
            delete.build().persistent(false).fetch_all(&mut **transaction).await.map_err(failed("remove blocks"))?;
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
