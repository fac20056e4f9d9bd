//! `ctl pin update <existing> <new>`: pins something with all the options of an entry that is there (beh:B8.18), which
//! stays. The IPFS nodes fetch only what differs.

use pinfold_common::json::PinSource;
use pinfold_common::pin::PinRequest;
use pinfold_common::time::Timestamp;
use pinfold_proto::types;

use super::add::{placeholder, submit};
use super::{as_cid, finish};
use crate::cli::{Encoding, PinUpdate};
use crate::client::{Client, Failure, Outcome};
use crate::commands::wait::Target;

pub async fn run(client: &Client, encoding: Encoding, arguments: PinUpdate) -> Outcome {
    let cid = as_cid(&arguments.target)?;
    let expire_at = match arguments.expire_in {
        None => Timestamp::default(),
        Some(duration) => Timestamp::now()
            .checked_add(duration)
            .ok_or_else(|| Failure::local("reading --expire-in", "too far in the future"))?,
    };
    let options = pinfold_common::pin::PinOptions {
        name: arguments.name.clone(),
        pin_update: Some(arguments.existing.0),
        expire_at,
        ..pinfold_common::pin::PinOptions::default()
    };
    let request = types::PinRequest {
        cid: cid.map(|cid| cid.to_bytes()).unwrap_or_default(),
        options: Some(options.into()),
        ..types::PinRequest::from(PinRequest::new(cid.unwrap_or_else(placeholder)))
    };
    let item = submit(client, arguments.target, cid, request).await?;
    let show = (arguments.no_status, PinSource::Submitted);
    finish(client, encoding, item, arguments.wait.then_some(&arguments.waiting), show, |pin| Target::Pinned {
        minimum: pin.options.replication_factor_min,
    })
    .await
}
