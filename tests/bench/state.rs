//! `make bench-state`: a pinset of millions, imported into one peer that was stopped. What that takes, a restart with it, a
//! list of it, and a second peer that joins while clients write.
//!
//! The items are allocated to nobody who is there, and re-pinning is off: only consensus-svc has work with them.

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ctl::local::cluster::Cluster;
use pinfold_common::config::Overrides;
use pinfold_common::tls::Room;
use pinfold_proto::api;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::large::same_digest;
use crate::losses::{ELECTION_MAX, write_until_accepted};
use crate::machine::{forget_peak, peak_bytes, resident_bytes};
use crate::ours::{pins_client, request, start_with};
use crate::report::Report;
use crate::rest::Failed;

const NOBODY: &str = "12D3KooWARqgQvTqiZMKpKkMcx6zgBFbg23atYsE2BsV6GhP8JDX";
const PATIENCE: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(20);
/// So long the load runs alone, before the second peer comes.
const ALONE: Duration = Duration::from_secs(5);
const WRITERS: u64 = 64;
const WRITES: u64 = 2000;
const MB: f64 = 1e6;

pub async fn run(report: &mut Report, sizes: &[u64]) -> Result<(), Failed> {
    report.mark_ours();
    let folder = tempfile::Builder::new().prefix("pinfold-bench-").tempdir()?;
    for &items in sizes {
        let folder = folder.path().join(items.to_string());
        one_size(report, &folder, items).await?;
        let _ = std::fs::remove_dir_all(&folder);
    }
    Ok(())
}

fn settings() -> Overrides {
    vec![("cluster.disable_repinning", json!(true)), ("backup.interval", json!("0s"))]
}

async fn one_size(report: &mut Report, folder: &Path, items: u64) -> Result<(), Failed> {
    report.section(&format!("{items} pins, by state import into one peer"));
    let cluster = start_with(folder.to_owned(), 1, settings()).await?;
    cluster.stop().await;
    let peer = &cluster.peers[0];
    let raft = peer.folder.join("raft");
    let file = folder.join("pinset.jsonl");
    write_export(&file, items)?;
    let (took, peak) = import(&peer.folder, &file).await?;
    std::fs::remove_file(&file)?;
    report.figure(&format!("state.{items}.import"), "import", took.as_secs_f64(), "s");
    report.figure(&format!("state.{items}.import.rate"), "  that is", items as f64 / took.as_secs_f64(), "pins/s");
    report.figure(&format!("state.{items}.import.memory"), "  its memory at most", peak as f64 / MB, "MB");
    let disk = size_of(&raft);
    report.figure(&format!("state.{items}.disk"), "raft/ on disk", disk as f64 / MB, "MB");
    report.goal("at most 40 GB on disk", disk < 40_000_000_000, &format!("{:.2} GB", disk as f64 / 1e9));

    peer.resume().await;
    cluster.wait_ready(PATIENCE, |_, _| {}).await?;
    list(report, &cluster, items).await?;
    restart(report, &cluster, items).await?;
    cluster.stop().await;
    drop(cluster);
    join(report, folder, items).await
}

/// As the original's `state export` writes it.
fn write_export(path: &Path, items: u64) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    for number in 0..items {
        let cid = crate::rest::fresh_cid((1 << 40) + number);
        writeln!(
            file,
            r#"{{"replication_factor_min":1,"replication_factor_max":1,"name":"item {number}","mode":"recursive","shard_size":0,"user_allocations":null,"expire_at":"0001-01-01T00:00:00Z","metadata":null,"pin_update":null,"origins":[],"cid":"{cid}","type":"pin","allocations":["{NOBODY}"],"max_depth":-1,"reference":null,"timestamp":"2026-01-01T00:00:00Z"}}"#
        )?;
    }
    file.into_inner()?.sync_all()
}

