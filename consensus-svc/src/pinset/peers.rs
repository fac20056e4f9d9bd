//! The replicated peerset: one row per Raft node, the removed ones as tombstones for ever (protocols.md 2).
//! PURE, like the rest of this folder.

use std::collections::{BTreeMap, BTreeSet};

use pinfold_proto::types::peer::State;
use pinfold_proto::{storage, types};

use super::{Halt, Outcome, Refusal, View};

/// Set in the node ID of a peer that joined; a founder's has it clear.
pub const JOINER_BIT: u64 = 1 << 63;

/// All rows by node ID.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerTable {
    pub rows: BTreeMap<u64, types::Peer>,
    /// Log index of the last change.
    pub index: u64,
}

impl PeerTable {
    /// The row of a member: of several nodes of one peer at most one is not removed.
    pub fn member(&self, peer_id: &[u8]) -> Option<&types::Peer> {
        self.members().find(|row| row.peer_id == peer_id)
    }

    /// Rows that are not removed, by node ID.
    pub fn members(&self) -> impl Iterator<Item = &types::Peer> {
        self.rows.values().filter(|row| row.state() != State::Removed)
    }

    pub fn node(&self, node_id: u64) -> Option<&types::Peer> {
        self.rows.get(&node_id)
    }

    pub fn is_removed(&self, node_id: u64) -> bool {
        self.node(node_id).is_some_and(|row| row.state() == State::Removed)
    }

    /// Whether the peer was here once and is not any more.
    pub fn was_removed(&self, peer_id: &[u8]) -> bool {
        self.member(peer_id).is_none() && self.rows.values().any(|row| row.peer_id == peer_id)
    }

    /// Whether new pins may be allocated to it.
    pub fn can_take(&self, peer_id: &[u8]) -> bool {
        self.member(peer_id).is_some_and(|row| match row.state() {
            State::Healthy => true,
            State::Away | State::Draining | State::Removed => false,
        })
    }

    pub fn to_set(&self, cluster_id: &[u8], lineage: u64) -> types::PeerSet {
        let mut peers: Vec<types::Peer> = self.members().cloned().collect();
        peers.sort_by(|left, right| left.peer_id.cmp(&right.peer_id));
        let removed = self.rows.values().filter(|row| row.state() == State::Removed).cloned().collect();
        types::PeerSet { cluster_id: cluster_id.to_vec(), lineage, index: self.index, peers, removed }
    }
}

/// Writes a row if it differs.
fn write(view: &mut View, index: u64, row: types::Peer) {
    if view.peers.rows.get(&row.node_id) == Some(&row) {
        return;
    }
    view.peers.index = index;
    view.dirty.meta = true;
    view.dirty.peers.insert(row.node_id);
    view.peers.rows.insert(row.node_id, row);
}

/// A node ID of 0 means: whichever node that peer is now.
fn find(view: &View, peer_id: &[u8], node_id: u64) -> Result<types::Peer, Refusal> {
    let row = match node_id {
        0 => view.peers.member(peer_id),
        id => view.peers.node(id).filter(|row| row.peer_id == peer_id),
    };
    match row {
        None => Err(Refusal::NotAMember),
        Some(row) if row.state() == State::Removed => Err(Refusal::NodeRemoved),
        Some(row) => Ok(row.clone()),
    }
}

/// A new member gets a row; one that is a member already gets what it says about itself updated.
pub(super) fn join(view: &mut View, index: u64, join: &storage::PeerJoin) -> Result<Outcome, Halt> {
    let told = join.peer.as_ref().ok_or(Halt::Malformed { index, what: "a join without a peer" })?;
    let existing = match find(view, &told.peer_id, told.node_id) {
        Ok(row) => Some(row),
        Err(Refusal::NotAMember) if told.node_id == 0 => None,
        Err(refusal) => return Ok(Outcome::Refused(refusal)),
    };
    let mut row = existing.unwrap_or_else(|| types::Peer {
        peer_id: told.peer_id.clone(),
        node_id: index | JOINER_BIT,
        joined_index: index,
        ..types::Peer::default()
    });
    row.name = told.name.clone();
    row.addresses = told.addresses.clone();
    row.multiaddresses = told.multiaddresses.clone();
    row.version = told.version.clone();
    row.wire_version = told.wire_version.clone();
    write(view, index, row.clone());
    Ok(Outcome::Peer(Box::new(row)))
}

