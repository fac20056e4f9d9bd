//! One history: some peers with their monitors and IPFS nodes, one log, one leader at a time. A second is a step.
//!
//! Raft itself is not simulated (openraft's own suite and the end-to-end tests do that): what a leader with a majority
//! proposes is applied at once, everywhere, and a leader without one proposes nothing. What is random: who is killed,
//! frozen or starved of gossip, who leads, how long a copy takes, and whether a witness or a connector answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consensus_svc::pinset::{self, View};
use consensus_svc::repin::plan::gate::{self, Gate, Hold};
use consensus_svc::repin::plan::judge::{self, Judge, Judgement, Scene, Testimony, Word};
use consensus_svc::repin::plan::moves::{self, Need};
use consensus_svc::repin::plan::settle::{self, Copy, Step};
use consensus_svc::repin::plan::{Standings, factors};
use monitor_svc::allocator::{self, Factors, Field, Ledger, Measured, Outcome, Row, Standing};
use monitor_svc::liveness::{Liveness, State as Seen};
use pinfold_common::PeerId;
use pinfold_common::peerset::PeerState;
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::types::peer::State;
use pinfold_proto::{storage, types};

use crate::random::Random;

const GRACE: u64 = 4;
const PING_TTL: u64 = 3;
/// Of Raft contacts, as the service derives it from the TTL.
const CONTACT_FRESH: u64 = 3;
const ITEMS: u64 = 8;
/// After healing, everything has to be as it should be within this time.
const CONVERGES_WITHIN: u64 = 90;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    Quiet,
    Loud,
}

/// What happened, so that histories in which nothing does are noticed.
#[derive(Debug, Default)]
pub struct Totals {
    pub aways: u64,
    pub returns: u64,
    pub moves: u64,
    pub settles: u64,
    pub taken_back: u64,
    pub elections: u64,
    pub stops: u64,
}

impl Totals {
    pub fn add(&mut self, other: &Totals) {
        self.aways += other.aways;
        self.returns += other.returns;
        self.moves += other.moves;
        self.settles += other.settles;
        self.taken_back += other.taken_back;
        self.elections += other.elections;
        self.stops += other.stops;
    }
}

