//! `ctl pin add <cid or path>`

use pinfold_common::json::{PinSource, mode_from_name};
use pinfold_common::pin::PinRequest;
use pinfold_common::{Cid, ids};
use pinfold_proto::{api, types};

use super::{as_cid, finish, options, request_key, user_allocations};
use crate::cli::{Encoding, PinAdd};
use crate::client::{Client, Failure, Outcome};
use crate::commands::wait::Target;

pub async fn run(client: &Client, encoding: Encoding, arguments: PinAdd) -> Outcome {
    let target = arguments.target.ok_or_else(|| Failure::local("pinning", "a CID or a path is needed"))?;
    let cid = as_cid(&target)?;
    let mut chosen = options(&arguments.options)?;
    if arguments.replication != 0 {
        (chosen.replication_factor_min, chosen.replication_factor_max) = (arguments.replication, arguments.replication);
    }
    let request = types::PinRequest {
        cid: cid.map(|cid| cid.to_bytes()).unwrap_or_default(),
        max_depth: mode_from_name(&arguments.mode).depth(),
        options: Some(chosen),
        user_allocations: user_allocations(&arguments.options),
        ..types::PinRequest::from(PinRequest::new(placeholder()))
    };
    let item = submit(client, target, cid, request).await?;
    let show = (arguments.no_status, PinSource::Submitted);
    finish(client, encoding, item, arguments.wait.then_some(&arguments.waiting), show, |pin| Target::Pinned {
        minimum: pin.options.replication_factor_min,
    })
    .await
}

/// Sends what is pinned: `target` as it was written, and its CID unless it is a path.
pub(super) async fn submit(
    client: &Client,
    target: String,
    cid: Option<Cid>,
    request: types::PinRequest,
) -> Result<api::PinnedItem, Failure> {
    let request_key = request_key();
    let item = match cid {
        Some(_) => client.pins().pin(api::PinItem { request: Some(request), request_key }).await?,
        None => {
            let path = target;
            client.pins().pin_path(api::PinPathRequest { path, request: Some(request), request_key }).await?
        }
    };
    Ok(item.into_inner())
}

/// A path's CID is not known before the node resolved it; the empty identity CID stands in where a type wants one.
pub(super) fn placeholder() -> Cid {
    ids::cid_from_bytes(&[1, 0x55, 0, 0]).unwrap_or_default()
}
