//! A circuit breaker, so that a node that is down is not stormed (beh:B13.10, fault:F16): after five requests without
//! an answer within half a minute, and none with one between them, it opens. While it is open, others are answered at
//! once with what the last one ran into, so that no caller sits in a line; the health probe passes, and beside it one
//! request about each second. The first answer of any kind closes it.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::node::{NodeError, Result};

const FAILURES_TO_OPEN: usize = 5;
const WINDOW: Duration = Duration::from_secs(30);
/// Between two requests that are let through while it is open: half of it to one and a half.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When the last requests failed, since the last answer.
    failures: VecDeque<Instant>,
    last_failure: String,
    /// Set while it is open.
    next_probe: Option<Instant>,
}

impl Gate {
    /// Before a request: whether it may be sent now.
    pub fn enter(&self) -> Result<()> {
        let mut state = self.0.lock();
        let Some(next_probe) = state.next_probe else { return Ok(()) };
        if Instant::now() >= next_probe {
            state.next_probe = Some(next_probe_after(Instant::now()));
            return Ok(());
        }
        Err(NodeError::Down(format!(
            "ipfs node: not asked, {FAILURES_TO_OPEN} requests in a row failed, the last one: {}",
            state.last_failure
        )))
    }

    /// An answer came, with whatever status.
    pub fn answered(&self) {
        *self.0.lock() = State::default();
    }

    /// No answer came.
    pub fn failed(&self, why: &NodeError) {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.last_failure = why.to_string();
        state.failures.push_back(now);
        if state.failures.len() > FAILURES_TO_OPEN {
            state.failures.pop_front();
        }
        let is_burst = state.failures.len() == FAILURES_TO_OPEN
            && state.failures.front().is_some_and(|first| now.duration_since(*first) <= WINDOW);
        if is_burst && state.next_probe.is_none() {
            state.next_probe = Some(next_probe_after(now));
        }
    }
}

fn next_probe_after(now: Instant) -> Instant {
    now + PROBE_INTERVAL.mul_f64(0.5 + rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: five failures within half a minute open it, one request a second goes through then, and one answer closes.
    #[tokio::test(start_paused = true)]
    async fn opens_and_closes() {
        let gate = Gate::default();
        let down = NodeError::Down("connection refused".into());
        for _ in 0..FAILURES_TO_OPEN {
            assert!(gate.enter().is_ok());
            gate.failed(&down);
        }
        assert!(gate.enter().unwrap_err().to_string().contains("connection refused"));
        for _ in 0..3 {
            tokio::time::advance(PROBE_INTERVAL * 2).await;
            assert!(gate.enter().is_ok(), "a probe");
            gate.failed(&down);
            assert!(gate.enter().is_err());
        }
        gate.answered();
        for _ in 0..100 {
            assert!(gate.enter().is_ok());
        }
    }

    /// Goal: a failure now and then is none of a node that is down.
    #[tokio::test(start_paused = true)]
    async fn rare_failures_do_not_open() {
        let gate = Gate::default();
        for _ in 0..20 {
            gate.failed(&NodeError::Timeout("late".into()));
            assert!(gate.enter().is_ok());
            tokio::time::advance(WINDOW / 3).await;
        }
    }
}
