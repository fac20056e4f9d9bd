//! The task that owns the writing connection: takes the changes that are waiting, up to a bound, applies them in one
//! transaction, and answers when it is flushed.

use std::sync::atomic::Ordering;

use sqlx::{Connection as _, Row as _, Sqlite, SqliteConnection, Transaction};
use tokio::sync::{mpsc, oneshot};

use pinfold_common::Cid;
use pinfold_common::pin::PinMode;

use super::{BlockRow, Counters, failed, now, number_of, signed, unsigned};
use crate::node::embedded::key::Key;
use crate::node::{NodeError, Result};

/// Changes in one transaction.
const CHANGES_AT_ONCE: usize = 256;

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
            let outcome = removed(transaction, keys, delta).await;
            later(pending, answer, outcome)
        }
        Change::Lost(key, answer) => {
            let outcome = remove(transaction, &key, i64::MAX, delta).await.map(drop);
            later(pending, answer, outcome)
        }
        Change::Released(keys) => {
            for key in keys {
                sqlx::query("UPDATE blocks SET held_until = 0 WHERE multihash = ? AND held_until > 0")
                    .bind(key.as_bytes().to_vec())
                    .execute(&mut **transaction)
                    .await
                    .map_err(failed("release block"))?;
            }
            Ok(())
        }
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

async fn stored(transaction: &mut Transaction<'_, Sqlite>, rows: Vec<BlockRow>, delta: &mut Delta) -> Result<()> {
    for row in rows {
        let inserted = sqlx::query("INSERT OR IGNORE INTO blocks VALUES (?, ?, ?)")
            .bind(row.key.as_bytes().to_vec())
            .bind(signed(row.size_bytes))
            .bind(row.held_until)
            .execute(&mut **transaction)
            .await
            .map_err(failed("store block"))?
            .rows_affected();
        if inserted > 0 {
            delta.blocks += 1;
            delta.bytes += signed(row.size_bytes);
        } else if row.held_until > 0 {
            sqlx::query("UPDATE blocks SET held_until = max(held_until, ?) WHERE multihash = ?")
                .bind(row.held_until)
                .bind(row.key.as_bytes().to_vec())
                .execute(&mut **transaction)
                .await
                .map_err(failed("hold block"))?;
        }
        delta.held_until = delta.held_until.max(row.held_until);
    }
    Ok(())
}

async fn removed(transaction: &mut Transaction<'_, Sqlite>, keys: Vec<Key>, delta: &mut Delta) -> Result<Vec<Key>> {
    let held_at_most = now();
    let mut gone = Vec::with_capacity(keys.len());
    for key in keys {
        if remove(transaction, &key, held_at_most, delta).await? {
            gone.push(key);
        }
    }
    Ok(gone)
}

async fn remove(
    transaction: &mut Transaction<'_, Sqlite>,
    key: &Key,
    held_at_most: i64,
    delta: &mut Delta,
) -> Result<bool> {
    let row = sqlx::query("DELETE FROM blocks WHERE multihash = ? AND held_until <= ? RETURNING size")
        .bind(key.as_bytes().to_vec())
        .bind(held_at_most)
        .fetch_optional(&mut **transaction)
        .await
        .map_err(failed("remove block"))?;
    let Some(row) = row else { return Ok(false) };
    delta.blocks -= 1;
    delta.bytes -= signed(unsigned(row.get(0)));
    Ok(true)
}
