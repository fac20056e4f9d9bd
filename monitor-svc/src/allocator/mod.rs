//! Where a pin goes: `beh:B9` in full, with the balance of a burst (protocols.md 5). PURE: peers, metrics and
//! reservations come in as a `Field`, nothing is looked up.
//!
//! Two questions are kept apart. *Does it hold it?* is asked of the current holders: a member that is neither away nor
//! draining counts, whatever its metrics say, so that a full disk or a monitor that was restarted moves no copies.
//! *May it get more?* is asked of everybody else: alive, with every metric of `allocate_by` valid and fresh. (The
//! original asks the second question for both, `beh:B9.3`, and drops the copies of a full peer.)

mod field;
mod ledger;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use pinfold_common::PeerId;
pub use pinfold_proto::monitor::item::Growth;

pub use field::{Field, MAX_LEVELS, Measured, Row, Standing};
pub use ledger::{HALF_LIFE, Holding, Ledger};

use field::{Block, hash_bytes};

/// Items in one request.
pub const MAX_ITEMS: usize = 1000;
/// Peers named with their reason when there are too few; the rest is counted.
pub const MAX_REASONS: usize = 100;

/// One pin that needs peers.
#[derive(Clone, Debug)]
pub struct Item {
    /// Empty for an add, whose root is not known yet.
    pub cid: Vec<u8>,
    pub factors: Factors,
    /// Holders now, as stored.
    pub current: Vec<PeerId>,
    /// The user's wishes, best effort (`beh:B9.6`).
    pub priority: Vec<PeerId>,
    pub exclude: Vec<PeerId>,
    pub growth: Growth,
    /// 0: unknown.
    pub size_bytes: u64,
}

/// Replication factors, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    Everywhere,
    /// 1 ≤ min ≤ max.
    Between {
        min: usize,
        max: usize,
    },
}

impl Factors {
    /// beh:B8.4, beh:B9.1: defaults are applied before, so 0 is refused.
    pub fn parse(min: i32, max: i32) -> Result<Factors, String> {
        match (usize::try_from(min), usize::try_from(max)) {
            (Err(_), Err(_)) if min == -1 && max == -1 => Ok(Factors::Everywhere),
            (Ok(low), Ok(high)) if 1 <= low && low <= high => Ok(Factors::Between { min: low, max: high }),
            _ => Err(format!("replication factors {min} to {max} contradict each other")),
        }
    }
}

/// Where one item goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Empty: everywhere.
    Peers(Vec<PeerId>),
    TooFew(TooFew),
}

/// beh:B9.4.3
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooFew {
    pub needed: usize,
    pub wanted: usize,
    pub candidates: usize,
    /// Per peer left out, why.
    pub reasons: Vec<String>,
    /// Of those left out, how many for want of space alone.
    pub full: usize,
}

/// Decides a batch in order; each item sees what the ones before it were given.
pub fn allocate(field: &mut Field, items: &[Item]) -> Vec<Outcome> {
    items.iter().map(|item| allocate_one(field, item)).collect()
}

fn allocate_one(field: &mut Field, item: &Item) -> Outcome {
    match item.factors {
        Factors::Everywhere => match item.growth {
            Growth::ToMax | Growth::IfBelowMin => Outcome::Peers(Vec::new()),
            Growth::ForBlocks => every_live_peer(field),
        },
        Factors::Between { min, max } => allocate_between(field, item, min, max),
    }
}

/// beh:B9.9: the blocks of an add that will be pinned everywhere go to all who are there to take them.
fn every_live_peer(field: &Field) -> Outcome {
    let is_there = |standing| match standing {
        Standing::Live | Standing::Hampered => true,
        Standing::Suspect | Standing::NotHeard | Standing::Draining | Standing::Away => false,
    };
    let peers: Vec<PeerId> = field.peers.iter().filter(|peer| is_there(peer.standing)).map(|peer| peer.id).collect();
    if peers.is_empty() {
        let reasons = reasons(field, &HashSet::new(), &[]);
        return Outcome::TooFew(TooFew { needed: 1, wanted: field.peers.len(), candidates: 0, reasons, full: 0 });
    }
    Outcome::Peers(peers)
}

