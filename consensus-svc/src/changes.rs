//! Committed changes for followers, from a cursor on (protocols.md 8). A follower says how far it came; it is told to
//! wait (*behind*: this peer knows less than it), to go on (*resume*), or to compare the whole pinset in key order.
//!
//! Level, not edge: each round looks at what the ring of recent changes has above the follower's index; the watches
//! only say when to look again. Memory is bounded by the channel and the size of one message. Why pages that are read
//! one by one make a consistent comparison: see `store::state`.

use std::sync::Arc;
use std::time::Duration;

use pinfold_common::shutdown::Shutdown;
use pinfold_proto::consensus::follow_reply::Message;
use pinfold_proto::consensus::{Behind, Changes, Compare, Cursor, FollowReply, Page, Resume, change};
use pinfold_proto::{consensus, types};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::core::{Core, Position, unreadable};
use crate::pinset::Change;
use crate::store::{self, State};

/// Changes of one message.
const MAX_CHANGES: usize = 256;
/// Pins of one page.
const PAGE_PINS: usize = 256;
/// After a message that was not full, the next one waits for so long: while the pinset is busy a follower takes many
/// changes at once, and a lone change goes at once. Its cost is the follower's, a transaction for each message.
const PACE: Duration = Duration::from_millis(50);
/// Messages that wait for a slow follower.
const QUEUE: usize = 8;

/// The follower is gone, or this service stops.
struct Ended;

struct Follower {
    state: State,
    position: watch::Receiver<Position>,
    applied: watch::Receiver<u64>,
    replies: mpsc::Sender<Result<FollowReply, Status>>,
}

/// The stream for one follower; it ends on `shutdown`.
pub fn follow(
    core: &Arc<Core>,
    cursor: Option<Cursor>,
    shutdown: Shutdown,
) -> ReceiverStream<Result<FollowReply, Status>> {
    let (replies, stream) = mpsc::channel(QUEUE);
    let follower =
        Follower { state: core.state.clone(), position: core.position.clone(), applied: core.state.applied(), replies };
    tokio::spawn(async move { shutdown.race(follower.run(cursor)).await });
    ReceiverStream::new(stream)
}

impl Follower {
    async fn run(mut self, mut cursor: Option<Cursor>) {
        loop {
            match self.follow_from(cursor.take()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let _ = self.replies.send(Err(unreadable(error).into())).await;
                    return;
                }
                Err(Ended) => return,
            }
        }
    }

    /// Until the changes can't be followed any more: the next round compares.
    async fn follow_from(&mut self, cursor: Option<Cursor>) -> Result<store::Result<()>, Ended> {
        let (cluster_id, lineage) = self.cluster().await?;
        let at = |index| Cursor { cluster_id: cluster_id.clone(), lineage, index };
        let known = cursor.filter(|cursor| cursor.cluster_id == cluster_id && cursor.lineage == lineage);
        if let Some(known) = &known
            && known.index > self.state.applied_index()
        {
            self.send(Message::Behind(Behind { index: self.state.applied_index() })).await?;
            self.applied.wait_for(|applied| *applied >= known.index).await.map_err(|_| Ended)?;
        }
        let resumed = known.map(|cursor| cursor.index).filter(|index| self.state.recent().since(*index, 1).is_some());
        let mut index = match resumed {
            Some(index) => {
                self.send(Message::Resume(Resume { cursor: Some(at(index)) })).await?;
                index
            }
            None => {
                let index = self.state.applied_index();
                self.send(Message::Compare(Compare { cursor: Some(at(index)) })).await?;
                if let Err(error) = self.pages(at(index)).await? {
                    return Ok(Err(error));
                }
                index
            }
        };
        let mut told_caught_up = None;
        loop {
            let applied = *self.applied.borrow_and_update();
            let is_current = self.position.borrow_and_update().caught_up;
            if self.state.facts().lineage != lineage {
                return Ok(Ok(()));
            }
            let Some((changes, to)) = self.state.recent().since(index, MAX_CHANGES) else { return Ok(Ok(())) };
            let caught_up = is_current && to >= applied;
            if to > index || told_caught_up != Some(caught_up) {
                let changes = changes.into_iter().map(encode).collect();
                self.send(Message::Changes(Changes { changes, cursor: Some(at(to)), caught_up })).await?;
                index = to;
                told_caught_up = Some(caught_up);
                if to >= applied {
                    tokio::time::sleep(PACE).await;
                }
            }
            if to < applied {
                continue;
            }
            tokio::select! {
                changed = self.applied.changed() => changed.map_err(|_| Ended)?,
                changed = self.position.changed() => changed.map_err(|_| Ended)?,
                () = self.replies.closed() => return Err(Ended),
            }
        }
    }

    /// The cluster's ID and lineage, as soon as there is a cluster.
    async fn cluster(&self) -> Result<(Vec<u8>, u64), Ended> {
        let mut facts = self.state.watch_facts();
        let founded = facts.wait_for(|facts| !facts.cluster_id.is_empty());
        tokio::select! {
            facts = founded => facts.map(|facts| (facts.cluster_id.clone(), facts.lineage)).map_err(|_| Ended),
            () = self.replies.closed() => Err(Ended),
        }
    }

    async fn pages(&self, cursor: Cursor) -> Result<store::Result<()>, Ended> {
        let mut after = Vec::new();
        loop {
            let chunk = match self.state.list(&after, PAGE_PINS, &[]).await {
                Ok(chunk) => chunk,
                Err(error) => return Ok(Err(error)),
            };
            let pins = match decode(&chunk) {
                Ok(pins) => pins,
                Err(error) => return Ok(Err(error)),
            };
            let last = chunk.next.clone().unwrap_or_default();
            let end = chunk.next.is_none();
            self.send(Message::Page(Page { pins, last, end, cursor: Some(cursor.clone()) })).await?;
            match chunk.next {
                Some(next) => after = next,
                None => return Ok(Ok(())),
            }
        }
    }

    async fn send(&self, message: Message) -> Result<(), Ended> {
        self.replies.send(Ok(FollowReply { message: Some(message) })).await.map_err(|_| Ended)
    }
}

/// The pins of a chunk.
pub fn decode(chunk: &store::Chunk) -> store::Result<Vec<types::Pin>> {
    chunk
        .pins
        .iter()
        .map(|bytes| types::Pin::decode(bytes.clone()))
        .collect::<Result<_, _>>()
        .map_err(|error| store::Error::Damaged(format!("decode a pin: {error}")))
}

fn encode(change: Change) -> consensus::Change {
    match change {
        Change::Put { index, pin } => {
            consensus::Change { index, change: Some(change::Change::Put(Arc::unwrap_or_clone(pin))) }
        }
        Change::Removed { index, cid } => consensus::Change { index, change: Some(change::Change::Removed(cid)) },
    }
}
