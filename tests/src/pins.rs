//! Whole pinsets through a peer's public gRPC.

use std::collections::BTreeMap;

use pinfold_proto::api::pins_client::PinsClient;
use pinfold_proto::{api, types};
use tonic::transport::Channel;

use crate::content;

/// By CID.
pub type Pinset = BTreeMap<Vec<u8>, types::Pin>;

/// What the peer's own state holds; `None` when it does not answer to the end.
pub async fn list(mut client: PinsClient<Channel>) -> Option<Pinset> {
    let mut stream = client.list(api::ListRequest::default()).await.ok()?.into_inner();
    let mut pins = Pinset::new();
    while let Some(reply) = stream.message().await.ok()? {
        pins.extend(reply.pins.into_iter().map(|pin| (pin.cid.clone(), pin)));
    }
    Some(pins)
}

/// An item without content, which has this name.
pub fn request(label: &str, number: usize, factors: (i32, i32)) -> types::PinRequest {
    let name = format!("{label} {number}");
    let mut request = types::PinRequest::from(pinfold_common::pin::PinRequest::new(content::identity_cid(&name)));
    let options = request.options.get_or_insert_default();
    (options.replication_factor_min, options.replication_factor_max) = factors;
    options.name = name;
    request
}

/// Pins all of them in one call; each must be accepted.
pub async fn pin_all(mut client: PinsClient<Channel>, requests: Vec<types::PinRequest>) {
    let reply = client.pin_many(api::PinManyRequest { requests, request_key: Vec::new() }).await;
    for result in reply.expect("an answer").into_inner().results {
        assert!(matches!(result.result, Some(api::pin_many_reply::result::Result::Pin(_))), "{result:?}");
    }
}