/// beh:B9.4
fn allocate_between(field: &mut Field, item: &Item, min: usize, max: usize) -> Outcome {
    let cid_hash = hash_bytes(&item.cid);
    let classes = classify(field, item);
    let held = classes.current.len();
    if held > max {
        let kept = keep_best(field, &classes.current, max, cid_hash);
        return Outcome::Peers(item.current.iter().copied().filter(|peer| kept.contains(peer)).collect());
    }
    let stored = deduplicated(&item.current);
    match item.growth {
        Growth::IfBelowMin if held >= min => return Outcome::Peers(stored),
        Growth::IfBelowMin | Growth::ToMax | Growth::ForBlocks => {}
    }
    let (needed, wanted) = (min.saturating_sub(held), max - held);
    let candidates = classes.priority.len() + classes.candidates.len() + classes.hampered.len();
    if candidates < needed {
        let excluded: HashSet<PeerId> = item.exclude.iter().copied().collect();
        let reasons = reasons(field, &excluded, &classes.current);
        let full = count_full(field, &excluded, &classes.current);
        return Outcome::TooFew(TooFew { needed, wanted, candidates, reasons, full });
    }
    let mut picks: Vec<u32> = Vec::new();
    for class in [&classes.priority, &classes.candidates, &classes.hampered] {
        picks.extend(field.order(class, wanted - picks.len(), cid_hash));
    }
    if picks.is_empty() {
        // Nothing to add and enough are left: those that are away stay listed while there is room for them.
        let kept: Vec<PeerId> = stored.into_iter().filter(|peer| !item.exclude.contains(peer)).collect();
        let valid = || classes.current.iter().map(|index| field.peer(*index).id).collect();
        return Outcome::Peers(if kept.len() <= max { kept } else { valid() });
    }
    let bytes = if item.size_bytes > 0 { item.size_bytes as f64 } else { field.mean_item_bytes };
    for pick in &picks {
        field.take(*pick, bytes);
    }
    Outcome::Peers(classes.current.iter().chain(&picks).map(|index| field.peer(*index).id).collect())
}

/// beh:B9.3, the first that fits: excluded, holder, wished for, candidate; those that are asked last apart.
#[derive(Debug, Default)]
struct Classes {
    /// In the order in which they are stored.
    current: Vec<u32>,
    priority: Vec<u32>,
    candidates: Vec<u32>,
    hampered: Vec<u32>,
}

fn classify(field: &Field, item: &Item) -> Classes {
    let indices = |peers: &[PeerId]| peers.iter().filter_map(|peer| field.find(peer)).collect::<Vec<u32>>();
    let excluded: HashSet<u32> = indices(&item.exclude).into_iter().collect();
    let wished: HashSet<u32> = indices(&item.priority).into_iter().collect();
    let mut listed: HashSet<u32> = HashSet::new();
    let mut classes = Classes::default();
    for index in indices(&item.current) {
        if listed.insert(index) && !excluded.contains(&index) && counts_as_holder(field.peer(index).standing) {
            classes.current.push(index);
        }
    }
    let is_free = |index: &u32| !is_in(&excluded, *index) && !is_in(&listed, *index);
    let live = field.live.iter().copied().filter(is_free);
    (classes.priority, classes.candidates) = live.partition(|index| is_in(&wished, *index));
    classes.hampered = field.hampered.iter().copied().filter(is_free).collect();
    classes
}

/// Most sets are empty: their hashes are not worth computing for each of a thousand peers.
fn is_in(set: &HashSet<u32>, index: u32) -> bool {
    !set.is_empty() && set.contains(&index)
}

fn counts_as_holder(standing: Standing) -> bool {
    match standing {
        Standing::Live | Standing::Hampered | Standing::Suspect | Standing::NotHeard => true,
        Standing::Draining | Standing::Away => false,
    }
}

/// Shrinking drops the worst by the same order (`beh:B9.11`): peers that may get more come first, then those that may
/// not (a full disk), then those in doubt.
fn keep_best(field: &Field, current: &[u32], max: usize, cid_hash: u64) -> HashSet<PeerId> {
    let rank = |index: &u32| match field.peer(*index).block {
        None => 0,
        Some(Block::Absent(_) | Block::Expired(_) | Block::Invalid(_) | Block::NoMetric) => 1,
        Some(Block::Standing(_)) => 2,
    };
    let mut kept: Vec<u32> = Vec::new();
    for wanted_rank in 0..=2 {
        let ranked: Vec<u32> = current.iter().copied().filter(|index| rank(index) == wanted_rank).collect();
        kept.extend(field.order(&ranked, max - kept.len(), cid_hash));
    }
    kept.into_iter().map(|index| field.peer(index).id).collect()
}

fn deduplicated(peers: &[PeerId]) -> Vec<PeerId> {
    let mut seen = HashSet::new();
    peers.iter().copied().filter(|peer| seen.insert(*peer)).collect()
}

/// Peers that would be candidates if they had space.
fn count_full(field: &Field, excluded: &HashSet<PeerId>, current: &[u32]) -> usize {
    let left_out = (0..).zip(&field.peers).filter(|(index, peer)| {
        let is_full = peer.block.is_some_and(|block| field.is_want_of_space(block));
        is_full && !current.contains(index) && !excluded.contains(&peer.id)
    });
    left_out.count()
}

fn reasons(field: &Field, excluded: &HashSet<PeerId>, current: &[u32]) -> Vec<String> {
    let left_out =
        (0..).zip(&field.peers).filter(|(index, _)| !current.contains(index)).filter_map(|(_, peer)| {
            match (excluded.contains(&peer.id), peer.block) {
                (true, _) => Some(format!("{}: excluded by the request", peer.id)),
                (false, Some(block)) => Some(format!("{}: {}", peer.id, field.explain(block))),
                (false, None) => None,
            }
        });
    let mut reasons: Vec<String> = left_out.collect();
    if reasons.len() > MAX_REASONS {
        let more = reasons.len() - MAX_REASONS;
        reasons.truncate(MAX_REASONS);
        reasons.push(format!("and {more} more"));
    }
    reasons
}
