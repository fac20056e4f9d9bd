//! `ctl peers drain`

use pinfold_common::PeerId;
use pinfold_proto::api::DrainPeerRequest;

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

/// Marks the peer; `ctl peers ls` shows what is left.
pub async fn run(client: &Client, encoding: Encoding, peer: &PeerId) -> Outcome {
    let request = DrainPeerRequest { peer_id: peer.to_bytes(), draining: true };
    let reply = client.cluster().drain_peer(request).await?.into_inner();
    output::print_departure(encoding, peer, &reply.departure.unwrap_or_default())
}
