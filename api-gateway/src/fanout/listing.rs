//! Lists of all pins with their status (beh:B12.5, B12.9): streams that each peer sends in CID order, merged in CID
//! order while they come. Memory: one message per peer. A peer that fails has a `cluster_error` entry on every item
//! from there on; when all that were asked have failed, so has the list.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use pinfold_common::peerset::PeerInfo;
use pinfold_common::status::{Filter, TrackerStatus};
use pinfold_common::time::Timestamp;
use pinfold_common::{Error, PeerId, Result};
use pinfold_proto::connector::{RecoverAllCall, StatusAllCall};
use pinfold_proto::consensus::ListCall;
use pinfold_proto::{api, types};
use tokio::time::timeout;

use super::{Scope, answered, concerns, entry, failed, item_of_info, item_of_pin, members};
use crate::cluster::{Cluster, Directory, PEER_DEADLINE, from_status, pins_of};

/// Items of one step of the merge; more only make the first one late.
const MAX_BATCH: usize = 256;

/// What to list.
#[derive(Clone, Debug)]
pub struct ListingRequest {
    pub scope: Scope,
    pub filter: Filter,
    /// CID; empty: from the start.
    pub after: Vec<u8>,
    /// 0: all.
    pub limit: u64,
}

/// Some items, in order, as long as they come.
type Chunks<T> = BoxStream<'static, Result<Vec<T>>>;

/// One sorted stream, of which the first items are here.
struct Source<T> {
    /// Gone when it ended or failed.
    chunks: Option<Chunks<T>>,
    items: VecDeque<T>,
}

impl<T> Source<T> {
    fn new(chunks: Chunks<T>) -> Source<T> {
        Source { chunks: Some(chunks), items: VecDeque::new() }
    }

    /// Whether its next item, or its end, is known.
    fn is_ready(&self) -> bool {
        !self.items.is_empty() || self.chunks.is_none()
    }

    /// Waits for its next item, or its end.
    async fn fill(&mut self) -> Result<()> {
        while self.items.is_empty() {
            let Some(chunks) = &mut self.chunks else { return Ok(()) };
            match timeout(PEER_DEADLINE, chunks.next()).await {
                Ok(Some(Ok(items))) => self.items.extend(items),
                Ok(None) => self.chunks = None,
                Ok(Some(Err(error))) => {
                    self.chunks = None;
                    return Err(error);
                }
                Err(_) => {
                    self.chunks = None;
                    let seconds = PEER_DEADLINE.as_secs();
                    return Err(Error::outcome_unknown(format!("no answer within {seconds}s")));
                }
            }
        }
        Ok(())
    }
}

struct PeerSource {
    peer: PeerId,
    bytes: Vec<u8>,
    source: Source<types::PinInfo>,
    failure: Option<Error>,
}

impl PeerSource {
    fn head(&self) -> Option<&[u8]> {
        self.source.items.front().map(|info| info.cid.as_slice())
    }
}

/// A list on its way.
pub struct Listing {
    /// What is pinned, where it must be known: the peers do not send what is none of their business.
    pinset: Option<Source<types::Pin>>,
    peers: Vec<PeerSource>,
    directory: Arc<Directory>,
    filter: Filter,
    /// How many items may still be sent.
    left: u64,
}

/// The status of everything that `request` selects.
pub async fn status_all(cluster: &Cluster, request: ListingRequest) -> Listing {
    let min_index = cluster.min_index();
    let members = members(&cluster.view(), cluster.own, request.scope);
    let peers = members.iter().map(|peer| {
        let call = StatusAllCall { after: request.after.clone(), limit: 0, filter: request.filter.0, min_index };
        let mut tracker = cluster.tracker(peer);
        let open = async move { tracker.status_all(call).await };
        let chunks = chunks(open, |reply: pinfold_proto::connector::StatusAllReply| Ok(reply.infos));
        peer_source(peer, chunks)
    });
    let peers = peers.collect();
    // Without `remote`, what is pinned elsewhere is of no interest, and the trackers know the rest.
    let pinset = request.filter.matches(TrackerStatus::Remote).then(|| {
        let call = ListCall { after: request.after.clone(), min_index, ..ListCall::default() };
        let mut pins = cluster.pins();
        let open = async move { pins.list(call).await };
        Source::new(chunks(open, pins_of))
    });
    let left = if request.limit == 0 { u64::MAX } else { request.limit };
    Listing { pinset, peers, directory: cluster.directory().await, filter: request.filter, left }
}

