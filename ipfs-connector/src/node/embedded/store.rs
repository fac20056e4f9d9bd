//! The block store: files and their index as one thing. Here are the storage limit, the batching of writes, and the
//! agreement with GC about what may be removed.
//!
//! The agreement (measured.md B, traps 3 and 7): GC never stops a pin or an add, and a pin or an add never loses a
//! block to GC. While a GC runs, every block that is looked at or stored counts as touched; the sweep removes in small
//! batches, each under the write side of `guard`, and leaves what was touched. Looking and storing take the read side.
//! What was looked at before the GC began is reached by its mark: a pin's row is there before its walk begins, and a
//! walk follows a block's links only when that block is on disk, so there is a whole path from the pin to it.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore, mpsc, oneshot, watch};
use tokio::task::spawn_blocking;

use super::files::Files;
use super::index::{BlockRow, Index, now};
use super::key::{Key, ShortKeys};
use pinfold_common::Cid;

use crate::node::verify::Verified;
use crate::node::{NodeError, Result};

/// Blocks written with one flush of the folders and one transaction.
const BATCH_BLOCKS: usize = 256;
const QUEUED_BLOCKS: usize = 256;
/// Batches at a time: one is flushed while the next is filled.
const WRITERS: usize = 2;
/// Bytes of all blocks that are queued or being written; then their callers wait.
const QUEUED_BYTES: usize = 64 * 1024 * 1024;
/// Most blocks that a GC remembers as touched while it runs (64 MB); beyond it the GC gives up, nothing else does.
const MAX_TOUCHED: usize = 2_000_000;

pub struct Store {
    shared: Arc<Shared>,
    incoming: mpsc::Sender<Incoming>,
    room: Arc<Semaphore>,
}

struct Shared {
    files: Files,
    index: Index,
    storage_max_bytes: u64,
    /// Held by the writer that decides what there is room for.
    planning: tokio::sync::Mutex<()>,
    /// Of blocks that are being written and not in the index yet.
    on_the_way_bytes: watch::Sender<u64>,
    guard: RwLock<()>,
    touched: Mutex<Option<Touched>>,
    shorten: ShortKeys,
}

#[derive(Default)]
struct Touched {
    keys: HashSet<u128>,
    is_over: bool,
}

struct Incoming {
    block: Verified,
    held_until: i64,
    answer: oneshot::Sender<Result<()>>,
    /// Its share of `QUEUED_BYTES`.
    room: OwnedSemaphorePermit,
}

/// A block on its way to disk.
pub struct Enqueued(oneshot::Receiver<Result<()>>);

impl Enqueued {
    pub async fn on_disk(self) -> Result<()> {
        self.0.await.map_err(|_| closed())?
    }
}

fn closed() -> NodeError {
    NodeError::Down("embedded node: its block store is closed".into())
}

impl Store {
    pub fn open(folder: &Path, index: Index, storage_max_bytes: u64) -> Result<Store> {
        let files = Files::open(folder).map_err(|error| on_disk("open block store", &error))?;
        let shared = Arc::new(Shared {
            files,
            index,
            storage_max_bytes,
            planning: tokio::sync::Mutex::new(()),
            on_the_way_bytes: watch::Sender::new(0),
            guard: RwLock::new(()),
            touched: Mutex::new(None),
            shorten: ShortKeys::default(),
        });
        let (incoming, queue) = mpsc::channel(QUEUED_BLOCKS);
        let queue = Arc::new(tokio::sync::Mutex::new(queue));
        for _ in 0..WRITERS {
            tokio::spawn(write_batches(shared.clone(), queue.clone()));
        }
        Ok(Store { shared, incoming, room: Arc::new(Semaphore::new(QUEUED_BYTES)) })
    }

    pub fn index(&self) -> &Index {
        &self.shared.index
    }

    pub fn storage_max_bytes(&self) -> u64 {
        self.shared.storage_max_bytes
    }

    /// Stores one block; when this returns it is on disk. Many calls at once share their flushes.
    pub async fn put(&self, block: Verified, hold: Duration) -> Result<()> {
        self.enqueue(block, hold).await?.on_disk().await
    }

