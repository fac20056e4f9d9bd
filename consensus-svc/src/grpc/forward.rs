//! `pinfold.consensus.v1.Forward`: requests of members that do not lead. One hop: what arrives here while another peer
//! leads goes back to its sender.

use std::sync::Arc;

use pinfold_common::Error;
use pinfold_proto::consensus::forward_server::Forward;
use pinfold_proto::consensus::{
    AllocateCall, AllocateReply, DrainPeerCall, DrainPeerReply, PinCall, PinManyCall, PinManyReply, PinReply,
    ReadIndexCall, ReadIndexReply, RemovePeerCall, RemovePeerReply, UnpinCall,
};
use tonic::{Request, Response, Status};

use super::pin_many_reply;
use crate::coordinator::{Coordinator, Origin, single};
use crate::core::Core;
use crate::membership;

pub struct ForwardService {
    pub core: Arc<Core>,
    pub coordinator: Coordinator,
}

#[tonic::async_trait]
impl Forward for ForwardService {
    async fn pin(&self, request: Request<PinCall>) -> Result<Response<PinReply>, Status> {
        let call = request.into_inner();
        let asked = call.request.ok_or_else(|| Error::invalid("request: missing"))?;
        let user_allocations = asked.user_allocations.clone();
        let answer = self.coordinator.pin(vec![asked], call.request_key, Origin::Forwarded).await?;
        let (pin, index) = single(answer)?;
        Ok(Response::new(PinReply { pin: Some(pin), index, user_allocations }))
    }

    async fn pin_many(&self, request: Request<PinManyCall>) -> Result<Response<PinManyReply>, Status> {
        let call = request.into_inner();
        let answer = self.coordinator.pin(call.requests, call.request_key, Origin::Forwarded).await?;
        Ok(Response::new(pin_many_reply(answer)))
    }

    async fn unpin(&self, request: Request<UnpinCall>) -> Result<Response<PinReply>, Status> {
        let call = request.into_inner();
        let (pin, index) = self.coordinator.unpin(call.cid, call.request_key, Origin::Forwarded).await?;
        Ok(Response::new(PinReply { pin: Some(pin), index, user_allocations: Vec::new() }))
    }

    async fn allocate_for_add(&self, request: Request<AllocateCall>) -> Result<Response<AllocateReply>, Status> {
        Ok(Response::new(self.coordinator.allocate_for_add(request.into_inner(), Origin::Forwarded).await?))
    }

    async fn read_index(&self, _request: Request<ReadIndexCall>) -> Result<Response<ReadIndexReply>, Status> {
        let index = self.core.read_index(Origin::Forwarded).await?;
        Ok(Response::new(ReadIndexReply { index }))
    }

    async fn remove_peer(&self, request: Request<RemovePeerCall>) -> Result<Response<RemovePeerReply>, Status> {
        let departure = membership::remove(&self.core, request.into_inner(), Origin::Forwarded).await?;
        Ok(Response::new(RemovePeerReply { departure: Some(departure), index: self.core.state.applied_index() }))
    }

    async fn drain_peer(&self, request: Request<DrainPeerCall>) -> Result<Response<DrainPeerReply>, Status> {
        let departure = membership::drain(&self.core, request.into_inner(), Origin::Forwarded).await?;
        Ok(Response::new(DrainPeerReply { departure: Some(departure), index: self.core.state.applied_index() }))
    }
}
