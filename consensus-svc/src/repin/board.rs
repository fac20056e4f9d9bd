//! What the loops tell people: the phase, the counts, and the items that cannot be satisfied. In memory, of the leader
//! only; a new leader counts again.

use std::collections::{BTreeMap, BTreeSet};

use pinfold_proto::types::repin_status_reply::Phase;

use super::plan::gate::Gate;

/// Items that are listed; further ones are counted.
const MAX_LISTED: usize = 10_000;

/// Why an item has too few copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsatisfied {
    pub live: usize,
    pub needed: usize,
    pub candidates: usize,
    pub reason: String,
}

/// The items that one scan could not satisfy, by CID.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsatisfieds {
    pub listed: BTreeMap<Vec<u8>, Unsatisfied>,
    pub total: u64,
}

impl Unsatisfieds {
    pub fn list(&mut self, cid: Vec<u8>, why: Unsatisfied) {
        self.total += 1;
        if self.listed.len() < MAX_LISTED {
            self.listed.insert(cid, why);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Board {
    pub gate: Option<Gate>,
    pub is_moving: bool,
    pub under_replicated: u64,
    pub lost: u64,
    pub unsatisfied: Unsatisfieds,
    /// By new holder, as the last round of the settling loop found them, and what was moved since.
    pub unconfirmed: BTreeMap<Vec<u8>, u64>,
    pub unconfirmed_since: BTreeMap<Vec<u8>, u64>,
    /// Items that some old holder is kept for.
    pub leaving: u64,
    pub moved: u64,
    pub settled: u64,
    /// By `ctl rebalance`.
    pub rebalanced: u64,
    pub left_to_balance: u64,
}

impl Board {
    pub fn phase(&self) -> (Phase, String) {
        match &self.gate {
            None => (Phase::Unspecified, String::new()),
            Some(Gate::Disabled) => {
                (Phase::Disabled, "the leader has cluster.disable_repinning or cluster.follower_mode".to_owned())
            }
            Some(Gate::Paused) => (Phase::Paused, "by an operator: ctl repin resume goes on".to_owned()),
            Some(Gate::Stopped(why)) => {
                (Phase::Stopped, format!("{why}: it goes on when that clears, or with ctl repin resume"))
            }
            Some(Gate::Waiting(count)) => (Phase::Waiting, format!("for the verdict about {count} further peers")),
            Some(Gate::Open) if self.is_moving => (Phase::Moving, String::new()),
            Some(Gate::Open) => (Phase::Idle, String::new()),
        }
    }

    /// New holders that have so many unconfirmed items that they get no more for now.
    pub fn saturated(&self, most: u64) -> Vec<Vec<u8>> {
        let count = |peer: &Vec<u8>| {
            self.unconfirmed.get(peer).copied().unwrap_or(0) + self.unconfirmed_since.get(peer).copied().unwrap_or(0)
        };
        let known: BTreeSet<&Vec<u8>> = self.unconfirmed.keys().chain(self.unconfirmed_since.keys()).collect();
        known.into_iter().filter(|peer| count(peer) >= most).cloned().collect()
    }

    /// A round of the settling loop begins: what is moved from now on may escape it.
    pub fn begin_round(&mut self) {
        self.unconfirmed_since.clear();
    }

    pub fn end_round(&mut self, unconfirmed: BTreeMap<Vec<u8>, u64>, leaving: u64) {
        self.unconfirmed = unconfirmed;
        self.leaving = leaving;
        metrics::gauge!("pinfold_consensus_repin_unconfirmed").set(leaving as f64);
    }

    pub fn moved_to<'a>(&mut self, holders: impl Iterator<Item = &'a Vec<u8>>) {
        for peer in holders {
            *self.unconfirmed_since.entry(peer.clone()).or_default() += 1;
        }
    }

    pub fn report(&self) {
        metrics::gauge!("pinfold_consensus_repin_under_replicated").set(self.under_replicated as f64);
        metrics::gauge!("pinfold_consensus_repin_lost").set(self.lost as f64);
        metrics::gauge!("pinfold_consensus_repin_unsatisfied").set(self.unsatisfied.total as f64);
        let stopped = matches!(self.gate, Some(Gate::Stopped(_)));
        metrics::gauge!("pinfold_consensus_repin_stopped").set(f64::from(u8::from(stopped)));
    }
}
