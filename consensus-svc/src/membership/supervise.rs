//! The leader's supervisor: makes Raft's configuration follow the peerset's rows. Level, not edge: it compares the two
//! and takes one step after the other, so that the next leader goes on wherever the last one stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pinfold_common::ids::peer_from_bytes;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::types::peer::State;

use crate::core::{Core, Leader};
use crate::pinset::PeerTable;
use crate::raft::{ChangeError, NodeAndPeer, RaftStatus};

/// A learner that is behind by fewer entries may vote, once it has what the leader had when the round began: what is
/// written after it got its vote may wait for it, and would wait for all that it lacks (Raft thesis, 4.2.1).
const MAX_LAG_TO_VOTE: u64 = 1000;
/// One that has not answered for so many heartbeats may not: its vote would count where it can't be given (seed:F11).
const SILENT_HEARTBEATS: u32 = 5;
/// The supervisor looks again after so long, without being woken.
const SUPERVISE_INTERVAL: Duration = Duration::from_millis(500);
/// One step of a change of Raft's configuration.
const STEP_DEADLINE: Duration = Duration::from_secs(10);

/// Makes Raft's configuration what the rows say, while this peer leads.
pub async fn supervise(core: Arc<Core>, shutdown: Shutdown) {
    let mut facts = core.state.watch_facts();
    let work = async {
        let mut round = Round::begin(&core);
        loop {
            if round.begun.elapsed() >= core.raft.config().election_timeout_max {
                round = Round::begin(&core);
            }
            let leads = matches!(core.position.borrow().leader, Leader::This { .. });
            let stepped = leads && supervise_once(&core, round).await;
            if stepped {
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(SUPERVISE_INTERVAL) => {}
                () = core.membership_changed.notified() => {}
                () = learner_catches_up(&core, round) => {}
                changed = facts.changed() => if changed.is_err() { return },
            }
        }
    };
    shutdown.race(work).await;
}

/// Lasts for an election timeout.
#[derive(Clone, Copy)]
struct Round {
    begun: Instant,
    /// The last log index of that moment.
    last: u64,
}

impl Round {
    fn begin(core: &Core) -> Round {
        Round { begun: Instant::now(), last: core.raft.status().borrow().last_log_index }
    }
}

/// Until a learner is close enough to vote that was not when this began.
async fn learner_catches_up(core: &Core, round: Round) {
    let mut status = core.raft.status();
    let close = |status: &RaftStatus| status.learners.iter().filter(|node| is_close(status, round, **node)).count();
    let before = close(&status.borrow_and_update());
    if status.wait_for(|status| close(status) > before).await.is_err() {
        std::future::pending().await
    }
}

fn is_close(status: &RaftStatus, round: Round, node: u64) -> bool {
    let close = |lag: u64| lag < MAX_LAG_TO_VOTE && status.last_log_index.saturating_sub(lag) >= round.last;
    status.lag(node).is_some_and(close)
}

/// What to do next; `None`: all is as it should be.
#[derive(Debug, PartialEq)]
enum Step {
    FinishJoint,
    HandOver(u64),
    RemoveNodes(Vec<u64>),
    AddLearner(NodeAndPeer),
    /// Its consensus service has moved.
    SetAddress(NodeAndPeer),
    Promote(u64),
}

/// What the steps go by, beside the rows and the status.
struct Rules {
    own: u64,
    max_voters: usize,
    /// Who has answered since then is there.
    since: Instant,
    round: Round,
}

/// PURE: compares the rows with Raft's configuration.
fn next_step(rules: &Rules, peers: &PeerTable, status: &RaftStatus) -> Option<Step> {
    let Rules { own, max_voters, since, round } = *rules;
    if status.is_joint {
        return Some(Step::FinishJoint);
    }
    let gone: Vec<u64> =
        status.voters.iter().chain(&status.learners).copied().filter(|node| peers.is_removed(*node)).collect();
    if gone.contains(&own) {
        // Somebody else takes this node out.
        let heirs = status.voters.iter().copied().filter(|voter| *voter != own && !peers.is_removed(*voter));
        let matched = |voter: &u64| status.followers.get(voter).and_then(|follower| follower.matched);
        return heirs.max_by_key(matched).map(Step::HandOver);
    }
    if !gone.is_empty() {
        return Some(Step::RemoveNodes(gone));
    }
    for row in peers.members() {
        let address = row.addresses.as_ref().map(|addresses| addresses.consensus.clone()).unwrap_or_default();
        let configured = status.nodes.get(&row.node_id);
        if address.is_empty() || configured.is_some_and(|node| node.address == address) {
            continue;
        }
        let Ok(peer_id) = peer_from_bytes(&row.peer_id) else { continue };
        let node = NodeAndPeer { node_id: row.node_id, peer_id, address };
        return Some(if configured.is_some() { Step::SetAddress(node) } else { Step::AddLearner(node) });
    }
    if status.voters.len() >= max_voters {
        return None;
    }
    let last_contact = |node: &u64| status.followers.get(node).and_then(|follower| follower.last_contact);
    let is_there = |node: &u64| last_contact(node).is_some_and(|at| at >= since);
    let stays = |node: &u64| {
        peers.node(*node).is_some_and(|row| match row.state() {
            State::Healthy | State::Draining => !row.removing,
            State::Away | State::Removed => false,
        })
    };
    status
        .learners
        .iter()
        .copied()
        .find(|node| is_close(status, round, *node) && is_there(node) && stays(node))
        .map(Step::Promote)
}

