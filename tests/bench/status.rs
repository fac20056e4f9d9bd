//! `make bench-status`: three peers that each pin a whole pinset of a million, and what people ask of it then: how it stands,
//! what is in error, the status of everything, whether something new still starts beside ten thousand CIDs that nobody
//! has, and how soon a tracker is there again.
//!
//! The pins carry their content in their CID, so that embedded nodes pin without a network. They come by `state import`.

use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use ctl::local::cluster::Cluster;
use multihash_codetable::{Code, MultihashDigest as _};
use pinfold_common::Cid;
use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::config::Overrides;
use pinfold_common::pin::PinRequest;
use pinfold_common::status::TrackerStatus;
use pinfold_common::tls::Room;
use pinfold_proto::connector::tracker_client::TrackerClient;
use pinfold_proto::connector::{StatusAllCall, TrackerStatusCall};
use pinfold_proto::{api, types};
use pinfold_tests::cluster::inside;
use serde_json::json;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::machine::{forget_peak, peak_bytes, resident_bytes};
use crate::ours::{cluster_client, pin_all, pins_client, request, start_with};
use crate::report::Report;
use crate::rest::Failed;
use crate::state::import;

const PEERS: u16 = 3;
const PATIENCE: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(20);
/// CIDs that nobody has: in error when the first figures are taken,
const LOST: u64 = 1_000;
/// and queued in front of a good one.
const DEAD: u64 = 10_000;
/// Of a short answer, of which the median counts.
const ROUNDS: usize = 21;
/// The original's status of everything, items/s (spec: measured.md part C).
const ORIGINAL: f64 = 8_000.0;
const MB: f64 = 1e6;

pub async fn run(report: &mut Report, items: u64) -> Result<(), Failed> {
    report.mark_ours();
    let folder = tempfile::Builder::new().prefix("pinfold-bench-").tempdir()?;
    let cluster = fill(report, folder.path(), items).await?;
    let authority = &cluster.peers[0].api;
    report.section(&format!("Questions about {items} pins on each of {PEERS} peers, {LOST} of them in error"));
    summary(report, authority).await?;
    errors(report, authority).await?;
    everything(report, &cluster, items).await?;
    behind_dead_ones(report, &cluster).await?;
    restart(report, &cluster).await?;
    memory(report, &cluster);
    cluster.stop().await;
    Ok(())
}

fn settings() -> Overrides {
    vec![
        ("cluster.disable_repinning", json!(true)),
        ("backup.interval", json!("0s")),
        // CIDs that nobody has are given up for the moment soon.
        ("ipfs_connector.ipfshttp.pin_timeout", json!("5s")),
    ]
}

/// Imports into one peer, lets the others join, and waits until all trackers are through.
async fn fill(report: &mut Report, folder: &Path, items: u64) -> Result<Cluster, Failed> {
    report.section(&format!("{items} pins on each of {PEERS} peers, by state import"));
    let alone = start_with(folder.to_owned(), 1, settings()).await?;
    alone.stop().await;
    let file = folder.join("pinset.jsonl");
    write_export(&file, items)?;
    import(&alone.peers[0].folder, &file).await?;
    std::fs::remove_file(&file)?;
    drop(alone);
    let started = Instant::now();
    let cluster = start_with(folder.to_owned(), PEERS, settings()).await?;
    for peer in 0..cluster.peers.len() {
        settled(&cluster, peer, items, started).await?;
    }
    let took = started.elapsed();
    report.figure("status.fill", "joined, followed and pinned by all", took.as_secs_f64(), "s");
    let rate = (items * u64::from(PEERS)) as f64 / took.as_secs_f64();
    report.figure("status.fill.rate", "  that is, of all trackers together", rate, "pins/s");
    Ok(cluster)
}

/// As the original's `state export` writes it: pinned everywhere.
fn write_export(path: &Path, items: u64) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let found = (0..items - LOST).map(|number| crate::rest::fresh_cid((1 << 40) + number));
    for (number, cid) in found.chain((0..LOST).map(|number| nobodys(number).to_string())).enumerate() {
        writeln!(
            file,
            r#"{{"replication_factor_min":-1,"replication_factor_max":-1,"name":"item {number}","mode":"recursive","shard_size":0,"user_allocations":null,"expire_at":"0001-01-01T00:00:00Z","metadata":null,"pin_update":null,"origins":[],"cid":"{cid}","type":"pin","allocations":[],"max_depth":-1,"reference":null,"timestamp":"2026-01-01T00:00:00Z"}}"#
        )?;
    }
    file.into_inner()?.sync_all()
}

