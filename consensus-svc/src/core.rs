//! What the parts of this room share: the state, Raft, the ways to other processes, and where the leader is.
//!
//! [`Position`] is level, not edge: one task compares Raft's status with what it means for requests. This peer leads
//! when it has applied the first entry of its own term; it is caught up when it has applied what the leader had
//! committed when that leader was first heard of.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES, call, explain};
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::member::Member;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{Error, PeerId, Result};
use pinfold_proto::consensus::ReadIndexCall;
use pinfold_proto::consensus::forward_client::ForwardClient;
use pinfold_proto::consensus::membership_client::MembershipClient;
use pinfold_proto::consensus::repin_forward_client::RepinForwardClient;
use pinfold_proto::types;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::config::Config;
use crate::coordinator::Origin;
use crate::coordinator::stock::Stock;
use crate::raft::{Node, RaftStatus};
use crate::replication::Replication;
use crate::store::{self, State};

/// Applying up to an index that is committed already.
pub const APPLY_DEADLINE: Duration = Duration::from_secs(5);
/// Asking the leader for its index.
const READ_INDEX_DEADLINE: Duration = Duration::from_secs(2);
/// Between attempts to find out how far the leader is.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(200);

/// Who decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    This { term: u64 },
    Other(PeerId),
    Nobody,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub leader: Leader,
    /// Nothing that was committed when this leader was found is missing here.
    pub caught_up: bool,
    /// This peer has its place in Raft's configuration: a vote, or, with as many voters as there may be, none. Until
    /// then the cluster does not bear the failures that its size lets one expect.
    pub is_settled: bool,
}

impl Position {
    pub const NOWHERE: Position = Position { leader: Leader::Nobody, caught_up: false, is_settled: false };

    pub fn is_ready(&self) -> bool {
        self.leader != Leader::Nobody && self.caught_up && self.is_settled
    }
}

pub struct Core {
    pub config: Config,
    pub own: PeerId,
    pub own_bytes: Vec<u8>,
    pub node_id: u64,
    pub state: State,
    pub raft: Node,
    pub channels: Channels,
    pub position: watch::Receiver<Position>,
    /// Most of the last batch was not in the pinset: the coordinator may take the next one for new without a look.
    pub expect_new_items: AtomicBool,
    /// Allocations for pins that may come.
    pub stock: Stock,
    /// Wakes the supervisor of the membership.
    pub membership_changed: Notify,
    /// Why removals that this peer carries out as the leader wait, by node.
    pub waiting_removals: parking_lot::Mutex<BTreeMap<u64, String>>,
    /// The last count of copies.
    pub replication: Replication,
    /// The membership that this peer has in another cluster by now, in place of the one it serves.
    pub elsewhere: watch::Sender<Option<Member>>,
    /// Why the others do not take this peer as it is, where a person must act: another version, another secret.
    pub trouble: watch::Sender<Option<String>>,
    /// What the parts of re-pinning know of each other.
    pub repin: crate::repin::Shared,
}

impl Core {
    /// One hop to the leader, with the work there.
    pub const FORWARD_DEADLINE: Duration = Duration::from_secs(10);

    pub fn not_leading(&self) -> Error {
        Error::unavailable(format!("peer {} does not lead", self.own))
    }

    pub fn own_monitor(&self) -> Channel {
        self.channels.to(Room::Monitor, &self.own, &self.config.own_monitor)
    }

    /// Where that peer's consensus service is, by its row, or as Raft reaches it: a peer that has just joined has no rows
    /// yet, and a leader that was just removed has none any more.
    pub fn consensus_channel(&self, peer: &PeerId) -> Result<Channel> {
        let facts = self.state.facts();
        let row = facts.peers.member(&peer.to_bytes());
        let by_row = row.and_then(|row| row.addresses.as_ref()).map(|addresses| addresses.consensus.clone());
        let by_raft = || {
            let status = self.raft.status();
            let nodes = &status.borrow().nodes;
            nodes.values().find(|node| node.peer_id == *peer).map(|node| node.address.clone())
        };
        let address = by_row.or_else(by_raft).filter(|address| !address.is_empty());
        let address =
            address.ok_or_else(|| Error::unavailable(format!("the address of peer {peer} is not known here")))?;
        Ok(self.channels.to(Room::Consensus, peer, &address))
    }

