//! `ctl pin ls [cid]`

use pinfold_common::json::PinSource;
use pinfold_common::pin::PinType;
use pinfold_proto::api;

use crate::cli::{Encoding, PinLs};
use crate::client::{Client, Failure, Outcome};
use crate::output;

pub async fn run(client: &Client, encoding: Encoding, arguments: PinLs) -> Outcome {
    if let Some(cid) = arguments.cid {
        let request = api::GetRequest { cid: cid.0.to_bytes(), consistent: false };
        let pin = client.pins().get(request).await?.into_inner().pin;
        let pin = pin.ok_or_else(|| Failure::Api(pinfold_common::Error::not_in_pinset()))?;
        return output::print_pin(encoding, pin, PinSource::State);
    }
    let types = PinType::parse_filter(&arguments.filter)
        .map_err(|_| Failure::local("parsing filter flag", "invalid filter name"))?;
    let types = types.into_iter().map(|kind| kind.to_proto() as i32).collect();
    let request = api::ListRequest { types, ..api::ListRequest::default() };
    let mut stream = client.pins().list(request).await?.into_inner();
    while let Some(chunk) = stream.message().await? {
        for pin in chunk.pins {
            output::print_pin(encoding, pin, PinSource::State)?;
        }
    }
    Ok(())
}
