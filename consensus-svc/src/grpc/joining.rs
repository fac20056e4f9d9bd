//! What a peer answers before it is a member of any cluster: who it is, and why it is not ready. Its own services see
//! that it lives (beh:B2.4).

use std::sync::Arc;

use pinfold_common::Error;
use pinfold_common::audience::caller;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::consensus::membership_server::{Membership, MembershipServer};
use pinfold_proto::consensus::peers_server::{Peers, PeersServer};
use pinfold_proto::consensus::status_reply::Role;
use pinfold_proto::consensus::{
    AddPeerCall, AddPeerReply, DeparturesCall, DeparturesReply, DigestCall, DigestReply, DrainPeerCall, DrainPeerReply,
    InviteCall, InviteReply, JoinCall, JoinReply, RemovePeerCall, RemovePeerReply, StatusCall, StatusReply, WatchCall,
    WatchReply,
};
use pinfold_proto::types;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::config::KnownPeer;

/// Messages that wait for a slow watcher.
const WATCH_QUEUE: usize = 2;

/// A member that wants this peer to join by it, and where to say which node it became.
pub type Invitation = (KnownPeer, oneshot::Sender<u64>);

pub struct Joining {
    pub peer_id: Vec<u8>,
    /// Taken up by the loop that asks to be let in.
    pub invitations: mpsc::Sender<Invitation>,
    /// Why it has not joined yet, for people.
    pub reason: watch::Receiver<String>,
    pub shutdown: Shutdown,
}

pub fn joining_routes(joining: Joining) -> Routes {
    let joining = Arc::new(joining);
    Routes::new(PeersServer::from_arc(joining.clone())).add_service(MembershipServer::from_arc(joining))
}

#[tonic::async_trait]
impl Membership for Joining {
    async fn join(&self, _request: Request<JoinCall>) -> Result<Response<JoinReply>, Status> {
        Err(self.not_yet())
    }

    async fn invite(&self, request: Request<InviteCall>) -> Result<Response<InviteReply>, Status> {
        let peer_id = caller(&request)?;
        let inviter = KnownPeer { peer_id, host_port: request.into_inner().address };
        let (joined, node_id) = oneshot::channel();
        let taken = self.invitations.try_send((inviter, joined)).is_ok();
        match node_id.await {
            Ok(node_id) => Ok(Response::new(InviteReply { node_id })),
            Err(_) if taken => Err(self.not_yet()),
            Err(_) => Err(Error::unavailable("this peer is asked by another member at the moment").into()),
        }
    }
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

    async fn drain(&self, _request: Request<DrainPeerCall>) -> Result<Response<DrainPeerReply>, Status> {
        Err(self.not_yet())
    }

    async fn digest(&self, _request: Request<DigestCall>) -> Result<Response<DigestReply>, Status> {
        Err(self.not_yet())
    }

    async fn departures(&self, _request: Request<DeparturesCall>) -> Result<Response<DeparturesReply>, Status> {
        Err(self.not_yet())
    }
}

impl Joining {
    fn not_yet(&self) -> Status {
        Error::unavailable(format!("this peer is not a member of a cluster yet: {}", self.reason.borrow().as_str()))
            .into()
    }
}
