//! What the own monitor knows of the cluster, and the own consensus of its pins, in the words of the public API: the same
//! for REST and gRPC.

use pinfold_common::ids::peer_from_bytes;
use pinfold_common::peerset::{PeerState, View};
use pinfold_common::{Error, Result};
use pinfold_proto::api;
use pinfold_proto::consensus::{ReplicationCall, ReplicationReply};
use pinfold_proto::monitor::verdict::State;
use pinfold_proto::monitor::{Alert, AlertsCall, Verdict, VerdictsCall};

use crate::cluster::{Cluster, READ_DEADLINE, ask};

/// A count may have to look at every pin of a peer that is gone.
const COUNT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// Newest first.
pub async fn alerts(cluster: &Cluster) -> Result<Vec<api::Alert>> {
    let mut monitor = cluster.monitor();
    let reply = ask("ask for alerts", READ_DEADLINE, monitor.alerts(AlertsCall {})).await?;
    Ok(reply.alerts.into_iter().map(public_alert).collect())
}

fn public_alert(alert: Alert) -> api::Alert {
    let Alert { metric, triggered_at, resolved_at, what, peer_id, subject } = alert;
    api::Alert { peer_id, subject, what, metric, triggered_at, resolved_at }
}

/// How the cluster is. What a service that does not answer would have said is missing, with its error in the place.
pub async fn summary(cluster: &Cluster) -> api::SummaryReply {
    let (mut pins, mut monitor) = (cluster.pins(), cluster.monitor());
    let counted = ask("count copies", COUNT_DEADLINE, pins.replication(ReplicationCall {}));
    let judged = ask("ask for verdicts", READ_DEADLINE, monitor.verdicts(VerdictsCall {}));
    let (counted, judged, alerts) = tokio::join!(counted, judged, alerts(cluster));
    let told = judged.and_then(|reply| Ok((reply.verdicts, alerts?)));
    compose(&cluster.view(), counted, told)
}

fn compose(
    view: &View,
    counted: Result<ReplicationReply>,
    told: Result<(Vec<Verdict>, Vec<api::Alert>)>,
) -> api::SummaryReply {
    let words = |error: Error| error.message;
    let (counts, pins_error) = match counted {
        Ok(counts) => (counts, String::new()),
        Err(error) => (ReplicationReply::default(), words(error)),
    };
    let ((verdicts, mut alerts), monitor_error) = match told {
        Ok(told) => (told, String::new()),
        Err(error) => (Default::default(), words(error)),
    };
    alerts.retain(|alert| alert.resolved_at.is_none());
    api::SummaryReply {
        pins: counts.pins,
        under_replicated: counts.under_replicated,
        over_replicated: counts.over_replicated,
        lost: counts.lost,
        at_least: counts.partial,
        pins_error,
        peers: verdicts.into_iter().map(|verdict| peer_health(view, verdict)).collect(),
        firing: alerts,
        monitor_error,
    }
}

fn peer_health(view: &View, verdict: Verdict) -> api::PeerHealth {
    let row = peer_from_bytes(&verdict.peer_id).ok().and_then(|peer| view.peerset.get(&peer));
    let is_draining = row.is_some_and(|row| row.state == PeerState::Draining);
    let state = match (verdict.state(), is_draining) {
        (State::Healthy | State::Unspecified, true) => "draining",
        (State::Healthy, false) => "healthy",
        (State::Suspect, _) => "suspect",
        (State::Away, _) => "away",
        (State::Unspecified, false) => "unknown",
    };
    api::PeerHealth {
        peer_id: verdict.peer_id,
        peername: verdict.peername,
        state: state.to_owned(),
        ipfs_down: verdict.ipfs_down,
        degraded: verdict.degraded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what one service says is told without the other one, and what is over is not told as firing.
    #[test]
    fn seed_h10_what_is_not_known_is_told_as_that() {
        let counts = ReplicationReply { pins: 9, lost: 2, ..ReplicationReply::default() };
        let summary = compose(&View::default(), Ok(counts), Err(Error::unavailable("monitor is away")));
        assert_eq!((summary.pins, summary.lost, summary.monitor_error.as_str()), (9, 2, "monitor is away"));
        let over = api::Alert { resolved_at: Some(Default::default()), ..api::Alert::default() };
        let verdict = Verdict { state: State::Suspect as i32, ipfs_down: true, ..Verdict::default() };
        let told = Ok((vec![verdict], vec![over, api::Alert::default()]));
        let summary = compose(&View::default(), Err(Error::unavailable("consensus is away")), told);
        assert_eq!((summary.firing.len(), summary.pins_error.as_str()), (1, "consensus is away"));
        assert_eq!((summary.peers[0].state.as_str(), summary.peers[0].ipfs_down), ("suspect", true));
    }
}
