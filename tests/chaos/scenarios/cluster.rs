//! One fault at a time on three peers under load: kills and pauses (fault:P1-P5), partitions (fault:N1, N3, N4), errors
//! of one peer's disk (fault:D2, D4). What must hold is said per fault; what holds always is in `Load::finish`.

use std::collections::BTreeSet;
use std::time::Duration;

use pinfold_tests::cluster::eventually;
use pinfold_tests::needs;

use crate::extent::{Extent, extent, seed};
use crate::fault::{Fault, Whom};
use crate::house::{Ground, House, NAMESPACES, Wish};
use crate::load::Load;
use crate::network::Direction;
use crate::report::Report;
use crate::trace::Effect;

/// Acknowledged writes before a fault, so that it hits a cluster at work.
const WRITES_BEFORE: u64 = 20;
/// And during one, at peers that must go on.
const WRITES_DURING: u64 = 10;
/// How long a partial partition is watched: terms must not grow meanwhile.
const WATCHED: Duration = Duration::from_secs(6);
const MOST_TERMS: u64 = 3;
/// Reads at a leader that was stopped, as soon as it goes on.
const READS_AFTER_PAUSE: usize = 10;

/// What comes to the leader meanwhile is committed by the others and applied by all, and is not in the leader's log.
const LATE: Duration = Duration::from_millis(300);

/// What must be seen while the fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// The peers that are not hit take writes.
    OthersGoOn,
    /// That, and the peer that is hit neither acknowledges a write nor answers a consistent read.
    OthersGoOnVictimRefuses,
    /// Nobody acknowledges a write or answers a consistent read; a local read is answered, and marked stale.
    NoQuorum,
    /// Writes go on at the peers that see everybody, under one leader.
    StableLeader,
}

struct Trial {
    name: &'static str,
    fault: Fault,
    expect: Expect,
    /// Whether every test run has time for it.
    selected: bool,
}

const fn trial(name: &'static str, fault: Fault, expect: Expect, selected: bool) -> Trial {
    Trial { name, fault, expect, selected }
}

const TRIALS: [Trial; 14] = [
    trial("fault:P1 kill the leader", Fault::Kill(Whom::Leader), Expect::OthersGoOn, true),
    trial("fault:P2 kill a follower", Fault::Kill(Whom::Follower), Expect::OthersGoOn, false),
    trial("fault:P3 kill two of three", Fault::KillTwoPeers, Expect::NoQuorum, true),
    trial("fault:P5 stop the leader", Fault::Pause(Whom::Leader), Expect::OthersGoOn, true),
    trial(
        "fault:N1 isolate the leader",
        Fault::Isolate(Whom::Leader, Direction::Both),
        Expect::OthersGoOnVictimRefuses,
        true,
    ),
    trial(
        "fault:N2 isolate a follower",
        Fault::Isolate(Whom::Follower, Direction::Both),
        Expect::OthersGoOnVictimRefuses,
        false,
    ),
    trial(
        "fault:N3 leader hears nobody",
        Fault::Isolate(Whom::Leader, Direction::In),
        Expect::OthersGoOnVictimRefuses,
        true,
    ),
    trial(
        "fault:N3 nobody hears the leader",
        Fault::Isolate(Whom::Leader, Direction::Out),
        Expect::OthersGoOnVictimRefuses,
        false,
    ),
    trial("fault:N4 leader cut from one follower", Fault::CutPair(Whom::Leader), Expect::StableLeader, true),
    trial("fault:N4 followers cut from each other", Fault::CutPair(Whom::Follower), Expect::StableLeader, false),
    trial(
        "fault:D2 EIO at the leader",
        Fault::DiskError(Whom::Leader, "fdatasync", Effect::Fail("EIO")),
        Expect::OthersGoOn,
        true,
    ),
    trial(
        "fault:D2 late EIO at the leader",
        Fault::DiskError(Whom::Leader, "fdatasync", Effect::FailLate("EIO", LATE)),
        Expect::OthersGoOn,
        true,
    ),
    trial(
        "fault:D4 ENOSPC at the leader",
        Fault::DiskError(Whom::Leader, "pwrite64", Effect::Fail("ENOSPC")),
        Expect::OthersGoOn,
        false,
    ),
    trial(
        "fault:D4 ENOSPC at a follower",
        Fault::DiskError(Whom::Follower, "pwrite64", Effect::Fail("ENOSPC")),
        Expect::OthersGoOn,
        false,
    ),
];

/// Rounds of each trial when everything runs.
const ROUNDS: u64 = 5;

