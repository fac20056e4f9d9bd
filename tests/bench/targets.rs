//! Single pins and batches over gRPC against what the disk can do, one peer against three, and a disk against memory: T1, T2,
//! T4, T5 and T7 (measured.md A.7), through the gateway as a user would.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ctl::local::cluster::Cluster;
use pinfold_common::tls::Room;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use crate::load::Outcome;
use crate::ours::{PATIENCE, batches, grpc, leader, single_pins, start_with};
use crate::report::Report;
use crate::rest::Failed;

const CLIENTS: [usize; 3] = [1, 64, 1024];
/// A file system in memory on any Linux.
const MEMORY: &str = "/dev/shm";

pub async fn run(report: &mut Report, folder: &Path, fdatasync: f64, seconds: u64) -> Result<(), Failed> {
    let counter = Arc::new(AtomicU64::new(1 << 52));
    let one = start_with(folder.join("targets1"), 1, Vec::new()).await?;
    grpc(report, &one.peers[0].api, 1, &CLIENTS, seconds, &counter).await?;
    batches(report, &one.peers[0].api, 1, seconds, &counter).await?;
    syncs(report, &one, seconds, &counter).await?;
    one.stop().await;
    let three = start_with(folder.join("targets3"), 3, Vec::new()).await?;
    let authority = three.peers[leader(&three).await].api.clone();
    grpc(report, &authority, 3, &CLIENTS, seconds, &counter).await?;
    batches(report, &authority, 3, seconds, &counter).await?;
    three.stop().await;
    memory(report, seconds, &counter).await?;

    report.section("Targets");
    let rate = |peers: u16, clients: usize| format!("grpc.pins.{peers}.{clients}");
    let get = |report: &Report, name: &str| report.get(name).unwrap_or(0.0);
    let share = get(report, &rate(1, 1)) / fdatasync;
    report.goal("T1: one peer, 1 client: 0.15 x the fdatasyncs of the disk", share >= 0.15, &format!("{share:.3}"));
    let share = get(report, &rate(1, 1024)) / fdatasync;
    report.goal("T2: one peer, 1,024 clients: 2 x the fdatasyncs", share >= 2.0, &format!("{share:.2}"));
    for (clients, wanted) in CLIENTS.into_iter().zip([0.5, 0.45, 0.55]) {
        let share = get(report, &rate(3, clients)) / get(report, &rate(1, clients)).max(1.0);
        let what = format!("T4: three peers, {clients} clients: {wanted} x of one");
        report.goal(&what, share >= wanted, &format!("{share:.2}"));
    }
    Ok(())
}

/// How often the disk is waited for, as strace sees it: once for an entry of the log, never for what is applied.
async fn syncs(report: &mut Report, cluster: &Cluster, seconds: u64, counter: &Arc<AtomicU64>) -> Result<(), Failed> {
    report.section("Syncs of consensus-svc, one peer, under strace");
    let pid = cluster.peers[0].service(Room::Consensus).and_then(|service| service.pid()).ok_or("no process")?;
    for (clients, most) in [(1, 1.1), (64, 0.2)] {
        let table = tempfile::NamedTempFile::new()?;
        let mut command = tokio::process::Command::new("strace");
        command.args(["-f", "-c", "-e", "trace=fsync,fdatasync", "-p", &pid.to_string(), "-o"]).arg(table.path());
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
        let Outcome { answered, .. } = single_pins(&cluster.peers[0].api, clients, seconds, counter).await?;
        let tracer = strace.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or("strace has ended")?;
        // Its table is written when it is told to end.
        kill_process(tracer, Signal::INT)?;
        timeout(PATIENCE, strace.wait()).await??;
        let text = std::fs::read_to_string(table.path())?;
        let count: f64 = text
            .lines()
            .filter(|line| line.ends_with("sync"))
            .filter_map(|line| line.split_whitespace().nth(3)?.parse::<f64>().ok())
            .sum();
        let each = count / (answered as f64).max(1.0);
        report.figure(&format!("syncs.{clients}"), &format!("{clients} clients, {answered} pins"), each, "syncs a pin");
        report.goal(&format!("T7: at most {most} syncs a pin"), each <= most && count > 0.0, &format!("{each:.2}"));
    }
    Ok(())
}

/// The same on a file system in memory: whether the disk is what one waits for.
async fn memory(report: &mut Report, seconds: u64, counter: &Arc<AtomicU64>) -> Result<(), Failed> {
    report.section("gRPC Pins.Pin, one peer, 64 clients: on this disk and in memory, in turn");
    let folders = [tempfile::tempdir()?, tempfile::tempdir_in(MEMORY)?];
    let mut rates = [0.0, 0.0];
    const TURNS: usize = 3;
    for turn in 0..TURNS {
        for (rate, folder) in rates.iter_mut().zip(&folders) {
            let cluster = start_with(folder.path().join(turn.to_string()), 1, Vec::new()).await?;
            *rate += single_pins(&cluster.peers[0].api, 64, seconds, counter).await?.rate() / TURNS as f64;
            cluster.stop().await;
        }
    }
    let [disk, memory] = rates;
    report.figure("memory.disk", "on the disk", disk, "pins/s");
    report.figure("memory.memory", "in memory", memory, "pins/s");
    let share = disk / memory.max(1.0);
    report.goal("T5: the disk gives 0.85 x of memory", share >= 0.85, &format!("{share:.2}"));
    Ok(())
}
