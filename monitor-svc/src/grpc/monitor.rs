//! `pinfold.monitor.v1.Monitor`: metrics, verdicts and allocation, for this peer's own services.

use std::time::Duration;

use pinfold_common::Error;
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::monitor::monitor_server::Monitor;
use pinfold_proto::monitor::{
    self as wire, AlertsCall, AlertsReply, AllocateReply, AllocateRequest, ContactReport, ContactsReply,
    LatestMetricsCall, LatestMetricsReply, MetricNamesCall, MetricNamesReply, PublishCall, PublishReply, VerdictsCall,
    VerdictsReply,
};
use tonic::{Request, Response, Status, Streaming};

use super::allocation::allocate;
use crate::alerts::Alert;
use crate::store::Store;

/// A report comes at least once a second; a stream that is silent for so long has lost its sender.
const CONTACTS_SILENCE: Duration = Duration::from_secs(10);

pub(super) struct MonitorService {
    pub(super) store: Store,
    pub(super) shutdown: Shutdown,
}

#[tonic::async_trait]
impl Monitor for MonitorService {
    async fn publish(&self, request: Request<PublishCall>) -> Result<Response<PublishReply>, Status> {
        let PublishCall { room, metrics, ipfs } = request.into_inner();
        tracing::debug!(room, metrics = metrics.len(), "published");
        self.store.publish(metrics, ipfs).await?;
        Ok(Response::new(PublishReply {}))
    }

    async fn contacts(&self, request: Request<Streaming<ContactReport>>) -> Result<Response<ContactsReply>, Status> {
        let mut reports = request.into_inner();
        loop {
            let next = tokio::time::timeout(CONTACTS_SILENCE, reports.message());
            let Some(next) = self.shutdown.race(next).await else {
                return Err(Error::unavailable("raft contacts: this monitor is stopping").into());
            };
            let Ok(report) = next else {
                return Err(Error::unavailable(format!("raft contacts: silent for {CONTACTS_SILENCE:?}")).into());
            };
            let Some(ContactReport { contacts, repin_stopped }) = report? else {
                return Ok(Response::new(ContactsReply {}));
            };
            // A peer ID that makes no sense is nobody's contact.
            let ages = contacts.iter().filter_map(|contact| {
                Some((peer_from_bytes(&contact.peer_id).ok()?, Duration::from_millis(contact.age_ms)))
            });
            self.store.contacts(ages.collect(), repin_stopped).await?;
        }
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateReply>, Status> {
        allocate(&self.store, request.into_inner()).await
    }

    async fn latest_metrics(
        &self,
        request: Request<LatestMetricsCall>,
    ) -> Result<Response<LatestMetricsReply>, Status> {
        let metrics = self.store.latest(request.into_inner().name).await?;
        Ok(Response::new(LatestMetricsReply { metrics }))
    }

    async fn metric_names(&self, _: Request<MetricNamesCall>) -> Result<Response<MetricNamesReply>, Status> {
        Ok(Response::new(MetricNamesReply { names: self.store.names().await? }))
    }

    async fn verdicts(&self, _: Request<VerdictsCall>) -> Result<Response<VerdictsReply>, Status> {
        let known = self.store.verdicts().await?;
        Ok(Response::new(known.into()))
    }

    async fn alerts(&self, _: Request<AlertsCall>) -> Result<Response<AlertsReply>, Status> {
        let alerts = self.store.alerts().await?.into_iter().map(encode).collect();
        Ok(Response::new(AlertsReply { alerts }))
    }
}

fn encode(alert: Alert) -> wire::Alert {
    wire::Alert {
        metric: Some(alert.metric),
        triggered_at: Some(alert.triggered_at.into()),
        resolved_at: alert.resolved_at.map(Into::into),
        what: alert.what,
        peer_id: alert.peer.to_bytes(),
        subject: alert.subject,
    }
}
