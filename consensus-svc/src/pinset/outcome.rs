//! What a command came to, and its stored form.

use std::sync::Arc;

use pinfold_proto::storage::{self, item_outcome::Result as Stored, stored_outcome::Outcome as StoredKind};
use pinfold_proto::types;

/// Why nothing was changed, and the coordinator has to decide again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// The entry is not the one that was read.
    Moved,
    /// A new allocation is away, draining, removed or unknown.
    Peer,
}

/// Why a command about peers was not carried out. Final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotAMember,
    NodeRemoved,
    LastPeer,
    AlreadyFounded,
    /// The removal was called off.
    NotRemoving,
}

/// What one item of a command came to.
#[derive(Clone, Debug, PartialEq)]
pub enum ItemOutcome {
    /// The entry is there with this revision.
    Written(u64),
    /// The entry as it was.
    Removed(Arc<types::Pin>),
    /// Nothing was there to remove.
    Absent,
    Stale(Stale),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// In the order of the command's items. `Replace`: the old entry's, then the new one's.
    Items(Vec<ItemOutcome>),
    /// The peer's row as the command left it.
    Peer(Box<types::Peer>),
    Done,
    Refused(Refusal),
}

impl Stale {
    fn stored(self) -> storage::Stale {
        match self {
            Stale::Moved => storage::Stale::Moved,
            Stale::Peer => storage::Stale::Peer,
        }
    }
}

impl Refusal {
    fn stored(self) -> storage::Refusal {
        match self {
            Refusal::NotAMember => storage::Refusal::NotAMember,
            Refusal::NodeRemoved => storage::Refusal::NodeRemoved,
            Refusal::LastPeer => storage::Refusal::LastPeer,
            Refusal::AlreadyFounded => storage::Refusal::AlreadyFounded,
            Refusal::NotRemoving => storage::Refusal::NotRemoving,
        }
    }

    fn from_stored(refusal: storage::Refusal) -> Option<Refusal> {
        match refusal {
            storage::Refusal::NotAMember => Some(Refusal::NotAMember),
            storage::Refusal::NodeRemoved => Some(Refusal::NodeRemoved),
            storage::Refusal::LastPeer => Some(Refusal::LastPeer),
            storage::Refusal::AlreadyFounded => Some(Refusal::AlreadyFounded),
            storage::Refusal::NotRemoving => Some(Refusal::NotRemoving),
            storage::Refusal::Unspecified => None,
        }
    }
}

impl ItemOutcome {
    pub(super) fn to_stored(&self, cid: &[u8]) -> storage::ItemOutcome {
        let result = match self {
            ItemOutcome::Written(revision) => Stored::Written(*revision),
            ItemOutcome::Removed(pin) => Stored::Removed(pin.as_ref().clone()),
            ItemOutcome::Absent => Stored::Absent(true),
            ItemOutcome::Stale(stale) => Stored::Stale(stale.stored() as i32),
        };
        storage::ItemOutcome { cid: cid.to_vec(), result: Some(result) }
    }

    pub(super) fn from_stored(item: &storage::ItemOutcome) -> Option<ItemOutcome> {
        match item.result.as_ref()? {
            Stored::Written(revision) => Some(ItemOutcome::Written(*revision)),
            Stored::Removed(pin) => Some(ItemOutcome::Removed(Arc::new(pin.clone()))),
            Stored::Absent(_) => Some(ItemOutcome::Absent),
            Stored::Stale(stale) => match storage::Stale::try_from(*stale).ok()? {
                storage::Stale::Moved => Some(ItemOutcome::Stale(Stale::Moved)),
                storage::Stale::Peer => Some(ItemOutcome::Stale(Stale::Peer)),
                storage::Stale::Unspecified => None,
            },
        }
    }
}

impl Outcome {
    /// The whole outcome as a message; items are without their CIDs.
    pub fn to_stored(&self, at_seconds: i64) -> storage::StoredOutcome {
        let outcome = match self {
            Outcome::Items(items) => StoredKind::Items(storage::ItemOutcomes {
                items: items.iter().map(|item| item.to_stored(&[])).collect(),
            }),
            Outcome::Peer(peer) => StoredKind::Peer(peer.as_ref().clone()),
            Outcome::Done => StoredKind::Done(true),
            Outcome::Refused(refusal) => StoredKind::Refused(refusal.stored() as i32),
        };
        storage::StoredOutcome { at_seconds, outcome: Some(outcome) }
    }

    /// `None`: written by a version that knows more.
    pub fn from_stored(stored: &storage::StoredOutcome) -> Option<Outcome> {
        match stored.outcome.as_ref()? {
            StoredKind::Items(items) => {
                items.items.iter().map(ItemOutcome::from_stored).collect::<Option<_>>().map(Outcome::Items)
            }
            StoredKind::Peer(peer) => Some(Outcome::Peer(Box::new(peer.clone()))),
            StoredKind::Done(_) => Some(Outcome::Done),
            StoredKind::Refused(refusal) => {
                storage::Refusal::try_from(*refusal).ok().and_then(Refusal::from_stored).map(Outcome::Refused)
            }
        }
    }
}
