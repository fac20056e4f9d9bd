//! What a committed command does to the pinset and the peerset: `apply(view, index, command) -> outcome`.
//!
//! PURE: the same entries in the same order give the same state on every peer, so nothing here looks at a clock, a
//! random number, a map's iteration order or a disk. The state machine loads the rows a command names (`cids_of`,
//! `keys_of`) into a [`View`], applies entry after entry, and writes what [`Dirty`] lists in one transaction.
//! Decisions were made before, by the leader's coordinator; here they are only checked against what was read for them.

mod keys;
mod outcome;
mod peers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{storage, types};

pub use keys::{KEY_LIFE_SECONDS, KeyRange};
pub use outcome::{ItemOutcome, Outcome, Refusal, Stale};
pub use peers::{JOINER_BIT, PeerTable};

/// A command that this version cannot carry out. Skipping it would make this peer differ from the others for ever,
/// so the process halts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    #[error("apply entry {index}: the command is of a kind this version does not know; upgrade this peer")]
    UnknownCommand { index: u64 },
    #[error("apply entry {index}: malformed command: {what}")]
    Malformed { index: u64, what: &'static str },
    /// The state machine did not load what `cids_of` or `keys_of` named: a defect of ours.
    #[error("apply entry {index}: a row the command names was not loaded")]
    NotLoaded { index: u64 },
}

/// One committed change of the pinset, for followers.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Put { index: u64, pin: Arc<types::Pin> },
    Removed { index: u64, cid: Vec<u8> },
}

impl Change {
    pub fn index(&self) -> u64 {
        match self {
            Change::Put { index, .. } | Change::Removed { index, .. } => *index,
        }
    }
}

/// What apply has changed since the last [`View::take_dirty`]. Sorted, so that rows are written in one order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dirty {
    /// CIDs whose row in `View::pins` is new or different: `Some` is to be written, `None` to be deleted.
    pub pins: BTreeSet<Vec<u8>>,
    /// Node IDs of changed rows in `View::peers`. Rows are never deleted: removed ones stay as tombstones.
    pub peers: BTreeSet<u64>,
    /// Keys of changed settings; one that is no longer in `View::settings` is to be deleted.
    pub settings: BTreeSet<String>,
    /// To be deleted BEFORE `keys` are written: every request key outside any of these ranges.
    pub prune_keys: Vec<KeyRange>,
    /// Request keys whose row in `View::keys` is new or different; `None` is to be deleted.
    pub keys: BTreeSet<Vec<u8>>,
    /// `cluster_id`, `lineage`, `pin_count`, `pruned_minute`, or the peerset's index changed.
    pub meta: bool,
    /// In log order.
    pub changes: Vec<Change>,
}

/// The state as far as the entries at hand need it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Loaded rows by CID; `None`: loaded, and not in the pinset.
    pub pins: HashMap<Vec<u8>, Option<Arc<types::Pin>>>,
    /// All rows, with the tombstones: in memory for good.
    pub peers: PeerTable,
    /// All of them.
    pub settings: BTreeMap<String, String>,
    /// Loaded rows by request key; `None`: loaded, and not known.
    pub keys: HashMap<Vec<u8>, Option<storage::StoredOutcome>>,
    /// Empty until `Found` is applied.
    pub cluster_id: Vec<u8>,
    /// 0 until `Found` is applied.
    pub lineage: u64,
    /// Entries in the pinset.
    pub pin_count: u64,
    /// The minute of log time in which keys were last pruned.
    pub pruned_minute: i64,
    pub dirty: Dirty,
}

impl View {
    /// What is to be written now; afterwards nothing is dirty.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Drops the loaded pins and keys, so that the view does not grow. Nothing may be dirty.
    pub fn forget_rows(&mut self) {
        debug_assert!(self.dirty.pins.is_empty() && self.dirty.keys.is_empty());
        self.pins.clear();
        self.keys.clear();
    }

