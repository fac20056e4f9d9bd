//! The consensus library's types, and their forms on disk (`store`) and on the wire (`pinfold_proto::storage`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use openraft::alias::{LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::vote::RaftLeaderId as _;
use pinfold_proto::storage;

use super::machine::Machine;
use crate::pinset::Outcome;
use crate::store::{self, Payload, Record};

openraft::declare_raft_types!(
    /// What the library is configured with. Leaders are told apart by term and node: one term may see two of them, one
    /// after the other.
    pub Types:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = Address,
);

pub type Raft = openraft::Raft<Types, Machine>;
pub type Entry = openraft::alias::EntryOf<Types>;
pub type EntryPayload = openraft::alias::PayloadOf<Types>;
pub type LogId = LogIdOf<Types>;
pub type LeaderId = openraft::alias::LeaderIdOf<Types>;
pub type Vote = VoteOf<Types>;
pub type Membership = openraft::Membership<u64, Address>;
pub type StoredMembership = StoredMembershipOf<Types>;
pub type SnapshotMeta = SnapshotMetaOf<Types>;
pub type RpcError = openraft::errors::RPCError<Types>;
pub type AppendEntriesRequest = openraft::raft::AppendEntriesRequest<Types>;
pub type StreamAppendResult = openraft::raft::StreamAppendResult<Types>;
pub type VoteRequest = openraft::raft::VoteRequest<Types>;
pub type VoteResponse = openraft::raft::VoteResponse<Types>;

/// A command on its way through the log.
#[derive(Clone, Debug)]
pub struct Proposal(pub Arc<store::Proposal>);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.size_bytes())
    }
}

/// What an entry came to; `None` for entries that are no commands.
#[derive(Clone, Debug)]
pub struct Reply(pub Option<Outcome>);

/// Where a node is, and whose it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Binary peer ID.
    pub peer_id: Vec<u8>,
    /// host:port of its consensus service.
    pub host_port: String,
}

pub fn log_id_to_store(id: &LogId) -> store::LogId {
    let leader = id.committed_leader_id();
    store::LogId { term: leader.term, node: leader.node_id, index: id.index() }
}

pub fn log_id_from_store(id: store::LogId) -> LogId {
    LogId::new(LeaderId::new(id.term, id.node), id.index)
}

pub fn log_id_to_proto(id: &LogId) -> storage::LogId {
    log_id_to_store(id).to_proto()
}

pub fn log_id_from_proto(id: &storage::LogId) -> LogId {
    log_id_from_store(store::LogId::from_proto(id))
}

pub fn vote_to_store(vote: &Vote) -> store::Vote {
    store::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub fn vote_from_store(vote: store::Vote) -> Vote {
    Vote { leader_id: LeaderId::new(vote.term, vote.node), committed: vote.committed }
}

pub fn vote_to_proto(vote: &Vote) -> storage::Vote {
    vote_to_store(vote).to_proto()
}

pub fn vote_from_proto(vote: &storage::Vote) -> Vote {
    vote_from_store(store::Vote::from_proto(vote))
}

pub fn membership_to_proto(membership: &Membership) -> storage::Membership {
    let ids = |set: &BTreeSet<u64>| storage::NodeSet { ids: set.iter().copied().collect() };
    storage::Membership {
        configs: membership.get_joint_config().iter().map(ids).collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| storage::Node { id: *id, peer_id: node.peer_id.clone(), address: node.host_port.clone() })
            .collect(),
    }
}

/// Errors: a voter without a node, which no version of ours writes.
pub fn membership_from_proto(membership: &storage::Membership) -> Result<Membership, store::Error> {
    if membership.configs.is_empty() && membership.nodes.is_empty() {
        return Ok(Membership::default());
    }
    let configs = membership.configs.iter().map(|set| set.ids.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, Address> = membership
        .nodes
        .iter()
        .map(|node| (node.id, Address { peer_id: node.peer_id.clone(), host_port: node.address.clone() }))
        .collect();
    Membership::new(configs, nodes).map_err(|error| store::Error::Damaged(format!("decode a membership: {error}")))
}

pub fn stored_membership(membership: &store::Membership) -> Result<StoredMembership, store::Error> {
    let log_id = membership.log_id.map(log_id_from_store);
    Ok(StoredMembership::new(log_id, membership_from_proto(&membership.membership)?))
}

pub fn snapshot_meta(meta: &store::Meta) -> Result<SnapshotMeta, store::Error> {
    Ok(SnapshotMeta {
        last_log_id: meta.applied.map(log_id_from_store),
        last_membership: stored_membership(&meta.membership)?,
    })
}

pub fn record_of(entry: &Entry) -> Record {
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(proposal) => Payload::Command(proposal.0.clone()),
        EntryPayload::Membership(membership) => Payload::Membership(Arc::new(membership_to_proto(membership))),
    };
    Record { id: log_id_to_store(&entry.log_id), payload }
}

pub fn entry_of(record: &Record) -> Result<Entry, store::Error> {
    let payload = match &record.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Command(proposal) => EntryPayload::Normal(Proposal(proposal.clone())),
        Payload::Membership(membership) => EntryPayload::Membership(membership_from_proto(membership)?),
    };
    Ok(Entry { log_id: log_id_from_store(record.id), payload })
}

pub fn io_error(error: store::Error) -> std::io::Error {
    std::io::Error::other(error)
}
