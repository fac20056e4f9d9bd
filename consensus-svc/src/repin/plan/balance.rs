//! Which copies move from full peers to empty ones (`ctl rebalance`). PURE.
//!
//! Even is meant by number of items: what an item weighs is not known to the cluster. Which of the empty peers gets a
//! copy is the allocator's choice, as for every pin, so that free space and tags count here too.

use std::collections::BTreeMap;

use pinfold_proto::{monitor, storage, types};

use super::moves;
use super::{Standings, factors};

/// Peers that differ by no more than this share of what they should hold, in percent, are left alone,
const TOLERATED_PERCENT: u64 = 2;
/// and by so few items always.
const TOLERATED_ITEMS: u64 = 2;

/// How many items are allocated to each peer that takes part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loads(BTreeMap<Vec<u8>, u64>);

impl FromIterator<(Vec<u8>, u64)> for Loads {
    fn from_iter<T: IntoIterator<Item = (Vec<u8>, u64)>>(counts: T) -> Loads {
        Loads(counts.into_iter().collect())
    }
}

impl Loads {
    /// An even part, rounded down, and how many peers hold one more, because it does not divide.
    fn even(&self) -> (u64, u64) {
        let (total, peers) = (self.0.values().sum::<u64>(), self.0.len() as u64);
        (total.checked_div(peers).unwrap_or(0), total.checked_rem(peers).unwrap_or(0))
    }

    /// An even part, rounded up.
    pub fn share(&self) -> u64 {
        let (part, over) = self.even();
        part + u64::from(over > 0)
    }

    /// Who may keep one more than the even part: those that have it already, as many as there are such parts.
    fn keeps_one_more(&self, peer: &[u8]) -> bool {
        let (part, over) = self.even();
        let fuller = self.0.iter().filter(|(_, count)| **count > part);
        fuller.take(usize::try_from(over).unwrap_or(usize::MAX)).any(|(known, _)| known == peer)
    }

    /// Nothing is worth moving.
    pub fn are_even(&self) -> bool {
        let (least, most) = (self.0.values().min(), self.0.values().max());
        let apart = most.zip(least).map_or(0, |(most, least)| most - least);
        apart <= TOLERATED_ITEMS.max(self.share() * TOLERATED_PERCENT / 100)
    }

    /// What a peer ends with.
    pub fn share_of(&self, peer: &[u8]) -> u64 {
        self.even().0 + u64::from(self.keeps_one_more(peer))
    }

    /// Copies above the shares, which are those that have to move.
    pub fn excess(&self) -> u64 {
        self.0.keys().map(|peer| self.excess_of(peer)).sum()
    }

    pub fn excess_of(&self, peer: &[u8]) -> u64 {
        self.0.get(peer).map_or(0, |count| count.saturating_sub(self.share_of(peer)))
    }

    /// The fullest that may give something, without those that have nothing to give.
    pub fn giver(&self, without: impl Fn(&[u8]) -> bool) -> Option<&Vec<u8>> {
        let may_give = |(peer, _): &(&Vec<u8>, &u64)| self.excess_of(peer) > 0 && !without(peer);
        self.0.iter().filter(may_give).max_by_key(|(_, count)| **count).map(|(peer, _)| peer)
    }

    /// Those below the even part come first; one more than that is for as many as are left over when none is below.
    pub fn takes(&self, peer: &[u8]) -> bool {
        let (part, over) = self.even();
        let is_below = |count: &u64| *count < part;
        let Some(count) = self.0.get(peer) else { return false };
        let fuller = self.0.values().filter(|count| **count > part).count() as u64;
        is_below(count) || (*count == part && fuller < over && !self.0.values().any(is_below))
    }

    /// Whether anybody takes something, without those that have enough on their way.
    pub fn has_taker(&self, without: &[Vec<u8>]) -> bool {
        self.0.keys().any(|peer| self.takes(peer) && !without.contains(peer))
    }

    pub fn shift(&mut self, from: &[u8], to: &[u8]) {
        if let Some(count) = self.0.get_mut(from) {
            *count = count.saturating_sub(1);
        }
        if let Some(count) = self.0.get_mut(to) {
            *count += 1;
        }
    }
}

/// Whether `giver` may give this item away: it is whole and at rest.
pub fn may_move(pin: &types::Pin, giver: &[u8], standings: &Standings) -> bool {
    factors(pin).is_some()
        && pin.leaving.is_empty()
        && pin.allocations.iter().any(|peer| peer == giver)
        && moves::live(pin, standings) == pin.allocations.len()
}

/// What to ask the allocator: one more holder beside the others, among those that take something.
pub fn question(
    pin: &types::Pin,
    giver: &[u8],
    loads: &Loads,
    standings: &Standings,
    saturated: &[Vec<u8>],
) -> monitor::Item {
    let current: Vec<Vec<u8>> = pin.allocations.iter().filter(|peer| *peer != giver).cloned().collect();
    let is_out = |peer: &&Vec<u8>| !current.contains(peer) && (!loads.takes(peer) || saturated.contains(peer));
    let copies = i32::try_from(pin.allocations.len()).unwrap_or(i32::MAX);
    let mut exclude = standings.unable();
    exclude.extend(standings.live().filter(is_out).cloned());
    monitor::Item {
        cid: pin.cid.clone(),
        replication_factor_min: copies,
        replication_factor_max: copies,
        current,
        priority: Vec::new(),
        exclude,
        growth: monitor::item::Growth::IfBelowMin as i32,
        size_bytes: 0,
    }
}

