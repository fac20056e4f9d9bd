//! Request keys: a retry with the same key is answered with the first result (protocols.md 3). Kept for ten minutes of
//! log time, which is what the commands' own timestamps say: no clock is read. Leaders' clocks may jump either way, so
//! a key counts while it is within ten minutes on either side of the command at hand, and is pruned outside of that.

use pinfold_proto::storage::{self, stored_outcome::Outcome as StoredKind};

use super::{ItemOutcome, Outcome, View};

pub const KEY_LIFE_SECONDS: i64 = 600;

/// Keys whose `at_seconds` lies within (both ends included) are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub from_seconds: i64,
    pub to_seconds: i64,
}

impl KeyRange {
    fn around(at_seconds: i64) -> KeyRange {
        KeyRange {
            from_seconds: at_seconds.saturating_sub(KEY_LIFE_SECONDS),
            to_seconds: at_seconds.saturating_add(KEY_LIFE_SECONDS),
        }
    }

    pub fn contains(self, at_seconds: i64) -> bool {
        (self.from_seconds..=self.to_seconds).contains(&at_seconds)
    }
}

/// Once per minute of log time, at a place in the log that is the same on every peer.
pub(super) fn prune(view: &mut View, at_seconds: i64) {
    let minute = at_seconds.div_euclid(60);
    if view.pruned_minute == minute {
        return;
    }
    view.pruned_minute = minute;
    view.dirty.meta = true;
    let range = KeyRange::around(at_seconds);
    for stored in view.keys.values_mut() {
        if stored.as_ref().is_some_and(|stored| !range.contains(stored.at_seconds)) {
            *stored = None;
        }
    }
    view.dirty.prune_keys.push(range);
}

fn known<'a>(view: &'a View, key: &[u8], at_seconds: i64) -> Option<&'a storage::StoredOutcome> {
    if key.is_empty() {
        return None;
    }
    let stored = view.keys.get(key)?.as_ref()?;
    KeyRange::around(at_seconds).contains(stored.at_seconds).then_some(stored)
}

/// Whether the key was used before, and still counts.
pub(super) fn is_known(view: &View, key: &[u8], at_seconds: i64) -> bool {
    known(view, key, at_seconds).is_some()
}

/// What the item came to when its key was used first.
pub(super) fn item(view: &View, key: &[u8], cid: &[u8], at_seconds: i64) -> Option<ItemOutcome> {
    match known(view, key, at_seconds)?.outcome.as_ref()? {
        StoredKind::Items(items) => items.items.iter().find(|item| item.cid == cid).and_then(ItemOutcome::from_stored),
        StoredKind::Peer(_) | StoredKind::Done(_) | StoredKind::Refused(_) => None,
    }
}

/// Stale items are not kept: the coordinator decides them again under the same key.
pub(super) fn keep_item(view: &mut View, key: &[u8], cid: &[u8], at_seconds: i64, outcome: &ItemOutcome) {
    if key.is_empty() || matches!(outcome, ItemOutcome::Stale(_)) {
        return;
    }
    let known = known(view, key, at_seconds).is_some();
    let slot = view.keys.entry(key.to_vec()).or_default();
    let item = outcome.to_stored(cid);
    match slot {
        Some(storage::StoredOutcome { outcome: Some(StoredKind::Items(items)), at_seconds: at }) if known => {
            *at = at_seconds;
            items.items.push(item);
        }
        Some(_) | None => {
            let items = storage::ItemOutcomes { items: vec![item] };
            *slot = Some(storage::StoredOutcome { at_seconds, outcome: Some(StoredKind::Items(items)) });
        }
    }
    view.dirty.keys.insert(key.to_vec());
}

pub(super) fn whole(view: &View, key: &[u8], at_seconds: i64) -> Option<Outcome> {
    known(view, key, at_seconds).and_then(Outcome::from_stored)
}

pub(super) fn keep_whole(view: &mut View, key: &[u8], at_seconds: i64, outcome: &Outcome) {
    if key.is_empty() {
        return;
    }
    view.keys.insert(key.to_vec(), Some(outcome.to_stored(at_seconds)));
    view.dirty.keys.insert(key.to_vec());
}
