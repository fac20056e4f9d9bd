//! Unpins that wait for a person (protocols.md 8), of all members or of one, each with its own deadline.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream, FuturesUnordered};
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::peerset::PeerInfo;
use pinfold_common::{Error, Result};
use pinfold_proto::api;
use pinfold_proto::connector::{ApproveCall, HeldCall};

use super::{Scope, members};
use crate::cluster::{Cluster, PEER_DEADLINE, ask, from_status};

/// CIDs of one request, as the .proto files say.
const MAX_CIDS: usize = 1000;
/// A million approvals are written in some ten seconds.
const APPROVE_DEADLINE: Duration = Duration::from_secs(600);

/// What is held: for each peer some messages, at least one.
pub fn held(cluster: &Cluster, peer: &[u8]) -> Result<BoxStream<'static, api::HeldReply>> {
    let streams = addressed(cluster, peer)?.into_iter().map(|peer| {
        let mut tracker = cluster.tracker(&peer);
        let opened = async move {
            let empty = reply(&peer);
            match ask("ask what is held", PEER_DEADLINE, tracker.held(HeldCall {})).await {
                Err(error) => stream::iter([api::HeldReply { error: error.message, ..empty }]).boxed(),
                Ok(chunks) => {
                    let of_peer = empty.clone();
                    let chunks = chunks.map(move |chunk| match chunk {
                        Ok(chunk) => api::HeldReply { items: chunk.items, ..of_peer.clone() },
                        Err(status) => {
                            api::HeldReply { error: from_status("ask what is held", status).message, ..of_peer.clone() }
                        }
                    });
                    stream::iter([empty]).chain(chunks).boxed()
                }
            }
        };
        stream::once(opened).flatten().boxed()
    });
    let streams: Vec<_> = streams.collect();
    // One after the other: the list is read by people, peer by peer.
    Ok(stream::iter(streams).flatten().boxed())
}

fn reply(peer: &PeerInfo) -> api::HeldReply {
    api::HeldReply { peer: peer.peer_id.to_bytes(), peername: peer.name.clone(), ..api::HeldReply::default() }
}

/// Lets them go ahead, on all peers at once.
pub fn approve(cluster: &Cluster, request: api::ApproveRequest) -> Result<BoxStream<'static, api::ApproveReply>> {
    if request.cids.len() > MAX_CIDS {
        return Err(Error::invalid(format!("cids: {}, at most {MAX_CIDS}", request.cids.len())));
    }
    if request.cids.is_empty() != request.all {
        return Err(Error::invalid("cids, all: name what to approve, or set all, and not both"));
    }
    for cid in &request.cids {
        pinfold_common::ids::cid_from_bytes(cid)?;
    }
    let asked: FuturesUnordered<_> = addressed(cluster, &request.peer)?
        .into_iter()
        .map(|peer| {
            let (mut tracker, cids) = (cluster.tracker(&peer), request.cids.clone());
            async move {
                let answer = ask("approve", APPROVE_DEADLINE, tracker.approve(ApproveCall { cids })).await;
                let (approved, error) = match answer {
                    Ok(reply) => (reply.approved, String::new()),
                    Err(error) => (0, error.message),
                };
                api::ApproveReply { peer: peer.peer_id.to_bytes(), peername: peer.name, approved, error }
            }
        })
        .collect();
    Ok(asked.boxed())
}

/// All members, or the one that is named.
fn addressed(cluster: &Cluster, peer: &[u8]) -> Result<Vec<PeerInfo>> {
    let mut peers = members(&cluster.view(), cluster.own, Scope::Everybody);
    if !peer.is_empty() {
        let named = peer_from_bytes(peer)?;
        peers.retain(|member| member.peer_id == named);
        if peers.is_empty() {
            return Err(Error::not_found(format!("peer {named}: not a member of this cluster")));
        }
    }
    Ok(peers)
}
