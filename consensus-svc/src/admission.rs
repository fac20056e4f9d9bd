//! How a peer comes to be a member: it founds a cluster of one, founds one together with its `init_peerset`, or joins
//! one by `--bootstrap` (protocols.md 2, beh:B3). What was decided is in `member.json` before Raft starts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES, call};
use pinfold_common::member::{Member, RemovedMarker};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::time::Timestamp;
use pinfold_common::tls::Room;
use pinfold_common::{Code, PeerId};
use pinfold_proto::consensus::membership_client::MembershipClient;
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{storage, types};
use rand::RngCore as _;
use tokio::sync::{mpsc, watch};

use crate::config::{Config, KnownPeer};
use crate::core::{Core, Leader};
use crate::error::{Error, Result};
use crate::grpc::Invitation;
use crate::membership::join_call;
use crate::pinset::JOINER_BIT;
use crate::raft::NodeAndPeer;
use crate::state_folder::{Found, hex};
use crate::store::Stores;

pub(crate) const CLUSTER_ID_BYTES: usize = 16;
/// One peer's answer to a request to join.
const JOIN_DEADLINE: Duration = Duration::from_secs(15);
/// Between rounds over the addresses of `--bootstrap`.
const JOIN_PAUSES: std::ops::Range<Duration> = Duration::from_millis(200)..Duration::from_secs(30);
/// Between attempts to commit the founding.
const FOUND_PAUSE: Duration = Duration::from_millis(200);

/// What a peer without a membership does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Goes on with what it has.
    Restart(Member),
    /// Goes on as that member, without the data that is there.
    SetAside(Member),
    /// Founds a cluster of one, or its part of the `init_peerset`.
    Found(Member),
    /// Asks these to let it in.
    Join(Vec<KnownPeer>),
}

/// Looks at the folder, the stores and the configuration.
pub fn plan(config: &Config, found: Found, stores: &Stores) -> Result<Plan> {
    let facts = stores.state.facts();
    match found {
        Found::Member(member) => {
            if !facts.cluster_id.is_empty() && facts.cluster_id != member.cluster_id {
                if facts.peers.rows.len() == 1 && stores.state.pin_count() == 0 {
                    // It had joined another cluster, and was ended before its own, which had nothing, was moved aside.
                    return Ok(Plan::SetAside(member));
                }
                return Err(Error::Refused(format!(
                    "member.json names cluster {} and the data in {} is that of cluster {}",
                    hex(&member.cluster_id),
                    config.raft_folder.display(),
                    hex(&facts.cluster_id)
                )));
            }
            let own = config.identity.peer_id.to_bytes();
            if let Some(row) = facts.peers.node(member.node_id).filter(|row| row.peer_id != own) {
                return Err(Error::Refused(format!(
                    "the data in {} is that of peer {}, and this is peer {}: the folders of two peers were mixed up",
                    config.raft_folder.display(),
                    pinfold_common::ids::peer_from_bytes(&row.peer_id)?,
                    config.identity.peer_id
                )));
            }
            if !config.bootstrap.is_empty() {
                tracing::info!(
                    cluster = hex(&member.cluster_id),
                    "this peer is a member already: --bootstrap is for a peer that has nothing, and its data stays"
                );
            }
            Ok(Plan::Restart(member))
        }
        Found::Nothing if stores.log.status().last.is_some() || stores.log.vote().is_some() => {
            Err(Error::Refused(format!(
                "{} has data of {}, and member.json, which says who this peer is there, is gone; put it back, or clean the \
                 state (consensus-svc state clean) and join again",
                config.raft_folder.display(),
                if facts.cluster_id.is_empty() { "a cluster".to_owned() } else { hex(&facts.cluster_id) }
            )))
        }
        Found::Nothing if !config.bootstrap.is_empty() => Ok(Plan::Join(config.bootstrap.clone())),
        Found::Nothing => Ok(Plan::Found(founder(config))),
    }
}

