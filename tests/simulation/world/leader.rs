//! A leader's second: it judges, lets old holders go, moves what has too few copies, and takes out whoever may leave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use consensus_svc::coordinator::rules::is_everywhere;
use consensus_svc::pinset::Outcome;
use consensus_svc::repin::plan::gate::{self, Gate};
use consensus_svc::repin::plan::judge::{self, Judgement, Scene, Testimony};
use consensus_svc::repin::plan::moves::{self, Need};
use consensus_svc::repin::plan::settle::{self, Copy, Step};
use consensus_svc::repin::plan::{self, Standings};
use monitor_svc::allocator::{self, Factors, Field, Measured, Row, Standing};
use monitor_svc::liveness::State as Seen;
use pinfold_common::peerset::PeerState;
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::types::peer::State;
use pinfold_proto::{monitor, storage, types};

use super::{Leader, Peer, World, checks};
use crate::observers;

impl World {
    pub(super) fn lead(&mut self, leader: &mut Leader) {
        let judgement = self.judge(leader);
        self.act_as_people(leader.peer);
        let standings = Standings::new(&self.view.peers, &judgement.ipfs_down);
        self.settle(&standings);
        self.repair(leader, &judgement);
        self.finish_removal(&standings);
        if self.random.one_in(2)
            && let Some(late) = self.late.take()
        {
            self.apply_late(&late);
        }
    }

