//! `/pins` and `/allocations`.

use bytes::Bytes;
use futures::StreamExt;
use futures::future;
use futures::stream::{self, BoxStream};
use pinfold_common::ids::{parse_cid, peers_from_bytes};
use pinfold_common::json::{GlobalPinInfoJson, PinJson, PinSource};
use pinfold_common::pin::{Pin, PinRequest, PinType};
use pinfold_common::status::{Filter, TrackerStatus};
use pinfold_common::time::Timestamp;
use pinfold_common::{Cid, Code, Error, PeerId, Result};
use pinfold_proto::api;
use pinfold_proto::connector::ResolveCall;
use pinfold_proto::consensus::{Consistency, ListCall, ListReply, PinCall, PinReply, UnpinCall};
use pinfold_proto::types;
use tokio::time::timeout;
use tonic::Streaming;

use super::options::{self, Options};
use super::respond::{self, Answer};
use super::rows::{PinRows, StatusRows};
use super::{Call, IpfsPath, parse_ipfs_path};
use crate::cluster::{PEER_DEADLINE, READ_DEADLINE, RESOLVE_DEADLINE, ask, found, from_status, pins_of};
use crate::fanout::{self, Listing, ListingRequest, Scope};

/// CIDs of one `cids=`, and how many are asked about at once.
const MAX_CIDS: usize = 1000;
const CIDS_AT_ONCE: usize = 16;
/// Of the first piece of a list; a line with many peers is about half a KiB.
const LINE_BYTES: usize = 512;

/// A piece of the pinset; `stale`: something that is committed may be missing.
struct Chunk {
    pins: Vec<types::Pin>,
    stale: bool,
}

async fn next_pins(replies: &mut Streaming<ListReply>) -> Option<Result<Chunk>> {
    match timeout(PEER_DEADLINE, replies.message()).await {
        Ok(Ok(Some(reply))) => {
            let stale = reply.stale;
            Some(pins_of(reply).map(|pins| Chunk { pins, stale }))
        }
        Ok(Ok(None)) => None,
        Ok(Err(status)) => Some(Err(from_status("list the pinset", status))),
        Err(_) => Some(Err(Error::outcome_unknown("list the pinset: no further answer"))),
    }
}

