//! What the own monitor knows, in the words of the public API: the same for REST and gRPC.

use pinfold_common::Result;
use pinfold_proto::api;
use pinfold_proto::monitor::{Alert, AlertsCall};

use crate::cluster::{Cluster, READ_DEADLINE, ask};

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
