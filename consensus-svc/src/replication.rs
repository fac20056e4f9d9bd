//! How many pins have too few copies, too many, or none at all, as the log says (`seed:H10`). Answered from this peer's
//! own state, with or without a leader, by the index of holders: looked at are the pins of peers that do not count and
//! the copies that are on their way out, never the whole pinset. Decides nothing: `repin` does.

use std::sync::Arc;
use std::time::Duration;

use pinfold_common::shutdown::Shutdown;
use pinfold_proto::types;
use pinfold_proto::types::peer::State as PeerState;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::core::Core;
use crate::store::{Facts, Result, State};

/// An answer is given again for so long.
const FRESH: Duration = Duration::from_secs(5);
/// Between two looks for the gauges.
const GAUGES_INTERVAL: Duration = Duration::from_secs(15);
/// Rows of one query.
const PAGE: usize = 250;
/// After each query a look rests for so many times what that took, within bounds: after a large loss it is about very many,
/// and looking at them is work for the thread that requests wait for.
const RESTS: u32 = 2;
const REST_AT_MOST: Duration = Duration::from_millis(5);
/// Rows of one answer; beyond that the counts are told as "at least".
const MAX_ROWS: usize = 1_000_000;

/// Numbers of pins. One that lacks every copy also counts as under-replicated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub under_replicated: u64,
    pub over_replicated: u64,
    pub lost: u64,
    /// The look was cut short: there are at least so many.
    pub is_partial: bool,
    /// Everything up to this log index is counted.
    pub index: u64,
}

/// What the log says of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Counts,
    /// Draining: it still has its copies, and they are no longer counted on.
    There,
    /// Away, removed, or never heard of.
    Gone,
}

fn standing(facts: &Facts, peer: &[u8]) -> Standing {
    match facts.peers.member(peer).map(types::Peer::state) {
        Some(PeerState::Healthy) => Standing::Counts,
        Some(PeerState::Draining) => Standing::There,
        Some(PeerState::Away | PeerState::Removed) | None => Standing::Gone,
    }
}

/// One look at a time; those who ask meanwhile get its answer.
#[derive(Default)]
pub struct Replication(Mutex<Option<(Instant, Counts)>>);

impl Replication {
    pub async fn counts(&self, state: &State) -> Result<Counts> {
        let mut known = self.0.lock().await;
        if let Some((at, counts)) = *known
            && (at.elapsed() < FRESH || counts.index == state.applied_index())
        {
            return Ok(counts);
        }
        let counts = count(state, MAX_ROWS).await?;
        *known = Some((Instant::now(), counts));
        Ok(counts)
    }
}

/// Keeps the gauges for Prometheus.
pub async fn run(core: Arc<Core>, shutdown: Shutdown) {
    let work = async {
        loop {
            match core.replication.counts(&core.state).await {
                Ok(counts) => {
                    metrics::gauge!("pinfold_consensus_pins_under_replicated").set(counts.under_replicated as f64);
                    metrics::gauge!("pinfold_consensus_pins_over_replicated").set(counts.over_replicated as f64);
                    metrics::gauge!("pinfold_consensus_pins_lost").set(counts.lost as f64);
                }
                Err(error) => tracing::warn!(%error, "count copies"),
            }
            tokio::time::sleep(GAUGES_INTERVAL).await;
        }
    };
    shutdown.race(work).await;
}

async fn count(state: &State, max_rows: usize) -> Result<Counts> {
    let mut counts = Counts { index: state.applied_index(), ..Counts::default() };
    let facts = state.facts();
    let mut rows_left = max_rows;
    for peer in state.holders().await? {
        if standing(&facts, &peer) != Standing::Counts {
            let mut after = 0;
            while rows_left > 0 {
                let started = Instant::now();
                let page = state.allocated_to(&peer, after, PAGE.min(rows_left)).await?;
                let Some(last) = page.last() else { break };
                after = last.row;
                rows_left -= page.len();
                page.iter().for_each(|holding| count_lacking(&mut counts, &facts, &peer, &holding.pin));
                rest(started).await;
            }
        }
        let mut after = 0;
        while rows_left > 0 {
            let started = Instant::now();
            let page = state.leaving(&peer, after, PAGE.min(rows_left)).await?;
            let Some(last) = page.last() else { break };
            after = last.row;
            rows_left -= page.len();
            page.iter().for_each(|holding| count_surplus(&mut counts, &facts, &peer, &holding.pin));
            rest(started).await;
        }
    }
    counts.is_partial = rows_left == 0;
    Ok(counts)
}