impl Call<'_> {
    /// The original reads the options on each route with a CID, and so refuses wrong ones there.
    fn cid_and_options(&self, text: &str) -> Result<(Cid, Options)> {
        let cid = parse_cid(text)?;
        Ok((cid, options::parse(&self.query, Timestamp::now())?))
    }

    fn scope(&self) -> Scope {
        Scope::of(self.query.is_true("local"))
    }

    fn consistency(&self) -> Consistency {
        if self.query.is_true("consistent") { Consistency::Linearizable } else { Consistency::Local }
    }

    /// `after`: a CID, for paging (beh:B12.9); empty from the start.
    fn after(&self) -> Result<Vec<u8>> {
        match self.query.get("after") {
            "" => Ok(Vec::new()),
            text => Ok(parse_cid(text)?.to_bytes()),
        }
    }

    pub(super) async fn pin(&self, text: &str) -> Result<Answer> {
        let (cid, options) = self.cid_and_options(text)?;
        self.submit(cid, options).await
    }

    pub(super) async fn pin_path(&self, path: &str) -> Result<Answer> {
        let path = parse_ipfs_path(path)?;
        let options = options::parse(&self.query, Timestamp::now())?;
        self.submit(self.resolve(path).await?, options).await
    }

    async fn submit(&self, cid: Cid, options: Options) -> Result<Answer> {
        // A pin from another one is answered as a copy of what the state has (rest-api.md 5.2).
        let source = match &options.pin.pin_update {
            Some(from) if *from != cid => PinSource::State,
            Some(_) | None => PinSource::Submitted,
        };
        let request = PinRequest {
            max_depth: options.mode.depth(),
            options: options.pin,
            user_allocations: options.user_allocations,
            ..PinRequest::new(cid)
        };
        let call = PinCall { request: Some(request.into()), request_key: self.request_key()? };
        let reply = self.rest.cluster.pin(call).await?;
        let user_allocations = peers_from_bytes(&reply.user_allocations)?;
        let mut json = PinJson::new(&pin_of(reply)?, source);
        if !user_allocations.is_empty() {
            json.user_allocations = Some(user_allocations.iter().map(PeerId::to_string).collect());
        }
        Ok(respond::json(&json))
    }

    pub(super) async fn unpin(&self, text: &str) -> Result<Answer> {
        let (cid, _) = self.cid_and_options(text)?;
        self.remove(cid).await
    }

    pub(super) async fn unpin_path(&self, path: &str) -> Result<Answer> {
        let path = parse_ipfs_path(path)?;
        options::parse(&self.query, Timestamp::now())?;
        self.remove(self.resolve(path).await?).await
    }

    async fn remove(&self, cid: Cid) -> Result<Answer> {
        let call = UnpinCall { cid: cid.to_bytes(), request_key: self.request_key()? };
        let pin = pin_of(self.rest.cluster.unpin(call).await?)?;
        Ok(respond::json(&PinJson::new(&pin, PinSource::State)))
    }

    async fn resolve(&self, path: IpfsPath) -> Result<Cid> {
        // What the node says of a path is never about the request itself: 500 in the original.
        resolve(&self.rest.cluster, path).await.map_err(|error| match error.code.http() {
            400 | 404 => Error { code: Code::Rejected, ..error },
            _ => error,
        })
    }

    pub(super) async fn allocation(&self, text: &str) -> Result<Answer> {
        let (cid, _) = self.cid_and_options(text)?;
        let reply = self.rest.cluster.get(cid.to_bytes(), self.consistency()).await?;
        let stale = reply.stale;
        let pin: Pin = found(reply)?.try_into()?;
        Ok(respond::marked(respond::json(&PinJson::new(&pin, PinSource::State)), stale))
    }

    pub(super) async fn allocations(&self) -> Result<Answer> {
        let types = PinType::parse_filter(self.query.get("filter"))?;
        let call = ListCall {
            after: self.after()?,
            limit: self.query.count("limit")?,
            types: types.into_iter().map(|kind| kind.to_proto() as i32).collect(),
            consistency: self.consistency() as i32,
            min_index: self.rest.cluster.min_index(),
        };
        let mut replies = match ask("list the pinset", READ_DEADLINE, self.rest.cluster.pins().list(call)).await {
            Ok(replies) => replies,
            Err(error) => return Ok(respond::stream(stream::iter([Err(error)]).boxed()).await),
        };
        let first = next_pins(&mut replies).await;
        let stale = matches!(first, Some(Ok(Chunk { stale: true, .. })));
        let chunks = stream::iter(first).chain(stream::unfold(replies, async |mut replies| {
            let next = next_pins(&mut replies).await?;
            Some((next, replies))
        }));
        let mut rows = PinRows::default();
        let lines = chunks.map(move |chunk| {
            let Chunk { pins, .. } = chunk?;
            let mut lines = Vec::with_capacity(pins.len() * LINE_BYTES);
            pins.iter().try_for_each(|pin| rows.append(&mut lines, pin))?;
            Ok(Bytes::from(lines))
        });
        let lines = lines.filter(|line| future::ready(!line.as_ref().is_ok_and(Bytes::is_empty)));
        Ok(respond::marked(respond::stream(lines.boxed()).await, stale))
    }

    pub(super) async fn status(&self, text: &str) -> Result<Answer> {
        let (cid, _) = self.cid_and_options(text)?;
        let item = fanout::status_one(&self.rest.cluster, &cid, self.scope()).await?;
        Ok(respond::json(&item_json(&item)?))
    }

    pub(super) async fn recover(&self, text: &str) -> Result<Answer> {
        let (cid, _) = self.cid_and_options(text)?;
        let item = fanout::recover_one(&self.rest.cluster, &cid, self.scope()).await?;
        Ok(respond::json(&item_json(&item)?))
    }

    pub(super) async fn recover_all(&self) -> Answer {
        let listing = fanout::recover_all(&self.rest.cluster, self.scope()).await;
        respond::stream(lines_of(listing)).await
    }

    pub(super) async fn status_all(&self) -> Result<Answer> {
        let filter = Filter::parse(self.query.get("filter"))?;
        let cids = self.query.get("cids");
        if !cids.is_empty() {
            return self.status_of_each(cids).await;
        }
        let request =
            ListingRequest { scope: self.scope(), filter, after: self.after()?, limit: self.query.count("limit")? };
        let listing = fanout::status_all(&self.rest.cluster, request).await;
        Ok(respond::stream(lines_of(listing)).await)
    }

    /// Results in the order of their completion; the filter does not count here.
    async fn status_of_each(&self, cids: &str) -> Result<Answer> {
        let cids: Vec<Cid> = cids.split(',').map(parse_cid).collect::<Result<_>>()?;
        if cids.len() > MAX_CIDS {
            return Err(Error::invalid(format!("parameter cids invalid: {}, at most {MAX_CIDS}", cids.len())));
        }
        let (cluster, scope) = (self.rest.cluster.clone(), self.scope());
        let items = stream::iter(cids).map(move |cid| {
            let cluster = cluster.clone();
            async move { line_of(&fanout::status_one(&cluster, &cid, scope).await?) }
        });
        Ok(respond::stream(items.buffer_unordered(CIDS_AT_ONCE).boxed()).await)
    }
}

