//! What is in hand right now, in memory only: at most one piece of work for each CID (beh:B11.1), from the moment it is
//! taken out of the table until its end is written back. A restart forgets the board and finds everything in the
//! table again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use pinfold_common::status::TrackerStatus;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::operation::{Fetched, Item, Todo};
use crate::node::PinProgress;
use crate::store::{Lane, Touched, now_ms};

/// CIDs of which a cancelled call may still have an effect. When there are more, the oldest doubt is forgotten.
const MAX_DOUBTFUL: usize = 4096;

/// Where what is ready waits for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    New,
    /// Of the lane `New` too, taken from its other end: whoever pins now does not wait behind ten thousand CIDs that
    /// nobody has.
    Newest,
    Again,
    Repin,
    Retry,
    Unpins,
}

impl Shelf {
    const COUNT: usize = 6;

    pub const fn of(lane: Lane) -> Shelf {
        match lane {
            Lane::New => Shelf::New,
            Lane::Again => Shelf::Again,
            Lane::Repin => Shelf::Repin,
            Lane::Retry => Shelf::Retry,
            Lane::Unpins => Shelf::Unpins,
        }
    }

    const fn index(self) -> usize {
        match self {
            Shelf::New => 0,
            Shelf::Newest => 1,
            Shelf::Repin => 2,
            Shelf::Retry => 3,
            Shelf::Unpins => 4,
            Shelf::Again => 5,
        }
    }
}

/// Whose turn it is: young pins 70, of which 20 were tried before, re-pins 20, retries 10 of a hundred slots (fault:F19).
/// A shelf that is empty lets the others go first.
const TURNS: [Shelf; 10] = [
    Shelf::New,
    Shelf::Newest,
    Shelf::Repin,
    Shelf::Again,
    Shelf::New,
    Shelf::Newest,
    Shelf::Retry,
    Shelf::Again,
    Shelf::Repin,
    Shelf::New,
];
const PIN_SHELVES: [Shelf; 5] = [Shelf::New, Shelf::Newest, Shelf::Again, Shelf::Repin, Shelf::Retry];

/// How far a piece of work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The node is asked whose pin it is.
    Preparing,
    /// Waits for a slot.
    Ready,
    /// At the node, or its end is on the way to the table.
    Running,
}

struct Lease {
    item: Item,
    phase: Phase,
    cancel: CancellationToken,
    progress: Progress,
}

/// Of a running attempt, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub started_ms: i64,
    pub fetched: Fetched,
}

/// Work that runs, as a status shows it.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    pub todo: Todo,
    pub progress: Progress,
}

#[derive(Default)]
struct State {
    leases: HashMap<Vec<u8>, Lease>,
    /// CIDs in phase `Ready`; ones whose lease is gone are skipped.
    ready: [VecDeque<Vec<u8>>; Shelf::COUNT],
    /// Place in `TURNS`.
    turn: usize,
    /// Rows that changed while the table was being read: what was read of them may be old.
    changed_while_reading: [Option<HashSet<Vec<u8>>>; 2],
    /// While one is set nothing new is taken in hand.
    halted: [bool; 2],
    doubtful: HashSet<Vec<u8>>,
    doubts: VecDeque<Vec<u8>>,
}

/// Who reads the table for work: pins and unpins are fetched apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Pins,
    Unpins,
}

impl Line {
    const fn index(self) -> usize {
        match self {
            Line::Pins => 0,
            Line::Unpins => 1,
        }
    }

    const fn shelves(self) -> &'static [Shelf] {
        match self {
            Line::Pins => &PIN_SHELVES,
            Line::Unpins => &[Shelf::Unpins],
        }
    }
}

/// Why nothing may be in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// The pinset is of another lineage, and revisions mean nothing until it is compared.
    Lineage,
    /// Another IPFS node is there, and claims mean nothing until they are given up.
    Node,
}

impl Halt {
    const fn index(self) -> usize {
        match self {
            Halt::Lineage => 0,
            Halt::Node => 1,
        }
    }
}

/// Clones share the board.
#[derive(Clone, Default)]
pub struct Board {
    state: Arc<Mutex<State>>,
    idle: Arc<Notify>,
}

