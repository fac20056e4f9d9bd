//! What was given away and is not in anybody's metrics yet, so that a burst spreads (protocols.md 5, `beh:B9.11`).
//! PURE: the instant is passed in.
//!
//! Two accounts are kept of each peer, because they end differently:
//!
//! * **Shares**, one for each allocation, fade with a half-life, of all peers alike. They decide between peers: see
//!   `field`. Were they dropped when a peer's own metric arrives, then the peer whose metric comes first in the middle
//!   of a burst would look untouched beside the others, and would get the rest of the burst.
//! * **Bytes**, the size of the item, or while it is unknown the mean of what the peers hold, end with a metric that
//!   can know of them: the second that arrives after the allocation. The first may have been measured before the first
//!   block came.
//!
//! Bytes only order peers. An estimate never makes a peer full; a peer is full when it says so itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pinfold_common::PeerId;

/// After this time a share counts half.
pub const HALF_LIFE: Duration = Duration::from_secs(60);
/// A share that faded below this is forgotten.
const LEAST_SHARE: f64 = 1.0 / 1024.0;
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    shares: f64,
    /// Reserved since the last metric of the peer's space.
    recent_bytes: f64,
    /// Reserved between the last two.
    older_bytes: f64,
}

/// What a peer's repository holds, as its last metric of space says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    pub bytes: u64,
    pub items: u64,
}

/// The reservations of all peers, and what they hold.
#[derive(Debug)]
pub struct Ledger {
    accounts: HashMap<PeerId, Account>,
    holdings: HashMap<PeerId, Holding>,
    mean_item_bytes: f64,
    settled: Instant,
}

impl Ledger {
    pub fn new(now: Instant) -> Ledger {
        Ledger { accounts: HashMap::new(), holdings: HashMap::new(), mean_item_bytes: 0.0, settled: now }
    }

    /// Lets shares fade up to `now`. Call it before reading.
    pub fn settle(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.settled);
        self.settled = self.settled.max(now);
        let factor = 0.5_f64.powf(passed.as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.accounts.retain(|_, account| {
            account.shares *= factor;
            if account.shares < LEAST_SHARE {
                account.shares = 0.0;
            }
            account.shares > 0.0 || account.recent_bytes + account.older_bytes > 0.0
        });
    }

    pub fn reserve(&mut self, peer: PeerId, bytes: f64) {
        let account = self.accounts.entry(peer).or_default();
        account.shares += 1.0;
        account.recent_bytes += bytes;
    }

    /// A new metric of this peer's space has arrived.
    pub fn measured(&mut self, peer: &PeerId, holding: Holding) {
        if self.holdings.insert(*peer, holding) != Some(holding) {
            self.average();
        }
        if let Some(account) = self.accounts.get_mut(peer) {
            account.older_bytes = std::mem::take(&mut account.recent_bytes);
        }
    }

    /// The size of an item whose size is unknown: the repositories of all peers over their items, so more than an item
    /// takes where they hold other things as well. 0 while nobody has said that it holds any.
    pub fn mean_item_bytes(&self) -> f64 {
        self.mean_item_bytes
    }

    fn average(&mut self) {
        let holders = || self.holdings.values().filter(|holding| holding.items > 0);
        let bytes: f64 = holders().map(|holding| holding.bytes as f64).sum();
        let items: f64 = holders().map(|holding| holding.items as f64).sum();
        self.mean_item_bytes = if items > 0.0 { bytes / items } else { 0.0 };
    }

    pub fn shares(&self, peer: &PeerId) -> f64 {
        self.accounts.get(peer).map_or(0.0, |account| account.shares)
    }

    pub fn bytes(&self, peer: &PeerId) -> f64 {
        self.accounts.get(peer).map_or(0.0, |account| account.recent_bytes + account.older_bytes)
    }

    pub fn retain(&mut self, is_member: impl Fn(&PeerId) -> bool) {
        self.accounts.retain(|peer, _| is_member(peer));
        let known = self.holdings.len();
        self.holdings.retain(|peer, _| is_member(peer));
        if self.holdings.len() < known {
            self.average();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: shares fade alike for all, bytes end with the second metric after them, and nothing is kept for ever.
    #[test]
    fn reservations_end() {
        let now = Instant::now();
        let (mut ledger, a, b) = (Ledger::new(now), PeerId::random(), PeerId::random());
        for _ in 0..4 {
            ledger.reserve(a, 100.0);
        }
        ledger.reserve(b, 100.0);
        ledger.measured(&a, Holding::default());
        assert_eq!((ledger.shares(&a), ledger.bytes(&a)), (4.0, 400.0));
        ledger.reserve(a, 7.0);
        ledger.measured(&a, Holding::default());
        assert_eq!(ledger.bytes(&a), 7.0);
        ledger.measured(&a, Holding::default());
        assert_eq!(ledger.bytes(&a), 0.0);
        ledger.settle(now + HALF_LIFE);
        assert_eq!((ledger.shares(&a), ledger.shares(&b)), (2.5, 0.5));
        ledger.measured(&b, Holding::default());
        ledger.measured(&b, Holding::default());
        ledger.settle(now + HALF_LIFE * 30);
        assert!(ledger.accounts.is_empty());
    }

    /// Goal: the mean is what all peers hold over their items, by their last metrics; a peer without items says nothing
    /// of their size, and one that is no member any more does not count.
    #[test]
    fn mean_of_sizes() {
        let (mut ledger, a, b) = (Ledger::new(Instant::now()), PeerId::random(), PeerId::random());
        assert_eq!(ledger.mean_item_bytes(), 0.0);
        ledger.measured(&a, Holding { bytes: 5000, items: 0 });
        assert_eq!(ledger.mean_item_bytes(), 0.0);
        ledger.measured(&a, Holding { bytes: 8000, items: 8 });
        assert_eq!(ledger.mean_item_bytes(), 1000.0);
        ledger.measured(&b, Holding { bytes: 1000, items: 1 });
        ledger.measured(&b, Holding { bytes: 10_000, items: 2 });
        assert_eq!(ledger.mean_item_bytes(), 1800.0);
        ledger.retain(|peer| *peer == b);
        assert_eq!(ledger.mean_item_bytes(), 5000.0);
    }
}
