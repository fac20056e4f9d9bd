//! Single proposals and batches straight at consensus-svc, one peer against three, against what the disk can do, a disk
//! against memory, and etcd beside them: T1 to T5 and T7 (measured.md A.7) and the ratios to etcd. Everything that is
//! compared is measured in turn, several times; the medians are compared.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::disk::{self, Syncs};
use crate::etcd::{Etcd, Links};
use crate::load::Outcome;
use crate::ours::PATIENCE;
use crate::report::Report;
use crate::rest::Failed;
use crate::rooms::{BATCH, Rooms, batches, end, singles};
use crate::sqlite;

const CLIENTS: [usize; 3] = [1, 64, 1024];
const BATCH_CLIENTS: usize = 16;
/// How often each is measured.
const ROUNDS: usize = 3;
/// What differs by little is compared in more and shorter ones, each with the one beside it: the machine's own speed
/// changes within seconds.
const CLOSE_ROUNDS: usize = 15;
const CLOSE_SHARE: u32 = 4;
/// A file system in memory on any Linux.
const MEMORY: &str = "/dev/shm";
const SYNC_TIME: Duration = Duration::from_millis(300);
/// Rows of the yardstick of batches.
const UPSERTS: usize = 200_000;

/// etcd: what it does where its links are like ours, and where nothing is encrypted and anybody may ask. The goals are
/// against the first.
#[derive(Default)]
struct Yardsticks {
    secured: Option<Etcd>,
    plain: Option<Etcd>,
}

/// Who is measured.
struct Field {
    one: Rooms,
    three: Rooms,
    etcd: Yardsticks,
    counter: Arc<AtomicU64>,
    time: Duration,
}

pub async fn run(report: &mut Report, folder: &Path, seconds: u64) -> Result<(), Failed> {
    let folder = folder.join("proposals");
    let etcd = Yardsticks {
        secured: yardstick(&folder.join("secured"), Links::MutualTls).await,
        plain: yardstick(&folder.join("plain"), Links::Plain).await,
    };
    let mut field = Field {
        one: Rooms::start(&folder.join("one"), 1).await,
        three: Rooms::start(&folder.join("three"), 3).await,
        etcd,
        counter: Arc::new(AtomicU64::new(0)),
        time: Duration::from_secs(seconds),
    };
    for clients in CLIENTS {
        one_by_one(report, &folder, &field, clients).await?;
    }
    // Six members at rest have something to do all the same, and three peers need all of a small machine.
    drop(std::mem::take(&mut field.etcd));
    in_batches(report, &field).await;
    let Field { one, three, counter, time, etcd: _ } = field;
    drop(three);
    syncs(report, &one, time, &counter).await?;
    drop(one);
    upserts(report, &folder).await?;
    memory(report, &folder, time, &counter).await
}

/// One that does not start is no reason to measure nothing else.
async fn yardstick(folder: &Path, links: Links) -> Option<Etcd> {
    Etcd::start(folder, links).await.unwrap_or_else(|error| {
        println!("  etcd is not measured: {error}");
        None
    })
}

/// The round in the middle by its rate.
fn median(mut rounds: Vec<Outcome>) -> Outcome {
    rounds.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    rounds.swap_remove(rounds.len() / 2)
}

/// Rounds over those beside them.
struct Shares {
    least: f64,
    middle: f64,
    most: f64,
}

impl Shares {
    fn of(rounds: &[Outcome], beside: &[Outcome]) -> Shares {
        let mut shares: Vec<f64> =
            rounds.iter().zip(beside).map(|(round, beside)| round.rate() / beside.rate()).collect();
        shares.sort_by(f64::total_cmp);
        Shares { least: shares[0], middle: shares[shares.len() / 2], most: shares[shares.len() - 1] }
    }
}

impl std::fmt::Display for Shares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2}, the pairs of rounds {:.2} to {:.2}", self.middle, self.least, self.most)
    }
}

/// Prints one figure with its latencies; `items` in each answer.
fn figure(report: &mut Report, name: &str, who: &str, rounds: Vec<Outcome>, items: u64) -> (f64, f64) {
    let (least, most) = rounds.iter().fold((f64::MAX, 0_f64), |(least, most), round| {
        let rate = round.rate() * items as f64;
        (least.min(rate), most.max(rate))
    });
    let middle = median(rounds);
    let rate = middle.rate() * items as f64;
    report.figure(name, who, rate, "per s");
    let (p50, p99) = (middle.quantile_ms(0.5), middle.quantile_ms(0.99));
    println!("    {least:.0} to {most:.0}; p50 {p50:.2} ms, p99 {p99:.2} ms, {} not accepted", middle.failed);
    (rate, p50)
}