    /// Waits only until there is room for the block in the queue.
    pub async fn enqueue(&self, block: Verified, hold: Duration) -> Result<Enqueued> {
        let held_until = match hold.as_secs() {
            0 => 0,
            seconds => now().saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX)),
        };
        let bytes = u32::try_from(block.data().len()).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        self.incoming.send(Incoming { block, held_until, answer, room }).await.map_err(|_| closed())?;
        Ok(Enqueued(answered))
    }

    /// The data of a block that is here. One that is damaged is put aside and counts as not here.
    pub async fn get(&self, cid: &Cid) -> Result<Option<Bytes>> {
        let key = Key::of(cid);
        let reading = self.shared.guard.read().await;
        let data = self
            .blocking("read block", {
                let key = key.clone();
                move |files| files.read(&key)
            })
            .await?;
        let Some(data) = data else { return Ok(None) };
        self.shared.touch(std::slice::from_ref(&key));
        drop(reading);
        match Verified::check(*cid, data.into()) {
            Ok(block) => Ok(Some(block.into_data())),
            Err(error) => {
                tracing::error!(%cid, %error, "block on disk is damaged, putting it aside");
                self.blocking("put block aside", {
                    let key = key.clone();
                    move |files| files.set_aside(&key)
                })
                .await?;
                self.index().lost(key).await?;
                Ok(None)
            }
        }
    }

    /// For GC, the only one that removes blocks: the data as it is on disk, unchecked, and without touching it.
    pub async fn peek(&self, cid: &Cid) -> Result<Option<Bytes>> {
        let key = Key::of(cid);
        Ok(self.blocking("read block", move |files| files.read(&key)).await?.map(Bytes::from))
    }

    /// The sizes of those that are here, in the order asked.
    pub async fn sizes(&self, keys: Vec<Key>) -> Result<Vec<Option<u64>>> {
        let _reading = self.shared.guard.read().await;
        let (keys, sizes) = self
            .blocking("look for blocks", move |files| {
                let sizes = keys.iter().map(|key| files.size(key)).collect::<std::io::Result<Vec<_>>>()?;
                Ok((keys, sizes))
            })
            .await?;
        let here: Vec<Key> =
            keys.into_iter().zip(&sizes).filter(|(_, size)| size.is_some()).map(|(key, _)| key).collect();
        self.shared.touch(&here);
        Ok(sizes)
    }

    /// From now on, until `end_gc`, what is looked at or stored counts as touched.
    pub async fn begin_gc(&self) {
        let _nobody_is_between = self.shared.guard.write().await;
        *self.shared.touched.lock() = Some(Touched::default());
    }

    /// Where sets of keys may put what does not fit into memory.
    pub fn scratch(&self) -> &Path {
        self.shared.files.scratch()
    }

    pub fn end_gc(&self) {
        *self.shared.touched.lock() = None;
    }

    /// Removes those that were neither touched nor are held; answers which, and what did not work. Begun, it is
    /// finished, also when nobody waits for it any more: rows and files go together.
    pub async fn sweep(&self, candidates: Vec<Key>) -> Result<(Vec<Key>, Vec<String>)> {
        let shared = self.shared.clone();
        let sweeping = tokio::spawn(async move {
            let _nobody_looks = shared.guard.write().await;
            let candidates = shared.untouched(candidates)?;
            let gone = shared.index.removed(candidates).await?;
            blocking(&shared, "remove blocks", move |files| {
                let failures = files.remove(&gone)?;
                Ok((gone, failures))
            })
            .await
        });
        sweeping.await.map_err(|error| NodeError::Other(format!("embedded node: gc: {error}")))?
    }

    /// Gives rows to files that have none, and takes them from files that are gone: what a crash or a person left
    /// behind. Adopted files are held for `hold`.
    pub async fn repair(&self, hold: Duration) -> Result<u64> {
        let mut repaired = 0;
        for folder in self.shared.files.folders().collect::<Vec<_>>() {
            let _reading = self.shared.guard.read().await;
            let keys = self.blocking("list blocks", move |files| files.keys_in(&folder)).await?;
            for key in keys {
                if self.index().knows(&key).await? {
                    continue;
                }
                let asked = key.clone();
                let Some(size_bytes) = self.blocking("look for block", move |files| files.size(&asked)).await? else {
                    continue;
                };
                let held_until = now().saturating_add(i64::try_from(hold.as_secs()).unwrap_or(i64::MAX));
                self.index().stored(vec![BlockRow { key, size_bytes, held_until }]).await?;
                repaired += 1;
            }
        }
        let mut after = None;
        loop {
            let rows = self.index().blocks_after(after.as_ref(), 500).await?;
            let Some(last) = rows.last() else { return Ok(repaired) };
            after = Some(last.key.clone());
            let keys: Vec<Key> = rows.into_iter().map(|row| row.key).collect();
            let sizes = self.sizes(keys.clone()).await?;
            for (key, _) in keys.into_iter().zip(sizes).filter(|(_, size)| size.is_none()) {
                tracing::warn!(key = key.name(), "block has a row and no file");
                self.index().lost(key).await?;
                repaired += 1;
            }
        }
    }

    async fn blocking<T, F>(&self, doing: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Files) -> std::io::Result<T> + Send + 'static,
    {
        blocking(&self.shared, doing, work).await
    }
}

