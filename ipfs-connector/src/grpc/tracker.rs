//! `Tracker`: this peer's statuses, for any member. Lists are read from the table page by page while the caller takes
//! them: constant memory, whatever their length.

use std::sync::Arc;

use futures::StreamExt as _;
use pinfold_common::ids::cid_from_bytes;
use pinfold_common::status::Filter;
use pinfold_common::{Error, VERSION};
use pinfold_proto::connector::tracker_server::Tracker;
use pinfold_proto::connector::{
    ApproveCall, ApproveReply, DescribeCall, DescribeReply, GcCall, GcKey, GcReply, HeldCall, HeldReply,
    RecoverAllCall, RecoverCall, RecoverReply, StatusAllCall, StatusAllReply, SwarmPeersCall, SwarmPeersReply,
    TrackerStatusCall, TrackerStatusReply,
};
use pinfold_proto::types::held_unpin::Cause;
use pinfold_proto::types::{self, HeldUnpin, PinInfo};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Rooms;
use crate::error::ConnectorError;
use crate::node::GcEvent;
use crate::tracker::operation::{Hold, Item};

/// CIDs of one status call.
const MAX_CIDS: usize = 1000;
/// Infos of one message.
const CHUNK: usize = 256;
/// Messages that wait for a slow caller.
const REPLIES: usize = 4;

pub(super) struct TrackerService(pub Arc<Rooms>);

type Infos = ReceiverStream<Result<StatusAllReply, Status>>;
type Replies = mpsc::Sender<Result<StatusAllReply, Status>>;

/// The caller is gone, or this process stops.
struct Ended;

#[tonic::async_trait]
impl Tracker for TrackerService {
    async fn status(&self, request: Request<TrackerStatusCall>) -> Result<Response<TrackerStatusReply>, Status> {
        let TrackerStatusCall { cids, min_index } = request.into_inner();
        if cids.len() > MAX_CIDS {
            return Err(ConnectorError::Invalid(format!("status: {} CIDs, at most {MAX_CIDS}", cids.len())).into());
        }
        for cid in &cids {
            cid_from_bytes(cid)?;
        }
        self.0.tracker.followed(min_index).await;
        let infos = self.0.tracker.status(&cids).await?;
        Ok(Response::new(TrackerStatusReply { infos }))
    }

    type StatusAllStream = Infos;

