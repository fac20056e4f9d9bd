//! `make bench-failover`: peers killed hard under a full pinset, and what became of every item. Identity CIDs on embedded
//! nodes: no block is fetched or stored for them, so that our own work is measured, from the first missed ping to the
//! confirmed copy. And what must move nothing at all (`calm`).

mod calm;
mod cluster;
mod failure;
mod witness;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ctl::local::cluster::Cluster;
use pinfold_common::config::Overrides;
use pinfold_common::tls::Room;
use serde_json::json;

use cluster::{all_pinned, all_pinned_at, fill, pinset, spread, status, until};
use failure::{Failing, is_away};

use crate::ours::{current_leader, leader, single_pins, start_with};
use crate::report::Report;
use crate::rest::Failed;

/// Only a defect takes longer.
const PATIENCE: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(100);
const BATCH: usize = 500;
const CLIENTS: usize = 4;
const RATE: u32 = 1000;
/// What `repin.pins_per_second` is where nobody sets it.
const DEFAULT_RATE: u32 = 50;
/// Between two kills of whoever leads.
const BETWEEN_LEADERS: Duration = Duration::from_secs(5);
/// So long there is no majority: several times the grace, so that whoever moved without one would be seen.
const WITHOUT_QUORUM: Duration = Duration::from_secs(20);

/// Clients that pin one item after the other while a repair runs, and for so long.
const PEOPLE: usize = 4;
const PEOPLE_SECONDS: u64 = 8;

/// The names of `--failover`.
pub const RUNS: [&str; 11] = [
    "five",
    "seven",
    "foreground",
    "stepwise",
    "leaders",
    "quorum",
    "growth",
    "million",
    "flapping",
    "clocks",
    "starved",
];

pub async fn run(report: &mut Report, which: &[String], items: usize) -> Result<(), Failed> {
    report.mark_ours();
    let folder = tempfile::Builder::new().prefix("pinfold-failover-").tempdir()?;
    for name in RUNS.into_iter().filter(|name| which.is_empty() || which.iter().any(|wanted| wanted == name)) {
        let folder = folder.path().join(name);
        match name {
            "five" => five(report, &folder).await?,
            "seven" => seven(report, &folder, items).await?,
            "foreground" => {
                foreground(report, &folder.join("default"), DEFAULT_RATE, 2_000).await?;
                foreground(report, &folder.join("fast"), RATE, 40_000).await?;
            }
            "stepwise" => stepwise(report, &folder, items).await?,
            "leaders" => leaders(report, &folder, items).await?,
            "quorum" => quorum(report, &folder, items).await?,
            "growth" => growth(report, &folder, items).await?,
            "million" => growth(report, &folder, 10 * items).await?,
            _ => calm::run(report, name, &folder).await?,
        }
        // A million items and their nodes are some gigabytes.
        let _ = std::fs::remove_dir_all(&folder);
    }
    Ok(())
}

fn settings(grace: &str) -> Overrides {
    vec![
        ("cluster.monitor_ping_interval", json!("2s")),
        ("repin.grace", json!(grace)),
        ("repin.pins_per_second", json!(RATE)),
        ("repin.max_unconfirmed_per_peer", json!(1_000_000)),
    ]
}

/// The run that the original fails: two of five at once, the leader among them, 600 pins with two copies.
async fn five(report: &mut Report, folder: &Path) -> Result<(), Failed> {
    const PINS: usize = 600;
    let cluster = start_with(folder.to_owned(), 5, settings("5s")).await?;
    report.section("5 peers, 600 pins with two copies; two killed at once, the leader among them");
    fill(&cluster, "five", PINS, (2, 2), |_| Vec::new()).await?;
    let spread = spread(&cluster, &pinset(&cluster, 0).await?);
    let even = spread.iter().all(|count| (216..=264).contains(count));
    report.goal("each peer has 240 ± 10 % of them", even, &format!("{spread:?}"));
    all_pinned(&cluster).await?;
    let leader = leader(&cluster).await;
    let mut failing = Failing::new(&cluster, (leader + 2) % 5).await?;
    failing.kill(&[leader, (leader + 1) % 5]).await;
    failing.repaired().await?.report(report, "five");
    cluster.stop().await;
    Ok(())
}

