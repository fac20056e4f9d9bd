//! `ctl version`

use pinfold_common::json::VersionJson;
use pinfold_proto::api::VersionRequest;

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

pub async fn run(client: &Client, encoding: Encoding) -> Outcome {
    let reply = client.cluster().version(VersionRequest {}).await?.into_inner();
    match encoding {
        Encoding::Text => output::print(&format!("{}\n", reply.version)),
        Encoding::Json => output::print_json(&VersionJson { version: reply.version }),
    }
}
