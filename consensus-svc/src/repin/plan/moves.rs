//! What one entry needs, what the allocator is asked for it, and what its answer means (protocols.md 7). PURE.
//!
//! Only peers change: options, metadata, expiry and type are not even read, but for the factors (seed:H9.8).

use pinfold_proto::{monitor, storage, types};

use super::{Standing, Standings, factors};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Nothing,
    /// It has fewer copies that count than its minimum.
    Refill {
        live: usize,
    },
    /// It has enough, and some holder leaves for good.
    Vacate,
}

pub fn need(pin: &types::Pin, standings: &Standings) -> Need {
    let Some((min, _)) = factors(pin) else { return Need::Nothing };
    let live = live(pin, standings);
    if live < min {
        return Need::Refill { live };
    }
    let vacates = pin.allocations.iter().any(|peer| standings.of(peer).leaves_for_good());
    if vacates { Need::Vacate } else { Need::Nothing }
}

/// Allocations that count.
pub fn live(pin: &types::Pin, standings: &Standings) -> usize {
    pin.allocations.iter().filter(|peer| standings.of(peer).counts()).count()
}

/// Whether nobody who is here has a copy.
pub fn is_lost(pin: &types::Pin, standings: &Standings) -> bool {
    pin.allocations.iter().chain(&pin.leaving).all(|peer| match standings.of(peer) {
        Standing::Away | Standing::Gone => true,
        Standing::Live | Standing::IpfsDown | Standing::Draining => false,
    })
}

/// What to ask the allocator for an entry below its minimum: fill it up to its maximum. Whoever still has a copy comes
/// first.
pub fn question(pin: &types::Pin, standings: &Standings) -> monitor::Item {
    let (min, max) = factors(pin).unwrap_or_default();
    monitor::Item {
        cid: pin.cid.clone(),
        replication_factor_min: i32::try_from(min).unwrap_or(i32::MAX),
        replication_factor_max: i32::try_from(max).unwrap_or(i32::MAX),
        current: pin.allocations.clone(),
        priority: pin.leaving.iter().filter(|peer| standings.of(peer).counts()).cloned().collect(),
        exclude: standings.unable(),
        growth: monitor::item::Growth::IfBelowMin as i32,
        size_bytes: 0,
    }
}

/// The move to `allocations`; `None` when that changes nothing.
pub fn to(pin: &types::Pin, allocations: Vec<Vec<u8>>, standings: &Standings) -> Option<storage::Move> {
    let same =
        allocations.len() == pin.allocations.len() && allocations.iter().all(|peer| pin.allocations.contains(peer));
    if same || allocations.is_empty() {
        return None;
    }
    // Whoever is gone for good keeps nothing for us.
    let keeps = |peer: &&Vec<u8>| !allocations.contains(peer) && standings.is_member(peer);
    let leaving = pin.leaving.iter().chain(&pin.allocations).filter(keeps).cloned().collect();
    Some(storage::Move { cid: pin.cid.clone(), expected_revision: pin.revision, allocations, leaving })
}

/// The move that lets go of those that leave for good, of an entry that has enough without them.
pub fn vacated(pin: &types::Pin, standings: &Standings) -> Option<storage::Move> {
    let stays = |peer: &&Vec<u8>| !standings.of(peer).leaves_for_good();
    to(pin, pin.allocations.iter().filter(stays).cloned().collect(), standings)
}
