//! When an old holder may go, and when one that returned is taken back (protocols.md 7). PURE.

use pinfold_proto::{storage, types};

use super::{Standing, Standings, factors};

/// What a holder's connector says of one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    Held,
    No,
    /// It does not answer, or has not followed the log that far.
    Unknown,
}

/// What is done about an entry that some peer is leaving.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Enough of the new ones really hold it.
    Drop(storage::Settle),
    /// A peer that returned is allocated again.
    TakeBack(storage::Move),
}

/// Whom to ask about an entry: its holders, and whoever returned with a copy perhaps.
pub fn to_ask<'a>(pin: &'a types::Pin, standings: &'a Standings) -> impl Iterator<Item = &'a Vec<u8>> {
    let reachable = |peer: &&Vec<u8>| match standings.of(peer) {
        Standing::Live | Standing::IpfsDown | Standing::Draining => true,
        Standing::Away | Standing::Gone => false,
    };
    let returned = pin.leaving.iter().filter(|peer| standings.has_returned(peer, pin));
    pin.allocations.iter().filter(reachable).chain(returned)
}

/// `copy` says what the peer's connector answered; only for those of [`to_ask`].
pub fn step(pin: &types::Pin, standings: &Standings, copy: impl Fn(&[u8]) -> Copy) -> Option<Step> {
    if pin.leaving.is_empty() {
        return None;
    }
    let Some((min, max)) = factors(pin) else { return Some(drop_all(pin)) };
    let mut returned = pin.leaving.iter().filter(|peer| standings.has_returned(peer, pin)).peekable();
    let has_room = pin.allocations.len() < max;
    if has_room && returned.peek().is_some_and(|peer| copy(peer) == Copy::Unknown) {
        // It was reached a moment ago, or it would not have returned: its connector will say.
        return None;
    }
    let back: Vec<&Vec<u8>> = returned.filter(|peer| copy(peer) == Copy::Held).collect();
    if let Some(step) = take_back(pin, &back, max, standings, &copy) {
        return Some(step);
    }
    let counting = || pin.allocations.iter().filter(|peer| standings.of(peer).counts());
    let held = counting().filter(|peer| copy(peer) == Copy::Held).count();
    // Who could stay, and goes to make room elsewhere, stays until every new copy is there.
    let is_wished = pin.leaving.iter().all(|peer| standings.of(peer).counts() && !standings.has_returned(peer, pin));
    let needed = if is_wished { counting().count().max(min) } else { min };
    (held >= needed).then(|| drop_all(pin))
}

/// Whether an item that every peer pins may lose the copy of a peer that leaves for good: `own` is what that one says,
/// `stayers` what those that stay do. What it does not hold itself is not lost with it.
pub fn outlives(own: Copy, mut stayers: impl Iterator<Item = Copy>) -> bool {
    own == Copy::No || stayers.any(|copy| copy == Copy::Held)
}

fn drop_all(pin: &types::Pin) -> Step {
    Step::Drop(storage::Settle { cid: pin.cid.clone(), expected_revision: pin.revision, drop: pin.leaving.clone() })
}

/// While there is room they are added; then they take the places of those that have no copy yet.
fn take_back(
    pin: &types::Pin,
    back: &[&Vec<u8>],
    max: usize,
    standings: &Standings,
    copy: &impl Fn(&[u8]) -> Copy,
) -> Option<Step> {
    let mut allocations = pin.allocations.clone();
    for peer in back {
        if allocations.len() < max {
            allocations.push((*peer).clone());
            continue;
        }
        let is_without = |holder: &Vec<u8>| copy(holder) == Copy::No && !back.contains(&holder);
        let Some(place) = allocations.iter().rposition(is_without) else { break };
        allocations[place] = (*peer).clone();
    }
    if allocations == pin.allocations {
        return None;
    }
    let keeps = |peer: &&Vec<u8>| !allocations.contains(peer) && standings.is_member(peer);
    let leaving = pin.leaving.iter().filter(keeps).cloned().collect();
    Some(Step::TakeBack(storage::Move { cid: pin.cid.clone(), expected_revision: pin.revision, allocations, leaving }))
}
