//! `make bench-failover`: peers killed hard under a full pinset, and what became of every item. Identity CIDs on embedded
//! nodes: no block is fetched or stored for them, so that our own work is measured, from the first missed ping to the
//! confirmed copy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ctl::local::cluster::Cluster;
use pinfold_common::config::Overrides;
use pinfold_proto::types::repin_status_reply::Phase;
use pinfold_proto::types::{RepinStatusCall, RepinStatusReply, peer_repin};
use pinfold_proto::{api, types};
use pinfold_tests::content;
use serde_json::json;

use crate::load::Http;
use crate::ours::{channel, leader, pins_client, start_with};
use crate::report::Report;
use crate::rest::Failed;

/// Only a defect takes longer.
const PATIENCE: Duration = Duration::from_secs(400);
const POLL: Duration = Duration::from_millis(100);
const BATCH: usize = 500;
const CLIENTS: usize = 4;
const RATE: u32 = 1000;

type Pinset = BTreeMap<Vec<u8>, types::Pin>;

pub async fn run(report: &mut Report, which: &[String], items: usize) -> Result<(), Failed> {
    report.mark_ours();
    let folder = tempfile::Builder::new().prefix("pinfold-failover-").tempdir()?;
    let is_wanted = |name: &str| which.is_empty() || which.iter().any(|wanted| wanted == name);
    if is_wanted("five") {
        five(report, &folder.path().join("five")).await?;
    }
    if is_wanted("seven") {
        seven(report, &folder.path().join("seven"), items).await?;
    }
    if is_wanted("growth") {
        growth(report, &folder.path().join("growth"), items).await?;
    }
    Ok(())
}

fn settings(grace: &str, ping: &str) -> Overrides {
    vec![
        ("cluster.monitor_ping_interval", json!(ping)),
        ("repin.grace", json!(grace)),
        ("repin.pins_per_second", json!(RATE)),
        ("repin.max_unconfirmed_per_peer", json!(1_000_000)),
    ]
}

/// The run that the original fails: two of five at once, the leader among them, 600 pins with two copies.
async fn five(report: &mut Report, folder: &std::path::Path) -> Result<(), Failed> {
    const PINS: usize = 600;
    let cluster = start_with(folder.to_owned(), 5, settings("5s", "2s")).await?;
    report.section("5 peers, 600 pins with two copies; two killed at once, the leader among them");
    fill(&cluster, "five", PINS, (2, 2), |_| Vec::new()).await?;
    let before = pinset(&cluster, 0).await?;
    let spread = spread(&cluster, &before);
    let even = spread.iter().all(|count| (216..=264).contains(count));
    report.goal("each peer has 240 ± 10 % of them", even, &format!("{spread:?}"));
    all_pinned(&cluster).await?;
    let leader = leader(&cluster).await;
    let failed = fail(&cluster, &[leader, (leader + 1) % 5], &before).await?;
    failed.report(report, "five");
    cluster.stop().await;
    Ok(())
}

/// Three of seven at once, the leader among them.
async fn seven(report: &mut Report, folder: &std::path::Path, items: usize) -> Result<(), Failed> {
    let cluster = start_with(folder.to_owned(), 7, settings("5s", "2s")).await?;
    report.section(&format!(
        "7 peers, {items} pins with two to three copies; three killed at once, the leader among them"
    ));
    fill(&cluster, "seven", items, (2, 3), |_| Vec::new()).await?;
    all_pinned(&cluster).await?;
    let before = pinset(&cluster, 0).await?;
    let leader = leader(&cluster).await;
    let failed = fail(&cluster, &[leader, (leader + 1) % 7, (leader + 2) % 7], &before).await?;
    failed.report(report, "seven");
    let since_away = failed.first_move.saturating_duration_since(failed.all_away);
    report.figure("seven.first", "from the last PeerAway to the first move", since_away.as_secs_f64(), "s");
    report.goal(
        "the first move within 10 s of the last PeerAway",
        since_away < Duration::from_secs(10),
        &format!("{since_away:.2?}"),
    );
    let rate = failed.rate();
    report.figure("seven.rate", "moves", rate, "/s");
    let within = (f64::from(RATE) * 0.9..=f64::from(RATE) * 1.1).contains(&rate);
    report.goal("at the configured rate ± 10 %", within, &format!("{rate:.0} of {RATE}"));
    cluster.stop().await;
    Ok(())
}