impl State {
    fn is_halted(&self) -> bool {
        self.halted.contains(&true)
    }

    fn start(&mut self, shelf: Shelf) -> Option<(Item, CancellationToken)> {
        while let Some(cid) = self.pop(shelf) {
            let Some(lease) = self.leases.get_mut(&cid).filter(|lease| lease.phase == Phase::Ready) else { continue };
            lease.phase = Phase::Running;
            lease.progress.started_ms = now_ms();
            return Some((lease.item.clone(), lease.cancel.clone()));
        }
        None
    }

    fn pop(&mut self, shelf: Shelf) -> Option<Vec<u8>> {
        let ready = &mut self.ready[shelf.index()];
        match shelf {
            Shelf::Newest => ready.pop_back(),
            Shelf::New | Shelf::Again | Shelf::Repin | Shelf::Retry | Shelf::Unpins => ready.pop_front(),
        }
    }
}

impl Board {
    pub fn leases(&self) -> usize {
        self.state.lock().leases.len()
    }

    pub fn ready(&self, shelf: Shelf) -> usize {
        self.state.lock().ready[shelf.index()].len()
    }

    /// Whether something waits for a slot of this line.
    pub fn is_any_ready(&self, line: Line) -> bool {
        let state = self.state.lock();
        line.shelves().iter().any(|shelf| !state.ready[shelf.index()].is_empty())
    }

    /// The table is about to be read for work of this line.
    pub fn begin_reading(&self, line: Line) {
        let mut state = self.state.lock();
        state.changed_while_reading[line.index()] = (!state.is_halted()).then(HashSet::new);
    }

    /// Takes what was read in hand, but for what is in hand already and what changed since. Gives what it took.
    pub fn take(&self, line: Line, items: Vec<Item>) -> Vec<Item> {
        let mut state = self.state.lock();
        // None: a halt came in between, and nobody noted what changed.
        let Some(changed) = state.changed_while_reading[line.index()].take() else { return Vec::new() };
        let fresh: Vec<Item> = items
            .into_iter()
            .filter(|item| !changed.contains(&item.cid) && !state.leases.contains_key(&item.cid))
            .collect();
        for item in &fresh {
            let lease = Lease {
                item: item.clone(),
                phase: Phase::Preparing,
                cancel: CancellationToken::new(),
                progress: Progress::default(),
            };
            state.leases.insert(item.cid.clone(), lease);
        }
        fresh
    }

    /// The item may run as soon as there is a slot; unless it changed meanwhile.
    pub fn make_ready(&self, shelf: Shelf, item: Item) {
        let mut state = self.state.lock();
        let Some(lease) = state.leases.get_mut(&item.cid) else { return };
        if lease.item.revision != item.revision || lease.phase != Phase::Preparing {
            return;
        }
        lease.phase = Phase::Ready;
        let cid = item.cid.clone();
        lease.item = item;
        state.ready[shelf.index()].push_back(cid);
    }

    /// The next item of this line to run: of the shelf whose turn it is, else of the first that has one.
    pub fn start(&self, line: Line) -> Option<(Item, CancellationToken)> {
        let mut state = self.state.lock();
        let turn = match line {
            Line::Pins => Some(TURNS[state.turn % TURNS.len()]),
            Line::Unpins => None,
        };
        let started = turn.iter().chain(line.shelves()).find_map(|shelf| state.start(*shelf));
        if started.is_some() && line == Line::Pins {
            state.turn = (state.turn + 1) % TURNS.len();
        }
        started
    }

    pub fn record(&self, cid: &[u8], progress: PinProgress) {
        if let Some(lease) = self.state.lock().leases.get_mut(cid) {
            let fetched = &mut lease.progress.fetched;
            if progress.blocks > fetched.blocks || progress.bytes > fetched.bytes {
                fetched.last_block_ms = Some(now_ms());
            }
            fetched.blocks = progress.blocks;
            fetched.bytes = progress.bytes;
        }
    }

    /// What the attempt that runs has got so far.
    pub fn fetched(&self, cid: &[u8]) -> Fetched {
        self.state.lock().leases.get(cid).map(|lease| lease.progress.fetched).unwrap_or_default()
    }

