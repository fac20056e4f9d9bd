//! `ctl status [cid]…`

use pinfold_common::status::Filter;
use pinfold_proto::api::{StatusAllRequest, StatusRequest};

use crate::cli::{Encoding, Status};
use crate::client::{Client, Failure, Outcome};
use crate::output;

pub async fn run(client: &Client, encoding: Encoding, arguments: Status) -> Outcome {
    if let [cid] = arguments.cids.as_slice() {
        let request = StatusRequest { cid: cid.0.to_bytes(), local: arguments.local };
        return output::print_status(encoding, &client.pins().status(request).await?.into_inner());
    }
    let filter =
        Filter::parse(&arguments.filter).map_err(|_| Failure::local("parsing filter flag", "invalid filter name"))?;
    let request = StatusAllRequest {
        after: Vec::new(),
        limit: 0,
        filter: filter.0,
        local: arguments.local,
        cids: arguments.cids.iter().map(|cid| cid.0.to_bytes()).collect(),
    };
    let mut stream = client.pins().status_all(request).await?.into_inner();
    while let Some(chunk) = stream.message().await? {
        for item in &chunk.items {
            output::print_status(encoding, item)?;
        }
    }
    Ok(())
}
