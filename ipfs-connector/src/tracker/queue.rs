//! The way of work from the table to the IPFS node. For pins and unpins alike, a *feeder* reads what is due in batches
//! and makes it ready (for pins: finds out whose the pin is and writes the claim, one write for the whole batch), and
//! a *dispatcher* gives what is ready to slots. What the node said is written back by the attempt itself.
//!
//! The table is the queue; the few hundred items on the board are only its head. Nothing here remembers anything that
//! a restart would need.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use pinfold_common::Cid;
use pinfold_common::pin::PinMode;
use pinfold_common::shutdown::Shutdown;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::absences::{self, Absences};
use super::aside::Aside;
use super::attempt;
use super::board::{Board, Line, Shelf};
use super::health::Health;
use super::operation::{self, Item, Outcome, Ownership};
use super::slots::Slots;
use crate::informer::Trigger;
use crate::node::{IpfsNode, NodeError, PinState};
use crate::store::{Lane, Settlement, Store, Touched, now_ms};

/// Unpins at a time. One would do; a few hide the latency of the node.
const UNPIN_SLOTS: usize = 4;
/// Rows read from the table at once.
const BATCH: usize = 256;
/// Look-ups of whose pin it is, at a time.
const LOOK_UPS: usize = 16;
pub(super) const LOOK_UP_DEADLINE: Duration = Duration::from_secs(30);
/// For the question whether a node that answered nonsense is well otherwise.
const WELL_DEADLINE: Duration = Duration::from_secs(5);
/// Claims that go into one write, and writes of claims that wait at a time.
const CLAIMS: usize = 128;
const CLAIM_WRITES: usize = 16;
/// Ready items below which the next batch is read; for pins at least twice the slots.
const LOW_WATER: usize = 64;
/// Items in hand at most; more would only hide how long the queue is.
const MAX_IN_HAND: usize = 2048;
/// However quiet it is, the table is read from the start of the queue so often: a woken feeder reads on from where it
/// was, which misses what was planned for an earlier time than that.
const RESCAN: Duration = Duration::from_secs(1);
/// The same while a lane is longer than what was read of it: what is at its start is in hand then, all but a few.
const LONG_RESCAN: Duration = Duration::from_secs(5);
/// Of the pins that were queued last: how many are ready at a time, how many rows are read to find them (what is in
/// hand is among them; more are read only where too few are left), and how long is between two looks.
const NEWEST: usize = 16;
const NEWEST_READ: [usize; 2] = [64, 512];
const NEWEST_PAUSE: Duration = Duration::from_millis(200);
/// After a failed read or write of the table.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// A running attempt gets so long to end after a stop was asked for.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// What attempts and feeders share.
pub(super) struct Shared {
    pub store: Store,
    pub node: Arc<dyn IpfsNode>,
    pub health: Health,
    pub board: Board,
    pub trigger: Trigger,
    pub aside: Aside,
    pub absences: Absences,
    /// For pins that move.
    pub slots: Slots,
    pub unpin_disable: bool,
    pub shutdown: Shutdown,
    /// Rows may be due: one for each line.
    wake: [Notify; 2],
    /// An item became ready, or a slot of the ready list became free.
    ready: [Notify; 2],
    consumed: [Notify; 2],
    caught_up: watch::Receiver<bool>,
    low_water: usize,
}

/// The queue's handle. Clones share it.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

/// What the queue is made of.
pub struct Parts {
    pub store: Store,
    pub node: Arc<dyn IpfsNode>,
    pub health: Health,
    pub trigger: Trigger,
    pub concurrent_pins: usize,
    /// Refuse every unpin (spec/config.md 8).
    pub unpin_disable: bool,
    /// Whether nothing committed is missing: unpins wait for it (protocols.md 8).
    pub caught_up: watch::Receiver<bool>,
    pub shutdown: Shutdown,
}

impl Shared {
    /// Rows of this line may be due.
    pub fn wake(&self, line: Line) {
        self.wake[index(line)].notify_one();
    }
}

const fn index(line: Line) -> usize {
    match line {
        Line::Pins => 0,
        Line::Unpins => 1,
    }
}

const fn lanes(line: Line) -> &'static [Lane] {
    match line {
        Line::Pins => &[Lane::New, Lane::Again, Lane::Repin, Lane::Retry],
        Line::Unpins => &[Lane::Unpins],
    }
}

