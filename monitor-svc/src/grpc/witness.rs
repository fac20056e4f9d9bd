//! `pinfold.monitor.v1.Witness`: what this monitor knows of the members, for a leader that doubts one.

use pinfold_proto::monitor::witness_server::Witness;
use pinfold_proto::monitor::{VerdictsCall, VerdictsReply};
use tonic::{Request, Response, Status};

use crate::store::Store;

pub(super) struct WitnessService {
    pub(super) store: Store,
}

#[tonic::async_trait]
impl Witness for WitnessService {
    async fn testify(&self, _: Request<VerdictsCall>) -> Result<Response<VerdictsReply>, Status> {
        let known = self.store.verdicts().await?;
        Ok(Response::new(known.into()))
    }
}
