//! The called side: other nodes' messages (`pinfold.consensus.v1.Raft`), checked and handed to the library.
//!
//! The audience layer has verified that the caller holds a certificate of this cluster's authority. Here each message
//! must further be of this cluster, for this node, and from a node that is not removed; and a node that is known speaks
//! with its own peer's key only. A node that is not known is heard: this one may have slept through its joining.

mod snapshot;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use openraft::raft::{StreamAppendError, TransferLeaderRequest};
use parking_lot::Mutex;
use pinfold_common::audience::caller;
use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::{Code, Error, PeerId};
use pinfold_proto::consensus as wire;
use pinfold_proto::consensus::append_reply::Result as Outcome;
use pinfold_proto::consensus::raft_server::RaftServer;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::Node;
use super::contact::Contacts;
use super::types::{
    AppendEntriesRequest, Entry, Raft, StreamAppendResult, Vote, VoteRequest, VoteResponse, entry_of,
    log_id_from_proto, log_id_to_proto, vote_from_proto, vote_to_proto,
};
use crate::store::{Record, State};

/// Snapshots received at once: a leader that changed may have left one half sent.
const MAX_INCOMING_SNAPSHOTS: usize = 2;

/// What the messages of other nodes reach.
pub struct Service {
    raft: Raft,
    state: State,
    cluster_id: Vec<u8>,
    own: u64,
    contacts: Contacts,
    patience: Duration,
    incoming_snapshots: Semaphore,
    /// Streams end with the node.
    stopping: CancellationToken,
}

