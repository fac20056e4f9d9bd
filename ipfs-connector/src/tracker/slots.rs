//! How many pins run at a time: `concurrent_pins` is the ceiling, and while the node is slow it is fewer (additive
//! increase, multiplicative decrease). The measure is how long the node takes to answer small questions. How long content
//! takes to come is none: content that nobody has says nothing about the node. But a pin that is done as soon as a small
//! question would be is as good as one.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Where a node that nothing is known of begins.
const FIRST_LIMIT: usize = 8;
/// A small question that is answered within this leaves room for more;
const FAST: Duration = Duration::from_millis(250);
/// one that takes longer than this asks for less.
const SLOW: Duration = Duration::from_secs(1);
/// Between two decreases: the node is given time to show what the first one did.
const DECREASE_PAUSE: Duration = Duration::from_secs(1);

/// The number, without the waiting.
#[derive(Clone, Debug)]
struct Limit {
    ceiling: usize,
    current: usize,
    /// Fast answers since the last change.
    fast: usize,
    decreased: Option<Instant>,
}

impl Limit {
    fn observe(&mut self, took: Duration, now: Instant) {
        if took > SLOW {
            self.decrease(now);
        } else if took <= FAST && self.current < self.ceiling {
            self.fast += 1;
            if self.fast >= self.current {
                self.current += 1;
                self.fast = 0;
            }
        }
    }

    fn decrease(&mut self, now: Instant) {
        self.fast = 0;
        if self.decreased.is_none_or(|at| now.duration_since(at) >= DECREASE_PAUSE) {
            self.current = (self.current / 2).max(1);
            self.decreased = Some(now);
        }
    }
}

struct State {
    limit: Limit,
    taken: usize,
}

struct Inner {
    state: Mutex<State>,
    freed: Notify,
}

/// Clones share the slots.
#[derive(Clone)]
pub struct Slots(Arc<Inner>);

/// The right to run; given back when dropped.
pub struct Slot(Slots);

impl Slots {
    /// Between one and `ceiling`, as the node can take it.
    pub fn adaptive(ceiling: usize) -> Slots {
        Slots::new(ceiling, ceiling.min(FIRST_LIMIT))
    }

    pub fn fixed(count: usize) -> Slots {
        Slots::new(count, count)
    }

    fn new(ceiling: usize, current: usize) -> Slots {
        let limit = Limit { ceiling, current, fast: 0, decreased: None };
        Slots(Arc::new(Inner { state: Mutex::new(State { limit, taken: 0 }), freed: Notify::new() }))
    }

    /// Waits for a slot.
    pub async fn take(&self) -> Slot {
        loop {
            let freed = self.0.freed.notified();
            if let Some(slot) = self.try_take() {
                return slot;
            }
            freed.await;
        }
    }

    fn try_take(&self) -> Option<Slot> {
        let mut state = self.0.state.lock();
        if state.taken >= state.limit.current {
            return None;
        }
        state.taken += 1;
        Some(Slot(self.clone()))
    }

    /// The node answered a small question after `took`.
    pub fn observe(&self, took: Duration) {
        self.change(|limit| limit.observe(took, Instant::now()));
    }

    /// A pin was done after `took`.
    pub fn pinned(&self, took: Duration) {
        if took <= FAST {
            self.observe(took);
        }
    }

    /// The node did not answer in time at all.
    pub fn too_slow(&self) {
        self.change(|limit| limit.decrease(Instant::now()));
    }

    fn change(&self, change: impl FnOnce(&mut Limit)) {
        let (before, after) = {
            let mut state = self.0.state.lock();
            let before = state.limit.current;
            change(&mut state.limit);
            (before, state.limit.current)
        };
        if after > before {
            self.0.freed.notify_one();
        } else if after < before {
            tracing::info!(slots = after, before, "the IPFS node is slow: fewer pins at a time");
        }
    }

    /// How many may run now.
    pub fn limit(&self) -> usize {
        self.0.state.lock().limit.current
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.state.lock().taken -= 1;
        self.0.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_free(slots: &Slots) -> bool {
        slots.try_take().is_some()
    }

    /// Goal: a fast node is given up to the ceiling and not one more, a slow one half, once a second, and never none.
    #[tokio::test(start_paused = true)]
    async fn seed_c12_limit_follows_the_node() {
        let slots = Slots::adaptive(20);
        assert_eq!(slots.limit(), FIRST_LIMIT);
        for _ in 0..1000 {
            slots.observe(Duration::from_millis(3));
        }
        assert_eq!(slots.limit(), 20);
        slots.observe(Duration::from_secs(2));
        slots.too_slow();
        assert_eq!(slots.limit(), 10, "one answer a second counts");
        for _ in 0..10 {
            tokio::time::advance(DECREASE_PAUSE).await;
            slots.too_slow();
        }
        assert_eq!(slots.limit(), 1);
        slots.observe(Duration::from_millis(500));
        assert_eq!(slots.limit(), 1, "neither fast nor slow");
        slots.observe(Duration::from_millis(5));
        assert_eq!(slots.limit(), 2);
        slots.pinned(Duration::from_secs(3600));
        assert_eq!(slots.limit(), 2, "content that takes long says nothing");
        for _ in 0..2 {
            slots.pinned(Duration::from_millis(5));
        }
        assert_eq!(slots.limit(), 3);
    }

    /// Goal: never more at a time than the limit, a freed slot wakes who waits, and so does a limit that rises.
    #[tokio::test]
    async fn slots_are_bounded() {
        let slots = Slots::fixed(1);
        let first = slots.take().await;
        assert!(!is_free(&slots));
        let waiting = tokio::spawn({
            let slots = slots.clone();
            async move { drop(slots.take().await) }
        });
        drop(first);
        waiting.await.unwrap();
        let rising = Slots::new(2, 1);
        let held = rising.take().await;
        let waiting = tokio::spawn({
            let slots = rising.clone();
            async move { drop(slots.take().await) }
        });
        rising.observe(Duration::ZERO);
        waiting.await.unwrap();
        drop(held);
    }
}
