//! Who is in the cluster: joining, leaving, and the supervisor that makes Raft's configuration follow the peerset.
//!
//! The replicated rows are the intention, Raft's configuration is the fact. A verb commits its row and wakes the
//! leader's supervisor, which compares the two and takes one step after the other: whoever dies in between, the next
//! leader's supervisor goes on from the same rows.

mod departure;
mod everywhere;
mod invite;
mod removals;
mod supervise;

use std::sync::Arc;
use std::time::Duration;

use pinfold_common::address::{multiaddr_of, parse_multiaddr};
use pinfold_common::channel::{MAX_MESSAGE_BYTES, call};
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::time::Timestamp;
use pinfold_common::tls::Room;
use pinfold_common::{Code, Error, PeerId, Result};
use pinfold_proto::consensus::membership_client::MembershipClient;
use pinfold_proto::consensus::{JoinCall, JoinReply};
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{storage, types};
use tonic::transport::Channel;

use crate::coordinator::Origin;
use crate::core::{Core, Leader, at_leader, other_members};
use crate::pinset::{Outcome, PeerTable, Refusal};
use crate::state_folder::hex;
pub use departure::{departures, drain, leave, remove};
pub use invite::invite;
pub use removals::finish_removals;
pub use supervise::supervise;

/// Another peer's answer to a join.
const JOIN_DEADLINE: Duration = Duration::from_secs(15);
/// Between attempts to tell the cluster about this peer.
const ANNOUNCE_PAUSES: std::ops::Range<Duration> = Duration::from_millis(500)..Duration::from_secs(10);
/// A removed peer goes on voting until it is out of the configuration, which may need its vote; at most so long.
const LINGER: Duration = Duration::from_secs(10);

/// Bounds of what a peer may say about itself.
pub const MAX_NAME_BYTES: usize = 256;
const MAX_MULTIADDRESSES: usize = 32;

/// Commits that the caller is a member, or updates its row. One hop to the leader.
pub async fn join(core: &Core, request: JoinCall, caller: PeerId) -> Result<JoinReply> {
    let facts = core.state.facts();
    if facts.cluster_id.is_empty() {
        return Err(not_founded(core, &request, &caller));
    }
    let joiner = if request.forwarded {
        if facts.peers.member(&caller.to_bytes()).is_none() {
            return Err(Error::new(Code::PermissionDenied, "only a member may ask on behalf of another peer"));
        }
        peer_from_bytes(&request.on_behalf_of)?
    } else {
        caller
    };
    check_joiner(&core.config.wire_version, &request, &facts.cluster_id, &facts.peers, &joiner)?;
    let origin = if request.forwarded { Origin::Forwarded } else { Origin::Own };
    match core.leader_for(origin).await? {
        Leader::This { term } => join_here(core, request, joiner, term).await,
        Leader::Other(leader) if origin == Origin::Own => {
            let mut client = core.membership_client(&leader)?;
            let on_behalf_of = joiner.to_bytes();
            let forwarded = JoinCall { forwarded: true, on_behalf_of, ..request };
            at_leader("join at the leader", JOIN_DEADLINE, client.join(forwarded)).await
        }
        Leader::Other(_) | Leader::Nobody => Err(core.not_leading()),
    }
}

/// Founders whose `init_peerset` differ would wait for each other for ever: they are told (seed:F7).
fn not_founded(core: &Core, request: &JoinCall, caller: &PeerId) -> Error {
    if request.cluster_id.is_empty() || request.cluster_id == core.raft.cluster_id() {
        return Error::unavailable("join: this cluster is not founded yet");
    }
    let list: Vec<String> = core.config.init_peerset.iter().map(PeerId::to_string).collect();
    Error::new(
        Code::Incompatible,
        format!(
            "peer {caller} founds cluster {} and peer {} founds cluster {}: consensus.raft.init_peerset must be the same on \
             all founders, and on peer {} it is [{}]",
            hex(&request.cluster_id),
            core.own,
            hex(core.raft.cluster_id()),
            core.own,
            list.join(", ")
        ),
    )
}

