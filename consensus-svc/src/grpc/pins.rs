//! `pinfold.consensus.v1.Pins`: the pinset, for this peer's own gateway and connector.

use std::sync::Arc;

use pinfold_common::Error;
use pinfold_common::ids::cid_from_bytes;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::consensus::pins_server::Pins;
use pinfold_proto::consensus::{
    AllocateCall, AllocateReply, Consistency, FollowCall, FollowReply, GetCall, GetReply, ListCall, ListReply, PinCall,
    PinManyCall, PinManyReply, PinReply, ReplicationCall, ReplicationReply, UnpinCall,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::pin_many_reply;
use crate::changes;
use crate::coordinator::{Coordinator, Origin, single};
use crate::core::{Core, unreadable};
use crate::store::Chunk;

/// Pins of one chunk of a list.
const CHUNK_PINS: usize = 512;
/// Pins of one message, together; one alone may be more.
const MESSAGE_BYTES: usize = 1 << 20;
/// Chunks that wait for a slow reader.
const LIST_QUEUE: usize = 4;

pub struct PinsService {
    pub core: Arc<Core>,
    pub coordinator: Coordinator,
    pub shutdown: Shutdown,
}

#[tonic::async_trait]
impl Pins for PinsService {
    async fn pin(&self, request: Request<PinCall>) -> Result<Response<PinReply>, Status> {
        let call = request.into_inner();
        let asked = call.request.ok_or_else(|| Error::invalid("request: missing"))?;
        let user_allocations = asked.user_allocations.clone();
        let answer = self.coordinator.pin(vec![asked], call.request_key, Origin::Own).await?;
        let (pin, index) = single(answer)?;
        Ok(Response::new(PinReply { pin: Some(pin), index, user_allocations }))
    }

    async fn pin_many(&self, request: Request<PinManyCall>) -> Result<Response<PinManyReply>, Status> {
        let call = request.into_inner();
        let answer = self.coordinator.pin(call.requests, call.request_key, Origin::Own).await?;
        Ok(Response::new(pin_many_reply(answer)))
    }

    async fn unpin(&self, request: Request<UnpinCall>) -> Result<Response<PinReply>, Status> {
        let call = request.into_inner();
        let (pin, index) = self.coordinator.unpin(call.cid, call.request_key, Origin::Own).await?;
        Ok(Response::new(PinReply { pin: Some(pin), index, user_allocations: Vec::new() }))
    }

    async fn get(&self, request: Request<GetCall>) -> Result<Response<GetReply>, Status> {
        let call = request.into_inner();
        cid_from_bytes(&call.cid)?;
        self.wait_for(call.consistency(), call.min_index).await?;
        let index = self.core.state.applied_index();
        let pin = self.core.state.get(&call.cid).await.map_err(unreadable)?;
        Ok(Response::new(GetReply { pin, index, stale: self.is_stale() }))
    }

    type ListStream = ReceiverStream<Result<ListReply, Status>>;

    async fn list(&self, request: Request<ListCall>) -> Result<Response<Self::ListStream>, Status> {
        let call = request.into_inner();
        self.wait_for(call.consistency(), call.min_index).await?;
        let (replies, stream) = mpsc::channel(LIST_QUEUE);
        let (core, stale) = (self.core.clone(), self.is_stale());
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move { shutdown.race(list(core, call, stale, replies)).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type FollowStream = ReceiverStream<Result<FollowReply, Status>>;

    async fn follow(&self, request: Request<FollowCall>) -> Result<Response<Self::FollowStream>, Status> {
        let cursor = request.into_inner().cursor;
        Ok(Response::new(changes::follow(&self.core, cursor, self.shutdown.clone())))
    }

    async fn allocate_for_add(&self, request: Request<AllocateCall>) -> Result<Response<AllocateReply>, Status> {
        Ok(Response::new(self.coordinator.allocate_for_add(request.into_inner(), Origin::Own).await?))
    }

    async fn replication(&self, _: Request<ReplicationCall>) -> Result<Response<ReplicationReply>, Status> {
        let counts = self.core.replication.counts(&self.core.state).await.map_err(unreadable)?;
        Ok(Response::new(ReplicationReply {
            pins: self.core.state.pin_count(),
            under_replicated: counts.under_replicated,
            over_replicated: counts.over_replicated,
            lost: counts.lost,
            partial: counts.is_partial,
            index: counts.index,
        }))
    }
}

impl PinsService {
    async fn wait_for(&self, consistency: Consistency, min_index: u64) -> Result<(), Error> {
        let index = match consistency {
            Consistency::Local => min_index,
            Consistency::Linearizable => self.core.read_index(Origin::Own).await?.max(min_index),
        };
        self.core.wait_applied(index).await
    }

    /// Something that is committed may be missing here: there is no leader, or what it had is not applied yet.
    fn is_stale(&self) -> bool {
        !self.core.position.borrow().caught_up
    }
}

/// Chunk after chunk, in constant memory; the next one is read while one is sent. The first one is sent even when it is
/// empty: it has the index.
async fn list(core: Arc<Core>, call: ListCall, stale: bool, replies: mpsc::Sender<Result<ListReply, Status>>) {
    let mut left = if call.limit == 0 { u64::MAX } else { call.limit };
    // With a filter, few rows may be wanted of many that are looked at.
    let rows = |left: u64| match call.types.as_slice() {
        [] => CHUNK_PINS.min(usize::try_from(left).unwrap_or(usize::MAX)),
        [..] => CHUNK_PINS,
    };
    let mut read = core.state.list(&call.after, rows(left), &call.types).await;
    let mut is_first = true;
    loop {
        let mut chunk = match read {
            Ok(chunk) => chunk,
            Err(error) => {
                let _ = replies.send(Err(unreadable(error).into())).await;
                return;
            }
        };
        chunk.pins.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left = left.saturating_sub(chunk.pins.len() as u64);
        let next = chunk.next.take().filter(|_| left > 0);
        let is_told = is_first || !chunk.pins.is_empty();
        let sending = async { if is_told { send(&replies, chunk, stale).await } else { Ok(()) } };
        let Some(next) = next else {
            let _ = sending.await;
            return;
        };
        let (sent, ahead) = tokio::join!(sending, core.state.list(&next, rows(left), &call.types));
        if sent.is_err() {
            return;
        }
        read = ahead;
        is_first = false;
    }
}

/// The pins of a chunk in messages that are not too large; at least one.
async fn send(
    replies: &mpsc::Sender<Result<ListReply, Status>>,
    chunk: Chunk,
    stale: bool,
) -> Result<(), mpsc::error::SendError<Result<ListReply, Status>>> {
    let mut pins = chunk.pins.into_iter().peekable();
    loop {
        let (mut message, mut bytes) = (Vec::new(), 0);
        while let Some(pin) = pins.next_if(|pin| message.is_empty() || bytes + pin.len() <= MESSAGE_BYTES) {
            bytes += pin.len();
            message.push(pin);
        }
        replies.send(Ok(ListReply { pins: message, index: chunk.index, stale })).await?;
        if pins.peek().is_none() {
            return Ok(());
        }
    }
}