/// Changes the state of a member's row.
fn turn(view: &mut View, index: u64, peer_id: &[u8], node_id: u64, change: impl FnOnce(&mut types::Peer)) -> Outcome {
    let mut row = match find(view, peer_id, node_id) {
        Ok(row) => row,
        Err(refusal) => return Outcome::Refused(refusal),
    };
    change(&mut row);
    write(view, index, row.clone());
    Outcome::Peer(Box::new(row))
}

pub(super) fn away(view: &mut View, index: u64, away: &storage::PeerAway) -> Outcome {
    turn(view, index, &away.peer_id, away.node_id, |row| row.set_state(State::Away))
}

pub(super) fn back(view: &mut View, index: u64, back: &storage::PeerBack) -> Outcome {
    turn(view, index, &back.peer_id, back.node_id, |row| {
        if row.state() == State::Away {
            row.back_index = index;
        }
        row.set_state(present(row));
    })
}

/// Draining outlives an absence. A removal that is ordered is called off by the end of the draining only, and somebody
/// must be left who stays (seed:F22, seed:F23).
pub(super) fn drain(view: &mut View, index: u64, drain: &storage::Drain) -> Outcome {
    let stays = |row: &types::Peer| row.peer_id != drain.peer_id && !row.removing;
    if drain.draining && drain.removing && !view.peers.members().any(stays) && find(view, &drain.peer_id, 0).is_ok() {
        return Outcome::Refused(Refusal::LastPeer);
    }
    turn(view, index, &drain.peer_id, 0, |row| {
        row.draining = drain.draining;
        row.removing = drain.draining && (drain.removing || row.removing);
        if row.state() != State::Away {
            row.set_state(present(row));
        }
    })
}

fn present(row: &types::Peer) -> State {
    if row.draining { State::Draining } else { State::Healthy }
}

pub(super) fn remove(view: &mut View, index: u64, remove: &storage::Remove) -> Outcome {
    // The last peer takes the cluster with it; another node of the same peer being here does not count as a second one.
    if view.peers.members().count() <= 1 && find(view, &remove.peer_id, remove.node_id).is_ok() {
        return Outcome::Refused(Refusal::LastPeer);
    }
    if remove.only_if_removing && find(view, &remove.peer_id, remove.node_id).is_ok_and(|row| !row.removing) {
        return Outcome::Refused(Refusal::NotRemoving);
    }
    turn(view, index, &remove.peer_id, remove.node_id, |row| {
        row.set_state(State::Removed);
        row.voter = false;
        row.draining = false;
        row.removing = false;
        // Nobody shall look for it there any more (beh:B4.5).
        row.addresses = None;
        row.multiaddresses.clear();
    })
}

pub(super) fn found(view: &mut View, index: u64, found: &storage::Found) -> Outcome {
    if !view.cluster_id.is_empty() {
        return Outcome::Refused(Refusal::AlreadyFounded);
    }
    view.cluster_id = found.cluster_id.clone();
    view.lineage = 1;
    view.dirty.meta = true;
    for founder in &found.founders {
        let mut row = founder.clone();
        row.set_state(State::Healthy);
        row.voter = true;
        row.joined_index = index;
        write(view, index, row);
    }
    Outcome::Done
}

pub(super) fn set_voters(view: &mut View, index: u64, voters: &BTreeSet<u64>) {
    let changed: Vec<types::Peer> = view
        .peers
        .members()
        .filter(|row| row.voter != voters.contains(&row.node_id))
        .map(|row| types::Peer { voter: voters.contains(&row.node_id), ..row.clone() })
        .collect();
    for row in changed {
        write(view, index, row);
    }
}