/// The move to what the allocator answered, and who gets the copy; `None` when that is not one copy from the giver to a
/// peer that still takes something.
pub fn moved(
    pin: &types::Pin,
    giver: &[u8],
    answer: Vec<Vec<u8>>,
    loads: &Loads,
    standings: &Standings,
) -> Option<(storage::Move, Vec<u8>)> {
    let stays = pin.allocations.iter().filter(|peer| *peer != giver).all(|peer| answer.contains(peer));
    let mut new = answer.iter().filter(|peer| !pin.allocations.contains(peer));
    let (Some(taker), None) = (new.next().cloned(), new.next()) else { return None };
    if !stays || answer.len() != pin.allocations.len() || !loads.takes(&taker) {
        return None;
    }
    Some((moves::to(pin, answer, standings)?, taker))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pinset::{self, View};

    fn id(peer: u8) -> Vec<u8> {
        vec![peer]
    }

    fn loads(counts: &[u64]) -> Loads {
        (1..).zip(counts).map(|(peer, count)| (id(peer), *count)).collect()
    }

    fn standings(peers: u8) -> Standings {
        let founder = |peer: u8| types::Peer {
            peer_id: id(peer),
            node_id: u64::from(peer),
            voter: true,
            ..types::Peer::default()
        };
        let found = storage::Found { cluster_id: b"c".to_vec(), founders: (1..=peers).map(founder).collect() };
        let command = storage::Command {
            at: Some(pinfold_common::time::Timestamp::from_seconds(1).into()),
            request_key: Vec::new(),
            command: Some(storage::command::Command::Found(found)),
        };
        let mut view = View::default();
        pinset::apply(&mut view, 1, &command).unwrap();
        Standings::new(&view.peers, &BTreeSet::new())
    }

    fn pin(allocations: &[u8], max: i32) -> types::Pin {
        types::Pin {
            cid: b"cid".to_vec(),
            allocations: allocations.iter().map(|peer| id(*peer)).collect(),
            options: Some(types::PinOptions {
                replication_factor_min: 1.min(max),
                replication_factor_max: max,
                ..types::PinOptions::default()
            }),
            revision: 7,
            ..types::Pin::default()
        }
    }

    /// Goal: what is even enough is left alone, so that nothing goes to and fro.
    #[test]
    fn a_dead_band() {
        for even in [&[][..], &[5], &[0, 0], &[5, 3, 4], &[1000, 990, 985]] {
            assert!(loads(even).are_even(), "{even:?}");
        }
        for uneven in [&[3, 0][..], &[1000, 1000, 970], &[90, 0, 0]] {
            assert!(!loads(uneven).are_even(), "{uneven:?}");
        }
    }

    /// Goal: from any loads, giving from the fullest to whoever takes ends after as many moves as are needed, with all
    /// within one item of each other.
    #[test]
    fn giving_ends_evenly() {
        let nine = [&[100; 9][..], &[1]].concat();
        let many = [&[40; 24][..], &[1]].concat();
        for counts in [&[90, 0, 0][..], &[5, 3, 2], &[10, 10, 10, 0], &[1, 7, 7, 9, 100], &nine, &many] {
            let mut loads = loads(counts);
            let mut steps = 0;
            let needed = loads.excess();
            while let Some(giver) = loads.giver(|_| false).cloned() {
                let taker = loads.0.keys().find(|peer| loads.takes(peer)).cloned().expect("who gives has a taker");
                loads.shift(&giver, &taker);
                steps += 1;
            }
            assert_eq!(steps, needed, "{counts:?}: not one move more than needed");
            let (least, most) = (loads.0.values().min().unwrap(), loads.0.values().max().unwrap());
            assert!(loads.are_even() && most - least <= 1, "{counts:?}: {loads:?}");
        }
    }

    /// Goal: only a whole item at rest moves, and none that everybody holds.
    #[test]
    fn what_may_move() {
        let standings = standings(3);
        assert!(may_move(&pin(&[1, 2], 2), &id(1), &standings));
        assert!(!may_move(&pin(&[2, 3], 2), &id(1), &standings), "it is not there");
        assert!(!may_move(&pin(&[], -1), &id(1), &standings), "everybody holds it");
        assert!(!may_move(&pin(&[1, 9], 2), &id(1), &standings), "another holder is not a member");
        let leaving = types::Pin { leaving: vec![id(3)], ..pin(&[1, 2], 2) };
        assert!(!may_move(&leaving, &id(1), &standings), "it is on its way already");
    }

    /// Goal: one copy goes to a peer that takes something, the others stay, the giver keeps its copy until then.
    #[test]
    fn one_copy_moves() {
        let (standings, loads) = (standings(4), loads(&[9, 5, 5, 1]));
        let item = pin(&[1, 2], 3);
        let asked = question(&item, &id(1), &loads, &standings, &[]);
        assert_eq!((asked.replication_factor_min, asked.replication_factor_max), (2, 2), "no more copies than it has");
        assert_eq!((asked.current, asked.exclude), (vec![id(2)], vec![id(1), id(3)]));
        assert!(question(&item, &id(1), &loads, &standings, &[id(4)]).exclude.contains(&id(4)), "it has enough to do");

        let (step, taker) = moved(&item, &id(1), vec![id(2), id(4)], &loads, &standings).unwrap();
        assert_eq!((step.allocations, step.leaving, step.expected_revision), (vec![id(2), id(4)], vec![id(1)], 7));
        assert_eq!(taker, id(4));
        for wrong in
            [vec![id(2)], vec![id(2), id(3)], vec![id(3), id(4)], vec![id(2), id(3), id(4)], vec![id(1), id(2)]]
        {
            assert_eq!(moved(&item, &id(1), wrong.clone(), &loads, &standings), None, "{wrong:?}");
        }
    }
}
