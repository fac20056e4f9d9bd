//! Garbage collection of the IPFS nodes (beh:B18.2), on all members at once. It takes as long as it takes: each
//! connector bounds its own node.

use futures::future::join_all;
use pinfold_common::json::{GcKeyJson, GlobalRepoGcJson, RepoGcJson};
use pinfold_common::peerset::PeerInfo;
use pinfold_common::{Cid, Error, Result, ids};
use pinfold_proto::connector::{GcCall, GcKey};

use super::{Scope, members};
use crate::cluster::{Cluster, from_status};

/// Removed keys that one peer's part of the answer lists; the rest is removed all the same.
const MAX_KEYS: usize = 250_000;

/// What each node removed. Failures stand inside; with `Scope::Local` they are the answer.
pub async fn gc(cluster: &Cluster, scope: Scope) -> Result<GlobalRepoGcJson> {
    let members = members(&cluster.view(), cluster.own, scope);
    let asked = members.iter().map(|peer| collect(cluster, peer));
    let mut parts = Vec::new();
    for (part, error) in join_all(asked).await {
        match (scope, error) {
            (Scope::Local, Some(error)) => return Err(error),
            (Scope::Everybody, Some(_)) | (_, None) => parts.push((part.peer.clone(), part)),
        }
    }
    Ok(GlobalRepoGcJson { peer_map: parts.into_iter().collect() })
}

async fn collect(cluster: &Cluster, peer: &PeerInfo) -> (RepoGcJson, Option<Error>) {
    let mut part = RepoGcJson {
        peer: peer.peer_id.to_string(),
        peername: peer.name.clone(),
        keys: Vec::new(),
        error: String::new(),
    };
    let error = collect_keys(cluster, peer, &mut part).await.err();
    if let Some(error) = &error {
        part.error.clone_from(&error.message);
    }
    (part, error)
}

async fn collect_keys(cluster: &Cluster, peer: &PeerInfo, part: &mut RepoGcJson) -> Result<()> {
    let failed = |status| from_status("collect garbage", status);
    let mut stream = cluster.tracker(peer).gc(GcCall {}).await.map_err(failed)?.into_inner();
    while let Some(reply) = stream.message().await.map_err(failed)? {
        for key in reply.keys {
            if part.keys.len() == MAX_KEYS {
                part.error = format!("more was removed than the {MAX_KEYS} keys listed here");
                break;
            }
            part.keys.push(key_json(&key)?);
        }
    }
    Ok(())
}

fn key_json(key: &GcKey) -> Result<GcKeyJson> {
    let cid = ids::optional_cid(&key.cid)?;
    Ok(GcKeyJson { key: cid.as_ref().map(Cid::to_string), error: key.error.clone() })
}