/// A joiner's own word on its version; the one in front of every request was compared before. A member that does not
/// lead passes on what the joiner said.
fn check_joiner(
    own_version: &str,
    request: &JoinCall,
    cluster_id: &[u8],
    peers: &PeerTable,
    joiner: &PeerId,
) -> Result<()> {
    if request.wire_version != own_version {
        return Err(Error::new(
            Code::Incompatible,
            format!(
                "join: peer {joiner} speaks wire version {} and this cluster speaks {own_version}",
                pinfold_common::ids::shorten(&request.wire_version)
            ),
        ));
    }
    check_description(request)?;
    if !request.cluster_id.is_empty() && request.cluster_id != cluster_id {
        return Err(Error::new(
            Code::Incompatible,
            format!(
                "join: peer {joiner} belongs to cluster {} and this is cluster {}",
                hex(&request.cluster_id),
                hex(cluster_id)
            ),
        ));
    }
    if request.node_id != 0 && peers.is_removed(request.node_id) {
        return Err(Error::new(
            Code::Removed,
            format!("peer {joiner}, node {}, was removed from this cluster", request.node_id),
        ));
    }
    Ok(())
}

/// A row that nobody could reach would stop its peer's promotion, and everybody's fan-outs.
fn check_description(request: &JoinCall) -> Result<()> {
    let addresses = request.addresses.clone().unwrap_or_default();
    for (room, address) in [
        ("consensus", addresses.consensus),
        ("monitor", addresses.monitor),
        ("connector", addresses.connector),
        ("gateway", addresses.gateway),
    ] {
        multiaddr_of(&address).map_err(|error| error.context(format!("join: addresses.{room}")))?;
    }
    if request.multiaddresses.len() > MAX_MULTIADDRESSES {
        return Err(Error::invalid(format!(
            "join: multiaddresses: {}, at most {MAX_MULTIADDRESSES}",
            request.multiaddresses.len()
        )));
    }
    for text in &request.multiaddresses {
        parse_multiaddr(text).map_err(|error| error.context("join: multiaddresses"))?;
    }
    let longest = request.name.len().max(request.version.len());
    if longest > MAX_NAME_BYTES {
        return Err(Error::invalid(format!("join: name or version of {longest} bytes, at most {MAX_NAME_BYTES}")));
    }
    Ok(())
}

async fn join_here(core: &Core, request: JoinCall, joiner: PeerId, term: u64) -> Result<JoinReply> {
    let facts = core.state.facts();
    let existing = facts.peers.member(&joiner.to_bytes());
    if existing.is_none() {
        refuse_taken_address(&facts.peers, &request)?;
    }
    if request.node_id == 0
        && let Some(row) = existing
        && has_had_data(core, row)
    {
        // A peer that had the log and comes without it must not vote under the old node ID: it would break what it
        // promised (fault:F3). It comes back as a new node.
        tracing::warn!(peer = %joiner, node = row.node_id, "the peer joins without its data: its old node is removed");
        let remove =
            storage::Remove { peer_id: row.peer_id.clone(), node_id: row.node_id, ..storage::Remove::default() };
        refused(propose(core, term, Kind::Remove(remove)).await?)?;
        core.membership_changed.notify_one();
    }
    let peer = types::Peer {
        peer_id: joiner.to_bytes(),
        node_id: request.node_id,
        name: request.name,
        addresses: request.addresses,
        multiaddresses: request.multiaddresses,
        version: request.version,
        wire_version: request.wire_version,
        ..types::Peer::default()
    };
    // A member that says again what its row says costs no entry (seed:H9.7).
    let row = match existing.filter(|row| says_the_same(row, &peer)) {
        Some(row) => row.clone(),
        None => {
            let outcome = propose(core, term, Kind::PeerJoin(storage::PeerJoin { peer: Some(peer) })).await?;
            core.membership_changed.notify_one();
            refused(outcome)?.ok_or_else(|| Error::internal("join: no row came of it"))?
        }
    };
    let facts = core.state.facts();
    Ok(JoinReply {
        cluster_id: facts.cluster_id.clone(),
        node_id: row.node_id,
        lineage: facts.lineage,
        peerset: Some(facts.peers.to_set(&facts.cluster_id, facts.lineage)),
    })
}

