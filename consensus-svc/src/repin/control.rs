//! What people ask of re-pinning, and change about it: at the leader, one hop (docs/repin.md). Changes are replicated
//! settings, so that the next leader keeps to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pinfold_common::ids::peer_from_bytes;
use pinfold_common::time::Timestamp;
use pinfold_common::{Code, Error, Result};
use pinfold_proto::consensus::repin_forward_client::RepinForwardClient;
use pinfold_proto::storage;
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::types::peer::State;
use pinfold_proto::types::repin_change_call::Switch;
use pinfold_proto::types::{
    MaintainCall, MaintainReply, PeerLoad, PeerRepin, Rebalance, RepinChangeCall, RepinStatusCall, RepinStatusReply,
    UnsatisfiedCall, UnsatisfiedItem, UnsatisfiedReply, peer_repin,
};
use tonic::transport::Channel;

use super::plan::balance::Loads;
use super::plan::judge::{maintained_until, maintenance_key};
use super::plan::{PAUSED, PINS_PER_SECOND, REBALANCE, STOP_LIFTED, gate};
use super::{balancing, moving, propose};
use crate::coordinator::Origin;
use crate::core::{Core, Leader, at_leader};

/// Items of one answer.
const MAX_LISTED: usize = 1000;
/// A year: longer is not maintenance.
const LONGEST_MAINTENANCE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Where a question is answered.
enum Place {
    Here { term: u64 },
    There(RepinForwardClient<Channel>),
}

async fn place(core: &Core, origin: Origin) -> Result<Place> {
    match core.leader_for(origin).await? {
        Leader::This { term } => Ok(Place::Here { term }),
        Leader::Other(peer) if origin == Origin::Own => Ok(Place::There(core.repin_client(&peer)?)),
        Leader::Other(_) | Leader::Nobody => Err(core.not_leading()),
    }
}

pub async fn status(core: &Core, call: RepinStatusCall, origin: Origin) -> Result<RepinStatusReply> {
    match place(core, origin).await? {
        Place::Here { .. } => {
            let mut reply = status_here(core);
            if call.loads {
                reply.loads = loads(core).await?;
            }
            Ok(reply)
        }
        Place::There(mut client) => {
            at_leader("ask the leader about re-pinning", Core::FORWARD_DEADLINE, client.status(call)).await
        }
    }
}

fn status_here(core: &Core) -> RepinStatusReply {
    let facts = core.state.facts();
    let board = core.repin.board.lock();
    let (phase, reason) = board.phase();
    RepinStatusReply {
        phase: phase as i32,
        reason,
        pins_per_second: moving::pins_per_second(core, &facts),
        under_replicated: board.under_replicated,
        lost: board.lost,
        unsatisfied: board.unsatisfied.total,
        unconfirmed: board.leaving,
        moved: board.moved,
        settled: board.settled,
        peers: peers(core),
        rebalance: Some(Rebalance {
            running: facts.settings.get(REBALANCE).is_some_and(|wish| !wish.is_empty()),
            moved: board.rebalanced,
            left: board.left_to_balance,
        }),
        loads: Vec::new(),
        most_per_peer: core.repin.most_per_peer(&core.config.repin),
        mean_item_bytes: core.repin.mean_item_bytes(),
    }
}

/// What each member holds, and what it should hold if it takes part in rebalancing.
async fn loads(core: &Core) -> Result<Vec<PeerLoad>> {
    let facts = core.state.facts();
    let standings = core.repin.standings(&facts.peers);
    let failed = |error| Error::internal(format!("count what each peer holds: {error}"));
    let part: BTreeSet<&Vec<u8>> = balancing::taking_part(&facts, &standings).collect();
    let mut counts = BTreeMap::new();
    for row in facts.peers.members() {
        counts.insert(&row.peer_id, core.state.count_allocated_to(&row.peer_id).await.map_err(failed)?);
    }
    let even: Loads = counts.iter().filter(|(peer, _)| part.contains(*peer)).map(|(p, n)| ((*p).clone(), *n)).collect();
    let load = |(peer, pins): (&Vec<u8>, u64)| {
        let takes_part = part.contains(peer);
        let share = if takes_part { even.share_of(peer) } else { 0 };
        PeerLoad { peer_id: peer.clone(), pins, share, takes_part }
    };
    Ok(counts.into_iter().map(load).collect())
}

