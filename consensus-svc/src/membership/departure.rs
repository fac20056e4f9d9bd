//! How a peer leaves: the removal is an order in its row, and the leader's loop carries it out when nothing is left there
//! (beh:B4.8, protocols.md 7).
//!
//! Level, not edge: draining and removing are marks that are committed, what is left is a query over an index, and the
//! re-pinner works by the same marks. So an order can be given twice, its asker can go away, and the next leader goes on
//! where the last one stopped. This module moves no pin and never removes a peer that has the only copy of something,
//! unless it was told to in so many words.

use std::time::Duration;

use pinfold_common::ids::peer_from_bytes;
use pinfold_common::{Code, Error, PeerId, Result};
use pinfold_proto::consensus::{DrainPeerCall, RemovePeerCall};
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::types::Departure;
use pinfold_proto::types::departure::Phase;
use pinfold_proto::types::peer::State;
use pinfold_proto::{storage, types};
use tokio::time::Instant;

use super::removals::{check_no_only_copy, check_quorum_without, heard_now};
use super::{propose, refused};
use crate::coordinator::Origin;
use crate::core::{Core, Leader, at_leader, unreadable};
use crate::pinset::PeerTable;

/// The longest that one call waits for a removal; it goes on by itself afterwards.
const LONGEST_WAIT: Duration = Duration::from_secs(50);
/// The leader looks at the orders again after so long, without being woken; and who waits for one, too.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A peer that leaves says so often how far it is.
const LEAVE_LOOK: Duration = Duration::from_secs(2);
/// For an order that failed to be called off.
const CALL_OFF_DEADLINE: Duration = Duration::from_secs(5);

/// Orders a removal at the leader, and waits for it where the caller is.
pub async fn remove(core: &Core, request: RemovePeerCall, origin: Origin) -> Result<Departure> {
    let peer = peer_from_bytes(&request.peer_id)?;
    let wait = match request.wait_ms {
        0 => LONGEST_WAIT,
        wait_ms => Duration::from_millis(u64::from(wait_ms)).min(LONGEST_WAIT),
    };
    let ordered = match core.leader_for(origin).await? {
        Leader::This { term } => order_removal(core, &peer, request.force, term).await?,
        Leader::Other(leader) if origin == Origin::Own => {
            let mut client = core.forward_client(&leader)?;
            let asked = client.remove_peer(request);
            let reply = at_leader("remove a peer at the leader", Core::FORWARD_DEADLINE, asked).await?;
            see(core, reply.index).await;
            reply.departure.unwrap_or_default()
        }
        Leader::Other(_) | Leader::Nobody => return Err(core.not_leading()),
    };
    match origin {
        Origin::Forwarded => Ok(ordered),
        Origin::Own if ordered.node_id == 0 => Ok(ordered),
        Origin::Own => wait_for_removal(core, ordered, wait).await,
    }
}

/// Waits a moment for what the leader did, so that whoever asked here sees it here. A peer that was taken out never will.
async fn see(core: &Core, index: u64) {
    let applied = tokio::time::timeout(LOOK_INTERVAL, core.wait_applied(index)).await;
    if !matches!(applied, Ok(Ok(()))) {
        tracing::debug!(index, "this peer has not applied what the leader did yet");
    }
}

/// Marks the peer, or takes it out at once when it was told to. Who is not there is removed already, as in the original.
async fn order_removal(core: &Core, peer: &PeerId, force: bool, term: u64) -> Result<Departure> {
    let facts = core.state.facts();
    let Some(row) = facts.peers.member(&peer.to_bytes()) else {
        return Ok(Departure { peer_id: peer.to_bytes(), phase: Phase::Removed as i32, ..Departure::default() });
    };
    check_quorum_without(core, &facts.peers, row.node_id, &heard_now(core).await)?;
    if force {
        take_out(core, row, term, Condition::None).await?;
        return departure(core, row.node_id, &row.peer_id).await;
    }
    if core.config.repin.is_disabled {
        check_no_only_copy(core, peer, &facts.peers).await?;
    }
    let mark = storage::Drain { peer_id: row.peer_id.clone(), draining: true, removing: true };
    refused(propose(core, term, Kind::Drain(mark)).await?)?;
    departure(core, row.node_id, &row.peer_id).await
}

/// Under which a removal is still wanted when it is applied.
pub(super) enum Condition {
    None,
    StillOrdered,
}