impl Shared {
    /// What is used, with what other writers are writing. Near the limit it waits for those, so that nothing counts twice:
    /// nobody is refused who has room. Called by the writer that plans.
    async fn used_bytes(&self, wanted_bytes: u64) -> u64 {
        let mut on_the_way = self.on_the_way_bytes.subscribe();
        loop {
            let others = *on_the_way.borrow_and_update();
            // Read after it: a batch is taken off there when it is counted here.
            let used = self.index.size_bytes().saturating_add(others);
            if others == 0 || used.saturating_add(wanted_bytes) <= self.storage_max_bytes {
                return used;
            }
            // The sender lives in self.
            let _ = on_the_way.changed().await;
        }
    }

    fn touch(&self, keys: &[Key]) {
        let mut touched = self.touched.lock();
        let Some(touched) = touched.as_mut() else { return };
        if touched.keys.len() + keys.len() > MAX_TOUCHED {
            touched.is_over = true;
            return;
        }
        touched.keys.extend(keys.iter().map(|key| self.shorten.shorten(key.as_bytes())));
    }

    fn untouched(&self, keys: Vec<Key>) -> Result<Vec<Key>> {
        let touched = self.touched.lock();
        match touched.as_ref() {
            None => Err(NodeError::Other("embedded node: gc: swept without having begun".into())),
            Some(touched) if touched.is_over => Err(NodeError::Other(format!(
                "embedded node: gc: given up, more than {MAX_TOUCHED} blocks were used while it ran; try again"
            ))),
            Some(touched) => Ok(keys
                .into_iter()
                .filter(|key| !touched.keys.contains(&self.shorten.shorten(key.as_bytes())))
                .collect()),
        }
    }
}

async fn blocking<T, F>(shared: &Arc<Shared>, doing: &'static str, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce(&Files) -> std::io::Result<T> + Send + 'static,
{
    let shared = shared.clone();
    match spawn_blocking(move || work(&shared.files)).await {
        Ok(outcome) => outcome.map_err(|error| on_disk(doing, &error)),
        Err(error) => Err(NodeError::Other(format!("embedded node: {doing}: {error}"))),
    }
}

fn on_disk(doing: &str, error: &std::io::Error) -> NodeError {
    let text = format!("embedded node: {doing}: {error}");
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => NodeError::DiskFull(text),
        _ => NodeError::Other(text),
    }
}

/// One of the writers of block files, which take what is queued in turn.
async fn write_batches(shared: Arc<Shared>, queue: Arc<tokio::sync::Mutex<mpsc::Receiver<Incoming>>>) {
    let mut batch = Vec::with_capacity(BATCH_BLOCKS);
    while queue.lock().await.recv_many(&mut batch, BATCH_BLOCKS).await > 0 {
        write_batch(&shared, std::mem::take(&mut batch)).await;
    }
}