/// Members that do not count as holders, or are about to, or are in maintenance.
fn peers(core: &Core) -> Vec<PeerRepin> {
    let facts = core.state.facts();
    let judgement = core.repin.judgement();
    let now = Timestamp::now().seconds;
    let told = facts.peers.members().filter_map(|row| {
        let doubted = judgement.doubted.get(&row.peer_id);
        let state = match row.state() {
            State::Away => peer_repin::State::Away,
            _ if doubted.is_some() => peer_repin::State::Doubted,
            State::Draining => peer_repin::State::Draining,
            State::Healthy if judgement.ipfs_down.contains(&row.peer_id) => peer_repin::State::IpfsDown,
            State::Healthy | State::Removed => peer_repin::State::Healthy,
        };
        let until = maintained_until(&facts.settings, row.node_id).filter(|until| *until > now).unwrap_or(0);
        let is_told = state != peer_repin::State::Healthy || until > 0;
        is_told.then(|| PeerRepin {
            peer_id: row.peer_id.clone(),
            state: state as i32,
            left_ms: doubted.map_or(0, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            maintenance_until_seconds: until,
        })
    });
    let mut told: Vec<PeerRepin> = told.collect();
    told.sort_by(|left, right| left.peer_id.cmp(&right.peer_id));
    told
}

pub async fn change(core: &Core, call: RepinChangeCall, origin: Origin) -> Result<RepinStatusReply> {
    let switch = Switch::try_from(call.switch).map_err(|_| Error::invalid("switch: unknown"))?;
    if call.default_rate && call.pins_per_second != 0 {
        return Err(Error::invalid("pins_per_second: given, and the default asked for"));
    }
    let term = match place(core, origin).await? {
        Place::Here { term } => term,
        Place::There(mut client) => {
            let changed = client.change(call);
            return at_leader("change re-pinning at the leader", Core::FORWARD_DEADLINE, changed).await;
        }
    };
    match switch {
        Switch::Keep => {}
        Switch::Pause => set(core, term, PAUSED, "true".to_owned()).await?,
        Switch::Resume => {
            set(core, term, PAUSED, String::new()).await?;
            set(core, term, STOP_LIFTED, gate::lift(&core.state.facts().peers)).await?;
        }
        Switch::Rebalance if core.config.repin.is_disabled => {
            let why = "the leader has cluster.disable_repinning or cluster.follower_mode";
            return Err(Error::new(Code::Rejected, format!("rebalance: nothing may move: {why}")));
        }
        Switch::Rebalance => set(core, term, REBALANCE, "true".to_owned()).await?,
        Switch::StopRebalance => set(core, term, REBALANCE, String::new()).await?,
    }
    if call.pins_per_second != 0 {
        set(core, term, PINS_PER_SECOND, call.pins_per_second.to_string()).await?;
    } else if call.default_rate {
        set(core, term, PINS_PER_SECOND, String::new()).await?;
    }
    Ok(status_here(core))
}

/// Success: on the disks of a majority.
pub(super) async fn set(core: &Core, term: u64, key: &str, value: String) -> Result<()> {
    if core.state.facts().settings.get(key).map_or("", String::as_str) == value {
        return Ok(());
    }
    propose(core, term, Kind::Setting(storage::Setting { key: key.to_owned(), value })).await?;
    Ok(())
}

pub async fn maintain(core: &Core, call: MaintainCall, origin: Origin) -> Result<MaintainReply> {
    let peer = peer_from_bytes(&call.peer_id).map_err(|error| error.context("peer_id"))?;
    if call.seconds > LONGEST_MAINTENANCE.as_secs() {
        return Err(Error::invalid("seconds: a maintenance of more than a year is a removal"));
    }
    let term = match place(core, origin).await? {
        Place::Here { term } => term,
        Place::There(mut client) => {
            let done = client.maintain(call);
            return at_leader("announce maintenance at the leader", Core::FORWARD_DEADLINE, done).await;
        }
    };
    let node_id = match core.state.facts().peers.member(&call.peer_id) {
        Some(row) => row.node_id,
        None => return Err(Error::not_found(format!("peer {peer} is not a member of this cluster"))),
    };
    let until_seconds = match i64::try_from(call.seconds) {
        Ok(seconds @ 1..) => Timestamp::now().seconds + seconds,
        Ok(_) | Err(_) => 0,
    };
    let value = if until_seconds == 0 { String::new() } else { until_seconds.to_string() };
    set(core, term, &maintenance_key(node_id), value).await?;
    Ok(MaintainReply { until_seconds })
}

pub async fn unsatisfied(core: &Core, call: UnsatisfiedCall, origin: Origin) -> Result<UnsatisfiedReply> {
    match place(core, origin).await? {
        Place::Here { .. } => Ok(unsatisfied_here(core, &call)),
        Place::There(mut client) => {
            let listed = client.unsatisfied(call);
            at_leader("ask the leader for unsatisfied items", Core::FORWARD_DEADLINE, listed).await
        }
    }
}

fn unsatisfied_here(core: &Core, call: &UnsatisfiedCall) -> UnsatisfiedReply {
    let limit = match usize::try_from(call.limit) {
        Ok(limit @ 1..=MAX_LISTED) => limit,
        Ok(_) | Err(_) => MAX_LISTED,
    };
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let board = core.repin.board.lock();
    let after = (std::ops::Bound::Excluded(call.after.clone()), std::ops::Bound::Unbounded);
    let mut rest = board.unsatisfied.listed.range(after);
    let listed = rest.by_ref().take(limit).map(|(cid, why)| UnsatisfiedItem {
        cid: cid.clone(),
        live: number(why.live),
        needed: number(why.needed),
        candidates: number(why.candidates),
        reason: why.reason.clone(),
    });
    UnsatisfiedReply { items: listed.collect(), more: rest.next().is_some(), total: board.unsatisfied.total }
}
