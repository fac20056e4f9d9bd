//! Observers that are slow (fault:F9): their processes stand still for seconds, with their clocks or without, or only what
//! others say reaches them late. Nobody is ever gone for the grace, so that every verdict would be false.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use consensus_svc::pinset::{self, View};
use consensus_svc::repin::plan::judge::{Judge, Rules, Scene, Testimony};
use monitor_svc::liveness::{Liveness, OBSERVE_INTERVAL};
use pinfold_common::PeerId;
use pinfold_proto::storage;
use pinfold_proto::types::peer::State;

use crate::observers;
use crate::random::Random;

const HISTORIES: u64 = 60;
const SECONDS: u64 = 600;
const PEERS: u64 = 5;
const GRACE: Duration = Duration::from_secs(10);
const PING_TTL: Duration = Duration::from_secs(3);
const PING_INTERVAL_MS: u64 = 1000;
/// A standstill is shorter than the grace, and followed by some time of work.
const STILL_MS: Range<u64> = 1000..9000;
const AWAKE_MS: Range<u64> = 2500..20_000;
const DELAY_MS: u64 = 8000;
/// Of an election, at each tick without a leader.
const ELECTION_ODDS: u64 = 40;

/// Whether a peer's processes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Running,
    /// They stand still, and the time goes on.
    Still,
    /// So does its clock: the machine was halted.
    Halted,
}

struct Observer {
    id: PeerId,
    liveness: Liveness,
    run: Run,
    run_until_ms: u64,
    /// What others say reaches its monitor late.
    is_deaf: bool,
    deaf_until_ms: u64,
    /// When it went on last after a time of which its clock knows.
    woke: Option<Instant>,
    /// By how much its clock is behind.
    behind_ms: u64,
    next_ping_ms: u64,
    /// Pings that have reached its machine, and when its monitor reads them.
    inbox: VecDeque<(u64, usize)>,
    /// When it last heard each other peer over Raft, by its own clock.
    contacts: BTreeMap<usize, Instant>,
    judge: Judge,
}

struct Starved {
    random: Random,
    start: Instant,
    now_ms: u64,
    view: View,
    observers: Vec<Observer>,
    leader: usize,
    term: u64,
    standstills: u64,
    doubts: u64,
}

/// Goal: however often observers stand still for seconds, nobody who is there is declared away.
#[test]
fn seed_h9_7_starved_observers_declare_nobody_away() {
    let (mut standstills, mut doubts) = (0, 0);
    for seed in 0..HISTORIES {
        let mut starved = Starved::new(seed);
        while starved.now_ms < SECONDS * 1000 {
            starved.step(seed);
        }
        standstills += starved.standstills;
        doubts += starved.doubts;
    }
    println!("{HISTORIES} histories of {SECONDS} s: {standstills} standstills, {doubts} looks with doubts");
    assert!(standstills > HISTORIES * SECONDS / 10 && doubts > HISTORIES, "{standstills}, {doubts}");
}

impl Starved {
    fn new(seed: u64) -> Starved {
        let start = Instant::now();
        let ids: Vec<PeerId> = (1..=PEERS).map(observers::peer_id).collect();
        let mut view = View::default();
        let found = storage::Command { command: Some(observers::found(&ids)), ..storage::Command::default() };
        pinset::apply(&mut view, 1, &found).expect("the first entry");
        let observer = |id: &PeerId| {
            let mut liveness = Liveness::new(*id, PING_TTL, start);
            liveness.set_members(ids.iter().copied(), start);
            Observer {
                id: *id,
                liveness,
                run: Run::Running,
                run_until_ms: 0,
                is_deaf: false,
                deaf_until_ms: 0,
                woke: None,
                behind_ms: 0,
                next_ping_ms: 0,
                inbox: VecDeque::new(),
                contacts: BTreeMap::new(),
                judge: Judge::default(),
            }
        };
        let observers = ids.iter().map(observer).collect();
        let (random, now_ms) = (Random::new(seed), 0);
        Starved { random, start, now_ms, view, observers, leader: 0, term: 1, standstills: 0, doubts: 0 }
    }

    fn runs(&self, peer: usize) -> bool {
        self.observers[peer].run == Run::Running
    }

    /// By the peer's own clock.
    fn clock(&self, peer: usize) -> Instant {
        self.start + Duration::from_millis(self.now_ms - self.observers[peer].behind_ms)
    }

    fn step(&mut self, seed: u64) {
        let tick = OBSERVE_INTERVAL.as_millis() as u64;
        self.now_ms += tick;
        for peer in 0..self.observers.len() {
            if self.observers[peer].run == Run::Halted {
                self.observers[peer].behind_ms += tick;
            }
            self.change(peer);
        }
        self.ping();
        for peer in (0..self.observers.len()).filter(|peer| self.runs(*peer)).collect::<Vec<_>>() {
            self.observe(peer);
        }
        let running = (0..self.observers.len()).filter(|peer| self.runs(*peer)).collect::<Vec<_>>();
        if running.len() * 2 <= self.observers.len() {
            return;
        }
        if !running.contains(&self.leader) {
            // Mostly it goes on before the others agree on a new one.
            if self.random.one_in(ELECTION_ODDS) {
                self.take_over(&running);
            }
            return;
        }
        self.hear_over_raft(&running);
        if self.now_ms.is_multiple_of(1000) {
            self.look(seed);
        }
    }

