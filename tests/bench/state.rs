//! `make bench-state`: a pinset of millions, imported into one consensus-svc that was stopped. What that takes, a restart
//! with it, a list of it, and a second one that joins while clients write. Only consensus-svc of each peer runs, and its
//! gateway for one figure.

use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pinfold_common::config::{Args, File};
use pinfold_common::tls::{ClusterSecret, Room};
use pinfold_proto::api;
use pinfold_proto::consensus::{ListCall, PinCall};
use pinfold_tests::alone::{Alone, pins_over};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::losses::ELECTION_MAX;
use crate::machine::{forget_peak, peak_bytes, resident_bytes};
use crate::ours::pins_client;
use crate::report::Report;
use crate::rest::Failed;
use crate::rooms::{digest, end, pin, settings};
use crate::sqlite;

const NOBODY: &str = "12D3KooWARqgQvTqiZMKpKkMcx6zgBFbg23atYsE2BsV6GhP8JDX";
const PATIENCE: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(20);
/// How often the list is read.
const LISTS: usize = 3;
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

async fn one_size(report: &mut Report, folder: &Path, items: u64) -> Result<(), Failed> {
    report.section(&format!("{items} pins, by state import into one peer"));
    let secret = ClusterSecret::generate();
    let peer = Alone::prepare(&folder.join("peer0"), &secret, settings());
    let process = peer.start(None);
    peer.ready().await;
    end(process, Signal::TERM).await?;
    let file = folder.join("pinset.jsonl");
    write_export(&file, items)?;
    let (took, peak) = import(&peer.folder, &file).await?;
    std::fs::remove_file(&file)?;
    report.figure(&format!("state.{items}.import"), "import", took.as_secs_f64(), "s");
    report.figure(&format!("state.{items}.import.rate"), "  that is", items as f64 / took.as_secs_f64(), "pins/s");
    report.figure(&format!("state.{items}.import.memory"), "  its memory at most", peak as f64 / MB, "MB");
    let disk = size_of(&peer.folder.join("raft"));
    report.figure(&format!("state.{items}.disk"), "raft/ on disk", disk as f64 / MB, "MB");
    report.goal("at most 40 GB on disk", disk < 40_000_000_000, &format!("{:.2} GB", disk as f64 / 1e9));
    let yardstick = sqlite::copies(&peer.folder.join("raft/state.db")).await?;
    let what = "state.db by VACUUM INTO, copied and made durable";
    report.figure(&format!("state.{items}.copy"), what, yardstick.as_secs_f64(), "s");

    let process = peer.start(None);
    peer.ready().await;
    list(report, &peer, &process, items).await?;
    list_through_gateway(report, &peer, items).await?;
    let process = restart(report, &peer, process, items).await?;
    let joiner = Alone::prepare(&folder.join("peer1"), &secret, settings());
    join(report, &peer, &joiner, yardstick, items).await?;
    end(process, Signal::TERM).await
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
    let mut command = Command::new(Alone::program());
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
async fn list(report: &mut Report, peer: &Alone, process: &Child, items: u64) -> Result<(), Failed> {
    let pid = process.id().ok_or("no process")?;
    let before = resident_bytes(pid);
    forget_peak(pid)?;
    let mut rates = Vec::new();
    for _ in 0..LISTS {
        let started = Instant::now();
        let mut stream = peer.pins().list(ListCall::default()).await?.into_inner();
        let mut rows = 0;
        while let Some(reply) = timeout(PATIENCE, stream.message()).await?? {
            rows += reply.pins.len() as u64;
        }
        rates.push(rows as f64 / started.elapsed().as_secs_f64());
        report.goal("the list is whole", rows == items, &format!("{rows} rows"));
    }
    rates.sort_by(f64::total_cmp);
    let rate = rates[LISTS / 2];
    report.figure(&format!("state.{items}.list"), "consensus-svc's List of all", rate, "rows/s");
    report.goal("T8: 300,000 rows/s", rate >= 300_000.0, &format!("{rate:.0}"));
    let peak = peak_bytes(pid);
    let grown = peak.saturating_sub(before) as f64 / MB;
    report.goal("T8: less than 50 MB more while it is sent", grown < 50.0, &format!("{grown:.0} MB"));
    report.figure(&format!("state.{items}.memory"), "consensus-svc, at most", peak as f64 / MB, "MB");
    report.goal("T11: consensus-svc below 300 MB", peak < 300_000_000, &format!("{:.0} MB", peak as f64 / MB));
    Ok(())
}

/// The same as clients get it.
async fn list_through_gateway(report: &mut Report, peer: &Alone, items: u64) -> Result<(), Failed> {
    let mut command = Command::new(pinfold_tests::cluster::programs().path("api-gateway")?);
    command.arg("--config").arg(&peer.folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let gateway = command.kill_on_drop(true).spawn()?;
    let args = Args { folder: Some(peer.folder.clone()), loglevel: String::new(), debug: false };
    let mut client = pins_client(&File::load(&args)?.announce(Room::Gateway)?)?;
    let asked = Instant::now();
    let (started, mut stream) = loop {
        let started = Instant::now();
        match client.list(api::ListRequest::default()).await {
            Ok(stream) => break (started, stream.into_inner()),
            Err(error) if asked.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    };
    let mut rows = 0;
    while let Some(reply) = timeout(PATIENCE, stream.message()).await?? {
        rows += reply.pins.len() as u64;
    }
    let rate = rows as f64 / started.elapsed().as_secs_f64();
    report.figure(&format!("state.{items}.list.gateway"), "  the same through its gateway", rate, "rows/s");
    end(gateway, Signal::TERM).await
}

/// kill -9, and back.
async fn restart(report: &mut Report, peer: &Alone, process: Child, items: u64) -> Result<Child, Failed> {
    end(process, Signal::KILL).await?;
    let started = Instant::now();
    let process = peer.start(None);
    let took = first_write(peer).await? - started;
    report.figure(&format!("state.{items}.restart"), "kill -9, to the first accepted pin", took.as_secs_f64(), "s");
    let most = Duration::from_millis(500) + ELECTION_MAX;
    report.goal("T10: 0.5 s and an election", took < most, &format!("{took:.2?} of {most:.2?}"));
    Ok(process)
}

fn next_number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

async fn first_write(peer: &Alone) -> Result<Instant, Failed> {
    let started = Instant::now();
    loop {
        let call = PinCall { request: Some(pin(next_number())), request_key: Vec::new() };
        match peer.pins().pin(call).await {
            Ok(_) => return Ok(Instant::now()),
            Err(error) if started.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(POLL / 4).await,
        }
    }
}

/// The acknowledgements of a steady load: when each came, and how long it took.
type Acknowledged = Arc<Mutex<Vec<(Instant, Duration)>>>;

/// The second peer joins under a steady load.
async fn join(
    report: &mut Report,
    peer: &Alone,
    joiner: &Alone,
    yardstick: Duration,
    items: u64,
) -> Result<(), Failed> {
    report.section(&format!("A second peer joins the one with {items} pins, under {WRITES} writes a second"));
    let (quiet, busy) = (Acknowledged::default(), Acknowledged::default());
    timeout(ALONE, write(peer, &quiet)).await.err();
    let sent_before = snapshots(peer.log());
    let begun = Instant::now();
    let process = joiner.start(Some(peer));
    tokio::select! {
        () = joiner.ready() => {}
        () = write(peer, &busy) => return Err("the writers have ended".into()),
    }
    let took = begun.elapsed();
    report.figure(&format!("state.{items}.join"), "from its start to the joiner being ready", took.as_secs_f64(), "s");
    let most = 3 * yardstick;
    report.goal("T9: three times the copies", took <= most, &format!("{took:.2?} of {most:.2?}"));
    let sent = snapshots(peer.log()) - sent_before;
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
    let memory = process.id().map_or(0, resident_bytes) as f64 / MB;
    report.figure(&format!("state.{items}.join.memory"), "consensus-svc of the joiner", memory, "MB");
    let (mut here, mut there) = (digest(peer).await?, digest(joiner).await?);
    let asked = Instant::now();
    while here != there && asked.elapsed() < PATIENCE {
        tokio::time::sleep(POLL).await;
        (here, there) = (digest(peer).await?, digest(joiner).await?);
    }
    report.goal("both hold the same", here == there && here.0 >= items, &format!("{} and {} pins", here.0, there.0));
    end(process, Signal::TERM).await
}

/// Single pins at a steady rate, for ever.
async fn write(peer: &Alone, acknowledged: &Acknowledged) {
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (acknowledged, mut client) = (acknowledged.clone(), pins_over(peer.channel()));
        writers.spawn(async move {
            let mut beat = tokio::time::interval(Duration::from_secs(1) * WRITERS as u32 / WRITES as u32);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                beat.tick().await;
                let started = Instant::now();
                let call = PinCall { request: Some(pin(next_number())), request_key: Vec::new() };
                if client.pin(call).await.is_ok() {
                    let now = Instant::now();
                    acknowledged.lock().expect("not poisoned").push((now, now - started));
                }
            }
        });
    }
    while writers.join_next().await.is_some() {}
}

fn snapshots(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().matches("sending a snapshot").count()
}
