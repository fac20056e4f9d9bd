//! The calling side: how this node's library reaches the other nodes (`pinfold.consensus.v1.Raft`).
//!
//! Replication, the pulse (heartbeats, votes, hand-overs) and snapshots have a connection each, so that a megabyte of
//! entries or a file on its way does not hold up the heartbeat behind it.

mod append;
mod snapshot;

pub use snapshot::meta_to_proto;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
};
use openraft::raft::{SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse};
use pinfold_common::channel::{Channels, Hints, MAX_MESSAGE_BYTES, call};
use pinfold_common::tls::{Room, Tls};
use pinfold_common::{Code, Error, ids};
use pinfold_proto::consensus as wire;
use pinfold_proto::consensus::raft_client::RaftClient;
use tokio::sync::watch;
use tonic::transport::Channel;

use super::contact::Contacts;
use super::machine::{MachineSnapshot, SnapshotData, Transfers};
use super::types::{
    Address, AppendEntriesRequest, RpcError, StreamAppendResult, Types, Vote, VoteRequest, VoteResponse,
    log_id_from_proto, log_id_to_proto, vote_from_proto, vote_to_proto,
};
use append::Waits;

/// After a snapshot that could not be delivered; doubled each time.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(250);
const SNAPSHOT_PAUSE_AT_MOST: Duration = Duration::from_secs(30);

/// The connections to other nodes, by what they carry.
#[derive(Clone, Debug)]
pub struct Links {
    replication: Channels,
    pulse: Channels,
    snapshots: Channels,
}

impl Links {
    pub fn new(tls: &Arc<Tls>, hints: &Hints) -> Links {
        let channels = || Channels::with_hints(tls.clone(), hints.clone());
        Links { replication: channels(), pulse: channels(), snapshots: channels() }
    }
}

/// What every call needs.
#[derive(Clone)]
pub struct Context {
    pub links: Links,
    pub cluster_id: Vec<u8>,
    pub own: u64,
    pub contacts: Contacts,
    pub transfers: Transfers,
    /// Set when another node says that this one was removed.
    pub removed: watch::Sender<bool>,
    /// Without an answer for so long a stream is given up.
    pub patience: Duration,
    pub install_timeout: Duration,
}

#[derive(Clone)]
pub struct Network(pub Arc<Context>);

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Address) -> Peer {
        self.peer(target, node, &self.0.links.replication, Use::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Address) -> Peer {
        self.peer(target, node, &self.0.links.pulse, Use::Pulse)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Address) -> Peer {
        self.peer(target, node, &self.0.links.snapshots, Use::Snapshots)
    }
}

impl Network {
    fn peer(&self, target: u64, node: &Address, channels: &Channels, used_for: Use) -> Peer {
        let link = |channels: &Channels| {
            let peer = ids::peer_from_bytes(&node.peer_id)?;
            Ok(channels.to(Room::Consensus, &peer, &node.host_port))
        };
        let pulse = link(&self.0.links.pulse);
        Peer { context: self.0.clone(), target, used_for, link: link(channels), pulse }
    }
}

#[derive(Clone, Copy)]
enum Use {
    Replication,
    Pulse,
    Snapshots,
}

/// One other node.
pub struct Peer {
    context: Arc<Context>,
    target: u64,
    used_for: Use,
    /// For what this client is for; votes and hand-overs always take the pulse.
    link: Result<Channel, Error>,
    pulse: Result<Channel, Error>,
}

fn client(link: &Result<Channel, Error>) -> Result<RaftClient<Channel>, Error> {
    let client = RaftClient::new(link.clone()?);
    Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES))
}

impl Peer {
    fn addressed(&self) -> Option<wire::Target> {
        Some(self.context.addressed(self.target))
    }

    /// Notes what an answer says about the two nodes.
    fn observe<T>(&self, answer: Result<T, Error>) -> Result<T, RpcError> {
        self.context.observe(self.target, answer)
    }

