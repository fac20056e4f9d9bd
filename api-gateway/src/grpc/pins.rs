//! `pinfold.api.v1.Pins`

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use multiaddr::{Multiaddr, Protocol};
use pinfold_common::ids::cid_from_bytes;
use pinfold_common::pin::{MAX_REQUEST_KEY_BYTES, PinRequest, PinType};
use pinfold_common::status::Filter;
use pinfold_common::{Cid, Error};
use pinfold_proto::api::pins_server;
use pinfold_proto::consensus::{Consistency, ListCall, PinCall, PinManyCall, PinReply, UnpinCall};
use pinfold_proto::{api, consensus, types};
use tonic::{Request, Response, Status};

use crate::cluster::{Cluster, READ_DEADLINE, ask, found, from_status, pins_of};
use crate::fanout::{self, Listing, ListingRequest, Scope};
use crate::rest::{IpfsPath, parse_ipfs_path, resolve};

/// Items of one request, as the .proto files say.
const MAX_ITEMS: usize = 1000;
const CIDS_AT_ONCE: usize = 16;

pub struct PinsApi {
    cluster: Arc<Cluster>,
}

type Stream<T> = BoxStream<'static, Result<T, Status>>;

impl PinsApi {
    pub fn new(cluster: Arc<Cluster>) -> PinsApi {
        PinsApi { cluster }
    }

    async fn submit(&self, request: PinRequest, request_key: Vec<u8>) -> Result<Response<api::PinnedItem>, Status> {
        check_key(&request_key)?;
        let call = PinCall { request: Some(request.into()), request_key };
        Ok(pinned(self.cluster.pin(call).await?))
    }

    async fn remove(&self, cid: Cid, request_key: Vec<u8>) -> Result<Response<api::PinnedItem>, Status> {
        check_key(&request_key)?;
        Ok(pinned(self.cluster.unpin(UnpinCall { cid: cid.to_bytes(), request_key }).await?))
    }

    async fn resolve(&self, path: &str) -> Result<Cid, Error> {
        match parse_ipfs_path(path)? {
            IpfsPath::Root(cid) => Ok(cid),
            deep @ IpfsPath::Deep(_) => resolve(&self.cluster, deep).await,
        }
    }
}

fn pinned(reply: PinReply) -> Response<api::PinnedItem> {
    Response::new(api::PinnedItem { pin: reply.pin, index: reply.index, stale: false })
}

fn check_key(key: &[u8]) -> Result<(), Error> {
    if key.len() > MAX_REQUEST_KEY_BYTES {
        return Err(Error::invalid(format!("request_key: longer than {MAX_REQUEST_KEY_BYTES} bytes")));
    }
    Ok(())
}

/// What a client may ask for: allocations are the cluster's to decide, and parts of a sharded upload are not pinned
/// one by one.
fn check_request(request: Option<types::PinRequest>) -> Result<PinRequest, Error> {
    let mut request = request.ok_or_else(|| Error::invalid("request: missing"))?;
    if request.r#type == types::PinType::Bad as i32 {
        request.r#type = types::PinType::Data as i32;
    }
    let request = PinRequest::try_from(request)?;
    if request.kind != PinType::Data {
        return Err(Error::invalid(format!("type: {} cannot be asked for", request.kind.name())));
    }
    if !request.allocations.is_empty() {
        return Err(Error::invalid("allocations: decided by the cluster; wishes go into user_allocations"));
    }
    let has_peer = |origin: &Multiaddr| origin.iter().any(|part| matches!(part, Protocol::P2p(_)));
    if !request.options.origins.iter().all(has_peer) {
        return Err(Error::invalid("origins: multiaddress does not contain peer ID"));
    }
    if !matches!(request.max_depth, -1 | 0) {
        return Err(Error::invalid(format!("max_depth: {} is neither -1 nor 0", request.max_depth)));
    }
    Ok(request)
}

#[tonic::async_trait]
impl pins_server::Pins for PinsApi {
    type ListStream = Stream<api::ListReply>;
    type StatusAllStream = Stream<api::StatusAllReply>;
    type RecoverAllStream = Stream<api::StatusAllReply>;
    type HeldStream = Stream<api::HeldReply>;
    type ApproveStream = Stream<api::ApproveReply>;

