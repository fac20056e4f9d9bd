//! What a peer answers before it is a member of any cluster: who it is, and why it is not ready. Its own services see
//! that it lives (beh:B2.4).

use std::sync::Arc;

use pinfold_common::Error;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::consensus::peers_server::{Peers, PeersServer};
use pinfold_proto::consensus::status_reply::Role;
use pinfold_proto::consensus::{
    AddPeerCall, AddPeerReply, RemovePeerCall, RemovePeerReply, StatusCall, StatusReply, WatchCall, WatchReply,
};
use pinfold_proto::types;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// Messages that wait for a slow watcher.
const WATCH_QUEUE: usize = 2;

pub struct Joining {
    pub peer_id: Vec<u8>,
    /// Why it has not joined yet, for people.
    pub reason: watch::Receiver<String>,
    pub shutdown: Shutdown,
}

pub fn joining_routes(joining: Joining) -> Routes {
    Routes::new(PeersServer::from_arc(Arc::new(joining)))
}

#[tonic::async_trait]
impl Peers for Joining {
    async fn status(&self, _request: Request<StatusCall>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(StatusReply {
            peer_id: self.peer_id.clone(),
            role: Role::Joining as i32,
            not_ready_reason: self.reason.borrow().clone(),
            peerset: Some(types::PeerSet::default()),
            ..StatusReply::default()
        }))
    }

    type WatchStream = ReceiverStream<Result<WatchReply, Status>>;

    async fn watch(&self, _request: Request<WatchCall>) -> Result<Response<Self::WatchStream>, Status> {
        let (replies, stream) = mpsc::channel(WATCH_QUEUE);
        let mut reason = self.reason.clone();
        let watching = async move {
            loop {
                let not_ready_reason = reason.borrow_and_update().clone();
                let reply =
                    WatchReply { peerset: Some(types::PeerSet::default()), not_ready_reason, ..WatchReply::default() };
                if replies.send(Ok(reply)).await.is_err() || reason.changed().await.is_err() {
                    return;
                }
            }
        };
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move { shutdown.race(watching).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn add(&self, _request: Request<AddPeerCall>) -> Result<Response<AddPeerReply>, Status> {
        Err(self.not_yet())
    }

    async fn remove(&self, _request: Request<RemovePeerCall>) -> Result<Response<RemovePeerReply>, Status> {
        Err(self.not_yet())
    }
}

impl Joining {
    fn not_yet(&self) -> Status {
        Error::unavailable(format!("this peer is not a member of a cluster yet: {}", self.reason.borrow().as_str()))
            .into()
    }
}
