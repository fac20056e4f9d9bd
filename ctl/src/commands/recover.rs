//! `ctl recover [cid]`

use pinfold_proto::api::{RecoverAllRequest, RecoverRequest};

use crate::cli::{Encoding, Recover};
use crate::client::{Client, Outcome};
use crate::output;

pub async fn run(client: &Client, encoding: Encoding, arguments: Recover) -> Outcome {
    let local = arguments.local;
    if let Some(cid) = arguments.cid {
        let request = RecoverRequest { cid: cid.0.to_bytes(), local };
        return output::print_status(encoding, &client.pins().recover(request).await?.into_inner());
    }
    let mut stream = client.pins().recover_all(RecoverAllRequest { local }).await?.into_inner();
    while let Some(chunk) = stream.message().await? {
        for item in &chunk.items {
            output::print_status(encoding, item)?;
        }
    }
    Ok(())
}
