//! Clusters for these runs: filled, looked at, and waited for.

use std::time::Instant;

use ctl::local::cluster::Cluster;
use futures::{StreamExt, TryStreamExt, stream};
use pinfold_proto::types::{RepinStatusCall, RepinStatusReply};
use pinfold_proto::{api, types};
use pinfold_tests::pins::{self, Pinset};

use super::{BATCH, CLIENTS, PATIENCE, POLL};
use crate::load::Http;
use crate::ours::{channel, pins_client};
use crate::rest::Failed;

/// Of one batch.
const ATTEMPTS: u32 = 10;

/// Pins in batches over several connections, at the first peer.
pub async fn fill(
    cluster: &Cluster,
    label: &str,
    count: usize,
    factors: (i32, i32),
    wishes: impl Fn(usize) -> Vec<Vec<u8>>,
) -> Result<(), Failed> {
    let request = |number: usize| {
        let mut request = pins::request(label, number, factors);
        request.user_allocations = wishes(number);
        request
    };
    let authority = &cluster.peers[0].api;
    let batches = (0..count).step_by(BATCH).map(|first| {
        let requests: Vec<_> = (first..count.min(first + BATCH)).map(&request).collect();
        async move {
            let call = api::PinManyRequest { requests, request_key: rand::random::<[u8; 16]>().to_vec() };
            let mut attempts = 1..;
            // Many peers on few cores may take longer than a deadline; under the same key it is the same request.
            let reply = loop {
                match pins_client(authority)?.pin_many(call.clone()).await {
                    Err(status) if attempts.next() > Some(ATTEMPTS) => return Err(status.into()),
                    Err(_) => tokio::time::sleep(POLL).await,
                    Ok(reply) => break reply,
                }
            };
            for result in reply.into_inner().results {
                if let Some(api::pin_many_reply::result::Result::Failure(failure)) = result.result {
                    return Err(Failed::from(failure.message));
                }
            }
            Ok(())
        }
    });
    stream::iter(batches).buffer_unordered(CLIENTS).try_collect().await
}

pub async fn pinset(cluster: &Cluster, at: usize) -> Result<Pinset, Failed> {
    pins::list(pins_client(&cluster.peers[at].api)?).await.ok_or_else(|| "the list has no end".into())
}

pub fn spread(cluster: &Cluster, pins: &Pinset) -> Vec<usize> {
    let count = |id: Vec<u8>| pins.values().filter(|pin| pin.allocations.contains(&id)).count();
    cluster.peers.iter().map(|peer| count(peer.peer_id.to_bytes())).collect()
}

/// Nothing waits for an IPFS node any more.
pub async fn all_pinned(cluster: &Cluster) -> Result<(), Failed> {
    all_pinned_at(cluster, &(0..cluster.peers.len()).collect::<Vec<_>>()).await
}

/// The same of some peers.
pub async fn all_pinned_at(cluster: &Cluster, peers: &[usize]) -> Result<(), Failed> {
    for peer in peers.iter().map(|index| &cluster.peers[*index]) {
        let http = Http::new(&peer.api);
        until("all pins are pinned", || async {
            let (_, _, lines) =
                http.send("GET", "/pins?local=true&filter=pin_queued,pinning,pin_error&limit=1").await?;
            (lines == 0).then_some(())
        })
        .await?;
    }
    Ok(())
}

pub async fn status(cluster: &Cluster, at: usize) -> Option<RepinStatusReply> {
    let channel = channel(&cluster.peers[at].api).ok()?;
    let mut client = api::repin_client::RepinClient::new(channel);
    Some(client.status(RepinStatusCall::default()).await.ok()?.into_inner())
}

pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> Result<T, Failed> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("waited {PATIENCE:?} for: {what}").into());
        }
        tokio::time::sleep(POLL).await;
    }
}

pub fn min_of(pin: &types::Pin) -> usize {
    let factor = pin.options.as_ref().map_or(0, |options| options.replication_factor_min);
    usize::try_from(factor).unwrap_or(0)
}