/// One peer of five is killed that has a hundredth, a tenth, and most of the items; no grace.
async fn growth(report: &mut Report, folder: &std::path::Path, items: usize) -> Result<(), Failed> {
    let cluster = start_with(folder.to_owned(), 5, settings("0s", "2s")).await?;
    report.section(&format!("5 peers, {items} pins with two copies, no grace: from the kill to the last move"));
    let ids: Vec<Vec<u8>> = cluster.peers.iter().map(|peer| peer.peer_id.to_bytes()).collect();
    let (few, some) = (items / 100, items / 10);
    // The leader is peer 0 or 1, so that none of the three kills costs an election.
    fill(&cluster, "few", few, (2, 2), |_| vec![ids[4].clone(), ids[0].clone()]).await?;
    fill(&cluster, "some", some, (2, 2), |_| vec![ids[3].clone(), ids[1].clone()]).await?;
    let rest = items - few - some;
    fill(&cluster, "rest", rest, (2, 2), |number| vec![ids[2].clone(), ids[number % 2].clone()]).await?;
    all_pinned(&cluster).await?;
    let mut times = Vec::new();
    for victim in [4, 3, 2] {
        let before = pinset(&cluster, 0).await?;
        let failed = fail(&cluster, &[victim], &before).await?;
        let took = failed.last_move - failed.killed;
        report.figure(
            &format!("growth.{}", failed.needed),
            &format!("{} of {items} moved", failed.needed),
            took.as_secs_f64(),
            "s",
        );
        failed.check(report);
        times.push((failed.needed as f64, took.as_secs_f64()));
        cluster.peers[victim].resume().await;
        cluster.wait_ready(PATIENCE, |_, _| {}).await?;
        until("everybody is back and everything is settled", || async {
            status(&cluster, 0).await.filter(|status| status.peers.is_empty() && status.unconfirmed == 0)
        })
        .await?;
    }
    // What is not moving is missing the peer: pings, and the look of each second.
    let own = |(moved, seconds): &(f64, f64)| seconds - moved / f64::from(RATE);
    let worst = times.iter().map(own).fold(0.0, f64::max);
    report.goal(
        "it takes what has to move at the rate, and at most 15 s",
        worst < 15.0,
        &format!(
            "beyond the rate: {}",
            times.iter().map(|time| format!("{:.1} s", own(time))).collect::<Vec<_>>().join(", ")
        ),
    );
    cluster.stop().await;
    Ok(())
}

/// Pins in batches over several connections, at the first peer.
async fn fill(
    cluster: &Cluster,
    label: &str,
    count: usize,
    factors: (i32, i32),
    wishes: impl Fn(usize) -> Vec<Vec<u8>>,
) -> Result<(), Failed> {
    let request = |number: usize| {
        let cid = content::identity_cid(&format!("{label} {number}"));
        let mut request = types::PinRequest::from(pinfold_common::pin::PinRequest::new(cid));
        let options = request.options.get_or_insert_default();
        options.replication_factor_min = factors.0;
        options.replication_factor_max = factors.1;
        options.name = format!("{label} {number}");
        request.user_allocations = wishes(number);
        request
    };
    let numbers: Vec<usize> = (0..count).collect();
    let mut batches: Vec<Vec<types::PinRequest>> =
        numbers.chunks(BATCH).map(|chunk| chunk.iter().map(|number| request(*number)).collect()).collect();
    let authority = cluster.peers[0].api.clone();
    while !batches.is_empty() {
        let now = batches.split_off(batches.len().saturating_sub(CLIENTS));
        let sent = now.into_iter().map(|requests| {
            let client = pins_client(&authority);
            async move {
                let reply = client?.pin_many(api::PinManyRequest { requests, request_key: Vec::new() }).await?;
                for result in reply.into_inner().results {
                    if let Some(api::pin_many_reply::result::Result::Failure(failure)) = result.result {
                        return Err(Failed::from(failure.message));
                    }
                }
                Ok(())
            }
        });
        for done in futures::future::join_all(sent).await {
            done?;
        }
    }
    Ok(())
}

async fn pinset(cluster: &Cluster, at: usize) -> Result<Pinset, Failed> {
    let mut stream = pins_client(&cluster.peers[at].api)?.list(api::ListRequest::default()).await?.into_inner();
    let mut pins = Pinset::new();
    while let Some(reply) = stream.message().await? {
        pins.extend(reply.pins.into_iter().map(|pin| (pin.cid.clone(), pin)));
    }
    Ok(pins)
}

fn spread(cluster: &Cluster, pins: &Pinset) -> Vec<usize> {
    let count = |id: Vec<u8>| pins.values().filter(|pin| pin.allocations.contains(&id)).count();
    cluster.peers.iter().map(|peer| count(peer.peer_id.to_bytes())).collect()
}

/// Nothing waits for an IPFS node any more.
async fn all_pinned(cluster: &Cluster) -> Result<(), Failed> {
    for peer in &cluster.peers {
        let http = Http::new(&peer.api);
        until("all pins are pinned", || async {
            let (_, _, lines) = http.send("GET", "/pins?local=true&filter=pin_queued,pinning,pin_error").await?;
            (lines == 0).then_some(())
        })
        .await?;
    }
    Ok(())
}

