//! One failure: who is killed, what the log of a survivor says until all is repaired, and what must hold then.

use std::time::Instant;

use ctl::local::cluster::Cluster;
use pinfold_proto::types::repin_status_reply::Phase;
use pinfold_proto::types::{RepinStatusReply, peer_repin};
use pinfold_tests::pins::Pinset;

use super::cluster::{min_of, pinset, status, until};
use super::witness::Witness;
use super::{PATIENCE, POLL};
use crate::report::Report;
use crate::rest::Failed;

pub struct Failing<'a> {
    cluster: &'a Cluster,
    /// Survives, and is asked.
    pub at: usize,
    pub before: Pinset,
    pub witness: Witness,
    killed: Instant,
}

/// What became of it.
pub struct Failure {
    killed: Instant,
    pub all_away: Instant,
    pub first_move: Instant,
    pub last_move: Instant,
    settled: Instant,
    /// Items that fell below their minimum for good, and those among them without any live copy: nothing can be copied
    /// there, and nothing is asked.
    pub needed: usize,
    without_copy: usize,
    pub moved: usize,
    moved_needlessly: usize,
    written_needlessly: usize,
    still_below: usize,
    lost: usize,
}

pub fn is_away(status: &RepinStatusReply, peers: usize) -> bool {
    status.peers.iter().filter(|peer| peer.state() == peer_repin::State::Away).count() == peers
}

impl Failing<'_> {
    /// Nothing has failed yet; `at` will survive.
    pub async fn new(cluster: &Cluster, at: usize) -> Result<Failing<'_>, Failed> {
        let before = pinset(cluster, at).await?;
        let witness = Witness::follow(&cluster.peers[at], before.clone());
        Ok(Failing { cluster, at, before, witness, killed: Instant::now() })
    }

    /// All four processes of each, at the same moment.
    pub async fn kill(&mut self, victims: &[usize]) {
        let ids = victims.iter().map(|index| self.cluster.peers[*index].peer_id.to_bytes());
        self.witness.seen().dead.extend(ids);
        futures::future::join_all(victims.iter().map(|index| self.cluster.peers[*index].kill())).await;
        self.killed = Instant::now();
    }

    pub async fn revive(&mut self, victims: &[usize]) {
        for index in victims {
            self.witness.seen().dead.remove(&self.cluster.peers[*index].peer_id.to_bytes());
            self.cluster.peers[*index].resume().await;
        }
    }

    /// Watches until nothing is left to do, and the new holders have what they were given.
    pub async fn repaired(&self) -> Result<Failure, Failed> {
        let (started, mut all_away) = (Instant::now(), None);
        let dead = self.witness.seen().dead.len();
        loop {
            if started.elapsed() > PATIENCE {
                return Err("the repair does not end".into());
            }
            tokio::time::sleep(POLL / 2).await;
            let Some(now) = status(self.cluster, self.at).await else { continue };
            if !is_away(&now, dead) {
                continue;
            }
            all_away.get_or_insert_with(Instant::now);
            if now.phase() == Phase::Idle && now.under_replicated == 0 && self.below() == 0 {
                break;
            }
        }
        until("the old holders are let go", || async {
            status(self.cluster, self.at).await.filter(|status| status.unconfirmed == 0)
        })
        .await?;
        let settled = Instant::now();
        let after = pinset(self.cluster, self.at).await?;
        let seen = self.witness.seen();
        let kept = |(cid, old): &(&Vec<u8>, &_)| !seen.is_below(old) && after.get(*cid).is_some_and(|new| new != *old);
        let below = self.before.values().filter(|pin| seen.is_below(pin));
        Ok(Failure {
            killed: self.killed,
            all_away: all_away.unwrap_or(self.killed),
            first_move: seen.first_move.unwrap_or(self.killed),
            last_move: seen.last_move.unwrap_or(self.killed),
            settled,
            needed: below.clone().count(),
            without_copy: below.filter(|pin| seen.live(pin) == 0).count(),
            moved: seen.moved,
            moved_needlessly: seen.needless,
            written_needlessly: self.before.iter().filter(kept).count(),
            still_below: after.values().filter(|pin| seen.live(pin) < min_of(pin)).count(),
            lost: self.before.keys().filter(|cid| !after.contains_key(*cid)).count(),
        })
    }

    /// Items below their minimum, as the survivor's log has it.
    pub fn below(&self) -> usize {
        let seen = self.witness.seen();
        seen.pins.values().filter(|pin| seen.is_below(pin)).count()
    }
}

impl Failure {
    pub fn rate(&self) -> f64 {
        let seconds = self.last_move.saturating_duration_since(self.first_move).as_secs_f64();
        self.moved as f64 / seconds.max(0.001)
    }

    pub fn report(&self, report: &mut Report, name: &str) {
        let since_kill = |at: Instant| at.saturating_duration_since(self.killed).as_secs_f64();
        report.figure(&format!("{name}.away"), "from the kill to the last PeerAway", since_kill(self.all_away), "s");
        let what = format!("to the last of {} moves", self.moved);
        report.figure(&format!("{name}.moved"), &what, since_kill(self.last_move), "s");
        let what = "until the new holders have confirmed all of them";
        report.figure(&format!("{name}.settled"), what, since_kill(self.settled), "s");
        self.check(report);
    }

    pub fn check(&self, report: &mut Report) {
        let detail = format!("{} were below it, {} of them without any copy", self.needed, self.without_copy);
        report.goal("0 items left below their minimum", self.still_below == 0, &detail);
        let detail = format!("{} of {} moves", self.moved_needlessly, self.moved);
        report.goal("0 moves of items that had their minimum, or had it again", self.moved_needlessly == 0, &detail);
        let needless = self.written_needlessly;
        report.goal("0 items written that always had their minimum", needless == 0, &needless.to_string());
        report.goal("no acknowledged pin lost", self.lost == 0, &self.lost.to_string());
    }
}
