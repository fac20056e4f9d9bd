//! `make bench-peers`: more peers than may vote, on one machine: how long they take to join, whether all hold the same,
//! what the death of the leader costs, and what they cost while nothing happens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ctl::local::cluster::{Cluster, Ipfs, Options, PortPlan};
use ctl::local::service::Tell;
use pinfold_proto::api;

use crate::losses::kill_leader;
use crate::machine::{cpu_time, resident_bytes};
use crate::ours::cluster_client;
use crate::report::Report;
use crate::rest::{self, Failed};

/// All must have joined by then: the goal, and the bound of the wait.
const JOIN_DEADLINE: Duration = Duration::from_secs(300);
/// For all to have what one has.
const SAME_DEADLINE: Duration = Duration::from_secs(600);
/// So long nothing happens.
const IDLE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(200);
const ITEMS: usize = 10_000;
const VOTERS: usize = 7;

pub async fn run(report: &mut Report, peers: u16) -> Result<(), Failed> {
    report.mark_ours();
    let folder = tempfile::Builder::new().prefix("pinfold-bench-").tempdir()?;
    report.section(&format!("{peers} peers of four services each on this machine"));
    let options = Options {
        folder: folder.path().to_owned(),
        peers,
        ipfs: Ipfs::Embedded { gateways: Vec::new() },
        replication: None,
        ports: PortPlan::Free,
        programs: pinfold_tests::cluster::programs(),
        settings: Vec::new(),
    };
    let tell: Tell = Arc::new(|service, sentence| eprintln!("{service}: {sentence}"));
    let started = Instant::now();
    let cluster = Cluster::start(options, tell).await?;
    cluster.wait_ready(JOIN_DEADLINE, |_, _| {}).await?;
    let joined = started.elapsed();
    report.figure("peers.joined", "all have joined and are ready", joined.as_secs_f64(), "s");
    report.goal("all joined within 5 minutes", joined <= JOIN_DEADLINE, &format!("{joined:.1?}"));
    let (voters, learners) = roles(&cluster).await?;
    let wanted = VOTERS.min(usize::from(peers));
    let goal = voters == wanted && voters + learners == usize::from(peers);
    report.goal("as many voters as may be, the others learners", goal, &format!("{voters} and {learners}"));

    let filling = Instant::now();
    rest::fill(&cluster.peers[0].api, ITEMS).await?;
    report.figure("peers.fill", &format!("{ITEMS} pins, 64 clients"), filling.elapsed().as_secs_f64(), "s");
    same_digest(report, &cluster, "all hold the same", ITEMS as u64).await?;
    idle(report, &cluster).await;
    report.section("The leader is killed");
    let gap = kill_leader(&cluster).await?;
    report.figure("peers.gap", "to the next accepted pin", gap.as_secs_f64(), "s");
    same_digest(report, &cluster, "all hold the same after the leader was killed", ITEMS as u64).await?;
    cluster.stop().await;
    Ok(())
}

async fn roles(cluster: &Cluster) -> Result<(usize, usize), Failed> {
    let mut peers = cluster_client(&cluster.peers[0].api)?.peers(api::PeersRequest {}).await?.into_inner();
    let (mut voters, mut learners) = (0, 0);
    while let Some(peer) = peers.message().await? {
        match peer.role.as_str() {
            "leader" | "follower" => voters += 1,
            "learner" => learners += 1,
            _ => {}
        }
    }
    Ok((voters, learners))
}

/// The digest of every peer's pinset, as soon as they are equal.
pub async fn same_digest(report: &mut Report, cluster: &Cluster, what: &str, items: u64) -> Result<(), Failed> {
    let started = Instant::now();
    loop {
        let mut digests = Vec::new();
        for peer in &cluster.peers {
            digests.push(cluster_client(&peer.api)?.digest(api::DigestRequest {}).await?.into_inner());
        }
        let same = digests.windows(2).all(|pair| pair[0].sha256 == pair[1].sha256 && pair[0].pins == pair[1].pins);
        if same || started.elapsed() > SAME_DEADLINE {
            let pins = digests.first().map_or(0, |digest| digest.pins);
            report.goal(what, same && pins >= items, &format!("{pins} pins on each of {} peers", digests.len()));
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What all processes cost while nobody asks anything.
async fn idle(report: &mut Report, cluster: &Cluster) {
    report.section(&format!("Nothing happens for {IDLE:?}"));
    let pids = || cluster.peers.iter().flat_map(|peer| peer.services().filter_map(|service| service.pid()));
    let spent = || pids().map(cpu_time).sum::<Duration>();
    let before = spent();
    tokio::time::sleep(IDLE).await;
    let cores = spent().saturating_sub(before).as_secs_f64() / IDLE.as_secs_f64();
    let peers = cluster.peers.len() as f64;
    report.figure("peers.idle.cpu", "processor time of all peers", cores, "cores");
    report.figure("peers.idle.cpu.peer", "of one peer, on average", cores / peers * 100.0, "% of a core");
    let memory: u64 = pids().map(resident_bytes).sum();
    report.figure("peers.idle.memory", "memory of all peers", memory as f64 / 1e6, "MB");
    report.figure("peers.idle.memory.peer", "of one peer, on average", memory as f64 / 1e6 / peers, "MB");
}
