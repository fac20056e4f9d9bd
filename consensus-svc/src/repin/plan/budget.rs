//! The rate of moves, a bucket of tokens, and how much one peer may have on its way. PURE.

use std::time::{Duration, Instant};

/// Unused tokens of so long may be spent at once.
const BURST: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
pub struct Budget {
    tokens: f64,
    filled: Instant,
}

impl Budget {
    /// Empty.
    pub fn new(now: Instant) -> Budget {
        Budget { tokens: 0.0, filled: now }
    }

    /// How many moves may be made now, at `per_second`; they are not taken yet.
    pub fn available(&mut self, per_second: u32, now: Instant) -> usize {
        let rate = f64::from(per_second);
        let grown = now.saturating_duration_since(self.filled).as_secs_f64() * rate;
        self.filled = self.filled.max(now);
        // A slow rate still saves up for one move.
        self.tokens = (self.tokens + grown).min((rate * BURST.as_secs_f64()).max(1.0));
        self.tokens as usize
    }

    pub fn spend(&mut self, moves: usize) {
        self.tokens = (self.tokens - moves as f64).max(0.0);
    }
}

/// Items that one peer may have on their way: `items`, or as many as make up `bytes` when each takes
/// `mean_item_bytes` (0: unknown), and at least one.
pub fn most_per_peer(items: u64, bytes: u64, mean_item_bytes: u64) -> u64 {
    bytes.checked_div(mean_item_bytes).map_or(items, |fit| fit.clamp(1, items.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: over any time, not more is moved than the rate allows, and a long rest earns no storm.
    #[test]
    fn the_rate_holds() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut moved = 0;
        for step in 1..=1000 {
            let now = start + Duration::from_millis(step * 10);
            let available = budget.available(50, now);
            budget.spend(available);
            moved += available;
        }
        assert!((499..=500).contains(&moved), "{moved} in 10 s");
        assert_eq!(budget.available(50, start + Duration::from_secs(3600)), 25);
        let mut slow = Budget::new(start);
        assert_eq!(slow.available(1, start + Duration::from_millis(999)), 0);
        assert_eq!(slow.available(1, start + Duration::from_millis(1001)), 1);
    }

    /// Goal: whichever bound comes first holds, one item is always allowed, and an unknown size bounds nothing.
    #[test]
    fn bytes_bound_as_well() {
        assert_eq!(most_per_peer(1000, 100 << 30, 0), 1000);
        assert_eq!(most_per_peer(1000, 100 << 30, 1), 1000);
        assert_eq!(most_per_peer(1000, 100 << 30, 1 << 30), 100);
        assert_eq!(most_per_peer(1000, 100 << 30, 1 << 40), 1);
    }
}