    /// The peerset as the last applied entry left it.
    pub fn peerset(&self) -> types::PeerSet {
        self.peers.to_set(&self.cluster_id, self.lineage)
    }

    fn put(&mut self, index: u64, mut pin: types::Pin) {
        normalise(&mut pin, index);
        let pin = Arc::new(pin);
        let before = self.pins.insert(pin.cid.clone(), Some(pin.clone()));
        if !matches!(before, Some(Some(_))) {
            self.pin_count += 1;
            self.dirty.meta = true;
        }
        self.dirty.pins.insert(pin.cid.clone());
        self.dirty.changes.push(Change::Put { index, pin });
    }

    fn remove(&mut self, index: u64, cid: &[u8]) -> Option<Arc<types::Pin>> {
        let before = self.pins.insert(cid.to_vec(), None).flatten()?;
        self.pin_count = self.pin_count.saturating_sub(1);
        self.dirty.meta = true;
        self.dirty.pins.insert(cid.to_vec());
        self.dirty.changes.push(Change::Removed { index, cid: cid.to_vec() });
        Some(before)
    }
}

/// Every CID whose row must be loaded before `command` is applied; one that it names twice is there twice.
pub fn cids_of(command: &storage::Command) -> Vec<&[u8]> {
    match &command.command {
        Some(Kind::PutMany(many)) => many.puts.iter().filter_map(put_cid).collect(),
        Some(Kind::Unpin(unpin)) => vec![&unpin.cid],
        Some(Kind::UnpinMany(many)) => many.unpins.iter().map(|unpin| unpin.cid.as_slice()).collect(),
        Some(Kind::Replace(replace)) => {
            replace.new.iter().filter_map(put_cid).chain(std::iter::once(replace.old.as_slice())).collect()
        }
        Some(Kind::Reallocate(many)) => many.moves.iter().map(|step| step.cid.as_slice()).collect(),
        Some(Kind::Settle(settle)) => vec![&settle.cid],
        Some(Kind::SettleMany(many)) => many.settles.iter().map(|settle| settle.cid.as_slice()).collect(),
        Some(Kind::Expire(expire)) => vec![&expire.cid],
        Some(
            Kind::PeerJoin(_)
            | Kind::PeerAway(_)
            | Kind::PeerBack(_)
            | Kind::Drain(_)
            | Kind::Remove(_)
            | Kind::Setting(_)
            | Kind::Found(_),
        )
        | None => Vec::new(),
    }
}

fn put_cid(put: &storage::Put) -> Option<&[u8]> {
    put.pin.as_ref().map(|pin| pin.cid.as_slice())
}

/// Every request key whose row must be loaded before `command` is applied, each once.
pub fn keys_of(command: &storage::Command) -> BTreeSet<&[u8]> {
    let mut keys: BTreeSet<&[u8]> = match &command.command {
        Some(Kind::PutMany(many)) => many.puts.iter().filter_map(|put| given(&put.request_key)).collect(),
        Some(Kind::Unpin(unpin)) => given(&unpin.request_key).into_iter().collect(),
        Some(Kind::UnpinMany(many)) => many.unpins.iter().filter_map(|unpin| given(&unpin.request_key)).collect(),
        Some(Kind::Replace(replace)) => replace.new.iter().filter_map(|put| given(&put.request_key)).collect(),
        Some(
            Kind::Reallocate(_)
            | Kind::Settle(_)
            | Kind::SettleMany(_)
            | Kind::Expire(_)
            | Kind::PeerJoin(_)
            | Kind::PeerAway(_)
            | Kind::PeerBack(_)
            | Kind::Drain(_)
            | Kind::Remove(_)
            | Kind::Setting(_)
            | Kind::Found(_),
        )
        | None => BTreeSet::new(),
    };
    keys.extend(given(&command.request_key));
    keys
}

fn given(key: &[u8]) -> Option<&[u8]> {
    Some(key).filter(|key| !key.is_empty())
}

