//! `pinfold.consensus.v1.Peers`: the peerset, for this peer's own services. Served from local state, without a leader
//! too.

use std::sync::Arc;

use pinfold_common::shutdown::Shutdown;
use pinfold_proto::consensus::peers_server::Peers;
use pinfold_proto::consensus::status_reply::Role;
use pinfold_proto::consensus::{
    AddPeerCall, AddPeerReply, DeparturesCall, DeparturesReply, DigestCall, DigestReply, DrainPeerCall, DrainPeerReply,
    RemovePeerCall, RemovePeerReply, StatusCall, StatusReply, WatchCall, WatchReply,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::coordinator::Origin;
use crate::core::{Core, unreadable};
use crate::membership;
use crate::raft;
use crate::store;

/// Messages that wait for a slow watcher; each has the whole of the latest state.
const WATCH_QUEUE: usize = 2;

pub struct PeersService {
    pub core: Arc<Core>,
    pub shutdown: Shutdown,
}

#[tonic::async_trait]
impl Peers for PeersService {
    async fn status(&self, _request: Request<StatusCall>) -> Result<Response<StatusReply>, Status> {
        let core = &self.core;
        let facts = core.state.facts();
        let raft = core.raft.status().borrow().clone();
        let role = match raft.role {
            _ if facts.peers.is_removed(core.node_id) => Role::Removed,
            raft::Role::Leader => Role::Leader,
            raft::Role::Follower => Role::Follower,
            raft::Role::Learner => Role::Learner,
            raft::Role::Candidate => Role::Candidate,
            raft::Role::Joining => Role::Joining,
            raft::Role::Stopped => Role::Unspecified,
        };
        let readiness = core.readiness();
        Ok(Response::new(StatusReply {
            peer_id: core.own_bytes.clone(),
            node_id: core.node_id,
            cluster_id: facts.cluster_id.clone(),
            lineage: facts.lineage,
            role: role as i32,
            leader: core.leader_bytes(),
            term: raft.term,
            last_log_index: raft.last_log_index.max(core.state.applied_index()),
            applied_index: core.state.applied_index(),
            pins: core.state.pin_count(),
            ready: readiness.is_ok(),
            not_ready_reason: readiness.err().unwrap_or_default(),
            peerset: Some(facts.peers.to_set(&facts.cluster_id, facts.lineage)),
        }))
    }

    type WatchStream = ReceiverStream<Result<WatchReply, Status>>;

    async fn watch(&self, _request: Request<WatchCall>) -> Result<Response<Self::WatchStream>, Status> {
        let (replies, stream) = mpsc::channel(WATCH_QUEUE);
        let (core, shutdown) = (self.core.clone(), self.shutdown.clone());
        tokio::spawn(async move { shutdown.race(watch(core, replies)).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn add(&self, request: Request<AddPeerCall>) -> Result<Response<AddPeerReply>, Status> {
        let peer = membership::invite(&self.core, request.into_inner()).await?;
        Ok(Response::new(AddPeerReply { peer: Some(peer) }))
    }

    async fn remove(&self, request: Request<RemovePeerCall>) -> Result<Response<RemovePeerReply>, Status> {
        let departure = membership::remove(&self.core, request.into_inner(), Origin::Own).await?;
        Ok(Response::new(RemovePeerReply { departure: Some(departure), index: self.core.state.applied_index() }))
    }

    async fn drain(&self, request: Request<DrainPeerCall>) -> Result<Response<DrainPeerReply>, Status> {
        let departure = membership::drain(&self.core, request.into_inner(), Origin::Own).await?;
        Ok(Response::new(DrainPeerReply { departure: Some(departure), index: self.core.state.applied_index() }))
    }

    async fn digest(&self, _request: Request<DigestCall>) -> Result<Response<DigestReply>, Status> {
        let store::Digest { index, lineage, pins, sha256 } = self.core.state.digest().await.map_err(unreadable)?;
        Ok(Response::new(DigestReply { index, lineage, pins, sha256 }))
    }

    async fn departures(&self, _request: Request<DeparturesCall>) -> Result<Response<DeparturesReply>, Status> {
        Ok(Response::new(DeparturesReply { departures: membership::departures(&self.core).await? }))
    }
}

/// The state now, and again whenever some of it is different.
async fn watch(core: Arc<Core>, replies: mpsc::Sender<Result<WatchReply, Status>>) {
    let mut facts = core.state.watch_facts();
    let mut position = core.position.clone();
    let mut trouble = core.trouble.subscribe();
    let mut told: Option<WatchReply> = None;
    loop {
        let now = {
            let facts = facts.borrow_and_update();
            position.borrow_and_update();
            trouble.borrow_and_update();
            let readiness = core.readiness();
            WatchReply {
                peerset: Some(facts.peers.to_set(&facts.cluster_id, facts.lineage)),
                leader: core.leader_bytes(),
                ready: readiness.is_ok(),
                not_ready_reason: readiness.err().unwrap_or_default(),
            }
        };
        if told.as_ref() != Some(&now) {
            if replies.send(Ok(now.clone())).await.is_err() {
                return;
            }
            told = Some(now);
        }
        tokio::select! {
            changed = facts.changed() => if changed.is_err() { return },
            changed = position.changed() => if changed.is_err() { return },
            changed = trouble.changed() => if changed.is_err() { return },
            () = replies.closed() => return,
        }
    }
}
