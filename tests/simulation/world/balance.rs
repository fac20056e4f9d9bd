//! A leader's second of `ctl rebalance`, while nothing has too few copies.

use std::collections::BTreeSet;

use consensus_svc::repin::plan::balance::{self, Loads};
use consensus_svc::repin::plan::{REBALANCE, Standings};
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{monitor, storage, types};

use super::{World, checks};

/// Moves of one second.
const BATCH: usize = 3;

impl World {
    pub(super) fn is_rebalancing(&self) -> bool {
        self.view.settings.contains_key(REBALANCE)
    }

    pub(super) fn order_rebalance(&mut self) {
        self.set_rebalance("true");
    }

    fn set_rebalance(&mut self, value: &str) {
        self.commit(Kind::Setting(storage::Setting { key: REBALANCE.to_owned(), value: value.to_owned() }));
    }

    fn loads(&self, standings: &Standings) -> Loads {
        let count = |peer: &Vec<u8>| self.pins.iter().filter(|pin| pin.allocations.contains(peer)).count() as u64;
        standings.live().map(|peer| (peer.clone(), count(peer))).collect()
    }

    pub(super) fn balance(&mut self, leader: usize, standings: &Standings) {
        if !self.is_rebalancing() {
            return;
        }
        let loads = self.loads(standings);
        if loads.are_even() {
            self.totals.even += 1;
            self.tell(|| "all peers hold an even share".to_owned());
            return self.set_rebalance("");
        }
        let mut exhausted: BTreeSet<Vec<u8>> = BTreeSet::new();
        while let Some(giver) = loads.giver(|peer| exhausted.contains(peer)).cloned() {
            let pins = self.pins.clone();
            let may_move: Vec<&types::Pin> =
                pins.iter().map(AsRef::as_ref).filter(|pin| balance::may_move(pin, &giver, standings)).collect();
            let wanted = BATCH.min(loads.excess_of(&giver) as usize);
            for batch in may_move.chunks(wanted) {
                let moves = self.plan_batch(leader, &giver, batch, &loads, standings);
                if !moves.is_empty() {
                    return self.give(moves, &loads, standings);
                }
            }
            exhausted.insert(giver);
        }
        self.totals.uneven += 1;
        self.tell(|| "nothing more can move".to_owned());
        self.set_rebalance("");
    }

    /// The questions are asked together, and each answer is looked at beside what those before it came to.
    fn plan_batch(
        &mut self,
        leader: usize,
        giver: &[u8],
        batch: &[&types::Pin],
        loads: &Loads,
        standings: &Standings,
    ) -> Vec<storage::Move> {
        let questions: Vec<monitor::Item> =
            batch.iter().map(|pin| balance::question(pin, giver, loads, standings, &[])).collect();
        let answers = self.allocate(leader, &questions);
        let mut loads = loads.clone();
        let mut moves = Vec::new();
        for (pin, answer) in batch.iter().zip(answers) {
            let Some(peers) = answer else { continue };
            if let Some((step, taker)) = balance::moved(pin, giver, peers, &loads, standings) {
                self.check_balance(leader, pin, &step, giver, &taker);
                loads.shift(giver, &taker);
                moves.push(step);
            }
        }
        moves
    }

    /// Each move brings the whole one copy nearer to even shares: none is made that was not needed.
    fn give(&mut self, moves: Vec<storage::Move>, before: &Loads, standings: &Standings) {
        let count = moves.len() as u64;
        let outcome = self.commit(Kind::Reallocate(storage::Reallocate { moves }));
        assert_eq!(checks::written(&outcome), count, "{outcome:?}");
        self.totals.rebalanced += count;
        let left = self.loads(standings).excess();
        assert_eq!(left + count, before.excess(), "copies above the shares, after {count} moves");
    }
}
