//! The log in memory: its newest entries and its ends. No I/O.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::store::error::{Error, Result};
use crate::store::record::{LogId, Payload, Record, Vote};

/// What an entry costs beyond its bytes, roughly.
const OVERHEAD_BYTES: usize = 200;

/// An entry with its encoding.
#[derive(Clone)]
pub struct Cached {
    pub record: Record,
    pub encoded: Bytes,
}

impl Cached {
    pub fn new(record: Record) -> Cached {
        let encoded = record.encode();
        Cached { record, encoded }
    }

    /// The encoding, and the decoded command about twice.
    pub fn size_bytes(&self) -> usize {
        let decoded = match &self.record.payload {
            Payload::Command(proposal) => 2 * proposal.size_bytes(),
            Payload::Blank | Payload::Membership(_) => 0,
        };
        OVERHEAD_BYTES + self.encoded.len() + decoded
    }
}

/// The newest entries, without a hole, and the facts about all of them.
pub struct Cache {
    entries: VecDeque<(Record, Size)>,
    bytes: usize,
    max_bytes: usize,
    /// Counts truncations, so that a write that was queued before one does not speak about entries after it.
    epoch: u64,
    /// The newest entry that is on disk, or that it was purged.
    durable: Option<u64>,
    /// Where a log begins from which nothing was purged: at 0, but for one that begins after a snapshot.
    begin: u64,
    pub last: Option<LogId>,
    pub purged: Option<LogId>,
    pub committed: Option<LogId>,
    pub vote: Option<Vote>,
    pub starts: u64,
    /// Whose log it is; of the first formats nobody's.
    pub node: Option<u64>,
}

/// Encoded size and cache size of an entry.
#[derive(Clone, Copy)]
struct Size {
    encoded: usize,
    cached: usize,
}

impl Cache {
    /// Everything in it is on disk.
    pub fn loaded(
        entries: impl IntoIterator<Item = Cached>,
        max_bytes: usize,
        begin: u64,
        last: Option<LogId>,
        purged: Option<LogId>,
        committed: Option<LogId>,
        vote: Option<Vote>,
    ) -> Cache {
        let mut cache = Cache {
            entries: VecDeque::new(),
            bytes: 0,
            max_bytes,
            epoch: 0,
            durable: last.or(purged).map(|id| id.index),
            begin,
            last,
            purged,
            committed,
            vote,
            starts: 0,
            node: None,
        };
        for entry in entries {
            cache.push(entry);
        }
        cache
    }

    /// The index of the oldest entry there is, or could be.
    pub fn oldest(&self) -> u64 {
        self.purged.map_or(self.begin, |id| id.index + 1)
    }

    /// The index of the oldest entry in memory, or of the one that would come next.
    pub fn first(&self) -> u64 {
        match self.entries.front() {
            Some((record, _)) => record.id.index,
            None => self.next(),
        }
    }

    fn next(&self) -> u64 {
        self.last.or(self.purged).map_or(0, |id| id.index + 1)
    }

    /// Whether the entries from `index` on need nothing from the file.
    pub fn covers(&self, index: u64) -> bool {
        index >= self.first()
    }

    /// Adds entries from `start` to before `end` to `found`, whose `bytes` are counted along; at least one.
    pub fn read(&self, start: u64, end: u64, max_bytes: usize, bytes: &mut usize, found: &mut Vec<Record>) {
        let Some(skip) = start.checked_sub(self.first()) else { return };
        for (record, size) in self.entries.iter().skip(skip as usize).take_while(|(record, _)| record.id.index < end) {
            if !found.is_empty() && *bytes + size.encoded > max_bytes {
                return;
            }
            *bytes += size.encoded;
            found.push(record.clone());
        }
    }

    /// Returns the epoch the entries belong to.
    pub fn append(&mut self, entries: Vec<Cached>) -> Result<u64> {
        for entry in entries {
            let index = entry.record.id.index;
            if self.last.or(self.purged).is_none() {
                self.begin = index;
            } else if index != self.next() {
                return Err(Error::damaged(format!("append log entry {index}: {} is the next one", self.next())));
            }
            self.last = Some(entry.record.id);
            self.push(entry);
        }
        self.evict();
        Ok(self.epoch)
    }

    fn push(&mut self, entry: Cached) {
        let size = Size { encoded: entry.encoded.len(), cached: entry.size_bytes() };
        self.bytes += size.cached;
        self.entries.push_back((entry.record, size));
    }

    /// Everything up to `index` is on disk, if it was written in this epoch.
    pub fn set_durable(&mut self, index: u64, epoch: u64) {
        if epoch == self.epoch {
            self.durable = self.durable.max(Some(index));
            self.evict();
        }
    }

    /// That everything up to `index` was purged is on disk.
    pub fn set_purged(&mut self, index: u64) {
        self.durable = self.durable.max(Some(index));
    }

    /// How many of the entries up to `index` are not on disk.
    pub fn unlogged(&self, index: u64) -> u64 {
        let next = self.durable.map_or(self.begin, |durable| durable + 1);
        (index + 1).saturating_sub(next)
    }

    pub fn truncate_after(&mut self, keep: Option<LogId>) {
        let keep_index = keep.map(|id| id.index);
        if keep_index >= self.last.map(|id| id.index) {
            return;
        }
        while let Some((_, size)) = self.entries.pop_back_if(|(record, _)| Some(record.id.index) > keep_index) {
            self.bytes -= size.cached;
        }
        self.epoch += 1;
        self.durable = self.durable.min(keep_index);
        self.last = keep.filter(|id| self.purged.is_none_or(|purged| purged.index < id.index));
    }

    pub fn purge(&mut self, upto: LogId) {
        while let Some((_, size)) = self.entries.pop_front_if(|(record, _)| record.id.index <= upto.index) {
            self.bytes -= size.cached;
        }
        if self.last.is_some_and(|last| last.index <= upto.index) {
            self.last = None;
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    fn evict(&mut self) {
        while self.bytes > self.max_bytes {
            let durable = self.durable;
            let Some((_, size)) = self.entries.pop_front_if(|(record, _)| Some(record.id.index) <= durable) else {
                return;
            };
            self.bytes -= size.cached;
        }
    }
}
