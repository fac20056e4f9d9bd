//! Garbage collection of the IPFS nodes (beh:B18.2), on all members at once. It takes as long as it takes: each
//! connector bounds its own node.

use std::collections::HashMap;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use pinfold_common::json::{GcKeyJson, GlobalRepoGcJson, RepoGcJson};
use pinfold_common::peerset::PeerInfo;
use pinfold_common::{Error, Result, ids};
use pinfold_proto::api;
use pinfold_proto::connector::{GcCall, GcReply};

use super::{Scope, members};
use crate::cluster::{Cluster, from_status};

/// Removed keys that one peer's part of the JSON answer lists; the rest is removed all the same.
const MAX_KEYS: usize = 250_000;

/// A message, or why a peer's collection broke off.
type Step = (api::CollectGarbageReply, Option<Error>);

/// What each node removes, as it goes; the last message of each says `end`.
pub fn gc_stream(cluster: &Cluster, scope: Scope) -> BoxStream<'static, api::CollectGarbageReply> {
    steps(cluster, scope).map(|(reply, _)| reply).boxed()
}

/// What each node removed. Failures stand inside; with `Scope::Local` they are the answer.
pub async fn gc(cluster: &Cluster, scope: Scope) -> Result<GlobalRepoGcJson> {
    let mut parts: HashMap<Vec<u8>, RepoGcJson> = HashMap::new();
    let mut steps = steps(cluster, scope);
    while let Some((reply, error)) = steps.next().await {
        if let (Scope::Local, Some(error)) = (scope, error) {
            return Err(error);
        }
        let part = match parts.get_mut(&reply.peer) {
            Some(part) => part,
            None => {
                let peer = ids::peer_from_bytes(&reply.peer)?.to_string();
                let part =
                    RepoGcJson { peer, peername: reply.peername.clone(), keys: Vec::new(), error: String::new() };
                parts.entry(reply.peer.clone()).or_insert(part)
            }
        };
        add(part, &reply)?;
    }
    Ok(GlobalRepoGcJson { peer_map: parts.into_values().map(|part| (part.peer.clone(), part)).collect() })
}

fn add(part: &mut RepoGcJson, reply: &api::CollectGarbageReply) -> Result<()> {
    let removed = reply.removed.iter().map(|cid| -> Result<GcKeyJson> {
        let key = ids::cid_from_bytes(cid)?.to_string();
        Ok(GcKeyJson { key: Some(key), error: String::new() })
    });
    let failed = reply.errors.iter().map(|error| Ok(GcKeyJson { key: None, error: error.clone() }));
    for key in removed.chain(failed) {
        if part.keys.len() == MAX_KEYS {
            part.error = format!("more was removed than the {MAX_KEYS} keys listed here");
            break;
        }
        part.keys.push(key?);
    }
    if !reply.error.is_empty() {
        part.error.clone_from(&reply.error);
    }
    Ok(())
}

fn steps(cluster: &Cluster, scope: Scope) -> BoxStream<'static, Step> {
    let peers = members(&cluster.view(), cluster.own, scope);
    stream::select_all(peers.into_iter().map(|peer| collect(cluster, peer))).boxed()
}

fn collect(cluster: &Cluster, peer: PeerInfo) -> BoxStream<'static, Step> {
    let mut tracker = cluster.tracker(&peer);
    let empty = api::CollectGarbageReply {
        peer: peer.peer_id.to_bytes(),
        peername: peer.name,
        ..api::CollectGarbageReply::default()
    };
    let failed = |status| from_status("collect garbage", status);
    let opened = async move {
        let chunks: BoxStream<'static, Result<GcReply>> = match tracker.gc(GcCall {}).await {
            Ok(reply) => reply.into_inner().map(move |chunk| chunk.map_err(failed)).boxed(),
            Err(status) => stream::iter([Err(failed(status))]).boxed(),
        };
        // After the last chunk, good or bad, comes the end.
        stream::unfold(Some((chunks, empty)), |running| async move {
            let (mut chunks, empty) = running?;
            match chunks.next().await {
                Some(Ok(chunk)) => Some(((message(&empty, chunk), None), Some((chunks, empty)))),
                Some(Err(error)) => {
                    let last = api::CollectGarbageReply { end: true, error: error.message.clone(), ..empty };
                    Some(((last, Some(error)), None))
                }
                None => Some(((api::CollectGarbageReply { end: true, ..empty }, None), None)),
            }
        })
    };
    stream::once(opened).flatten().boxed()
}

fn message(empty: &api::CollectGarbageReply, chunk: GcReply) -> api::CollectGarbageReply {
    let mut reply = empty.clone();
    for key in chunk.keys {
        if key.cid.is_empty() {
            reply.errors.push(key.error);
        } else {
            reply.removed.push(key.cid);
        }
    }
    reply
}