    fn change(&mut self, peer: usize) {
        let (now_ms, random, this) = (self.now_ms, &mut self.random, &mut self.observers[peer]);
        let mut until = |range: &Range<u64>| now_ms + range.start + random.below(range.end - range.start);
        if now_ms >= this.deaf_until_ms {
            this.deaf_until_ms = until(&AWAKE_MS);
            this.is_deaf = !this.is_deaf;
        }
        if now_ms >= this.run_until_ms {
            if this.run == Run::Still {
                this.woke = Some(self.start + Duration::from_millis(now_ms - this.behind_ms));
            }
            let lasts = if this.run == Run::Running { &STILL_MS } else { &AWAKE_MS };
            this.run_until_ms = until(lasts);
            this.run = match this.run {
                Run::Still | Run::Halted => Run::Running,
                Run::Running if now_ms.is_multiple_of(2 * PING_INTERVAL_MS) => Run::Halted,
                Run::Running => Run::Still,
            };
            self.standstills += u64::from(this.run != Run::Running);
        }
    }

    /// One in eight is lost; what reaches a machine that stands still is read when it goes on.
    fn ping(&mut self) {
        for speaker in 0..self.observers.len() {
            if !self.runs(speaker) || self.now_ms < self.observers[speaker].next_ping_ms {
                continue;
            }
            self.observers[speaker].next_ping_ms = self.now_ms + PING_INTERVAL_MS;
            for listener in (0..self.observers.len()).filter(|listener| *listener != speaker) {
                if self.random.one_in(8) {
                    continue;
                }
                let delay = if self.observers[listener].is_deaf { self.random.below(DELAY_MS) } else { 0 };
                self.observers[listener].inbox.push_back((self.now_ms + delay, speaker));
            }
        }
    }

    fn observe(&mut self, peer: usize) {
        let (now, now_ms) = (self.clock(peer), self.now_ms);
        let ids: Vec<PeerId> = self.observers.iter().map(|observer| observer.id).collect();
        let this = &mut self.observers[peer];
        this.liveness.observe(now);
        this.inbox.retain(|(at_ms, speaker)| {
            let is_due = *at_ms <= now_ms;
            if is_due {
                this.liveness.ping(&ids[*speaker], now, PING_TTL);
            }
            !is_due
        });
        if this.woke.is_none_or(|woke| now >= woke + PING_TTL) {
            return;
        }
        for id in &ids {
            let word = observers::word(&this.liveness, id, State::Healthy, now).expect("a member");
            assert!(!word.is_suspect, "{now_ms} ms: {peer} suspects another, and was away itself a moment ago");
        }
    }

    /// One that stands still is replaced by the others, which judge anew.
    fn take_over(&mut self, running: &[usize]) {
        self.leader = running[self.random.below(running.len() as u64) as usize];
        self.term += 1;
        for peer in running {
            let now = self.clock(*peer);
            self.observers[*peer].liveness.judge_anew(now);
        }
        self.observers[self.leader].judge = Judge::default();
        self.observers[self.leader].contacts.clear();
    }

    fn hear_over_raft(&mut self, running: &[usize]) {
        let (now, leader) = (self.clock(self.leader), self.leader);
        for peer in running.iter().filter(|peer| **peer != leader) {
            let id = self.observers[*peer].id;
            self.observers[leader].contacts.insert(*peer, now);
            self.observers[leader].liveness.contact(&id, now);
        }
    }

    fn look(&mut self, seed: u64) {
        let now = self.clock(self.leader);
        let testimony = |peer: usize| -> Testimony {
            let (liveness, at) = (&self.observers[peer].liveness, self.clock(peer));
            let word = |row: &pinfold_proto::types::Peer| {
                let other = &self.observers[(row.node_id - 1) as usize].id;
                Some((row.peer_id.clone(), observers::word(liveness, other, row.state(), at)?))
            };
            self.view.peers.members().filter_map(word).collect()
        };
        let own = testimony(self.leader);
        let witnesses = (0..self.observers.len()).filter(|peer| *peer != self.leader && self.runs(*peer));
        let others: Vec<Testimony> = witnesses.map(testimony).collect();
        let fresh = |heard: &Instant| now.saturating_duration_since(*heard) < PING_TTL;
        let contacts = &self.observers[self.leader].contacts;
        let in_contact: BTreeSet<u64> =
            contacts.iter().filter(|(_, heard)| fresh(heard)).map(|(peer, _)| *peer as u64 + 1).collect();
        let (term, own_node) = (self.term, self.leader as u64 + 1);
        let judgement = self.observers[self.leader].judge.look(&Scene {
            now,
            wall_seconds: 0,
            term,
            own_node,
            peers: &self.view.peers,
            settings: &self.view.settings,
            in_contact: &in_contact,
            own: Some(&own),
            others: &others,
            rules: Rules { grace: GRACE, ipfs_down_after: Duration::ZERO },
        });
        self.doubts += u64::from(!judgement.doubted.is_empty());
        assert!(judgement.commands.is_empty(), "seed {seed}, {} ms: {:?}", self.now_ms, judgement.commands);
    }
}
