//! The waiting pool (protocols.md 8): a slot is for work that moves. An attempt that waits for its first block gives
//! its slot back and waits here, so that CIDs nobody has do not hold up good ones. When the pool is full the one that
//! waited longest gives up for now; its back-off brings it back.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Attempts that wait without a slot.
pub const MAX_ASIDE: usize = 256;

#[derive(Default)]
struct State {
    next: u64,
    waiting: BTreeMap<u64, CancellationToken>,
}

/// Clones share the pool.
#[derive(Clone, Default)]
pub struct Aside(Arc<Mutex<State>>);

/// A place in the pool; dropping it leaves.
pub struct Place {
    pool: Aside,
    number: u64,
    /// Cancelled when somebody else needs the place more.
    pub evicted: CancellationToken,
}

impl Aside {
    pub fn enter(&self) -> Place {
        let mut state = self.0.lock();
        if state.waiting.len() >= MAX_ASIDE
            && let Some((_, oldest)) = state.waiting.pop_first()
        {
            oldest.cancel();
        }
        let number = state.next;
        state.next += 1;
        let evicted = CancellationToken::new();
        state.waiting.insert(number, evicted.clone());
        Place { pool: self.clone(), number, evicted }
    }

    pub fn len(&self) -> usize {
        self.0.lock().waiting.len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.0.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the pool is bounded, the oldest goes first, and who leaves makes room.
    #[test]
    fn oldest_is_evicted() {
        let pool = Aside::default();
        let mut places: Vec<Place> = (0..MAX_ASIDE).map(|_| pool.enter()).collect();
        assert!(places.iter().all(|place| !place.evicted.is_cancelled()));
        places.remove(5);
        let further = pool.enter();
        assert!(places.iter().all(|place| !place.evicted.is_cancelled()));
        let one_more = pool.enter();
        assert!(places[0].evicted.is_cancelled() && !places[1].evicted.is_cancelled());
        assert_eq!(pool.len(), MAX_ASIDE);
        drop((places, further, one_more));
        assert_eq!(pool.len(), 0);
    }
}
