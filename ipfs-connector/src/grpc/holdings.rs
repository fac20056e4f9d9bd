//! `Holdings`: who really holds what (protocols.md 7).

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use pinfold_proto::connector::holdings_server::Holdings;
use pinfold_proto::connector::{HoldingsCall, HoldingsReply};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Rooms;
use crate::error::ConnectorError;

/// Items of one message.
const MAX_ITEMS: usize = 1000;
/// Questions to the node at a time.
const PARALLEL: usize = 16;
/// Replies that wait for a slow caller.
const REPLIES: usize = 4;

pub(super) struct HoldingsService(pub Arc<Rooms>);

#[tonic::async_trait]
impl Holdings for HoldingsService {
    type CheckStream = ReceiverStream<Result<HoldingsReply, Status>>;

    async fn check(&self, request: Request<Streaming<HoldingsCall>>) -> Result<Response<Self::CheckStream>, Status> {
        let mut calls = request.into_inner();
        let rooms = self.0.clone();
        let (replies, stream) = mpsc::channel(REPLIES);
        tokio::spawn(async move {
            let work = async {
                while let Some(call) = calls.message().await.transpose() {
                    let reply = match call {
                        Ok(call) => answer(&rooms, call).await.map_err(Status::from),
                        Err(status) => Err(status),
                    };
                    let failed = reply.is_err();
                    if replies.send(reply).await.is_err() || failed {
                        return;
                    }
                }
            };
            rooms.shutdown.race(work).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn answer(rooms: &Rooms, call: HoldingsCall) -> Result<HoldingsReply, ConnectorError> {
    if call.items.len() > MAX_ITEMS {
        return Err(ConnectorError::Invalid(format!("holdings: {} items, at most {MAX_ITEMS}", call.items.len())));
    }
    let cids: Vec<Vec<u8>> = call.items.iter().map(|item| item.cid.clone()).collect();
    let items = rooms.tracker.store.get(&cids).await?;
    let asked = call.items.into_iter().map(|held| {
        let (tracker, item) = (rooms.tracker.clone(), items.get(&held.cid).cloned());
        async move { tracker.holds(item.as_ref(), held.revision).await as i32 }
    });
    // Collected first: the stream must not borrow what it is made of.
    let asked: Vec<_> = asked.collect();
    Ok(HoldingsReply { answers: stream::iter(asked).buffered(PARALLEL).collect().await })
}
