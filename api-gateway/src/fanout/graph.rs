//! Who reaches whom (beh:B18.1). Links between cluster peers are this peer's view: a member that answered it is taken
//! to reach the others that did, because they share one Raft group; one that did not has no links.

use futures::future::join_all;
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::json::ConnectGraphJson;
use pinfold_common::{PeerId, Result};
use pinfold_proto::connector::SwarmPeersCall;

use super::{Scope, members};
use crate::cluster::{Cluster, PEER_DEADLINE, ask};

pub async fn graph(cluster: &Cluster) -> ConnectGraphJson {
    let members = members(&cluster.view(), cluster.own, Scope::Everybody);
    let asked = members.iter().map(|peer| {
        let mut tracker = cluster.tracker(peer);
        async move { ask("ask for swarm peers", PEER_DEADLINE, tracker.swarm_peers(SwarmPeersCall {})).await }
    });
    let (answers, directory) = tokio::join!(join_all(asked), cluster.directory());
    let reached: Vec<PeerId> =
        members.iter().zip(&answers).filter(|(_, answer)| is_reached(answer)).map(|(peer, _)| peer.peer_id).collect();

    let mut graph = ConnectGraphJson { cluster_id: cluster.own.to_string(), ..ConnectGraphJson::default() };
    for (peer, answer) in members.iter().zip(answers) {
        let id = peer.peer_id.to_string();
        graph.cluster_trust_links.insert(id.clone(), true);
        if !is_reached(&answer) {
            graph.cluster_links.insert(id, Vec::new());
            continue;
        }
        let others = reached.iter().filter(|other| **other != peer.peer_id).map(PeerId::to_string).collect();
        graph.cluster_links.insert(id.clone(), others);
        graph.id_to_peername.insert(id.clone(), peer.name.clone());
        let ipfs = directory.get(&peer.peer_id).and_then(|known| peer_from_bytes(&known.ipfs.id).ok());
        let Some(ipfs) = ipfs.map(|ipfs| ipfs.to_string()) else { continue };
        let swarm = answer.map(|reply| reply.peers).unwrap_or_default();
        let swarm = swarm.iter().filter_map(|peer| peer_from_bytes(peer).ok()).map(|peer| peer.to_string());
        graph.ipfs_links.insert(ipfs.clone(), swarm.collect());
        graph.cluster_to_ipfs.insert(id, ipfs);
    }
    graph
}

/// A connector that answered that its node does not is reached.
fn is_reached<T>(answer: &Result<T>) -> bool {
    use pinfold_common::Code;
    match answer {
        Ok(_) => true,
        Err(error) => !matches!(error.code, Code::Unavailable | Code::OutcomeUnknown | Code::Unauthenticated),
    }
}
