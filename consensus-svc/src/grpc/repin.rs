//! `pinfold.consensus.v1.Repin` and `RepinForward`: re-pinning for this peer's own gateway, and for members that do not
//! lead.

use std::sync::Arc;

use pinfold_proto::consensus::repin_forward_server::RepinForward;
use pinfold_proto::consensus::repin_server::Repin;
use pinfold_proto::types::{
    MaintainCall, MaintainReply, RepinChangeCall, RepinStatusCall, RepinStatusReply, UnsatisfiedCall, UnsatisfiedReply,
};
use tonic::{Request, Response, Status};

use crate::coordinator::Origin;
use crate::core::Core;
use crate::repin::control;

pub struct RepinService {
    pub core: Arc<Core>,
}

/// Both doors do the same; they differ in who may come through, and whether a question may go on to the leader.
macro_rules! door {
    ($service:ident, $origin:expr) => {
        #[tonic::async_trait]
        impl $service for RepinService {
            async fn status(&self, request: Request<RepinStatusCall>) -> Result<Response<RepinStatusReply>, Status> {
                Ok(Response::new(control::status(&self.core, request.into_inner(), $origin).await?))
            }

            async fn change(&self, request: Request<RepinChangeCall>) -> Result<Response<RepinStatusReply>, Status> {
                Ok(Response::new(control::change(&self.core, request.into_inner(), $origin).await?))
            }

            async fn maintain(&self, request: Request<MaintainCall>) -> Result<Response<MaintainReply>, Status> {
                Ok(Response::new(control::maintain(&self.core, request.into_inner(), $origin).await?))
            }

            async fn unsatisfied(
                &self,
                request: Request<UnsatisfiedCall>,
            ) -> Result<Response<UnsatisfiedReply>, Status> {
                Ok(Response::new(control::unsatisfied(&self.core, request.into_inner(), $origin).await?))
            }
        }
    };
}

door!(Repin, Origin::Own);
door!(RepinForward, Origin::Forwarded);
