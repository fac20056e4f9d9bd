//! What must hold, at every step and after healing.

use std::collections::BTreeSet;
use std::sync::Arc;

use consensus_svc::coordinator::rules::{Draft, is_everywhere};
use consensus_svc::pinset::{ItemOutcome, Outcome};
use consensus_svc::repin::plan::judge::Judgement;
use consensus_svc::repin::plan::moves::{self, Need};
use consensus_svc::repin::plan::{Standing, Standings, factors};
use monitor_svc::allocator;
use pinfold_common::pin::PinRequest;
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::types::peer::State;
use pinfold_proto::{storage, types};

use super::{Late, Peer, World};

/// How many items were written.
pub(super) fn written(outcome: &Outcome) -> u64 {
    let Outcome::Items(items) = outcome else { panic!("{outcome:?}") };
    items.iter().filter(|item| matches!(item, ItemOutcome::Written(_))).count() as u64
}

/// Nothing of it was stale.
pub(super) fn is_final(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Items(items) => !items.iter().any(|item| matches!(item, ItemOutcome::Stale(_))),
        Outcome::Peer(_) | Outcome::Done | Outcome::Refused(_) => true,
    }
}

/// All that a move leaves as it is.
fn is_as_wished(pin: &types::Pin, wish: &types::Pin) -> bool {
    pin.cid == wish.cid
        && pin.options == wish.options
        && pin.r#type == wish.r#type
        && pin.max_depth == wish.max_depth
        && pin.reference == wish.reference
        && pin.timestamp == wish.timestamp
}

impl World {
    // --- the log

    /// People's commands, when they are carried out for the first time, are what has to be there from then on.
    pub(super) fn learn_wishes(&mut self, command: &storage::Command, outcome: &Outcome) {
        let (Some(kind), Outcome::Items(items)) = (&command.command, outcome) else { return };
        match kind {
            Kind::PutMany(many) => {
                for (put, item) in many.puts.iter().zip(items) {
                    let pin = put.pin.clone().expect("a pin");
                    if *item == ItemOutcome::Written(self.index) {
                        self.learn_put(put, pin);
                    }
                }
            }
            Kind::UnpinMany(many) => {
                for (unpin, item) in many.unpins.iter().zip(items) {
                    if matches!(item, ItemOutcome::Removed(_)) && self.wishes.remove(&unpin.cid).is_some() {
                        self.totals.unpinned += 1;
                        self.offered.remove(&unpin.cid);
                    }
                }
            }
            _ => {}
        }
    }

    fn learn_put(&mut self, put: &storage::Put, mut pin: types::Pin) {
        let is_update = pin.options.as_ref().is_some_and(|options| !options.pin_update.is_empty());
        match put.expected_revision {
            _ if is_update => self.totals.updated += 1,
            0 => self.totals.pinned += 1,
            _ => self.totals.repinned += 1,
        }
        if put.expected_revision == 0 {
            self.offered.insert(pin.cid.clone());
        }
        pin.timestamp.get_or_insert_default();
        self.losses += u64::from(moves::need(&pin, &self.standings) != Need::Nothing);
        self.wishes.insert(pin.cid.clone(), pin);
    }

    /// Nothing is there that was not asked for or was unpinned, nothing is missing, all options are as they were asked
    /// for, and the allocations are within their factors.
    pub(super) fn check_entries(&self, changed: &BTreeSet<Vec<u8>>) {
        assert_eq!(self.pins.len(), self.wishes.len(), "entries, and what was asked for");
        for cid in changed {
            let Some(pin) = self.row(cid) else {
                assert!(!self.wishes.contains_key(cid), "an entry is gone that nobody unpinned");
                continue;
            };
            let wish = self.wishes.get(cid).unwrap_or_else(|| panic!("unpinned, and back: {pin:?}"));
            assert!(is_as_wished(&pin, wish), "{pin:?}\nis not as it was asked for: {wish:?}");
            assert_eq!(pin.revision, self.index);
            match factors(&pin) {
                Some((min, max)) => assert!((min..=max).contains(&pin.allocations.len()), "{pin:?}"),
                None => assert!(pin.allocations.is_empty() && pin.leaving.is_empty(), "{pin:?}"),
            }
        }
    }

