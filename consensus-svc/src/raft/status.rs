//! What is known about Raft here and now, from the library's metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use openraft::{Instant as _, RaftMetrics, ServerState};

use super::NodeAndPeer;
use super::contact::Contacts;
use super::error::node_and_peer;
use super::types::Types;
use super::watching::knows_something;
use crate::store;

/// A leader that was not heard from for so many times the patience is none.
const LEADER_SILENCE: u32 = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Not a member of any cluster yet, as far as this node knows.
    #[default]
    Joining,
    Learner,
    Follower,
    Candidate,
    Leader,
    /// The library has ended.
    Stopped,
}

/// What the leader knows of another node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Follower {
    /// The newest entry that it surely has; `None`: not known yet.
    pub matched: Option<u64>,
    /// When it last answered.
    pub last_contact: Option<Instant>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct RaftStatus {
    pub role: Role,
    pub term: u64,
    /// `None`: none known, or it is not heard from any more.
    pub leader: Option<NodeAndPeer>,
    /// This node leads and has applied the first entry of its own term: what it reads is current enough to decide by.
    pub is_ready_to_lead: bool,
    /// A vote was ever seen or an entry written: this node is or was in a cluster.
    pub is_initialized: bool,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    /// The state up to here is on disk.
    pub snapshot_index: u64,
    pub purged_index: u64,
    /// Of all configurations while joint.
    pub voters: BTreeSet<u64>,
    pub learners: BTreeSet<u64>,
    /// A change of the voters is half done: see `Node::finish_joint`.
    pub is_joint: bool,
    /// The membership above is committed.
    pub is_membership_committed: bool,
    pub nodes: BTreeMap<u64, NodeAndPeer>,
    /// At the leader; without itself.
    pub followers: BTreeMap<u64, Follower>,
    /// This node leads and a majority answers. Without one it can't commit, and another may lead by now.
    pub has_quorum: bool,
}

impl RaftStatus {
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    pub fn is_member(&self, node_id: u64) -> bool {
        self.nodes.contains_key(&node_id)
    }

    /// How many entries the node is behind, at the leader; `None`: not known, or a snapshot is being sent.
    pub fn lag(&self, node_id: u64) -> Option<u64> {
        let matched = self.followers.get(&node_id)?.matched?;
        Some(self.last_log_index.saturating_sub(matched))
    }
}

/// `applied`: by the state, which may be behind what the library has given it. `patience`: for so long an answer of a
/// majority counts.
pub(super) fn status_of(
    metrics: &RaftMetrics<Types>,
    applied: Option<store::LogId>,
    contacts: &Contacts,
    patience: Duration,
) -> RaftStatus {
    let membership = metrics.membership_config.membership();
    let nodes: BTreeMap<u64, NodeAndPeer> =
        membership.nodes().filter_map(|(id, address)| Some((*id, node_and_peer(*id, address)?))).collect();
    let is_member = membership.get_node(&metrics.id).is_some();
    let role = match (&metrics.running_state, metrics.state) {
        (Err(_), _) | (Ok(()), ServerState::Shutdown) => Role::Stopped,
        (Ok(()), ServerState::Leader) => Role::Leader,
        (Ok(()), ServerState::Candidate) => Role::Candidate,
        (Ok(()), ServerState::Follower) => Role::Follower,
        (Ok(()), ServerState::Learner) if is_member => Role::Learner,
        (Ok(()), ServerState::Learner) => Role::Joining,
    };
    let is_own_term_applied =
        applied.is_some_and(|applied| (applied.term, applied.node) == (metrics.current_term, metrics.id));
    let index = |id: &Option<super::types::LogId>| id.as_ref().map_or(0, |id| id.index());
    // The library goes on naming the leader it once followed: with pre-votes, a node that is cut off never gets past it.
    let is_heard = |leader: u64| {
        leader == metrics.id || contacts.last(leader).is_some_and(|at| at.elapsed() < LEADER_SILENCE * patience)
    };
    RaftStatus {
        role,
        term: metrics.current_term,
        leader: metrics
            .current_leader
            .filter(|leader| is_heard(*leader))
            .and_then(|leader| nodes.get(&leader).cloned()),
        is_ready_to_lead: role == Role::Leader && is_own_term_applied,
        is_initialized: knows_something(metrics),
        last_log_index: metrics.last_log_index.unwrap_or(0),
        committed_index: index(&metrics.cluster_committed),
        applied_index: applied.map_or(0, |id| id.index),
        snapshot_index: index(&metrics.snapshot),
        purged_index: index(&metrics.purged),
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().collect(),
        is_joint: membership.get_joint_config().len() > 1,
        is_membership_committed: metrics.membership_config == metrics.committed_membership_config,
        followers: followers(metrics, contacts),
        has_quorum: role == Role::Leader && has_quorum(metrics, patience),
        nodes,
    }
}

fn has_quorum(metrics: &RaftMetrics<Types>, patience: Duration) -> bool {
    let is_alone = metrics.membership_config.voter_ids().all(|voter| voter == metrics.id);
    is_alone || metrics.last_quorum_acked.as_ref().is_some_and(|at| at.elapsed() < patience)
}

fn followers(metrics: &RaftMetrics<Types>, contacts: &Contacts) -> BTreeMap<u64, Follower> {
    let others = metrics.replication.iter().flatten().filter(|(node_id, _)| **node_id != metrics.id);
    others
        .map(|(node_id, matched)| {
            let matched = matched.as_ref().map(|id| id.index());
            (*node_id, Follower { matched, last_contact: contacts.last(*node_id) })
        })
        .collect()
}
