//! The one task that writes the state: batches of committed entries, checkpoints, installs.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pinfold_proto::storage;
use pinfold_proto::storage::command::Command as Kind;
use sqlx::Connection;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::gather::Gathering;
use super::rows::{self, Held, Loaded, Put, Rows, Scope};
use super::{Chunk, Facts, Generation, Meta, Shared, files, read};
use crate::pinset::{self, Dirty, Outcome, View};
use crate::store::checkpoints::{Checkpoints, STATE_WAL_BYTES};
use crate::store::error::{Error, Result};
use crate::store::record::{Membership, Payload, Record};
use crate::store::sqlite::{self, Purpose};

/// A file that was replaced can be read for so long. Longer than a reader waits for a connection.
const RETIRE_AFTER: Duration = Duration::from_secs(15);

/// Called once, with what each command came to when that is committed.
pub type Applied = Box<dyn FnOnce(Result<Vec<Option<Outcome>>>) + Send>;

/// Committed entries, in order.
pub struct Batch {
    pub records: Vec<Record>,
    /// So many up to the last one are not on the log's disk.
    pub unlogged: u64,
    /// `None`: nobody waits for what they come to.
    pub done: Option<Applied>,
    /// Of the bytes that may wait.
    pub room: OwnedSemaphorePermit,
}

impl Batch {
    pub fn size_bytes(&self) -> usize {
        self.room.num_permits()
    }

    /// Whether it can be applied a little later: nobody waits for it, and it changes pins only.
    pub fn may_wait(&self) -> bool {
        // A command that names pins changes nothing else.
        let changes_pins = |record: &Record| match &record.payload {
            Payload::Command(proposal) => !pinset::cids_of(&proposal.command).is_empty(),
            Payload::Blank | Payload::Membership(_) => false,
        };
        self.done.is_none() && self.records.iter().all(changes_pins)
    }
}

pub enum Op {
    Apply(Batch),
    /// A stretch of the pinset as this connection sees it.
    List {
        after: Vec<u8>,
        limit: usize,
        done: oneshot::Sender<Result<Chunk>>,
    },
    /// Answered when everything applied before is on disk.
    Checkpoint {
        done: oneshot::Sender<Result<Meta>>,
    },
    /// Replaces the state by the file, whose contents are on disk.
    Install {
        file: PathBuf,
        is_verified: bool,
        done: oneshot::Sender<Result<Meta>>,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

pub struct Writer {
    pub rows: Rows,
    pub view: View,
    pub meta: Meta,
    pub path: PathBuf,
    pub shared: Arc<Shared>,
}

impl Writer {
    pub async fn run(mut self, mut ops: mpsc::Receiver<Op>) {
        let mut next = None;
        let mut gathering = Gathering::new(self.shared.waiting.subscribe());
        loop {
            let op = match next.take() {
                Some(op) => Some(op),
                None => ops.recv().await,
            };
            let Some(op) = op else { break };
            let ended = match op {
                Op::Apply(first) => {
                    let (batches, other) = gathering.collect(first, &mut ops).await;
                    next = other;
                    self.apply_together(batches).await || self.keep_up().await
                }
                Op::List { after, limit, done } => {
                    let index = self.applied();
                    let result = read::chunk(&mut self.rows.connection, &after, limit, index).await;
                    self.answer(done, result)
                }
                Op::Checkpoint { done } => {
                    let result = self.checkpoint().await;
                    self.answer(done, result)
                }
                Op::Install { file, is_verified, done } => match self.install(file, is_verified).await {
                    Ok(writer) => {
                        self = writer;
                        let meta = self.meta.clone();
                        self.answer(done, Ok(meta))
                    }
                    Err((shared, error)) => {
                        shared.failure.set(&error);
                        let _ = done.send(Err(error));
                        return;
                    }
                },
                Op::Close { done } => {
                    self.close().await;
                    let _ = done.send(());
                    return;
                }
            };
            if ended {
                return;
            }
        }
        self.close().await;
    }

    /// Whether that was the end: after an error, nobody knows what this connection's transaction holds.
    fn answer<T>(&self, done: oneshot::Sender<Result<T>>, result: Result<T>) -> bool {
        let result = self.noted(result);
        let failed = result.is_err();
        // The caller may have given up; what was written stands.
        let _ = done.send(result);
        failed
    }

    /// An error is told to everybody, with the file it is about.
    fn noted<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.in_file(&self.path)).inspect_err(|error| self.shared.failure.set(error))
    }