/// Counts this start, in the log and in `member.json`: whoever puts an older copy of the one beside the other is found out.
/// An older log has forgotten votes and entries that this node answered for; the cluster could lose what it acknowledged.
/// So has another node's.
pub async fn count_start(config: &Config, member: Member, stores: &Stores) -> Result<Member> {
    let has_data = stores.log.status().last.is_some() || stores.log.vote().is_some();
    if let Some(node) = stores.log.node().filter(|node| has_data && *node != member.node_id) {
        return Err(Error::Refused(format!(
            "the data in {} is that of node {node}, and member.json says that this is node {}: the folders of two peers \
             were mixed up; put each back into its place. If the right one is lost, take the peer in anew: ctl peers rm on \
             another one, consensus-svc state clean here, and start it with --bootstrap",
            config.raft_folder.display(),
            member.node_id
        )));
    }
    let counted = stores.log.starts();
    if counted < member.starts {
        return Err(Error::Refused(format!(
            "{} is an older copy: this node was started {} times, and of that copy {counted} starts are known; it must \
             not vote. In a running cluster, take the peer in anew: remove it there (ctl peers rm), clean its state \
             (consensus-svc state clean) and start it with --bootstrap. To bring back an old state on purpose, with all \
             peers stopped: consensus-svc state recover",
            config.raft_folder.display(),
            member.starts
        )));
    }
    let starts = counted + 1;
    // The log first: a crash in between leaves it one ahead, which is no older copy.
    stores.log.save_starts(starts, member.node_id).await?;
    let member = Member { starts, ..member };
    member.save(&config.folder).map_err(Error::disk)?;
    Ok(member)
}

/// This peer as a founder. All peers of an `init_peerset` agree on the cluster's ID without asking each other, so that
/// differing lists are different clusters, which refuse each other.
fn founder(config: &Config) -> Member {
    let mut cluster_id = vec![0; CLUSTER_ID_BYTES];
    if config.init_peerset.is_empty() {
        rand::rng().fill_bytes(&mut cluster_id);
    } else {
        let mut list = b"pinfold init_peerset".to_vec();
        config.init_peerset.iter().for_each(|peer| list.extend(peer.to_bytes()));
        cluster_id.copy_from_slice(&sha256(&list)[..CLUSTER_ID_BYTES]);
    }
    Member { cluster_id, node_id: founder_node_id(&config.identity.peer_id), starts: 0 }
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().to_vec()
}

/// The hash of the peer ID with the top bit 0 (protocols.md 2).
pub(crate) fn founder_node_id(peer: &PeerId) -> u64 {
    let hash = sha256(&peer.to_bytes());
    let first = hash.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    (first & !JOINER_BIT).max(1)
}

/// The founders with their addresses, if this peer is the one that initialises: the one with the lowest ID. The others
/// wait for it.
pub fn founders(config: &Config) -> Result<Option<Vec<NodeAndPeer>>> {
    let own = config.identity.peer_id;
    let mut peers = config.init_peerset.clone();
    if peers.is_empty() {
        peers.push(own);
    }
    if peers.first() != Some(&own) {
        return Ok(None);
    }
    let known: BTreeMap<PeerId, &str> =
        config.known_peers.iter().rev().map(|peer| (peer.peer_id, peer.host_port.as_str())).collect();
    let nodes = peers.into_iter().map(|peer_id| {
        let address = match known.get(&peer_id) {
            _ if peer_id == own => config.addresses.consensus.clone(),
            Some(address) => (*address).to_owned(),
            None => {
                return Err(Error::Refused(format!(
                    "consensus.raft.init_peerset names {peer_id}, and neither cluster.peer_addresses nor the peerstore \
                     says where it is"
                )));
            }
        };
        Ok(NodeAndPeer { node_id: founder_node_id(&peer_id), peer_id, address })
    });
    nodes.collect::<Result<_>>().map(Some)
}

