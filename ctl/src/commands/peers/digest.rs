//! `ctl peers digest`

use pinfold_proto::api::DigestRequest;
use serde::Serialize;

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

#[derive(Serialize)]
struct DigestJson {
    sha256: String,
    index: u64,
    lineage: u64,
    pins: u64,
}

pub async fn run(client: &Client, encoding: Encoding) -> Outcome {
    let reply = client.cluster().digest(DigestRequest {}).await?.into_inner();
    let sha256: String = reply.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    match encoding {
        Encoding::Json => {
            let (index, lineage, pins) = (reply.index, reply.lineage, reply.pins);
            output::print_json(&DigestJson { sha256, index, lineage, pins })
        }
        Encoding::Text => output::print(&format!("{sha256} | {} pins at index {}\n", reply.pins, reply.index)),
    }
}
