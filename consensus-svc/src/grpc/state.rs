//! `pinfold.consensus.v1.State`: the state as a whole, for this peer's own gateway.

use std::sync::Arc;

use pinfold_common::Error;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::consensus::state_server::State;
use pinfold_proto::consensus::{
    CreateBackupCall, CreateBackupReply, ExportCall, ExportReply, ListBackupsCall, ListBackupsReply,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::backup::{self, Keys};
use crate::changes;
use crate::coordinator::Origin;
use crate::core::Core;
use crate::store::{self, Reading};

/// Pins of one message.
const CHUNK_PINS: usize = 256;
/// Messages that wait for a slow reader.
const QUEUE: usize = 4;

pub struct StateService {
    pub core: Arc<Core>,
    pub shutdown: Shutdown,
    /// One copy of the state at a time: each takes as much disk as the state itself.
    pub copying: Arc<tokio::sync::Semaphore>,
}

#[tonic::async_trait]
impl State for StateService {
    type ExportStream = ReceiverStream<Result<ExportReply, Status>>;

    async fn export(&self, request: Request<ExportCall>) -> Result<Response<Self::ExportStream>, Status> {
        if request.into_inner().consistent {
            let index = self.core.read_index(Origin::Own).await?;
            self.core.wait_applied(index).await?;
        }
        let permit = self.copying.clone().try_acquire_owned().map_err(|_| busy())?;
        let reading = async { self.core.state.copy().await?.read().await };
        let reading = reading.await.map_err(failed)?;
        let (replies, stream) = mpsc::channel(QUEUE);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let _permit = permit;
            shutdown.race(export(reading, replies)).await
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn create_backup(&self, request: Request<CreateBackupCall>) -> Result<Response<CreateBackupReply>, Status> {
        let keys = if request.into_inner().with_keys { Keys::With } else { Keys::Without };
        let _permit = self.copying.try_acquire().map_err(|_| busy())?;
        let made = backup::create(&self.core.config, &self.core.state, keys, backup::Origin::Person).await;
        let made = made.map_err(|error| Error::internal(error.to_string()))?;
        Ok(Response::new(CreateBackupReply { backup: Some(made) }))
    }

    async fn list_backups(&self, _: Request<ListBackupsCall>) -> Result<Response<ListBackupsReply>, Status> {
        let folder = self.core.config.backup.folder.clone();
        let listed = tokio::task::spawn_blocking(move || backup::list(&folder)).await;
        let listed = listed.map_err(|_| Error::internal("list the backups: the work was cut off"))?;
        let backups = listed.map_err(|error| Error::internal(error.to_string()))?;
        Ok(Response::new(ListBackupsReply { backups }))
    }
}

fn busy() -> Error {
    Error::unavailable("this peer is making a copy of its state already; try again when it is done")
}

fn failed(error: store::Error) -> Error {
    Error::internal(format!("export the pinset: {error}"))
}

/// The first message is sent even when it is empty: it has the index.
async fn export(mut reading: Reading, replies: mpsc::Sender<Result<ExportReply, Status>>) {
    let total = reading.pin_count();
    let mut after = Vec::new();
    loop {
        let read = reading.list(&after, CHUNK_PINS).await;
        let (chunk, pins) = match read.and_then(|chunk| changes::decode(&chunk).map(|pins| (chunk, pins))) {
            Ok(read) => read,
            Err(error) => {
                let _ = replies.send(Err(failed(error).into())).await;
                return;
            }
        };
        if replies.send(Ok(ExportReply { pins, index: chunk.index, total })).await.is_err() {
            return;
        }
        match chunk.next {
            Some(next) => after = next,
            None => return,
        }
    }
}
