//! Leaders that are killed or stopped, everything killed at once: how long nobody can write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ctl::local::cluster::Cluster;
use pinfold_common::tls::Room;

use crate::load::{Http, closed_loop};
use crate::ours::{PATIENCE, leader};
use crate::report::Report;
use crate::rest::{Failed, fresh_cid};

const KILLS: usize = 20;
/// Raft's default (protocols.md 11): the longest time before somebody stands for election.
pub const ELECTION_MAX: Duration = Duration::from_millis(450);

/// How the leader is lost.
#[derive(Clone, Copy)]
pub enum Loss {
    Killed,
    /// It hands over first.
    Stopped,
}

/// The leader's consensus ends under 16 clients at the others: the longest time without an accepted pin.
pub async fn gap(report: &mut Report, cluster: &Cluster, loss: Loss) -> Result<(), Failed> {
    let (title, name, goal, most, first) = match loss {
        Loss::Killed => ("Leader killed under load", "gap", "a gap below a second", Duration::from_secs(1), 1 << 46),
        Loss::Stopped => {
            ("Leader stopped under load", "gap.stopped", "a gap below 100 ms", Duration::from_millis(100), 3 << 45)
        }
    };
    report.section(title);
    let leader = leader(cluster).await;
    let others: Vec<String> = cluster
        .peers
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != leader)
        .map(|(_, peer)| peer.api.clone())
        .collect();
    let connections: Arc<Vec<Http>> =
        Arc::new((0..16).map(|client| Http::new(&others[client % others.len()])).collect());
    let accepted = Arc::new(std::sync::Mutex::new(Vec::new()));
    let counter = Arc::new(AtomicU64::new(first));
    let (seen, load) = (accepted.clone(), counter.clone());
    let load = tokio::spawn(async move {
        closed_loop(16, Duration::from_secs(8), &load, move |client, number| {
            let (connections, seen) = (connections.clone(), seen.clone());
            async move {
                let path = format!("/pins/{}?replication-min=1&replication-max=2", fresh_cid(number));
                let answer = connections[client].send("POST", &path).await;
                let well = answer.is_some_and(|(status, _, _)| status == 200);
                if well {
                    seen.lock().expect("not poisoned").push(Instant::now());
                }
                well
            }
        })
        .await
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let service = cluster.peers[leader].service(Room::Consensus).ok_or("no consensus service")?;
    match loss {
        Loss::Killed => service.kill_and_hold().await,
        Loss::Stopped => service.stop().await,
    }
    load.await?;
    service.resume().await;
    cluster.wait_ready(PATIENCE, |_, _| {}).await?;
    let times = accepted.lock().expect("not poisoned").clone();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(PATIENCE);
    report.figure(name, "longest time without an accepted pin", longest.as_secs_f64(), "s");
    report.goal(goal, longest < most, &format!("{longest:.2?}"));
    Ok(())
}

/// kill -9 of whoever leads, again and again: each time until the next accepted pin.
pub async fn kills(report: &mut Report, cluster: &Cluster) -> Result<(), Failed> {
    report.section(&format!("Leader killed {KILLS} times"));
    let mut times = Vec::new();
    for _ in 0..KILLS {
        times.push(kill_leader(cluster).await?);
    }
    times.sort_unstable();
    let (median, worst) = (times[KILLS / 2], times[KILLS - 1]);
    report.figure("kills.median", "to the next accepted pin, median", median.as_secs_f64(), "s");
    report.figure("kills.worst", "  worst", worst.as_secs_f64(), "s");
    let most = 2 * ELECTION_MAX + Duration::from_millis(100);
    report.goal("T10: two elections and 100 ms", median <= most, &format!("{median:.2?} of {most:.2?}"));
    Ok(())
}

/// kill -9 of the leader's consensus-svc: the time to the next accepted pin at another peer. All are well again afterwards.
pub async fn kill_leader(cluster: &Cluster) -> Result<Duration, Failed> {
    let leader = leader(cluster).await;
    let service = cluster.peers[leader].service(Room::Consensus).ok_or("no consensus service")?;
    let other = &cluster.peers[(leader + 1) % cluster.peers.len()];
    let killed = Instant::now();
    service.kill_and_hold().await;
    let gap = write_until_accepted(&other.api).await - killed;
    service.resume().await;
    cluster.wait_ready(PATIENCE, |_, _| {}).await?;
    Ok(gap)
}

/// kill -9 of everything, then the time until a peer gives the full list again.
pub async fn restart(report: &mut Report, cluster: &Cluster) -> Result<(), Failed> {
    report.section("kill -9 of all services of all peers, and back");
    let authority = cluster.peers[0].api.clone();
    let before = Http::new(&authority).send("GET", "/allocations").await.ok_or("no list")?.2;
    futures::future::join_all(cluster.peers.iter().map(|peer| peer.kill())).await;
    let started = Instant::now();
    futures::future::join_all(cluster.peers.iter().map(|peer| peer.resume())).await;
    let written = write_until_accepted(&authority).await;
    report.figure("restart.write", "to the first accepted pin", (written - started).as_secs_f64(), "s");
    let after = Http::new(&authority).send("GET", "/allocations").await.ok_or("no list")?.2;
    let took = started.elapsed();
    report.figure("restart.list", &format!("to the full list of {after}"), took.as_secs_f64(), "s");
    report.goal(
        "restart within a second",
        (written - started) < Duration::from_secs(1),
        &format!("{:.2?}", written - started),
    );
    report.goal("nothing lost", after > before, &format!("{before} before, {after} after one more"));
    Ok(())
}

pub async fn write_until_accepted(authority: &str) -> Instant {
    static NUMBER: AtomicU64 = AtomicU64::new(1 << 47);
    let started = Instant::now();
    loop {
        let path = format!("/pins/{}", fresh_cid(NUMBER.fetch_add(1, Ordering::Relaxed)));
        let answer = Http::new(authority).send("POST", &path).await;
        if answer.is_some_and(|(status, _, _)| status == 200) || started.elapsed() > PATIENCE {
            return Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