/// Carries out one committed command. Its rows must be loaded.
pub fn apply(view: &mut View, index: u64, command: &storage::Command) -> Result<Outcome, Halt> {
    let kind = command.command.as_ref().ok_or(Halt::UnknownCommand { index })?;
    if cids_of(command).into_iter().any(|cid| !view.pins.contains_key(cid))
        || keys_of(command).into_iter().any(|key| !view.keys.contains_key(key))
    {
        return Err(Halt::NotLoaded { index });
    }
    let at_seconds = command.at.map(|at| at.seconds).unwrap_or_default();
    keys::prune(view, at_seconds);
    let entry = Entry { index, at_seconds, key: &command.request_key };
    match kind {
        Kind::PutMany(many) => each(view, &entry, &many.puts, |put| (cid_of_put(put), &put.request_key), put),
        Kind::Unpin(unpin) => {
            each(view, &entry, std::slice::from_ref(unpin), |unpin| (&unpin.cid, &unpin.request_key), remove)
        }
        Kind::UnpinMany(many) => each(view, &entry, &many.unpins, |unpin| (&unpin.cid, &unpin.request_key), remove),
        Kind::Replace(replace) => replaced(view, &entry, replace),
        Kind::Reallocate(many) => each(view, &entry, &many.moves, |step| (&step.cid, entry.key), reallocate),
        Kind::Settle(step) => each(view, &entry, std::slice::from_ref(step), |step| (&step.cid, entry.key), settle),
        Kind::SettleMany(many) => each(view, &entry, &many.settles, |step| (&step.cid, entry.key), settle),
        Kind::Expire(step) => each(view, &entry, std::slice::from_ref(step), |step| (&step.cid, entry.key), expire),
        Kind::PeerJoin(join) => once(view, &entry, |view| peers::join(view, index, join)),
        Kind::PeerAway(away) => once(view, &entry, |view| Ok(peers::away(view, index, away))),
        Kind::PeerBack(back) => once(view, &entry, |view| Ok(peers::back(view, index, back))),
        Kind::Drain(drain) => once(view, &entry, |view| Ok(peers::drain(view, index, drain))),
        Kind::Remove(remove) => once(view, &entry, |view| Ok(peers::remove(view, index, remove))),
        Kind::Found(found) => once(view, &entry, |view| Ok(peers::found(view, index, found))),
        Kind::Setting(setting) => once(view, &entry, |view| Ok(set(view, setting))),
    }
}

/// The voters of the membership that entry `index` made: the rows say who votes.
pub fn apply_membership(view: &mut View, index: u64, voters: &BTreeSet<u64>) {
    peers::set_voters(view, index, voters);
}

/// The entry around a command.
struct Entry<'a> {
    index: u64,
    at_seconds: i64,
    /// For items that have no key of their own.
    key: &'a Vec<u8>,
}

/// Item after item, each under its key.
fn each<'a, T>(
    view: &mut View,
    entry: &Entry<'a>,
    items: &'a [T],
    name: impl Fn(&'a T) -> (&'a Vec<u8>, &'a Vec<u8>),
    step: impl Fn(&mut View, &Entry<'a>, &'a T) -> Result<ItemOutcome, Halt>,
) -> Result<Outcome, Halt> {
    let mut outcomes = Vec::with_capacity(items.len());
    // A key that this command is the first to use has nothing to be asked for, item by item.
    let mut first_used: HashSet<&[u8]> = HashSet::new();
    for item in items {
        let (cid, own_key) = name(item);
        let key = if own_key.is_empty() { entry.key } else { own_key };
        if !key.is_empty() && !first_used.contains(key.as_slice()) {
            if !keys::is_known(view, key, entry.at_seconds) {
                first_used.insert(key);
            } else if let Some(first) = keys::item(view, key, cid, entry.at_seconds) {
                outcomes.push(first);
                continue;
            }
        }
        let outcome = step(view, entry, item)?;
        keys::keep_item(view, key, cid, entry.at_seconds, &outcome);
        outcomes.push(outcome);
    }
    Ok(Outcome::Items(outcomes))
}

