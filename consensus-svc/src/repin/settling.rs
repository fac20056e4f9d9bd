//! The leader's loop that lets old holders go: asks the connectors of the new ones what they really hold, in batches,
//! only for entries that somebody is leaving (an index), and proposes what `plan::settle` says. Moves of the re-pinner
//! and of people's requests end here alike.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use futures::future::join_all;
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{storage, types};

use super::plan::Standings;
use super::plan::settle::{self, Copy, Step};
use super::{holdings, leads, propose, written};
use crate::core::Core;
use crate::pinset::PeerTable;
use crate::store;

/// Entries of one page, which becomes one command of each kind and one question to each holder.
const PAGE: usize = 500;
/// Between two rounds: shorter while copies arrive, up to the longer one while they do not.
const PAUSES: std::ops::Range<Duration> = Duration::from_millis(200)..Duration::from_secs(5);
/// Between two rounds while nobody is leaving anything.
const IDLE: Duration = Duration::from_secs(1);

pub(super) async fn run(core: &Core) {
    let mut pause = PAUSES.start;
    loop {
        tokio::time::sleep(pause).await;
        let Some(term) = leads(core) else {
            pause = PAUSES.start;
            continue;
        };
        let facts = core.state.facts();
        core.repin.board.lock().begin_round();
        let mut round = Round {
            core,
            term,
            standings: core.repin.standings(&facts.peers),
            peers: &facts.peers,
            silent: HashSet::new(),
            unconfirmed: BTreeMap::new(),
            leaving: 0,
            changed: 0,
        };
        match round.run().await {
            Ok(()) => core.repin.board.lock().end_round(round.unconfirmed, round.leaving),
            Err(error) => tracing::warn!(%error, "look for entries that somebody is leaving"),
        }
        pause = match (round.changed, round.leaving) {
            (0, 0) => IDLE,
            (0, _) => (pause * 2).min(PAUSES.end),
            (_, _) => PAUSES.start,
        };
    }
}

/// One walk over the index.
struct Round<'a> {
    core: &'a Core,
    term: u64,
    standings: Standings,
    peers: &'a PeerTable,
    /// Connectors that did not answer: not asked again in this round.
    silent: HashSet<Vec<u8>>,
    unconfirmed: BTreeMap<Vec<u8>, u64>,
    leaving: u64,
    changed: usize,
}

impl Round<'_> {
    async fn run(&mut self) -> store::Result<()> {
        for holder in self.core.state.holders().await? {
            let mut after = 0;
            loop {
                let page = self.core.state.leaving(&holder, after, PAGE).await?;
                let is_last = page.len() < PAGE;
                after = page.last().map_or(after, |held| held.row);
                // An entry that several are leaving is taken at the first of them.
                let first = |pin: &types::Pin| pin.leaving.first() == Some(&holder);
                let pins: Vec<types::Pin> = page.into_iter().map(|held| held.pin).filter(first).collect();
                if !pins.is_empty() {
                    self.settle(pins).await;
                }
                if is_last || leads(self.core) != Some(self.term) {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn settle(&mut self, pins: Vec<types::Pin>) {
        let copies = self.copies(&pins).await;
        let mut settles = Vec::new();
        let mut moves = Vec::new();
        for pin in &pins {
            let copy = |peer: &[u8]| copies.get(&(pin.cid.as_slice(), peer)).copied().unwrap_or(Copy::Unknown);
            match settle::step(pin, &self.standings, copy) {
                Some(Step::Drop(settle)) => settles.push(settle),
                Some(Step::TakeBack(step)) => moves.push(step),
                None => {
                    self.leaving += 1;
                    for peer in pin.allocations.iter().filter(|peer| copy(peer) != Copy::Held) {
                        *self.unconfirmed.entry(peer.clone()).or_default() += 1;
                    }
                }
            }
        }
        drop(copies);
        let (dropped, taken_back) = (settles.len(), moves.len());
        if dropped > 0 {
            let settled = self.commit(Kind::SettleMany(storage::SettleMany { settles })).await;
            self.core.repin.board.lock().settled += settled as u64;
            metrics::counter!("pinfold_consensus_repin_settled_total").increment(settled as u64);
        }
        if taken_back > 0 {
            let moved = self.commit(Kind::Reallocate(storage::Reallocate { moves })).await;
            metrics::counter!("pinfold_consensus_repin_taken_back_total").increment(moved as u64);
        }
    }

    /// How many items were written. One that was not is found again by the next round.
    async fn commit(&mut self, kind: Kind) -> usize {
        match propose(self.core, self.term, kind).await {
            Ok(outcome) => {
                let count = written(&outcome);
                self.changed += count;
                count
            }
            Err(error) => {
                tracing::debug!(%error, "let old holders go");
                0
            }
        }
    }

    /// What each holder says of each entry, all holders side by side.
    async fn copies<'a>(&mut self, pins: &'a [types::Pin]) -> HashMap<(&'a [u8], &'a [u8]), Copy> {
        let mut wanted: BTreeMap<&'a [u8], Vec<&'a types::Pin>> = BTreeMap::new();
        for pin in pins {
            let asked = settle::to_ask(pin, &self.standings).filter(|peer| !self.silent.contains(*peer));
            for peer in asked.map(Vec::as_slice) {
                let name = pin.allocations.iter().chain(&pin.leaving).find(|known| known.as_slice() == peer);
                if let Some(name) = name {
                    wanted.entry(name).or_default().push(pin);
                }
            }
        }
        let this = &*self;
        let asked = wanted.into_iter().map(|(peer, about)| async move {
            (peer, holdings::ask(this.core, this.peers, peer, &about).await, about)
        });
        let answers = join_all(asked).await;
        let mut copies = HashMap::new();
        let mut silent = Vec::new();
        for (peer, answer, about) in answers {
            match answer {
                Ok(answers) => {
                    copies.extend(about.iter().zip(answers).map(|(pin, copy)| ((pin.cid.as_slice(), peer), copy)));
                }
                Err(error) => {
                    tracing::debug!(%error, "ask a connector what it holds");
                    silent.push(peer.to_vec());
                }
            }
        }
        self.silent.extend(silent);
        copies
    }
}