/// Two peers at one address: the newcomer could never be reached, as the other one answers for it, or it takes the place
/// of one that is gone, which then has to go first.
fn refuse_taken_address(peers: &PeerTable, request: &JoinCall) -> Result<()> {
    let Some(address) = request.addresses.as_ref().map(|addresses| &addresses.consensus) else { return Ok(()) };
    let is_there = |row: &&types::Peer| row.addresses.as_ref().is_some_and(|own| own.consensus == *address);
    match peers.members().find(is_there) {
        None => Ok(()),
        Some(row) => Err(Error::rejected(format!(
            "join: {address} is the address of member {}; announce another one, or, if that peer is gone for good, remove it \
             first: ctl peers rm {0}",
            peer_from_bytes(&row.peer_id)?
        ))),
    }
}

fn says_the_same(row: &types::Peer, told: &types::Peer) -> bool {
    row.node_id == told.node_id
        && row.name == told.name
        && row.addresses == told.addresses
        && row.multiaddresses == told.multiaddresses
        && row.version == told.version
        && row.wire_version == told.wire_version
}

/// Whether that node ever acknowledged an entry. One that did not can start from nothing: its first answer was lost.
fn has_had_data(core: &Core, row: &types::Peer) -> bool {
    let status = core.raft.status().borrow().clone();
    row.voter
        || status.followers.get(&row.node_id).is_some_and(|follower| follower.matched.is_some_and(|index| index > 0))
}

async fn propose(core: &Core, term: u64, kind: Kind) -> Result<Outcome> {
    let command = storage::Command { at: Some(Timestamp::now().into()), request_key: Vec::new(), command: Some(kind) };
    let (_, outcome) = core.raft.propose_in_term(command, term).await?;
    Ok(outcome)
}

/// The row a command about a peer left, or its refusal as an error.
fn refused(outcome: Outcome) -> Result<Option<types::Peer>> {
    match outcome {
        Outcome::Peer(row) => Ok(Some(*row)),
        Outcome::Done | Outcome::Items(_) => Ok(None),
        Outcome::Refused(refusal) => Err(match refusal {
            Refusal::NotAMember => Error::not_found("that peer is not a member of this cluster"),
            Refusal::NodeRemoved => Error::new(Code::Removed, "that node was removed from this cluster"),
            Refusal::LastPeer => Error::rejected("cannot remove ourselves from a one-peer cluster"),
            Refusal::AlreadyFounded => Error::rejected("this cluster was founded before"),
            Refusal::NotRemoving => Error::rejected("the removal of that peer was called off"),
        }),
    }
}

