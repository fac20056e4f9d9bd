//! `Node`: the IPFS node, for this peer's own services.

use std::sync::Arc;

use pinfold_common::ids::{MAX_PATH_BYTES, shorten};
use pinfold_proto::connector::node_server::Node;
use pinfold_proto::connector::{
    NodeStatusCall, NodeStatusReply, RepoStatCall, RepoStatReply, ResolveCall, ResolveReply,
};
use tonic::{Request, Response, Status};

use super::Rooms;
use crate::error::ConnectorError;

pub(super) struct NodeService(pub Arc<Rooms>);

#[tonic::async_trait]
impl Node for NodeService {
    /// From what the health probe knows: never waits for the node.
    async fn status(&self, _: Request<NodeStatusCall>) -> Result<Response<NodeStatusReply>, Status> {
        let state = self.0.health.current();
        let ipfs = state.to_proto();
        Ok(Response::new(NodeStatusReply {
            ready: state.is_up(),
            not_ready_reason: ipfs.error.clone(),
            ipfs: Some(ipfs),
            backend: self.0.node.name().to_owned(),
        }))
    }

    async fn resolve(&self, request: Request<ResolveCall>) -> Result<Response<ResolveReply>, Status> {
        let path = request.into_inner().path;
        if path.is_empty() || path.len() > MAX_PATH_BYTES {
            let what = format!("path {:?}: 1 to {MAX_PATH_BYTES} bytes are taken", shorten(&path));
            return Err(ConnectorError::Invalid(what).into());
        }
        let cid = self.0.node.resolve(&path).await.map_err(ConnectorError::from)?;
        Ok(Response::new(ResolveReply { cid: cid.to_bytes() }))
    }

    async fn repo_stat(&self, _: Request<RepoStatCall>) -> Result<Response<RepoStatReply>, Status> {
        let stat = self.0.node.repo_stat().await.map_err(ConnectorError::from)?;
        Ok(Response::new(RepoStatReply {
            repo_size_bytes: stat.size_bytes,
            storage_max_bytes: stat.storage_max_bytes,
            blocks: stat.blocks.unwrap_or(0),
        }))
    }
}
