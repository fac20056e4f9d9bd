//! `pinfold.api.v1.Cluster`

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use pinfold_common::VERSION;
use pinfold_common::time::Timestamp;
use pinfold_common::tls::Room;
use pinfold_proto::api::cluster_server;
use pinfold_proto::api::health_reply::Room as RoomHealth;
use pinfold_proto::connector::NodeStatusCall;
use pinfold_proto::consensus::ListBackupsCall;
use pinfold_proto::monitor::{LatestMetricsCall, MetricNamesCall, VerdictsCall};
use pinfold_proto::{WIRE_VERSION, api, consensus, types};
use tonic::{Request, Response, Status};

use crate::cluster::{Cluster, READ_DEADLINE, ask};
use crate::{fanout, monitor, rest};

/// A room that does not say how it is by then is not well.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

/// A digest reads the whole pinset: seconds for each million.
const DIGEST_DEADLINE: Duration = Duration::from_secs(120);

pub struct ClusterApi {
    cluster: Arc<Cluster>,
}

impl ClusterApi {
    pub fn new(cluster: Arc<Cluster>) -> ClusterApi {
        ClusterApi { cluster }
    }

    fn consensus_health(&self) -> RoomHealth {
        let view = self.cluster.view();
        room(Room::Consensus, if view.ready { Ok(()) } else { Err(view.not_ready_reason.clone()) })
    }

    async fn monitor_health(&self) -> RoomHealth {
        let mut monitor = self.cluster.monitor();
        let answer = ask("ask for verdicts", HEALTH_DEADLINE, monitor.verdicts(VerdictsCall {})).await;
        room(
            Room::Monitor,
            match answer {
                Ok(reply) if reply.warming_up => Err("warming up".to_owned()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.message),
            },
        )
    }

    /// The newest one that can be read.
    async fn last_backup(&self) -> Option<types::Backup> {
        let mut state = self.cluster.state();
        let answer = ask("list the backups", HEALTH_DEADLINE, state.list_backups(ListBackupsCall {})).await;
        answer.ok()?.backups.into_iter().find(|backup| backup.damage.is_empty())
    }

    async fn connector_health(&self) -> RoomHealth {
        let mut node = self.cluster.node();
        let answer = ask("ask for the IPFS node", HEALTH_DEADLINE, node.status(NodeStatusCall {})).await;
        match answer {
            Ok(reply) if reply.ready => {
                // Ready, and something to know all the same.
                let reason = reply.ipfs.unwrap_or_default().notice;
                RoomHealth { reason, ..room(Room::Connector, Ok(())) }
            }
            Ok(reply) => room(Room::Connector, Err(reply.not_ready_reason)),
            Err(error) => room(Room::Connector, Err(error.message)),
        }
    }
}

fn room(room: Room, health: Result<(), String>) -> RoomHealth {
    RoomHealth { name: room.name().to_owned(), ready: health.is_ok(), reason: health.err().unwrap_or_default() }
}

#[tonic::async_trait]
impl cluster_server::Cluster for ClusterApi {
    type PeersStream = BoxStream<'static, Result<api::PeerId, Status>>;
    type CollectGarbageStream = BoxStream<'static, Result<api::CollectGarbageReply, Status>>;

    async fn id(&self, _: Request<api::IdRequest>) -> Result<Response<api::PeerId>, Status> {
        Ok(Response::new(fanout::id(&self.cluster).await))
    }

    async fn version(&self, _: Request<api::VersionRequest>) -> Result<Response<api::VersionReply>, Status> {
        let reply = api::VersionReply { version: VERSION.to_owned(), wire_version: WIRE_VERSION.to_owned() };
        Ok(Response::new(reply))
    }

    async fn peers(&self, _: Request<api::PeersRequest>) -> Result<Response<Self::PeersStream>, Status> {
        Ok(Response::new(fanout::peers(&self.cluster).map(Ok).boxed()))
    }

    async fn add_peer(&self, request: Request<api::AddPeerRequest>) -> Result<Response<api::PeerId>, Status> {
        let api::AddPeerRequest { peer_id, address } = request.into_inner();
        pinfold_common::ids::peer_from_bytes(&peer_id)?;
        let call = consensus::AddPeerCall { peer_id, address };
        Ok(Response::new(rest::add_peer(&self.cluster, call).await?))
    }