pub(super) async fn take_out(core: &Core, row: &types::Peer, term: u64, condition: Condition) -> Result<()> {
    let only_if_removing = match condition {
        Condition::None => false,
        Condition::StillOrdered => true,
    };
    let remove = storage::Remove { peer_id: row.peer_id.clone(), node_id: row.node_id, only_if_removing };
    refused(propose(core, term, Kind::Remove(remove)).await?)?;
    core.membership_changed.notify_one();
    tracing::info!(peer = row.name, node = row.node_id, "removed a peer");
    Ok(())
}

/// Until the peer is out of the peerset and of Raft's configuration as this peer sees them, or the wait is over. Only the
/// leader knew why it waits.
async fn wait_for_removal(core: &Core, ordered: Departure, wait: Duration) -> Result<Departure> {
    let deadline = Instant::now() + wait;
    let mut facts = core.state.watch_facts();
    let mut status = core.raft.status();
    loop {
        let is_removed = facts.borrow_and_update().peers.is_removed(ordered.node_id);
        let is_out = !status.borrow_and_update().is_member(ordered.node_id) || ordered.node_id == core.node_id;
        if (is_removed && is_out) || Instant::now() >= deadline {
            let mut seen = departure(core, ordered.node_id, &ordered.peer_id).await?;
            if seen.waits_for.is_empty() && seen.phase() != Phase::Removed {
                seen.waits_for = ordered.waits_for;
            }
            return Ok(seen);
        }
        let look = tokio::time::sleep(LOOK_INTERVAL.min(deadline.saturating_duration_since(Instant::now())));
        tokio::select! {
            () = look => {}
            changed = facts.changed() => changed.map_err(|_| Error::unavailable("this peer is stopping"))?,
            changed = status.changed() => changed.map_err(|_| Error::unavailable("this peer is stopping"))?,
        }
    }
}

/// Marks a peer as draining, or takes the mark away, which calls off a removal too. One hop to the leader.
pub async fn drain(core: &Core, request: DrainPeerCall, origin: Origin) -> Result<Departure> {
    let peer = peer_from_bytes(&request.peer_id)?;
    match core.leader_for(origin).await? {
        Leader::This { term } => {
            let mark = storage::Drain { peer_id: peer.to_bytes(), draining: request.draining, removing: false };
            let row = refused(propose(core, term, Kind::Drain(mark)).await?)?;
            departure(core, row.map_or(0, |row| row.node_id), &peer.to_bytes()).await
        }
        Leader::Other(leader) if origin == Origin::Own => {
            let mut client = core.forward_client(&leader)?;
            let asked = client.drain_peer(request);
            let reply = at_leader("drain a peer at the leader", Core::FORWARD_DEADLINE, asked).await?;
            see(core, reply.index).await;
            Ok(reply.departure.unwrap_or_default())
        }
        Leader::Other(_) | Leader::Nobody => Err(core.not_leading()),
    }
}

/// This peer takes itself out, within `patience`. What it can't be done in is called off again: a peer that stops as a
/// member is not removed behind its back later (beh:B4.10).
pub async fn leave(core: &Core, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let before = core.state.facts().peers.node(core.node_id).cloned().unwrap_or_default();
    let error = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait_ms = LEAVE_LOOK.min(left).as_millis().max(1) as u32;
        let call = RemovePeerCall { peer_id: core.own_bytes.clone(), force: false, wait_ms };
        let error = match tokio::time::timeout(left, remove(core, call, Origin::Own)).await {
            Ok(Ok(departure)) if departure.phase() == Phase::Removed => return Ok(()),
            Ok(Ok(departure)) => {
                tracing::info!(allocated = departure.allocated, leaving = departure.leaving, "leaving the cluster");
                let items = departure.allocated + departure.leaving;
                Error::unavailable(format!("{items} items are not confirmed elsewhere within {patience:?}"))
            }
            Ok(Err(error)) if may_change(&core.state.facts().peers, core.node_id, error.code) => {
                tracing::info!(%error, "leaving the cluster");
                tokio::time::sleep(LOOK_INTERVAL.min(left)).await;
                error
            }
            Ok(Err(error)) => break error,
            Err(_) => Error::unavailable(format!("no answer within {patience:?}")),
        };
        if Instant::now() >= deadline {
            break error;
        }
    };
    if !before.removing
        && let Err(failed) = call_off(core, before.draining).await
    {
        return Err(error.context(format!("the order could not be called off ({failed})")));
    }
    Err(error)
}

