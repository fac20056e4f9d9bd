//! A consensus-svc of one peer that only `Follow` works of: a log in memory, compaction and restore on demand.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pinfold_common::peerset::{PeersHandle, View};
use pinfold_common::server;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Tls;
use pinfold_proto::consensus::follow_reply::Message;
use pinfold_proto::consensus::pins_server::{Pins, PinsServer};
use pinfold_proto::consensus::*;
use pinfold_proto::types;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Changes of one message.
const MAX_CHANGES: usize = 256;

struct State {
    lineage: u64,
    index: u64,
    pins: BTreeMap<Vec<u8>, types::Pin>,
    /// What is above `compacted`.
    log: Vec<Change>,
    compacted: u64,
}

/// Clones share the pinset.
#[derive(Clone)]
pub struct Pinset {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    caught_up: watch::Sender<bool>,
}

impl Default for Pinset {
    fn default() -> Pinset {
        let state = State { lineage: 1, index: 0, pins: BTreeMap::new(), log: Vec::new(), compacted: 0 };
        Pinset {
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(0),
            caught_up: watch::Sender::new(true),
        }
    }
}

impl Pinset {
    /// Commits entries; gives the index of the last.
    pub fn put(&self, pins: impl IntoIterator<Item = types::Pin>) -> u64 {
        let mut state = self.state.lock();
        for mut pin in pins {
            state.index += 1;
            pin.revision = state.index;
            let change = Change { index: pin.revision, change: Some(change::Change::Put(pin.clone())) };
            state.log.push(change);
            state.pins.insert(pin.cid.clone(), pin);
        }
        self.changed.send_replace(state.index);
        state.index
    }

    pub fn remove(&self, cid: &[u8]) -> u64 {
        let mut state = self.state.lock();
        state.index += 1;
        state.pins.remove(cid);
        let change = Change { index: state.index, change: Some(change::Change::Removed(cid.to_vec())) };
        state.log.push(change);
        self.changed.send_replace(state.index);
        state.index
    }

    /// Forgets the log: who is behind must compare.
    pub fn compact(&self) {
        let mut state = self.state.lock();
        state.compacted = state.index;
        state.log.clear();
    }

    /// Another pinset in place of this one, as an import does.
    pub fn restore(&self, pins: impl IntoIterator<Item = types::Pin>) {
        {
            let mut state = self.state.lock();
            state.lineage += 1;
            state.pins.clear();
            state.log.clear();
            state.compacted = state.index;
        }
        self.put(pins);
    }

    /// Whether followers are told that nothing is missing.
    pub fn set_caught_up(&self, caught_up: bool) {
        self.caught_up.send_replace(caught_up);
    }

    async fn follow(self, cursor: Option<Cursor>, replies: mpsc::Sender<Result<FollowReply, Status>>) -> Option<()> {
        let send = async |message| replies.send(Ok(FollowReply { message: Some(message) })).await.ok();
        let mut changed = self.changed.subscribe();
        let mut caught_up = self.caught_up.subscribe();
        let (lineage, opening, mut index) = {
            let state = self.state.lock();
            let at = |index| Some(Cursor { cluster_id: vec![1], lineage: state.lineage, index });
            let known = cursor.filter(|cursor| cursor.lineage == state.lineage && cursor.index >= state.compacted);
            match known {
                Some(cursor) => {
                    (state.lineage, vec![Message::Resume(Resume { cursor: at(cursor.index) })], cursor.index)
                }
                None => {
                    let pins: Vec<types::Pin> = state.pins.values().cloned().collect();
                    let mut opening = vec![Message::Compare(Compare { cursor: at(state.index) })];
                    let chunks: Vec<&[types::Pin]> = pins.chunks(3).collect();
                    for chunk in chunks {
                        let last = chunk.last().map(|pin| pin.cid.clone()).unwrap_or_default();
                        opening.push(Message::Page(Page { pins: chunk.to_vec(), last, end: false, cursor: None }));
                    }
                    let end = Page { pins: Vec::new(), last: Vec::new(), end: true, cursor: at(state.index) };
                    opening.push(Message::Page(end));
                    (state.lineage, opening, state.index)
                }
            }
        };
        for message in opening {
            send(message).await?;
        }
        loop {
            let (message, is_all) = {
                let state = self.state.lock();
                if state.lineage != lineage || index < state.compacted {
                    return None;
                }
                let above = state.log.partition_point(|change| change.index <= index);
                let changes: Vec<Change> = state.log[above..].iter().take(MAX_CHANGES).cloned().collect();
                index = changes.last().map_or(state.index, |change| change.index);
                let is_all = index == state.index;
                let cursor = Some(Cursor { cluster_id: vec![1], lineage, index });
                (Changes { changes, cursor, caught_up: *caught_up.borrow_and_update() && is_all }, is_all)
            };
            send(Message::Changes(message)).await?;
            if !is_all {
                continue;
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = caught_up.changed() => {}
                () = replies.closed() => return None,
            }
        }
    }
}

/// Serves on a port of its own; gives host:port.
pub async fn serve(pinset: Pinset, tls: Arc<Tls>, stop: Shutdown) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let routes = tonic::service::Routes::new(PinsServer::new(Service { pinset, stop: stop.clone() }));
    let members = Arc::new(PeersHandle::fixed(View::default()));
    tokio::spawn(server::serve(listener, tls, members, routes, stop));
    address
}

struct Service {
    pinset: Pinset,
    stop: Shutdown,
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this stand-in is only followed"))
}

#[tonic::async_trait]
impl Pins for Service {
    type ListStream = ReceiverStream<Result<ListReply, Status>>;
    type FollowStream = ReceiverStream<Result<FollowReply, Status>>;

    async fn follow(&self, request: Request<FollowCall>) -> Result<Response<Self::FollowStream>, Status> {
        let (replies, stream) = mpsc::channel(4);
        let (pinset, stop) = (self.pinset.clone(), self.stop.clone());
        let cursor = request.into_inner().cursor;
        tokio::spawn(async move { stop.race(pinset.follow(cursor, replies)).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn pin(&self, _: Request<PinCall>) -> Result<Response<PinReply>, Status> {
        not_here()
    }

    async fn pin_many(&self, _: Request<PinManyCall>) -> Result<Response<PinManyReply>, Status> {
        not_here()
    }

    async fn unpin(&self, _: Request<UnpinCall>) -> Result<Response<PinReply>, Status> {
        not_here()
    }

    async fn get(&self, _: Request<GetCall>) -> Result<Response<GetReply>, Status> {
        not_here()
    }

    async fn list(&self, _: Request<ListCall>) -> Result<Response<Self::ListStream>, Status> {
        not_here()
    }

    async fn allocate_for_add(&self, _: Request<AllocateCall>) -> Result<Response<AllocateReply>, Status> {
        not_here()
    }

    async fn replication(&self, _: Request<ReplicationCall>) -> Result<Response<ReplicationReply>, Status> {
        not_here()
    }
}