struct Peer {
    id: PeerId,
    bytes: Vec<u8>,
    node: u64,
    is_up: bool,
    down_since: u64,
    /// Its processes stand still until then; others can't tell it from being dead.
    frozen_until: u64,
    /// Its pings reach nobody until then; Raft still does.
    gossip_lost_until: u64,
    liveness: Liveness,
    /// What its IPFS node has, and what it fetches until when.
    copies: BTreeSet<Vec<u8>>,
    fetching: BTreeMap<Vec<u8>, u64>,
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

struct World {
    random: Random,
    voice: Voice,
    start: Instant,
    now: u64,
    index: u64,
    term: u64,
    view: View,
    peers: Vec<Peer>,
    leader: Option<Leader>,
    ledger: Ledger,
    totals: Totals,
    /// A command that an earlier leader sent and that arrives late or twice.
    delayed: Option<Kind>,
}

pub fn run(seed: u64, voice: Voice) -> Totals {
    let mut world = World::new(seed, voice);
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
    fn new(seed: u64, voice: Voice) -> World {
        let mut random = Random::new(seed);
        let start = Instant::now();
        let count = 3 + 2 * random.below(3);
        let ids: Vec<PeerId> = (1..=count).map(peer_id).collect();
        let peer = |(node, id): (u64, &PeerId)| {
            let mut liveness = Liveness::new(*id, Duration::from_secs(PING_TTL), start);
            liveness.set_members(ids.iter().copied(), start);
            Peer {
                id: *id,
                bytes: id.to_bytes(),
                node,
                is_up: true,
                down_since: 0,
                frozen_until: 0,
                gossip_lost_until: 0,
                liveness,
                copies: BTreeSet::new(),
                fetching: BTreeMap::new(),
            }
        };
        let peers: Vec<Peer> = (1..).zip(&ids).map(peer).collect();
        let founder = |peer: &Peer| types::Peer {
            peer_id: peer.bytes.clone(),
            node_id: peer.node,
            voter: true,
            ..types::Peer::default()
        };
        let founders = peers.iter().map(founder).collect();
        let mut world = World {
            random,
            voice,
            start,
            now: 0,
            index: 0,
            term: 0,
            view: View::default(),
            peers,
            leader: None,
            ledger: Ledger::new(start),
            totals: Totals::default(),
            delayed: None,
        };
        world.apply(Kind::Found(storage::Found { cluster_id: b"c".to_vec(), founders }));
        for number in 0..ITEMS {
            world.put(number);
        }
        world
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_secs(self.now)
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.voice == Voice::Loud {
            println!("{:>4} {}", self.now, what());
        }
    }

    /// A pin of random factors on random peers, which have it already.
    fn put(&mut self, number: u64) {
        let count = self.peers.len() as u64;
        let min = 1 + self.random.below(3.min(count - 1));
        let max = (min + self.random.below(2)).min(count);
        let first = self.random.below(count);
        let held = min + self.random.below(max - min + 1);
        let holders: Vec<usize> = (0..held).map(|step| ((first + step) % count) as usize).collect();
        let cid = number.to_be_bytes().to_vec();
        for holder in &holders {
            self.peers[*holder].copies.insert(cid.clone());
        }
        let pin = types::Pin {
            cid,
            allocations: holders.iter().map(|holder| self.peers[*holder].bytes.clone()).collect(),
            options: Some(types::PinOptions {
                replication_factor_min: min as i32,
                replication_factor_max: max as i32,
                name: format!("item {number}"),
                ..types::PinOptions::default()
            }),
            ..types::Pin::default()
        };
        let put = storage::Put { pin: Some(pin), expected_revision: 0, request_key: Vec::new() };
        self.apply(Kind::PutMany(storage::PutMany { puts: vec![put] }));
    }

    fn pins(&self) -> Vec<Arc<types::Pin>> {
        let mut pins: Vec<_> = self.view.pins.values().flatten().cloned().collect();
        pins.sort_by(|left, right| left.cid.cmp(&right.cid));
        pins
    }

    // --- what goes wrong

    fn is_working(&self, peer: usize) -> bool {
        self.peers[peer].is_up && self.peers[peer].frozen_until <= self.now
    }

    fn working(&self) -> usize {
        (0..self.peers.len()).filter(|peer| self.is_working(*peer)).count()
    }

    fn fail_something(&mut self) {
        if !self.random.one_in(4) {
            return;
        }
        let peer = self.random.below(self.peers.len() as u64) as usize;
        let now = self.now;
        match self.random.below(10) {
            0..=2 if self.peers[peer].is_up => self.kill(peer),
            3 => {
                // Two at once, the leader among them.
                self.kill(peer);
                if let Some(leader) = self.leader.as_ref().map(|leader| leader.peer) {
                    self.kill(leader);
                }
            }
            4..=5 => self.revive(peer),
            6 if self.is_working(peer) => {
                self.peers[peer].frozen_until = now + 1 + self.random.below(12);
                self.peers[peer].down_since = now;
                self.tell(|| format!("peer {peer} freezes"));
            }
            7 => {
                self.peers[peer].gossip_lost_until = now + 1 + self.random.below(15);
                self.tell(|| format!("gossip of peer {peer} is lost"));
            }
            8 => {
                self.tell(|| "the leader loses its office".to_owned());
                self.leader = None;
            }
            _ => {}
        }
    }

    fn kill(&mut self, peer: usize) {
        if self.peers[peer].is_up {
            self.tell(|| format!("peer {peer} dies"));
            if self.peers[peer].frozen_until <= self.now {
                self.peers[peer].down_since = self.now;
            }
            self.peers[peer].is_up = false;
            self.peers[peer].fetching.clear();
        }
    }

    fn revive(&mut self, peer: usize) {
        if !self.peers[peer].is_up {
            self.tell(|| format!("peer {peer} is back"));
            let now = self.instant();
            let members: Vec<PeerId> = self.peers.iter().map(|peer| peer.id).collect();
            let this = &mut self.peers[peer];
            this.is_up = true;
            this.frozen_until = 0;
            this.liveness = Liveness::new(this.id, Duration::from_secs(PING_TTL), now);
            this.liveness.set_members(members, now);
        }
    }

    fn heal(&mut self) {
        self.tell(|| "healing".to_owned());
        for peer in 0..self.peers.len() {
            self.revive(peer);
            self.peers[peer].frozen_until = 0;
            self.peers[peer].gossip_lost_until = 0;
        }
    }

    // --- a second

    fn step(&mut self) {
        self.now += 1;
        self.gossip();
        self.follow();
        self.elect();
        let Some(mut leader) = self.leader.take() else { return };
        if self.is_working(leader.peer) && self.working() * 2 > self.peers.len() {
            self.lead(&mut leader);
        }
        self.leader = Some(leader);
    }

    fn gossip(&mut self) {
        let now = self.instant();
        let speaking: Vec<(usize, PeerId)> = (0..self.peers.len())
            .filter(|peer| self.is_working(*peer) && self.peers[*peer].gossip_lost_until <= self.now)
            .map(|peer| (peer, self.peers[peer].id))
            .collect();
        for listener in 0..self.peers.len() {
            if !self.is_working(listener) {
                continue;
            }
            self.peers[listener].liveness.observe(now);
            for (speaker, id) in &speaking {
                if *speaker != listener && !self.random.one_in(8) {
                    self.peers[listener].liveness.ping(id, now, Duration::from_secs(PING_TTL));
                }
            }
        }
    }

    /// Each IPFS node does what the log asks of it.
    fn follow(&mut self) {
        let pins = self.pins();
        for peer in 0..self.peers.len() {
            if !self.is_working(peer) {
                continue;
            }
            let bytes = self.peers[peer].bytes.clone();
            for pin in &pins {
                let is_here = pin.allocations.contains(&bytes);
                let has = self.peers[peer].copies.contains(&pin.cid);
                if is_here && !has {
                    self.fetch(peer, &pin.cid);
                } else if !is_here {
                    self.peers[peer].fetching.remove(&pin.cid);
                    if !pin.leaving.contains(&bytes) {
                        self.peers[peer].copies.remove(&pin.cid);
                    }
                }
            }
        }
    }

    /// A copy takes some seconds, and somebody who has one.
    fn fetch(&mut self, peer: usize, cid: &[u8]) {
        let source =
            (0..self.peers.len()).any(|other| self.is_working(other) && self.peers[other].copies.contains(cid));
        let takes = 1 + self.random.below(5);
        let (now, this) = (self.now, &mut self.peers[peer]);
        let done = *this.fetching.entry(cid.to_vec()).or_insert(now + takes);
        if source && now >= done {
            this.fetching.remove(cid);
            this.copies.insert(cid.to_vec());
        }
    }

    fn elect(&mut self) {
        let is_fit = |leader: &Leader| self.is_working(leader.peer);
        if self.leader.as_ref().is_some_and(is_fit) || self.working() * 2 <= self.peers.len() {
            return;
        }
        // An election takes a moment.
        if self.random.one_in(2) {
            return;
        }
        let able: Vec<usize> = (0..self.peers.len()).filter(|peer| self.is_working(*peer)).collect();
        let peer = able[self.random.below(able.len() as u64) as usize];
        self.term += 1;
        self.totals.elections += 1;
        self.tell(|| format!("peer {peer} leads"));
        let term = self.term;
        let (judge, hold) = (Judge::default(), Hold::default());
        self.leader = Some(Leader { peer, term, judge, hold, contacts: BTreeMap::new() });
    }

    fn lead(&mut self, leader: &mut Leader) {
        for peer in 0..self.peers.len() {
            if peer != leader.peer && self.is_working(peer) {
                leader.contacts.insert(self.peers[peer].node, self.now);
            }
        }
        let contacts = leader.contacts.clone();
        let (now, second) = (self.instant(), self.now);
        for (node, heard) in &contacts {
            let id = self.peers[(*node - 1) as usize].id;
            let heard = self.start + Duration::from_secs(*heard);
            self.peers[leader.peer].liveness.contact(&id, heard);
        }
        let own = self.testimony(leader.peer);
        let mut others: Vec<Testimony> = Vec::new();
        for peer in (0..self.peers.len()).filter(|peer| *peer != leader.peer) {
            if self.is_working(peer) && !self.random.one_in(5) {
                others.push(self.testimony(peer));
            }
        }
        let own = (!self.random.one_in(10)).then_some(own);
        let in_contact: BTreeSet<u64> =
            contacts.iter().filter(|(_, heard)| second - **heard < CONTACT_FRESH).map(|(node, _)| *node).collect();
        let judgement = leader.judge.look(&Scene {
            now,
            wall_seconds: second as i64,
            term: leader.term,
            own_node: self.peers[leader.peer].node,
            peers: &self.view.peers,
            settings: &self.view.settings,
            in_contact: &in_contact,
            own: own.as_ref(),
            others: &others,
            rules: judge::Rules { grace: Duration::from_secs(GRACE), ipfs_down_after: Duration::ZERO },
        });
        for kind in judgement.commands.clone() {
            self.check_verdict(&kind);
            self.apply(kind);
        }
        let standings = Standings::new(&self.view.peers, &judgement.ipfs_down);
        self.settle(&standings);
        self.repair(leader, &judgement);
        if let Some(late) = self.delayed.take() {
            self.apply_late(late);
        }
    }

    fn testimony(&self, peer: usize) -> Testimony {
        let (now, liveness) = (self.instant(), &self.peers[peer].liveness);
        let word = |other: &Peer| {
            let logged = match self.view.peers.node(other.node).map(types::Peer::state) {
                Some(State::Away) => PeerState::Away,
                _ => PeerState::Healthy,
            };
            let verdict = liveness.verdict(&other.id, logged, now)?;
            let word =
                Word { is_alive: verdict.is_alive, is_suspect: verdict.state == Seen::Suspect, ..Word::default() };
            Some((other.bytes.clone(), word))
        };
        self.peers.iter().filter_map(word).collect()
    }

    fn repair(&mut self, leader: &mut Leader, judgement: &Judgement) {
        let rules = gate::Rules {
            is_disabled: false,
            grace: Duration::from_secs(GRACE),
            stop_fraction: 0.5,
            failure_domain: String::new(),
        };
        let now = self.instant();
        match gate::gate(&rules, &self.view.peers, &self.view.settings, judgement, &mut leader.hold, now) {
            Gate::Open => {}
            Gate::Stopped(_) => {
                self.totals.stops += 1;
                return;
            }
            Gate::Disabled | Gate::Paused | Gate::Waiting(_) => return,
        }
        let standings = Standings::new(&self.view.peers, &judgement.ipfs_down);
        let mut needy: Vec<Arc<types::Pin>> =
            self.pins().into_iter().filter(|pin| moves::need(pin, &standings) != Need::Nothing).collect();
        needy.sort_by_key(|pin| moves::live(pin, &standings));
        needy.truncate(1 + self.random.below(4) as usize);
        let items: Vec<allocator::Item> = needy.iter().map(|pin| item(&moves::question(pin, &standings))).collect();
        if items.is_empty() {
            return;
        }
        let outcomes = self.allocate(leader.peer, &items);
        let planned: Vec<storage::Move> = needy
            .iter()
            .zip(outcomes)
            .filter_map(|(pin, outcome)| match outcome {
                Outcome::Peers(peers) => moves::to(pin, peers.iter().map(|peer| peer.to_bytes()).collect(), &standings),
                Outcome::TooFew(_) => None,
            })
            .collect();
        if planned.is_empty() {
            return;
        }
        for step in &planned {
            self.check_move(step, &standings);
        }
        self.totals.moves += planned.len() as u64;
        let kind = Kind::Reallocate(storage::Reallocate { moves: planned });
        match self.random.below(10) {
            // The leader dies before it is sent, or it is sent and its answer is lost.
            0 => self.delayed = Some(kind),
            1 => {
                self.delayed = Some(kind.clone());
                self.apply(kind);
            }
            _ => self.apply(kind),
        }
    }

    fn allocate(&mut self, at: usize, items: &[allocator::Item]) -> Vec<Outcome> {
        let now = self.instant();
        let row = |peer: &Peer| {
            let logged = self.view.peers.node(peer.node).map(types::Peer::state);
            let verdict = self.peers[at].liveness.verdict(&peer.id, PeerState::Healthy, now);
            let standing = match (logged, verdict) {
                (Some(State::Away), _) => Standing::Away,
                (_, Some(verdict)) if verdict.state == Seen::Suspect => Standing::Suspect,
                (_, Some(verdict)) if verdict.is_alive => Standing::Live,
                (_, _) => Standing::NotHeard,
            };
            let measured = vec![Measured::Usable { weight: 1 << 30, value: "1", partitionable: false }];
            Row { peer: peer.id, standing, measured }
        };
        let rows: Vec<Row> = self.peers.iter().map(row).collect();
        let mut field = Field::new(&["freespace".to_owned()], 1, &rows, &self.ledger);
        allocator::allocate(&mut field, items)
    }

    fn settle(&mut self, standings: &Standings) {
        let mut settles = Vec::new();
        let mut taken_back = Vec::new();
        for pin in self.pins().iter().filter(|pin| !pin.leaving.is_empty()) {
            let mut said: BTreeMap<&Vec<u8>, Copy> = BTreeMap::new();
            for peer in settle::to_ask(pin, standings) {
                let index = self.peers.iter().position(|one| one.bytes == *peer).expect("a peer");
                let answers = self.is_working(index) && !self.random.one_in(6);
                let copy = match self.peers[index].copies.contains(&pin.cid) {
                    _ if !answers => Copy::Unknown,
                    true => Copy::Held,
                    false => Copy::No,
                };
                said.insert(peer, copy);
            }
            let copy = |peer: &[u8]| said.get(&peer.to_vec()).copied().unwrap_or(Copy::Unknown);
            match settle::step(pin, standings, copy) {
                Some(Step::Drop(settle)) => {
                    let keeps = |peer: &&Vec<u8>| !settle.drop.contains(peer);
                    let leaving: Vec<Vec<u8>> = pin.leaving.iter().filter(keeps).cloned().collect();
                    self.check_copies(pin, &pin.allocations, &leaving);
                    settles.push(settle);
                }
                Some(Step::TakeBack(step)) => {
                    self.check_copies(pin, &step.allocations, &step.leaving);
                    self.check_factors(&step);
                    taken_back.push(step);
                }
                None => {}
            }
        }
        self.totals.settles += settles.len() as u64;
        self.totals.taken_back += taken_back.len() as u64;
        if !settles.is_empty() {
            self.apply(Kind::SettleMany(storage::SettleMany { settles }));
        }
        if !taken_back.is_empty() {
            self.apply(Kind::Reallocate(storage::Reallocate { moves: taken_back }));
        }
    }

    // --- the log

    fn apply(&mut self, kind: Kind) {
        self.index += 1;
        let command = storage::Command { command: Some(kind), ..storage::Command::default() };
        for cid in pinset::cids_of(&command) {
            self.view.pins.entry(cid).or_insert(None);
        }
        let index = self.index;
        pinset::apply(&mut self.view, index, &command).expect("a command that this version knows");
        self.view.take_dirty();
    }

    /// A command that was decided before: what moved meanwhile is stale, and the rest is as right as it was.
    fn apply_late(&mut self, kind: Kind) {
        let before = self.pins();
        self.tell(|| "a late command arrives".to_owned());
        self.apply(kind.clone());
        let Kind::Reallocate(many) = kind else { panic!("only moves are delayed") };
        for pin in before {
            let after = self.view.pins[&pin.cid].clone().expect("nothing is unpinned here");
            let planned = many.moves.iter().find(|step| step.cid == pin.cid);
            if planned.is_none_or(|step| step.expected_revision != pin.revision) {
                assert_eq!(pin, after, "a move that was decided on an older entry changed it");
            }
        }
    }

    // --- what must hold

    /// Only who has really been silent for the grace is away, and that is said once.
    fn check_verdict(&mut self, kind: &Kind) {
        match kind {
            Kind::PeerAway(away) => {
                self.totals.aways += 1;
                let peer = (away.node_id - 1) as usize;
                self.tell(|| format!("peer {peer} is away"));
                assert!(!self.is_working(peer), "peer {peer} is here, and was declared away");
                let silent = self.now - self.peers[peer].down_since;
                assert!(silent >= GRACE, "peer {peer} was silent for {silent} s only");
                assert_ne!(self.view.peers.node(away.node_id).unwrap().state(), State::Away, "said twice");
            }
            Kind::PeerBack(back) => {
                self.totals.returns += 1;
                let peer = (back.node_id - 1) as usize;
                self.tell(|| format!("peer {peer} has returned"));
                assert_eq!(self.view.peers.node(back.node_id).unwrap().state(), State::Away);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Moves are needed, fill up, stay within the factors, and go to peers that can take them.
    fn check_move(&self, step: &storage::Move, standings: &Standings) {
        let pin = self.view.pins[&step.cid].clone().expect("an entry");
        let (min, _) = factors(&pin).expect("factors");
        let live = moves::live(&pin, standings);
        assert!(live < min, "an item was moved that had its minimum: {pin:?}");
        self.check_factors(step);
        self.check_copies(&pin, &step.allocations, &step.leaving);
        for peer in &step.allocations {
            assert_eq!(self.view.peers.member(peer).map(types::Peer::state), Some(State::Healthy), "{step:?}");
        }
        for peer in pin.allocations.iter().filter(|peer| standings.of(peer).counts()) {
            assert!(step.allocations.contains(peer), "a holder that counts was moved: {step:?}");
        }
    }

    fn check_factors(&self, step: &storage::Move) {
        let pin = self.view.pins[&step.cid].clone().expect("an entry");
        let (min, max) = factors(&pin).expect("factors");
        assert!((min..=max).contains(&step.allocations.len()), "{step:?}");
    }

    /// Copies that exist and are asked to be kept do not fall below the minimum by what we do.
    fn check_copies(&self, pin: &types::Pin, allocations: &[Vec<u8>], leaving: &[Vec<u8>]) {
        let kept = |allocations: &[Vec<u8>], leaving: &[Vec<u8>]| {
            let is_kept = |peer: &&Peer| allocations.contains(&peer.bytes) || leaving.contains(&peer.bytes);
            self.peers.iter().filter(is_kept).filter(|peer| peer.copies.contains(&pin.cid)).count()
        };
        let (min, _) = factors(pin).expect("factors");
        let (before, after) = (kept(&pin.allocations, &pin.leaving), kept(allocations, leaving));
        assert!(after >= before.min(min), "{before} copies, and {after} are left: {pin:?}");
    }

    /// What is not as it should be, after healing.
    fn missing(&self) -> Option<String> {
        if let Some(row) = self.view.peers.members().find(|row| row.state() != State::Healthy) {
            return Some(format!("node {} is {:?}", row.node_id, row.state()));
        }
        for pin in self.pins() {
            let (min, max) = factors(&pin).expect("factors");
            if !pin.leaving.is_empty() || !(min..=max).contains(&pin.allocations.len()) {
                return Some(format!("{pin:?}"));
            }
            for peer in &self.peers {
                let is_here = pin.allocations.contains(&peer.bytes);
                if is_here != peer.copies.contains(&pin.cid) {
                    return Some(format!("node {} has a copy or not, and should not or should: {pin:?}", peer.node));
                }
            }
        }
        None
    }
}

fn item(asked: &pinfold_proto::monitor::Item) -> allocator::Item {
    let peers = |list: &[Vec<u8>]| pinfold_common::ids::peers_from_bytes(list).expect("peer IDs");
    allocator::Item {
        cid: asked.cid.clone(),
        factors: Factors::parse(asked.replication_factor_min, asked.replication_factor_max).expect("factors"),
        current: peers(&asked.current),
        priority: peers(&asked.priority),
        exclude: peers(&asked.exclude),
        growth: asked.growth(),
        size_bytes: asked.size_bytes,
    }
}

/// The same for the same number; the key need not be on a curve.
fn peer_id(number: u64) -> PeerId {
    let mut bytes = vec![0, 36, 8, 1, 18, 32];
    bytes.extend([number as u8; 32]);
    PeerId::from_bytes(&bytes).expect("a peer ID")
}