/// Whether a step was done, so that the next one may follow at once.
async fn supervise_once(core: &Core, round: Round) -> bool {
    let status = core.raft.status().borrow().clone();
    let facts = core.state.facts();
    let recent = SILENT_HEARTBEATS * core.raft.config().heartbeat_interval;
    let since = Instant::now().checked_sub(recent).unwrap_or_else(Instant::now);
    let rules = Rules { own: core.node_id, max_voters: core.config.max_voters, since, round };
    let Some(step) = next_step(&rules, &facts.peers, &status) else { return false };
    tracing::info!(?step, "change Raft's configuration");
    let work = async {
        match &step {
            Step::FinishJoint => core.raft.finish_joint().await,
            Step::HandOver(heir) => core.raft.transfer_leader(*heir).await,
            Step::RemoveNodes(nodes) => core.raft.remove_nodes(nodes.iter().copied().collect()).await,
            Step::AddLearner(node) => core.raft.add_learner(node).await,
            Step::SetAddress(node) => core.raft.set_address(node).await,
            Step::Promote(node) => core.raft.promote([*node].into()).await,
        }
    };
    match tokio::time::timeout(STEP_DEADLINE, work).await {
        Ok(Ok(())) => true,
        Ok(Err(ChangeError::NotLeader(_) | ChangeError::InProgress(_))) => false,
        Ok(Err(error)) => {
            tracing::warn!(?step, %error, "change Raft's configuration");
            false
        }
        Err(_) => {
            tracing::warn!(?step, deadline = ?STEP_DEADLINE, "a change of Raft's configuration takes long");
            false
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use pinfold_common::PeerId;
    use pinfold_proto::types;

    use super::*;

    pub fn peer_id(number: u8) -> PeerId {
        let mut bytes = vec![0, 36, 8, 1, 18, 32];
        bytes.extend([number; 32]);
        PeerId::from_bytes(&bytes).unwrap()
    }

    pub fn table(rows: &[(u64, State)]) -> PeerTable {
        let mut table = PeerTable::default();
        for (node_id, state) in rows {
            let addresses = types::ServiceAddresses { consensus: "127.0.0.1:1".into(), ..Default::default() };
            let mut row = types::Peer {
                peer_id: peer_id(*node_id as u8).to_bytes(),
                node_id: *node_id,
                addresses: Some(addresses),
                ..types::Peer::default()
            };
            row.set_state(*state);
            table.rows.insert(*node_id, row);
        }
        table
    }

    fn status(voters: &[u64], learners: &[(u64, u64)]) -> RaftStatus {
        let node =
            |node_id: u64| NodeAndPeer { node_id, peer_id: peer_id(node_id as u8), address: "127.0.0.1:1".into() };
        RaftStatus {
            voters: voters.iter().copied().collect(),
            learners: learners.iter().map(|(id, _)| *id).collect(),
            nodes: voters.iter().copied().chain(learners.iter().map(|(id, _)| *id)).map(|id| (id, node(id))).collect(),
            followers: learners
                .iter()
                .map(|(id, matched)| {
                    (*id, crate::raft::Follower { matched: Some(*matched), last_contact: Some(Instant::now()) })
                })
                .collect(),
            last_log_index: 5000,
            ..RaftStatus::default()
        }
    }

    /// Goal: Raft's configuration follows the rows step by step, wherever the last leader stopped; nobody who can't be
    /// reached gets a vote.
    #[test]
    fn seed_f4_f11_the_next_step_is_a_comparison() {
        let healthy = State::Healthy;
        let rows = table(&[(1, healthy), (2, healthy), (3, State::Removed)]);
        let round = Round { begun: Instant::now(), last: 4400 };
        let rules = Rules { own: 1, max_voters: 7, since: Instant::now(), round };
        let step = |rows: &PeerTable, status: &RaftStatus| next_step(&rules, rows, status);
        assert_eq!(step(&rows, &RaftStatus { is_joint: true, ..status(&[1], &[]) }), Some(Step::FinishJoint));
        assert_eq!(step(&rows, &status(&[1, 2, 3], &[])), Some(Step::RemoveNodes(vec![3])));
        assert!(matches!(step(&rows, &status(&[1], &[])), Some(Step::AddLearner(node)) if node.node_id == 2));
        assert_eq!(step(&rows, &status(&[1], &[(2, 3000)])), None, "too far behind to vote");
        assert_eq!(step(&rows, &status(&[1], &[(2, 4500)])), Some(Step::Promote(2)));
        let next_round = Rules { round: Round { last: 4600, ..round }, ..rules };
        assert_eq!(
            next_step(&next_round, &rows, &status(&[1], &[(2, 4500)])),
            None,
            "it lacks what came before the round"
        );
        let one = Rules { max_voters: 1, ..rules };
        assert_eq!(next_step(&one, &rows, &status(&[1], &[(2, 4500)])), None, "enough voters");
        let close = status(&[1], &[(2, 4500)]);
        let later = Rules { since: Instant::now() + Duration::from_secs(1), ..rules };
        assert_eq!(next_step(&later, &rows, &close), None, "it does not answer");
        let mut going = table(&[(1, healthy), (2, healthy)]);
        going.rows.get_mut(&2).unwrap().removing = true;
        assert_eq!(step(&going, &close), None, "it is on its way out");
        assert_eq!(step(&rows, &status(&[1, 2], &[])), None);
        let leader_removed = table(&[(1, State::Removed), (2, healthy)]);
        assert_eq!(step(&leader_removed, &status(&[1, 2], &[])), Some(Step::HandOver(2)));
    }
}