/// Queues everything in error again; lists what was queued.
pub async fn recover_all(cluster: &Cluster, scope: Scope) -> Listing {
    let members = members(&cluster.view(), cluster.own, scope);
    let peers = members.iter().map(|peer| {
        let mut tracker = cluster.tracker(peer);
        let open = async move { tracker.recover_all(RecoverAllCall {}).await };
        let chunks = chunks(open, |reply: pinfold_proto::connector::StatusAllReply| Ok(reply.infos));
        peer_source(peer, chunks)
    });
    let peers = peers.collect();
    Listing { pinset: None, peers, directory: cluster.directory().await, filter: Filter::ALL, left: u64::MAX }
}

fn peer_source(peer: &PeerInfo, chunks: Chunks<types::PinInfo>) -> PeerSource {
    PeerSource { peer: peer.peer_id, bytes: peer.peer_id.to_bytes(), source: Source::new(chunks), failure: None }
}

/// A server stream that is opened when it is first asked.
fn chunks<R, T, O>(open: O, items: fn(R) -> Result<Vec<T>>) -> Chunks<T>
where
    R: Send + 'static,
    T: Send + 'static,
    O: Future<Output = Result<tonic::Response<tonic::Streaming<R>>, tonic::Status>> + Send + 'static,
{
    let opened = futures::stream::once(open).flat_map(move |opened| match opened {
        Ok(response) => response.into_inner().boxed(),
        Err(status) => futures::stream::once(async move { Err(status) }).boxed(),
    });
    opened.map(move |reply| reply.map_err(|status| from_status("ask for the list", status)).and_then(items)).boxed()
}

impl Listing {
    /// The next items, as many as are at hand and at least one; `None` at the end. An error is the end too.
    pub async fn next(&mut self) -> Option<Result<Vec<api::GlobalPinInfo>>> {
        let mut batch = Vec::new();
        while self.left > 0 {
            if !self.is_ready() {
                if !batch.is_empty() {
                    break;
                }
                if let Err(error) = self.fill().await {
                    self.left = 0;
                    return Some(Err(error));
                }
            }
            let Some(step) = self.step() else { break };
            if let Some(item) = step {
                self.left -= 1;
                batch.push(item);
                if batch.len() == MAX_BATCH {
                    break;
                }
            }
        }
        if batch.is_empty() { None } else { Some(Ok(batch)) }
    }

    fn is_ready(&self) -> bool {
        self.pinset.as_ref().is_none_or(Source::is_ready) && self.peers.iter().all(|peer| peer.source.is_ready())
    }

    async fn fill(&mut self) -> Result<()> {
        let pinset = async {
            match &mut self.pinset {
                Some(pinset) => pinset.fill().await,
                None => Ok(()),
            }
        };
        let peers = join_all(self.peers.iter_mut().map(|peer| async {
            if let Err(error) = peer.source.fill().await {
                peer.failure = Some(error);
            }
        }));
        let (pinset, _) = tokio::join!(pinset, peers);
        pinset?;
        match self.peers.iter().map(|peer| peer.failure.clone()).collect::<Option<Vec<Error>>>() {
            Some(failures) => failures.into_iter().next().map_or(Ok(()), Err),
            None => Ok(()),
        }
    }

    /// The next CID, when every source is ready: `None` at the end, `Some(None)` when nothing is to be said of it.
    fn step(&mut self) -> Option<Option<api::GlobalPinInfo>> {
        match &mut self.pinset {
            Some(pinset) => {
                let pin = pinset.items.pop_front()?;
                Some(self.item_of(&pin))
            }
            None => {
                let cid = self.peers.iter().filter_map(PeerSource::head).min()?.to_vec();
                Some(self.item_of_trackers(&cid))
            }
        }
    }