/// The CID a path leads to; only paths with something behind their root need the IPFS node.
pub async fn resolve(cluster: &crate::cluster::Cluster, path: IpfsPath) -> Result<Cid> {
    match path {
        IpfsPath::Root(cid) => Ok(cid),
        IpfsPath::Deep(path) => {
            let reply = ask("resolve the path", RESOLVE_DEADLINE, cluster.node().resolve(ResolveCall { path })).await?;
            pinfold_common::ids::cid_from_bytes(&reply.cid)
        }
    }
}

fn pin_of(reply: PinReply) -> Result<Pin> {
    reply.pin.ok_or_else(|| Error::internal("consensus-svc answered without a pin"))?.try_into()
}

/// rest-api.md 5.3 with the nulls of what is not pinned.
pub(super) fn item_json(item: &api::GlobalPinInfo) -> Result<GlobalPinInfoJson> {
    let mut json = GlobalPinInfoJson::try_from(item)?;
    let unpinned = TrackerStatus::Unpinned.to_proto() as i32;
    if item.origins.is_empty() && item.peers.iter().all(|peer| peer.status == unpinned) {
        json.origins = None;
    }
    if item.created.is_none() && item.allocations.is_empty() {
        json.allocations = None;
    }
    Ok(json)
}

fn line_of(item: &api::GlobalPinInfo) -> Result<Bytes> {
    let mut line = Vec::with_capacity(LINE_BYTES);
    StatusRows::default().append(&mut line, item)?;
    Ok(line.into())
}

fn lines_of(listing: Listing) -> BoxStream<'static, Result<Bytes>> {
    let lines = stream::unfold(Some((listing, StatusRows::default())), |state| async move {
        let (mut listing, mut rows) = state?;
        let items = match listing.next().await? {
            Ok(items) => items,
            Err(error) => return Some((Err(error), None)),
        };
        let mut chunk = Vec::with_capacity(items.len() * LINE_BYTES);
        let written = items.iter().try_for_each(|item| rows.append(&mut chunk, item));
        Some(match written {
            Ok(()) => (Ok(Bytes::from(chunk)), Some((listing, rows))),
            Err(error) => (Err(error), None),
        })
    });
    lines.boxed()
}

#[cfg(test)]
mod tests {
    use pinfold_proto::types;

    use super::*;

    fn item(status: TrackerStatus, created: Option<types::Time>) -> api::GlobalPinInfo {
        let peer = pinfold_common::identity::Identity::generate().peer_id.to_bytes();
        let entry = api::PeerStatus { peer, status: status.to_proto() as i32, ..api::PeerStatus::default() };
        let cid = parse_cid("bafkqaaa").unwrap().to_bytes();
        api::GlobalPinInfo { cid, created, peers: vec![entry], ..api::GlobalPinInfo::default() }
    }

    /// Goal: the nulls of the recorded answers: 17 (pinned), 19 (not pinned), and not pinned with `local=true`.
    #[test]
    fn nulls_as_recorded() {
        let now = Some(Timestamp::now().into());
        let json = |item| serde_json::to_value(item_json(&item).unwrap()).unwrap();
        let pinned = json(item(TrackerStatus::Pinned, now));
        assert!(pinned["origins"].is_array() && pinned["allocations"].is_array() && pinned["metadata"].is_null());
        let unpinned = json(item(TrackerStatus::Unpinned, now));
        assert!(unpinned["origins"].is_null() && unpinned["allocations"].is_array());
        let local = json(item(TrackerStatus::Unpinned, None));
        assert!(local["origins"].is_null() && local["allocations"].is_null());
        assert_eq!(local["created"], "0001-01-01T00:00:00Z");
    }
}
