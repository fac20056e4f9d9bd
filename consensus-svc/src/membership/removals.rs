//! The leader's loop that carries ordered removals out, and what stands against one: no majority without the peer, items
//! that are not confirmed elsewhere (protocols.md 7). What is known of an order beside its row is in memory, and found
//! again by the next leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pinfold_common::ids::peer_from_bytes;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::{Error, PeerId, Result};
use pinfold_proto::types;
use pinfold_proto::types::peer::State;

use super::departure::{Condition, LOOK_INTERVAL, take_out};
use super::everywhere::Walk;
use crate::core::{Core, Leader, unreadable};
use crate::pinset::PeerTable;

/// Pins of one page, when a removal looks for only copies.
const HOLDINGS_PAGE: usize = 500;
/// A voter that runs answers at least once in so many heartbeats.
const ANSWER_HEARTBEATS: u32 = 3;

/// Carries the orders out while this peer leads, one after the other, until `shutdown`.
pub async fn finish_removals(core: Arc<Core>, shutdown: Shutdown) {
    let mut facts = core.state.watch_facts();
    let work = async {
        let mut orders = Orders::default();
        loop {
            let leader = core.position.borrow().leader.clone();
            match leader {
                Leader::This { term } => {
                    if orders.term != term {
                        orders = Orders { term, ..Orders::default() };
                    }
                    orders.finish_one(&core).await;
                }
                Leader::Other(_) | Leader::Nobody => orders = Orders::default(),
            }
            *core.waiting_removals.lock() = orders.reasons();
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                changed = facts.changed() => if changed.is_err() { return },
            }
        }
    };
    shutdown.race(work).await;
}

/// What one leader knows in one term of the peers that are to be removed, by node.
#[derive(Default)]
struct Orders {
    term: u64,
    orders: BTreeMap<u64, Order>,
}

#[derive(Default)]
struct Order {
    /// Of what every peer pins.
    everywhere: Walk,
    /// Why it waits.
    waits: Option<String>,
}

impl Orders {
    fn reasons(&self) -> BTreeMap<u64, String> {
        let reason = |(node_id, order): (&u64, &Order)| Some((*node_id, order.waits.clone()?));
        self.orders.iter().filter_map(reason).collect()
    }

    /// Takes out the first that can go.
    async fn finish_one(&mut self, core: &Core) {
        let facts = core.state.facts();
        self.orders.retain(|node_id, _| facts.peers.node(*node_id).is_some_and(|row| row.removing));
        // The one before must be out of Raft's configuration first, or the count of voters would be a guess (seed:F23).
        let is_changing = {
            let status = core.raft.status();
            let status = status.borrow();
            status.is_joint || status.nodes.keys().any(|node_id| facts.peers.is_removed(*node_id))
        };
        if is_changing || !facts.peers.members().any(|row| row.removing) {
            return;
        }
        let heard = heard_now(core).await;
        for row in facts.peers.members().filter(|row| row.removing) {
            let order = self.orders.entry(row.node_id).or_default();
            let may_go = match order.may_go(core, &facts.peers, row, &heard).await {
                Ok(()) => take_out(core, row, self.term, Condition::StillOrdered).await,
                Err(error) => Err(error),
            };
            let Err(error) = may_go else { return };
            match order.waits.replace(error.message.clone()) {
                None => tracing::info!(peer = row.name, node = row.node_id, %error, "a removal waits"),
                Some(_) => tracing::debug!(peer = row.name, %error, "a removal waits"),
            }
        }
    }
}

impl Order {
    async fn may_go(&mut self, core: &Core, peers: &PeerTable, row: &types::Peer, heard: &BTreeSet<u64>) -> Result<()> {
        check_quorum_without(core, peers, row.node_id, heard)?;
        if core.config.repin.is_disabled {
            check_no_only_copy(core, &peer_from_bytes(&row.peer_id)?, peers).await?;
        } else if !core.state.holds_nothing(&row.peer_id).await.map_err(unreadable)? {
            return Err(Error::unavailable("items that it holds are not confirmed elsewhere yet"));
        }
        self.everywhere.go_on(core, peers, row).await
    }
}

/// The nodes that answer from now on: when one was last heard of before says nothing about it now (seed:F23).
pub(super) async fn heard_now(core: &Core) -> BTreeSet<u64> {
    let since = std::time::Instant::now();
    tokio::time::sleep(ANSWER_HEARTBEATS * core.raft.config().heartbeat_interval).await;
    let heard = core.raft.contacts().all().into_iter().filter(|(_, at)| *at >= since).map(|(node_id, _)| node_id);
    heard.chain(std::iter::once(core.node_id)).collect()
}

/// The voters that stay must have a running majority, or the removal would never be done and nothing else either.
pub(super) fn check_quorum_without(core: &Core, peers: &PeerTable, node_id: u64, heard: &BTreeSet<u64>) -> Result<()> {
    let voters: Vec<u64> = {
        let status = core.raft.status();
        let status = status.borrow();
        status.voters.iter().copied().filter(|voter| !peers.is_removed(*voter)).collect()
    };
    let (going, staying): (Vec<u64>, Vec<u64>) = voters.into_iter().partition(|voter| *voter == node_id);
    if going.is_empty() {
        return Ok(());
    }
    let running = staying.iter().filter(|voter| heard.contains(voter)).count();
    if staying.is_empty() || running > staying.len() / 2 {
        return Ok(());
    }
    Err(Error::rejected(format!(
        "removing this peer would leave {} voters of which {running} are running: no majority; start the others, or \
         remove one of those that do not run",
        staying.len()
    )))
}

/// Where nothing is moved, what is allocated to nobody else that is there would be lost.
pub(super) async fn check_no_only_copy(core: &Core, peer: &PeerId, peers: &PeerTable) -> Result<()> {
    let bytes = peer.to_bytes();
    let holds = |other: &Vec<u8>| {
        peers.member(other).is_some_and(|row| match row.state() {
            State::Healthy | State::Draining => !row.removing,
            State::Away | State::Removed => false,
        })
    };
    let mut after = 0;
    loop {
        let page = core.state.allocated_to(&bytes, after, HOLDINGS_PAGE).await.map_err(unreadable)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.row;
        for held in &page {
            let is_elsewhere = held.pin.allocations.iter().any(|other| *other != bytes && holds(other));
            if !is_elsewhere {
                let cid = pinfold_common::ids::cid_from_bytes(&held.pin.cid)?;
                return Err(Error::rejected(format!(
                    "peer {peer} has the only copy of {cid}, and may have more, and re-pinning is off: pin them to other \
                     peers first, or force the removal and lose them"
                )));
            }
        }
    }
}