/// PURE: whether asking again may help. A refusal for want of running voters, or for an only copy, ends as soon as the
/// others are there; for the last one it is final.
fn may_change(peers: &PeerTable, own: u64, refused: Code) -> bool {
    let somebody_stays = peers.members().any(|row| row.node_id != own && !row.removing);
    refused.is_retryable() || refused == Code::OutcomeUnknown || (refused == Code::Rejected && somebody_stays)
}

/// The end of the draining ends the order; a peer that was draining before drains again.
async fn call_off(core: &Core, was_draining: bool) -> Result<()> {
    let mark = |draining| DrainPeerCall { peer_id: core.own_bytes.clone(), draining };
    let work = async {
        drain(core, mark(false), Origin::Own).await?;
        if was_draining {
            drain(core, mark(true), Origin::Own).await?;
        }
        Ok(())
    };
    let late = || Error::unavailable(format!("no answer within {CALL_OFF_DEADLINE:?}"));
    tokio::time::timeout(CALL_OFF_DEADLINE, work).await.unwrap_or_else(|_| Err(late()))
}

/// Every draining peer, as this peer's state has it.
pub async fn departures(core: &Core) -> Result<Vec<Departure>> {
    let facts = core.state.facts();
    let mut found = Vec::new();
    for row in facts.peers.members().filter(|row| row.draining) {
        found.push(departure(core, row.node_id, &row.peer_id).await?);
    }
    Ok(found)
}

/// How far it is, by this peer's state. A peer that does not drain has no phase.
async fn departure(core: &Core, node_id: u64, peer_id: &[u8]) -> Result<Departure> {
    let facts = core.state.facts();
    let row = facts.peers.node(node_id);
    let (allocated, leaving) = core.state.count_held_by(peer_id).await.map_err(unreadable)?;
    Ok(Departure {
        peer_id: peer_id.to_vec(),
        node_id,
        phase: phase(row, allocated + leaving, core.config.repin.is_disabled) as i32,
        allocated,
        leaving,
        removing: row.is_some_and(|row| row.removing),
        waits_for: core.waiting_removals.lock().get(&node_id).cloned().unwrap_or_default(),
    })
}

/// PURE: what the row and the number of items say together.
fn phase(row: Option<&types::Peer>, items: u64, is_repinning_off: bool) -> Phase {
    match row {
        None => Phase::Unspecified,
        Some(row) if row.state() == State::Removed => Phase::Removed,
        Some(row) if !row.draining => Phase::Unspecified,
        Some(_) if items == 0 => Phase::Drained,
        Some(_) if is_repinning_off => Phase::Draining,
        Some(_) => Phase::Reallocating,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a leave that was refused is tried again while others stay; the last one, and bad input, are final.
    #[test]
    fn seed_f20_f22_a_refusal_that_may_change() {
        let row = |node_id, removing| (node_id, types::Peer { node_id, removing, ..types::Peer::default() });
        let table = |rows: &[(u64, types::Peer)]| PeerTable { rows: rows.iter().cloned().collect(), index: 1 };
        let (alone, two) = (table(&[row(1, true)]), table(&[row(1, true), row(2, false)]));
        let all_go = table(&[row(1, false), row(2, true)]);
        for (code, with_two, without) in [
            (Code::Rejected, true, false),
            (Code::Unavailable, true, true),
            (Code::OutcomeUnknown, true, true),
            (Code::Internal, false, false),
        ] {
            assert_eq!(may_change(&two, 1, code), with_two, "{code:?}");
            assert_eq!(may_change(&alone, 1, code), without, "{code:?}");
            assert_eq!(may_change(&all_go, 1, code), without, "{code:?}");
        }
    }

    /// Goal: what a person sees of a removal follows from the row and the number of items alone.
    #[test]
    fn phases() {
        let mut row = types::Peer { draining: true, removing: true, ..types::Peer::default() };
        row.set_state(State::Draining);
        assert_eq!(phase(Some(&row), 3, false), Phase::Reallocating);
        assert_eq!(phase(Some(&row), 3, true), Phase::Draining);
        assert_eq!(phase(Some(&row), 0, false), Phase::Drained);
        row.set_state(State::Removed);
        assert_eq!(phase(Some(&row), 3, false), Phase::Removed);
        assert_eq!(phase(Some(&types::Peer::default()), 3, false), Phase::Unspecified);
        assert_eq!(phase(None, 0, false), Phase::Unspecified);
    }
}