    async fn remove_peer(
        &self,
        request: Request<api::RemovePeerRequest>,
    ) -> Result<Response<api::RemovePeerReply>, Status> {
        let api::RemovePeerRequest { peer_id, force, wait_ms } = request.into_inner();
        pinfold_common::ids::peer_from_bytes(&peer_id)?;
        let call = consensus::RemovePeerCall { peer_id, force, wait_ms };
        Ok(Response::new(api::RemovePeerReply { departure: Some(rest::remove_peer(&self.cluster, call).await?) }))
    }

    async fn drain_peer(
        &self,
        request: Request<api::DrainPeerRequest>,
    ) -> Result<Response<api::DrainPeerReply>, Status> {
        let api::DrainPeerRequest { peer_id, draining } = request.into_inner();
        pinfold_common::ids::peer_from_bytes(&peer_id)?;
        let call = consensus::DrainPeerCall { peer_id, draining };
        Ok(Response::new(api::DrainPeerReply { departure: Some(rest::drain_peer(&self.cluster, call).await?) }))
    }

    async fn digest(&self, _: Request<api::DigestRequest>) -> Result<Response<api::DigestReply>, Status> {
        let mut peerset = self.cluster.peerset();
        let reply = ask("digest the pinset", DIGEST_DEADLINE, peerset.digest(consensus::DigestCall {})).await?;
        let consensus::DigestReply { index, lineage, pins, sha256 } = reply;
        Ok(Response::new(api::DigestReply { index, lineage, pins, sha256 }))
    }

    async fn metric_names(
        &self,
        _: Request<api::MetricNamesRequest>,
    ) -> Result<Response<api::MetricNamesReply>, Status> {
        let mut monitor = self.cluster.monitor();
        let reply = ask("ask for metrics", READ_DEADLINE, monitor.metric_names(MetricNamesCall {})).await?;
        Ok(Response::new(api::MetricNamesReply { names: reply.names }))
    }

    async fn metrics(&self, request: Request<api::MetricsRequest>) -> Result<Response<api::MetricsReply>, Status> {
        let call = LatestMetricsCall { name: request.into_inner().name };
        let mut monitor = self.cluster.monitor();
        let reply = ask("ask for metrics", READ_DEADLINE, monitor.latest_metrics(call)).await?;
        Ok(Response::new(api::MetricsReply { metrics: reply.metrics }))
    }

    async fn health(&self, _: Request<api::HealthRequest>) -> Result<Response<api::HealthReply>, Status> {
        let (monitor, connector, last_backup) =
            tokio::join!(self.monitor_health(), self.connector_health(), self.last_backup());
        let rooms = vec![self.consensus_health(), monitor, connector, room(Room::Gateway, Ok(()))];
        Ok(Response::new(api::HealthReply { ready: rooms.iter().all(|room| room.ready), rooms, last_backup }))
    }

    async fn alerts(&self, _: Request<api::AlertsRequest>) -> Result<Response<api::AlertsReply>, Status> {
        let alerts = monitor::alerts(&self.cluster).await?;
        Ok(Response::new(api::AlertsReply { alerts, now: Some(Timestamp::now().into()) }))
    }

    async fn summary(&self, _: Request<api::SummaryRequest>) -> Result<Response<api::SummaryReply>, Status> {
        Ok(Response::new(monitor::summary(&self.cluster).await))
    }

    async fn graph(&self, _: Request<api::GraphRequest>) -> Result<Response<api::GraphReply>, Status> {
        Ok(Response::new(fanout::graph(&self.cluster).await))
    }

    async fn collect_garbage(
        &self,
        request: Request<api::CollectGarbageRequest>,
    ) -> Result<Response<Self::CollectGarbageStream>, Status> {
        let scope = fanout::Scope::of(request.into_inner().local);
        Ok(Response::new(fanout::gc_stream(&self.cluster, scope).map(Ok).boxed()))
    }
}

#[cfg(test)]
mod tests {
    use pinfold_common::Error;

    use super::*;

    /// Goal: a room that is not well says why.
    #[test]
    fn rooms() {
        assert!(room(Room::Monitor, Ok(())).ready);
        let ill = room(Room::Monitor, Err(Error::unavailable("away").message));
        assert_eq!((ill.ready, ill.reason.as_str(), ill.name.as_str()), (false, "away", "monitor-svc"));
    }
}
