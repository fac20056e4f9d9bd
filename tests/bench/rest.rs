//! The REST part, against any cluster of the API: accepted pins per second, lists, status, adds.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use pinfold_tests::content;

use crate::Arguments;
use crate::load::{Http, closed_loop};
use crate::machine::resident_bytes;
use crate::report::Report;

/// The original's Raft column (measured.md C): clients, and accepted pins per second.
const ORIGINAL_PINS: [(usize, f64); 4] = [(1, 253.0), (16, 912.0), (64, 1_600.0), (256, 2_081.0)];

pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// A CID that no other run of this process makes.
pub fn fresh_cid(number: u64) -> String {
    static RUN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let run = RUN.get_or_init(rand::random);
    content::identity_cid(&format!("{run:016x}{number}")).to_string()
}

pub async fn run(report: &mut Report, api: &str, arguments: &Arguments) -> Result<(), Failed> {
    let authority = api.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let version = Http::new(&authority).send("GET", "/version").await;
    if version.is_none_or(|(status, _, _)| status != 200) {
        return Err(format!("{api}/version does not answer: is a cluster running there?").into());
    }
    let folder = tempfile::tempdir()?;
    crate::disk::fdatasync_rate(report, folder.path(), Duration::from_secs(1))?;
    pins(report, "3", &authority, arguments).await;
    fill(&authority, arguments.items).await?;
    lists(report, &authority).await;
    if !arguments.pids.is_empty() {
        let memory: u64 = arguments.pids.iter().copied().map(resident_bytes).sum();
        report.figure("memory.original", "memory of the peer's services", memory as f64, "bytes");
    }
    add(report, &authority, arguments.add_mib).await?;
    remove_all(&authority).await;
    Ok(())
}

/// Accepted pins per second by number of clients.
pub async fn pins(report: &mut Report, peers: &str, authority: &str, arguments: &Arguments) {
    report.section(&format!("REST POST /pins/{{cid}}, {peers} peers, success is on a majority's disks"));
    let counter = Arc::new(AtomicU64::new(rand::random::<u32>().into()));
    for &clients in &arguments.clients {
        let connections: Arc<Vec<Http>> = Arc::new((0..clients).map(|_| Http::new(authority)).collect());
        let time = Duration::from_secs(arguments.seconds);
        let outcome = closed_loop(clients, time, &counter, move |client, number| {
            let connections = connections.clone();
            async move {
                let path = format!("/pins/{}", fresh_cid(number));
                connections[client].send("POST", &path).await.is_some_and(|(status, _, _)| status == 200)
            }
        })
        .await;
        let name = format!("rest.pins.{peers}.{clients}");
        report.figure(&name, &format!("{clients} clients"), outcome.rate(), "pins/s");
        println!(
            "    p50 {:.1} ms, p99 {:.1} ms, {} not accepted",
            outcome.quantile_ms(0.5),
            outcome.quantile_ms(0.99),
            outcome.failed
        );
        let original = ORIGINAL_PINS.iter().find(|(of, _)| *of == clients);
        if let Some((_, original)) = original
            && peers == "3"
            && report.is_ours()
        {
            let (reference, source) = report.reference(&name, *original);
            let detail = format!("{:.0} against {reference:.0} ({source})", outcome.rate());
            report.goal(&format!("3 x the original at {clients} clients"), outcome.rate() >= 3.0 * reference, &detail);
        }
    }
}