    async fn status_all(&self, request: Request<StatusAllCall>) -> Result<Response<Infos>, Status> {
        let call = request.into_inner();
        let rooms = self.0.clone();
        let (replies, stream) = mpsc::channel(REPLIES);
        tokio::spawn(async move { rooms.shutdown.race(list(&rooms, call, &replies)).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn recover(&self, request: Request<RecoverCall>) -> Result<Response<RecoverReply>, Status> {
        let cid = request.into_inner().cid;
        cid_from_bytes(&cid)?;
        let (info, requeued) = self.0.tracker.recover(&cid).await?;
        Ok(Response::new(RecoverReply { info: Some(info), requeued }))
    }

    type RecoverAllStream = Infos;

    async fn recover_all(&self, _: Request<RecoverAllCall>) -> Result<Response<Infos>, Status> {
        let rooms = self.0.clone();
        let (replies, stream) = mpsc::channel(REPLIES);
        tokio::spawn(async move { rooms.shutdown.race(recover_all(&rooms, &replies)).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn describe(&self, _: Request<DescribeCall>) -> Result<Response<DescribeReply>, Status> {
        Ok(Response::new(DescribeReply {
            peername: self.0.peername.clone(),
            version: VERSION.to_owned(),
            ipfs: Some(self.0.health.current().to_proto()),
            backend: self.0.node.name().to_owned(),
        }))
    }

    type GcStream = ReceiverStream<Result<GcReply, Status>>;

    async fn gc(&self, _: Request<GcCall>) -> Result<Response<Self::GcStream>, Status> {
        let rooms = self.0.clone();
        let (replies, stream) = mpsc::channel(REPLIES);
        tokio::spawn(async move { rooms.shutdown.race(collect(&rooms, &replies)).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn swarm_peers(&self, _: Request<SwarmPeersCall>) -> Result<Response<SwarmPeersReply>, Status> {
        let peers = self.0.node.swarm_peers().await.map_err(ConnectorError::from)?;
        Ok(Response::new(SwarmPeersReply { peers: peers.iter().map(|peer| peer.to_bytes()).collect() }))
    }

    type HeldStream = ReceiverStream<Result<HeldReply, Status>>;

    async fn held(&self, _: Request<HeldCall>) -> Result<Response<Self::HeldStream>, Status> {
        let rooms = self.0.clone();
        let (replies, stream) = mpsc::channel(REPLIES);
        tokio::spawn(async move { rooms.shutdown.race(list_held(&rooms, &replies)).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn approve(&self, request: Request<ApproveCall>) -> Result<Response<ApproveReply>, Status> {
        let cids = request.into_inner().cids;
        if cids.len() > MAX_CIDS {
            return Err(ConnectorError::Invalid(format!("approve: {} CIDs, at most {MAX_CIDS}", cids.len())).into());
        }
        for cid in &cids {
            cid_from_bytes(cid)?;
        }
        Ok(Response::new(ApproveReply { approved: self.0.tracker.approve(&cids).await? }))
    }
}

async fn list_held(rooms: &Rooms, replies: &mpsc::Sender<Result<HeldReply, Status>>) {
    for (hold, cause) in [(Hold::Guarded, Cause::Guard), (Hold::Adopted, Cause::Adopted)] {
        let mut after = Vec::new();
        loop {
            let items = match rooms.tracker.held(hold, &after).await {
                Ok(items) => items,
                Err(error) => {
                    // Who does not listen any more needs no reason.
                    let _ = replies.send(Err(error.into())).await;
                    return;
                }
            };
            let Some(last) = items.last() else { break };
            after.clone_from(&last.cid);
            let items = items.iter().map(|item| held_unpin(item, cause)).collect();
            if replies.send(Ok(HeldReply { items })).await.is_err() {
                return;
            }
        }
    }
}

fn held_unpin(item: &Item, cause: Cause) -> HeldUnpin {
    let options = types::Pin::decode(item.pin.as_slice()).ok().and_then(|pin| pin.options);
    HeldUnpin {
        cid: item.cid.clone(),
        name: options.unwrap_or_default().name,
        cause: cause as i32,
        why: item.error.clone(),
    }
}

async fn list(rooms: &Rooms, call: StatusAllCall, replies: &Replies) {
    rooms.tracker.followed(call.min_index).await;
    let filter = Filter(call.filter);
    let mut left = if call.limit == 0 { u64::MAX } else { call.limit };
    let mut after = Some(call.after);
    while let Some(from) = after.filter(|_| left > 0) {
        let mut page = match rooms.tracker.page(&from, filter).await {
            Ok(page) => page,
            Err(error) => return fail(replies, error).await,
        };
        page.infos.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= page.infos.len() as u64;
        if send(replies, page.infos).await.is_err() {
            return;
        }
        after = page.next;
    }
}

async fn recover_all(rooms: &Rooms, replies: &Replies) {
    let mut after = Some(Vec::new());
    while let Some(from) = after {
        let page = match rooms.tracker.recover_page(&from).await {
            Ok(page) => page,
            Err(error) => return fail(replies, error).await,
        };
        if send(replies, page.infos).await.is_err() {
            return;
        }
        after = page.next;
    }
}

async fn send(replies: &Replies, mut infos: Vec<PinInfo>) -> Result<(), Ended> {
    while !infos.is_empty() {
        let rest = infos.split_off(infos.len().min(CHUNK));
        replies.send(Ok(StatusAllReply { infos })).await.map_err(|_| Ended)?;
        infos = rest;
    }
    Ok(())
}

async fn fail(replies: &Replies, error: ConnectorError) {
    // Who does not listen any more needs no reason.
    let _ = replies.send(Err(error.into())).await;
}

async fn collect(rooms: &Rooms, replies: &mpsc::Sender<Result<GcReply, Status>>) {
    let mut events = rooms.node.gc().ready_chunks(CHUNK);
    while let Some(chunk) = events.next().await {
        let mut keys = Vec::with_capacity(chunk.len());
        let mut failure = None;
        for event in chunk {
            match event {
                Ok(GcEvent::Removed(cid)) => keys.push(GcKey { cid: cid.to_bytes(), error: String::new() }),
                Ok(GcEvent::Failed(error)) => keys.push(GcKey { cid: Vec::new(), error }),
                Err(error) => failure = Some(error),
            }
        }
        if !keys.is_empty() && replies.send(Ok(GcReply { keys })).await.is_err() {
            return;
        }
        if let Some(error) = failure {
            // The GC broke off; what it removed until then was told.
            let _ = replies.send(Err(Error::from(error).into())).await;
            return;
        }
    }
    rooms.trigger.hit();
}