impl Queue {
    pub fn new(parts: Parts) -> Queue {
        Queue(Arc::new(Shared {
            store: parts.store,
            node: parts.node,
            health: parts.health,
            board: Board::default(),
            trigger: parts.trigger,
            aside: Aside::default(),
            absences: Absences::default(),
            slots: Slots::adaptive(parts.concurrent_pins),
            unpin_disable: parts.unpin_disable,
            shutdown: parts.shutdown,
            wake: Default::default(),
            ready: Default::default(),
            consumed: Default::default(),
            caught_up: parts.caught_up,
            low_water: LOW_WATER.max(2 * parts.concurrent_pins),
        }))
    }

    pub fn board(&self) -> &Board {
        &self.0.board
    }

    /// Pins that may run at a time now.
    pub fn slots(&self) -> usize {
        self.0.slots.limit()
    }

    /// Attempts in the waiting pool.
    pub fn aside(&self) -> usize {
        self.0.aside.len()
    }

    /// Rows changed, or there are new ones.
    pub fn changed(&self, touched: &[Touched]) {
        self.0.board.changed(touched);
        self.wake();
    }

    pub fn wake(&self) {
        self.0.wake(Line::Pins);
        self.0.wake(Line::Unpins);
    }

    /// Works until `shutdown`. Attempts that run then are broken off; their rows stay as they are.
    pub async fn run(self) {
        let attempts = TaskTracker::new();
        let shared = &self.0;
        let unpin_slots = Slots::fixed(UNPIN_SLOTS);
        let work = async {
            tokio::join!(
                feed(shared, Line::Pins),
                feed(shared, Line::Unpins),
                dispatch(shared, Line::Pins, shared.slots.clone(), &attempts),
                dispatch(shared, Line::Unpins, unpin_slots, &attempts),
                watch_latency(shared),
                absences::keep(shared),
            )
        };
        shared.shutdown.race(work).await;
        attempts.close();
        if tokio::time::timeout(STOP_DEADLINE, attempts.wait()).await.is_err() {
            tracing::warn!("attempts at the IPFS node did not end in time; their items stay queued");
        }
    }
}

/// Waits until work of this line may begin. A full disk is no reason to wait for unpins: they are what helps.
async fn permitted(shared: &Shared, line: Line) {
    match line {
        Line::Pins => shared.health.up_and_willing().await,
        Line::Unpins => {
            // The sender lives as long as the connector.
            let _ = shared.caught_up.clone().wait_for(|caught_up| *caught_up).await;
            shared.health.up().await;
        }
    }
}

/// A quiet queue learns about the node from the health probe.
async fn watch_latency(shared: &Shared) {
    let mut probes = shared.health.probes();
    // The sender lives in the shared health.
    while probes.changed().await.is_ok() {
        let took = *probes.borrow_and_update();
        shared.slots.observe(took);
    }
}

/// Keeps the ready lists of a line filled.
async fn feed(shared: &Shared, line: Line) {
    let now = Instant::now();
    let mut feeder = Feeder { line, places: [START; LANES], exhausted: [false; LANES], rescan_at: now, newest_at: now };
    loop {
        permitted(shared, line).await;
        match feeder.fill(shared).await {
            Ok(()) => feeder.rest(shared).await,
            Err(error) => {
                tracing::warn!(%error, "read the queue; trying again");
                tokio::time::sleep(STORE_PAUSE).await;
            }
        }
    }
}

/// Of one line, at most.
const LANES: usize = 4;
/// Before every row of a lane: (next try, row).
const START: (i64, i64) = (i64::MIN, 0);

struct Feeder {
    line: Line,
    /// How far each lane was read.
    places: [(i64, i64); LANES],
    /// Nothing more was due at the last look.
    exhausted: [bool; LANES],
    rescan_at: Instant,
    newest_at: Instant,
}

impl Feeder {
    /// One batch for each lane that runs low.
    async fn fill(&mut self, shared: &Shared) -> crate::error::Result<()> {
        let now = Instant::now();
        let is_rescan = now >= self.rescan_at;
        if is_rescan {
            self.places = [START; LANES];
            self.exhausted = [false; LANES];
        }
        for (slot, lane) in lanes(self.line).iter().enumerate() {
            if self.exhausted[slot]
                || shared.board.ready(Shelf::of(*lane)) >= shared.low_water
                || shared.board.leases() >= MAX_IN_HAND
            {
                continue;
            }
            shared.board.begin_reading(self.line);
            let items = shared.store.due(*lane, now_ms(), self.places[slot], BATCH).await?;
            self.exhausted[slot] = items.len() < BATCH;
            if let Some(last) = items.last() {
                self.places[slot] = (last.next_try_ms.unwrap_or(i64::MIN), last.id);
            }
            let taken = shared.board.take(self.line, items);
            self.make_ready(shared, Shelf::of(*lane), taken).await?;
        }
        if is_rescan {
            let is_through = self.exhausted[..lanes(self.line).len()].iter().all(|exhausted| *exhausted);
            self.rescan_at = now + if is_through { RESCAN } else { LONG_RESCAN };
        }
        if self.line == Line::Pins {
            self.fill_newest(shared).await?;
        }
        Ok(())
    }