/// The gRPC service of a node.
pub fn service(node: &Node) -> RaftServer<RaftHandlers> {
    let service = Service {
        raft: node.raft().clone(),
        state: node.stores().state.clone(),
        cluster_id: node.cluster_id().to_vec(),
        own: node.id(),
        contacts: node.contacts().clone(),
        patience: node.config().network_timeout,
        incoming_snapshots: Semaphore::new(MAX_INCOMING_SNAPSHOTS),
        stopping: node.stopping().clone(),
    };
    RaftServer::new(RaftHandlers(Arc::new(service)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

pub struct RaftHandlers(Arc<Service>);

#[tonic::async_trait]
impl wire::raft_server::Raft for RaftHandlers {
    type AppendStream = BoxStream<'static, Result<wire::AppendReply, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let peer = caller(&request)?;
        let service = self.0.clone();
        let refused = Arc::new(Mutex::new(None));
        let input = service.clone().requests(peer, request.into_inner(), refused.clone());
        let answers = service.raft.stream_append(input).map(encode_append);
        // The stream is ordered: after a bad item nothing may follow, and the caller hears why.
        let reason = stream::once(async move { refused.lock().take() }).filter_map(|reason| async { reason.map(Err) });
        let stopping = service.stopping.clone();
        Ok(Response::new(answers.chain(reason).take_until(stopping.cancelled_owned()).boxed()))
    }

    async fn vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteReply>, Status> {
        let peer = caller(&request)?;
        let rpc = self.0.admit_vote(peer, request.into_inner())?;
        let answer = self.0.raft.vote(rpc).await.map_err(stopped)?;
        Ok(Response::new(encode_vote(&answer)))
    }

    async fn pre_vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteReply>, Status> {
        let peer = caller(&request)?;
        let rpc = self.0.admit_vote(peer, request.into_inner())?;
        let answer = self.0.raft.pre_vote(rpc).await.map_err(stopped)?;
        Ok(Response::new(encode_vote(&answer)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<wire::SnapshotReply>, Status> {
        let peer = caller(&request)?;
        Ok(Response::new(self.0.receive_snapshot(peer, request.into_inner()).await?))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderReply>, Status> {
        let peer = caller(&request)?;
        let request = request.into_inner();
        self.0.admit(peer, request.target.as_ref())?;
        let from = required(request.from_leader.as_ref().map(vote_from_proto), "from_leader")?;
        let last_log_id = request.last_log_id.as_ref().map(log_id_from_proto);
        let rpc = TransferLeaderRequest::new(from, request.to_node, last_log_id);
        let answer = self.0.raft.handle_transfer_leader(rpc).await.map_err(stopped)?;
        let refused = answer.err().map(|refusal| refusal.to_string()).unwrap_or_default();
        Ok(Response::new(wire::TransferLeaderReply { refused }))
    }
}

impl Service {
    /// Whether a message may be heard at all; the node it is from.
    fn admit(&self, peer: PeerId, target: Option<&wire::Target>) -> Result<u64, Error> {
        let target = required(target, "target")?;
        if target.cluster_id != self.cluster_id {
            return Err(Error::new(Code::Incompatible, "the message is of another cluster"));
        }
        if target.to != self.own {
            let (to, own) = (target.to, self.own);
            return Err(Error::rejected(format!("the message is for node {to:x}, and this is node {own:x}")));
        }
        let facts = self.state.facts();
        if facts.peers.is_removed(target.from) {
            return Err(Error::new(Code::Removed, format!("node {:x} was removed from this cluster", target.from)));
        }
        if facts.peers.node(target.from).is_some_and(|row| row.peer_id != peer.to_bytes()) {
            return Err(Error::new(Code::PermissionDenied, format!("node {:x} is not of peer {peer}", target.from)));
        }
        self.contacts.heard(target.from);
        Ok(target.from)
    }

    fn admit_vote(&self, peer: PeerId, request: wire::VoteRequest) -> Result<VoteRequest, Error> {
        self.admit(peer, request.target.as_ref())?;
        let vote = required(request.vote.as_ref().map(vote_from_proto), "vote")?;
        let mut rpc = VoteRequest::new(vote, request.last_log_id.as_ref().map(log_id_from_proto));
        rpc.leadership_transfer = request.leadership_transfer;
        Ok(rpc)
    }

    fn admit_append(&self, peer: PeerId, request: wire::AppendRequest) -> Result<AppendEntriesRequest, Error> {
        self.admit(peer, request.target.as_ref())?;
        let vote = required(request.vote.as_ref().map(vote_from_proto), "vote")?;
        if !vote.committed {
            return Err(Error::invalid("append: its sender does not lead"));
        }
        let previous = request.previous.as_ref().map(log_id_from_proto);
        let mut entries = Vec::with_capacity(request.entries.len());
        let first = previous.as_ref().map_or(0, |id| id.index() + 1);
        for (due, encoded) in (first..).zip(request.entries) {
            let entry = decode_entry(encoded)?;
            if entry.log_id.index() != due {
                return Err(Error::invalid(format!("append: entry {} where {due} was due", entry.log_id.index())));
            }
            entries.push(entry);
        }
        let leader_commit = request.leader_commit.as_ref().map(log_id_from_proto);
        Ok(AppendEntriesRequest { vote, prev_log_id: previous, entries, leader_commit })
    }

    /// The requests of a stream up to the first bad one, whose error stays in `refused`.
    fn requests(
        self: Arc<Self>,
        peer: PeerId,
        messages: Streaming<wire::AppendRequest>,
        refused: Arc<Mutex<Option<Status>>>,
    ) -> impl Stream<Item = AppendEntriesRequest> + Send + 'static {
        stream::unfold(messages, move |mut messages| {
            let service = self.clone();
            let refused = refused.clone();
            async move {
                let request = match messages.message().await {
                    Ok(Some(request)) => service.admit_append(peer, request),
                    // The caller has ended the stream, or it broke.
                    Ok(None) | Err(_) => return None,
                };
                match request {
                    Ok(request) => Some((request, messages)),
                    Err(error) => {
                        tracing::warn!(%error, %peer, "refused a Raft message");
                        *refused.lock() = Some(error.into());
                        None
                    }
                }
            }
        })
    }
}

fn required<T>(field: Option<T>, name: &str) -> Result<T, Error> {
    field.ok_or_else(|| Error::invalid(format!("raft message: {name} is missing")))
}

fn decode_entry(encoded: Bytes) -> Result<Entry, Error> {
    let entry = Record::decode(encoded).and_then(|record| entry_of(&record));
    entry.map_err(|error| Error::invalid(format!("append: {error}")))
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Error::unavailable(format!("this node is stopping: {error}")).into()
}

fn encode_append<E: std::fmt::Display>(answer: Result<StreamAppendResult, E>) -> Result<wire::AppendReply, Status> {
    let result = match answer.map_err(stopped)? {
        Ok(matching) => {
            let matching = matching.as_ref().map(log_id_to_proto);
            Outcome::Partial(wire::append_reply::Partial { matching })
        }
        Err(StreamAppendError::Conflict(log_id)) => Outcome::Conflicting(log_id_to_proto(&log_id)),
        Err(StreamAppendError::HigherVote(vote)) => Outcome::HigherVote(vote_to_proto(&vote)),
    };
    Ok(wire::AppendReply { result: Some(result) })
}

fn encode_vote(answer: &VoteResponse) -> wire::VoteReply {
    let vote: &Vote = &answer.vote;
    wire::VoteReply {
        vote: Some(vote_to_proto(vote)),
        granted: answer.vote_granted,
        last_log_id: answer.last_log_id.as_ref().map(log_id_to_proto),
    }
}
