//! Status and recovery of one CID (beh:B12.4, B12.7).

use std::future::Future;

use futures::future::join_all;
use pinfold_common::channel::traced;
use pinfold_common::peerset::PeerInfo;
use pinfold_common::status::TrackerStatus;
use pinfold_common::time::Timestamp;
use pinfold_common::{Cid, Error, Result};
use pinfold_proto::connector::{RecoverCall, TrackerStatusCall};
use pinfold_proto::consensus::Consistency;
use pinfold_proto::{api, types};

use super::{Scope, answered, concerns, entry, failed, item_of_pin, members};
use crate::cluster::{Cluster, PEER_DEADLINE, ask};

/// Allocated members are asked, the others are `remote` without being asked. A CID that is not in the pinset is
/// `unpinned` everywhere, and nobody is asked.
pub async fn status_one(cluster: &Cluster, cid: &Cid, scope: Scope) -> Result<api::GlobalPinInfo> {
    let pin = cluster.get(cid.to_bytes(), Consistency::Local).await?.pin;
    match scope {
        Scope::Local => local(cluster, cid, pin, status_of(cluster, cid, 0)).await,
        Scope::Everybody => {
            let Some(pin) = pin else { return Ok(unpinned(cluster, cid).await) };
            let revision = pin.revision;
            merge(cluster, pin, |peer| status_of_peer(cluster, peer, cid, revision)).await
        }
    }
}

/// Queues again what is in error; the answer is the status afterwards.
pub async fn recover_one(cluster: &Cluster, cid: &Cid, scope: Scope) -> Result<api::GlobalPinInfo> {
    let pin = cluster.get(cid.to_bytes(), Consistency::Local).await?.pin;
    match (scope, pin) {
        (Scope::Local, None) => Err(Error::not_in_pinset()),
        (Scope::Local, Some(pin)) => local(cluster, cid, Some(pin), recover_of(cluster, cid)).await,
        (Scope::Everybody, None) => Ok(unpinned(cluster, cid).await),
        (Scope::Everybody, Some(pin)) => merge(cluster, pin, |peer| recover_of_peer(cluster, peer, cid)).await,
    }
}

async fn unpinned(cluster: &Cluster, cid: &Cid) -> api::GlobalPinInfo {
    let directory = cluster.directory().await;
    let now = Timestamp::now();
    let members = members(&cluster.view(), cluster.own, Scope::Everybody);
    let peers = members.iter().map(|peer| entry(&peer.peer_id, TrackerStatus::Unpinned, now, &directory)).collect();
    api::GlobalPinInfo { cid: cid.to_bytes(), created: Some(now.into()), peers, ..api::GlobalPinInfo::default() }
}

/// One entry, of the contacted peer. A failure is the whole answer's.
async fn local(
    cluster: &Cluster,
    cid: &Cid,
    pin: Option<types::Pin>,
    answer: impl Future<Output = Result<types::PinInfo>>,
) -> Result<api::GlobalPinInfo> {
    let info = answer.await?;
    let directory = cluster.directory().await;
    let peers = vec![answered(&cluster.own, &info, &directory)];
    Ok(match pin {
        Some(pin) => item_of_pin(&pin, peers),
        None => api::GlobalPinInfo { cid: cid.to_bytes(), peers, ..api::GlobalPinInfo::default() },
    })
}

async fn merge<'a, F, A>(cluster: &'a Cluster, pin: types::Pin, question: F) -> Result<api::GlobalPinInfo>
where
    F: Fn(PeerInfo) -> A,
    A: Future<Output = Result<types::PinInfo>> + 'a,
{
    let members = members(&cluster.view(), cluster.own, Scope::Everybody);
    let asked = members.iter().map(|peer| {
        let question = concerns(&pin, &peer.peer_id.to_bytes()).then(|| question(peer.clone()));
        async move {
            match question {
                Some(question) => Some(question.await),
                None => None,
            }
        }
    });
    let (answers, directory) = tokio::join!(join_all(asked), cluster.directory());
    let now = Timestamp::now();
    let peers = members.iter().zip(&answers).map(|(peer, answer)| match answer {
        None => entry(&peer.peer_id, TrackerStatus::Remote, now, &directory),
        Some(Ok(info)) => answered(&peer.peer_id, info, &directory),
        Some(Err(error)) => failed(&peer.peer_id, &error.message, now, &directory),
    });
    Ok(item_of_pin(&pin, peers.collect()))
}

async fn status_of(cluster: &Cluster, cid: &Cid, min_index: u64) -> Result<types::PinInfo> {
    let call = TrackerStatusCall { cids: vec![cid.to_bytes()], min_index: min_index.max(cluster.min_index()) };
    first_info(ask("ask for the status", PEER_DEADLINE, cluster.own_tracker().status(traced(call))).await?.infos)
}

async fn status_of_peer(cluster: &Cluster, peer: PeerInfo, cid: &Cid, min_index: u64) -> Result<types::PinInfo> {
    let call = TrackerStatusCall { cids: vec![cid.to_bytes()], min_index };
    first_info(ask("ask for the status", PEER_DEADLINE, cluster.tracker(&peer).status(traced(call))).await?.infos)
}

async fn recover_of(cluster: &Cluster, cid: &Cid) -> Result<types::PinInfo> {
    let call = RecoverCall { cid: cid.to_bytes() };
    let reply = ask("recover", PEER_DEADLINE, cluster.own_tracker().recover(call)).await?;
    reply.info.ok_or_else(no_answer)
}

async fn recover_of_peer(cluster: &Cluster, peer: PeerInfo, cid: &Cid) -> Result<types::PinInfo> {
    let call = RecoverCall { cid: cid.to_bytes() };
    let reply = ask("recover", PEER_DEADLINE, cluster.tracker(&peer).recover(call)).await?;
    reply.info.ok_or_else(no_answer)
}

fn first_info(infos: Vec<types::PinInfo>) -> Result<types::PinInfo> {
    infos.into_iter().next().ok_or_else(no_answer)
}

fn no_answer() -> Error {
    Error::internal("the tracker answered without a status")
}
