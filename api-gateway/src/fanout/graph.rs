//! Who reaches whom (beh:B18.1). Links between cluster peers are this peer's view: a member that answered it is taken
//! to reach the others that did, because they share one Raft group; one that did not has no links.

use futures::future::join_all;
use pinfold_common::{PeerId, Result};
use pinfold_proto::api::{GraphPeer, GraphReply};
use pinfold_proto::connector::SwarmPeersCall;

use super::{Scope, members};
use crate::cluster::{Cluster, PEER_DEADLINE, ask};

pub async fn graph(cluster: &Cluster) -> GraphReply {
    let members = members(&cluster.view(), cluster.own, Scope::Everybody);
    let asked = members.iter().map(|peer| {
        let mut tracker = cluster.tracker(peer);
        async move { ask("ask for swarm peers", PEER_DEADLINE, tracker.swarm_peers(SwarmPeersCall {})).await }
    });
    let (answers, directory) = tokio::join!(join_all(asked), cluster.directory());
    let reached: Vec<PeerId> =
        members.iter().zip(&answers).filter(|(_, answer)| is_reached(answer)).map(|(peer, _)| peer.peer_id).collect();
    let mut peers: Vec<GraphPeer> = members
        .iter()
        .zip(answers)
        .map(|(peer, answer)| {
            let peer_id = peer.peer_id.to_bytes();
            if !is_reached(&answer) {
                return GraphPeer { peer_id, ..GraphPeer::default() };
            }
            let others = reached.iter().filter(|other| **other != peer.peer_id);
            GraphPeer {
                peer_id,
                reached: true,
                peername: peer.name.clone(),
                links: others.map(|other| other.to_bytes()).collect(),
                ipfs_id: directory.get(&peer.peer_id).map(|known| known.ipfs.id.clone()).unwrap_or_default(),
                swarm: answer.map(|reply| reply.peers).unwrap_or_default(),
            }
        })
        .collect();
    peers.sort_by(|a, b| a.peer_id.cmp(&b.peer_id));
    GraphReply { peer_id: cluster.own.to_bytes(), peers }
}

/// A connector that answered that its node does not is reached.
fn is_reached<T>(answer: &Result<T>) -> bool {
    use pinfold_common::Code;
    match answer {
        Ok(_) => true,
        Err(error) => !matches!(error.code, Code::Unavailable | Code::OutcomeUnknown | Code::Unauthenticated),
    }
}