/// Goal: one fault at a time, a minority at most goes on being served, the other side of a split refuses, nothing
/// acknowledged is lost, no consistent read is stale, and all peers agree afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f1_f2_faults_of_a_cluster() {
    let has_namespaces = needs::missing(&NAMESPACES).is_none();
    let ground = if has_namespaces { Ground::Namespaces } else { Ground::Loopback };
    let house = House::start(Wish { ground, ..Wish::default() }).await;
    for (number, trial) in TRIALS.iter().enumerate() {
        if !needs::are_met(&trial.name.replace([':', ' '], "_"), trial.fault.needs()) {
            continue;
        }
        let rounds = match extent() {
            Extent::Selection => u64::from(trial.selected),
            Extent::All => ROUNDS,
        };
        for round in 0..rounds {
            eprintln!("{} begins", trial.name);
            run(&house, trial, seed() + round * 1000 + number as u64).await;
        }
    }
    house.stop().await;
}

async fn run(house: &House, trial: &Trial, seed: u64) {
    let mut report = Report::new(trial.name);
    house.leader().await;
    let load = Load::start(house, seed);
    load.more_writes(WRITES_BEFORE).await;
    mark(house, &load, trial.name).await;
    let term = house.term().await;
    let begun_anew: Vec<usize> = house.all().into_iter().map(|peer| logs_begun_anew(house, peer)).collect();
    let active = trial.fault.inject(house, &BTreeSet::new()).await.expect("nothing else is broken");
    let victims = active.victims.clone();
    let others: Vec<usize> = house.all().into_iter().filter(|peer| !victims.contains(peer)).collect();
    match trial.expect {
        Expect::OthersGoOn => go_on(&load, &others, &mut report).await,
        Expect::OthersGoOnVictimRefuses => {
            go_on(&load, &others, &mut report).await;
            assert!(!load.try_pin(victims[0]).await, "{}: the cut-off peer acknowledged a pin", trial.name);
            assert_eq!(load.try_get(victims[0]).await, None, "{}: the cut-off peer read", trial.name);
        }
        Expect::NoQuorum => {
            assert!(!load.try_pin(others[0]).await, "{}: a pin without a quorum", trial.name);
            assert_eq!(load.try_get(others[0]).await, None, "{}: a consistent read without a quorum", trial.name);
            // Until the survivor misses its leader, it cannot know that it may be behind.
            eventually(&format!("{}: a local read that is marked stale", trial.name), || async {
                (load.is_local_read_stale(others[0]).await == Some(true)).then_some(())
            })
            .await;
        }
        Expect::StableLeader => {
            let third: Vec<usize> = if others.is_empty() { house.all() } else { others };
            go_on(&load, &third, &mut report).await;
            // The fault's own length.
            tokio::time::sleep(WATCHED).await;
            go_on(&load, &third, &mut report).await;
            let grown = house.term().await - term;
            assert!(grown <= MOST_TERMS, "{}: {grown} terms in a partial partition", trial.name);
            report.note(format!("{grown} new terms"));
        }
    }
    active.prove_and_heal(house).await;
    report.fault(&trial.fault.kind());
    if matches!(trial.fault, Fault::DiskError(_, _, Effect::FailLate(..))) {
        let victim = victims[0];
        eventually(&format!("{}: a start with a state that is ahead of its log", trial.name), || async {
            (logs_begun_anew(house, victim) > begun_anew[victim]).then_some(())
        })
        .await;
    }
    if matches!(trial.fault, Fault::Pause(_)) {
        // What it thought it led is over; the history shows it if one of these is old.
        for _ in 0..READS_AFTER_PAUSE {
            load.try_get(victims[0]).await;
        }
    }
    load.finish(house, &mut report).await;
    report.finish();
}

/// How often the peer's consensus service was started with a state that was ahead of its log.
fn logs_begun_anew(house: &House, peer: usize) -> usize {
    let log = std::fs::read_to_string(house.consensus(peer).log()).unwrap_or_default();
    log.matches("the log begins anew behind the state").count()
}

/// A pin that every peer has, for local reads.
async fn mark(house: &House, load: &Load, name: &str) {
    eventually(&format!("{name}: a first pin"), || async { load.try_pin(house.leader().await).await.then_some(()) })
        .await;
    for peer in house.all() {
        eventually(&format!("{name}: the first pin at peer {peer}"), || async {
            load.is_local_read_stale(peer).await.map(drop)
        })
        .await;
    }
}

/// The first write after the fault, and some more.
async fn go_on(load: &Load, peers: &[usize], report: &mut Report) {
    let first = load.more_writes_at(peers, 1).await;
    load.more_writes_at(peers, WRITES_DURING).await;
    report.note(format!("next write after {} ms", first.as_millis()));
}
