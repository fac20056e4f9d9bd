//! Keeps a node that is down from being stormed (beh:B13.10): after more than ten transport failures in a row one
//! request a second goes through as a probe; the others are answered at once with what the last one ran into, so that
//! no caller sits in a line. The first answer of any kind opens the gate.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::node::{NodeError, Result};

const FAILURES_TO_CLOSE: u64 = 10;
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u64,
    last_failure: String,
    /// When a probe was let through while closed.
    probed: Option<Instant>,
}

impl Gate {
    /// Before a request: whether it may be sent now.
    pub fn enter(&self) -> Result<()> {
        let mut state = self.0.lock();
        if state.failures <= FAILURES_TO_CLOSE {
            return Ok(());
        }
        if state.probed.is_none_or(|at| at.elapsed() >= PROBE_INTERVAL) {
            state.probed = Some(Instant::now());
            return Ok(());
        }
        Err(NodeError::Down(format!(
            "ipfs node: not asked, {} requests in a row failed, the last one: {}",
            state.failures, state.last_failure
        )))
    }

    /// An answer came, with whatever status.
    pub fn answered(&self) {
        *self.0.lock() = State::default();
    }

    /// No answer came.
    pub fn failed(&self, why: &NodeError) {
        let mut state = self.0.lock();
        state.failures += 1;
        state.last_failure = why.to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: ten failures are forgiven, then one probe a second, and one answer opens again.
    #[tokio::test(start_paused = true)]
    async fn closes_and_opens() {
        let gate = Gate::default();
        let down = NodeError::Down("connection refused".into());
        for _ in 0..=FAILURES_TO_CLOSE {
            assert!(gate.enter().is_ok());
            gate.failed(&down);
        }
        assert!(gate.enter().is_ok(), "the first probe");
        gate.failed(&down);
        assert!(gate.enter().unwrap_err().to_string().contains("connection refused"));
        tokio::time::advance(PROBE_INTERVAL).await;
        assert!(gate.enter().is_ok(), "the second probe");
        gate.answered();
        for _ in 0..100 {
            assert!(gate.enter().is_ok());
        }
    }
}