    fn judge(&mut self, leader: &mut Leader) -> Judgement {
        for peer in 0..self.peers.len() {
            if peer != leader.peer && self.is_working(peer) {
                leader.contacts.insert(self.peers[peer].node, self.now);
            }
        }
        let (now, second) = (self.instant(), self.now);
        for (node, heard) in &leader.contacts {
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
        let fresh = self.setup.contact_fresh();
        let in_contact: BTreeSet<u64> =
            leader.contacts.iter().filter(|(_, heard)| second - **heard < fresh).map(|(node, _)| *node).collect();
        let rules = judge::Rules {
            grace: Duration::from_secs(self.setup.grace),
            ipfs_down_after: Duration::from_secs(self.setup.down_after),
        };
        let judgement = leader.judge.look(&Scene {
            now,
            wall_seconds: self.wall().seconds,
            term: leader.term,
            own_node: self.peers[leader.peer].node,
            peers: &self.view.peers,
            settings: &self.view.settings,
            in_contact: &in_contact,
            own: own.as_ref(),
            others: &others,
            rules,
        });
        self.check_ipfs_down(&judgement);
        for kind in judgement.commands.clone() {
            self.check_verdict(&kind);
            self.commit(kind);
        }
        judgement
    }

    fn testimony(&self, peer: usize) -> Testimony {
        let (now, this) = (self.instant(), &self.peers[peer]);
        let word = |row: &types::Peer| {
            let other = &self.peers[(row.node_id - 1) as usize];
            let mut word = observers::word(&this.liveness, &other.id, row.state(), now)?;
            // As the monitor counts it: from the first to the last ping that said so.
            let down = this.heard_ipfs_down.get(&row.node_id).map_or(0, |(since, last)| last - since);
            word.ipfs_down_for = Duration::from_secs(down);
            Some((other.bytes.clone(), word))
        };
        self.view.peers.members().filter_map(word).collect()
    }

    fn repair(&mut self, leader: &mut Leader, judgement: &Judgement) {
        let rules = gate::Rules {
            is_disabled: false,
            grace: Duration::from_secs(self.setup.grace),
            stop_fraction: 0.5,
            failure_domain: String::new(),
        };
        let now = self.instant();
        let standings = Standings::new(&self.view.peers, &judgement.ipfs_down);
        self.count_losses(&standings);
        match gate::gate(&rules, &self.view.peers, &self.view.settings, judgement, &mut leader.hold, now) {
            Gate::Open => {}
            Gate::Stopped(_) => {
                self.totals.stops += 1;
                return;
            }
            Gate::Disabled | Gate::Paused | Gate::Waiting(_) => return,
        }
        let is_needy = |pin: &&Arc<types::Pin>| moves::need(pin, &standings) != Need::Nothing;
        let mut needy: Vec<Arc<types::Pin>> = self.pins.iter().filter(is_needy).cloned().collect();
        needy.sort_by_key(|pin| moves::live(pin, &standings));
        needy.truncate(1 + self.random.below(4) as usize);
        let is_idle = needy.is_empty();
        let is_refill = |pin: &&Arc<types::Pin>| matches!(moves::need(pin, &standings), Need::Refill { .. });
        let questions: Vec<monitor::Item> =
            needy.iter().filter(is_refill).map(|pin| moves::question(pin, &standings)).collect();
        let mut answers = self.allocate(leader.peer, &questions).into_iter();
        let mut planned: Vec<storage::Move> = Vec::new();
        for pin in needy {
            let step = match moves::need(&pin, &standings) {
                Need::Nothing => None,
                Need::Vacate => moves::vacated(&pin, &standings),
                Need::Refill { .. } => {
                    let answer = answers.next().expect("an answer to each question");
                    answer.and_then(|peers| moves::to(&pin, peers, &standings))
                }
            };
            if let Some(step) = step {
                self.check_move(leader.peer, &step, judgement);
                planned.push(step);
            }
        }
        if !planned.is_empty() {
            let command = self.command(Kind::Reallocate(storage::Reallocate { moves: planned }));
            if let Some(outcome) = self.send(command) {
                self.count_moves(&outcome);
            }
        }
        if is_idle {
            self.balance(leader.peer, &standings);
        }
    }

    pub(super) fn count_moves(&mut self, outcome: &Outcome) {
        self.totals.moves += checks::written(outcome);
        assert!(self.totals.moves <= self.losses, "more moves than holders were lost");
    }

    /// What this leader's monitor answers; `None`: too few.
    pub(super) fn allocate(&mut self, at: usize, questions: &[monitor::Item]) -> Vec<Option<Vec<Vec<u8>>>> {
        if questions.is_empty() {
            return Vec::new();
        }
        let rows: Vec<Row> = (0..self.peers.len())
            .filter(|peer| self.is_member(*peer))
            .map(|peer| Row {
                peer: self.peers[peer].id,
                standing: self.standing(at, peer),
                measured: vec![measured(&self.peers[peer])],
            })
            .collect();
        let mut field = Field::new(&["freespace".to_owned()], 1, &rows, &self.ledger);
        let items: Vec<allocator::Item> = questions.iter().map(item).collect();
        let answers = allocator::allocate(&mut field, &items);
        let answer = |outcome| match outcome {
            allocator::Outcome::Peers(peers) => Some(peers.iter().map(|peer| peer.to_bytes()).collect()),
            allocator::Outcome::TooFew(_) => None,
        };
        answers.into_iter().map(answer).collect()
    }

    /// As the monitor at `at` has it.
    pub(super) fn standing(&self, at: usize, peer: usize) -> Standing {
        let (now, id) = (self.instant(), &self.peers[peer].id);
        match self.state(peer) {
            State::Draining => return Standing::Draining,
            State::Away | State::Removed => return Standing::Away,
            State::Healthy => {}
        }
        let this = &self.peers[at];
        let Some(verdict) = this.liveness.verdict(id, PeerState::Healthy, now) else { return Standing::NotHeard };
        let is_hampered =
            this.heard_ipfs_down.contains_key(&self.peers[peer].node) || this.liveness.unsteady(id, now).is_some();
        match verdict.state {
            Seen::Away => Standing::Away,
            Seen::Suspect => Standing::Suspect,
            Seen::Healthy if !verdict.is_alive => Standing::NotHeard,
            Seen::Healthy if is_hampered => Standing::Hampered,
            Seen::Healthy => Standing::Live,
        }
    }

    fn settle(&mut self, standings: &Standings) {
        let mut settles = Vec::new();
        let mut taken_back = Vec::new();
        let pins = self.pins.clone();
        for pin in pins.iter().filter(|pin| !pin.leaving.is_empty()) {
            let mut said: BTreeMap<&Vec<u8>, Copy> = BTreeMap::new();
            for bytes in settle::to_ask(pin, standings) {
                let peer = self.index_of(bytes);
                let answers = self.is_working(peer) && !self.peers[peer].ipfs_is_down && !self.random.one_in(6);
                let copy = match self.peers[peer].copies.contains(&pin.cid) {
                    _ if !answers => Copy::Unknown,
                    true => Copy::Held,
                    false => Copy::No,
                };
                said.insert(bytes, copy);
            }
            let copy = |peer: &[u8]| said.get(&peer.to_vec()).copied().unwrap_or(Copy::Unknown);
            match settle::step(pin, standings, copy) {
                Some(Step::Drop(settle)) => {
                    let keeps = |peer: &&Vec<u8>| !settle.drop.contains(peer);
                    let leaving = pin.leaving.iter().filter(keeps).cloned().collect();
                    self.check_copies(pin, &types::Pin { leaving, ..pin.as_ref().clone() });
                    settles.push(settle);
                }
                Some(Step::TakeBack(step)) => {
                    self.check_taken_back(pin, &step);
                    taken_back.push(step);
                }
                None => {}
            }
        }
        self.totals.settles += settles.len() as u64;
        self.totals.taken_back += taken_back.len() as u64;
        if !settles.is_empty() {
            self.commit(Kind::SettleMany(storage::SettleMany { settles }));
        }
        if !taken_back.is_empty() {
            self.commit(Kind::Reallocate(storage::Reallocate { moves: taken_back }));
        }
    }

    /// One that was ordered goes when nothing is left there, somebody who stays says that it holds what every peer pins,
    /// and the voters that stay have a majority.
    fn finish_removal(&mut self, standings: &Standings) {
        let removing = |peer: &usize| self.view.peers.node(self.peers[*peer].node).is_some_and(|row| row.removing);
        let going = (0..self.peers.len()).filter(removing).find(|peer| {
            let bytes = &self.peers[*peer].bytes;
            let is_named = |pin: &Arc<types::Pin>| pin.allocations.contains(bytes) || pin.leaving.contains(bytes);
            let outlives = |pin: &Arc<types::Pin>| !is_everywhere(pin) || self.outlives(*peer, &pin.cid, standings);
            self.has_majority_without(*peer) && !self.pins.iter().any(is_named) && self.pins.iter().all(outlives)
        });
        if let Some(peer) = going {
            self.totals.removed += 1;
            self.check_nothing_orphaned(peer);
            self.remove(peer, true);
        }
    }

    fn outlives(&self, going: usize, cid: &[u8], standings: &Standings) -> bool {
        let copy = |peer: usize| match self.peers[peer].copies.contains(cid) {
            _ if !self.is_working(peer) || self.peers[peer].ipfs_is_down => Copy::Unknown,
            true => Copy::Held,
            false => Copy::No,
        };
        let stays = |peer: &usize| {
            let bytes = &self.peers[*peer].bytes;
            *peer != going
                && standings.of(bytes).counts()
                && self.view.peers.member(bytes).is_some_and(|row| !row.removing)
        };
        let own = match standings.of(&self.peers[going].bytes) {
            plan::Standing::Away | plan::Standing::Gone => Copy::Unknown,
            plan::Standing::Live | plan::Standing::IpfsDown | plan::Standing::Draining => copy(going),
        };
        settle::outlives(own, (0..self.peers.len()).filter(stays).map(copy))
    }

    /// What every peer pins is never lost with one that leaves in good order.
    fn check_nothing_orphaned(&self, peer: usize) {
        let has_other =
            |cid: &Vec<u8>| (0..self.peers.len()).any(|other| other != peer && self.peers[other].copies.contains(cid));
        let is_orphaned = |pin: &&Arc<types::Pin>| {
            is_everywhere(pin) && self.peers[peer].copies.contains(&pin.cid) && !has_other(&pin.cid)
        };
        let orphaned = self.pins.iter().find(is_orphaned);
        assert!(orphaned.is_none(), "peer {peer} is removed with the only copy of {orphaned:?}");
    }

    pub(super) fn has_majority_without(&self, peer: usize) -> bool {
        let staying = self.view.peers.members().count() - 1;
        let running = self.working() - usize::from(self.is_working(peer));
        running * 2 > staying
    }

    pub(super) fn remove(&mut self, peer: usize, only_if_removing: bool) {
        self.tell(|| format!("peer {peer} is removed"));
        let (peer_id, node_id) = (self.peers[peer].bytes.clone(), self.peers[peer].node);
        let outcome = self.commit(Kind::Remove(storage::Remove { peer_id, node_id, only_if_removing }));
        assert!(matches!(outcome, Outcome::Peer(_)), "{outcome:?}");
        self.say_farewell(peer);
    }
}

/// All have the same space, so that nothing but the CID decides between them.
fn measured(peer: &Peer) -> Measured<'static> {
    match peer.is_full {
        true => Measured::Invalid,
        false => Measured::Usable { weight: 1 << 30, value: "1", partitionable: false },
    }
}

fn item(asked: &monitor::Item) -> allocator::Item {
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