    pub(super) fn check_late(&mut self, late: &Late, before: &[Arc<types::Pin>], outcome: &Outcome) {
        if late.is_known {
            self.totals.repeated += 1;
            assert_eq!(before, self.pins.as_slice(), "what was done before is done again: {:?}", late.command);
            return;
        }
        self.totals.late += 1;
        let revision_of = |cid: &Vec<u8>| before.iter().find(|pin| pin.cid == *cid).map_or(0, |pin| pin.revision);
        let expected: Vec<(&Vec<u8>, u64)> = match &late.command.command {
            Some(Kind::Reallocate(many)) => {
                self.count_late_moves(many);
                self.count_moves(outcome);
                many.moves.iter().map(|step| (&step.cid, step.expected_revision)).collect()
            }
            Some(Kind::PutMany(many)) => {
                many.puts.iter().map(|put| (&put.pin.as_ref().expect("a pin").cid, put.expected_revision)).collect()
            }
            Some(Kind::UnpinMany(many)) => {
                many.unpins.iter().map(|unpin| (&unpin.cid, unpin.expected_revision)).collect()
            }
            other => panic!("{other:?}"),
        };
        for (cid, revision) in expected {
            let is_same = self.row(cid).as_ref() == before.iter().find(|pin| pin.cid == *cid);
            assert!(is_same || revision == revision_of(cid), "decided on an older entry: {:?}", late.command);
        }
    }

    /// A late move may name a holder that was lost meanwhile.
    fn count_late_moves(&mut self, many: &storage::Reallocate) {
        let is_needy = |step: &&storage::Move| {
            self.row(&step.cid).is_some_and(|pin| moves::need(&pin, &self.standings) != Need::Nothing)
        };
        self.losses += many.moves.iter().filter(is_needy).count() as u64;
    }

    // --- verdicts