    /// Some of what was queued last, while the lane of new pins is longer than its ready list.
    async fn fill_newest(&mut self, shared: &Shared) -> crate::error::Result<()> {
        let now = Instant::now();
        if self.exhausted[0] || now < self.newest_at || shared.board.ready(Shelf::Newest) >= NEWEST {
            return Ok(());
        }
        self.newest_at = now + NEWEST_PAUSE;
        shared.board.begin_reading(Line::Pins);
        let mut items = Vec::new();
        for read in NEWEST_READ {
            items = shared.store.newest_due(Lane::New, now_ms(), read).await?;
            let is_all = items.len() < read;
            items.retain(|item| !shared.board.is_in_hand(&item.cid));
            if is_all || items.len() >= NEWEST {
                break;
            }
        }
        items.truncate(NEWEST);
        // The shelf is emptied from its end.
        items.reverse();
        let taken = shared.board.take(Line::Pins, items);
        self.make_ready(shared, Shelf::Newest, taken).await
    }

    async fn make_ready(&self, shared: &Shared, shelf: Shelf, taken: Vec<Item>) -> crate::error::Result<()> {
        match self.line {
            Line::Pins => prepare(shared, shelf, taken).await?,
            Line::Unpins => {
                for item in taken {
                    shared.board.make_ready(shelf, item);
                }
            }
        }
        shared.ready[index(self.line)].notify_one();
        Ok(())
    }

    /// Waits until there may be something to do: rows changed, a plan is due, or the ready list runs low.
    async fn rest(&mut self, shared: &Shared) {
        let hungry = lanes(self.line)
            .iter()
            .enumerate()
            .any(|(slot, lane)| !self.exhausted[slot] && shared.board.ready(Shelf::of(*lane)) < shared.low_water);
        if hungry && shared.board.leases() < MAX_IN_HAND {
            return;
        }
        tokio::select! {
            () = shared.wake[index(self.line)].notified() => self.exhausted = [false; LANES],
            () = shared.consumed[index(self.line)].notified() => {}
            () = tokio::time::sleep_until(self.rescan_at) => {}
        }
    }
}

/// Whose is it? Asked for what was never claimed; then the claims are written, and the items are ready.
async fn prepare(shared: &Shared, shelf: Shelf, items: Vec<Item>) -> crate::error::Result<()> {
    let (claimed, unclaimed): (Vec<Item>, Vec<Item>) =
        items.into_iter().partition(|item| item.ownership == Ownership::Claimed);
    for item in claimed {
        shared.board.make_ready(shelf, item);
    }
    if !unclaimed.is_empty() {
        shared.absences.expect(shared);
    }
    let rebuilt_index = shared.store.rebuilt_index();
    // Look-ups go on while claims are written: the writer lets several wait for each other.
    futures::stream::iter(unclaimed)
        .map(|item| async move {
            let outcome = look_up(shared, &item, rebuilt_index).await;
            (item, outcome)
        })
        .buffer_unordered(LOOK_UPS)
        .ready_chunks(CLAIMS)
        .map(|chunk| claim(shared, shelf, chunk))
        .buffer_unordered(CLAIM_WRITES)
        // All of them come to their end, whatever becomes of one.
        .fold(Ok(()), |before, written| std::future::ready(before.and(written)))
        .await
}