    /// Where the row of the work stands by now, its revision and its status: a newer order for the same work does not
    /// start it again (beh:B11.2).
    pub fn standing(&self, cid: &[u8]) -> Option<(u64, TrackerStatus)> {
        self.state.lock().leases.get(cid).map(|lease| (lease.item.revision, lease.item.status))
    }

    /// Out of hand: the end is in the table, or the table has something newer.
    pub fn finish(&self, cid: &[u8]) {
        self.state.lock().leases.remove(cid);
        self.idle.notify_waiters();
    }

    /// The call was broken off: the node may still carry it out.
    pub fn set_doubtful(&self, cid: &[u8]) {
        let mut state = self.state.lock();
        if state.doubtful.insert(cid.to_vec()) {
            state.doubts.push_back(cid.to_vec());
            if state.doubts.len() > MAX_DOUBTFUL
                && let Some(oldest) = state.doubts.pop_front()
            {
                state.doubtful.remove(&oldest);
            }
        }
    }

    /// Whether it was doubtful; it is not any more.
    pub fn resolve_doubt(&self, cid: &[u8]) -> bool {
        let mut state = self.state.lock();
        let was = state.doubtful.remove(cid);
        if was {
            state.doubts.retain(|doubt| doubt != cid);
        }
        was
    }

    /// Rows changed: what is in hand for an older order goes on under the new one when it is the same work, else it is
    /// broken off.
    pub fn changed(&self, touched: &[Touched]) {
        let mut state = self.state.lock();
        for row in touched {
            for reading in state.changed_while_reading.iter_mut().flatten() {
                reading.insert(row.cid.clone());
            }
            let Some(lease) = state.leases.get_mut(&row.cid) else { continue };
            if lease.item.revision == row.revision {
                continue;
            }
            let same_work =
                row.planned && row.todo == lease.item.todo && (row.todo != Todo::Pin || row.mode == lease.item.mode);
            match lease.phase {
                Phase::Running if same_work => {
                    lease.item.revision = row.revision;
                    lease.item.status = row.status;
                }
                Phase::Running => lease.cancel.cancel(),
                Phase::Preparing | Phase::Ready => {
                    state.leases.remove(&row.cid);
                }
            }
        }
    }

    /// Breaks everything off, waits until nothing is in hand, and takes nothing until `resume`.
    pub async fn halt(&self, why: Halt) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            {
                let mut state = self.state.lock();
                state.halted[why.index()] = true;
                state.changed_while_reading = [None, None];
                state.leases.retain(|_, lease| lease.phase == Phase::Running);
                if state.leases.is_empty() {
                    return;
                }
                for lease in state.leases.values() {
                    lease.cancel.cancel();
                }
            }
            idle.await;
        }
    }

    pub fn resume(&self, after: Halt) {
        self.state.lock().halted[after.index()] = false;
    }

    pub fn is_in_hand(&self, cid: &[u8]) -> bool {
        self.state.lock().leases.contains_key(cid)
    }

    /// What runs of these CIDs, in their order.
    pub fn running<'a>(&self, cids: impl Iterator<Item = &'a [u8]>) -> Vec<Option<Running>> {
        let state = self.state.lock();
        cids.map(|cid| {
            state
                .leases
                .get(cid)
                .filter(|lease| lease.phase == Phase::Running)
                .map(|lease| Running { todo: lease.item.todo, progress: lease.progress })
        })
        .collect()
    }

    /// CIDs of everything that runs, sorted.
    pub fn running_cids(&self) -> Vec<Vec<u8>> {
        let state = self.state.lock();
        let running = state.leases.iter().filter(|(_, lease)| lease.phase == Phase::Running);
        let mut cids: Vec<Vec<u8>> = running.map(|(cid, _)| cid.clone()).collect();
        cids.sort_unstable();
        cids
    }

    pub fn count_running(&self, todo: Todo) -> usize {
        let state = self.state.lock();
        state.leases.values().filter(|lease| lease.phase == Phase::Running && lease.item.todo == todo).count()
    }
}

#[cfg(test)]
mod tests;
