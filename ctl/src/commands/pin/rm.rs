//! `ctl pin rm <cid or path>`

use pinfold_common::json::PinSource;
use pinfold_proto::api;

use super::{as_cid, finish, request_key};
use crate::cli::{Encoding, PinRm};
use crate::client::{Client, Outcome};
use crate::commands::wait::Target;

pub async fn run(client: &Client, encoding: Encoding, arguments: PinRm) -> Outcome {
    let request_key = request_key();
    let item = match as_cid(&arguments.target)? {
        Some(cid) => client.pins().unpin(api::UnpinRequest { cid: cid.to_bytes(), request_key }).await?,
        None => {
            let path = arguments.target.clone();
            client.pins().unpin_path(api::UnpinPathRequest { path, request_key }).await?
        }
    };
    let show = (arguments.no_status, PinSource::State);
    finish(client, encoding, item.into_inner(), arguments.wait.then_some(&arguments.waiting), show, |_| {
        Target::Unpinned
    })
    .await
}