/// Two of five at once, not the leader: what single pins of people take while all is moved that those held, and when that is
/// over, on the same three peers.
async fn foreground(report: &mut Report, folder: &Path, rate: u32, pins: usize) -> Result<(), Failed> {
    let mut settings = settings("0s");
    settings.retain(|(key, _)| *key != "repin.pins_per_second");
    settings.push(("repin.pins_per_second", json!(rate)));
    let cluster = start_with(folder.to_owned(), 5, settings).await?;
    report.section(&format!(
        "5 peers, {pins} pins with two copies; two killed at once, {rate} moves a second, and {PEOPLE} people go on pinning"
    ));
    fill(&cluster, "foreground", pins, (2, 2), |_| Vec::new()).await?;
    all_pinned(&cluster).await?;
    let leader = leader(&cluster).await;
    let (at, dead) = ((leader + 1) % 5, [(leader + 2) % 5, (leader + 3) % 5]);
    let counter = Arc::new(AtomicU64::new(0));
    let people = || single_pins(&cluster.peers[at].api, PEOPLE, PEOPLE_SECONDS, &counter);
    futures::future::join_all(dead.map(|index| cluster.peers[index].kill())).await;
    let begun = until("the repair runs", || async { status(&cluster, at).await.filter(|now| now.moved > 0) }).await?;
    let during = people().await?;
    let now = status(&cluster, at).await.ok_or("no status")?;
    let moves = (now.moved - begun.moved) as f64 / PEOPLE_SECONDS as f64;
    report.figure(&format!("foreground.{rate}.moves"), "moved meanwhile", moves, "/s");
    report.goal(
        "it moves all the while, at half the rate at least",
        moves >= f64::from(rate) / 2.0 && now.under_replicated > 0,
        &format!("{moves:.0}/s, {} left", now.under_replicated),
    );
    until("all is repaired", || async {
        status(&cluster, at).await.filter(|now| now.under_replicated == 0 && now.unconfirmed == 0)
    })
    .await?;
    all_pinned_at(&cluster, &(0..5).filter(|index| !dead.contains(index)).collect::<Vec<_>>()).await?;
    let after = people().await?;
    for (name, what, share) in [("p50", "median", 0.5), ("p99", "99 of 100", 0.99)] {
        let (during, after) = (during.quantile_ms(share), after.quantile_ms(share));
        report.figure(
            &format!("foreground.{rate}.{name}"),
            &format!("single pins while it moves, {what}"),
            during,
            "ms",
        );
        report.figure(
            &format!("foreground.{rate}.{name}.after"),
            &format!("the same when it is over, {what}"),
            after,
            "ms",
        );
        let ratio = during / after;
        if rate == DEFAULT_RATE {
            report.goal(&format!("at most twice that without moves, {what}"), ratio <= 2.0, &format!("{ratio:.2}"));
        } else {
            report.figure(&format!("foreground.{rate}.{name}.ratio"), "the one over the other", ratio, "x");
        }
    }
    report.goal(
        "all of them are accepted",
        during.failed + after.failed == 0,
        &format!("{} and {} are not", during.failed, after.failed),
    );
    cluster.stop().await;
    Ok(())
}

/// Seven peers with two to three copies of each item, and who leads them.
async fn seven_peers(folder: &Path, items: usize) -> Result<(Cluster, usize), Failed> {
    let cluster = start_with(folder.to_owned(), 7, settings("5s")).await?;
    fill(&cluster, "seven", items, (2, 3), |_| Vec::new()).await?;
    all_pinned(&cluster).await?;
    let leader = leader(&cluster).await;
    Ok((cluster, leader))
}

fn title(items: usize, what: &str) -> String {
    format!("7 peers, {items} pins with two to three copies; {what}")
}

/// Three of seven at once, the leader among them.
async fn seven(report: &mut Report, folder: &Path, items: usize) -> Result<(), Failed> {
    report.section(&title(items, "three killed at once, the leader among them"));
    let (cluster, leader) = seven_peers(folder, items).await?;
    let mut failing = Failing::new(&cluster, (leader + 3) % 7).await?;
    failing.kill(&[leader, (leader + 1) % 7, (leader + 2) % 7]).await;
    let failed = failing.repaired().await?;
    failed.report(report, "seven");
    let since_away = failed.first_move.saturating_duration_since(failed.all_away);
    report.figure("seven.first", "from the last PeerAway to the first move", since_away.as_secs_f64(), "s");
    let in_time = since_away < Duration::from_secs(10);
    report.goal("the first move within 10 s of the last PeerAway", in_time, &format!("{since_away:.2?}"));
    let rate = failed.rate();
    report.figure("seven.rate", "moves", rate, "/s");
    let within = (f64::from(RATE) * 0.9..=f64::from(RATE) * 1.1).contains(&rate);
    report.goal("at the configured rate ± 10 %", within, &format!("{rate:.0} of {RATE}"));
    cluster.stop().await;
    Ok(())
}

/// Three of seven one after the other, the last one in the middle of the repair.
async fn stepwise(report: &mut Report, folder: &Path, items: usize) -> Result<(), Failed> {
    report.section(&title(items, "three killed one by one, the leader first"));
    let (cluster, leader) = seven_peers(folder, items).await?;
    let mut failing = Failing::new(&cluster, (leader + 3) % 7).await?;
    // After the first one every item still has two copies.
    failing.kill(&[leader]).await;
    until("the first one is away", || async { status(&cluster, failing.at).await.filter(|now| is_away(now, 1)) })
        .await?;
    failing.kill(&[(leader + 1) % 7]).await;
    until("the repair runs", || async { (failing.witness.seen().moved > 0).then_some(()) }).await?;
    let left = failing.below();
    report.goal("the third one is killed while that is repaired", left > 0, &format!("{left} items are below"));
    failing.kill(&[(leader + 2) % 7]).await;
    failing.repaired().await?.report(report, "stepwise");
    cluster.stop().await;
    Ok(())
}