/// How long it took, and the most memory that it had.
pub async fn import(folder: &Path, file: &Path) -> Result<(Duration, u64), Failed> {
    let mut command = tokio::process::Command::new(pinfold_tests::cluster::programs().path("consensus-svc")?);
    command.arg("--config").arg(folder).args(["state", "import", "--force"]).arg(file);
    let started = Instant::now();
    let mut child = command.stdout(Stdio::null()).kill_on_drop(true).spawn()?;
    let pid = child.id().ok_or("import has ended at once")?;
    let mut peak = 0;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            () = tokio::time::sleep(POLL) => peak = peak.max(peak_bytes(pid)),
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("state import: not done in {PATIENCE:?}").into());
        }
    };
    if !status.success() {
        return Err(format!("state import: {status}").into());
    }
    Ok((started.elapsed(), peak))
}

fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => size_of(&entry.path()),
        _ => entry.metadata().map_or(0, |metadata| metadata.len()),
    };
    entries.map(size).sum()
}

/// The whole pinset as a stream, and what it adds to the memory of who sends it.
async fn list(report: &mut Report, cluster: &Cluster, items: u64) -> Result<(), Failed> {
    let pid = cluster.peers[0].service(Room::Consensus).and_then(|service| service.pid()).ok_or("no process")?;
    let before = resident_bytes(pid);
    forget_peak(pid)?;
    let started = Instant::now();
    let mut stream = pins_client(&cluster.peers[0].api)?.list(api::ListRequest::default()).await?.into_inner();
    let mut rows = 0;
    while let Some(reply) = timeout(PATIENCE, stream.message()).await?? {
        rows += reply.pins.len() as u64;
    }
    let rate = rows as f64 / started.elapsed().as_secs_f64();
    report.goal("the list is whole", rows == items, &format!("{rows} rows"));
    report.figure(&format!("state.{items}.list"), "gRPC List of all", rate, "rows/s");
    report.goal("T8: 300,000 rows/s", rate >= 300_000.0, &format!("{rate:.0}"));
    let peak = peak_bytes(pid);
    let grown = peak.saturating_sub(before) as f64 / MB;
    report.goal("T8: less than 50 MB more while it is sent", grown < 50.0, &format!("{grown:.0} MB"));
    report.figure(&format!("state.{items}.memory"), "consensus-svc, at most", peak as f64 / MB, "MB");
    report.goal("T11: consensus-svc below 300 MB", peak < 300_000_000, &format!("{:.0} MB", peak as f64 / MB));
    Ok(())
}

/// kill -9 of all four services, and back.
async fn restart(report: &mut Report, cluster: &Cluster, items: u64) -> Result<(), Failed> {
    let peer = &cluster.peers[0];
    peer.kill().await;
    let started = Instant::now();
    peer.resume().await;
    let took = write_until_accepted(&peer.api).await - started;
    report.figure(
        &format!("state.{items}.restart"),
        "kill -9 of all, to the first accepted pin",
        took.as_secs_f64(),
        "s",
    );
    let most = Duration::from_millis(500) + ELECTION_MAX;
    report.goal("T10: 0.5 s and an election", took < most, &format!("{took:.2?} of {most:.2?}"));
    Ok(())
}

/// The acknowledgements of a steady load: when each came, and how long it took.
type Acknowledged = Arc<Mutex<Vec<(Instant, Duration)>>>;

