//! `/monitor`, `/health/…` and `/ipfs/gc`.

use pinfold_common::json::{AlertJson, MetricJson};
use pinfold_common::time::Timestamp;
use pinfold_common::{PeerId, Result};
use pinfold_proto::monitor::{Alert, AlertsCall, LatestMetricsCall, MetricNamesCall};

use super::Call;
use super::respond::{self, Answer};
use crate::cluster::{READ_DEADLINE, ask};
use crate::fanout::{self, Scope};

impl Call<'_> {
    pub(super) async fn metric_names(&self) -> Result<Answer> {
        let mut monitor = self.rest.cluster.monitor();
        let reply = ask("ask for metrics", READ_DEADLINE, monitor.metric_names(MetricNamesCall {})).await?;
        Ok(respond::json(&reply.names))
    }

    pub(super) async fn metrics(&self, name: &str) -> Result<Answer> {
        let mut monitor = self.rest.cluster.monitor();
        let call = monitor.latest_metrics(LatestMetricsCall { name: name.to_owned() });
        let reply = ask("ask for metrics", READ_DEADLINE, call).await?;
        let metrics: Vec<MetricJson> = reply.metrics.iter().map(MetricJson::try_from).collect::<Result<_>>()?;
        Ok(respond::json(&metrics))
    }

    pub(super) async fn alerts(&self) -> Result<Answer> {
        let mut monitor = self.rest.cluster.monitor();
        let reply = ask("ask for alerts", READ_DEADLINE, monitor.alerts(AlertsCall {})).await?;
        let own = self.rest.cluster.own;
        let alerts: Vec<AlertJson> = reply.alerts.iter().map(|alert| alert_json(alert, &own)).collect::<Result<_>>()?;
        Ok(respond::json(&alerts))
    }

    pub(super) async fn graph(&self) -> Result<Answer> {
        Ok(respond::json(&fanout::graph(&self.rest.cluster).await))
    }

    pub(super) async fn gc(&self) -> Result<Answer> {
        let scope = Scope::of(self.query.is_true("local"));
        Ok(respond::json(&fanout::gc(&self.rest.cluster, scope).await?))
    }
}

/// The original's alerts are all about a metric. One of ours that is not has its text as the metric's name, and the
/// peer that raised it: an empty peer ID breaks Go clients.
fn alert_json(alert: &Alert, own: &PeerId) -> Result<AlertJson> {
    let metric = match &alert.metric {
        Some(metric) if !metric.peer.is_empty() => MetricJson::try_from(metric)?,
        Some(_) | None => MetricJson {
            name: alert.what.clone(),
            peer: own.to_string(),
            value: String::new(),
            expire: 0,
            valid: false,
            weight: 0,
            partitionable: false,
            received_at: 0,
        },
    };
    Ok(AlertJson { metric, triggered_at: alert.triggered_at.map(Timestamp::from).unwrap_or_default() })
}
