//! `ctl peers add`

use pinfold_common::PeerId;
use pinfold_proto::api::AddPeerRequest;

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

pub async fn run(client: &Client, encoding: Encoding, peer: &PeerId, address: Option<String>) -> Outcome {
    let request = AddPeerRequest { peer_id: peer.to_bytes(), address: address.unwrap_or_default() };
    let added = client.cluster().add_peer(request).await?.into_inner();
    output::print_peer(encoding, &added)
}