    async fn pin(&self, request: Request<api::PinItem>) -> Result<Response<api::PinnedItem>, Status> {
        let item = request.into_inner();
        self.submit(check_request(item.request)?, item.request_key).await
    }

    async fn pin_many(&self, request: Request<api::PinManyRequest>) -> Result<Response<api::PinManyReply>, Status> {
        use api::pin_many_reply::{Result as Item, result};
        use consensus::pin_result;
        let api::PinManyRequest { requests, request_key } = request.into_inner();
        check_key(&request_key)?;
        if requests.len() > MAX_ITEMS {
            return Err(Error::invalid(format!("requests: {}, at most {MAX_ITEMS}", requests.len())).into());
        }
        let checked = requests.into_iter().enumerate().map(|(at, request)| {
            let checked = check_request(Some(request)).map_err(|error| error.context(format!("requests[{at}]")));
            checked.map(types::PinRequest::from)
        });
        let requests = checked.collect::<Result<Vec<_>, Error>>()?;
        let reply = self.cluster.pin_many(PinManyCall { requests, request_key }).await?;
        let results = reply.results.into_iter().map(|item| Item {
            result: item.result.map(|result| match result {
                pin_result::Result::Pin(pin) => result::Result::Pin(pin),
                pin_result::Result::Failure(consensus::Failure { code, message }) => {
                    result::Result::Failure(api::Failure { code, message })
                }
            }),
        });
        Ok(Response::new(api::PinManyReply { results: results.collect() }))
    }

    async fn pin_path(&self, request: Request<api::PinPathRequest>) -> Result<Response<api::PinnedItem>, Status> {
        let api::PinPathRequest { path, request, request_key } = request.into_inner();
        let cid = self.resolve(&path).await?;
        let request = types::PinRequest { cid: cid.to_bytes(), ..request.unwrap_or_default() };
        self.submit(check_request(Some(request))?, request_key).await
    }

    async fn unpin(&self, request: Request<api::UnpinRequest>) -> Result<Response<api::PinnedItem>, Status> {
        let api::UnpinRequest { cid, request_key } = request.into_inner();
        self.remove(cid_from_bytes(&cid)?, request_key).await
    }

    async fn unpin_path(&self, request: Request<api::UnpinPathRequest>) -> Result<Response<api::PinnedItem>, Status> {
        let api::UnpinPathRequest { path, request_key } = request.into_inner();
        self.remove(self.resolve(&path).await?, request_key).await
    }

