//! `ctl id`

use pinfold_proto::api::IdRequest;

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

pub async fn run(client: &Client, encoding: Encoding) -> Outcome {
    let peer = client.cluster().id(IdRequest {}).await?.into_inner();
    output::print_peer(encoding, &peer)
}