/// Commits the first command of the cluster, as soon as this peer leads one that has none. Any founder may.
pub async fn found(core: Arc<Core>, cluster_id: Vec<u8>, shutdown: Shutdown) {
    let mut facts = core.state.watch_facts();
    let mut position = core.position.clone();
    let work = async {
        while facts.borrow_and_update().cluster_id.is_empty() {
            let leader = position.borrow_and_update().leader.clone();
            if let Leader::This { term } = leader {
                let command = Kind::Found(storage::Found { cluster_id: cluster_id.clone(), founders: rows(&core) });
                let command = storage::Command {
                    at: Some(Timestamp::now().into()),
                    request_key: Vec::new(),
                    command: Some(command),
                };
                match core.raft.propose_in_term(command, term).await {
                    Ok(_) => tracing::info!(cluster = hex(&cluster_id), "founded a cluster"),
                    Err(error) => tracing::debug!(%error, "found the cluster"),
                }
                tokio::time::sleep(FOUND_PAUSE).await;
                continue;
            }
            tokio::select! {
                changed = facts.changed() => if changed.is_err() { return },
                changed = position.changed() => if changed.is_err() { return },
            }
        }
    };
    shutdown.race(work).await;
}

/// The rows of the founders: this peer's whole, of the others what Raft's configuration has. They add the rest.
fn rows(core: &Core) -> Vec<types::Peer> {
    let own = types::Peer { node_id: core.node_id, ..core.config.own_row() };
    let nodes = core.raft.status().borrow().nodes.clone();
    let others = nodes.into_values().filter(|node| node.node_id != core.node_id).map(|node| types::Peer {
        peer_id: node.peer_id.to_bytes(),
        node_id: node.node_id,
        addresses: Some(types::ServiceAddresses { consensus: node.address, ..types::ServiceAddresses::default() }),
        ..types::Peer::default()
    });
    others.chain(std::iter::once(own)).collect()
}

/// Asks one address after the other, round after round, until one lets this peer in; `None` on `shutdown`. `reason` is
/// what it says about itself meanwhile. Who invites it is asked at once.
pub async fn join(
    config: &Config,
    channels: &Channels,
    targets: &[KnownPeer],
    reason: &watch::Sender<String>,
    invitations: &mut mpsc::Receiver<Invitation>,
    shutdown: &Shutdown,
) -> Result<Option<Member>> {
    let mut pause = JOIN_PAUSES.start;
    loop {
        for target in targets {
            let Some(joined) = shutdown.race(join_at(config, channels, target)).await else { return Ok(None) };
            match joined {
                Ok(member) => return Ok(Some(member)),
                Err(error) if error.code == Code::Removed => {
                    return Err(Error::Refused(format!("{error}; clean its state (consensus-svc state clean) first")));
                }
                Err(error) => {
                    tracing::warn!(peer = %target.peer_id, address = %target.host_port, %error, "join a cluster");
                    reason.send_replace(format!("joining by {}: {error}", target.host_port));
                }
            }
        }
        let invited = tokio::select! {
            () = shutdown.triggered() => return Ok(None),
            () = tokio::time::sleep(pause) => None,
            invitation = invitations.recv() => invitation,
        };
        pause = (pause * 2).min(JOIN_PAUSES.end);
        let Some((inviter, answer)) = invited else { continue };
        match join_at(config, channels, &inviter).await {
            Ok(member) => {
                // Who asked may be gone; the peer has joined all the same.
                let _ = answer.send(member.node_id);
                return Ok(Some(member));
            }
            Err(error) => {
                tracing::warn!(peer = %inviter.peer_id, %error, "join the cluster that invites");
                reason.send_replace(format!("joining by {}: {error}", inviter.host_port));
            }
        }
    }
}

/// Whether this peer's cluster is itself alone and has nothing: what a start without `--bootstrap` founds. It can be
/// given up for another cluster; anything else is somebody's data (beh:B3.8).
fn has_nothing(core: &Core) -> bool {
    let facts = core.state.facts();
    facts.peers.rows.len() == 1 && facts.peers.node(core.node_id).is_some() && core.state.pin_count() == 0
}

/// Joins another cluster in place of this peer's own, which has nothing. The own data is moved aside when the other side
/// has taken this peer, and not before. Answers with the node that it became.
pub async fn join_elsewhere(core: &Core, target: &KnownPeer) -> pinfold_common::Result<u64> {
    let check = || match has_nothing(core) {
        true => Ok(()),
        false => Err(pinfold_common::Error::rejected(format!(
            "peer {} is a member of cluster {} with {} peers and {} pins: to join another one, remove it there, clean its \
             state (consensus-svc state clean) and start it with --bootstrap",
            core.own,
            hex(&core.state.facts().cluster_id),
            core.state.facts().peers.members().count(),
            core.state.pin_count()
        ))),
    };
    check()?;
    let member = join_at(&core.config, &core.channels, target).await?;
    check()?;
    let node_id = member.node_id;
    core.elsewhere.send_replace(Some(member));
    Ok(node_id)
}