    /// The answer of each peer about one CID; what they say of smaller ones is no longer in the pinset.
    fn answers(&mut self, cid: &[u8]) -> Vec<Option<types::PinInfo>> {
        let take = |peer: &mut PeerSource| {
            while peer.head().is_some_and(|head| head < cid) {
                peer.source.items.pop_front();
            }
            if peer.head() == Some(cid) { peer.source.items.pop_front() } else { None }
        };
        self.peers.iter_mut().map(take).collect()
    }

    fn item_of(&mut self, pin: &types::Pin) -> Option<api::GlobalPinInfo> {
        let answers = self.answers(&pin.cid);
        let at = pin.timestamp.map(Timestamp::from).unwrap_or_default();
        let entries = self.peers.iter().zip(answers).filter_map(|(peer, answer)| match (answer, &peer.failure) {
            (Some(info), _) => {
                let is_asked_for = self.filter.matches(TrackerStatus::from_proto(info.status));
                is_asked_for.then(|| answered(&peer.peer, &info, &self.directory))
            }
            (None, Some(error)) => Some(failed(&peer.peer, &error.message, Timestamp::now(), &self.directory)),
            (None, None) => {
                let status = self.unsaid(pin, &peer.bytes)?;
                Some(entry(&peer.peer, status, at, &self.directory))
            }
        });
        let entries: Vec<api::PeerStatus> = entries.collect();
        let has_answer = entries.iter().any(|entry| entry.status != TrackerStatus::ClusterError.to_proto() as i32);
        // A filter selects by what peers say; that one failed says nothing.
        if entries.is_empty() || self.filter != Filter::ALL && !has_answer {
            return None;
        }
        Some(item_of_pin(pin, entries))
    }

    /// The status of a pin on a peer that answered and did not mention it.
    fn unsaid(&self, pin: &types::Pin, peer: &[u8]) -> Option<TrackerStatus> {
        if !concerns(pin, peer) {
            return Some(TrackerStatus::Remote);
        }
        if self.filter != Filter::ALL {
            return None;
        }
        match types::PinType::try_from(pin.r#type) {
            Ok(types::PinType::Meta) => Some(TrackerStatus::Sharded),
            // It has not followed the log so far yet, and will.
            Ok(_) | Err(_) => Some(TrackerStatus::PinQueued),
        }
    }