async fn one_by_one(report: &mut Report, folder: &Path, field: &Field, clients: usize) -> Result<(), Failed> {
    report.section(&format!(
        "Single proposals at the leader's consensus-svc, {clients} clients, {ROUNDS} rounds in turn"
    ));
    let (mut disk, mut one, mut three) = (Vec::new(), Vec::new(), Vec::new());
    let (mut puts, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        disk.push(disk::fdatasync(folder, SYNC_TIME)?);
        one.push(singles(field.one.leader(), clients, field.time, &field.counter).await);
        three.push(singles(field.three.leader(), clients, field.time, &field.counter).await);
        if let Some(etcd) = &field.etcd.secured {
            puts.push(etcd.puts(clients, field.time).await?);
        }
        if let Some(etcd) = &field.etcd.plain {
            plain.push(etcd.puts(clients, field.time).await?);
        }
    }
    disk.sort_by(|a: &Syncs, b| a.rate.total_cmp(&b.rate));
    let disk = &disk[ROUNDS / 2];
    report.figure(&format!("proposals.fdatasync.{clients}"), "the disk, fdatasyncs of one writer", disk.rate, "per s");
    let (one, one_p50) = figure(report, &format!("proposals.1.{clients}"), "one peer, pins", one, 1);
    let (three, _) = figure(report, &format!("proposals.3.{clients}"), "three peers, pins", three, 1);
    match clients {
        1 => {
            let share = one / disk.rate;
            report.goal("T1: one peer: 0.15 x the fdatasyncs of the disk", share >= 0.15, &format!("{share:.3}"));
            let times = one_p50 / disk.p50_ms;
            let detail = format!("{times:.1}, {one_p50:.2} ms over {:.3} ms", disk.p50_ms);
            report.goal("T1: its p50 at most 6 x that of the fdatasync", times <= 6.0, &detail);
        }
        1024 => {
            let share = one / disk.rate;
            report.goal("T2: one peer: 2 x the fdatasyncs of the disk", share >= 2.0, &format!("{share:.2}"));
        }
        _ => {}
    }
    let wanted = match clients {
        1 => 0.5,
        64 => 0.45,
        _ => 0.55,
    };
    let share = three / one;
    report.goal(&format!("T4: three peers: {wanted} x of one"), share >= wanted, &format!("{share:.2}"));
    if !puts.is_empty() {
        let (puts, _) =
            figure(report, &format!("etcd.puts.{clients}"), "etcd, three members, mutual TLS, puts", puts, 1);
        let ratio = three / puts;
        let wanted = if clients == 1 { 0.8 } else { 1.0 };
        report.goal(&format!("etcd: three peers: {wanted} x its puts"), ratio >= wanted, &format!("{ratio:.2}"));
    }
    if !plain.is_empty() {
        let name = format!("etcd.plain.puts.{clients}");
        let (plain, _) = figure(report, &name, "etcd, three members, nothing encrypted, puts", plain, 1);
        println!("    three peers of ours: {:.2} x", three / plain);
    }
    Ok(())
}

async fn in_batches(report: &mut Report, field: &Field) {
    report.section(&format!("Batches of {BATCH} from {BATCH_CLIENTS} clients, {CLOSE_ROUNDS} rounds in turn"));
    let (mut one, mut three) = (Vec::new(), Vec::new());
    let time = field.time / CLOSE_SHARE;
    for _ in 0..CLOSE_ROUNDS {
        one.push(batches(field.one.leader(), BATCH_CLIENTS, time, &field.counter).await);
        three.push(batches(field.three.leader(), BATCH_CLIENTS, time, &field.counter).await);
    }
    let shares = Shares::of(&three, &one);
    figure(report, "proposals.batch.1", "one peer, pins", one, BATCH);
    let (three, _) = figure(report, "proposals.batch.3", "three peers, pins", three, BATCH);
    report.goal("T4: batches on three peers: 0.6 x of one", shares.middle >= 0.6, &shares.to_string());
    let puts = CLIENTS.iter().filter_map(|clients| report.get(&format!("etcd.puts.{clients}")));
    let best = puts.fold(0.0, f64::max);
    if best > 0.0 {
        let ratio = three / best;
        report.goal("etcd: batches: 2 x its best, in pins", ratio >= 2.0, &format!("{ratio:.2}"));
    }
}