/// A command without items, under the entry's key.
fn once(
    view: &mut View,
    entry: &Entry,
    step: impl FnOnce(&mut View) -> Result<Outcome, Halt>,
) -> Result<Outcome, Halt> {
    if let Some(first) = keys::whole(view, entry.key, entry.at_seconds) {
        return Ok(first);
    }
    let outcome = step(view)?;
    keys::keep_whole(view, entry.key, entry.at_seconds, &outcome);
    Ok(outcome)
}

fn cid_of_put(put: &storage::Put) -> &Vec<u8> {
    static NONE: Vec<u8> = Vec::new();
    put.pin.as_ref().map_or(&NONE, |pin| &pin.cid)
}

/// The loaded row.
fn row(view: &View, cid: &[u8]) -> Option<Arc<types::Pin>> {
    view.pins.get(cid).cloned().flatten()
}

fn put(view: &mut View, entry: &Entry, put: &storage::Put) -> Result<ItemOutcome, Halt> {
    let pin = checked_pin(put, entry.index)?;
    let existing = row(view, &pin.cid);
    if existing.as_ref().map_or(0, |pin| pin.revision) != put.expected_revision {
        return Ok(ItemOutcome::Stale(Stale::Moved));
    }
    if !new_holders_can_take(view, existing.as_deref(), &pin.allocations) {
        return Ok(ItemOutcome::Stale(Stale::Peer));
    }
    view.put(entry.index, pin.clone());
    Ok(ItemOutcome::Written(entry.index))
}

fn checked_pin(put: &storage::Put, index: u64) -> Result<&types::Pin, Halt> {
    let pin = put.pin.as_ref().ok_or(Halt::Malformed { index, what: "a put without a pin" })?;
    if pin.cid.is_empty() {
        return Err(Halt::Malformed { index, what: "a put without a CID" });
    }
    Ok(pin)
}

/// Only peers that are not holders yet are checked: an entry may keep naming a holder that is away, or nobody could
/// rename it; the re-pinner finds such entries by their allocations.
fn new_holders_can_take(view: &View, existing: Option<&types::Pin>, allocations: &[Vec<u8>]) -> bool {
    allocations
        .iter()
        .filter(|peer| !existing.is_some_and(|pin| pin.allocations.contains(peer)))
        .all(|peer| view.peers.can_take(peer))
}

fn remove(view: &mut View, entry: &Entry, unpin: &storage::Unpin) -> Result<ItemOutcome, Halt> {
    let Some(existing) = row(view, &unpin.cid) else { return Ok(ItemOutcome::Absent) };
    if unpin.expected_revision != 0 && existing.revision != unpin.expected_revision {
        return Ok(ItemOutcome::Stale(Stale::Moved));
    }
    view.remove(entry.index, &unpin.cid);
    Ok(ItemOutcome::Removed(existing))
}