/// The second peer joins under a steady load.
async fn join(report: &mut Report, folder: &Path, items: u64) -> Result<(), Failed> {
    report.section(&format!("A second peer joins the one with {items} pins, under {WRITES} writes a second"));
    let alone = start_with(folder.to_owned(), 1, settings()).await?;
    let yardstick = copy_twice(&alone.peers[0].folder)?;
    report.figure(
        &format!("state.{items}.copy"),
        "state.db copied twice and made durable",
        yardstick.as_secs_f64(),
        "s",
    );
    let quiet = Acknowledged::default();
    timeout(ALONE, write(&alone.peers[0].api, &quiet)).await.err();
    alone.stop().await;
    let log = alone.peers[0].service(Room::Consensus).ok_or("no consensus service")?.log().clone();
    let sent_before = snapshots(&log);
    drop(alone);

    let busy = Acknowledged::default();
    let options = start_with(folder.to_owned(), 2, settings());
    let first = async {
        // The load begins as soon as the first peer answers.
        let authority = loop {
            tokio::time::sleep(POLL).await;
            if let Some(authority) = authority_of(&folder.join("peer0")) {
                break authority;
            }
        };
        write_until_accepted(&authority).await;
        write(&authority, &busy).await
    };
    let cluster = tokio::select! {
        cluster = options => cluster?,
        failed = first => return Err(failed),
    };
    let ready = Instant::now();
    let began = busy.lock().expect("not poisoned").first().map_or(ready, |(at, _)| *at);
    let took = ready - began;
    same_digest(report, &cluster, "both hold the same", items).await?;
    report.figure(
        &format!("state.{items}.join"),
        "from the first write to the joiner being ready",
        took.as_secs_f64(),
        "s",
    );
    let most = 3 * yardstick;
    report.goal("T9: three times the copies", took <= most, &format!("{took:.2?} of {most:.2?}"));
    let sent = snapshots(&log) - sent_before;
    report.goal("T9: one snapshot", sent == 1, &sent.to_string());
    let p99 = |acknowledged: &Acknowledged| {
        let mut times: Vec<Duration> =
            acknowledged.lock().expect("not poisoned").iter().map(|(_, took)| *took).collect();
        times.sort_unstable();
        (times.len(), times.get(times.len() * 99 / 100).copied().unwrap_or_default())
    };
    let ((_, before), (written, during)) = (p99(&quiet), p99(&busy));
    let detail = format!("{during:.2?} against {before:.2?}, {written} writes meanwhile");
    report.goal("T9: p99 of writes at most twice that without a joiner", during <= 2 * before, &detail);
    let joiner = cluster.peers[1].service(Room::Consensus).and_then(|service| service.pid()).ok_or("no process")?;
    let memory = resident_bytes(joiner) as f64 / MB;
    report.figure(&format!("state.{items}.join.memory"), "consensus-svc of the joiner", memory, "MB");
    cluster.stop().await;
    Ok(())
}

/// Where the peer of this folder serves its API, as soon as the folder says so.
fn authority_of(folder: &Path) -> Option<String> {
    let args = pinfold_common::config::Args { folder: Some(folder.to_owned()), loglevel: String::new(), debug: false };
    pinfold_common::config::File::load(&args).ok()?.announce(Room::Gateway).ok()
}

/// Single pins at a steady rate, for ever.
async fn write(authority: &str, acknowledged: &Acknowledged) -> Failed {
    static NUMBER: AtomicU64 = AtomicU64::new(1 << 48);
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (acknowledged, client) = (acknowledged.clone(), pins_client(authority));
        let Ok(mut client) = client else { return "no channel".into() };
        writers.spawn(async move {
            let mut beat = tokio::time::interval(Duration::from_secs(1) * WRITERS as u32 / WRITES as u32);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                beat.tick().await;
                let started = Instant::now();
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                let item = api::PinItem { request: Some(request(number)), request_key: Vec::new() };
                if client.pin(item).await.is_ok() {
                    let now = Instant::now();
                    acknowledged.lock().expect("not poisoned").push((now, now - started));
                }
            }
        });
    }
    while writers.join_next().await.is_some() {}
    "the writers have ended".into()
}

/// The work that a snapshot is at the least: a copy here, and one there.
fn copy_twice(folder: &Path) -> std::io::Result<Duration> {
    let (from, to): (PathBuf, PathBuf) = (folder.join("raft/state.db"), folder.join("copy"));
    let started = Instant::now();
    for _ in 0..2 {
        std::fs::copy(&from, &to)?;
        std::fs::File::open(&to)?.sync_all()?;
    }
    let took = started.elapsed();
    std::fs::remove_file(&to)?;
    Ok(took)
}

fn snapshots(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().matches("sending a snapshot").count()
}
