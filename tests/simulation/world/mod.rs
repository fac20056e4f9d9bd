//! One history: some peers with their monitors and IPFS nodes, one log, one leader at a time. A second is a step.
//!
//! Raft itself is not simulated (openraft's own suite and the end-to-end tests do that): what a leader with a majority
//! proposes is applied at once, everywhere, and a leader without one proposes nothing. What is random: who is killed,
//! frozen or starved of gossip, whose IPFS node is down or full, who leads, how long a copy takes, whether a witness or
//! a connector answers, whether a command arrives late or twice, and what people ask for meanwhile.

mod balance;
mod checks;
mod cluster;
mod failures;
mod leader;
mod people;
mod totals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consensus_svc::pinset::{self, View};
use consensus_svc::repin::plan::Standings;
use consensus_svc::repin::plan::gate::Hold;
use consensus_svc::repin::plan::judge::Judge;
use monitor_svc::allocator::Ledger;
use monitor_svc::liveness::Liveness;
use pinfold_common::time::Timestamp;
use pinfold_common::{Cid, PeerId};
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{storage, types};

use crate::observers;
use crate::random::Random;
pub use totals::Totals;

const ITEMS: u64 = 8;
/// After healing, everything has to be as it should be within this time.
const CONVERGES_WITHIN: u64 = 90;
/// The wall clock at second 0.
const EPOCH: i64 = 1_790_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    Quiet,
    Loud,
}

/// Times are in seconds.
#[derive(Clone, Copy)]
pub struct Setup {
    pub peers: u64,
    pub items: u64,
    pub grace: u64,
    pub ping_ttl: u64,
    /// For how long an IPFS node may be down.
    pub down_after: u64,
    /// People ask for nothing.
    pub is_quiet: bool,
}

impl Setup {
    /// Of Raft contacts, as the service derives it from the interval of pings.
    fn contact_fresh(&self) -> u64 {
        self.ping_ttl.min(10)
    }
}

struct Peer {
    id: PeerId,
    bytes: Vec<u8>,
    node: u64,
    is_removed: bool,
    is_up: bool,
    down_since: u64,
    /// Its processes stand still until then; others can't tell it from being dead.
    frozen_until: u64,
    /// Its pings reach nobody until then; Raft still does.
    gossip_lost_until: u64,
    /// Its IPFS node does not answer.
    ipfs_is_down: bool,
    ipfs_was_ever_down: bool,
    /// Its disk takes nothing more, as it says itself.
    is_full: bool,
    liveness: Liveness,
    /// Whose pings say that their IPFS nodes are down: since when, and the last of them.
    heard_ipfs_down: BTreeMap<u64, (u64, u64)>,
    /// What its IPFS node has, and what it fetches until when.
    copies: BTreeSet<Vec<u8>>,
    fetching: BTreeMap<Vec<u8>, u64>,
    /// The index that it has followed the log to, with nothing left to fetch.
    followed: u64,
}

/// What a leader keeps in memory, and loses with its term.
struct Leader {
    peer: usize,
    term: u64,
    judge: Judge,
    hold: Hold,
    /// When it last heard each node over Raft.
    contacts: BTreeMap<u64, u64>,
}

/// A command that an earlier leader sent and that arrives late or once more.
struct Late {
    command: storage::Command,
    /// It was carried out before, so that now it must do nothing.
    is_known: bool,
}

pub struct World {
    random: Random,
    voice: Voice,
    setup: Setup,
    start: Instant,
    now: u64,
    index: u64,
    term: u64,
    view: View,
    /// The entries of the view, by CID.
    pins: Arc<Vec<Arc<types::Pin>>>,
    peers: Vec<Peer>,
    leader: Option<Leader>,
    ledger: Ledger,
    late: Option<Late>,
    is_healing: bool,
    numbers: u64,
    /// What people asked for last, by CID: what may differ from it are allocations and revisions.
    wishes: BTreeMap<Vec<u8>, types::Pin>,
    /// Content that whoever pinned it still offers, until it is where it should be.
    offered: BTreeSet<Vec<u8>>,
    /// As the re-pinner saw the members last.
    standings: Standings,
    /// How many entries lost a holder, or were written without enough: an upper bound of moves.
    losses: u64,
    pub totals: Totals,
}

pub fn run(seed: u64, voice: Voice) -> Totals {
    let mut random = Random::new(seed);
    let setup =
        Setup { peers: 3 + 2 * random.below(3), items: ITEMS, grace: 4, ping_ttl: 3, down_after: 6, is_quiet: false };
    let mut world = World::new(random, voice, setup);
    let chaos = 30 + world.random.below(40);
    for _ in 0..chaos {
        world.fail_something();
        world.step();
    }
    world.heal();
    let until = world.now + CONVERGES_WITHIN;
    while let Some(missing) = world.missing() {
        assert!(world.now < until, "{CONVERGES_WITHIN} s after healing: {missing}");
        world.step();
    }
    world.totals
}