/// Brings the pinset to at least `items`.
pub async fn fill(authority: &str, items: usize) -> Result<(), Failed> {
    let have = Http::new(authority).send("GET", "/allocations").await.map_or(0, |(_, _, lines)| lines as usize);
    let todo = items.saturating_sub(have) as u64;
    let done = Arc::new(AtomicU64::new(0));
    let base: u64 = 1 << 40;
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (done, http) = (done.clone(), Http::new(authority));
            tokio::spawn(async move {
                loop {
                    let number = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= todo {
                        return;
                    }
                    while http.send("POST", &format!("/pins/{}", fresh_cid(base + number))).await.is_none() {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// Lists and status of the pinset as it is.
pub async fn lists(report: &mut Report, authority: &str) {
    report.section("Lists and status, the pinset as it is now");
    let http = Http::new(authority);
    for (name, what, path) in [
        ("rest.list", "GET /allocations", "/allocations"),
        ("rest.status_all", "GET /pins, all peers", "/pins"),
        ("rest.status_local", "GET /pins?local=true", "/pins?local=true"),
    ] {
        let started = Instant::now();
        let Some((status, bytes, lines)) = http.send("GET", path).await else {
            println!("  {what}: no answer");
            continue;
        };
        let seconds = started.elapsed().as_secs_f64();
        report.figure(
            name,
            &format!("{what}: {lines} rows, {} MB, status {status}", bytes / 1_000_000),
            lines as f64 / seconds,
            "rows/s",
        );
    }
    for (name, path) in [("rest.filter_error", "/pins?filter=error")] {
        let started = Instant::now();
        let answer = http.send("GET", path).await;
        let millis = started.elapsed().as_secs_f64() * 1000.0;
        report.figure(name, &format!("GET {path}: {} rows", answer.map_or(0, |(_, _, lines)| lines)), millis, "ms");
    }
    let cid = fresh_cid((1 << 40) + 1);
    for clients in [1, 16] {
        let counter = Arc::new(AtomicU64::new(0));
        let connections: Arc<Vec<Http>> = Arc::new((0..clients).map(|_| Http::new(authority)).collect());
        let path = format!("/pins/{cid}");
        let outcome = closed_loop(clients, Duration::from_secs(2), &counter, move |client, _| {
            let (connections, path) = (connections.clone(), path.clone());
            async move { connections[client].send("GET", &path).await.is_some_and(|(status, _, _)| status == 200) }
        })
        .await;
        let what = format!("GET /pins/{{cid}}, {clients} clients, p50 {:.2} ms", outcome.quantile_ms(0.5));
        report.figure(&format!("rest.status_one.{clients}"), &what, outcome.rate(), "per s");
    }
}

/// A file through the cluster, CIDv1 with raw leaves, to one and to all peers.
pub async fn add(report: &mut Report, authority: &str, mib: usize) -> Result<(), Failed> {
    report.section(&format!("POST /add of {mib} MiB, CIDv1 with raw leaves"));
    let client = reqwest::Client::builder().timeout(Duration::from_secs(600)).build()?;
    for (name, replication) in [("rest.add.1", 1), ("rest.add.3", 3)] {
        let data = content::bytes(rand::random(), mib << 20);
        let part = reqwest::multipart::Part::bytes(data).file_name("bench.bin");
        let form = reqwest::multipart::Form::new().part("file", part);
        let url = format!("http://{authority}/add?cid-version=1&replication={replication}");
        let started = Instant::now();
        let answer = client.post(url).multipart(form).send().await?.text().await?;
        let seconds = started.elapsed().as_secs_f64();
        if !answer.contains("\"cid\"") {
            return Err(format!("add: {answer}").into());
        }
        report.figure(name, &format!("to {replication} peers"), mib as f64 * 1.048_576 / seconds, "MB/s");
    }
    Ok(())
}

/// Leaves a foreign cluster as it was found, but for its own pins.
async fn remove_all(authority: &str) {
    let Ok(response) = reqwest::get(format!("http://{authority}/allocations")).await else { return };
    let Ok(text) = response.text().await else { return };
    let cids: Vec<String> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|pin| pin.get("cid").and_then(|cid| cid.as_str()).map(str::to_owned))
        .filter(|cid| is_ours(cid))
        .collect();
    let shared = Arc::new(cids);
    let tasks: Vec<_> = (0..32)
        .map(|lane| {
            let (cids, http) = (shared.clone(), Http::new(authority));
            tokio::spawn(async move {
                for cid in cids.iter().skip(lane).step_by(32) {
                    let _ = http.send("DELETE", &format!("/pins/{cid}")).await;
                }
            })
        })
        .collect();
    for task in tasks {
        let _ = task.await;
    }
}

/// Whether this run made the CID: its content begins with the run's number.
fn is_ours(cid: &str) -> bool {
    let (Ok(own), Ok(parsed)) = (pinfold_common::ids::parse_cid(&fresh_cid(0)), pinfold_common::ids::parse_cid(cid))
    else {
        return false;
    };
    let (own, digest) = (own.hash().digest(), parsed.hash().digest());
    digest.len() >= 16 && digest[..16] == own[..16]
}
