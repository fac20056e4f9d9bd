//! What a comparison of the tracker with its neighbours means: with the pinset (the mass-unpin guard), and with the
//! node's own list of pins. PURE. Nothing here ever leads to an unpin; the guard only takes unpins back.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};

use pinfold_common::pin::PinMode;
use pinfold_common::status::TrackerStatus;

use super::operation::{Class, Item, Ownership, Todo};

/// More unpins than this from one comparison need approval,
pub const GUARD_ITEMS: u64 = 1_000;
/// and so do more than this share of what is pinned here, in percent (protocols.md 8).
pub const GUARD_PERCENT: u64 = 5;

/// What was unusual about a comparison with the pinset. Without any of it the guard does not look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unusual {
    pub lineage_changed: bool,
    pub state_empty: bool,
    pub tracker_rebuilt: bool,
}

impl Unusual {
    /// In words, for the log and the status; `None` when nothing was.
    pub fn describe(&self) -> Option<&'static str> {
        if self.lineage_changed {
            Some("the pinset was imported or restored")
        } else if self.state_empty {
            Some("the pinset is empty")
        } else if self.tracker_rebuilt {
            Some("tracker/ was rebuilt")
        } else {
            None
        }
    }
}

/// What becomes of the unpins that a comparison ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    Release,
    /// Held until approved; the text says why.
    Hold(String),
}

/// Decides about `unpins` that a comparison ordered, of `pinned` items that were pinned here before it.
pub fn guard(unpins: u64, pinned: u64, unusual: Unusual) -> Guard {
    let Some(why) = unusual.describe() else { return Guard::Release };
    let too_many = unpins > GUARD_ITEMS || unpins.saturating_mul(100) > pinned.saturating_mul(GUARD_PERCENT);
    if unpins == 0 || !too_many {
        return Guard::Release;
    }
    Guard::Hold(format!("held by the mass-unpin guard: {why}, and {unpins} of {pinned} pins would go; needs approval"))
}

/// The node's list of pins, eight bytes each, whatever the CIDs are. Two pins that share a hash hide one loss; the
/// hash is keyed anew each time, so that the next pass finds it.
#[derive(Default)]
pub struct Listing {
    keys: RandomState,
    hashes: Vec<u64>,
    sorted: bool,
}

impl Listing {
    pub fn add(&mut self, cid: &[u8], mode: PinMode) {
        let hash = self.hash(cid, mode);
        self.hashes.push(hash);
        self.sorted = false;
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Must be called between the last `add` and the first `contains`.
    pub fn sort(&mut self) {
        self.hashes.sort_unstable();
        self.sorted = true;
    }

    pub fn contains(&self, cid: &[u8], mode: PinMode) -> bool {
        debug_assert!(self.sorted, "sort before asking");
        self.hashes.binary_search(&self.hash(cid, mode)).is_ok()
    }

    fn hash(&self, cid: &[u8], mode: PinMode) -> u64 {
        let mut hasher = self.keys.build_hasher();
        cid.hash(&mut hasher);
        (mode == PinMode::Direct).hash(&mut hasher);
        hasher.finish()
    }
}

/// What a complete list of the node's pins says about one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Fine,
    /// We say pinned, the list does not: the node is asked about this one before anything is done.
    Missing,
    /// Owed, and the node has it since before `tracker/` was lost.
    Adopt,
}

/// `listed_since_ms`: when the listing began; what changed later is not judged by it. `rebuilt_index`: orders up to it
/// were there when a lost `tracker/` was rebuilt.
pub fn judge(item: &Item, listing: &Listing, listed_since_ms: i64, rebuilt_index: u64) -> Finding {
    if item.class != Class::Here && item.class != Class::Leaving {
        return Finding::Fine;
    }
    // A recursive pin keeps the block of a direct one too.
    let listed = listing.contains(&item.cid, item.mode)
        || (item.mode == PinMode::Direct && listing.contains(&item.cid, PinMode::Recursive));
    match item.todo {
        Todo::Nothing => {
            let said_pinned = item.status == TrackerStatus::Pinned && item.changed_ms < listed_since_ms;
            if said_pinned && !listed { Finding::Missing } else { Finding::Fine }
        }
        Todo::Pin => {
            let unclaimed = item.ownership == Ownership::Unknown && item.revision <= rebuilt_index;
            if unclaimed && listed { Finding::Adopt } else { Finding::Fine }
        }
        Todo::Unpin => Finding::Fine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the guard looks only where protocols.md 8 says, and its two limits are exact.
    #[test]
    fn guard_limits() {
        let restored = Unusual { lineage_changed: true, ..Unusual::default() };
        assert_eq!(guard(1_000_000, 1_000_000, Unusual::default()), Guard::Release);
        assert_eq!(guard(0, 0, restored), Guard::Release);
        assert_eq!(guard(5, 100, restored), Guard::Release);
        assert!(matches!(guard(6, 100, restored), Guard::Hold(_)));
        assert_eq!(guard(1_000, 1_000_000, restored), Guard::Release);
        assert!(matches!(guard(1_001, 1_000_000, restored), Guard::Hold(_)));
        for unusual in [
            Unusual { state_empty: true, ..Unusual::default() },
            Unusual { tracker_rebuilt: true, ..Unusual::default() },
        ] {
            assert!(matches!(guard(10, 10, unusual), Guard::Hold(_)));
        }
    }

    /// Goal: modes are told apart in a listing, and order does not matter.
    #[test]
    fn listing_knows_modes() {
        let mut listing = Listing::default();
        listing.add(b"b", PinMode::Direct);
        listing.add(b"a", PinMode::Recursive);
        listing.sort();
        assert!(listing.contains(b"a", PinMode::Recursive) && listing.contains(b"b", PinMode::Direct));
        assert!(!listing.contains(b"a", PinMode::Direct) && !listing.contains(b"b", PinMode::Recursive));
    }
}
