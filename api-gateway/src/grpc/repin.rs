//! `pinfold.api.v1.Repin`: passed on to this peer's consensus-svc, which knows who leads.

use std::sync::Arc;

use pinfold_proto::api::repin_server;
use pinfold_proto::types::{
    MaintainCall, MaintainReply, RepinChangeCall, RepinStatusCall, RepinStatusReply, UnsatisfiedCall, UnsatisfiedReply,
};
use tonic::{Request, Response, Status};

use crate::cluster::{Cluster, READ_DEADLINE, WRITE_DEADLINE, ask};

pub struct RepinApi {
    cluster: Arc<Cluster>,
}

impl RepinApi {
    pub fn new(cluster: Arc<Cluster>) -> RepinApi {
        RepinApi { cluster }
    }
}

#[tonic::async_trait]
impl repin_server::Repin for RepinApi {
    async fn status(&self, request: Request<RepinStatusCall>) -> Result<Response<RepinStatusReply>, Status> {
        let mut repin = self.cluster.repin();
        let asked = repin.status(request.into_inner());
        Ok(Response::new(ask("ask about re-pinning", READ_DEADLINE, asked).await?))
    }

    async fn change(&self, request: Request<RepinChangeCall>) -> Result<Response<RepinStatusReply>, Status> {
        let mut repin = self.cluster.repin();
        let changed = repin.change(request.into_inner());
        Ok(Response::new(ask("change re-pinning", WRITE_DEADLINE, changed).await?))
    }

    async fn maintain(&self, request: Request<MaintainCall>) -> Result<Response<MaintainReply>, Status> {
        let mut repin = self.cluster.repin();
        let announced = repin.maintain(request.into_inner());
        Ok(Response::new(ask("announce maintenance", WRITE_DEADLINE, announced).await?))
    }

    async fn unsatisfied(&self, request: Request<UnsatisfiedCall>) -> Result<Response<UnsatisfiedReply>, Status> {
        let mut repin = self.cluster.repin();
        let asked = repin.unsatisfied(request.into_inner());
        Ok(Response::new(ask("ask for unsatisfied items", READ_DEADLINE, asked).await?))
    }
}