/// Of a block that no node has.
fn nobodys(number: u64) -> Cid {
    Cid::new_v1(0x55, Code::Sha2_256.digest(format!("nobody has {number}").as_bytes()))
}

pub fn tracker(cluster: &Cluster, peer: usize) -> TrackerClient<Channel> {
    let channel = inside(&cluster.peers[peer], Room::Connector);
    TrackerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Rows that a peer's tracker has in these statuses, at most `limit`.
pub async fn count(tracker: &mut TrackerClient<Channel>, filter: u32, limit: u64) -> Result<u64, Failed> {
    let call = StatusAllCall { filter, limit, ..StatusAllCall::default() };
    let mut stream = tracker.status_all(call).await?.into_inner();
    let mut rows = 0;
    while let Some(reply) = timeout(PATIENCE, stream.message()).await?? {
        rows += reply.infos.len() as u64;
    }
    Ok(rows)
}

/// Waits until the tracker has everything, and nothing is queued any more.
async fn settled(cluster: &Cluster, peer: usize, items: u64, started: Instant) -> Result<(), Failed> {
    let waiting = TrackerStatus::PinQueued.bit() | TrackerStatus::Pinning.bit();
    let mut tracker = tracker(cluster, peer);
    loop {
        // The cheap question first: everything is counted only when nothing waits.
        let is_idle = count(&mut tracker, waiting, 1).await.is_ok_and(|rows| rows == 0);
        if is_idle && count(&mut tracker, 0, items).await? >= items {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("peer {peer} has not pinned everything in {PATIENCE:?}").into());
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What `ctl health` shows.
async fn summary(report: &mut Report, authority: &str) -> Result<(), Failed> {
    let mut client = cluster_client(authority)?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        client.summary(api::SummaryRequest {}).await?;
        times.push(started.elapsed());
    }
    let took = millis(median(times));
    report.figure("status.summary", "the summary", took, "ms");
    report.goal("the summary within 10 ms", took < 10.0, &format!("{took:.2} ms"));
    Ok(())
}

/// `ctl status --filter error`, through the gateway, of all peers.
async fn errors(report: &mut Report, authority: &str) -> Result<(), Failed> {
    let mut client = pins_client(authority)?;
    let (mut times, mut hits) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        hits = status_all(&mut client, TrackerStatus::PinError.bit()).await?;
        times.push(started.elapsed());
    }
    let took = millis(median(times));
    report.figure("status.errors", "status of what is in error", took, "ms");
    report.goal("a thousand in error within 50 ms", took < 50.0 && hits == LOST, &format!("{took:.1} ms, {hits} hits"));
    Ok(())
}

async fn status_all(client: &mut api::pins_client::PinsClient<Channel>, filter: u32) -> Result<u64, Failed> {
    let call = api::StatusAllRequest { filter, ..api::StatusAllRequest::default() };
    let mut stream = client.status_all(call).await?.into_inner();
    let mut rows = 0;
    while let Some(reply) = timeout(PATIENCE, stream.message()).await?? {
        rows += reply.items.len() as u64;
    }
    Ok(rows)
}

/// Everything, merged from all peers, beside one tracker's own stream; and what it costs the gateway's memory.
async fn everything(report: &mut Report, cluster: &Cluster, items: u64) -> Result<(), Failed> {
    let gateway = cluster.peers[0].service(Room::Gateway).and_then(|service| service.pid()).ok_or("no gateway")?;
    let started = Instant::now();
    let rows = count(&mut tracker(cluster, 0), 0, 0).await?;
    let own = rows as f64 / started.elapsed().as_secs_f64();
    report.figure("status.tracker", "one tracker's own stream", own, "items/s");
    let mut client = pins_client(&cluster.peers[0].api)?;
    // The first one fills buffers that stay.
    status_all(&mut client, TrackerStatus::PinError.bit()).await?;
    let before = resident_bytes(gateway);
    forget_peak(gateway)?;
    let started = Instant::now();
    let rows = status_all(&mut client, 0).await?;
    let merged = rows as f64 / started.elapsed().as_secs_f64();
    report.figure("status.all", "the status of everything, of all peers", merged, "items/s");
    report.goal("it is whole", rows == items, &format!("{rows} items"));
    let detail = format!("{:.2} x", merged / own);
    report.goal("0.4 x of one tracker's own stream", merged >= 0.4 * own, &detail);
    let detail = format!("{:.1} x", merged / ORIGINAL);
    report.goal("5 x the original's 8,000 items/s", merged >= 5.0 * ORIGINAL, &detail);
    let grown = peak_bytes(gateway).saturating_sub(before) as f64 / MB;
    report.goal("less than 50 MB more in the gateway meanwhile", grown < 50.0, &format!("{grown:.0} MB"));
    Ok(())
}

/// Ten thousand CIDs that nobody has are queued, and then one that needs no network.
async fn behind_dead_ones(report: &mut Report, cluster: &Cluster) -> Result<(), Failed> {
    let mut client = pins_client(&cluster.peers[0].api)?;
    for first in (LOST..LOST + DEAD).step_by(100) {
        let requests: Vec<types::PinRequest> =
            (first..first + 100).map(|number| everywhere(PinRequest::new(nobodys(number)).into())).collect();
        pin_all(&mut client, requests).await?;
    }
    let good = everywhere(request(1 << 41));
    let cid = good.cid.clone();
    let started = Instant::now();
    client.pin(api::PinItem { request: Some(good), request_key: Vec::new() }).await?;
    let mut slowest = Duration::ZERO;
    for peer in 0..cluster.peers.len() {
        let mut tracker = tracker(cluster, peer);
        loop {
            let call = TrackerStatusCall { cids: vec![cid.clone()], min_index: 0 };
            let infos = tracker.status(call).await?.into_inner().infos;
            if infos.iter().any(|info| TrackerStatus::from_proto(info.status) == TrackerStatus::Pinned) {
                break;
            }
            if started.elapsed() > PATIENCE {
                return Err("a good pin behind dead ones is not pinned".into());
            }
            tokio::time::sleep(POLL).await;
        }
        slowest = slowest.max(started.elapsed());
        println!("    peer {peer} has it after {:.2?} at the latest", started.elapsed());
    }
    report.figure(
        "status.behind",
        &format!("a good pin behind {DEAD} dead ones, on all peers"),
        slowest.as_secs_f64(),
        "s",
    );
    report.goal("it is there within 2 s", slowest < Duration::from_secs(2), &format!("{slowest:.2?}"));
    Ok(())
}

fn everywhere(mut request: types::PinRequest) -> types::PinRequest {
    let options = request.options.get_or_insert_default();
    (options.replication_factor_min, options.replication_factor_max) = (-1, -1);
    request
}

/// kill -9 of one connector: from its start until its tracker answers, with what was queued.
async fn restart(report: &mut Report, cluster: &Cluster) -> Result<(), Failed> {
    let service = cluster.peers[1].service(Room::Connector).ok_or("no connector")?;
    let cid = nobodys(LOST + DEAD - 1).to_bytes();
    service.kill_and_hold().await;
    let started = Instant::now();
    service.resume().await;
    let info = loop {
        let call = TrackerStatusCall { cids: vec![cid.clone()], min_index: 0 };
        let answer = tracker(cluster, 1).status(call).await;
        if let Some(info) = answer.ok().and_then(|reply| reply.into_inner().infos.into_iter().next()) {
            break info;
        }
        if started.elapsed() > PATIENCE {
            return Err("the tracker does not come back".into());
        }
        tokio::time::sleep(POLL).await;
    };
    let took = started.elapsed();
    report.figure("status.restart", "kill -9 of a connector, until its tracker answers", took.as_secs_f64(), "s");
    report.goal("a tracker is ready within 2 s", took < Duration::from_secs(2), &format!("{took:.2?}"));
    let status = TrackerStatus::from_proto(info.status);
    let is_kept = matches!(status, TrackerStatus::PinQueued | TrackerStatus::Pinning | TrackerStatus::PinError);
    report.goal("the queue survives kill -9", is_kept, &format!("the last dead one is {status}"));
    Ok(())
}

/// The most that each connector ever had, but for the one that was started again.
fn memory(report: &mut Report, cluster: &Cluster) {
    let pids = [0, 2].map(|peer| cluster.peers[peer].service(Room::Connector).and_then(|service| service.pid()));
    let peak = pids.into_iter().flatten().map(peak_bytes).max().unwrap_or(0) as f64 / MB;
    report.figure("status.memory", "a connector, at most", peak, "MB");
    report.goal("a connector below 200 MB", peak < 200.0, &format!("{peak:.0} MB"));
}
