//! What must move nothing: a peer that flaps, clocks that jump, observers that get hardly any processor time. A minute of
//! each with real processes; long histories of the first are in `tests/simulation`.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ctl::local::Programs;
use ctl::local::cluster::{Cluster, Ipfs};
use ctl::local::peer::{Peer, ROOMS};
use pinfold_proto::types::peer_repin::State;
use pinfold_tests::process;
use rustix::process::Signal;

use super::cluster::{all_pinned, fill, spread, status};
use super::failure::Failing;
use super::settings;
use crate::ours::{leader, start_of, start_with};
use crate::report::Report;
use crate::rest::Failed;

const RUN: Duration = Duration::from_secs(60);
const ITEMS: usize = 2000;
const PEERS: u16 = 5;
/// Of the flapping peer: half of each round it stands still, which is less than the grace.
const FLAP: Duration = Duration::from_secs(20);
const FLAP_GRACE: &str = "15s";
/// Of each round of a starved process it may run a twentieth.
const ROUND: Duration = Duration::from_millis(400);
const SHARE: u32 = 20;
const BETWEEN_JUMPS: Duration = Duration::from_secs(5);
const HOUR: i64 = 3600;
const LOOK: Duration = Duration::from_millis(200);

pub async fn run(report: &mut Report, name: &str, folder: &Path) -> Result<(), Failed> {
    match name {
        "flapping" => flapping(report, folder).await,
        "clocks" => clocks(report, folder).await,
        _ => starved(report, folder).await,
    }
}

/// What was seen while `trouble` went on, in a cluster that is otherwise well.
struct Calm {
    moved: usize,
    /// Looks at which somebody was away, or doubted.
    away: usize,
    doubted: usize,
    looks: usize,
}

async fn watch(cluster: &Cluster, at: usize, trouble: impl Future<Output = Failed>) -> Result<Calm, Failed> {
    fill(cluster, "calm", ITEMS, (2, 3), |_| Vec::new()).await?;
    all_pinned(cluster).await?;
    let failing = Failing::new(cluster, at).await?;
    let look = async {
        let mut calm = Calm { moved: 0, away: 0, doubted: 0, looks: 0 };
        let started = Instant::now();
        while started.elapsed() < RUN {
            tokio::time::sleep(LOOK).await;
            let Some(now) = status(cluster, at).await else { continue };
            let is = |state: State| now.peers.iter().any(|peer| peer.state() == state);
            calm.looks += 1;
            calm.away += usize::from(is(State::Away));
            calm.doubted += usize::from(is(State::Doubted));
        }
        calm.moved = failing.witness.seen().moved;
        calm
    };
    tokio::select! {
        calm = look => Ok(calm),
        failed = trouble => Err(failed),
    }
}

impl Calm {
    fn check(&self, report: &mut Report, allowed: usize) {
        let Calm { moved, away, doubted, looks } = self;
        report.goal("nobody is declared away", *away == 0, &format!("doubted in {doubted} of {looks} looks"));
        report.goal("0.1 % of its pins move at most", *moved <= allowed, &format!("{moved} moved"));
    }
}

fn signal(peer: &Peer, signal: Signal) -> Result<(), Failed> {
    for service in peer.services() {
        service.signal(signal)?;
    }
    Ok(())
}

/// Whether the kernel shows all processes of the peer as stopped.
fn is_stopped(peer: &Peer) -> bool {
    peer.services().filter_map(|service| service.pid()).all(process::is_stopped)
}

async fn flapping(report: &mut Report, folder: &Path) -> Result<(), Failed> {
    report.section(&format!(
        "5 peers, {ITEMS} pins; a peer stands still for half of each {FLAP:?}, for a minute (grace {FLAP_GRACE})"
    ));
    let cluster = start_with(folder.to_owned(), PEERS, settings(FLAP_GRACE)).await?;
    let at = leader(&cluster).await;
    let peer = &cluster.peers[(at + 1) % usize::from(PEERS)];
    let flaps = AtomicUsize::new(0);
    let flap = async {
        loop {
            tokio::time::sleep(FLAP / 2).await;
            if let Err(failed) = signal(peer, Signal::STOP) {
                return failed;
            }
            tokio::time::sleep(FLAP / 2).await;
            flaps.fetch_add(usize::from(is_stopped(peer)), Ordering::Relaxed);
            if let Err(failed) = signal(peer, Signal::CONT) {
                return failed;
            }
        }
    };
    let calm = watch(&cluster, at, flap).await?;
    signal(peer, Signal::CONT)?;
    let own = spread(&cluster, &super::pinset(&cluster, at).await?)[(at + 1) % usize::from(PEERS)];
    report.goal("it was stopped, and doubted", calm.doubted > 0, &format!("{} times", flaps.into_inner()));
    calm.check(report, own / 1000);
    cluster.stop().await;
    Ok(())
}

