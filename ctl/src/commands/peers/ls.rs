//! `ctl peers ls`

use pinfold_proto::api::PeersRequest;

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

pub async fn run(client: &Client, encoding: Encoding) -> Outcome {
    let mut peers = client.cluster().peers(PeersRequest {}).await?.into_inner();
    while let Some(peer) = peers.message().await? {
        output::print_peer(encoding, &peer)?;
    }
    Ok(())
}