    pub fn forward_client(&self, peer: &PeerId) -> Result<ForwardClient<Channel>> {
        let client = ForwardClient::new(self.consensus_channel(peer)?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    pub fn repin_client(&self, peer: &PeerId) -> Result<RepinForwardClient<Channel>> {
        let client = RepinForwardClient::new(self.consensus_channel(peer)?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    pub fn membership_client(&self, peer: &PeerId) -> Result<MembershipClient<Channel>> {
        Ok(MembershipClient::new(self.consensus_channel(peer)?).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The leader; waits for one on behalf of this peer's own services, and not for a request that was forwarded.
    pub async fn leader_for(&self, origin: Origin) -> Result<Leader> {
        let mut position = self.position.clone();
        match origin {
            Origin::Forwarded => Ok(position.borrow().leader.clone()),
            Origin::Own => {
                let found = position.wait_for(|position| position.leader != Leader::Nobody);
                match tokio::time::timeout(self.config.wait_for_leader, found).await {
                    Ok(Ok(position)) => Ok(position.leader.clone()),
                    Ok(Err(_)) => Err(Error::unavailable("this peer is stopping")),
                    Err(_) => Err(self.no_leader()),
                }
            }
        }
    }

    pub fn no_leader(&self) -> Error {
        Error::unavailable(format!(
            "no leader within {:?}: is a majority of the peers running?",
            self.config.wait_for_leader
        ))
    }

    /// Waits until this peer has applied `index`, but not for ever.
    pub async fn wait_applied(&self, index: u64) -> Result<()> {
        tokio::time::timeout(APPLY_DEADLINE, self.state.wait_applied(index)).await.map_err(|_| {
            let applied = self.state.applied_index();
            Error::unavailable(format!("this peer has applied index {applied} and index {index} was asked for"))
        })
    }

    /// An index that no write that is acknowledged by now lies above (ReadIndex).
    pub async fn read_index(&self, origin: Origin) -> Result<u64> {
        match self.leader_for(origin).await? {
            Leader::This { .. } => self.read_index_here().await,
            Leader::Other(peer) if origin == Origin::Own => self.read_index_at(&peer).await,
            Leader::Other(_) | Leader::Nobody => Err(self.not_leading()),
        }
    }

    async fn read_index_here(&self) -> Result<u64> {
        Ok(self.raft.read_index().await?)
    }

    async fn read_index_at(&self, leader: &PeerId) -> Result<u64> {
        let mut client = self.forward_client(leader)?;
        let reply = call("read index at the leader", READ_INDEX_DEADLINE, client.read_index(ReadIndexCall {})).await;
        // A read has no outcome to be unknown.
        Ok(reply.map_err(|error| Error::unavailable(error.message))?.index)
    }

    /// Whether requests can be served as a member should, and why not.
    pub fn readiness(&self) -> Result<(), String> {
        let position = self.position.borrow();
        match (&position.leader, position.caught_up) {
            (Leader::Nobody, _) => Err(match self.trouble.borrow().as_ref() {
                Some(trouble) => format!("no leader: {trouble}"),
                None => "no leader: waiting for a majority of the peers".to_owned(),
            }),
            (Leader::This { .. } | Leader::Other(_), false) => {
                Err(format!("catching up with the leader: applied index {}", self.state.applied_index()))
            }
            (Leader::This { .. } | Leader::Other(_), true) if !position.is_settled => {
                Err("waiting for the leader to give this peer its vote".to_owned())
            }
            (Leader::This { .. } | Leader::Other(_), true) => Ok(()),
        }
    }

    /// The leader's peer ID; empty: none known.
    pub fn leader_bytes(&self) -> Vec<u8> {
        match &self.position.borrow().leader {
            Leader::This { .. } => self.own_bytes.clone(),
            Leader::Other(peer) => peer.to_bytes(),
            Leader::Nobody => Vec::new(),
        }
    }
}

/// The disk under the state does not give what it holds.
pub fn unreadable(error: store::Error) -> Error {
    Error::internal(format!("read the pinset: {error}"))
}

/// Awaits what a client asked for and the leader does. The leader's error stays as it is: clients compare its text.
pub async fn at_leader<T>(
    what: &str,
    deadline: Duration,
    future: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    match tokio::time::timeout(deadline, future).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(explain(status)),
        Err(_) => Err(Error::outcome_unknown(format!("{what}: no answer within {deadline:?}, the outcome is unknown"))),
    }
}

/// What of Raft's status decides who leads; the rest changes with every entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leadership {
    is_leader: bool,
    is_ready_to_lead: bool,
    leader: Option<PeerId>,
    term: u64,
    is_settled: bool,
}

/// A configuration that is half changed does not settle anybody, nor does it unsettle who had a vote before it.
fn leadership(core: &Core, status: &RaftStatus, was_settled: bool) -> Leadership {
    let is_settled = if status.voters.contains(&core.node_id) {
        was_settled || !status.is_joint
    } else {
        // A voter's place that is free for a moment is filled by one of the learners.
        status.learners.contains(&core.node_id) && (was_settled || status.voters.len() >= core.config.max_voters)
    };
    Leadership {
        is_leader: status.is_leader(),
        // Whoever leads without a majority decides nothing.
        is_ready_to_lead: status.is_ready_to_lead && status.has_quorum,
        leader: status.leader.as_ref().map(|leader| leader.peer_id),
        term: status.term,
        is_settled,
    }
}

/// Keeps `position` true until `shutdown`.
pub async fn follow_leader(core: Arc<Core>, position: watch::Sender<Position>, shutdown: Shutdown) {
    let mut status = core.raft.status();
    loop {
        let was_settled = position.borrow().is_settled;
        let seen = leadership(&core, &status.borrow_and_update(), was_settled);
        let leader = match &seen {
            Leadership { is_leader: true, is_ready_to_lead: true, term, .. } => Leader::This { term: *term },
            Leadership { is_leader: false, leader: Some(peer), .. } => Leader::Other(*peer),
            Leadership { is_leader: true, .. } | Leadership { leader: None, .. } => Leader::Nobody,
        };
        if position.borrow().leader != leader {
            tracing::info!(?leader, "leader");
            let caught_up = matches!(leader, Leader::This { .. });
            position.send_replace(Position { leader: leader.clone(), caught_up, is_settled: seen.is_settled });
        } else if was_settled != seen.is_settled {
            position.send_modify(|position| position.is_settled = seen.is_settled);
        }
        let catch_up = async {
            if let Leader::Other(peer) = &leader {
                catch_up(&core, peer, &position).await;
            }
            std::future::pending::<()>().await;
        };
        let moved = status.wait_for(|status| leadership(&core, status, seen.is_settled) != seen);
        tokio::select! {
            () = shutdown.triggered() => return,
            () = catch_up => {}
            moved = moved => if moved.is_err() { return },
        }
    }
}

/// Asks the leader for its index until this peer has applied it.
async fn catch_up(core: &Core, leader: &PeerId, position: &watch::Sender<Position>) {
    let started = Instant::now();
    while !position.borrow().caught_up {
        let caught_up = match core.read_index_at(leader).await {
            Ok(index) => core.wait_applied(index).await,
            Err(error) => Err(error),
        };
        match caught_up {
            Ok(()) => {
                tracing::info!(took = ?started.elapsed(), index = core.state.applied_index(), "caught up with the leader");
                position.send_modify(|position| position.caught_up = true);
            }
            Err(error) => {
                tracing::debug!(%error, "catch up with the leader");
                tokio::time::sleep(CATCH_UP_PAUSE).await;
            }
        }
    }
}

/// The member rows but this peer's own, with their peer IDs.
pub fn other_members(core: &Core) -> Vec<(PeerId, types::Peer)> {
    let facts = core.state.facts();
    facts
        .peers
        .members()
        .filter(|row| row.peer_id != core.own_bytes)
        .filter_map(|row| Some((peer_from_bytes(&row.peer_id).ok()?, row.clone())))
        .collect()
}
