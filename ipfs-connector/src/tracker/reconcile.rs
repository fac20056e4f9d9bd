//! What a comparison of the tracker with its neighbours means: with the pinset (the mass-unpin guard), and with the
//! node's own list of pins. PURE. Nothing here ever leads to an unpin; the guard only takes unpins back.

use pinfold_common::status::TrackerStatus;

use super::listing::Listing;
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

/// What a complete list of the node's pins says about one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Fine,
    /// We say pinned, the list does not: the node is asked about this one before anything is done.
    Missing,
    /// Owed, and the node has it since before `tracker/` was lost.
    Adopt,
}

/// `listed`: the list has the item, in its mode or a wider one. `listed_since_ms`: when the listing began; what changed
/// later is not judged by it. `rebuilt_index`: orders up to it were there when a lost `tracker/` was rebuilt.
pub fn judge(item: &Item, listed: bool, listed_since_ms: i64, rebuilt_index: u64) -> Finding {
    if item.class != Class::Here && item.class != Class::Leaving {
        return Finding::Fine;
    }
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

/// What the table knew of the node's pins when a list was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Rows that are pinned, then and when the list was there: the fewer.
    pub pinned: u64,
    /// Unix time; what changed later is not judged.
    pub since_ms: i64,
}

/// Whether a list of the node's pins may stand for the answer that a CID is not pinned. A node that lists nothing, or breaks
/// off without saying so, must never make somebody's pin ours: the list has at least as many pins as the table knows of,
/// and each of the `sample`, rows that are pinned. Nothing known is nothing to believe it by.
pub fn is_believable(listing: &Listing, sample: &[Item], known: Known) -> bool {
    let mut judged =
        sample.iter().filter(|item| item.todo == Todo::Nothing && item.changed_ms < known.since_ms).peekable();
    let is_long_enough = u64::try_from(listing.len()).is_ok_and(|listed| listed >= known.pinned);
    is_long_enough && judged.peek().is_some() && judged.all(|item| listing.covers(&item.cid, item.mode))
}

#[cfg(test)]
mod tests {
    use pinfold_common::pin::PinMode;
    use pinfold_proto::types::Reason;

    use super::*;
    use crate::tracker::operation::{Fetched, Hold};

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

    fn item(status: TrackerStatus, todo: Todo, ownership: Ownership) -> Item {
        Item {
            id: 1,
            cid: b"cid".to_vec(),
            revision: 7,
            class: Class::Here,
            status,
            todo,
            ownership,
            hold: Hold::Free,
            mode: PinMode::Recursive,
            priority: false,
            next_try_ms: None,
            attempts: 0,
            reason: Reason::None,
            error: String::new(),
            fetched: Fetched::default(),
            changed_ms: 100,
            pin: Vec::new(),
        }
    }

    /// Goal: issue 6. A list is believed only when it has everything that the node must have, and there is something.
    #[test]
    fn lists_that_are_believed() {
        let pinned =
            |cid: &[u8]| Item { cid: cid.to_vec(), ..item(TrackerStatus::Pinned, Todo::Nothing, Ownership::Claimed) };
        let listing = |cids: &[&[u8]]| {
            let mut listing = Listing::default();
            cids.iter().for_each(|cid| listing.add(cid, PinMode::Recursive));
            listing.sort();
            listing
        };
        let known = |pinned| Known { pinned, since_ms: 200 };
        let sample = [pinned(b"a"), pinned(b"b")];
        assert!(is_believable(&listing(&[b"a", b"b"]), &sample, known(2)));
        assert!(is_believable(&listing(&[b"a", b"b", b"somebody's"]), &sample, known(2)));
        assert!(!is_believable(&listing(&[]), &sample, known(2)), "empty");
        assert!(!is_believable(&listing(&[b"a", b"c"]), &sample, known(2)), "without one that must be there");
        assert!(!is_believable(&listing(&[b"a", b"b"]), &sample, known(3)), "too short");
        assert!(!is_believable(&listing(&[b"a"]), &[], known(0)), "nothing to know it by");
        let late = [Item { changed_ms: 200, ..pinned(b"a") }];
        assert!(!is_believable(&listing(&[b"a"]), &late, known(1)), "pinned while the node was listing");
    }

    /// Goal: only what was pinned before the listing began is missing, and only unclaimed old orders are adopted.
    #[test]
    fn findings() {
        let pinned = item(TrackerStatus::Pinned, Todo::Nothing, Ownership::Claimed);
        assert_eq!(judge(&pinned, true, 200, 0), Finding::Fine);
        assert_eq!(judge(&pinned, false, 200, 0), Finding::Missing);
        assert_eq!(judge(&pinned, false, 100, 0), Finding::Fine, "pinned while the node was listing");
        let remote = Item { class: Class::Remote, ..pinned.clone() };
        assert_eq!(judge(&remote, false, 200, 0), Finding::Fine);
        let queued = item(TrackerStatus::PinQueued, Todo::Pin, Ownership::Unknown);
        assert_eq!(judge(&queued, true, 200, 7), Finding::Adopt);
        assert_eq!(judge(&queued, true, 200, 6), Finding::Fine, "ordered after the rebuilding");
        assert_eq!(judge(&queued, false, 200, 7), Finding::Fine);
        let claimed = Item { ownership: Ownership::Claimed, ..queued };
        assert_eq!(judge(&claimed, true, 200, 7), Finding::Fine);
    }
}