/// Three of seven at once, and once that is in the log whoever leads loses its consensus-svc every few seconds. Before that
/// nothing would ever be decided: a doubt starts over with each leader.
async fn leaders(report: &mut Report, folder: &Path, items: usize) -> Result<(), Failed> {
    report.section(&title(items, "three killed at once, then the leader's consensus-svc every 5 s"));
    let (cluster, leader) = seven_peers(folder, items).await?;
    let mut failing = Failing::new(&cluster, (leader + 3) % 7).await?;
    failing.kill(&[leader, (leader + 1) % 7, (leader + 2) % 7]).await;
    until("all are away", || async { status(&cluster, failing.at).await.filter(|now| is_away(now, 3)) }).await?;
    let killed = std::cell::Cell::new(0);
    let failed = tokio::select! {
        failed = failing.repaired() => failed?,
        failed = kill_leaders(&cluster, &killed) => match failed? {},
    };
    failed.report(report, "leaders");
    let killed = killed.get();
    report.goal("leaders were killed on the way", killed >= 2, &killed.to_string());
    cluster.stop().await;
    Ok(())
}

/// Started again at once: with three of seven gone, the cluster needs all that are left. A supervisor's back-off would keep
/// them away longer with each kill.
async fn kill_leaders(cluster: &Cluster, killed: &std::cell::Cell<usize>) -> Result<Infallible, Failed> {
    loop {
        tokio::time::sleep(BETWEEN_LEADERS).await;
        let Some(leader) = current_leader(cluster).await else { continue };
        let consensus = cluster.peers[leader].service(Room::Consensus).ok_or("no consensus service")?;
        consensus.kill_and_hold().await;
        consensus.resume().await;
        killed.set(killed.get() + 1);
    }
}

/// Four of seven at once: no majority, and nothing moves. Two come back: what the other two held is repaired.
async fn quorum(report: &mut Report, folder: &Path, items: usize) -> Result<(), Failed> {
    report.section(&title(items, "four killed at once, two of them back after 20 s"));
    let (cluster, leader) = seven_peers(folder, items).await?;
    let mut failing = Failing::new(&cluster, (leader + 4) % 7).await?;
    let peer = |step: usize| (leader + step) % 7;
    failing.kill(&[peer(0), peer(1), peer(2), peer(3)]).await;
    tokio::time::sleep(WITHOUT_QUORUM).await;
    let moved = failing.witness.seen().moved;
    report.goal("nothing moves without a majority", moved == 0, &moved.to_string());
    failing.revive(&[peer(2), peer(3)]).await;
    failing.repaired().await?.report(report, "quorum");
    cluster.stop().await;
    Ok(())
}

/// One peer of five is killed that has a thousand items, then one with ten thousand, then one with a hundred thousand (or
/// what is left), in a pinset of `items`; no grace.
async fn growth(report: &mut Report, folder: &Path, items: usize) -> Result<(), Failed> {
    let cluster = start_with(folder.to_owned(), 5, settings("0s")).await?;
    report.section(&format!("5 peers, {items} pins, no grace: from the kill to the last move"));
    let ids: Vec<Vec<u8>> = cluster.peers.iter().map(|peer| peer.peer_id.to_bytes()).collect();
    let (few, some) = (1000.min(items / 100), 10_000.min(items / 10));
    let many = 100_000.min(items - few - some);
    // The leader is peer 0 or 1, so that none of the three kills costs an election.
    fill(&cluster, "few", few, (2, 2), |_| vec![ids[4].clone(), ids[0].clone()]).await?;
    fill(&cluster, "some", some, (2, 2), |_| vec![ids[3].clone(), ids[1].clone()]).await?;
    fill(&cluster, "many", many, (2, 2), |number| vec![ids[2].clone(), ids[number % 2].clone()]).await?;
    fill(&cluster, "rest", items - few - some - many, (1, 1), |number| vec![ids[number % 2].clone()]).await?;
    all_pinned(&cluster).await?;
    let mut beyond = Vec::new();
    for victim in [4, 3, 2] {
        let mut failing = Failing::new(&cluster, 0).await?;
        failing.kill(&[victim]).await;
        let killed = std::time::Instant::now();
        let failed = failing.repaired().await?;
        let took = (failed.last_move - killed).as_secs_f64();
        let name = format!("growth.{items}.{}", failed.needed);
        report.figure(&name, &format!("{} of {items} moved", failed.needed), took, "s");
        failed.check(report);
        beyond.push(took - failed.needed as f64 / f64::from(RATE));
        cluster.peers[victim].resume().await;
        cluster.wait_ready(PATIENCE, |_, _| {}).await?;
        until("everybody is back and everything is settled", || async {
            status(&cluster, 0).await.filter(|status| status.peers.is_empty() && status.unconfirmed == 0)
        })
        .await?;
    }
    // What is not moving is missing the peer: pings, and the look of each second.
    let worst = beyond.iter().copied().fold(0.0, f64::max);
    let each = beyond.iter().map(|time| format!("{time:.1} s")).collect::<Vec<_>>().join(", ");
    report.goal("it takes what has to move at the rate, and at most 15 s", worst < 15.0, &format!("beyond it: {each}"));
    cluster.stop().await;
    Ok(())
}