async fn rest(started: Instant) {
    tokio::time::sleep((started.elapsed() * RESTS).min(REST_AT_MOST)).await;
}

/// A pin that is allocated to `seen_at`, which does not count. Counted at the first such peer only.
fn count_lacking(counts: &mut Counts, facts: &Facts, seen_at: &[u8], pin: &types::Pin) {
    let is_first = pin
        .allocations
        .iter()
        .find(|peer| standing(facts, peer) != Standing::Counts)
        .is_some_and(|first| first == seen_at);
    let (Some(options), true) = (&pin.options, is_first) else { return };
    let counting = pin.allocations.iter().filter(|peer| standing(facts, peer) == Standing::Counts).count();
    let minimum = usize::try_from(options.replication_factor_min).unwrap_or(0);
    counts.under_replicated += u64::from(counting < minimum);
    let mut copies = pin.allocations.iter().chain(&pin.leaving);
    counts.lost += u64::from(!copies.any(|peer| standing(facts, peer) != Standing::Gone));
}

/// A pin that `seen_at` is leaving. Counted at the first such peer only.
fn count_surplus(counts: &mut Counts, facts: &Facts, seen_at: &[u8], pin: &types::Pin) {
    let is_first = pin.leaving.first().is_some_and(|first| first == seen_at);
    let (Some(options), true) = (&pin.options, is_first) else { return };
    let copies = pin.allocations.iter().chain(&pin.leaving);
    let there = copies.filter(|peer| standing(facts, peer) != Standing::Gone).count();
    let is_surplus = usize::try_from(options.replication_factor_max).is_ok_and(|most| there > most);
    counts.over_replicated += u64::from(is_surplus);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pinset::PeerTable;

    const PEERS: [(&str, PeerState); 4] = [
        ("a", PeerState::Healthy),
        ("b", PeerState::Healthy),
        ("drained", PeerState::Draining),
        ("gone", PeerState::Away),
    ];

    fn facts() -> Facts {
        let rows = (1..).zip(PEERS).map(|(node_id, (name, state))| {
            (node_id, types::Peer { peer_id: name.into(), node_id, state: state as i32, ..types::Peer::default() })
        });
        Facts { peers: PeerTable { rows: rows.collect(), index: 1 }, ..Facts::default() }
    }

    fn pin(factors: (i32, i32), allocations: &[&str], leaving: &[&str]) -> types::Pin {
        let bytes = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect();
        types::Pin {
            options: Some(types::PinOptions {
                replication_factor_min: factors.0,
                replication_factor_max: factors.1,
                ..types::PinOptions::default()
            }),
            allocations: bytes(allocations),
            leaving: bytes(leaving),
            ..types::Pin::default()
        }
    }

    /// As a look at the whole index counts it: under, over, lost.
    fn counted(pin: &types::Pin) -> (u64, u64, u64) {
        let (facts, mut counts) = (facts(), Counts::default());
        for peer in &pin.allocations {
            count_lacking(&mut counts, &facts, peer, pin);
        }
        for peer in &pin.leaving {
            count_surplus(&mut counts, &facts, peer, pin);
        }
        (counts.under_replicated, counts.over_replicated, counts.lost)
    }

    /// Goal: seed:H10: a pin is counted once, whichever of its peers are missing; a draining peer has its copies and does
    /// not count; a peer that is no member is gone; surplus is what is there beyond the maximum.
    #[test]
    fn seed_h10_each_pin_once() {
        for (pin, expected) in [
            (pin((2, 3), &["a", "b"], &[]), (0, 0, 0)),
            (pin((2, 3), &["a", "b", "gone"], &[]), (0, 0, 0)),
            (pin((2, 3), &["a", "gone", "stranger"], &[]), (1, 0, 0)),
            (pin((2, 2), &["gone", "stranger"], &[]), (1, 0, 1)),
            (pin((1, 1), &["drained"], &[]), (1, 0, 0)),
            (pin((1, 1), &["gone"], &["a"]), (1, 0, 0)),
            (pin((1, 1), &["a"], &["b", "drained"]), (0, 1, 0)),
            (pin((2, 2), &["a", "b"], &["gone"]), (0, 0, 0)),
            (pin((-1, -1), &[], &[]), (0, 0, 0)),
        ] {
            assert_eq!(counted(&pin), expected, "{pin:?}");
        }
    }
}
