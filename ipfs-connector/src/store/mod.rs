//! The tracker's table on disk: one row per item that the pinset or the IPFS node makes us think of, and the cursor of
//! the follower, both in `tracker/tracker.db`. One task writes, in groups; any number of readers page through.
//!
//! The table is a cache with a memory: cursor and rows can be made again from the pinset, ownership cannot. A process
//! that dies loses nothing; a machine that loses power may lose the last writes (WAL, `synchronous=NORMAL`), always a
//! suffix, so cursor and rows still agree, and a claim that was lost makes a pin of ours look like somebody else's:
//! kept, never unpinned. This module knows no gRPC, no IPFS node, and decides nothing: it calls `tracker::operation`.

mod numbers;
mod rows;
mod schema;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use pinfold_common::pin::PinMode;
use pinfold_common::status::TrackerStatus;
use pinfold_common::time::Timestamp;
use pinfold_proto::consensus::Cursor;
use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{ConnectorError, Result};
use crate::tracker::operation::{Hold, Item, Order, Rules, Todo};

use rows::Statements;

pub const DATABASE: &str = "tracker.db";
/// Commands that wait for the writer. Who sends one more waits.
const COMMAND_QUEUE: usize = 1024;
/// Connections that read.
const READERS: u32 = 4;
/// Rows that lose their claims in one transaction.
const DISOWN_CHUNK: i64 = 10_000;
/// Rows that a sweep looks at in one transaction.
pub const SWEEP_CHUNK: usize = 1000;

/// What the writer needs of the configuration to decide.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub priority_max_age_ms: i64,
    pub priority_max_retries: u32,
    pub first_backoff_ms: i64,
    pub last_backoff_ms: i64,
    /// 0: no limit.
    pub max_attempts: u32,
    /// `u64::MAX`: no bound; the queue is on disk.
    pub max_queued_pins: u64,
}

/// One step of the pinset.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Put(Order),
    Removed { cid: Vec<u8>, index: u64 },
}

/// Where a batch of changes comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The log, in order: what is older than its row is skipped.
    Log,
    /// A comparison with the whole pinset: it is right, whatever the row says. Its unpins wait for its end.
    Comparison,
}

/// An item that had a row before, as a change left it: whoever works on it must know.
#[derive(Clone, Debug, PartialEq)]
pub struct Touched {
    pub cid: Vec<u8>,
    pub revision: u64,
    pub todo: Todo,
    pub status: TrackerStatus,
    pub mode: PinMode,
    pub planned: bool,
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    pub touched: Vec<Touched>,
    /// Where to go on; `None`: the range is done.
    pub next: Option<Vec<u8>>,
}

/// The end of a step of work: the item as it shall be, when the row still follows the same order and stands where it
/// stood.
#[derive(Clone, Debug)]
pub struct Settlement {
    revision: u64,
    todo: Todo,
    status: TrackerStatus,
    /// Nothing but the ownership is another: no index has it, so that the write is a cheaper one.
    is_claim: bool,
    item: Item,
}

impl Settlement {
    pub fn of(before: &Item, item: Item) -> Settlement {
        Settlement { revision: before.revision, todo: before.todo, status: before.status, is_claim: false, item }
    }

    /// Of `item` only the ownership is written.
    pub fn claim(before: &Item, item: Item) -> Settlement {
        Settlement { is_claim: true, ..Settlement::of(before, item) }
    }
}

enum Command {
    Follow {
        changes: Vec<Change>,
        cursor: Option<Cursor>,
        source: Source,
        reply: Reply<Vec<Touched>>,
    },
    Sweep {
        after: Vec<u8>,
        through: Option<Vec<u8>>,
        keep: Vec<Vec<u8>>,
        index: u64,
        reply: Reply<Swept>,
    },
    EndComparison {
        cursor: Cursor,
        hold: Option<String>,
        reply: Reply<()>,
    },
    /// Frees the unpins of a comparison that never ended and that the log has made superfluous.
    Release {
        reply: Reply<()>,
    },
    RebuiltUpTo {
        index: u64,
        reply: Reply<()>,
    },
    /// Claims after a row are adoptions from now on; gives how far it came.
    Disown {
        after: i64,
        why: String,
        reply: Reply<Option<i64>>,
    },
    /// The rows are about this IPFS node.
    SetNode {
        node: Vec<u8>,
        reply: Reply<()>,
    },
    Settle {
        settlements: Vec<Settlement>,
        reply: Reply<Vec<bool>>,
    },
}

type Reply<T> = oneshot::Sender<Result<T>>;

/// The table. Clones share it; the database is closed when the last clone is gone and `close` was called.
#[derive(Clone)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    readers: SqlitePool,
    statements: Arc<Statements>,
    shared: Arc<Shared>,
    policy: Policy,
}