    /// Everything in one transaction. Whether that was the end.
    async fn apply_together(&mut self, batches: Vec<Batch>) -> bool {
        let (mut records, mut waiting) = (Vec::new(), Vec::new());
        let mut unlogged = 0;
        for batch in batches {
            waiting.push((batch.records.len(), batch.done, batch.room));
            if !batch.records.is_empty() {
                unlogged = batch.unlogged;
                records.extend(batch.records);
            }
        }
        let result = self.apply(&records, unlogged).await;
        match self.noted(result) {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for (count, done, _room) in waiting {
                    let own = outcomes.by_ref().take(count).collect();
                    if let Some(done) = done {
                        done(Ok(own));
                    }
                }
                false
            }
            Err(error) => {
                waiting.into_iter().filter_map(|(_, done, _)| done).for_each(|done| done(Err(error.clone())));
                true
            }
        }
    }

    /// Whether that was the end.
    async fn keep_up(&mut self) -> bool {
        let Err(error) = self.rows.keep_up().await else { return false };
        self.shared.failure.set(&error.in_file(&self.path));
        true
    }

    /// One transaction for the batch: load the rows it names, decide entry by entry, write what changed.
    async fn apply(&mut self, records: &[Record], unlogged: u64) -> Result<Vec<Option<Outcome>>> {
        let Some(last) = records.last().map(|record| record.id) else { return Ok(Vec::new()) };
        self.check_order(records)?;
        let mut next = Meta { applied: Some(last), unlogged, membership: self.meta.membership.clone() };
        if let Some(outcomes) = self.apply_to_new_rows(records, &next).await? {
            return Ok(outcomes);
        }
        let mut loaded = HashMap::new();
        let (cids, keys) = named(records);
        self.rows.load_pins(&mut self.view, &mut loaded, cids).await?;
        self.rows.load_keys(&mut self.view, keys).await?;
        let (outcomes, membership) = self.apply_each(records)?;
        let dirty = self.view.take_dirty();
        self.rows.begin().await?;
        self.write(&dirty, loaded).await?;
        next.membership = membership.unwrap_or(next.membership);
        self.rows.commit(&next, &self.view).await?;
        self.committed(next, dirty);
        Ok(outcomes)
    }

    /// Applies a batch that only puts what its proposers took for new, without a look at what is there: every one of the
    /// rows has to be inserted, and the table refuses one whose CID it has. `None`: one is not new, or is not inserted for
    /// another reason, or the batch is of another kind; nothing has changed.
    async fn apply_to_new_rows(&mut self, records: &[Record], next: &Meta) -> Result<Option<Vec<Option<Outcome>>>> {
        if self.rows.scope() == Scope::Rehearsed || !records.iter().all(puts_new_rows) {
            return Ok(None);
        }
        let (pin_count, pruned_minute) = (self.view.pin_count, self.view.pruned_minute);
        let rows = self.rows.mark();
        for cid in commands(records).flat_map(pinset::cids_of) {
            self.view.pins.insert(cid.to_vec(), None);
        }
        let count = self.view.pins.len();
        let (outcomes, _) = self.apply_each(records)?;
        let dirty = self.view.take_dirty();
        let is_row = |cid: &Vec<u8>| self.view.pins.get(cid).is_some_and(Option::is_some);
        if dirty.pins.len() == count && dirty.pins.iter().all(is_row) {
            let written = async {
                self.rows.begin().await?;
                self.write(&dirty, HashMap::new()).await?;
                self.rows.commit(next, &self.view).await
            };
            match written.await {
                Ok(()) => {
                    self.committed(next.clone(), dirty);
                    return Ok(Some(outcomes));
                }
                Err(error) if error.is_of_a_known_row() => self.rows.roll_back().await?,
                Err(error) => return Err(error),
            }
        }
        self.rows.return_to(rows);
        (self.view.pin_count, self.view.pruned_minute) = (pin_count, pruned_minute);
        self.view.forget_rows();
        Ok(None)
    }

    /// Entry by entry, on the rows that were loaded. The outcomes, and the last membership among them.
    fn apply_each(&mut self, records: &[Record]) -> Result<(Vec<Option<Outcome>>, Option<Membership>)> {
        let mut outcomes = Vec::with_capacity(records.len());
        let mut membership = None;
        for record in records {
            let index = record.id.index;
            outcomes.push(match &record.payload {
                Payload::Blank => None,
                Payload::Command(proposal) => Some(pinset::apply(&mut self.view, index, &proposal.command)?),
                Payload::Membership(made) => {
                    let voters: BTreeSet<u64> = made.configs.iter().flat_map(|set| set.ids.iter().copied()).collect();
                    pinset::apply_membership(&mut self.view, index, &voters);
                    membership = Some(Membership { log_id: Some(record.id), membership: made.clone() });
                    None
                }
            });
        }
        Ok((outcomes, membership))
    }

    fn committed(&mut self, next: Meta, dirty: Dirty) {
        self.meta = next;
        self.view.forget_rows();
        self.publish(dirty);
    }

    /// Entries are applied once and in order.
    fn check_order(&self, records: &[Record]) -> Result<()> {
        let mut before = self.meta.applied.map(|id| id.index);
        for record in records {
            if before.is_some_and(|before| record.id.index <= before) {
                return Err(Error::damaged(format!("apply entry {}: already applied", record.id.index)));
            }
            before = Some(record.id.index);
        }
        Ok(())
    }

    async fn write(&mut self, dirty: &Dirty, mut loaded: HashMap<Vec<u8>, Loaded>) -> Result<()> {
        let (mut inserts, mut updates) = (Vec::new(), Vec::new());
        let mut deletes = Vec::new();
        let mut freed: Vec<(Held, i64)> = Vec::new();
        let mut taken: Vec<(Held, i64)> = Vec::new();
        for cid in &dirty.pins {
            let now = self.view.pins.get(cid).cloned().flatten();
            let before = loaded.remove(cid);
            if let Some(row) = &before {
                self.rows.forget_sum(row);
            }
            let held_before = before.as_ref().map_or(&[] as &[Held], |row| &row.held);
            let (id, held) = match (&now, &before) {
                (None, None) => continue,
                (None, Some(row)) => {
                    deletes.push(row.id);
                    (row.id, Vec::new())
                }
                (Some(pin), row) => {
                    let (id, puts) = match row {
                        Some(row) => (row.id, &mut updates),
                        None => (self.rows.next_pin(), &mut inserts),
                    };
                    puts.push(Put::new(id, pin.clone()));
                    (id, self.rows.held(pin).await?)
                }
            };
            freed.extend(held_before.iter().filter(|row| !held.contains(row)).map(|row| (*row, id)));
            taken.extend(held.iter().filter(|row| !held_before.contains(row)).map(|row| (*row, id)));
        }
        // In the order of the tree, so that neighbours land on the same page.
        freed.sort_unstable();
        taken.sort_unstable();
        self.rows.delete_allocations(&freed).await?;
        self.rows.delete_pins(&deletes).await?;
        self.rows.update_pins(&updates).await?;
        self.rows.insert_pins(&inserts).await?;
        self.rows.put_allocations(&taken).await?;
        self.write_others(dirty).await
    }

    async fn write_others(&mut self, dirty: &Dirty) -> Result<()> {
        for range in &dirty.prune_keys {
            self.rows.prune_keys(*range).await?;
        }
        let known = |key| self.view.keys.get(key).and_then(Option::as_ref);
        let written: Vec<_> = dirty.keys.iter().filter_map(|key| known(key).map(|stored| (key, stored))).collect();
        let gone: Vec<_> = dirty.keys.iter().filter(|key| known(*key).is_none()).collect();
        self.rows.put_keys(&written).await?;
        self.rows.delete_keys(&gone).await?;
        for row in dirty.peers.iter().filter_map(|node| self.view.peers.rows.get(node)) {
            self.rows.put_peer(row).await?;
        }
        for name in &dirty.settings {
            self.rows.put_setting(name, self.view.settings.get(name).map(String::as_str)).await?;
        }
        Ok(())
    }

    /// Tells everybody what is committed now; the index last, because it promises the rest.
    fn publish(&self, dirty: Dirty) {
        let applied = self.meta.applied.map_or(0, |id| id.index);
        let facts = self.shared.facts.borrow().clone();
        let has_facts = !dirty.peers.is_empty()
            || !dirty.settings.is_empty()
            || facts.cluster_id != self.view.cluster_id
            || facts.lineage != self.view.lineage
            || facts.peers.index != self.view.peers.index;
        if has_facts {
            self.shared.facts.send_replace(Arc::new(Facts::of(&self.view)));
        }
        *self.shared.meta.lock() = self.meta.clone();
        self.shared.pin_count.store(self.view.pin_count, std::sync::atomic::Ordering::Release);
        self.shared.recent.advance(dirty.changes, applied);
        self.shared.applied.send_replace(applied);
    }

    /// Everything applied so far is on disk when this returns: only then may the log forget it.
    async fn checkpoint(&mut self) -> Result<Meta> {
        sqlite::sync(&mut self.rows.connection, &self.path).await?;
        Ok(self.meta.clone())
    }

    async fn install(self, file: PathBuf, is_verified: bool) -> Result<Writer, (Arc<Shared>, Error)> {
        let shared = self.shared.clone();
        self.replace(file, is_verified).await.map_err(|error| (shared, error))
    }

    async fn replace(self, file: PathBuf, is_verified: bool) -> Result<Writer> {
        let Writer { mut rows, path: old, shared, .. } = self;
        rows.settle().await?;
        let Rows { connection, statements, .. } = rows;
        connection.close().await.map_err(Error::sqlite("close the old state"))?;
        let folder = shared.folder.clone();
        let previous = old.clone();
        let adopted = tokio::task::spawn_blocking(move || files::adopt(&folder, &previous, &file));
        let path = adopted.await.map_err(|_| Error::Closed)??;

        let mut connection = sqlite::open_writer(&path, Purpose::State).await?;
        sqlite::prepare(&mut connection, &path, rows::VERSION, rows::SCHEMA).await?;
        let (view, meta) = rows::load_status(&mut connection).await?;
        let checkpoints = Checkpoints::beside(&path, &shared.failure, STATE_WAL_BYTES)?;
        let rows = Rows::open(connection, statements, checkpoints).await?;
        let before = std::mem::replace(&mut *shared.generation.write(), Arc::new(Generation::open(&path)));
        tokio::spawn(async move {
            // A reader that has just looked up the old file may still be about to take a connection.
            tokio::time::sleep(RETIRE_AFTER).await;
            before.readers.close().await;
            let _ = tokio::task::spawn_blocking(move || files::remove(&old)).await;
        });
        let applied = meta.applied.map_or(0, |id| id.index);
        *shared.meta.lock() = meta.clone();
        shared.pin_count.store(view.pin_count, std::sync::atomic::Ordering::Release);
        shared.recent.restart(applied);
        shared.facts.send_replace(Arc::new(Facts::of(&view)));
        shared.applied.send_replace(applied);
        shared.unverified.send_replace(!is_verified);
        Ok(Writer { rows, view, meta, path, shared })
    }

    fn applied(&self) -> u64 {
        self.meta.applied.map_or(0, |id| id.index)
    }

    async fn close(mut self) {
        let settled = self.rows.settle().await;
        let ended = match self.rows.scope() {
            Scope::Committed => self.checkpoint().await.map(drop),
            Scope::Rehearsed => self.rows.leave().await,
        };
        if let Err(error) = settled.and(ended) {
            tracing::warn!(%error, "the state was closed without a checkpoint; the log still has what it needs");
        }
        if let Err(error) = self.rows.connection.close().await {
            tracing::warn!(%error, "closing the state failed");
        }
    }
}

/// Whether the entry only puts pins that were not there when it was proposed, and keeps no outcome under a key.
fn puts_new_rows(record: &Record) -> bool {
    let Payload::Command(proposal) = &record.payload else { return false };
    let command = &proposal.command;
    let is_new = |put: &storage::Put| put.expected_revision == 0 && put.request_key.is_empty();
    match &command.command {
        Some(Kind::PutMany(many)) => command.request_key.is_empty() && many.puts.iter().all(is_new),
        Some(_) | None => false,
    }
}

fn commands(records: &[Record]) -> impl Iterator<Item = &storage::Command> {
    records.iter().filter_map(|record| match &record.payload {
        Payload::Command(proposal) => Some(&proposal.command),
        Payload::Blank | Payload::Membership(_) => None,
    })
}

/// The rows that the batch needs, each once, in the order of their trees.
fn named(records: &[Record]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let cids: BTreeSet<&[u8]> = commands(records).flat_map(pinset::cids_of).collect();
    let keys: BTreeSet<&[u8]> = commands(records).flat_map(pinset::keys_of).collect();
    let owned = |set: BTreeSet<&[u8]>| set.into_iter().map(<[u8]>::to_vec).collect();
    (owned(cids), owned(keys))
}
