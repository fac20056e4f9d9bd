//! What the leader does for `ctl rebalance`: walks over what full peers hold, and moves it to empty ones, while nothing
//! has too few copies, within the same rate. The wish is a replicated setting, and what is left to do is counted from
//! the index, so that the next leader goes on. The settling loop lets the old holders go.

use std::collections::BTreeSet;

use pinfold_common::time::Timestamp;
use pinfold_proto::monitor::result::Result as Placed;
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{monitor, storage, types};

use super::moving::batch;
use super::plan::balance::{self, Loads};
use super::plan::judge::maintained_until;
use super::plan::{REBALANCE, Standings};
use super::{control, propose, written};
use crate::coordinator::allocate;
use crate::core::{Core, unreadable};
use crate::store::Facts;

/// Entries of one page of the index.
const PAGE: usize = 500;

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nobody wants it, or it is done.
    Nothing,
    /// So many moves were written; there is more to do.
    Moved(usize),
    /// Whoever takes something has enough on the way.
    Wait,
}

#[derive(Debug, Default)]
pub(super) struct Balancer {
    walk: Option<Walk>,
}

/// One walk over what the fullest peers hold.
#[derive(Debug)]
struct Walk {
    standings: Standings,
    loads: Loads,
    giver: Option<Vec<u8>>,
    after: i64,
    /// Their items were all looked at.
    exhausted: BTreeSet<Vec<u8>>,
    has_moved: bool,
}

/// Those that count as holders and are not about to be away.
pub(super) fn taking_part<'a>(facts: &'a Facts, standings: &'a Standings) -> impl Iterator<Item = &'a Vec<u8>> {
    let now = Timestamp::now().seconds;
    standings.live().filter(move |peer| {
        let row = facts.peers.member(peer);
        row.is_some_and(|row| maintained_until(&facts.settings, row.node_id).is_none_or(|until| until <= now))
    })
}

async fn loads(core: &Core, facts: &Facts, standings: &Standings) -> crate::store::Result<Loads> {
    let mut counts = Vec::new();
    for peer in taking_part(facts, standings) {
        counts.push((peer.clone(), core.state.count_allocated_to(peer).await?));
    }
    Ok(counts.into_iter().collect())
}

impl Balancer {
    /// At most `most` moves. An error is tried again.
    pub async fn step(
        &mut self,
        core: &Core,
        term: u64,
        standings: &Standings,
        most: usize,
    ) -> pinfold_common::Result<Step> {
        let facts = core.state.facts();
        if facts.settings.get(REBALANCE).is_none_or(String::is_empty) {
            self.walk = None;
            core.repin.board.lock().left_to_balance = 0;
            return Ok(Step::Nothing);
        }
        if self.walk.as_ref().is_none_or(|walk| walk.standings != *standings) {
            let loads = loads(core, &facts, standings).await.map_err(unreadable)?;
            if loads.are_even() {
                return self.end(core, term, "all peers hold an even share").await;
            }
            self.walk = Some(Walk::new(standings.clone(), loads));
        }
        let Some(walk) = &mut self.walk else { return Ok(Step::Nothing) };
        let most_per_peer = core.repin.most_per_peer(&core.config.repin);
        let saturated = core.repin.board.lock().saturated(most_per_peer);
        if walk.loads.excess() > 0 && !walk.loads.has_taker(&saturated) {
            return Ok(Step::Wait);
        }
        let Some((giver, pins)) = walk.next(core, most.min(batch(most_per_peer))).await.map_err(unreadable)? else {
            let has_moved = walk.has_moved;
            self.walk = None;
            // What was moved meanwhile, by others too, is counted anew.
            return if has_moved { Ok(Step::Moved(0)) } else { self.end(core, term, "nothing more can move").await };
        };
        let moved = match walk.give(core, term, &giver, pins, &saturated).await {
            Ok(moved) => moved,
            Err(error) => {
                // What this walk has passed over was not moved: the next one begins anew.
                self.walk = None;
                return Err(error);
            }
        };
        core.repin.board.lock().left_to_balance = walk.loads.excess();
        Ok(Step::Moved(moved))
    }

    async fn end(&mut self, core: &Core, term: u64, why: &str) -> pinfold_common::Result<Step> {
        self.walk = None;
        control::set(core, term, REBALANCE, String::new()).await?;
        core.repin.board.lock().left_to_balance = 0;
        tracing::info!(why, "rebalanced");
        Ok(Step::Nothing)
    }
}

impl Walk {
    fn new(standings: Standings, loads: Loads) -> Walk {
        Walk { standings, loads, giver: None, after: 0, exhausted: BTreeSet::new(), has_moved: false }
    }

    /// Items that the fullest peer may give, of one page; none: the walk is over.
    async fn next(&mut self, core: &Core, most: usize) -> crate::store::Result<Option<(Vec<u8>, Vec<types::Pin>)>> {
        let giver = match self.giver.take() {
            Some(giver) if self.loads.excess_of(&giver) > 0 => giver,
            Some(_) | None => {
                self.after = 0;
                match self.loads.giver(|peer| self.exhausted.contains(peer)) {
                    Some(giver) => giver.clone(),
                    None => return Ok(None),
                }
            }
        };
        let page = core.state.allocated_to(&giver, self.after, PAGE).await?;
        let wanted = usize::try_from(self.loads.excess_of(&giver)).unwrap_or(usize::MAX).min(most);
        let is_last = page.len() < PAGE;
        let mut pins = Vec::new();
        for held in page {
            if pins.len() == wanted {
                self.giver = Some(giver.clone());
                return Ok(Some((giver, pins)));
            }
            self.after = held.row;
            if balance::may_move(&held.pin, &giver, &self.standings) {
                pins.push(held.pin);
            }
        }
        if is_last {
            self.exhausted.insert(giver.clone());
        } else {
            self.giver = Some(giver.clone());
        }
        Ok(Some((giver, pins)))
    }

    /// How many of them were moved.
    async fn give(
        &mut self,
        core: &Core,
        term: u64,
        giver: &[u8],
        pins: Vec<types::Pin>,
        saturated: &[Vec<u8>],
    ) -> pinfold_common::Result<usize> {
        if pins.is_empty() {
            return Ok(0);
        }
        let question = |pin| balance::question(pin, giver, &self.loads, &self.standings, saturated);
        let questions: Vec<monitor::Item> = pins.iter().map(question).collect();
        let answers = allocate::items(core, questions).await?;
        let mut loads = self.loads.clone();
        let mut planned: Vec<storage::Move> = Vec::new();
        let mut given = Vec::new();
        for (pin, answer) in pins.iter().zip(answers) {
            let Some(Placed::Peers(peers)) = answer.result else { continue };
            if let Some((step, taker)) = balance::moved(pin, giver, peers.peers, &loads, &self.standings) {
                loads.shift(giver, &taker);
                given.push(taker);
                planned.push(step);
            }
        }
        if planned.is_empty() {
            return Ok(0);
        }
        let moved = written(&propose(core, term, Kind::Reallocate(storage::Reallocate { moves: planned })).await?);
        // Those that were stale are found to be elsewhere by the next walk, which counts anew.
        self.loads = loads;
        self.has_moved |= moved > 0;
        metrics::counter!("pinfold_consensus_repin_rebalanced_total").increment(moved as u64);
        let mut board = core.repin.board.lock();
        board.rebalanced += moved as u64;
        board.moved_to(given.iter());
        Ok(moved)
    }
}
