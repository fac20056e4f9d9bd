//! The one task that writes `log.db`: it takes what is queued, writes it in one transaction, and answers.

use std::sync::Weak;

use bytes::Bytes;
use pinfold_proto::storage;
use prost::Message;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tokio::sync::{mpsc, oneshot};

use super::cache::{Cache, Cached};
use super::{Done, Shared};
use crate::store::checkpoints::{Checkpoints, LOG_PAGES};
use crate::store::error::{Error, Failure, Result};
use crate::store::record::{GroupBuilder, LogId, Record, Vote, split_group};
use crate::store::sqlite::{Many, field};
use crate::store::sum;

/// Writes in one transaction.
const MAX_OPS: usize = 512;
/// Bytes of entries in one transaction, beyond which the next ones wait for the next.
const MAX_TRANSACTION_BYTES: usize = 16 << 20;
/// A row of entries is closed at this size.
const MAX_GROUP_BYTES: usize = 1 << 20;
const WRITING: &str = "write the log";

pub enum Op {
    Append { entries: Vec<(u64, Bytes)>, epoch: u64, done: Done },
    Vote { vote: Vote, done: oneshot::Sender<Result<()>> },
    Starts { starts: u64, node: u64, done: oneshot::Sender<Result<()>> },
    Truncate { keep: Option<u64>, done: oneshot::Sender<Result<()>> },
    Purge { upto: LogId, done: oneshot::Sender<Result<()>> },
    Close { done: oneshot::Sender<()> },
}

pub struct Writer {
    connection: SqliteConnection,
    /// Weak: the task ends when nobody can queue anything any more.
    shared: Weak<Shared>,
    failure: Failure,
    insert: Many,
    checkpoints: Checkpoints,
}

/// The newest entries up to `max_bytes`, and the facts.
pub async fn load(connection: &mut SqliteConnection, max_bytes: usize) -> Result<Cache> {
    const LOADING: &str = "load the log";
    let mut purged = None;
    let mut vote = None;
    let mut committed: Option<LogId> = None;
    let mut starts = 0;
    let mut node = None;
    for row in sqlx::query("SELECT name, value, sum FROM facts")
        .fetch_all(&mut *connection)
        .await
        .map_err(Error::sqlite(LOADING))?
    {
        let value: &[u8] = field(&row, 1)?;
        let name: &str = field(&row, 0)?;
        sum::check(&[name.as_bytes(), value], field(&row, 2)?, "a fact of the log")?;
        match name {
            "purged" => purged = Some(log_id(value)?),
            "committed" => committed = Some(log_id(value)?),
            "vote" => vote = Some(decode_vote(value)?),
            "starts" => starts = decode_number(value)?,
            "node" => node = Some(decode_number(value)?),
            other => return Err(Error::damaged(format!("log.db: unknown fact {other:?}"))),
        }
    }
    let mut newest_first: Vec<Cached> = Vec::new();
    let mut bytes = 0;
    let mut before = i64::MAX;
    while bytes <= max_bytes {
        let sql = "SELECT first, last, committed, entries, sum FROM groups WHERE first < ? ORDER BY first DESC LIMIT 1";
        let row =
            sqlx::query(sql).bind(before).fetch_optional(&mut *connection).await.map_err(Error::sqlite(LOADING))?;
        let Some(row) = row else { break };
        before = field(&row, 0)?;
        for entry in split_group(checked_entries(&row)?)?.into_iter().rev() {
            let record = Record::decode(entry.clone())?;
            if purged.is_none_or(|purged: LogId| record.id.index > purged.index) {
                let cached = Cached { record, encoded: entry };
                bytes += cached.size_bytes();
                newest_first.push(cached);
            }
        }
    }
    let last = newest_first.first().map(|entry| entry.record.id);
    for row in sqlx::query("SELECT committed FROM groups WHERE committed IS NOT NULL ORDER BY first DESC LIMIT 1")
        .fetch_all(&mut *connection)
        .await
        .map_err(Error::sqlite(LOADING))?
    {
        committed = committed.max(Some(log_id(field(&row, 0)?)?));
    }
    // What is not in the log can't be applied again, so it is not worth remembering.
    let committed = committed.filter(|committed| last.or(purged).is_some_and(|last| committed.index <= last.index));
    let row = sqlx::query("SELECT coalesce(min(first), 0) FROM groups").fetch_one(connection).await;
    let begin: i64 = field(&row.map_err(Error::sqlite(LOADING))?, 0)?;
    let mut cache =
        Cache::loaded(newest_first.into_iter().rev(), max_bytes, begin as u64, last, purged, committed, vote);
    cache.starts = starts;
    cache.node = node;
    Ok(cache)
}

