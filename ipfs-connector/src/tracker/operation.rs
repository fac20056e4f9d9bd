//! One item of the tracker and how it changes: what an order from the pinset does to it, what the end of an attempt
//! does, what a person's *recover* does. PURE: time and jitter come in as numbers, nothing is read or written here.
//!
//! Two things are kept apart that the original mixes: `status` is what people see, `todo` is the work that is still
//! owed to the IPFS node. An item is owed work exactly as long as `todo` says so, and the work is planned exactly as
//! long as `next_try_ms` is set: a final error and a held unpin are owed and not planned.

use pinfold_common::pin::PinMode;
use pinfold_common::status::TrackerStatus;
use pinfold_proto::types::{self, Reason};

/// Longest back-off after a failure that is the node's and not the item's: a full disk, an answer that did not come.
/// One item that works again says that all may.
pub const MAX_NODE_BACKOFF_MS: i64 = 10 * 60_000;
/// After an attempt that ended because the node was not there. The breaker does the real waiting.
pub const NODE_DOWN_RETRY_MS: i64 = 1_000;
/// When an item that found the queue full is tried.
pub const QUEUE_FULL_RETRY_MS: i64 = 10_000;
/// The node's own words are kept up to this length.
pub const MAX_ERROR_BYTES: usize = 1024;

/// What the pinset says about an item, for this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Not in the pinset. Such a row lives only until its unpin is done.
    Gone,
    /// Allocated to this peer, or to everybody.
    Here,
    /// This peer keeps its copy until the new holders have theirs (protocols.md 7).
    Leaving,
    /// Allocated to others.
    Remote,
    /// A meta pin, never pinned as such (beh:B7.3).
    Meta,
}

/// The work that is owed to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    Nothing,
    Pin,
    Unpin,
}

/// Whose pin on the node it is (protocols.md 8). Only `Claimed` ones are ever unpinned by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// We never asked the node to pin it, nor found it pinned.
    Unknown,
    /// Written before the `pin/add`: whatever the node has under this CID is ours.
    Claimed,
    /// The node had it before us.
    Foreign,
    /// The node had it when a lost `tracker/` was rebuilt: perhaps ours, so kept until a person approves.
    Adopted,
}

/// Why an owed unpin is not planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    Free,
    /// A comparison with the pinset is under way; its end decides.
    Comparing,
    /// The mass-unpin guard tripped.
    Guarded,
    /// The pin is `Adopted`.
    Adopted,
}

/// How far the last attempt at a pin came, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    pub blocks: u64,
    /// 0 where the node does not say.
    pub bytes: u64,
    /// Unix time; `None`: no block came.
    pub last_block_ms: Option<i64>,
}

/// A row of the tracker.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The store's key; 0 while the item was never stored.
    pub id: i64,
    pub cid: Vec<u8>,
    /// Log index of the order that this item follows.
    pub revision: u64,
    pub class: Class,
    pub status: TrackerStatus,
    pub todo: Todo,
    pub ownership: Ownership,
    pub hold: Hold,
    pub mode: PinMode,
    /// Pins only: before the others (beh:B11.6).
    pub priority: bool,
    /// Unix time; `None`: not planned.
    pub next_try_ms: Option<i64>,
    pub attempts: u32,
    pub reason: Reason,
    pub error: String,
    pub fetched: Fetched,
    /// When the operation changed last, Unix time.
    pub changed_ms: i64,
    /// The pinset's entry, a `types::Pin` as bytes.
    pub pin: Vec<u8>,
}

/// The pinset's entry as far as the tracker decides by it.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub cid: Vec<u8>,
    pub revision: u64,
    pub class: Class,
    pub mode: PinMode,
    /// Unix time of the pin, which decides about priority.
    pub created_s: i64,
    pub pin: Vec<u8>,
}

impl Order {
    /// What `pin` asks of the peer with the ID `own`.
    pub fn of(pin: &types::Pin, own: &[u8]) -> Order {
        let everywhere = pin
            .options
            .as_ref()
            .is_some_and(|options| options.replication_factor_min == -1 && options.replication_factor_max == -1);
        let names = |list: &[Vec<u8>]| list.iter().any(|peer| peer == own);
        let class = if pin.r#type == types::PinType::Meta as i32 {
            Class::Meta
        } else if everywhere || names(&pin.allocations) {
            Class::Here
        } else if names(&pin.leaving) {
            Class::Leaving
        } else {
            Class::Remote
        };
        Order {
            cid: pin.cid.clone(),
            revision: pin.revision,
            class,
            mode: PinMode::of_depth(pin.max_depth),
            created_s: pin.timestamp.as_ref().map_or(0, |time| time.seconds),
            pin: prost::Message::encode_to_vec(pin),
        }
    }
}

