//! The newest committed changes, in memory, so that a follower that is only a little behind need not compare the whole
//! pinset. Fed by the state's writer after each commit; empty at start. Bounded by entries and by bytes.

use std::collections::VecDeque;

use parking_lot::Mutex;
use prost::Message as _;

use crate::pinset::Change;

/// Changes that are kept.
pub const MAX_CHANGES: usize = 100_000;
/// Bytes that they may take, by estimate.
pub const MAX_BYTES: usize = 16 << 20;
/// What a decoded pin costs beyond its encoding, roughly.
const OVERHEAD_BYTES: usize = 300;

/// The ring. It knows every change above `from` and up to `applied`.
pub struct Recent(Mutex<Ring>);

struct Ring {
    changes: VecDeque<(Change, usize)>,
    bytes: usize,
    from: u64,
    applied: u64,
    max_changes: usize,
    max_bytes: usize,
}

impl Recent {
    /// Empty: everything up to `applied` is older than the ring.
    pub fn starting_at(applied: u64) -> Recent {
        Recent::bounded(applied, MAX_CHANGES, MAX_BYTES)
    }

    fn bounded(applied: u64, max_changes: usize, max_bytes: usize) -> Recent {
        let ring = Ring { changes: VecDeque::new(), bytes: 0, from: applied, applied, max_changes, max_bytes };
        Recent(Mutex::new(ring))
    }

    /// The changes above `index` and the index they lead to. At most about `max` of them: those of one entry stay
    /// together, so that the returned index can be resumed from. `None`: the ring does not reach back that far.
    pub fn since(&self, index: u64, max: usize) -> Option<(Vec<Change>, u64)> {
        let ring = self.0.lock();
        if index < ring.from {
            return None;
        }
        let start = ring.changes.partition_point(|(change, _)| change.index() <= index);
        let mut found: Vec<Change> = Vec::new();
        for (change, _) in ring.changes.range(start..) {
            let last = found.last().map(Change::index);
            if found.len() >= max && last.is_some_and(|last| last != change.index()) {
                return Some((found, last.unwrap_or(index)));
            }
            found.push(change.clone());
        }
        Some((found, ring.applied.max(index)))
    }

    /// Adds what a batch of entries up to `applied` changed.
    pub(super) fn advance(&self, changes: Vec<Change>, applied: u64) {
        let mut ring = self.0.lock();
        for change in changes {
            let bytes = size_bytes(&change);
            ring.bytes += bytes;
            ring.changes.push_back((change, bytes));
        }
        ring.applied = applied;
        while ring.changes.len() > ring.max_changes || ring.bytes > ring.max_bytes {
            ring.forget_oldest_entry();
        }
    }

    /// The state was replaced: nothing is known below `applied`.
    pub(super) fn restart(&self, applied: u64) {
        let mut ring = self.0.lock();
        ring.changes.clear();
        ring.bytes = 0;
        ring.from = applied;
        ring.applied = applied;
    }
}

impl Ring {
    /// All changes of one entry, as a cursor can't point between them.
    fn forget_oldest_entry(&mut self) {
        let Some((oldest, _)) = self.changes.front() else { return };
        let index = oldest.index();
        while let Some((change, bytes)) = self.changes.pop_front_if(|(change, _)| change.index() == index) {
            self.bytes -= bytes;
            drop(change);
        }
        self.from = index;
    }
}

fn size_bytes(change: &Change) -> usize {
    OVERHEAD_BYTES
        + match change {
            Change::Put { pin, .. } => 2 * pin.encoded_len(),
            Change::Removed { cid, .. } => cid.len(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(index: u64, cid: u8) -> Change {
        Change::Removed { index, cid: vec![cid] }
    }

    fn indexes(changes: &[Change]) -> Vec<u64> {
        changes.iter().map(Change::index).collect()
    }

    /// Goal: a follower that resumes from what it was given misses nothing and gets nothing twice.
    #[test]
    fn changes_of_one_entry_stay_together() {
        let recent = Recent::starting_at(10);
        recent.advance(vec![removed(11, 1), removed(12, 2), removed(12, 3), removed(12, 4), removed(14, 5)], 15);
        let (first, index) = recent.since(10, 2).unwrap();
        assert_eq!((indexes(&first), index), (vec![11, 12, 12, 12], 12));
        let (rest, index) = recent.since(index, 2).unwrap();
        assert_eq!((indexes(&rest), index), (vec![14], 15));
        assert_eq!(recent.since(15, 2).unwrap(), (vec![], 15));
    }

    /// Goal: a gap is never papered over.
    #[test]
    fn older_than_the_ring_is_none() {
        let recent = Recent::bounded(10, 3, usize::MAX);
        assert!(recent.since(9, 10).is_none());
        recent.advance(vec![removed(11, 1), removed(11, 2), removed(12, 3), removed(13, 4)], 13);
        assert!(recent.since(10, 10).is_none(), "entry 11 was forgotten as a whole");
        assert_eq!(indexes(&recent.since(11, 10).unwrap().0), vec![12, 13]);
        recent.restart(40);
        assert!(recent.since(13, 10).is_none());
        assert_eq!(recent.since(40, 10).unwrap(), (vec![], 40));
        let small = Recent::bounded(0, usize::MAX, 2 * OVERHEAD_BYTES);
        small.advance(vec![removed(1, 1), removed(2, 2)], 2);
        assert_eq!(indexes(&small.since(1, 10).unwrap().0), vec![2]);
    }
}