impl World {
    pub fn new(random: Random, voice: Voice, setup: Setup) -> World {
        let start = Instant::now();
        let ids: Vec<PeerId> = (1..=setup.peers).map(observers::peer_id).collect();
        let peer = |(node, id): (u64, &PeerId)| {
            let mut liveness = Liveness::new(*id, Duration::from_secs(setup.ping_ttl), start);
            liveness.set_members(ids.iter().copied(), start);
            Peer {
                id: *id,
                bytes: id.to_bytes(),
                node,
                is_removed: false,
                is_up: true,
                down_since: 0,
                frozen_until: 0,
                gossip_lost_until: 0,
                ipfs_is_down: false,
                ipfs_was_ever_down: false,
                is_full: false,
                liveness,
                heard_ipfs_down: BTreeMap::new(),
                copies: BTreeSet::new(),
                fetching: BTreeMap::new(),
                followed: 0,
            }
        };
        let mut world = World {
            random,
            voice,
            setup,
            start,
            now: 0,
            index: 0,
            term: 0,
            view: View::default(),
            pins: Arc::default(),
            peers: (1..).zip(&ids).map(peer).collect(),
            leader: None,
            ledger: Ledger::new(start),
            late: None,
            is_healing: false,
            numbers: 0,
            wishes: BTreeMap::new(),
            offered: BTreeSet::new(),
            standings: Standings::default(),
            losses: 0,
            totals: Totals::default(),
        };
        world.commit(observers::found(&ids));
        for _ in 0..setup.items {
            world.put();
        }
        world.totals = Totals::default();
        world
    }

    /// A second.
    pub fn step(&mut self) {
        self.now += 1;
        self.gossip();
        self.follow();
        self.elect();
        let Some(mut leader) = self.leader.take() else { return };
        if self.is_working(leader.peer) && self.has_majority() {
            self.lead(&mut leader);
        }
        self.leader = self.is_member(leader.peer).then_some(leader);
    }

    /// Who leads and is able to.
    pub fn leader(&self) -> Option<usize> {
        self.leader.as_ref().map(|leader| leader.peer).filter(|peer| self.is_working(*peer))
    }

    pub fn count_held_by(&self, peer: usize) -> u64 {
        self.pins.iter().filter(|pin| pin.allocations.contains(&self.peers[peer].bytes)).count() as u64
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_secs(self.now)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_seconds(EPOCH + self.now as i64)
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.voice == Voice::Loud {
            println!("{:>4} {}", self.now, what());
        }
    }

    fn next_cid(&mut self) -> Cid {
        self.numbers += 1;
        let hash = multihash::Multihash::wrap(0, &self.numbers.to_be_bytes()).expect("eight bytes");
        Cid::new_v1(0x55, hash)
    }

    fn row(&self, cid: &[u8]) -> Option<Arc<types::Pin>> {
        self.view.pins.get(cid).cloned().flatten()
    }

    fn state(&self, peer: usize) -> types::peer::State {
        self.view.peers.node(self.peers[peer].node).expect("a founder").state()
    }

    fn is_member(&self, peer: usize) -> bool {
        !self.peers[peer].is_removed
    }

    fn index_of(&self, bytes: &[u8]) -> usize {
        self.peers.iter().position(|peer| peer.bytes == bytes).expect("a founder")
    }

    fn is_working(&self, peer: usize) -> bool {
        self.is_member(peer) && self.peers[peer].is_up && self.peers[peer].frozen_until <= self.now
    }

    fn working(&self) -> usize {
        (0..self.peers.len()).filter(|peer| self.is_working(*peer)).count()
    }

    fn has_majority(&self) -> bool {
        self.working() * 2 > self.view.peers.members().count()
    }

    // --- the log

    fn command(&self, kind: Kind) -> storage::Command {
        storage::Command { at: Some(self.wall().into()), request_key: Vec::new(), command: Some(kind) }
    }

    fn commit(&mut self, kind: Kind) -> pinset::Outcome {
        self.apply(&self.command(kind))
    }

    /// Now and then the leader dies before it is sent, or its answer is lost and it is sent once more.
    fn send(&mut self, command: storage::Command) -> Option<pinset::Outcome> {
        let odds = if self.late.is_some() { 2 } else { 0 };
        match odds + self.random.below(12 - odds) {
            0 => {
                self.late = Some(Late { command, is_known: false });
                None
            }
            1 => {
                let outcome = self.apply(&command);
                let is_known = checks::is_final(&outcome);
                self.late = Some(Late { command, is_known });
                Some(outcome)
            }
            _ => Some(self.apply(&command)),
        }
    }

    fn apply(&mut self, command: &storage::Command) -> pinset::Outcome {
        self.index += 1;
        for cid in pinset::cids_of(command) {
            self.view.pins.entry(cid.to_vec()).or_insert(None);
        }
        for key in pinset::keys_of(command) {
            self.view.keys.entry(key.to_vec()).or_insert(None);
        }
        let outcome = pinset::apply(&mut self.view, self.index, command).expect("a command that this version knows");
        let dirty = self.view.take_dirty();
        if !dirty.pins.is_empty() {
            let mut pins: Vec<_> = self.view.pins.values().flatten().cloned().collect();
            pins.sort_by(|left, right| left.cid.cmp(&right.cid));
            self.pins = Arc::new(pins);
        }
        self.learn_wishes(command, &outcome);
        self.check_entries(&dirty.pins);
        outcome
    }

    /// A command that was decided before: what moved meanwhile is stale, and the rest is as right as it was.
    fn apply_late(&mut self, late: &Late) {
        let before = self.pins.clone();
        self.tell(|| "a late command arrives".to_owned());
        let outcome = self.apply(&late.command);
        self.check_late(late, &before, &outcome);
    }
}
