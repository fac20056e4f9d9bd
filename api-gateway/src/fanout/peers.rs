//! Who the members are, each by its own word where it answers (beh:B17, beh:B18.3).

use std::time::Duration;

use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use pinfold_common::peerset::{PeerInfo, PeerState, View};
use pinfold_common::{PeerId, Result, VERSION};
use pinfold_proto::connector::{DescribeCall, DescribeReply};
use pinfold_proto::consensus::DeparturesCall;
use pinfold_proto::consensus::peers_client::PeersClient;
use pinfold_proto::{api, types};
use tonic::transport::Channel;

use super::{Scope, members};
use crate::cluster::{Cluster, PEER_DEADLINE, ask};

/// What the original answers, and clients may compare.
const RPC_PROTOCOL_VERSION: &str = "/ipfscluster/1.0/rpc";

/// This peer's record. That its IPFS node, or its connector, does not answer is said inside.
pub async fn id(cluster: &Cluster) -> api::PeerId {
    let view = cluster.view();
    let described = ask("ask ipfs-connector", PEER_DEADLINE, cluster.own_tracker().describe(DescribeCall {})).await;
    let described = described.unwrap_or_else(|error| DescribeReply {
        ipfs: Some(types::IpfsId { error: error.message, ..types::IpfsId::default() }),
        ..DescribeReply::default()
    });
    let mut record = record(&view, &cluster.own, described);
    record.version = VERSION.to_owned();
    if record.peername.is_empty() {
        record.peername.clone_from(&cluster.peername);
    }
    record
}

/// How far draining peers have come is an ornament of answers, which do not wait long for it.
const DEPARTURES_DEADLINE: Duration = Duration::from_secs(2);

/// Every member's record, in the order of their answers; one that does not answer comes with `error`.
pub fn peers(cluster: &Cluster) -> BoxStream<'static, api::PeerId> {
    let view = cluster.view();
    let departures = departures(cluster.peerset()).boxed().shared();
    let asked: FuturesUnordered<_> = members(&view, cluster.own, Scope::Everybody)
        .into_iter()
        .map(|peer| {
            let (mut tracker, view, departures) = (cluster.tracker(&peer), view.clone(), departures.clone());
            async move {
                let answer = ask("ask the peer", PEER_DEADLINE, tracker.describe(DescribeCall {})).await;
                let mut record = record_of_answer(&view, &peer.peer_id, answer);
                record.departure = departures.await.into_iter().find(|departure| departure.peer_id == record.id);
                record
            }
        })
        .collect();
    asked.boxed()
}

async fn departures(mut peerset: PeersClient<Channel>) -> Vec<types::Departure> {
    match ask("ask what drains", DEPARTURES_DEADLINE, peerset.departures(DeparturesCall {})).await {
        Ok(reply) => reply.departures,
        Err(error) => {
            tracing::debug!(%error, "what drains is not known");
            Vec::new()
        }
    }
}

/// The record of a peer that has just been added, and that this peer's own view may not show yet.
pub async fn describe_added(cluster: &Cluster, added: PeerInfo) -> api::PeerId {
    let answer = ask("ask the peer", PEER_DEADLINE, cluster.tracker(&added).describe(DescribeCall {})).await;
    let mut view = View::clone(&cluster.view());
    if view.peerset.get(&added.peer_id).is_none() {
        view.peerset.peers.push(added.clone());
    }
    record_of_answer(&view, &added.peer_id, answer)
}

fn record_of_answer(view: &View, peer: &PeerId, answer: Result<DescribeReply>) -> api::PeerId {
    match answer {
        Ok(described) => record(view, peer, described),
        Err(error) => api::PeerId { id: peer.to_bytes(), error: error.message, ..api::PeerId::default() },
    }
}

fn record(view: &View, peer: &PeerId, described: DescribeReply) -> api::PeerId {
    let members = &view.peerset.peers;
    let mut cluster_peers: Vec<Vec<u8>> = members.iter().map(|member| member.peer_id.to_bytes()).collect();
    cluster_peers.sort();
    let others = members.iter().filter(|member| member.peer_id != *peer);
    let own = view.peerset.get(peer);
    api::PeerId {
        id: peer.to_bytes(),
        addresses: own.map(|peer| peer.multiaddresses.clone()).unwrap_or_default(),
        cluster_peers,
        cluster_peers_addresses: others.flat_map(|member| member.multiaddresses.clone()).collect(),
        version: described.version,
        rpc_protocol_version: RPC_PROTOCOL_VERSION.to_owned(),
        error: String::new(),
        ipfs: described.ipfs,
        peername: if described.peername.is_empty() { name(own) } else { described.peername },
        role: role(view, own).to_owned(),
        backend: described.backend,
        departure: None,
    }
}

fn name(peer: Option<&PeerInfo>) -> String {
    peer.map(|peer| peer.name.clone()).unwrap_or_default()
}

fn role(view: &View, peer: Option<&PeerInfo>) -> &'static str {
    match peer {
        None => "",
        Some(peer) if view.leader == Some(peer.peer_id) => "leader",
        Some(peer) => match (peer.state, peer.voter) {
            (PeerState::Removed, _) => "removed",
            (PeerState::Healthy | PeerState::Away | PeerState::Draining, true) => "follower",
            (PeerState::Healthy | PeerState::Away | PeerState::Draining, false) => "learner",
        },
    }
}