/// The wall clock of each peer in turn goes an hour ahead or back, at once and for all its services; the time that passes is
/// measured by another clock, and stays.
async fn clocks(report: &mut Report, folder: &Path) -> Result<(), Failed> {
    report.section(&format!("5 peers, {ITEMS} pins; every 5 s one peer's clock jumps an hour ahead or back"));
    const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    if !Path::new(LIBRARY).is_file() {
        println!("  not measured: needs libfaketime (Debian: libfaketime)");
        return Ok(());
    }
    let wrappers = folder.with_extension("programs");
    wrap(&wrappers, LIBRARY)?;
    let programs = Programs::in_folder(wrappers.clone());
    let ipfs = Ipfs::Embedded { gateways: Vec::new() };
    let cluster = start_of(programs, folder.to_owned(), PEERS, ipfs, settings("5s")).await?;
    let at = leader(&cluster).await;
    let off = AtomicUsize::new(0);
    let jump = async {
        for number in 0_usize.. {
            let peer = &cluster.peers[number % usize::from(PEERS)];
            let hours = if number.is_multiple_of(2) { HOUR } else { -HOUR };
            if let Err(error) = std::fs::write(peer.folder.join("faketime"), format!("{hours:+}\n")) {
                return error.into();
            }
            tokio::time::sleep(BETWEEN_JUMPS).await;
            off.fetch_add(usize::from(is_off(&peer.api).await), Ordering::Relaxed);
        }
        unreachable!("numbers do not end")
    };
    let calm = watch(&cluster, at, jump).await?;
    let off = off.into_inner();
    report.goal("clocks were wrong", off >= 5, &format!("{off} jumps showed in the answers of the peer"));
    calm.check(report, 0);
    cluster.stop().await;
    let _ = std::fs::remove_dir_all(wrappers);
    Ok(())
}

/// Programs that start the real ones with a clock of their own: what `faketime` in the peer's folder says, read at each look.
fn wrap(folder: &Path, library: &str) -> Result<(), Failed> {
    std::fs::create_dir_all(folder)?;
    // `--config <folder>` comes first.
    let through = format!(
        "[ -e \"$2/faketime\" ] || echo +0 >\"$2/faketime\"\nexec env FAKETIME_TIMESTAMP_FILE=\"$2/faketime\" \
         FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 LD_PRELOAD={library}"
    );
    let programs = pinfold_tests::cluster::programs();
    for room in ROOMS {
        process::wrap(folder, &programs.path(room.name())?, &through)?;
    }
    Ok(())
}

/// Whether the peer's own clock, as its answers show it, is half an hour off or more.
async fn is_off(authority: &str) -> bool {
    let Ok(answer) = reqwest::get(format!("http://{authority}/id")).await else { return false };
    let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
    let Some(date) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else { return false };
    let now = std::time::SystemTime::now();
    let off = now.duration_since(date).or_else(|_| date.duration_since(now)).unwrap_or_default();
    off.as_secs() * 2 > HOUR.unsigned_abs()
}

/// All processes of the leader and of one more peer run a twentieth of the time.
async fn starved(report: &mut Report, folder: &Path) -> Result<(), Failed> {
    report
        .section(&format!("5 peers, {ITEMS} pins; the leader and one more have 5 % of the time to run, for a minute"));
    let cluster = start_with(folder.to_owned(), PEERS, settings("5s")).await?;
    let first = leader(&cluster).await;
    let peer = |step: usize| &cluster.peers[(first + step) % usize::from(PEERS)];
    let stops = AtomicUsize::new(0);
    let starve = async {
        loop {
            for starved in [peer(0), peer(1)] {
                if let Err(failed) = signal(starved, Signal::STOP) {
                    return failed;
                }
            }
            tokio::time::sleep(ROUND - ROUND / SHARE).await;
            stops.fetch_add(usize::from(is_stopped(peer(0)) && is_stopped(peer(1))), Ordering::Relaxed);
            for starved in [peer(0), peer(1)] {
                if let Err(failed) = signal(starved, Signal::CONT) {
                    return failed;
                }
            }
            tokio::time::sleep(ROUND / SHARE).await;
        }
    };
    let calm = watch(&cluster, (first + 2) % usize::from(PEERS), starve).await?;
    signal(peer(0), Signal::CONT)?;
    signal(peer(1), Signal::CONT)?;
    let stops = stops.into_inner();
    report.goal("they stood still 95 % of the time", stops > 100, &format!("{stops} rounds"));
    calm.check(report, 0);
    cluster.stop().await;
    Ok(())
}