/// How often the disk is waited for, as strace sees it: once for what the log takes together, never for what is applied.
async fn syncs(report: &mut Report, one: &Rooms, time: Duration, counter: &Arc<AtomicU64>) -> Result<(), Failed> {
    report.section("Syncs of consensus-svc, one peer, under strace");
    // The state's write-ahead log, which may be full, is moved before strace slows that down.
    singles(one.leader(), 64, time, counter).await;
    let pid = one.processes.first().and_then(|process| process.id()).ok_or("no process")?;
    let raft = one.peers.first().map(|peer| peer.folder.join("raft")).ok_or("no peer")?;
    timeout(PATIENCE, at_rest(&raft.join("state.db"))).await??;
    let log = raft.join("log.db-wal");
    for (clients, most) in [(1, 1.1), (64, 0.2), (1024, 0.05)] {
        let table = tempfile::NamedTempFile::new()?;
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-e", "trace=fsync,fdatasync", "-p", &pid.to_string(), "-o"]).arg(table.path());
        // The last one is about transactions of the log alone, and the state's write-ahead log may be moved meanwhile.
        if clients == 1024 {
            command.arg("-P").arg(&log);
        }
        let strace =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
        let Ok(mut strace) = strace else {
            println!("  not measured: needs strace");
            return Ok(());
        };
        // Its first line says that it holds the process; the others, of further threads, fit into the pipe.
        let mut words = BufReader::new(strace.stderr.take().ok_or("strace has no words")?).lines();
        let first = timeout(PATIENCE, words.next_line()).await??.unwrap_or_default();
        if !first.contains("attached") {
            return Err(format!("strace: {first}").into());
        }
        let Outcome { answered, .. } = singles(one.leader(), clients, time, counter).await;
        // Its table is written when it is told to end.
        end(strace, Signal::INT).await?;
        let text = std::fs::read_to_string(table.path())?;
        let count: f64 = text
            .lines()
            .filter(|line| line.ends_with("sync"))
            .filter_map(|line| line.split_whitespace().nth(3)?.parse::<f64>().ok())
            .sum();
        let each = count / (answered as f64).max(1.0);
        report.figure(&format!("syncs.{clients}"), &format!("{clients} clients, {answered} pins"), each, "syncs a pin");
        let what = match clients {
            1024 => "T2: at least 20 proposals a transaction of the log".to_owned(),
            _ => format!("T7: at most {most} syncs a pin"),
        };
        report.goal(&what, each <= most && count > 0.0, &format!("{each:.3}"));
    }
    Ok(())
}

/// Until nobody has written to the file for a while.
async fn at_rest(file: &Path) -> Result<(), Failed> {
    const QUIET: Duration = Duration::from_secs(1);
    while std::fs::metadata(file)?.modified()?.elapsed().unwrap_or_default() < QUIET {
        tokio::time::sleep(QUIET / 10).await;
    }
    Ok(())
}

/// What SQLite makes of the same rows in the same tables, alone and without waiting for the disk.
async fn upserts(report: &mut Report, folder: &Path) -> Result<(), Failed> {
    report.section("The same rows into the same tables, by SQLite alone, nothing synced");
    let peers = Rooms::start(&folder.join("empty"), 1).await.stop().await?;
    let rate = sqlite::upserts(&peers[0].folder.join("raft/state.db"), UPSERTS).await?;
    report.figure("sqlite.upserts", &format!("{UPSERTS} rows, 512 a transaction"), rate, "rows/s");
    let share = report.get("proposals.batch.1").unwrap_or(0.0) / rate;
    report.goal("T3: batches on one peer: 0.5 x of it", share >= 0.5, &format!("{share:.2}"));
    Ok(())
}

/// The same on a file system in memory: whether the disk is what one waits for, once the write-ahead logs have their size.
/// Those of a new peer grow first, and to sync a file that has grown takes the file system's journal too.
async fn memory(report: &mut Report, folder: &Path, time: Duration, counter: &Arc<AtomicU64>) -> Result<(), Failed> {
    report.section(&format!("One peer on this disk, another in memory, {CLOSE_ROUNDS} rounds in turn"));
    let folders = [tempfile::tempdir_in(folder)?, tempfile::tempdir_in(MEMORY)?];
    let mut peers = Vec::new();
    for folder in &folders {
        let rooms = Rooms::start(folder.path(), 1).await;
        batches(rooms.leader(), BATCH_CLIENTS, time, counter).await;
        peers.push(rooms);
    }
    for clients in CLIENTS.into_iter().filter(|clients| *clients >= 64) {
        let mut rounds = [Vec::new(), Vec::new()];
        for _ in 0..CLOSE_ROUNDS {
            for (rounds, rooms) in rounds.iter_mut().zip(&peers) {
                rounds.push(singles(rooms.leader(), clients, time / CLOSE_SHARE, counter).await);
            }
        }
        let [disk, memory] = rounds;
        let shares = Shares::of(&disk, &memory);
        figure(report, &format!("memory.disk.{clients}"), &format!("{clients} clients, on the disk, pins"), disk, 1);
        figure(report, &format!("memory.memory.{clients}"), &format!("{clients} clients, in memory, pins"), memory, 1);
        report.goal(
            &format!("T5: {clients} clients: the disk gives 0.85 x of memory"),
            shares.middle >= 0.85,
            &shares.to_string(),
        );
    }
    for rooms in peers {
        rooms.stop().await?;
    }
    Ok(())
}