/// What the decisions below need to know of the configuration and the moment.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub now_ms: i64,
    pub priority_max_age_ms: i64,
    pub priority_max_retries: u32,
    /// After the first failure; doubled by each further one,
    pub first_backoff_ms: i64,
    /// up to this.
    pub last_backoff_ms: i64,
    /// After so many failed attempts a pin waits for a person; 0: it is tried for ever.
    pub max_attempts: u32,
    /// False: as many pins are queued as may be (beh:B11.7).
    pub queue_has_room: bool,
    /// From the last comparison: unpins that it orders wait for its end.
    pub comparing: bool,
}

impl Rules {
    fn is_priority(&self, created_s: i64, attempts: u32) -> bool {
        attempts <= self.priority_max_retries && self.now_ms - created_s.saturating_mul(1000) < self.priority_max_age_ms
    }

    /// Exponential, capped; `jitter` from 0 to 1 moves it by a quarter to either side.
    fn backoff_ms(&self, attempts: u32, reason: Reason, jitter: f64) -> i64 {
        let longest = if is_of_node(reason) { MAX_NODE_BACKOFF_MS } else { i64::MAX };
        let doubled = self.first_backoff_ms.saturating_mul(1_i64 << attempts.saturating_sub(1).min(30));
        let capped = doubled.min(self.last_backoff_ms).min(longest).max(self.first_backoff_ms.min(longest));
        (capped as f64 * (0.75 + 0.5 * jitter.clamp(0.0, 1.0))) as i64
    }
}

/// Follows an entry of the pinset. `None`: nothing changes.
pub fn put(existing: Option<&Item>, order: Order, rules: &Rules) -> Option<Item> {
    if existing
        .is_some_and(|item| item.class == order.class && item.revision == order.revision && item.pin == order.pin)
    {
        return None;
    }
    let mut item = existing.cloned().unwrap_or_else(|| fresh(order.cid));
    let created_s = order.created_s;
    let same_mode = item.mode == order.mode;
    let class_before = item.class;
    item.revision = order.revision;
    item.class = order.class;
    item.mode = order.mode;
    item.pin = order.pin;
    match order.class {
        Class::Here => {
            let settled = item.todo == Todo::Nothing && item.status == TrackerStatus::Pinned && same_mode;
            if !settled {
                want_pin(&mut item, created_s, rules);
            }
        }
        Class::Leaving => keep(&mut item, class_before, created_s, rules),
        Class::Remote => drop_pin(&mut item, TrackerStatus::Remote, rules),
        Class::Meta => drop_pin(&mut item, TrackerStatus::Sharded, rules),
        Class::Gone => drop_pin(&mut item, TrackerStatus::UnpinQueued, rules),
    }
    Some(item)
}

/// The pinset's entry is gone, by the log entry at `index`. The item says afterwards whether its row still has a
/// purpose: see `is_over`.
pub fn removed(existing: &Item, index: u64, rules: &Rules) -> Item {
    let mut item = existing.clone();
    item.revision = index;
    item.class = Class::Gone;
    drop_pin(&mut item, TrackerStatus::UnpinQueued, rules);
    item
}

/// Whether the row can be deleted: nothing is in the pinset, and nothing is owed to the node.
pub fn is_over(item: &Item) -> bool {
    item.class == Class::Gone && item.todo == Todo::Nothing
}

fn fresh(cid: Vec<u8>) -> Item {
    Item {
        id: 0,
        cid,
        revision: 0,
        class: Class::Remote,
        status: TrackerStatus::Remote,
        todo: Todo::Nothing,
        ownership: Ownership::Unknown,
        hold: Hold::Free,
        mode: PinMode::Recursive,
        priority: false,
        next_try_ms: None,
        attempts: 0,
        reason: Reason::None,
        error: String::new(),
        fetched: Fetched::default(),
        changed_ms: 0,
        pin: Vec::new(),
    }
}

/// Whether the trouble is the node's, whatever the item.
fn is_of_node(reason: Reason) -> bool {
    match reason {
        Reason::NodeDown | Reason::NodeTimeout | Reason::DiskFull => true,
        Reason::None | Reason::NoProviders | Reason::Stalled | Reason::QueueFull | Reason::Refused => false,
    }
}

/// Given up, until a person asks for it again.
pub fn is_final(item: &Item) -> bool {
    item.todo == Todo::Pin && item.next_try_ms.is_none()
}