    fn item_of_trackers(&mut self, cid: &[u8]) -> Option<api::GlobalPinInfo> {
        let answers = self.answers(cid);
        let best = answers.iter().flatten().max_by_key(|info| {
            let status = TrackerStatus::from_proto(info.status);
            !matches!(status, TrackerStatus::ClusterError | TrackerStatus::Undefined)
        });
        let best = best?.clone();
        let entries = self.peers.iter().zip(answers).filter_map(|(peer, answer)| match (answer, &peer.failure) {
            (Some(info), _) => Some(answered(&peer.peer, &info, &self.directory)),
            (None, Some(error)) => Some(failed(&peer.peer, &error.message, Timestamp::now(), &self.directory)),
            (None, None) => None,
        });
        Some(item_of_info(&best, entries.collect()))
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use pinfold_common::identity::Identity;

    use super::*;

    fn info(cid: u8, status: TrackerStatus) -> types::PinInfo {
        types::PinInfo { cid: vec![cid], status: status.to_proto() as i32, ..types::PinInfo::default() }
    }

    fn pin(cid: u8, allocations: &[&PeerSource]) -> types::Pin {
        let allocations = allocations.iter().map(|peer| peer.bytes.clone()).collect();
        types::Pin { cid: vec![cid], r#type: types::PinType::Data as i32, allocations, ..types::Pin::default() }
    }

    fn peer(chunks: Vec<Result<Vec<types::PinInfo>>>) -> PeerSource {
        let peer = Identity::generate().peer_id;
        PeerSource { peer, bytes: peer.to_bytes(), source: Source::new(stream::iter(chunks).boxed()), failure: None }
    }

    fn listing(pinset: Option<Vec<types::Pin>>, peers: Vec<PeerSource>, filter: Filter) -> Listing {
        let pinset = pinset.map(|pins| Source::new(stream::iter(pins.into_iter().map(|pin| Ok(vec![pin]))).boxed()));
        Listing { pinset, peers, directory: Arc::default(), filter, left: u64::MAX }
    }

    /// Every item as (CID, statuses in peer order), or the error that ended the list.
    async fn read(mut listing: Listing) -> Result<Vec<(u8, Vec<&'static str>)>> {
        let mut items = Vec::new();
        while let Some(batch) = listing.next().await {
            items.extend(batch?.into_iter().map(|item| {
                let statuses = item.peers.iter().map(|peer| TrackerStatus::from_proto(peer.status).name()).collect();
                (item.cid[0], statuses)
            }));
        }
        Ok(items)
    }

    /// Goal: streams that are cut differently merge in CID order; what no tracker says follows from the pinset.
    #[tokio::test]
    async fn merges_by_cid() {
        use TrackerStatus::{Pinned, Pinning, UnpinError};
        let a = peer(vec![Ok(vec![info(1, Pinned)]), Ok(vec![]), Ok(vec![info(2, UnpinError), info(4, Pinning)])]);
        let b = peer(vec![Ok(vec![info(3, Pinned), info(4, Pinned)])]);
        let pins = vec![pin(1, &[&a]), pin(3, &[]), pin(4, &[]), pin(5, &[&b])];
        let items = read(listing(Some(pins), vec![a, b], Filter::ALL)).await.unwrap();
        assert_eq!(
            items,
            [
                (1, vec!["pinned", "remote"]),
                (3, vec!["pin_queued", "pinned"]),
                (4, vec!["pinning", "pinned"]),
                (5, vec!["remote", "pin_queued"]),
            ]
        );
    }

    /// Goal: a filter selects peers, and items by them (beh:B12.8).
    #[tokio::test]
    async fn filters_select_peers() {
        use TrackerStatus::{PinError, Pinned};
        let streams = || {
            let a = peer(vec![Ok(vec![info(1, PinError), info(7, TrackerStatus::UnpinError)])]);
            (a, peer(vec![Ok(vec![info(1, Pinned), info(2, Pinned)])]))
        };
        let (a, b) = streams();
        // As the trackers filter already, only what they send counts.
        let items = read(listing(None, vec![a, b], Filter(14 | 16))).await.unwrap();
        assert_eq!(items, [(1, vec!["pin_error", "pinned"]), (2, vec!["pinned"]), (7, vec!["unpin_error"])]);
        let (a, b) = streams();
        let pins = vec![pin(1, &[&a, &b]), pin(2, &[&b])];
        let items = read(listing(Some(pins), vec![a, b], Filter(16 | 256))).await.unwrap();
        assert_eq!(items, [(1, vec!["pinned"]), (2, vec!["remote", "pinned"])]);
    }

    /// Goal: a peer that fails is named on every item from there on, and all of them failing is an error.
    #[tokio::test]
    async fn failures_are_entries() {
        use TrackerStatus::Pinned;
        let broken = || Err(Error::unavailable("gone"));
        let a = peer(vec![Ok(vec![info(1, Pinned)]), broken()]);
        let b = peer(vec![Ok(vec![info(1, Pinned)]), Ok(vec![info(2, Pinned)])]);
        let items = read(listing(None, vec![a, b], Filter::ALL)).await.unwrap();
        assert_eq!(items, [(1, vec!["pinned", "pinned"]), (2, vec!["cluster_error", "pinned"])]);
        let pins = vec![pin(1, &[])];
        let error = read(listing(Some(pins), vec![peer(vec![broken()]), peer(vec![broken()])], Filter::ALL)).await;
        assert_eq!(error.unwrap_err().message, "gone");
        assert_eq!(read(listing(None, vec![peer(vec![])], Filter::ALL)).await.unwrap(), []);
    }

    /// Goal: a limit ends the list, exactly.
    #[tokio::test]
    async fn limits() {
        let a = peer(vec![Ok((0..100).map(|cid| info(cid, TrackerStatus::Pinned)).collect())]);
        let mut listing = listing(None, vec![a], Filter::ALL);
        listing.left = 7;
        assert_eq!(read(listing).await.unwrap().len(), 7);
    }
}