/// One write for what was looked up together.
async fn claim(shared: &Shared, shelf: Shelf, found: Vec<(Item, Option<Outcome>)>) -> crate::error::Result<()> {
    let rules = shared.store.rules();
    let (mut claims, mut settlements) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
    for (item, outcome) in found {
        let Some(outcome) = outcome else {
            // The node is away: the row stays as it is, and the health probe says when to go on.
            shared.board.finish(&item.cid);
            continue;
        };
        let is_claim = matches!(outcome, Outcome::Claim(_));
        let after = operation::after(&item, outcome, &rules, rand::random());
        let settle = if is_claim { Settlement::claim } else { Settlement::of };
        settlements.push(settle(&item, after.clone()));
        claims.push((after, is_claim));
    }
    let written = shared.store.settle(settlements).await;
    let done = written.as_deref().unwrap_or_default();
    for (place, (item, is_claim)) in claims.into_iter().enumerate() {
        if is_claim && done.get(place) == Some(&true) {
            shared.board.make_ready(shelf, item);
        } else {
            shared.board.finish(&item.cid);
        }
    }
    shared.ready[index(Line::Pins)].notify_one();
    written.map(drop)
}

/// `None`: the node is away.
async fn look_up(shared: &Shared, item: &Item, rebuilt_index: u64) -> Option<Outcome> {
    let cid = match pinfold_common::ids::cid_from_bytes(&item.cid) {
        Ok(cid) => cid,
        Err(error) => return Some(Outcome::Refused(error.to_string())),
    };
    let returns = *shared.health.returns().borrow();
    let state = if shared.absences.is_absent(&item.cid, returns) {
        Ok(PinState::NotPinned)
    } else {
        ask_whose(shared, &cid).await
    };
    let theirs = match item.ownership {
        Ownership::Foreign | Ownership::Adopted => item.ownership,
        Ownership::Unknown | Ownership::Claimed if item.revision <= rebuilt_index => Ownership::Adopted,
        Ownership::Unknown | Ownership::Claimed => Ownership::Foreign,
    };
    Some(match (state, item.mode) {
        (Ok(PinState::NotPinned), _) => Outcome::Claim(Ownership::Claimed),
        (Ok(PinState::Recursive), _) | (Ok(PinState::Direct), PinMode::Direct) => Outcome::Found(theirs),
        // Somebody pinned its root alone. We pin the rest, and it stays theirs.
        (Ok(PinState::Direct), PinMode::Recursive) => Outcome::Claim(theirs),
        (Err(error), _) => match failure(shared, error).await {
            Outcome::NodeDown(_) => return None,
            outcome => outcome,
        },
    })
}

async fn ask_whose(shared: &Shared, cid: &Cid) -> Result<PinState, NodeError> {
    let asked_at = Instant::now();
    let asked = tokio::time::timeout(LOOK_UP_DEADLINE, shared.node.pin_state(cid)).await;
    let state = asked.unwrap_or_else(|_| {
        Err(NodeError::Timeout(format!("ask whether it is pinned: no answer within {LOOK_UP_DEADLINE:?}")))
    });
    match &state {
        Ok(_) => shared.slots.observe(asked_at.elapsed()),
        Err(NodeError::Timeout(_)) => shared.slots.too_slow(),
        Err(_) => {}
    }
    state
}

/// Gives what is ready to slots.
async fn dispatch(shared: &Arc<Shared>, line: Line, slots: Slots, attempts: &TaskTracker) {
    loop {
        permitted(shared, line).await;
        if !shared.board.is_any_ready(line) {
            shared.consumed[index(line)].notify_one();
            shared.ready[index(line)].notified().await;
            continue;
        }
        let slot = slots.take().await;
        if let Some((item, cancel)) = shared.board.start(line) {
            shared.consumed[index(line)].notify_one();
            attempts.spawn(attempt::run(shared.clone(), line, item, cancel, slot));
        }
    }
}

/// What a failed call means for its item. An error that is neither about the node nor about the item is the item's only
/// if the node is well otherwise: one that answers nonsense to everybody is down.
pub(super) async fn failure(shared: &Shared, error: NodeError) -> Outcome {
    shared.health.doubt(&error);
    match error {
        NodeError::Down(text) => Outcome::NodeDown(text),
        NodeError::Refused(text) => Outcome::Refused(text),
        NodeError::Other(text) if !is_well(shared).await => {
            shared.health.suspect();
            Outcome::NodeDown(text)
        }
        NodeError::Timeout(_)
        | NodeError::Stalled(_)
        | NodeError::NoProviders(_)
        | NodeError::DiskFull(_)
        | NodeError::NotFound(_)
        | NodeError::Other(_) => Outcome::Failed { reason: error.reason(), error: error.to_string() },
    }
}

async fn is_well(shared: &Shared) -> bool {
    matches!(tokio::time::timeout(WELL_DEADLINE, shared.node.id()).await, Ok(Ok(_)))
}