async fn status(cluster: &Cluster, at: usize) -> Option<RepinStatusReply> {
    let channel = channel(&cluster.peers[at].api).ok()?;
    let mut client = api::repin_client::RepinClient::new(channel);
    Some(client.status(RepinStatusCall::default()).await.ok()?.into_inner())
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> Result<T, Failed> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("waited {PATIENCE:?} for: {what}").into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What became of a failure.
struct Failure {
    killed: Instant,
    all_away: Instant,
    first_move: Instant,
    last_move: Instant,
    settled: Instant,
    /// Items that fell below their minimum and had a live copy left.
    needed: usize,
    /// Items that had no live copy left: nothing can be copied, and nothing is asked.
    without_copy: usize,
    moved: u64,
    still_below: usize,
    moved_needlessly: usize,
    lost: usize,
}

/// Kills the peers at the same moment and watches until nothing is left to do.
async fn fail(cluster: &Cluster, dead: &[usize], before: &Pinset) -> Result<Failure, Failed> {
    let dead_ids: BTreeSet<Vec<u8>> = dead.iter().map(|index| cluster.peers[*index].peer_id.to_bytes()).collect();
    let at = (0..cluster.peers.len()).find(|index| !dead.contains(index)).ok_or("nobody is left")?;
    let live = |pin: &types::Pin| pin.allocations.iter().filter(|peer| !dead_ids.contains(*peer)).count();
    let min = |pin: &types::Pin| {
        let factor = pin.options.as_ref().map_or(0, |options| options.replication_factor_min);
        usize::try_from(factor).unwrap_or(0)
    };
    let is_below = |pin: &&types::Pin| live(pin) < min(pin);
    let without_copy = before.values().filter(is_below).filter(|pin| live(pin) == 0).count();
    let needed = before.values().filter(is_below).count();
    let moved_before = status(cluster, at).await.map_or(0, |status| status.moved);
    futures::future::join_all(dead.iter().map(|index| cluster.peers[*index].kill())).await;
    let killed = Instant::now();
    let is_away = |status: &RepinStatusReply| {
        status.peers.iter().filter(|peer| peer.state() == peer_repin::State::Away).count() == dead.len()
    };
    let (mut all_away, mut first_move) = (None, None);
    let mut moved_since = moved_before;
    let mut last_move = killed;
    let done = loop {
        if killed.elapsed() > PATIENCE {
            return Err("the repair does not end".into());
        }
        tokio::time::sleep(POLL / 2).await;
        let Some(now) = status(cluster, at).await else { continue };
        // A new leader counts from nothing.
        moved_since = moved_since.min(now.moved);
        if all_away.is_none() && is_away(&now) {
            all_away = Some(Instant::now());
        }
        if first_move.is_none() && now.moved > moved_since {
            first_move = Some(Instant::now());
        }
        if now.under_replicated > 0 {
            last_move = Instant::now();
        }
        if is_away(&now)
            && now.phase() == Phase::Idle
            && now.under_replicated == 0
            && now.moved - moved_since >= needed as u64
        {
            break now;
        }
    };
    let moved = done.moved - moved_since;
    until("the old holders are let go", || async {
        status(cluster, at).await.filter(|status| status.unconfirmed == 0)
    })
    .await?;
    let settled = Instant::now();
    let after = pinset(cluster, at).await?;
    let still_below = after.values().filter(is_below).count();
    let needless =
        |(cid, old): &(&Vec<u8>, &types::Pin)| live(old) >= min(old) && after.get(*cid).is_some_and(|new| new != *old);
    Ok(Failure {
        killed,
        all_away: all_away.unwrap_or(killed),
        first_move: first_move.unwrap_or(last_move),
        last_move,
        settled,
        needed,
        without_copy,
        moved,
        still_below,
        moved_needlessly: before.iter().filter(needless).count(),
        lost: before.keys().filter(|cid| !after.contains_key(*cid)).count(),
    })
}

impl Failure {
    fn rate(&self) -> f64 {
        let seconds = self.last_move.saturating_duration_since(self.first_move).as_secs_f64();
        self.moved as f64 / seconds.max(0.001)
    }

    fn report(&self, report: &mut Report, name: &str) {
        let since_kill = |at: Instant| at.saturating_duration_since(self.killed).as_secs_f64();
        report.figure(&format!("{name}.away"), "from the kill to the last PeerAway", since_kill(self.all_away), "s");
        report.figure(
            &format!("{name}.moved"),
            &format!("to the last of {} moves", self.moved),
            since_kill(self.last_move),
            "s",
        );
        report.figure(
            &format!("{name}.settled"),
            "until the new holders have confirmed all of them",
            since_kill(self.settled),
            "s",
        );
        self.check(report);
    }

    fn check(&self, report: &mut Report) {
        let detail = format!("{} were below it, {} of them without any copy", self.needed, self.without_copy);
        report.goal("0 items left below their minimum", self.still_below == 0, &detail);
        let doubles = self.moved as i64 - self.needed as i64;
        report.goal("0 double moves", doubles == 0, &format!("{} moves", self.moved));
        let needless = self.moved_needlessly;
        report.goal("0 items written that had their minimum", needless == 0, &needless.to_string());
        report.goal("no acknowledged pin lost", self.lost == 0, &self.lost.to_string());
    }
}
