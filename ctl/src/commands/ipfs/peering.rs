//! `ctl ipfs peering`: the `Peering` section for the configuration of the cluster's Kubo nodes, so that they keep
//! connected to each other whatever their connection manager does (seed:D8). Printed, never written anywhere.

use multiaddr::{Multiaddr, Protocol};
use pinfold_common::ids;
use pinfold_proto::api::PeersRequest;
use serde_json::{Value, json};

use crate::client::{Client, Outcome};
use crate::output;

pub async fn run(client: &Client) -> Outcome {
    let mut peers = client.cluster().peers(PeersRequest {}).await?.into_inner();
    let mut nodes = Vec::new();
    while let Some(peer) = peers.message().await? {
        let name = if peer.peername.is_empty() { ids::peer_from_bytes(&peer.id)?.to_string() } else { peer.peername };
        let ipfs = peer.ipfs.unwrap_or_default();
        if !peer.error.is_empty() || ipfs.id.is_empty() {
            let why = if peer.error.is_empty() { &ipfs.error } else { &peer.error };
            eprintln!("{name}: left out, its IPFS node is not known: {why}");
            continue;
        }
        if ipfs.addresses.is_empty() {
            eprintln!("{name}: left out, nobody can dial its IPFS node ({})", peer.backend);
            continue;
        }
        nodes.push((ids::peer_from_bytes(&ipfs.id)?.to_string(), ipfs.addresses));
    }
    nodes.sort();
    output::print_json(&section(&nodes))?;
    eprintln!("Put it into each node's config (`ipfs config --json Peering.Peers …`) and restart the node.");
    Ok(())
}

/// A node that finds itself in its own list ignores that entry, so all nodes get the same one.
fn section(nodes: &[(String, Vec<String>)]) -> Value {
    let peers: Vec<Value> = nodes
        .iter()
        .map(|(id, addresses)| {
            let addresses: Vec<String> = addresses.iter().filter_map(|address| dialable(address)).collect();
            json!({"ID": id, "Addrs": addresses})
        })
        .collect();
    json!({"Peering": {"Peers": peers}})
}

/// Without the peer ID at its end, and only if another machine may reach it.
fn dialable(address: &str) -> Option<String> {
    let address: Multiaddr = address.parse().ok()?;
    let is_loopback = address.iter().any(|part| match part {
        Protocol::Ip4(ip) => ip.is_loopback(),
        Protocol::Ip6(ip) => ip.is_loopback(),
        _ => false,
    });
    let parts = address.iter().filter(|part| !matches!(part, Protocol::P2p(_)));
    (!is_loopback).then(|| parts.collect::<Multiaddr>().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the section is what Kubo's configuration takes: IDs, addresses without them, none that only the node
    /// itself can dial.
    #[test]
    fn seed_d8_peering_section() {
        let id = "12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6";
        let addresses = ["/ip4/127.0.0.1/tcp/4001", "/ip4/10.0.0.7/tcp/4001", "/ip4/10.0.0.7/udp/4001/quic-v1"]
            .map(|address| format!("{address}/p2p/{id}"));
        let expected = json!({"Peering": {"Peers": [
            {"ID": id, "Addrs": ["/ip4/10.0.0.7/tcp/4001", "/ip4/10.0.0.7/udp/4001/quic-v1"]}
        ]}});
        assert_eq!(section(&[(id.to_owned(), addresses.to_vec())]), expected);
    }
}