/// Tells the cluster this peer's name, addresses and version when its row says otherwise, and thereby learns when it
/// was removed while it was not running. Returns that; otherwise it goes on until `shutdown`.
pub async fn announce(core: Arc<Core>, shutdown: Shutdown) -> Option<String> {
    let work = async {
        let mut pause = ANNOUNCE_PAUSES.start;
        loop {
            if is_announced(&core) {
                core.trouble.send_replace(None);
                return std::future::pending().await;
            }
            match announce_once(&core).await {
                Ok(()) => {
                    pause = ANNOUNCE_PAUSES.start;
                    core.trouble.send_replace(None);
                }
                Err(error) if error.code == Code::Removed => return error.message,
                Err(error) => {
                    tracing::debug!(%error, "tell the cluster this peer's addresses");
                    let lasts = matches!(error.code, Code::Incompatible | Code::Unauthenticated);
                    core.trouble.send_replace(lasts.then_some(error.message));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ANNOUNCE_PAUSES.end);
        }
    };
    shutdown.race(work).await
}

fn is_announced(core: &Core) -> bool {
    let facts = core.state.facts();
    let Some(row) = facts.peers.node(core.node_id) else { return false };
    let own = types::Peer { node_id: core.node_id, ..core.config.own_row() };
    core.position.borrow().caught_up && says_the_same(row, &own)
}

async fn announce_once(core: &Core) -> Result<()> {
    let position = core.position.borrow().clone();
    let request = join_call(&core.config, core.raft.cluster_id().to_vec(), core.node_id);
    match position.leader {
        // The first entries may not be applied yet: the row is not missing, it is not here yet.
        Leader::Other(_) if !position.caught_up => Ok(()),
        Leader::This { .. } => join(core, request, core.own).await.map(drop),
        Leader::Other(leader) => {
            let mut client = core.membership_client(&leader)?;
            call("tell the leader this peer's addresses", JOIN_DEADLINE, client.join(request)).await.map(drop)
        }
        Leader::Nobody => ask_members(core, request).await,
    }
}

/// Without a leader there may be one that does not speak with this peer any more. Any member can say so; before there
/// are members, any founder.
async fn ask_members(core: &Core, request: JoinCall) -> Result<()> {
    let mut failed = Error::unavailable("no other member is known");
    let founders = core.config.known_peers.iter().filter(|known| core.config.init_peerset.contains(&known.peer_id));
    let targets: Vec<(PeerId, Channel)> = match other_members(core) {
        none if none.is_empty() => founders
            .map(|known| (known.peer_id, core.channels.to(Room::Consensus, &known.peer_id, &known.host_port)))
            .collect(),
        members => {
            members.into_iter().filter_map(|(peer, _)| Some((peer, core.consensus_channel(&peer).ok()?))).collect()
        }
    };
    for (peer, channel) in targets {
        let mut client = MembershipClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        match call(&format!("ask {peer} about this peer"), JOIN_DEADLINE, client.join(request.clone())).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code == Code::Removed => return Err(error),
            // What a person must act on is not hidden by a member that is merely away.
            Err(_) if failed.code == Code::Incompatible => {}
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// What this peer says when it joins, or is a member and says it again.
pub fn join_call(config: &crate::config::Config, cluster_id: Vec<u8>, node_id: u64) -> JoinCall {
    let row = config.own_row();
    JoinCall {
        name: row.name,
        addresses: row.addresses,
        multiaddresses: row.multiaddresses,
        version: row.version,
        wire_version: row.wire_version,
        cluster_id,
        node_id,
        forwarded: false,
        on_behalf_of: Vec::new(),
    }
}

/// Resolves when the log says that this node is removed.
pub async fn removed(core: &Core) -> String {
    let mut facts = core.state.watch_facts();
    let node_id = core.node_id;
    if facts.wait_for(|facts| facts.peers.is_removed(node_id)).await.is_err() {
        return std::future::pending().await;
    }
    "its removal was applied".to_owned()
}

/// Waits until this node is out of Raft's configuration: of two voters, the one that stays needs the other's vote to
/// take it out.
pub async fn linger(core: &Core) {
    let mut status = core.raft.status();
    let node_id = core.node_id;
    let _ = tokio::time::timeout(LINGER, status.wait_for(|status| !status.is_member(node_id))).await;
}

#[cfg(test)]
mod tests {
    use pinfold_proto::WIRE_VERSION;
    use pinfold_proto::types::peer::State;

    use super::supervise::tests::{peer_id, table};
    use super::*;

    /// Goal: who may not join is told why: another version, another cluster, a removed node.
    #[test]
    fn joiners_are_checked() {
        let rows = table(&[(1, State::Healthy), (3, State::Removed)]);
        let there = || "127.0.0.1:1".to_owned();
        let addresses =
            types::ServiceAddresses { consensus: there(), monitor: there(), connector: there(), gateway: there() };
        let good = JoinCall { wire_version: WIRE_VERSION.into(), addresses: Some(addresses), ..JoinCall::default() };
        let check = |request: JoinCall| {
            check_joiner(WIRE_VERSION, &request, b"here", &rows, &peer_id(3)).map_err(|error| error.code)
        };
        assert_eq!(check(good.clone()), Ok(()));
        assert_eq!(check(JoinCall { addresses: None, ..good.clone() }), Err(Code::InvalidArgument));
        assert_eq!(check(JoinCall { multiaddresses: vec!["/x".into()], ..good.clone() }), Err(Code::InvalidArgument));
        assert_eq!(check(JoinCall { wire_version: "0.9".into(), ..good.clone() }), Err(Code::Incompatible));
        assert_eq!(check(JoinCall { cluster_id: b"there".into(), ..good.clone() }), Err(Code::Incompatible));
        assert_eq!(check(JoinCall { node_id: 3, ..good }), Err(Code::Removed));
    }
}