/// The entries of a row of first, last, committed, entries, sum.
pub fn checked_entries(row: &SqliteRow) -> Result<Bytes> {
    let entries: &[u8] = field(row, 3)?;
    let (first, last): (i64, i64) = (field(row, 0)?, field(row, 1)?);
    let sum: Option<i64> = field(row, 4)?;
    let committed = field(row, 2)?;
    if sum.is_some_and(|sum| sum != group_sum(first, last, committed, entries)) {
        return Err(Error::damaged(format!(
            "log entries {first} to {last} are not what was written: their checksum differs"
        )));
    }
    Ok(Bytes::copy_from_slice(entries))
}

fn group_sum(first: i64, last: i64, committed: Option<&[u8]>, entries: &[u8]) -> i64 {
    sum::of(&[&first.to_be_bytes(), &last.to_be_bytes(), committed.unwrap_or_default(), entries])
}

fn log_id(bytes: &[u8]) -> Result<LogId> {
    let id =
        storage::LogId::decode(bytes).map_err(|error| Error::damaged(format!("log.db: decode a log ID: {error}")))?;
    Ok(LogId::from_proto(&id))
}

fn decode_number(bytes: &[u8]) -> Result<u64> {
    let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| Error::damaged("log.db: decode a number"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn decode_vote(bytes: &[u8]) -> Result<Vote> {
    let vote =
        storage::Vote::decode(bytes).map_err(|error| Error::damaged(format!("log.db: decode the vote: {error}")))?;
    Ok(Vote::from_proto(&vote))
}

/// What one transaction does, in order, with consecutive appends put together.
enum Step {
    Insert(Vec<GroupBuilder>),
    Vote(Vote),
    Starts { starts: u64, node: u64 },
    Truncate(Option<u64>),
    Purge(LogId),
}

/// Who is answered after it.
#[derive(Default)]
struct Answers {
    appends: Vec<Done>,
    others: Vec<oneshot::Sender<Result<()>>>,
    durable: Option<(u64, u64)>,
    purged: Option<u64>,
    vote: Option<Vote>,
}

impl Writer {
    pub fn new(connection: SqliteConnection, shared: Weak<Shared>, failure: Failure) -> Writer {
        let insert = Many::new("INSERT INTO groups (first, last, committed, entries, sum) VALUES ", "(?,?,?,?,?)", "");
        Writer { connection, shared, failure, insert, checkpoints: Checkpoints::at(LOG_PAGES) }
    }

    pub async fn run(mut self, mut ops: mpsc::Receiver<Op>) {
        while let Some(first) = ops.recv().await {
            let (steps, answers, close) = collect(first, &mut ops);
            let result = self.write(steps).await;
            if let Err(error) = &result {
                self.failure.set(error);
            }
            self.answer(answers, &result);
            if result.is_err() {
                return;
            }
            if let Err(error) = self.checkpoints.keep_up(&mut self.connection).await {
                self.failure.set(&error);
                return;
            }
            if let Some(close) = close {
                self.close().await;
                let _ = close.send(());
                return;
            }
        }
        self.close().await;
    }

    async fn write(&mut self, mut steps: Vec<Step>) -> Result<()> {
        match steps.as_mut_slice() {
            [] => Ok(()),
            // A statement of its own is a transaction of its own: one hop to SQLite's thread, one fsync.
            [Step::Insert(groups)] if groups.len() <= crate::store::sqlite::ROWS => {
                let groups = std::mem::take(groups);
                self.insert(groups).await
            }
            _ => {
                self.execute("BEGIN IMMEDIATE").await?;
                for step in steps {
                    match step {
                        Step::Insert(groups) => self.insert(groups).await?,
                        Step::Vote(vote) => self.put_fact("vote", vote.to_proto().encode_to_vec()).await?,
                        Step::Starts { starts, node } => {
                            self.put_fact("starts", starts.to_be_bytes().to_vec()).await?;
                            self.put_fact("node", node.to_be_bytes().to_vec()).await?;
                        }
                        Step::Truncate(keep) => self.truncate(keep).await?,
                        Step::Purge(upto) => self.purge(upto).await?,
                    }
                }
                self.execute("COMMIT").await
            }
        }
    }

    async fn execute(&mut self, sql: &'static str) -> Result<()> {
        sqlx::query(sql).execute(&mut self.connection).await.map_err(Error::sqlite(WRITING))?;
        Ok(())
    }

    async fn insert(&mut self, groups: Vec<GroupBuilder>) -> Result<()> {
        let committed = self.shared.upgrade().and_then(|shared| shared.cache.lock().committed);
        let mut groups = groups.into_iter().peekable();
        while groups.peek().is_some() {
            let rows: Vec<GroupBuilder> = groups.by_ref().take(crate::store::sqlite::ROWS).collect();
            let mut query = sqlx::query(self.insert.rows(rows.len()));
            for group in rows {
                self.checkpoints.wrote(1, group.bytes.len());
                // Only what is in the log by then can be applied again after a crash.
                let committed = committed.filter(|id| id.index <= group.last).map(|id| id.to_proto().encode_to_vec());
                let (first, last) = (group.first as i64, group.last as i64);
                let sum = group_sum(first, last, committed.as_deref(), &group.bytes);
                query = query.bind(first).bind(last).bind(committed).bind(group.bytes).bind(sum);
            }
            query.execute(&mut self.connection).await.map_err(Error::sqlite(WRITING))?;
        }
        Ok(())
    }

    async fn put_fact(&mut self, name: &'static str, value: Vec<u8>) -> Result<()> {
        let sum = sum::of(&[name.as_bytes(), &value]);
        sqlx::query(
            "INSERT INTO facts (name, value, sum) VALUES (?, ?, ?) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value, sum = excluded.sum",
        )
        .bind(name)
        .bind(value)
        .bind(sum)
        .execute(&mut self.connection)
        .await
        .map_err(Error::sqlite(WRITING))?;
        Ok(())
    }

    async fn truncate(&mut self, keep: Option<u64>) -> Result<()> {
        let keep = keep.map_or(-1, |index| index as i64);
        sqlx::query("DELETE FROM groups WHERE first > ?")
            .bind(keep)
            .execute(&mut self.connection)
            .await
            .map_err(Error::sqlite(WRITING))?;
        let cut = sqlx::query("SELECT first, last, committed, entries, sum FROM groups WHERE last > ?")
            .bind(keep)
            .fetch_optional(&mut self.connection)
            .await
            .map_err(Error::sqlite(WRITING))?;
        let Some(row) = cut else { return Ok(()) };
        let first: i64 = field(&row, 0)?;
        let mut group = GroupBuilder::starting_at(first as u64);
        for (index, entry) in (first..=keep).zip(split_group(checked_entries(&row)?)?) {
            group.push(index as u64, &entry);
        }
        let sum = group_sum(first, keep, field(&row, 2)?, &group.bytes);
        sqlx::query("UPDATE groups SET last = ?, entries = ?, sum = ? WHERE first = ?")
            .bind(keep)
            .bind(group.bytes)
            .bind(sum)
            .bind(first)
            .execute(&mut self.connection)
            .await
            .map_err(Error::sqlite(WRITING))?;
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<()> {
        // A group that reaches beyond stays whole; what was purged of it is skipped when it is read. How many there were
        // is not known.
        self.checkpoints.look_next();
        sqlx::query("DELETE FROM groups WHERE last <= ?")
            .bind(upto.index as i64)
            .execute(&mut self.connection)
            .await
            .map_err(Error::sqlite(WRITING))?;
        self.put_fact("purged", upto.to_proto().encode_to_vec()).await
    }

    fn answer(&self, answers: Answers, result: &Result<()>) {
        if result.is_ok()
            && let Some(shared) = self.shared.upgrade()
        {
            let mut cache = shared.cache.lock();
            if let Some((index, epoch)) = answers.durable {
                cache.set_durable(index, epoch);
            }
            if let Some(index) = answers.purged {
                cache.set_purged(index);
            }
            if let Some(vote) = answers.vote {
                cache.vote = Some(vote);
            }
        }
        for done in answers.appends {
            done(result.clone());
        }
        for done in answers.others {
            // The caller may have given up; the write stands.
            let _ = done.send(result.clone());
        }
    }

    async fn close(mut self) {
        if let Some(committed) = self.shared.upgrade().and_then(|shared| shared.cache.lock().committed)
            && let Err(error) = self.put_fact("committed", committed.to_proto().encode_to_vec()).await
        {
            tracing::warn!(%error, "the log was closed without its last commit index");
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "closing the log failed; everything answered is on disk");
        }
    }
}

/// Takes what is queued, up to the bounds of a transaction.
fn collect(first: Op, ops: &mut mpsc::Receiver<Op>) -> (Vec<Step>, Answers, Option<oneshot::Sender<()>>) {
    let mut steps: Vec<Step> = Vec::new();
    let mut answers = Answers::default();
    let mut bytes = 0;
    let mut count = 0;
    let mut op = first;
    loop {
        match op {
            Op::Append { entries, epoch, done } => {
                bytes += entries.iter().map(|(_, entry)| entry.len()).sum::<usize>();
                answers.durable = entries.last().map(|(index, _)| (*index, epoch)).or(answers.durable);
                answers.appends.push(done);
                append(&mut steps, entries);
            }
            Op::Vote { vote, done } => {
                answers.vote = Some(vote);
                answers.others.push(done);
                steps.push(Step::Vote(vote));
            }
            Op::Starts { starts, node, done } => {
                answers.others.push(done);
                steps.push(Step::Starts { starts, node });
            }
            Op::Truncate { keep, done } => {
                answers.others.push(done);
                steps.push(Step::Truncate(keep));
            }
            Op::Purge { upto, done } => {
                answers.purged = answers.purged.max(Some(upto.index));
                answers.others.push(done);
                steps.push(Step::Purge(upto));
            }
            Op::Close { done } => return (steps, answers, Some(done)),
        }
        count += 1;
        if count >= MAX_OPS || bytes >= MAX_TRANSACTION_BYTES {
            return (steps, answers, None);
        }
        match ops.try_recv() {
            Ok(queued) => op = queued,
            Err(_) => return (steps, answers, None),
        }
    }
}

fn append(steps: &mut Vec<Step>, entries: Vec<(u64, Bytes)>) {
    if !matches!(steps.last(), Some(Step::Insert(_))) {
        steps.push(Step::Insert(Vec::new()));
    }
    let Some(Step::Insert(groups)) = steps.last_mut() else { return };
    for (index, entry) in entries {
        let is_full = groups.last().is_none_or(|group| group.bytes.len() >= MAX_GROUP_BYTES);
        if is_full {
            groups.push(GroupBuilder::starting_at(index));
        }
        if let Some(group) = groups.last_mut() {
            group.push(index, &entry);
        }
    }
}
