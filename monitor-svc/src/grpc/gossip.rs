//! `pinfold.monitor.v1.Gossip`: metrics between members. The peer of what is pushed is the caller's, by its certificate.

use pinfold_common::audience::caller;
use pinfold_proto::monitor::gossip_server::Gossip;
use pinfold_proto::monitor::{PullCall, PullReply, PushCall, PushReply};
use tonic::{Request, Response, Status};

use crate::store::Store;

pub(super) struct GossipService {
    pub(super) store: Store,
}

#[tonic::async_trait]
impl Gossip for GossipService {
    async fn push(&self, request: Request<PushCall>) -> Result<Response<PushReply>, Status> {
        let from = caller(&request)?;
        let message = request.into_inner();
        self.store.push(from, message.metrics, message.ping).await?;
        Ok(Response::new(PushReply {}))
    }

    async fn pull(&self, _: Request<PullCall>) -> Result<Response<PullReply>, Status> {
        Ok(Response::new(self.store.pull().await?))
    }
}