    async fn get(&self, request: Request<api::GetRequest>) -> Result<Response<api::PinnedItem>, Status> {
        let api::GetRequest { cid, consistent } = request.into_inner();
        let cid = cid_from_bytes(&cid)?;
        let reply = self.cluster.get(cid.to_bytes(), consistency(consistent)).await?;
        let (index, stale) = (reply.index, reply.stale);
        Ok(Response::new(api::PinnedItem { pin: Some(found(reply)?), index, stale }))
    }

    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let request = request.into_inner();
        check_after(&request.after)?;
        let call = ListCall {
            after: request.after,
            limit: request.limit,
            types: request.types,
            consistency: consistency(request.consistent) as i32,
            min_index: self.cluster.min_index(),
        };
        let mut pins = self.cluster.pins();
        let replies = ask("list the pinset", READ_DEADLINE, pins.list(call)).await?;
        let replies = replies.map(|reply| match reply {
            Ok(reply) => Ok(api::ListReply { stale: reply.stale, pins: pins_of(reply)? }),
            Err(status) => Err(from_status("list the pinset", status).into()),
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn status(&self, request: Request<api::StatusRequest>) -> Result<Response<api::GlobalPinInfo>, Status> {
        let api::StatusRequest { cid, local } = request.into_inner();
        Ok(Response::new(fanout::status_one(&self.cluster, &cid_from_bytes(&cid)?, Scope::of(local)).await?))
    }

    async fn status_all(
        &self,
        request: Request<api::StatusAllRequest>,
    ) -> Result<Response<Self::StatusAllStream>, Status> {
        let request = request.into_inner();
        check_after(&request.after)?;
        let scope = Scope::of(request.local);
        if !request.cids.is_empty() {
            return self.status_of_each(&request.cids, scope);
        }
        let listing =
            ListingRequest { scope, filter: Filter(request.filter), after: request.after, limit: request.limit };
        Ok(Response::new(replies(fanout::status_all(&self.cluster, listing).await)))
    }

    async fn recover(&self, request: Request<api::RecoverRequest>) -> Result<Response<api::GlobalPinInfo>, Status> {
        let api::RecoverRequest { cid, local } = request.into_inner();
        Ok(Response::new(fanout::recover_one(&self.cluster, &cid_from_bytes(&cid)?, Scope::of(local)).await?))
    }

    async fn recover_all(
        &self,
        request: Request<api::RecoverAllRequest>,
    ) -> Result<Response<Self::RecoverAllStream>, Status> {
        let scope = Scope::of(request.into_inner().local);
        Ok(Response::new(replies(fanout::recover_all(&self.cluster, scope).await)))
    }

    async fn held(&self, request: Request<api::HeldRequest>) -> Result<Response<Self::HeldStream>, Status> {
        Ok(Response::new(fanout::held(&self.cluster, &request.into_inner().peer)?.map(Ok).boxed()))
    }

    async fn approve(&self, request: Request<api::ApproveRequest>) -> Result<Response<Self::ApproveStream>, Status> {
        Ok(Response::new(fanout::approve(&self.cluster, request.into_inner())?.map(Ok).boxed()))
    }
}

impl PinsApi {
    /// In the order asked.
    fn status_of_each(&self, cids: &[Vec<u8>], scope: Scope) -> Result<Response<Stream<api::StatusAllReply>>, Status> {
        if cids.len() > MAX_ITEMS {
            return Err(Error::invalid(format!("cids: {}, at most {MAX_ITEMS}", cids.len())).into());
        }
        let cids = cids.iter().map(|cid| cid_from_bytes(cid)).collect::<Result<Vec<Cid>, Error>>()?;
        let cluster = self.cluster.clone();
        let items = stream::iter(cids).map(move |cid| {
            let cluster = cluster.clone();
            async move {
                let item = fanout::status_one(&cluster, &cid, scope).await?;
                Ok(api::StatusAllReply { items: vec![item] })
            }
        });
        Ok(Response::new(items.buffered(CIDS_AT_ONCE).boxed()))
    }
}

fn consistency(is_consistent: bool) -> Consistency {
    if is_consistent { Consistency::Linearizable } else { Consistency::Local }
}

fn check_after(after: &[u8]) -> Result<(), Error> {
    pinfold_common::ids::optional_cid(after).map(drop).map_err(|error| error.context("after"))
}

fn replies(listing: Listing) -> Stream<api::StatusAllReply> {
    let replies = stream::unfold(Some(listing), |listing| async move {
        let mut listing = listing?;
        Some(match listing.next().await? {
            Ok(items) => (Ok(api::StatusAllReply { items }), Some(listing)),
            Err(error) => (Err(error.into()), None),
        })
    });
    replies.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: clients can ask for ordinary pins and nothing else (`attack:AZ6`).
    #[test]
    fn what_may_be_asked_for() {
        let cid = pinfold_common::ids::parse_cid("bafkqaaa").unwrap();
        let plain = types::PinRequest::from(PinRequest::new(cid));
        assert!(check_request(Some(plain.clone())).is_ok());
        assert!(check_request(Some(types::PinRequest { r#type: 0, ..plain.clone() })).is_ok());
        assert!(check_request(Some(types::PinRequest { max_depth: 0, ..plain.clone() })).is_ok());
        for bad in [
            types::PinRequest { r#type: types::PinType::Shard as i32, ..plain.clone() },
            types::PinRequest { r#type: 77, ..plain.clone() },
            types::PinRequest { max_depth: -5, ..plain.clone() },
            types::PinRequest { cid: vec![1], ..plain.clone() },
            types::PinRequest { allocations: vec![vec![0, 1, 2]], ..plain.clone() },
            types::PinRequest {
                options: Some(types::PinOptions { origins: vec![vec![4, 1, 2, 3, 4]], ..types::PinOptions::default() }),
                ..plain.clone()
            },
        ] {
            assert!(check_request(Some(bad)).is_err());
        }
        assert!(check_request(None).is_err());
    }
}
