//! Whether anything may move now (protocols.md 6). PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pinfold_proto::types::peer::State;

use super::judge::Judgement;
use super::{PAUSED, STOP_LIFTED};
use crate::pinset::PeerTable;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// By this leader's configuration.
    Disabled,
    /// By an operator.
    Paused,
    /// So much is away that it is more likely the network's fault; the text says what.
    Stopped(String),
    /// So many further members are in doubt, and their verdicts are waited for.
    Waiting(usize),
}

/// What of the configuration decides here.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub is_disabled: bool,
    pub grace: Duration,
    /// Of the members; when so many are away, nothing moves.
    pub stop_fraction: f64,
    /// The tag whose values are failure domains.
    pub failure_domain: String,
}

/// Since when further verdicts are waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hold(Option<Instant>);

impl Hold {
    /// At most one more grace, however many members come and go in doubt meanwhile.
    fn waits(&mut self, is_anybody_doubted: bool, grace: Duration, now: Instant) -> bool {
        if !is_anybody_doubted {
            self.0 = None;
            return false;
        }
        let since = *self.0.get_or_insert(now);
        now.saturating_duration_since(since) < grace
    }
}

pub fn gate(
    rules: &Rules,
    peers: &PeerTable,
    settings: &BTreeMap<String, String>,
    judgement: &Judgement,
    hold: &mut Hold,
    now: Instant,
) -> Gate {
    let waits = hold.waits(!judgement.doubted.is_empty(), rules.grace, now);
    if rules.is_disabled {
        return Gate::Disabled;
    }
    if settings.contains_key(PAUSED) {
        return Gate::Paused;
    }
    if let Some(why) = too_much_away(rules, peers, judgement)
        && !is_lifted(peers, settings)
    {
        return Gate::Stopped(why);
    }
    if waits { Gate::Waiting(judgement.doubted.len()) } else { Gate::Open }
}

fn away(peers: &PeerTable) -> impl Iterator<Item = u64> {
    peers.members().filter(|row| row.state() == State::Away).map(|row| row.node_id)
}

/// Half of the members or more, or all of two failure domains or more where there are several.
fn too_much_away(rules: &Rules, peers: &PeerTable, judgement: &Judgement) -> Option<String> {
    let (members, away) = (peers.members().count(), away(peers).count());
    if away > 0 && away as f64 >= members as f64 * rules.stop_fraction {
        return Some(format!("{away} of {members} members are away"));
    }
    let mut domains: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for row in peers.members() {
        let domain = judgement.tags.get(&row.peer_id).and_then(|tags| tags.get(&rules.failure_domain));
        let Some(domain) = domain else { continue };
        let (count, gone) = domains.entry(domain).or_default();
        *count += 1;
        *gone += usize::from(row.state() == State::Away);
    }
    let lost: Vec<&str> =
        domains.iter().filter(|(_, (count, gone))| count == gone).map(|(domain, _)| *domain).collect();
    (domains.len() > 1 && lost.len() > 1).then(|| {
        format!("everybody of {} failure domains ({}={}) is away", lost.len(), rules.failure_domain, lost.join(", "))
    })
}

/// The value of `STOP_LIFTED` for those that are away now.
pub fn lift(peers: &PeerTable) -> String {
    away(peers).map(|node| format!("{node:x}")).collect::<Vec<_>>().join(",")
}

/// Lifted for those that were away then: a further one stops it again.
fn is_lifted(peers: &PeerTable, settings: &BTreeMap<String, String>) -> bool {
    let Some(lifted) = settings.get(STOP_LIFTED) else { return false };
    let lifted: BTreeSet<&str> = lifted.split(',').collect();
    away(peers).all(|node| lifted.contains(format!("{node:x}").as_str()))
}