    /// Only who has really been silent for the grace is away, and that is said once.
    pub(super) fn check_verdict(&mut self, kind: &Kind) {
        match kind {
            Kind::PeerAway(away) => {
                self.totals.aways += 1;
                let peer = (away.node_id - 1) as usize;
                self.tell(|| format!("peer {peer} is away"));
                assert!(!self.is_working(peer), "peer {peer} is here, and was declared away");
                let silent = self.now - self.peers[peer].down_since;
                assert!(silent >= self.setup.grace, "peer {peer} was silent for {silent} s only");
                assert!(matches!(self.state(peer), State::Healthy | State::Draining), "said twice");
            }
            Kind::PeerBack(back) => {
                self.totals.returns += 1;
                let peer = (back.node_id - 1) as usize;
                self.tell(|| format!("peer {peer} has returned"));
                assert_eq!(self.state(peer), State::Away);
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn check_ipfs_down(&mut self, judgement: &Judgement) {
        self.totals.ipfs_down += judgement.ipfs_down.len() as u64;
        for bytes in &judgement.ipfs_down {
            assert!(self.peers[self.index_of(bytes)].ipfs_was_ever_down, "its IPFS node was never down");
        }
    }

    /// Entries of peers that have just ceased to count: what the re-pinner may have to move for them.
    pub(super) fn count_losses(&mut self, standings: &Standings) {
        for peer in &self.peers {
            let (before, after) = (self.standings.of(&peer.bytes), standings.of(&peer.bytes));
            if after != before && after != Standing::Live {
                let named = |pin: &&Arc<types::Pin>| pin.allocations.contains(&peer.bytes);
                self.losses += self.pins.iter().filter(named).count() as u64;
            }
        }
        self.standings = standings.clone();
    }

    // --- moves and people's writes

    /// Moves are needed, fill up, stay within the factors, and go to peers that can take them; those that leave for good
    /// are let go only by entries that have enough without them.
    pub(super) fn check_move(&self, leader: usize, step: &storage::Move, judgement: &Judgement) {
        let pin = self.row(&step.cid).expect("an entry");
        let (min, max) = factors(&pin).expect("what is everywhere is not moved");
        let counts = |bytes: &&Vec<u8>| {
            let peer = self.index_of(bytes);
            self.state(peer) == State::Healthy && !judgement.ipfs_down.contains(*bytes)
        };
        let is_leaving = |bytes: &&Vec<u8>| {
            let row = self.view.peers.member(bytes);
            row.is_none_or(|row| row.draining)
        };
        let live = pin.allocations.iter().filter(counts).count();
        if live < min {
            let missed = step.allocations.iter().find(|peer| !counts(peer));
            assert!(missed.is_none(), "filled up with one that does not count: {step:?}");
        } else {
            let stays: Vec<&Vec<u8>> = pin.allocations.iter().filter(|peer| !is_leaving(peer)).collect();
            assert_ne!(stays.len(), pin.allocations.len(), "moved, and had its minimum: {pin:?}");
            assert!(step.allocations.iter().eq(stays), "{pin:?}: {step:?}");
        }
        assert!((min..=max).contains(&step.allocations.len()), "{step:?}");
        let lost = pin.allocations.iter().filter(counts).find(|peer| !step.allocations.contains(peer));
        assert!(lost.is_none(), "a holder that counts was moved: {step:?}");
        for holder in step.allocations.iter().filter(|peer| !pin.allocations.contains(peer)) {
            self.check_new_holder(leader, holder);
        }
        self.check_leaving(&pin, step);
        self.check_copies(&pin, &moved(&pin, step));
    }

    /// A member that is to hold it no longer keeps its copy for now.
    fn check_leaving(&self, pin: &types::Pin, step: &storage::Move) {
        let is_member = |peer: &&Vec<u8>| self.view.peers.member(peer).is_some();
        let goes = pin.allocations.iter().chain(&pin.leaving).filter(|peer| !step.allocations.contains(peer));
        let mut forgotten = goes.filter(is_member).filter(|peer| !step.leaving.contains(peer));
        assert!(forgotten.next().is_none(), "one that is to keep its copy does not: {pin:?}: {step:?}");
    }

    fn check_new_holder(&self, leader: usize, bytes: &[u8]) {
        let peer = self.index_of(bytes);
        let can_take = match self.standing(leader, peer) {
            allocator::Standing::Live | allocator::Standing::Hampered => !self.peers[peer].is_full,
            _ => false,
        };
        assert!(can_take, "peer {peer} can take nothing and was given something");
    }

    pub(super) fn check_taken_back(&self, pin: &types::Pin, step: &storage::Move) {
        let (min, max) = factors(pin).expect("factors");
        assert!((min..=max).contains(&step.allocations.len()), "{step:?}");
        for holder in step.allocations.iter().filter(|peer| !pin.allocations.contains(peer)) {
            assert!(pin.leaving.contains(holder) && self.state(self.index_of(holder)) == State::Healthy, "{step:?}");
        }
        self.check_copies(pin, &moved(pin, step));
    }

    /// One copy, from a peer that has more to one that has less.
    pub(super) fn check_balance(
        &self,
        leader: usize,
        pin: &types::Pin,
        step: &storage::Move,
        giver: &[u8],
        taker: &[u8],
    ) {
        let gone: Vec<&Vec<u8>> = pin.allocations.iter().filter(|peer| !step.allocations.contains(peer)).collect();
        let new: Vec<&Vec<u8>> = step.allocations.iter().filter(|peer| !pin.allocations.contains(peer)).collect();
        assert_eq!((gone, new), (vec![&giver.to_vec()], vec![&taker.to_vec()]), "{step:?}");
        let count = |bytes: &[u8]| self.pins.iter().filter(|pin| pin.allocations.iter().any(|p| p == bytes)).count();
        assert!(count(giver) > count(taker), "from the emptier to the fuller: {step:?}");
        self.check_new_holder(leader, taker);
        self.check_leaving(pin, step);
        self.check_copies(pin, &moved(pin, step));
    }

    pub(super) fn check_draft(
        &mut self,
        leader: usize,
        request: &PinRequest,
        source: Option<&types::Pin>,
        draft: &Draft,
    ) {
        assert_eq!(draft.pin.options, Some(World::expected_options(request, source)));
        for holder in World::new_holders(draft) {
            match source {
                None => self.check_new_holder(leader, holder),
                // An update takes the holders of its source over as they are, but for those that the log says are gone.
                Some(_) => assert!(self.view.peers.can_take(holder), "{draft:?}"),
            }
        }
        if let Some(existing) = &draft.existing {
            self.check_copies(existing, &draft.pin);
        }
    }

    /// Copies that exist and are asked to be kept do not fall below the minimum by what we do.
    pub(super) fn check_copies(&self, before: &types::Pin, after: &types::Pin) {
        if let Err((had, have)) = self.copies_left(before, after) {
            panic!("{had} copies, and {have} are left: {before:?}\nbecomes {after:?}");
        }
    }

    /// The error says how many copies there were, and how many are left.
    fn copies_left(&self, before: &types::Pin, after: &types::Pin) -> Result<(), (usize, usize)> {
        let kept = |pin: &types::Pin| {
            let is_kept = |peer: &&Peer| {
                is_everywhere(pin) || pin.allocations.contains(&peer.bytes) || pin.leaving.contains(&peer.bytes)
            };
            self.peers.iter().filter(is_kept).filter(|peer| peer.copies.contains(&pin.cid)).count()
        };
        let (had, have) = (kept(before), kept(after));
        let min = factors(after).map_or(had, |(min, _)| min);
        if have >= had.min(min) { Ok(()) } else { Err((had, have)) }
    }

    // --- after healing

    pub(super) fn is_where_it_should_be(&self, pin: &types::Pin) -> bool {
        let has = |peer: usize| self.is_member(peer) && self.peers[peer].copies.contains(&pin.cid);
        if is_everywhere(pin) {
            return (0..self.peers.len()).all(|peer| has(peer) || !self.is_member(peer));
        }
        pin.allocations.iter().all(|bytes| has(self.index_of(bytes)))
    }

    /// What is not as it should be, after healing.
    pub(super) fn missing(&self) -> Option<String> {
        if self.is_rebalancing() || self.late.is_some() {
            return Some("a rebalance or a late command".to_owned());
        }
        for row in self.view.peers.members() {
            let is_done = match row.state() {
                State::Healthy => true,
                State::Draining => !row.removing && !self.pins.iter().any(|p| p.allocations.contains(&row.peer_id)),
                State::Away | State::Removed => false,
            };
            if !is_done {
                return Some(format!("node {} is {:?}, with items perhaps", row.node_id, row.state()));
            }
        }
        for pin in self.pins.iter() {
            if !pin.leaving.is_empty() || !self.is_where_it_should_be(pin) {
                return Some(format!("not on all that should have it: {pin:?}"));
            }
            let is_surplus = |peer: &&Peer| !is_everywhere(pin) && !pin.allocations.contains(&peer.bytes);
            if self.peers.iter().filter(is_surplus).any(|peer| peer.copies.contains(&pin.cid)) {
                return Some(format!("on others than should have it: {pin:?}"));
            }
        }
        let is_unpinned = |cid: &Vec<u8>| !self.wishes.contains_key(cid);
        let left_over = self.peers.iter().find(|peer| peer.copies.iter().any(is_unpinned));
        left_over.map(|peer| format!("node {} has what was unpinned", peer.node))
    }
}

/// The entry as the move leaves it.
fn moved(pin: &types::Pin, step: &storage::Move) -> types::Pin {
    types::Pin { allocations: step.allocations.clone(), leaving: step.leaving.clone(), ..pin.clone() }
}
