//! `pinfold.consensus.v1.Membership`: whoever holds the secret may ask to join, or ask this peer to.

use std::sync::Arc;

use pinfold_common::audience::caller;
use pinfold_proto::consensus::membership_server::Membership;
use pinfold_proto::consensus::{InviteCall, InviteReply, JoinCall, JoinReply};
use tonic::{Request, Response, Status};

use crate::admission;
use crate::config::KnownPeer;
use crate::core::Core;
use crate::membership;

pub struct MembershipService {
    pub core: Arc<Core>,
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<JoinCall>) -> Result<Response<JoinReply>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(membership::join(&self.core, request.into_inner(), caller).await?))
    }

    async fn invite(&self, request: Request<InviteCall>) -> Result<Response<InviteReply>, Status> {
        let peer_id = caller(&request)?;
        let InviteCall { cluster_id, address } = request.into_inner();
        if cluster_id == self.core.state.facts().cluster_id {
            return Ok(Response::new(InviteReply { node_id: self.core.node_id }));
        }
        let inviter = KnownPeer { peer_id, host_port: address };
        let node_id = admission::join_elsewhere(&self.core, &inviter).await?;
        Ok(Response::new(InviteReply { node_id }))
    }
}
