//! The leader's loop that moves what has too few copies: scan, allocate, `Reallocate`, at a bounded rate. A batch that
//! took long is followed by as long a rest, so that requests of people come first.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use pinfold_proto::monitor::result::Result as Placed;
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{monitor, storage, types};

use super::balancing::{Balancer, Step};
use super::board::{Board, Unsatisfied, Unsatisfieds};
use super::plan::budget::Budget;
use super::plan::gate::{self, Gate, Hold};
use super::plan::moves::{self, Need};
use super::plan::{PINS_PER_SECOND, Standings, factors};
use super::scan::Scan;
use super::{leads, propose, written};
use crate::coordinator::allocate;
use crate::core::Core;
use crate::store::Facts;

/// Entries of one command.
const MAX_BATCH: usize = 256;
/// While something moves.
const TICK: Duration = Duration::from_millis(50);
/// While nothing does.
const IDLE: Duration = Duration::from_millis(250);
/// After an error that the next attempt may not have.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// A batch that takes longer is followed by as long a rest.
const SLOW: Duration = Duration::from_millis(100);
/// A survey of millions is work for the thread that requests of people wait for: after each piece it rests for so many
/// times what that took, and for more where nothing would be moved anyway.
const RESTS: u32 = 1;
const RESTS_FOR_NOBODY: u32 = 9;
/// Of the peers that were left out, so many are named in a reason.
const REASONS_SHOWN: usize = 3;

