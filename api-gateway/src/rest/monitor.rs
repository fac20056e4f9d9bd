//! `/monitor`, `/health/…` and `/ipfs/gc`.

use pinfold_common::Result;
use pinfold_common::json::{AlertJson, ConnectGraphJson, MetricJson};
use pinfold_proto::monitor::{LatestMetricsCall, MetricNamesCall};

use super::Call;
use super::respond::{self, Answer};
use crate::cluster::{READ_DEADLINE, ask};
use crate::fanout::{self, Scope};
use crate::monitor;

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
        let alerts = monitor::alerts(&self.rest.cluster).await?;
        let alerts: Vec<AlertJson> = alerts.iter().map(AlertJson::try_from).collect::<Result<_>>()?;
        Ok(respond::json(&alerts))
    }

    pub(super) async fn graph(&self) -> Result<Answer> {
        let graph = fanout::graph(&self.rest.cluster).await;
        Ok(respond::json(&ConnectGraphJson::try_from(&graph)?))
    }

    pub(super) async fn gc(&self) -> Result<Answer> {
        let scope = Scope::of(self.query.is_true("local"));
        Ok(respond::json(&fanout::gc(&self.rest.cluster, scope).await?))
    }
}
