//! `ctl peers rm`

use pinfold_common::PeerId;
use pinfold_proto::api::RemovePeerRequest;

use crate::client::{Client, Outcome};

pub async fn run(client: &Client, peer: &PeerId) -> Outcome {
    client.cluster().remove_peer(RemovePeerRequest { peer_id: peer.to_bytes() }).await?;
    Ok(())
}