/// What readers want without asking the database.
struct Shared {
    cursor: Mutex<Option<Cursor>>,
    /// Index of the cursor, for those who wait for it.
    position: watch::Sender<u64>,
    rebuilt_index: AtomicU64,
    node: Mutex<Option<Vec<u8>>>,
    counts: Counts,
}

/// Rows by status. Kept by the writer, counted once at start.
#[derive(Default)]
pub struct Counts([AtomicI64; TrackerStatus::ALL.len()]);

impl Counts {
    fn slot(&self, status: TrackerStatus) -> &AtomicI64 {
        let index = TrackerStatus::ALL.iter().position(|known| *known == status).unwrap_or(0);
        &self.0[index]
    }

    pub fn of(&self, status: TrackerStatus) -> u64 {
        u64::try_from(self.slot(status).load(Ordering::Relaxed)).unwrap_or(0)
    }

    fn add(&self, status: TrackerStatus, rows: i64) {
        self.slot(status).fetch_add(rows, Ordering::Relaxed);
    }
}

impl Store {
    /// Opens or makes `<folder>/tracker.db` and starts its writer, which ends when every clone is gone.
    pub async fn open(folder: &Path, policy: Policy) -> Result<Store> {
        let path = folder.join(DATABASE);
        let mut connection = schema::connect(&path).await?;
        let opened = schema::prepare(&mut connection).await?;
        let readers = schema::readers(&path, READERS).await?;
        let shared = Arc::new(Shared {
            position: watch::Sender::new(opened.cursor.as_ref().map_or(0, |cursor| cursor.index)),
            cursor: Mutex::new(opened.cursor),
            rebuilt_index: AtomicU64::new(opened.rebuilt_index),
            node: Mutex::new(opened.node),
            counts: opened.counts,
        });
        let statements = Arc::new(Statements::new());
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let writer = writer::Writer::new(connection, statements.clone(), shared.clone(), policy);
        tokio::spawn(writer.run(queue));
        Ok(Store { commands, readers, statements, shared, policy })
    }

    /// Waits for the writes that were asked for before, then closes the readers.
    pub async fn close(&self) {
        // An empty settlement is answered after everything before it in the queue.
        let _ = self.settle(Vec::new()).await;
        self.readers.close().await;
    }

    pub fn cursor(&self) -> Option<Cursor> {
        self.shared.cursor.lock().clone()
    }

    /// The index of the last change that is in the table.
    pub fn position(&self) -> watch::Receiver<u64> {
        self.shared.position.subscribe()
    }

    /// Items of orders up to this index, that the node had already, may be ours from before `tracker/` was lost.
    pub fn rebuilt_index(&self) -> u64 {
        self.shared.rebuilt_index.load(Ordering::Relaxed)
    }