    async fn ask_vote(&mut self, ask: Ballot, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        let request = wire::VoteRequest {
            target: self.addressed(),
            vote: Some(vote_to_proto(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(log_id_to_proto),
            leadership_transfer: rpc.leadership_transfer,
        };
        let deadline = option.soft_ttl();
        let answer = async {
            let mut client = client(&self.pulse)?;
            match ask {
                Ballot::Vote => call("ask for a vote", deadline, client.vote(request)).await,
                Ballot::PreVote => call("ask for a pre-vote", deadline, client.pre_vote(request)).await,
            }
        };
        let reply = self.observe(answer.await)?;
        // A reply without its vote is no vote: silence must not elect.
        let vote = reply.vote.ok_or_else(|| unreachable_node("a vote's answer without a vote"))?;
        let last_log_id = reply.last_log_id.as_ref().map(log_id_from_proto);
        Ok(VoteResponse::new(vote_from_proto(&vote), last_log_id, reply.granted))
    }
}

#[derive(Clone, Copy)]
enum Ballot {
    Vote,
    PreVote,
}

impl Context {
    fn addressed(&self, target: u64) -> wire::Target {
        wire::Target { cluster_id: self.cluster_id.clone(), to: target, from: self.own }
    }

    /// Every failure is *unreachable*: the library then waits before it tries again, and counts no vote.
    fn observe<T>(&self, target: u64, answer: Result<T, Error>) -> Result<T, RpcError> {
        match answer {
            Ok(answer) => {
                self.contacts.heard(target);
                Ok(answer)
            }
            Err(error) => {
                if error.code == Code::Removed {
                    self.removed.send_if_modified(|removed| !std::mem::replace(removed, true));
                }
                Err(unreachable_node(error))
            }
        }
    }
}

fn unreachable_node(why: impl ToString) -> RpcError {
    RpcError::Unreachable(Unreachable::from_string(why))
}

fn broken(why: impl ToString) -> RpcError {
    RpcError::Network(NetworkError::from_string(why))
}

impl NetVote<Types> for Peer {
    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.ask_vote(Ballot::Vote, rpc, option).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.ask_vote(Ballot::PreVote, rpc, option).await
    }
}

impl NetTransferLeader<Types> for Peer {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RpcError> {
        let request = wire::TransferLeaderRequest {
            target: self.addressed(),
            from_leader: Some(vote_to_proto(req.from_leader())),
            to_node: *req.to_node_id(),
            last_log_id: req.last_log_id().map(log_id_to_proto),
        };
        let answer = async {
            let mut client = client(&self.pulse)?;
            call("hand over the lead", option.soft_ttl(), client.transfer_leader(request)).await
        };
        let reply = self.observe(answer.await)?;
        // The library only logs a refusal.
        if reply.refused.is_empty() { Ok(Ok(())) } else { Err(broken(reply.refused)) }
    }
}

impl NetStreamAppend<Types> for Peer {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult, RpcError>>, RpcError>>
    where
        S: futures::Stream<Item = AppendEntriesRequest> + OptionalSend + Unpin + 'static,
    {
        let _ = option;
        let waits = match self.used_for {
            Use::Replication => Waits::REPLICATION,
            Use::Pulse | Use::Snapshots => Waits::PULSE,
        };
        Box::pin(async move { append::run(&self.context, self.target, client(&self.link), input, waits).await })
    }
}

impl NetSnapshot<Types> for Peer {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: MachineSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let _ = option;
        tokio::select! {
            sent = snapshot::send(&self.context, self.target, client(&self.link), vote, snapshot) => sent,
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

impl NetBackoff<Types> for Peer {
    /// A snapshot costs a copy of the state each time: a receiver that can't take it is asked ever more rarely. The
    /// rest is configured.
    fn backoff(&self) -> Option<Backoff> {
        match self.used_for {
            Use::Replication | Use::Pulse => None,
            Use::Snapshots => {
                let doubled = |pause: &Duration| Some((*pause * 2).min(SNAPSHOT_PAUSE_AT_MOST));
                Some(Backoff::new(std::iter::successors(Some(SNAPSHOT_PAUSE), doubled)))
            }
        }
    }
}
