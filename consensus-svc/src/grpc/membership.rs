//! `pinfold.consensus.v1.Membership`: whoever holds the secret may ask to join.

use std::sync::Arc;

use pinfold_common::audience::caller;
use pinfold_proto::consensus::membership_server::Membership;
use pinfold_proto::consensus::{JoinCall, JoinReply};
use tonic::{Request, Response, Status};

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
}