/// Both or neither; the outcomes are the old entry's and the new one's.
fn replaced(view: &mut View, entry: &Entry, replace: &storage::Replace) -> Result<Outcome, Halt> {
    let index = entry.index;
    let new = replace.new.as_ref().ok_or(Halt::Malformed { index, what: "a replace without a new pin" })?;
    let pin = checked_pin(new, index)?;
    if pin.cid == replace.old {
        return Err(Halt::Malformed { index, what: "a replace of an entry by itself" });
    }
    let key = if new.request_key.is_empty() { entry.key } else { &new.request_key };
    let at = entry.at_seconds;
    if let (Some(old), Some(written)) = (keys::item(view, key, &replace.old, at), keys::item(view, key, &pin.cid, at)) {
        return Ok(Outcome::Items(vec![old, written]));
    }
    let old = storage::Unpin {
        cid: replace.old.clone(),
        expected_revision: replace.expected_revision,
        request_key: Vec::new(),
    };
    if row(view, &replace.old).is_none_or(|existing| existing.revision != replace.expected_revision) {
        let stale = ItemOutcome::Stale(Stale::Moved);
        return Ok(Outcome::Items(vec![stale.clone(), stale]));
    }
    let written = put(view, entry, new)?;
    if let ItemOutcome::Stale(stale) = written {
        return Ok(Outcome::Items(vec![ItemOutcome::Stale(stale), ItemOutcome::Stale(stale)]));
    }
    let removed = remove(view, entry, &old)?;
    keys::keep_item(view, key, &replace.old, at, &removed);
    keys::keep_item(view, key, &pin.cid, at, &written);
    Ok(Outcome::Items(vec![removed, written]))
}

fn reallocate(view: &mut View, entry: &Entry, step: &storage::Move) -> Result<ItemOutcome, Halt> {
    let Some(existing) = row(view, &step.cid).filter(|pin| pin.revision == step.expected_revision) else {
        return Ok(ItemOutcome::Stale(Stale::Moved));
    };
    if !new_holders_can_take(view, Some(&existing), &step.allocations) {
        return Ok(ItemOutcome::Stale(Stale::Peer));
    }
    let mut pin = existing.as_ref().clone();
    pin.allocations = step.allocations.clone();
    pin.leaving = step.leaving.clone();
    view.put(entry.index, pin);
    Ok(ItemOutcome::Written(entry.index))
}

fn settle(view: &mut View, entry: &Entry, step: &storage::Settle) -> Result<ItemOutcome, Halt> {
    let Some(existing) = row(view, &step.cid).filter(|pin| pin.revision == step.expected_revision) else {
        return Ok(ItemOutcome::Stale(Stale::Moved));
    };
    let mut pin = existing.as_ref().clone();
    pin.leaving.retain(|peer| !step.drop.contains(peer));
    view.put(entry.index, pin);
    Ok(ItemOutcome::Written(entry.index))
}

/// Removes an entry that is past its time by the command's own clock.
fn expire(view: &mut View, entry: &Entry, step: &storage::Expire) -> Result<ItemOutcome, Halt> {
    let Some(existing) = row(view, &step.cid) else { return Ok(ItemOutcome::Absent) };
    let expire_at = existing.options.as_ref().map_or(0, |options| options.expire_at_seconds);
    if existing.revision != step.expected_revision || expire_at == 0 || expire_at > entry.at_seconds {
        return Ok(ItemOutcome::Stale(Stale::Moved));
    }
    view.remove(entry.index, &step.cid);
    Ok(ItemOutcome::Removed(existing))
}

fn set(view: &mut View, setting: &storage::Setting) -> Outcome {
    let changed = if setting.value.is_empty() {
        view.settings.remove(&setting.key).is_some()
    } else {
        view.settings.insert(setting.key.clone(), setting.value.clone()).as_ref() != Some(&setting.value)
    };
    if changed {
        view.dirty.settings.insert(setting.key.clone());
    }
    Outcome::Done
}

/// The one form in which a pin is kept, whoever proposed it: whole seconds, metadata sorted, no peer twice, nobody both
/// holding and leaving (beh:B7.1).
fn normalise(pin: &mut types::Pin, index: u64) {
    pin.revision = index;
    pin.timestamp = Some(types::Time { seconds: pin.timestamp.map_or(0, |at| at.seconds), nanos: 0 });
    let options = pin.options.get_or_insert_default();
    options.metadata.sort_by(|left, right| left.key.cmp(&right.key));
    options.metadata.dedup_by(|later, kept| later.key == kept.key);
    let mut seen = BTreeSet::new();
    pin.allocations.retain(|peer| seen.insert(peer.clone()));
    pin.leaving.retain(|peer| seen.insert(peer.clone()));
}
