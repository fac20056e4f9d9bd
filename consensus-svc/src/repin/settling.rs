//! The leader's loop that lets old holders go: asks the connectors of the new ones what they really hold, in batches,
//! only for entries that somebody is leaving (an index), and proposes what `plan::settle` says. Moves of the re-pinner
//! and of people's requests end here alike.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt as _, stream};
use pinfold_common::channel::{MAX_MESSAGE_BYTES, call, explain};
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::tls::Room;
use pinfold_common::{Error, Result};
use pinfold_proto::connector::holdings_client::HoldingsClient;
use pinfold_proto::connector::{Held, HoldingsCall, HoldingsReply, holdings_reply};
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{storage, types};

use super::plan::Standings;
use super::plan::settle::{self, Copy, Step};
use super::{leads, propose, written};
use crate::core::Core;
use crate::pinset::PeerTable;
use crate::store;

/// Entries of one page, which becomes one command of each kind and one question to each holder.
const PAGE: usize = 500;
/// One connector's answer about a page; each item may be a question to its IPFS node.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
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
            standings: Standings::new(&facts.peers, &core.repin.judgement().ipfs_down),
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
        let asked = wanted.into_iter().map(|(peer, about)| async move { (peer, this.ask(peer, &about).await, about) });
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

    /// One answer for each, in order.
    async fn ask(&self, peer: &[u8], about: &[&types::Pin]) -> Result<Vec<Copy>> {
        let row = self.peers.member(peer).ok_or_else(|| Error::unavailable("not a member"))?;
        let address = row.addresses.as_ref().map(|addresses| addresses.connector.as_str()).unwrap_or_default();
        let channel = self.core.channels.to(Room::Connector, &peer_from_bytes(peer)?, address);
        let mut client = HoldingsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let items = about.iter().map(|pin| Held { cid: pin.cid.clone(), revision: pin.revision }).collect();
        let asked = stream::iter([HoldingsCall { items }]);
        let mut replies = call("ask what it holds", ANSWER_DEADLINE, client.check(asked)).await?;
        let reply = tokio::time::timeout(ANSWER_DEADLINE, replies.next()).await;
        let reply = match reply {
            Ok(Some(Ok(reply))) => reply,
            Ok(Some(Err(status))) => return Err(explain(status)),
            Ok(None) => return Err(Error::unavailable("the stream ended without an answer")),
            Err(_) => return Err(Error::unavailable(format!("no answer within {ANSWER_DEADLINE:?}"))),
        };
        if reply.answers.len() != about.len() {
            return Err(Error::internal(format!("{} answers to {} questions", reply.answers.len(), about.len())));
        }
        Ok(decode(&reply))
    }
}

fn decode(reply: &HoldingsReply) -> Vec<Copy> {
    let copy = |answer: holdings_reply::Answer| match answer {
        holdings_reply::Answer::Held => Copy::Held,
        holdings_reply::Answer::No => Copy::No,
        holdings_reply::Answer::Unknown => Copy::Unknown,
    };
    reply.answers().map(copy).collect()
}
