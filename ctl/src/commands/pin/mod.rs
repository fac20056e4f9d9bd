//! `ctl pin …`

pub mod add;
pub mod explain;
pub mod ls;
pub mod rm;
pub mod update;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use pinfold_common::json::PinSource;
use pinfold_common::pin::Pin;
use pinfold_common::time::Timestamp;
use pinfold_common::{Cid, ids};
use pinfold_proto::{api, types};
use rand::Rng as _;

use super::wait::{self, Target};
use crate::cli::{Encoding, PinOptions, Wait};
use crate::client::{Client, Failure, Outcome};
use crate::output;

/// How long the status is given to settle before it is shown without `--wait` (beh:B22.2).
const SETTLE: Duration = Duration::from_secs(1);

/// The options as the API takes them.
pub fn options(arguments: &PinOptions) -> Outcome<types::PinOptions> {
    let expire_at = match arguments.expire_in {
        None => Timestamp::default(),
        Some(duration) => Timestamp::from(SystemTime::now())
            .checked_add(duration)
            .ok_or_else(|| Failure::local("reading --expire-in", "too far in the future"))?,
    };
    let metadata: BTreeMap<String, String> = arguments.metadata.iter().cloned().collect();
    let options = pinfold_common::pin::PinOptions {
        replication_factor_min: arguments.replication_min,
        replication_factor_max: arguments.replication_max,
        name: arguments.name.clone(),
        shard_size_bytes: 0,
        metadata,
        pin_update: None,
        expire_at,
        origins: origins(&arguments.origins)?,
    };
    Ok(options.into())
}

fn origins(texts: &[String]) -> Outcome<Vec<multiaddr::Multiaddr>> {
    let parsed = texts.iter().map(|text| {
        let address = pinfold_common::address::parse_multiaddr(text);
        address.map_err(|error| Failure::local("reading --origins", error))
    });
    parsed.collect()
}

pub fn user_allocations(arguments: &PinOptions) -> Vec<Vec<u8>> {
    arguments.allocations.iter().map(|peer| peer.0.to_bytes()).collect()
}

/// A key that makes a retry of the same command harmless (protocols.md 3).
pub fn request_key() -> Vec<u8> {
    rand::rng().random::<[u8; 16]>().to_vec()
}

/// Whether the target of a command is a CID, or a path that a node must resolve.
pub fn as_cid(target: &str) -> Outcome<Option<Cid>> {
    if target.contains('/') {
        return Ok(None);
    }
    ids::parse_cid(target).map(Some).map_err(|error| Failure::local("parsing CID or path", error))
}

/// The end of pin add and rm: wait, then show the pin or its status.
async fn finish(
    client: &Client,
    encoding: Encoding,
    item: api::PinnedItem,
    wait: Option<&Wait>,
    show: (bool, PinSource),
    target: impl Fn(&Pin) -> Target,
) -> Outcome {
    let (no_status, source) = show;
    let pin = item.pin.ok_or_else(|| Failure::local("reading the answer", "it has no pin"))?;
    let parsed = Pin::try_from(pin.clone())?;
    let reached = match wait {
        Some(wait) => Some(wait::until(client, &parsed.cid, target(&parsed), wait, |_| {}).await?),
        None => None,
    };
    if no_status {
        return output::print_pin(encoding, pin, source);
    }
    let info = match reached {
        Some(info) => info,
        None => {
            tokio::time::sleep(SETTLE).await;
            let request = api::StatusRequest { cid: parsed.cid.to_bytes(), local: false };
            client.pins().status(request).await?.into_inner()
        }
    };
    output::print_status(encoding, &info)
}
