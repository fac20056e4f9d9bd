//! The newest committed changes, in memory, so that a follower that is only a little behind need not compare the whole
//! pinset. Fed by the state's writer after each commit; empty at start. Bounded by entries and by bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use pinfold_proto::types;
use prost::Message as _;

use crate::pinset::Change;

/// Changes that are kept.
pub const MAX_CHANGES: usize = 100_000;
/// Bytes that they may take, by estimate.
pub const MAX_BYTES: usize = 4 << 20;
/// What a change costs beyond its bytes, roughly.
const OVERHEAD_BYTES: usize = 100;

/// A change. Pins are kept encoded: decoded ones are four times as large.
struct Kept {
    index: u64,
    pin_or_cid: PinOrCid,
}

enum PinOrCid {
    Put(Bytes),
    Removed(Bytes),
}

impl Kept {
    fn new(change: &Change) -> Kept {
        match change {
            Change::Put { index, pin } => Kept { index: *index, pin_or_cid: PinOrCid::Put(pin.encode_to_vec().into()) },
            Change::Removed { index, cid } => {
                Kept { index: *index, pin_or_cid: PinOrCid::Removed(Bytes::copy_from_slice(cid)) }
            }
        }
    }

    fn change(&self) -> Change {
        match &self.pin_or_cid {
            PinOrCid::Put(pin) => {
                let pin = types::Pin::decode(pin.clone()).expect("encoded here");
                Change::Put { index: self.index, pin: Arc::new(pin) }
            }
            PinOrCid::Removed(cid) => Change::Removed { index: self.index, cid: cid.to_vec() },
        }
    }

    fn size_bytes(&self) -> usize {
        match &self.pin_or_cid {
            PinOrCid::Put(bytes) | PinOrCid::Removed(bytes) => OVERHEAD_BYTES + bytes.len(),
        }
    }
}

/// The ring. It knows every change above `from` and up to `applied`.
pub struct Recent(Mutex<Ring>);

struct Ring {
    changes: VecDeque<Kept>,
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
        let start = ring.changes.partition_point(|kept| kept.index <= index);
        let mut found: Vec<Change> = Vec::new();
        for kept in ring.changes.range(start..) {
            let last = found.last().map(Change::index);
            if found.len() >= max && last.is_some_and(|last| last != kept.index) {
                return Some((found, last.unwrap_or(index)));
            }
            found.push(kept.change());
        }
        Some((found, ring.applied.max(index)))
    }

    /// Adds what a batch of entries up to `applied` changed.
    pub(super) fn advance(&self, changes: Vec<Change>, applied: u64) {
        let changes: Vec<Kept> = changes.iter().map(Kept::new).collect();
        let mut ring = self.0.lock();
        for kept in changes {
            ring.bytes += kept.size_bytes();
            ring.changes.push_back(kept);
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
        let Some(index) = self.changes.front().map(|oldest| oldest.index) else { return };
        while let Some(kept) = self.changes.pop_front_if(|kept| kept.index == index) {
            self.bytes -= kept.size_bytes();
        }
        self.from = index;
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