/// Writes a batch and answers each of its callers.
async fn write_batch(shared: &Arc<Shared>, batch: Vec<Incoming>) {
    let _storing = shared.guard.read().await;
    let keys: Vec<Key> = batch.iter().map(|incoming| Key::of(incoming.block.cid())).collect();
    let planning = shared.planning.lock().await;
    let asked = keys.clone();
    let sizes = blocking(shared, "look for blocks", move |files| {
        asked.iter().map(|key| files.size(key)).collect::<std::io::Result<Vec<_>>>()
    });
    let sizes = match sizes.await {
        Ok(sizes) => sizes,
        Err(error) => return answer_all(batch.into_iter().map(|incoming| incoming.answer), &Err(error)),
    };
    let batch_bytes = batch.iter().map(|incoming| incoming.block.data().len() as u64).sum();
    let used_bytes = shared.used_bytes(batch_bytes).await;
    let mut plan = Plan { size_bytes: used_bytes, ..Plan::default() };
    for ((incoming, key), size) in batch.into_iter().zip(keys).zip(sizes) {
        plan.add(shared, incoming, key, size.is_some());
    }
    let on_the_way = OnTheWay::begin(shared, plan.size_bytes - used_bytes);
    drop(planning);
    let outcome = store(shared, plan.new, plan.rows).await;
    drop(on_the_way);
    answer_all(plan.answers.into_iter(), &outcome);
}

/// Whoever asked may have gone; the block is stored all the same.
fn answer_all(answers: impl Iterator<Item = oneshot::Sender<Result<()>>>, outcome: &Result<()>) {
    for answer in answers {
        let _ = answer.send(outcome.clone());
    }
}

/// Bytes of a batch's new blocks, from the decision that there is room for them until the index counts them.
struct OnTheWay {
    shared: Arc<Shared>,
    bytes: u64,
}

impl OnTheWay {
    fn begin(shared: &Arc<Shared>, bytes: u64) -> OnTheWay {
        shared.on_the_way_bytes.send_modify(|all| *all += bytes);
        OnTheWay { shared: shared.clone(), bytes }
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.shared.on_the_way_bytes.send_modify(|all| *all -= self.bytes);
    }
}

/// What a batch comes down to.
#[derive(Default)]
struct Plan {
    /// What the store will hold with it.
    size_bytes: u64,
    new: Vec<(Key, Bytes)>,
    seen: HashSet<Key>,
    rows: Vec<BlockRow>,
    answers: Vec<oneshot::Sender<Result<()>>>,
    /// Given back when all is stored.
    room: Vec<OwnedSemaphorePermit>,
}

impl Plan {
    fn add(&mut self, shared: &Shared, incoming: Incoming, key: Key, is_here: bool) {
        let data = incoming.block.data();
        let row = BlockRow { key: key.clone(), size_bytes: data.len() as u64, held_until: incoming.held_until };
        if !is_here && !self.seen.contains(&key) {
            if self.size_bytes.saturating_add(row.size_bytes) > shared.storage_max_bytes {
                let error = NodeError::DiskFull(format!(
                    "embedded node: store block: {} of at most {} bytes are used",
                    self.size_bytes, shared.storage_max_bytes
                ));
                return answer_all(std::iter::once(incoming.answer), &Err(error));
            }
            self.size_bytes += row.size_bytes;
            self.new.push((key.clone(), data.clone()));
        }
        self.seen.insert(key);
        self.rows.push(row);
        self.answers.push(incoming.answer);
        self.room.push(incoming.room);
    }
}

/// Files first, then rows.
async fn store(shared: &Arc<Shared>, new: Vec<(Key, Bytes)>, rows: Vec<BlockRow>) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    if !new.is_empty() {
        blocking(shared, "store blocks", move |files| files.store(&new)).await?;
    }
    let keys: Vec<Key> = rows.iter().map(|row| row.key.clone()).collect();
    shared.touch(&keys);
    shared.index.stored(rows).await
}
