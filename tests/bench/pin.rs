//! `--only pin-kubo`: small items that need no network, pinned on one real Kubo through a whole peer, beside `pin/add` alone
//! on the same daemon at the number of calls at a time that suits it best.
//!
//! A daemon is slower the more it has pinned, so it is measured alone before and after, and the mean of both is what counts.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use ctl::local::cluster::{Cluster, Ipfs};
use pinfold_common::status::TrackerStatus;
use pinfold_proto::connector::StatusAllCall;
use pinfold_proto::connector::tracker_client::TrackerClient;
use serde_json::json;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::load::{Http, closed_loop};
use crate::ours::{pin_all, pins_client, request, start_on};
use crate::report::Report;
use crate::rest::{Failed, fresh_cid};
use crate::status::{count, tracker};

/// Calls at a time of `pin/add` alone.
const AT_A_TIME: [usize; 4] = [8, 16, 32, 64];
const ALONE: Duration = Duration::from_secs(6);
const BATCH: u64 = 100;
const POLL: Duration = Duration::from_millis(200);
/// For all of them through the peer.
const PATIENCE: Duration = Duration::from_secs(1800);
const GOAL: f64 = 0.9;

pub async fn run(report: &mut Report, items: u64) -> Result<(), Failed> {
    report.section(&format!("{items} items that need no network, pinned on one Kubo"));
    if ctl::local::on_path("ipfs").is_none() {
        println!("  not measured, there is no `ipfs` on the PATH");
        return Ok(());
    }
    let folder = tempfile::Builder::new().prefix("pinfold-bench-pin-").tempdir()?;
    let most = AT_A_TIME.into_iter().max().unwrap_or_default();
    let settings = vec![("pin_tracker.stateless.concurrent_pins", json!(most))];
    let cluster = start_on(folder.path().to_owned(), 1, Ipfs::StartKubo, settings).await?;
    let measured = beside(report, &cluster, items).await;
    cluster.stop().await;
    measured
}

async fn beside(report: &mut Report, cluster: &Cluster, items: u64) -> Result<(), Failed> {
    let daemon = rpc_authority(&cluster.peers[0].folder.join("kubo"))?;
    let counter = Arc::new(AtomicU64::new(1 << 52));
    let (mut best, mut best_at) = (0.0_f64, AT_A_TIME[0]);
    for at_a_time in AT_A_TIME {
        let rate = alone(&daemon, at_a_time, &counter).await?;
        report.figure(
            &format!("pin.kubo.alone.{at_a_time}"),
            &format!("`pin/add` alone, {at_a_time} at a time"),
            rate,
            "/s",
        );
        if rate > best {
            (best, best_at) = (rate, at_a_time);
        }
    }
    let late = |_| format!("not all {items} items were pinned in {PATIENCE:?}");
    let ours = timeout(PATIENCE, through_the_peer(cluster, items)).await.map_err(late)??;
    report.figure("pin.kubo", "through the peer, from the first request to the last item pinned", ours, "/s");
    let after = alone(&daemon, best_at, &counter).await?;
    report.figure("pin.kubo.alone.after", &format!("`pin/add` alone once more, {best_at} at a time"), after, "/s");
    let alone = f64::midpoint(best, after);
    let detail = format!("{:.2} x", ours / alone);
    report.goal(&format!("{GOAL} x of `pin/add` alone"), ours >= GOAL * alone, &detail);
    Ok(())
}

/// Where the daemon of this repository listens, which is on a TCP port when `ctl` has started it.
fn rpc_authority(repository: &Path) -> Result<String, Failed> {
    let address = std::fs::read_to_string(repository.join("api"))?;
    match address.trim().split('/').collect::<Vec<_>>().as_slice() {
        ["", "ip4", host, "tcp", port] => Ok(format!("{host}:{port}")),
        _ => Err(format!("the daemon listens on {address}, not on a TCP port").into()),
    }
}

async fn alone(daemon: &str, at_a_time: usize, counter: &Arc<AtomicU64>) -> Result<f64, Failed> {
    let connections: Arc<Vec<Http>> = Arc::new((0..at_a_time).map(|_| Http::new(daemon)).collect());
    let outcome = closed_loop(at_a_time, ALONE, counter, move |client, number| {
        let connections = connections.clone();
        async move {
            let path = format!("/api/v0/pin/add?arg={}", fresh_cid(number));
            connections[client].send("POST", &path).await.is_some_and(|(status, _, _)| status == 200)
        }
    })
    .await;
    if outcome.failed > 0 {
        return Err(format!("pin/add: {} calls failed", outcome.failed).into());
    }
    Ok(outcome.rate())
}

async fn through_the_peer(cluster: &Cluster, items: u64) -> Result<f64, Failed> {
    let started = Instant::now();
    let mut client = pins_client(&cluster.peers[0].api)?;
    for first in (0..items).step_by(usize::try_from(BATCH)?) {
        pin_all(&mut client, (first..items.min(first + BATCH)).map(request).collect()).await?;
    }
    let mut tracker = tracker(cluster, 0);
    // Reads on from where it was, so that it looks at each row about once.
    let mut place = Vec::new();
    loop {
        match first_waiting(&mut tracker, &place).await? {
            Some(cid) => place = cid,
            None if place.is_empty() => break,
            None => place.clear(),
        }
        tokio::time::sleep(POLL).await;
    }
    let took = started.elapsed();
    match count(&mut tracker, TrackerStatus::Pinned.bit(), 0).await? {
        pinned if pinned == items => Ok(items as f64 / took.as_secs_f64()),
        pinned => Err(format!("{pinned} of {items} items are pinned").into()),
    }
}

/// The first CID after this one that is not pinned yet.
async fn first_waiting(tracker: &mut TrackerClient<Channel>, after: &[u8]) -> Result<Option<Vec<u8>>, Failed> {
    let filter = TrackerStatus::PinQueued.bit() | TrackerStatus::Pinning.bit();
    let call = StatusAllCall { after: after.to_vec(), filter, limit: 1, ..StatusAllCall::default() };
    let mut stream = tracker.status_all(call).await?.into_inner();
    let reply = stream.message().await?;
    Ok(reply.and_then(|reply| reply.infos.into_iter().next()).map(|info| info.cid))
}
