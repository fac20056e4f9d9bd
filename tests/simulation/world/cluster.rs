//! What peers do that do not lead: they ping, follow the log and elect a leader.

use std::collections::BTreeMap;
use std::time::Duration;

use consensus_svc::coordinator::rules::is_everywhere;
use consensus_svc::repin::plan::gate::Hold;
use consensus_svc::repin::plan::judge::Judge;
use pinfold_common::PeerId;

use super::{Leader, World};

impl World {
    pub(super) fn gossip(&mut self) {
        let (now, ttl) = (self.instant(), Duration::from_secs(self.setup.ping_ttl));
        let speaking: Vec<(usize, PeerId, bool)> = (0..self.peers.len())
            .filter(|peer| self.is_working(*peer) && self.peers[*peer].gossip_lost_until <= self.now)
            .map(|peer| (peer, self.peers[peer].id, self.peers[peer].ipfs_is_down))
            .collect();
        for listener in 0..self.peers.len() {
            if !self.is_working(listener) {
                continue;
            }
            self.peers[listener].liveness.observe(now);
            for (speaker, id, ipfs_is_down) in &speaking {
                let is_own = *speaker == listener;
                if !is_own && self.random.one_in(8) {
                    continue;
                }
                let (second, node) = (self.now, self.peers[*speaker].node);
                let this = &mut self.peers[listener];
                if !is_own {
                    this.liveness.ping(id, now, ttl);
                }
                if *ipfs_is_down {
                    this.heard_ipfs_down.entry(node).or_insert((second, second)).1 = second;
                } else {
                    this.heard_ipfs_down.remove(&node);
                }
            }
        }
    }

    /// Each IPFS node does what the log asks of it.
    pub(super) fn follow(&mut self) {
        for peer in 0..self.peers.len() {
            if !self.is_working(peer) || self.peers[peer].ipfs_is_down {
                continue;
            }
            if self.peers[peer].followed == self.index && self.peers[peer].fetching.is_empty() {
                continue;
            }
            self.follow_one(peer);
        }
        let is_there = |cid: &[u8]| self.row(cid).is_some_and(|pin| self.is_where_it_should_be(&pin));
        let done: Vec<Vec<u8>> = self.offered.iter().filter(|cid| is_there(cid)).cloned().collect();
        for cid in done {
            self.offered.remove(&cid);
        }
    }

    fn follow_one(&mut self, peer: usize) {
        let (pins, bytes) = (self.pins.clone(), self.peers[peer].bytes.clone());
        let is_known = |cid: &Vec<u8>| self.view.pins.get(cid).is_some_and(Option::is_some);
        let this = &self.peers[peer];
        let unpinned: Vec<Vec<u8>> =
            this.copies.iter().chain(this.fetching.keys()).filter(|cid| !is_known(cid)).cloned().collect();
        for cid in unpinned {
            self.peers[peer].copies.remove(&cid);
            self.peers[peer].fetching.remove(&cid);
        }
        for pin in pins.iter() {
            let is_here = is_everywhere(pin) || pin.allocations.contains(&bytes);
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
        self.peers[peer].followed = self.index;
    }

    /// A copy takes some seconds, and somebody who has one.
    fn fetch(&mut self, peer: usize, cid: &[u8]) {
        let is_source = |other: &usize| {
            self.is_working(*other) && !self.peers[*other].ipfs_is_down && self.peers[*other].copies.contains(cid)
        };
        let has_source = self.offered.contains(cid) || (0..self.peers.len()).any(|other| is_source(&other));
        let takes = 1 + self.random.below(5);
        let (now, this) = (self.now, &mut self.peers[peer]);
        let done = *this.fetching.entry(cid.to_vec()).or_insert(now + takes);
        if has_source && now >= done {
            this.fetching.remove(cid);
            this.copies.insert(cid.to_vec());
        }
    }

    pub(super) fn elect(&mut self) {
        let is_fit = |leader: &Leader| self.is_working(leader.peer);
        if self.leader.as_ref().is_some_and(is_fit) || !self.has_majority() {
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
        let (now, is_first) = (self.instant(), self.term == 1);
        for other in able.into_iter().filter(|_| !is_first) {
            self.peers[other].liveness.judge_anew(now);
        }
        let (term, judge, hold) = (self.term, Judge::default(), Hold::default());
        self.leader = Some(Leader { peer, term, judge, hold, contacts: BTreeMap::new() });
    }
}
