//! The node's own small loops: they turn the library's metrics into `RaftStatus`, and cut the log.

use std::time::{Duration, Instant};

use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::RaftConfig;
use super::contact::Contacts;
use super::status::{RaftStatus, Role, status_of};
use super::types::{Raft, Types};
use crate::store::State;

/// The least time between two looks at the metrics: each entry changes them several times, and each look wakes whoever
/// waits for a status. Another role, term or leader is looked at at once.
const PACE: Duration = Duration::from_millis(10);
/// The backlog is looked at so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// So many thresholds of backlog do not wait for the interval.
const PRESSING: u64 = 16;

/// Whether the metrics are of a node that was in a cluster.
pub fn knows_something(metrics: &RaftMetrics<Types>) -> bool {
    metrics.last_log_index.is_some() || metrics.current_term > 0
}

/// Starts both; they end with the node.
pub fn spawn(
    raft: &Raft,
    state: &State,
    config: &RaftConfig,
    contacts: &Contacts,
    stopping: &CancellationToken,
) -> watch::Receiver<RaftStatus> {
    let patience = 2 * config.election_timeout_max;
    let first = status_of(&raft.metrics().borrow_watched(), state.meta().applied, contacts, patience);
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(publish(raft.clone(), state.clone(), config.clone(), contacts.clone(), sender, stopping.clone()));
    tokio::spawn(cut_log(raft.clone(), config.clone(), receiver.clone(), stopping.clone()));
    receiver
}

async fn publish(
    raft: Raft,
    state: State,
    config: RaftConfig,
    contacts: Contacts,
    status: watch::Sender<RaftStatus>,
    stopping: CancellationToken,
) {
    let patience = 2 * config.election_timeout_max;
    let mut metrics = raft.metrics();
    let mut server = raft.server_metrics();
    let mut applied = state.applied();
    loop {
        applied.mark_unchanged();
        let now = status_of(&metrics.borrow_watched(), state.meta().applied, &contacts, patience);
        let has_ended = now.role == Role::Stopped;
        contacts.retain(|node_id| now.is_member(node_id));
        status.send_if_modified(|before| {
            let is_changed = *before != now;
            *before = now;
            is_changed
        });
        if has_ended {
            return;
        }
        // Whether a majority answers changes with time alone, too.
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() {
                status.send_modify(|status| status.role = Role::Stopped);
                return;
            },
            // The state is never gone before this loop, which has it.
            Ok(()) = applied.changed() => {}
            () = tokio::time::sleep(config.heartbeat_interval) => {}
            () = stopping.cancelled() => {
                status.send_modify(|status| status.role = Role::Stopped);
                return;
            }
        }
        // Its end is seen by the next look.
        let _ = tokio::time::timeout(PACE, server.changed()).await;
    }
}

/// Asks for a checkpoint, behind which the log is purged, when enough was applied since the last one. It is refused
/// while a snapshot is being sent, and asked for again.
async fn cut_log(raft: Raft, config: RaftConfig, status: watch::Receiver<RaftStatus>, stopping: CancellationToken) {
    let mut last = Instant::now();
    let look = LOOK_INTERVAL.min(config.snapshot_interval);
    while stopping.run_until_cancelled(tokio::time::sleep(look)).await.is_some() {
        let backlog = {
            let status = status.borrow();
            if status.role == Role::Stopped {
                return;
            }
            status.applied_index.saturating_sub(status.snapshot_index)
        };
        let is_due = backlog >= config.snapshot_threshold && last.elapsed() >= config.snapshot_interval;
        if is_due || backlog >= config.snapshot_threshold.saturating_mul(PRESSING) {
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            last = Instant::now();
        }
    }
}
