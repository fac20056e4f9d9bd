//! What becomes of a peer that is gone, and of the items that it held (protocols.md 6, 7).
//!
//! Three loops run on every peer and work while it leads: one turns what the monitors say into committed verdicts, one
//! finds entries with too few copies in the index of allocations and moves them, one asks the new holders and lets the
//! old ones go. Level, not edge: each compares the replicated state with what should be, so that the next leader goes
//! on wherever the last one was killed; revisions in the commands keep two of them from moving the same thing.
//! What they decide stands in [`plan`], which is pure. None of them asks an IPFS node, or chooses a peer.

mod balancing;
mod board;
pub mod control;
pub(crate) mod holdings;
mod moving;
pub mod plan;
mod scan;
mod settling;
mod witness;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::time::Timestamp;
use pinfold_proto::storage;
use pinfold_proto::storage::command::Command as Kind;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use self::board::Board;
use self::plan::Standings;
use self::plan::budget;
use self::plan::gate::Gate;
use self::plan::judge::{Judge, Judgement, Rules, Scene};
use crate::config::RepinConfig;
use crate::core::{Core, Leader};
use crate::pinset::{ItemOutcome, Outcome, PeerTable};
use crate::raft::ProposeError;

/// Between two looks at the members.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What the loops know of each other, and what `control` shows of them.
pub struct Shared {
    judgement: watch::Sender<Arc<Judgement>>,
    board: parking_lot::Mutex<Board>,
    /// What an item takes on average, as the own monitor said last; 0: unknown.
    mean_item_bytes: AtomicU64,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            judgement: watch::Sender::new(Arc::default()),
            board: parking_lot::Mutex::default(),
            mean_item_bytes: AtomicU64::new(0),
        }
    }
}

impl Shared {
    /// Why nothing moves, when so much is away that it is more likely the network's fault.
    pub fn stopped(&self) -> Option<String> {
        match &self.board.lock().gate {
            Some(Gate::Stopped(why)) => Some(why.clone()),
            Some(Gate::Open | Gate::Disabled | Gate::Paused | Gate::Waiting(_)) | None => None,
        }
    }

    fn judgement(&self) -> Arc<Judgement> {
        self.judgement.borrow().clone()
    }

    /// The members, as entries see them now. Complete on the leader only.
    pub fn standings(&self, peers: &PeerTable) -> Standings {
        Standings::new(peers, &self.judgement().ipfs_down)
    }

    fn mean_item_bytes(&self) -> u64 {
        self.mean_item_bytes.load(Ordering::Relaxed)
    }

    /// Items that one peer may have on their way: as many as allowed, or as make up the bytes.
    fn most_per_peer(&self, config: &RepinConfig) -> u64 {
        let (items, bytes) = (config.max_unconfirmed_per_peer, config.max_unconfirmed_bytes_per_peer);
        budget::most_per_peer(items, bytes, self.mean_item_bytes())
    }
}

/// All three loops, until `shutdown`.
pub async fn run(core: Arc<Core>, shutdown: Shutdown) {
    let work = async {
        tokio::join!(judge(&core), moving::run(&core), settling::run(&core));
    };
    shutdown.race(work).await;
}

/// The term in which this peer leads.
fn leads(core: &Core) -> Option<u64> {
    match core.position.borrow().leader {
        Leader::This { term } => Some(term),
        Leader::Other(_) | Leader::Nobody => None,
    }
}

async fn propose(core: &Core, term: u64, kind: Kind) -> Result<Outcome, ProposeError> {
    let command = storage::Command { at: Some(Timestamp::now().into()), request_key: Vec::new(), command: Some(kind) };
    core.raft.propose_in_term(command, term).await.map(|(_, outcome)| outcome)
}

/// How many items of a batch were written; those that were not are stale, and found again.
fn written(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Items(items) => items.iter().filter(|item| matches!(item, ItemOutcome::Written(_))).count(),
        Outcome::Peer(_) | Outcome::Done | Outcome::Refused(_) => 0,
    }
}

async fn judge(core: &Core) {
    let mut judge = Judge::default();
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match leads(core) {
            Some(term) => look(core, term, &mut judge).await,
            None => {
                judge = Judge::default();
                core.repin.judgement.send_if_modified(|known| {
                    let is_old = **known != Judgement::default();
                    *known = Arc::default();
                    is_old
                });
            }
        }
    }
}

async fn look(core: &Core, term: u64, judge: &mut Judge) {
    let facts = core.state.facts();
    let words = witness::hear(core, &facts.peers).await;
    if let Some(bytes) = words.mean_item_bytes {
        core.repin.mean_item_bytes.store(bytes, Ordering::Relaxed);
    }
    let config = &core.config.repin;
    let contacts = core.raft.contacts().all();
    let in_contact = contacts
        .into_iter()
        .filter(|(_, heard)| heard.elapsed() < config.contact_fresh)
        .map(|(node, _)| node)
        .collect();
    let judgement = judge.look(&Scene {
        now: Instant::now(),
        wall_seconds: Timestamp::now().seconds,
        term,
        own_node: core.node_id,
        peers: &facts.peers,
        settings: &facts.settings,
        in_contact: &in_contact,
        own: words.own.as_ref(),
        others: &words.others,
        rules: Rules { grace: config.grace, ipfs_down_after: config.ipfs_down_after },
    });
    let commands = judgement.commands.clone();
    core.repin.judgement.send_replace(Arc::new(judgement));
    join_all(commands.into_iter().map(|kind| turn(core, term, kind))).await;
}

/// Commits one verdict. One that fails is found again by the next look.
async fn turn(core: &Core, term: u64, kind: Kind) {
    let (what, peer) = match &kind {
        Kind::PeerAway(away) => ("the peer is away", away.peer_id.clone()),
        Kind::PeerBack(back) => ("the peer is back", back.peer_id.clone()),
        _ => ("the maintenance of a peer is over", Vec::new()),
    };
    let peer = peer_from_bytes(&peer).ok().map(|peer| peer.to_string());
    match propose(core, term, kind).await {
        Ok(Outcome::Refused(refusal)) => tracing::debug!(peer, ?refusal, "{what}"),
        Ok(Outcome::Peer(_) | Outcome::Done | Outcome::Items(_)) => tracing::warn!(peer, "{what}"),
        Err(error) => tracing::debug!(peer, %error, "commit that {what}"),
    }
}
