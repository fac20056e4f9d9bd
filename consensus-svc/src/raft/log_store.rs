//! `store::Log` as the consensus library wants it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use futures::{Stream, stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};

use super::types::{
    Entry, LogId, Types, Vote, entry_of, io_error, log_id_from_store, log_id_to_store, record_of, vote_from_store,
    vote_to_store,
};
use crate::store::Log;

/// Bytes of entries in one message to a follower; one entry alone may be more.
pub const MAX_APPEND_BYTES: usize = 1 << 20;
/// Bytes of entries that apply is ahead of itself in memory.
const MAX_APPLY_BYTES: usize = 4 << 20;

#[derive(Clone)]
pub struct LogStore(pub Log);

/// `start..end` of a range of indexes.
fn ends(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

async fn read(log: &Log, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
    let records = log.read(start, end, max_bytes).await.map_err(io_error)?;
    records.iter().map(|record| entry_of(record).map_err(io_error)).collect()
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = ends(&range);
        read(&self.0, start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        read(&self.0, start, end, MAX_APPEND_BYTES).await
    }

    /// Entries to apply, read a few megabytes at a time.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.0.clone();
        let (start, end) = ends(&range);
        let pieces = stream::unfold(Some(start), move |next| {
            let log = log.clone();
            async move {
                let start = next.filter(|start| *start < end)?;
                let entries = match read(&log, start, end, MAX_APPLY_BYTES).await {
                    Ok(entries) => entries,
                    Err(error) => return Some((vec![Err(error)], None)),
                };
                let next = entries.last().map(|entry| entry.log_id.index() + 1);
                Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), next))
            }
        });
        futures::StreamExt::flat_map(pieces, stream::iter)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.vote().map(vote_from_store))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let status = self.0.status();
        Ok(LogState {
            last_purged_log_id: status.purged.map(log_id_from_store),
            last_log_id: status.last.map(log_id_from_store),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.0.save_vote(vote_to_store(vote)).await.map_err(io_error)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.0.save_committed(committed.as_ref().map(log_id_to_store));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.0.committed().map(log_id_from_store))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = entries.into_iter().map(|entry| record_of(&entry)).collect();
        let done = Box::new(move |result: Result<(), _>| callback.io_completed(result.map_err(io_error)));
        self.0.append(records, done).await.map_err(io_error)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.0.truncate_after(last_log_id.as_ref().map(log_id_to_store)).await.map_err(io_error)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.0.purge(log_id_to_store(&log_id)).await.map_err(io_error)
    }
}
