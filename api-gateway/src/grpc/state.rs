//! `pinfold.api.v1.State`

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use pinfold_proto::api::state_server;
use pinfold_proto::consensus::{CreateBackupCall, ExportCall, ListBackupsCall};
use pinfold_proto::{api, types};
use tonic::{Request, Response, Status};

use crate::cluster::{Cluster, READ_DEADLINE, ask, from_status};

/// The state is copied before the first pin comes, or the backup is whole: seconds per million pins.
const COPY_DEADLINE: Duration = Duration::from_secs(600);

pub struct StateApi {
    cluster: Arc<Cluster>,
}

impl StateApi {
    pub fn new(cluster: Arc<Cluster>) -> StateApi {
        StateApi { cluster }
    }
}

#[tonic::async_trait]
impl state_server::State for StateApi {
    type ExportStream = BoxStream<'static, Result<api::ExportReply, Status>>;

    async fn export(&self, request: Request<api::ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let call = ExportCall { consistent: request.into_inner().consistent };
        let mut state = self.cluster.state();
        let replies = ask("export the pinset", COPY_DEADLINE, state.export(call)).await?;
        let replies = replies.map(|reply| match reply {
            Ok(reply) => Ok(api::ExportReply { pins: reply.pins, index: reply.index, total: reply.total }),
            Err(status) => Err(from_status("export the pinset", status).into()),
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn create_backup(
        &self,
        request: Request<api::CreateBackupRequest>,
    ) -> Result<Response<types::Backup>, Status> {
        let call = CreateBackupCall { with_keys: request.into_inner().with_keys };
        let mut state = self.cluster.state();
        let reply = ask("make a backup", COPY_DEADLINE, state.create_backup(call)).await?;
        Ok(Response::new(reply.backup.unwrap_or_default()))
    }

    async fn list_backups(
        &self,
        _: Request<api::ListBackupsRequest>,
    ) -> Result<Response<api::ListBackupsReply>, Status> {
        let mut state = self.cluster.state();
        let reply = ask("list the backups", READ_DEADLINE, state.list_backups(ListBackupsCall {})).await?;
        Ok(Response::new(api::ListBackupsReply { backups: reply.backups }))
    }
}