/// A founder that has nothing and is started again with `--bootstrap` goes on as it is, and joins as soon as it can; so
/// peers that name each other do not wait for each other. Ends when it has something, or has joined.
pub async fn join_when_possible(core: Arc<Core>, shutdown: Shutdown) {
    let mut pause = JOIN_PAUSES.start;
    let work = async {
        while !core.config.bootstrap.is_empty() && has_nothing(&core) {
            for target in &core.config.bootstrap {
                match join_elsewhere(&core, target).await {
                    Ok(_) => return,
                    Err(error) => {
                        tracing::warn!(peer = %target.peer_id, address = %target.host_port, %error, "join a cluster");
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(JOIN_PAUSES.end);
        }
    };
    shutdown.race(work).await;
}

async fn join_at(config: &Config, channels: &Channels, target: &KnownPeer) -> pinfold_common::Result<Member> {
    let channel = channels.to(Room::Consensus, &target.peer_id, &target.host_port);
    let mut client = MembershipClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let request = join_call(config, Vec::new(), 0);
    let reply = call("join", JOIN_DEADLINE, client.join(request)).await?;
    tracing::info!(by = %target.peer_id, cluster = hex(&reply.cluster_id), node = reply.node_id, "joined a cluster");
    Ok(Member { cluster_id: reply.cluster_id, node_id: reply.node_id, starts: 0 })
}

/// Writes down that this peer is not a member any more; the next start refuses.
pub fn mark_removed(config: &Config, member: &Member, reason: &str) -> Result<RemovedMarker> {
    let marker =
        RemovedMarker { cluster_id: member.cluster_id.clone(), node_id: member.node_id, reason: reason.to_owned() };
    marker.save(&config.folder)?;
    Ok(marker)
}

#[cfg(test)]
mod tests {
    use pinfold_common::config::File;
    use pinfold_common::identity::Identity;
    use pinfold_common::tls::ClusterSecret;
    use serde_json::json;

    use super::*;

    fn config(peerset: &[PeerId], identity: &Identity, addresses: &[String]) -> Config {
        let texts: Vec<String> = peerset.iter().map(PeerId::to_string).collect();
        let file = File::defaults()
            .with("cluster.secret", json!(ClusterSecret::generate().to_hex()))
            .with("consensus.raft.init_peerset", json!(texts))
            .with("cluster.peer_addresses", json!(addresses));
        Config::with_identity(&file, &[], identity.clone()).unwrap()
    }

    /// Goal: founders agree on the cluster and on who initialises it, whatever the order of their lists; other lists are
    /// other clusters.
    #[test]
    fn founders_agree() {
        let mut identities = [Identity::generate(), Identity::generate()];
        identities.sort_by_key(|identity| identity.peer_id);
        let (low, high) = (&identities[0], &identities[1]);
        let address = format!("/ip4/127.0.0.1/tcp/7000/p2p/{}", high.peer_id);
        let first = config(&[low.peer_id, high.peer_id], low, &[address]);
        let second = config(&[high.peer_id, low.peer_id], high, &[]);
        assert_eq!(founder(&first).cluster_id, founder(&second).cluster_id);
        assert_ne!(founder(&first).node_id, founder(&second).node_id);
        assert_eq!(founder(&first).node_id & JOINER_BIT, 0);
        let nodes = founders(&first).unwrap().unwrap();
        assert_eq!((nodes.len(), nodes[1].address.as_str()), (2, "127.0.0.1:7000"));
        assert_eq!(founders(&second).unwrap(), None);
        let alone = config(&[low.peer_id], low, &[]);
        assert_ne!(founder(&alone).cluster_id, founder(&first).cluster_id);
        let lost = config(&[low.peer_id, high.peer_id], low, &[]);
        assert!(matches!(founders(&lost), Err(Error::Refused(message)) if message.contains("init_peerset")));
    }
}