/// Orders a pin now. The attempts of an earlier pin operation carry over (beh:B11.2), unless it was given up: then it
/// is begun anew.
fn want_pin(item: &mut Item, created_s: i64, rules: &Rules) {
    if item.todo != Todo::Pin || is_final(item) {
        item.attempts = 0;
    }
    item.todo = Todo::Pin;
    item.hold = Hold::Free;
    item.priority = rules.is_priority(created_s, item.attempts);
    item.changed_ms = rules.now_ms;
    if rules.queue_has_room || item.status == TrackerStatus::PinQueued {
        item.status = TrackerStatus::PinQueued;
        item.reason = Reason::None;
        item.error.clear();
        item.next_try_ms = Some(rules.now_ms);
    } else {
        item.status = TrackerStatus::PinError;
        item.reason = Reason::QueueFull;
        item.error = "the pin queue is full: raise pin_tracker.stateless.max_pin_queue_size".to_owned();
        item.next_try_ms = Some(rules.now_ms + QUEUE_FULL_RETRY_MS);
    }
}

/// A copy that others still need: kept when it is there, never fetched for this alone.
fn keep(item: &mut Item, class_before: Class, created_s: i64, rules: &Rules) {
    match item.todo {
        Todo::Nothing if item.status == TrackerStatus::Pinned => {}
        // It was about to go and may be there still. Only the node knows; pinning again finds out.
        Todo::Unpin => want_pin(item, created_s, rules),
        Todo::Nothing | Todo::Pin => {
            let was_fetching = class_before == Class::Here && item.todo == Todo::Pin;
            settle(item, TrackerStatus::Remote);
            if was_fetching {
                item.changed_ms = rules.now_ms;
            }
        }
    }
}

/// The item has no business on this node: what is ours is unpinned, what is not stays.
fn drop_pin(item: &mut Item, settled: TrackerStatus, rules: &Rules) {
    match item.ownership {
        Ownership::Unknown | Ownership::Foreign => {
            item.ownership = Ownership::Unknown;
            settle(item, settled);
        }
        Ownership::Adopted => {
            want_unpin(item, settled, rules);
            item.hold = Hold::Adopted;
            item.next_try_ms = None;
            item.error =
                "held: the node had this pin before tracker/ was rebuilt; unpinning it needs approval".to_owned();
        }
        Ownership::Claimed => {
            let held_before = item.todo == Todo::Unpin && item.hold != Hold::Free;
            let hold = item.hold;
            want_unpin(item, settled, rules);
            if held_before && hold == Hold::Guarded {
                item.hold = Hold::Guarded;
                item.next_try_ms = None;
            } else if rules.comparing {
                item.hold = Hold::Comparing;
                item.next_try_ms = None;
            }
        }
    }
}

fn want_unpin(item: &mut Item, settled: TrackerStatus, rules: &Rules) {
    if item.todo != Todo::Unpin {
        item.attempts = 0;
    }
    item.todo = Todo::Unpin;
    item.status = settled;
    item.hold = Hold::Free;
    item.priority = false;
    item.reason = Reason::None;
    item.error.clear();
    item.next_try_ms = Some(rules.now_ms);
    item.changed_ms = rules.now_ms;
}

fn settle(item: &mut Item, status: TrackerStatus) {
    item.todo = Todo::Nothing;
    item.status = status;
    item.hold = Hold::Free;
    item.priority = false;
    item.next_try_ms = None;
    item.attempts = 0;
    item.reason = Reason::None;
    item.error.clear();
}

/// How an attempt at what an item owes ended, or one step of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Before the `pin/add`: whose it is from here on.
    Claim(Ownership),
    /// The node has the pin, as claimed.
    Pinned,
    /// The node had the pin before us.
    Found(Ownership),
    /// The node has no such pin any more.
    Unpinned,
    /// The node was not there: not this item's fault, no attempt counted.
    NodeDown(String),
    Failed {
        reason: Reason,
        error: String,
    },
    /// Asking again is of no use: waits for a person.
    Refused(String),
    /// A check found that the node lost the pin. Nobody failed; it is fetched again.
    Lost,
}

