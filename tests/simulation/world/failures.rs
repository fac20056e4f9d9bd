//! What goes wrong, and its end.

use std::collections::BTreeMap;
use std::time::Duration;

use monitor_svc::liveness::Liveness;
use pinfold_common::PeerId;
use pinfold_proto::storage;
use pinfold_proto::storage::command::Command as Kind;

use super::World;

impl World {
    pub(super) fn fail_something(&mut self) {
        if !self.random.one_in(4) {
            return;
        }
        let peer = self.random.below(self.peers.len() as u64) as usize;
        if !self.is_member(peer) {
            return;
        }
        let now = self.now;
        match self.random.below(13) {
            0..=2 => self.kill(peer),
            3 => {
                // Two at once, the leader among them.
                self.kill(peer);
                if let Some(leader) = self.leader.as_ref().map(|leader| leader.peer) {
                    self.kill(leader);
                }
            }
            4..=5 => self.revive(peer),
            6 => {
                let seconds = 1 + self.random.below(12);
                self.freeze(peer, seconds);
            }
            7 => {
                self.peers[peer].gossip_lost_until = now + 1 + self.random.below(15);
                self.tell(|| format!("gossip of peer {peer} is lost"));
            }
            8 => {
                self.tell(|| "the leader loses its office".to_owned());
                self.leader = None;
            }
            9..=10 => {
                self.tell(|| format!("the IPFS node of peer {peer} is down"));
                self.peers[peer].ipfs_is_down = true;
                self.peers[peer].ipfs_was_ever_down = true;
                self.peers[peer].fetching.clear();
                self.peers[peer].followed = 0;
            }
            11 => {
                self.tell(|| format!("the IPFS node of peer {peer} is back"));
                self.peers[peer].ipfs_is_down = false;
            }
            _ => {
                let is_full = !self.peers[peer].is_full;
                self.tell(|| format!("peer {peer} has a full disk: {is_full}"));
                self.peers[peer].is_full = is_full;
            }
        }
    }

    /// Its processes stand still for so long.
    pub fn freeze(&mut self, peer: usize, seconds: u64) {
        if self.is_working(peer) {
            self.tell(|| format!("peer {peer} freezes for {seconds} s"));
            self.peers[peer].frozen_until = self.now + seconds;
            self.peers[peer].down_since = self.now;
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
            self.peers[peer].followed = 0;
        }
    }

    fn revive(&mut self, peer: usize) {
        if self.is_member(peer) && !self.peers[peer].is_up {
            self.tell(|| format!("peer {peer} is back"));
            let (now, members) = (self.instant(), self.members());
            let this = &mut self.peers[peer];
            this.is_up = true;
            this.frozen_until = 0;
            this.heard_ipfs_down = BTreeMap::new();
            this.liveness = Liveness::new(this.id, Duration::from_secs(self.setup.ping_ttl), now);
            this.liveness.set_members(members, now);
        }
    }

    fn members(&self) -> Vec<PeerId> {
        (0..self.peers.len()).filter(|peer| self.is_member(*peer)).map(|peer| self.peers[peer].id).collect()
    }

    /// It was removed: its copies are gone with it, and the monitors forget it.
    pub(super) fn say_farewell(&mut self, peer: usize) {
        self.peers[peer].is_removed = true;
        self.peers[peer].is_up = false;
        let (now, members) = (self.instant(), self.members());
        self.peers[peer].copies.clear();
        self.peers[peer].fetching.clear();
        for other in &mut self.peers {
            other.liveness.set_members(members.iter().copied(), now);
        }
    }

    /// Everything runs again, and so many peers stay that every item can have its minimum.
    pub(super) fn heal(&mut self) {
        self.tell(|| "healing".to_owned());
        self.is_healing = true;
        for peer in 0..self.peers.len() {
            self.revive(peer);
            let this = &mut self.peers[peer];
            this.frozen_until = 0;
            this.gossip_lost_until = 0;
            this.ipfs_is_down = false;
            this.is_full = false;
        }
        let needed = self.largest_minimum();
        let draining: Vec<Vec<u8>> =
            self.view.peers.members().filter(|row| row.draining).map(|row| row.peer_id.clone()).collect();
        for peer_id in draining {
            if self.staying() < needed {
                self.commit(Kind::Drain(storage::Drain { peer_id, draining: false, removing: false }));
            }
        }
    }
}