    /// The peer ID of the IPFS node that the rows are about; `None`: none was seen yet.
    pub fn node(&self) -> Option<Vec<u8>> {
        self.shared.node.lock().clone()
    }

    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    pub fn rules(&self) -> Rules {
        rules(&self.policy, &self.shared.counts)
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ConnectorError::Stopping)?;
        answer.await.map_err(|_| ConnectorError::Stopping)?
    }

    /// Follows changes and moves the cursor, in one transaction.
    pub async fn follow(&self, changes: Vec<Change>, cursor: Option<Cursor>, source: Source) -> Result<Vec<Touched>> {
        self.ask(|reply| Command::Follow { changes, cursor, source, reply }).await
    }

    /// Treats as removed what has a row after `after`, up to `through`, and is not in `keep` (sorted). One chunk of it.
    pub async fn sweep(
        &self,
        after: Vec<u8>,
        through: Option<Vec<u8>>,
        keep: Vec<Vec<u8>>,
        index: u64,
    ) -> Result<Swept> {
        self.ask(|reply| Command::Sweep { after, through, keep, index, reply }).await
    }

    /// The comparison is whole: its unpins are freed, or held with a reason, and the cursor is its own.
    pub async fn end_comparison(&self, cursor: Cursor, hold: Option<String>) -> Result<()> {
        self.ask(|reply| Command::EndComparison { cursor, hold, reply }).await
    }

    pub async fn release(&self) -> Result<()> {
        self.ask(|reply| Command::Release { reply }).await
    }

    /// The rebuilding of a lost table ends with this index.
    pub async fn rebuilt_up_to(&self, index: u64) -> Result<()> {
        self.ask(|reply| Command::RebuiltUpTo { index, reply }).await
    }

    /// Another IPFS node stands beside this peer: nothing on it is claimed by us, whatever the rows say, and what is to
    /// be unpinned is held. May be repeated.
    pub async fn disown_all(&self, why: &str) -> Result<()> {
        let mut after = i64::MIN;
        while let Some(last) = self.ask(|reply| Command::Disown { after, why: why.to_owned(), reply }).await? {
            after = last;
        }
        Ok(())
    }

    pub async fn set_node(&self, node: Vec<u8>) -> Result<()> {
        self.ask(|reply| Command::SetNode { node, reply }).await
    }

    /// Writes what became of items. True where the row still followed the same order.
    pub async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<bool>> {
        self.ask(|reply| Command::Settle { settlements, reply }).await
    }

    /// The rows of these CIDs, where there are any.
    pub async fn get(&self, cids: &[Vec<u8>]) -> Result<HashMap<Vec<u8>, Item>> {
        let mut connection = self.reader().await?;
        let items = rows::by_cids(&mut connection, &self.statements, cids).await?;
        Ok(items.into_iter().map(|item| (item.cid.clone(), item)).collect())
    }

    /// Rows after a CID in byte order; `statuses` is a set of status bits, 0 for all.
    pub async fn page(&self, after: &[u8], statuses: u32, limit: usize) -> Result<Vec<Item>> {
        let mut connection = self.reader().await?;
        rows::page(&mut connection, after, statuses, limit).await
    }

    /// Rows in error after a CID in byte order, by their own index.
    pub async fn troubled(&self, after: &[u8], limit: usize) -> Result<Vec<Item>> {
        let mut connection = self.reader().await?;
        rows::troubled(&mut connection, after, limit).await
    }

    /// Planned work that is due, oldest plan first, after the position `after` = (next try, row).
    pub async fn due(&self, lane: Lane, now_ms: i64, after: (i64, i64), limit: usize) -> Result<Vec<Item>> {
        let mut connection = self.reader().await?;
        rows::due(&mut connection, lane, now_ms, after, limit).await
    }

    /// The same from the other end: what was planned last.
    pub async fn newest_due(&self, lane: Lane, now_ms: i64, limit: usize) -> Result<Vec<Item>> {
        let mut connection = self.reader().await?;
        rows::newest_due(&mut connection, lane, now_ms, limit).await
    }

    pub async fn count_held(&self, hold: Hold) -> Result<u64> {
        let mut connection = self.reader().await?;
        rows::count_held(&mut connection, hold).await
    }

    /// Unpins that are held for this cause, after a CID in byte order.
    pub async fn held(&self, hold: Hold, after: &[u8], limit: usize) -> Result<Vec<Item>> {
        let mut connection = self.reader().await?;
        rows::held(&mut connection, hold, after, limit).await
    }

    async fn reader(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>> {
        self.readers.acquire().await.map_err(failed("open a reader"))
    }
}

/// The lanes of fault:F19, as numbers in the table: each has its share of the slots, so that none starves another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Young pins that were not tried yet: *priority* in the statuses (beh:B11.6), as those of the next lane are.
    New,
    /// Young pins that failed, but not often. Apart from the new ones, so that nobody who pins something waits behind
    /// what nobody has.
    Again,
    /// Older pins that are new to this peer, as a rule because another one went away.
    Repin,
    /// What failed too often, or is old and failed.
    Retry,
    Unpins,
}

impl Lane {
    pub const fn number(self) -> i64 {
        match self {
            Lane::New => 0,
            Lane::Repin => 1,
            Lane::Unpins => 2,
            Lane::Retry => 3,
            Lane::Again => 4,
        }
    }

    fn of(item: &Item) -> Lane {
        match (item.todo, item.priority) {
            (Todo::Unpin, _) => Lane::Unpins,
            (Todo::Pin | Todo::Nothing, true) if item.attempts > 0 => Lane::Again,
            (Todo::Pin | Todo::Nothing, true) => Lane::New,
            (Todo::Pin | Todo::Nothing, false) if item.attempts > 0 => Lane::Retry,
            (Todo::Pin | Todo::Nothing, false) => Lane::Repin,
        }
    }
}

/// Unix time in milliseconds, as rows carry it.
pub fn now_ms() -> i64 {
    Timestamp::now().unix_nanos() / 1_000_000
}

fn rules(policy: &Policy, counts: &Counts) -> Rules {
    Rules {
        now_ms: now_ms(),
        priority_max_age_ms: policy.priority_max_age_ms,
        priority_max_retries: policy.priority_max_retries,
        first_backoff_ms: policy.first_backoff_ms,
        last_backoff_ms: policy.last_backoff_ms,
        max_attempts: policy.max_attempts,
        queue_has_room: counts.of(TrackerStatus::PinQueued) < policy.max_queued_pins,
        comparing: false,
    }
}

fn failed(doing: &'static str) -> impl Fn(sqlx::Error) -> ConnectorError {
    move |error| ConnectorError::Store { doing, why: error.to_string() }
}
