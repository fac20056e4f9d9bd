//! `store::State` as the consensus library wants it: applying committed entries, and snapshots.
//!
//! A snapshot is *virtual*: building one forces the state to disk and says how far it has come, which is what allows
//! the log to be purged. A file is made of it only when a peer needs one ([`SnapshotData::Live`], by the network), and
//! may by then be newer than the snapshot it was asked for; it says itself how far it has come.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder, Snapshot};
use parking_lot::Mutex;

use super::types::{
    Address, LeaderId, LogId, Reply, SnapshotMeta, StoredMembership, Types, io_error, log_id_from_store, record_of,
    snapshot_meta, stored_membership,
};
use crate::pinset::Outcome;
use crate::store::{self, Copy, Log, Record, State};

/// Entries that go to the state at once, and the bytes of their commands.
const MAX_BATCH_ENTRIES: usize = 2048;
const MAX_BATCH_BYTES: usize = 4 << 20;
/// While a snapshot is being sent the log is not purged, or the receiver would need the next snapshot at once; but not
/// for longer than this.
const HOLD_PURGE_AT_MOST: Duration = Duration::from_secs(600);

/// What a snapshot consists of.
#[derive(Debug)]
pub enum SnapshotData {
    /// This peer's state, to be copied when it is sent.
    Live(LiveState),
    /// A copy of another peer's state, checked and on disk.
    Received(Copy),
}

#[derive(Clone)]
pub struct LiveState(pub State);

impl std::fmt::Debug for LiveState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LiveState")
    }
}

/// Snapshots on their way to other peers.
#[derive(Clone, Default)]
pub struct Transfers(Arc<TransferCount>);

#[derive(Default)]
struct TransferCount {
    running: AtomicUsize,
    held_since: Mutex<Option<Instant>>,
}

/// One of them; ends when dropped.
pub struct Transfer(Transfers);

impl Transfers {
    pub fn begin(&self) -> Transfer {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        Transfer(self.clone())
    }

    pub fn is_any(&self) -> bool {
        self.0.running.load(Ordering::Acquire) > 0
    }

    /// Whether the log has to be kept for one of them.
    fn hold_purge(&self) -> bool {
        let mut held_since = self.0.held_since.lock();
        if self.0.running.load(Ordering::Acquire) == 0 {
            *held_since = None;
            return false;
        }
        held_since.get_or_insert_with(Instant::now).elapsed() < HOLD_PURGE_AT_MOST
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.0.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

pub struct Machine {
    state: State,
    log: Log,
    transfers: Transfers,
    /// What the last snapshot covers; none in this process yet: `None`.
    built: Arc<Mutex<Option<SnapshotMeta>>>,
}

impl Machine {
    pub fn new(state: State, log: Log, transfers: Transfers) -> Machine {
        Machine { state, log, transfers, built: Arc::default() }
    }

    fn snapshot(&self, meta: SnapshotMeta) -> MachineSnapshot {
        Snapshot { meta, snapshot: SnapshotData::Live(LiveState(self.state.clone())) }
    }
}

pub type MachineSnapshot = Snapshot<LeaderId, u64, Address, SnapshotData>;

pub struct Builder {
    state: State,
    built: Arc<Mutex<Option<SnapshotMeta>>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<MachineSnapshot> {
        let meta = self.state.checkpoint().await.map_err(io_error)?;
        let meta = snapshot_meta(&meta).map_err(io_error)?;
        *self.built.lock() = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: SnapshotData::Live(LiveState(self.state.clone())) })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.state.settle().await.map_err(io_error)?;
        let meta = self.state.meta();
        let membership = stored_membership(&meta.membership).map_err(io_error)?;
        Ok((meta.applied.map(log_id_from_store), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut records: Vec<Record> = Vec::new();
        let mut responders = Vec::new();
        let mut bytes = 0;
        while let Some((entry, responder)) = entries.try_next().await? {
            let record = record_of(&entry);
            bytes += record.size_bytes();
            records.push(record);
            responders.push(responder);
            if records.len() >= MAX_BATCH_ENTRIES || bytes >= MAX_BATCH_BYTES {
                self.apply_batch(std::mem::take(&mut records), std::mem::take(&mut responders)).await?;
                bytes = 0;
            }
        }
        self.apply_batch(records, responders).await
    }

    /// `force`: a follower waits for it. Otherwise it is only about purging, which waits for transfers.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        if !force && self.transfers.hold_purge() {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { state: self.state.clone(), built: self.built.clone() }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let copy = match snapshot {
            SnapshotData::Received(copy) => copy,
            // Only the library's own test suite hands a snapshot over within a process.
            SnapshotData::Live(LiveState(state)) => state.copy().await.map_err(io_error)?,
        };
        let meta = self.state.install(copy).await.map_err(io_error)?;
        *self.built.lock() = Some(snapshot_meta(&meta).map_err(io_error)?);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<MachineSnapshot>> {
        let built = self.built.lock().clone();
        Ok(built.map(|meta| self.snapshot(meta)))
    }
}

impl Machine {
    /// Answers each proposer once its entry is committed here. The library goes on before that.
    async fn apply_batch(
        &mut self,
        records: Vec<Record>,
        responders: Vec<Option<openraft::storage::ApplyResponder<Types>>>,
    ) -> io::Result<()> {
        let Some(last) = records.last() else { return Ok(()) };
        // A majority of others has committed them, whether this disk has them or not: nobody waits for it.
        let unlogged = self.log.unlogged(last.id.index);
        let is_awaited = responders.iter().any(Option::is_some);
        let answer = Box::new(move |outcomes: store::Result<Vec<Option<Outcome>>>| {
            // An error stops the process. Until then nobody knows what became of the entries.
            for (outcome, responder) in outcomes.into_iter().flatten().zip(responders) {
                if let Some(responder) = responder {
                    responder.send(Reply(outcome));
                }
            }
        });
        self.state.queue(records, unlogged, is_awaited.then_some(answer)).await.map_err(io_error)
    }
}