pub(super) async fn run(core: &Core) {
    let mut mover: Option<Mover> = None;
    loop {
        let pause = match leads(core) {
            None => {
                if mover.take().is_some() {
                    *core.repin.board.lock() = Board::default();
                }
                IDLE
            }
            Some(term) => {
                if mover.as_ref().is_none_or(|mover| mover.term != term) {
                    *core.repin.board.lock() = Board::default();
                    mover = Some(Mover::new(term));
                }
                match &mut mover {
                    Some(mover) => mover.step(core).await,
                    None => IDLE,
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// The rate that an operator set, or the configured one.
pub(super) fn pins_per_second(core: &Core, facts: &Facts) -> u32 {
    let set = facts.settings.get(PINS_PER_SECOND).and_then(|rate| rate.parse().ok());
    set.unwrap_or(core.config.repin.pins_per_second)
}

/// Entries of one command, all of which may go to one peer.
pub(super) fn batch(most_per_peer: u64) -> usize {
    usize::try_from(most_per_peer).unwrap_or(MAX_BATCH).min(MAX_BATCH)
}

/// One leader's work in one term.
struct Mover {
    term: u64,
    budget: Budget,
    hold: Hold,
    scan: Option<Scan>,
    unsatisfied: Unsatisfieds,
    balancer: Balancer,
}

impl Mover {
    fn new(term: u64) -> Mover {
        let budget = Budget::new(Instant::now());
        Mover {
            term,
            budget,
            hold: Hold::default(),
            scan: None,
            unsatisfied: Unsatisfieds::default(),
            balancer: Balancer::default(),
        }
    }

    /// Does one piece; says how long to wait before the next.
    async fn step(&mut self, core: &Core) -> Duration {
        if core.repin.judgement().term != self.term {
            // Who else is in doubt is known after the first look.
            return IDLE;
        }
        let facts = core.state.facts();
        let gate = self.gate(core, &facts);
        let standings = core.repin.standings(&facts.peers);
        if self.scan.as_ref().is_none_or(|scan| scan.is_over(&standings, facts.lineage)) {
            self.unsatisfied = Unsatisfieds::default();
            match Scan::begin(core, standings, facts.lineage).await {
                Ok(scan) => self.scan = Some(scan),
                Err(error) => return failed("begin to look for too few copies", &error),
            }
        }
        let available = match &gate {
            Gate::Open => {
                let most = batch(core.repin.most_per_peer(&core.config.repin));
                self.budget.available(pins_per_second(core, &facts), Instant::now()).min(most)
            }
            Gate::Disabled | Gate::Paused | Gate::Stopped(_) | Gate::Waiting(_) => 0,
        };
        let Some(scan) = &mut self.scan else { return IDLE };
        if scan.is_surveying() {
            let started = Instant::now();
            if let Err(error) = scan.look(core, MAX_BATCH).await {
                return failed("count what has too few copies", &error);
            }
            if !scan.is_surveying() {
                let mut board = core.repin.board.lock();
                board.under_replicated = scan.counts.under_replicated;
                board.lost = scan.counts.lost;
                board.report();
            }
            let rests = match gate {
                Gate::Open | Gate::Waiting(_) => RESTS,
                Gate::Disabled | Gate::Paused | Gate::Stopped(_) => RESTS_FOR_NOBODY,
            };
            return started.elapsed() * rests;
        }
        if available == 0 {
            return if scan.is_done() { IDLE } else { TICK };
        }
        if let Err(error) = scan.look(core, available).await {
            return failed("look for too few copies", &error);
        }
        let pins = scan.take(available);
        if !pins.is_empty() {
            return self.move_batch(core, pins).await;
        }
        if !scan.is_done() {
            return Duration::ZERO;
        }
        {
            let mut board = core.repin.board.lock();
            board.is_moving = false;
            board.unsatisfied = self.unsatisfied.clone();
            board.report();
        }
        self.balance(core, available).await
    }

    /// Nothing has too few copies that could have more.
    async fn balance(&mut self, core: &Core, available: usize) -> Duration {
        let Some(scan) = &self.scan else { return IDLE };
        let started = Instant::now();
        match self.balancer.step(core, self.term, &scan.standings, available).await {
            Ok(Step::Nothing | Step::Wait) => IDLE,
            Ok(Step::Moved(moved)) => {
                self.budget.spend(moved);
                let took = started.elapsed();
                if took > SLOW { took } else { TICK.saturating_sub(took) }
            }
            Err(error) => failed("move from full peers to empty ones", &error),
        }
    }

    fn gate(&mut self, core: &Core, facts: &Facts) -> Gate {
        let config = &core.config.repin;
        let rules = gate::Rules {
            is_disabled: config.is_disabled,
            grace: config.grace,
            stop_fraction: config.stop_fraction,
            failure_domain: config.failure_domain.clone(),
        };
        let judgement = core.repin.judgement();
        let gate = gate::gate(&rules, &facts.peers, &facts.settings, &judgement, &mut self.hold, Instant::now());
        let mut board = core.repin.board.lock();
        if board.gate.as_ref() != Some(&gate) {
            match &gate {
                Gate::Stopped(why) => tracing::error!(why, "re-pinning has stopped; ctl repin resume goes on"),
                Gate::Open | Gate::Disabled | Gate::Paused | Gate::Waiting(_) => tracing::info!(?gate, "re-pinning"),
            }
            board.gate = Some(gate.clone());
            board.report();
        }
        gate
    }

    async fn move_batch(&mut self, core: &Core, pins: Vec<types::Pin>) -> Duration {
        let started = Instant::now();
        let Some(scan) = &mut self.scan else { return IDLE };
        let saturated = core.repin.board.lock().saturated(core.repin.most_per_peer(&core.config.repin));
        let questions = questions(&pins, &scan.standings, &saturated);
        let answers = match allocate::items(core, questions).await {
            Ok(answers) => answers,
            Err(error) => {
                scan.put_back(pins);
                return failed("allocate what has too few copies", &error);
            }
        };
        let mut answers = answers.into_iter();
        let mut planned: Vec<storage::Move> = Vec::new();
        let mut given: Vec<Vec<u8>> = Vec::new();
        for pin in &pins {
            let made = match moves::need(pin, &scan.standings) {
                Need::Nothing => None,
                Need::Vacate => moves::vacated(pin, &scan.standings),
                Need::Refill { live } => match answers.next().and_then(|answer| answer.result) {
                    Some(Placed::Peers(peers)) => moves::to(pin, peers.peers, &scan.standings),
                    Some(Placed::TooFew(too_few)) => {
                        scan.is_incomplete = true;
                        if saturated.is_empty() {
                            self.unsatisfied.list(pin.cid.clone(), unsatisfied(pin, live, &too_few));
                        }
                        None
                    }
                    None => {
                        scan.is_incomplete = true;
                        None
                    }
                },
            };
            if let Some(step) = made {
                given.extend(step.allocations.iter().filter(|peer| !pin.allocations.contains(peer)).cloned());
                planned.push(step);
            }
        }
        let count = planned.len();
        if count == 0 {
            return TICK;
        }
        match propose(core, self.term, Kind::Reallocate(storage::Reallocate { moves: planned })).await {
            Ok(outcome) => {
                let moved = written(&outcome);
                scan.is_incomplete |= moved < count;
                self.budget.spend(count);
                metrics::counter!("pinfold_consensus_repin_moved_total").increment(moved as u64);
                let mut board = core.repin.board.lock();
                board.is_moving = true;
                board.moved += moved as u64;
                board.under_replicated = board.under_replicated.saturating_sub(moved as u64);
                board.moved_to(given.iter());
                board.report();
            }
            Err(error) => {
                // What was written after all comes back stale.
                scan.put_back(pins);
                return failed("move what has too few copies", &error);
            }
        }
        let took = started.elapsed();
        if took > SLOW { took } else { TICK.saturating_sub(took) }
    }
}

/// Logged once each time; the loop goes on after a pause.
fn failed(what: &str, error: &dyn std::fmt::Display) -> Duration {
    tracing::warn!(%error, "{what}");
    AFTER_ERROR
}

/// For those that need more copies, in order. Who has too much to do already is not asked, unless it holds the item.
fn questions(pins: &[types::Pin], standings: &Standings, saturated: &[Vec<u8>]) -> Vec<monitor::Item> {
    let needy = pins.iter().filter(|pin| matches!(moves::need(pin, standings), Need::Refill { .. }));
    needy
        .map(|pin| {
            let mut item = moves::question(pin, standings);
            let known: HashSet<&Vec<u8>> = item.exclude.iter().chain(&pin.allocations).collect();
            let more: Vec<Vec<u8>> = saturated.iter().filter(|peer| !known.contains(peer)).cloned().collect();
            item.exclude.extend(more);
            item
        })
        .collect()
}

fn unsatisfied(pin: &types::Pin, live: usize, too_few: &monitor::TooFew) -> Unsatisfied {
    let mut reason = too_few.reasons.iter().take(REASONS_SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if reason.is_empty() {
        reason = "there are not so many other peers".to_owned();
    } else if too_few.reasons.len() > REASONS_SHOWN {
        reason.push_str(&format!("; and {} more", too_few.reasons.len() - REASONS_SHOWN));
    }
    let needed = factors(pin).map_or(0, |(min, _)| min);
    Unsatisfied { live, needed, candidates: usize::try_from(too_few.candidates).unwrap_or(0), reason }
}