/// The item after `outcome`. `jitter` is from 0 to 1.
pub fn after(before: &Item, outcome: Outcome, rules: &Rules, jitter: f64) -> Item {
    let mut item = before.clone();
    match outcome {
        Outcome::Claim(ownership) => {
            item.ownership = ownership;
            return item;
        }
        Outcome::Pinned => settle(&mut item, TrackerStatus::Pinned),
        Outcome::Found(ownership) => {
            item.ownership = ownership;
            settle(&mut item, TrackerStatus::Pinned);
        }
        Outcome::Unpinned => {
            item.ownership = Ownership::Unknown;
            item.fetched = Fetched::default();
            let settled = item.status;
            let settled = if item.class == Class::Gone { TrackerStatus::Unpinned } else { settled };
            settle(&mut item, settled);
        }
        Outcome::NodeDown(error) => {
            item.reason = Reason::NodeDown;
            item.error = shorten(error);
            item.next_try_ms = Some(rules.now_ms + NODE_DOWN_RETRY_MS);
            if item.todo == Todo::Pin {
                item.status = TrackerStatus::PinQueued;
            }
        }
        Outcome::Failed { reason, error } => {
            fail(&mut item, reason, error);
            if is_last_attempt(&item, rules) {
                item.next_try_ms = None;
                item.error = shorten(format!("given up after {} attempts: {}", item.attempts, item.error));
            } else {
                item.next_try_ms = Some(rules.now_ms + rules.backoff_ms(item.attempts, reason, jitter));
            }
            item.priority = item.priority && rules.is_priority(created_s(&item), item.attempts);
        }
        Outcome::Refused(error) => {
            fail(&mut item, Reason::Refused, error);
            item.next_try_ms = None;
        }
        Outcome::Lost => {
            item.status = TrackerStatus::UnexpectedlyUnpinned;
            item.todo = Todo::Pin;
            item.ownership = match item.ownership {
                // Ours it stays: the node may only have answered too early.
                Ownership::Claimed => Ownership::Claimed,
                Ownership::Unknown | Ownership::Foreign | Ownership::Adopted => Ownership::Unknown,
            };
            item.attempts = 0;
            item.error = "the IPFS node lost this pin; it is pinned again".to_owned();
            item.next_try_ms = Some(rules.now_ms);
        }
    }
    item.changed_ms = rules.now_ms;
    item
}

/// Unpins are tried for ever, and so is what fails because of the node.
fn is_last_attempt(item: &Item, rules: &Rules) -> bool {
    item.todo == Todo::Pin && rules.max_attempts != 0 && item.attempts >= rules.max_attempts && !is_of_node(item.reason)
}

/// Unix time of the pin; our own bytes, and one that cannot be read is old.
fn created_s(item: &Item) -> i64 {
    let pin: Option<types::Pin> = prost::Message::decode(item.pin.as_slice()).ok();
    pin.and_then(|pin| pin.timestamp).map_or(0, |time| time.seconds)
}

fn fail(item: &mut Item, reason: Reason, error: String) {
    item.attempts = item.attempts.saturating_add(1);
    item.reason = reason;
    item.error = shorten(error);
    match (item.todo, item.class) {
        (Todo::Pin, _) => item.status = TrackerStatus::PinError,
        (Todo::Unpin, Class::Gone) => item.status = TrackerStatus::UnpinError,
        // Allocated to others is what people see, whatever the phase (beh:B11.3); the error tells the rest.
        (Todo::Unpin, Class::Here | Class::Leaving | Class::Remote | Class::Meta) | (Todo::Nothing, _) => {}
    }
}

fn shorten(mut error: String) -> String {
    if error.len() > MAX_ERROR_BYTES {
        let end = (0..=MAX_ERROR_BYTES).rev().find(|end| error.is_char_boundary(*end)).unwrap_or(0);
        error.truncate(end);
    }
    error
}

/// A person says that a held unpin may go ahead. `None`: it is not held, or held only until a comparison ends.
pub fn approve(item: &Item, rules: &Rules) -> Option<Item> {
    match item.hold {
        Hold::Free | Hold::Comparing => None,
        Hold::Guarded | Hold::Adopted => Some(Item {
            hold: Hold::Free,
            ownership: Ownership::Claimed,
            next_try_ms: Some(rules.now_ms),
            error: String::new(),
            changed_ms: rules.now_ms,
            ..item.clone()
        }),
    }
}

/// Queues again what is in error (beh:B11.11). `None`: there is nothing to recover. A held unpin stays held.
pub fn recover(item: &Item, rules: &Rules) -> Option<Item> {
    let in_error = match item.status {
        TrackerStatus::PinError | TrackerStatus::UnexpectedlyUnpinned | TrackerStatus::UnpinError => true,
        TrackerStatus::Remote | TrackerStatus::Sharded => item.todo == Todo::Unpin && !item.error.is_empty(),
        TrackerStatus::Undefined
        | TrackerStatus::ClusterError
        | TrackerStatus::Pinned
        | TrackerStatus::Pinning
        | TrackerStatus::Unpinning
        | TrackerStatus::Unpinned
        | TrackerStatus::PinQueued
        | TrackerStatus::UnpinQueued => false,
    };
    if !in_error || item.hold != Hold::Free {
        return None;
    }
    let mut again = item.clone();
    if is_final(item) {
        again.attempts = 0;
    }
    match item.todo {
        Todo::Pin => again.status = TrackerStatus::PinQueued,
        Todo::Unpin if item.class == Class::Gone => again.status = TrackerStatus::UnpinQueued,
        Todo::Unpin => {}
        Todo::Nothing => return None,
    }
    again.next_try_ms = Some(rules.now_ms);
    again.reason = Reason::None;
    again.error.clear();
    again.changed_ms = rules.now_ms;
    Some(again)
}

#[cfg(test)]
mod tests;
