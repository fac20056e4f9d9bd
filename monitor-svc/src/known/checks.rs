//! What is wrong with members now: pings that do not come, services and IPFS nodes that do not answer, metrics that are
//! no longer renewed. Said on every check; `alerts` makes incidents of it.

use std::time::Duration;

use pinfold_common::PeerId;
use pinfold_common::metric::{FREESPACE, PING, REPOSIZE};
use pinfold_common::peerset::{PeerInfo, PeerState};
use pinfold_common::tls::Room;
use pinfold_proto::types::Metric;

use super::{Known, Now};
use crate::alerts::Subject;
use crate::liveness::{State, Verdict};

/// What alerts are about, beside `ping` and the rooms of a peer that do not answer it.
const IPFS: &str = "ipfs";
/// The peer takes nothing new for want of space.
const FULL: &str = "full";
/// It sends what cannot be right (`fault:A12`).
const REFUSED: &str = "refused";
/// It comes and goes (`fault:F13`).
const FLAPPING: &str = "flapping";
/// It leads, and has stopped to re-pin (protocols.md 6).
const REPIN: &str = "repin";
/// Its consensus has to go on saying so.
const REPIN_FRESH: Duration = Duration::from_secs(10);
/// In front of the name of a metric that is no longer renewed.
const METRIC_PREFIX: &str = "metric ";

impl Known {
    /// Fires and resolves alerts; every `check_interval` (`seed:G5`).
    pub fn check(&mut self, now: Now) {
        self.forget(now);
        let view = self.view.clone();
        let mut states = [(State::Healthy, "healthy", 0_u32), (State::Suspect, "suspect", 0), (State::Away, "away", 0)];
        for info in view.peerset.peers.iter().filter(|info| info.state != PeerState::Removed) {
            let Some(verdict) = self.liveness.verdict(&info.peer_id, info.state, now.instant) else { continue };
            for (state, _, count) in &mut states {
                *count += u32::from(*state == verdict.state);
            }
            self.check_returns(info, now);
            if self.check_ping(info, &verdict, now) {
                self.check_details(info, now);
                self.check_metrics(info, now);
            }
        }
        self.check_repin(now);
        for (_, name, count) in states {
            metrics::gauge!("pinfold_monitor_peers", "state" => name).set(f64::from(count));
        }
        metrics::gauge!("pinfold_monitor_alerts_firing").set(self.alerts.firing_count() as f64);
    }

    /// This peer's own consensus says it, and others learn of it as of any incident.
    fn check_repin(&mut self, now: Now) {
        let own = self.rules.own;
        let stopped = self.repin_stopped.as_ref().filter(|(_, said)| now.instant < *said + REPIN_FRESH);
        let stopped = stopped.map(|(why, _)| {
            let what = format!("re-pinning has stopped: {why}; it goes on when that clears, or with ctl repin resume");
            (self.last_ping(&own, now), what)
        });
        self.tell(own, REPIN, stopped, now);
    }

    /// Whether its pings come. When they do not, nothing else is said of it: one incident, one alert.
    fn check_ping(&mut self, info: &PeerInfo, verdict: &Verdict, now: Now) -> bool {
        let peer = info.peer_id;
        if self.liveness.ping_is_fresh(&peer, now.instant) || peer == self.rules.own {
            self.tell(peer, PING, None, now);
            return true;
        }
        let is_doubted = match verdict.state {
            State::Suspect | State::Away => true,
            State::Healthy => false,
        };
        // A member that never sent a ping has its grace first, and an observer that was not awake has it too.
        if is_doubted || self.liveness.ping_is_missed(&peer, now.instant) {
            let name = display_name(info);
            let what = match (verdict.ping_age, is_doubted) {
                (None, _) => format!("{name} was never heard of"),
                (Some(_), true) => format!("neither pings nor raft messages of {name} are heard"),
                (Some(_), false) if verdict.is_alive => format!("no pings of {name} are heard; raft still hears it"),
                (Some(_), false) => format!("no pings of {name} are heard"),
            };
            self.tell(peer, PING, Some((self.last_ping(&peer, now), what)), now);
        }
        false
    }

    /// The last ping that was seen, or one that never came.
    fn last_ping(&self, peer: &PeerId, now: Now) -> Metric {
        let newest = self.windows.newest(peer, PING).map(|entry| entry.forwarded(now.instant));
        newest.unwrap_or_else(|| Metric { name: PING.to_owned(), peer: peer.to_bytes(), ..Metric::default() })
    }

    fn check_details(&mut self, info: &PeerInfo, now: Now) {
        let peer = info.peer_id;
        let Some(detail) = self.heard.get(&peer).map(|heard| heard.detail.clone()) else { return };
        let (name, ping) = (display_name(info), self.last_ping(&peer, now));
        let error = detail.ipfs.map(|ipfs| ipfs.error).unwrap_or_default();
        let node_down = detail.ipfs_down.then(|| (ping.clone(), format!("the ipfs node of {name} is down: {error}")));
        self.tell(peer, IPFS, node_down, now);
        let refused = self.refused.get(&peer).filter(|one| now.instant < one.at + self.rules.ping_ttl);
        let refused = refused.map(|one| (ping.clone(), format!("{name} sends what cannot be right: {}", one.why)));
        self.tell(peer, REFUSED, refused, now);
        for room in [Room::Consensus, Room::Connector, Room::Gateway].map(Room::name) {
            let is_silent = detail.degraded.iter().any(|degraded| degraded == room);
            let silent = is_silent.then(|| (ping.clone(), format!("{room} of {name} does not answer")));
            self.tell(peer, room, silent, now);
        }
    }

    /// Said whether it is there now or not: what it does is what is wrong.
    fn check_returns(&mut self, info: &PeerInfo, now: Now) {
        let (peer, name) = (info.peer_id, display_name(info));
        let unsteady = self.liveness.unsteady(&peer, now.instant).map(|(returns, _)| {
            let what = format!("{name} came back {returns} times of late; it is asked last until it stays");
            (self.last_ping(&peer, now), what)
        });
        self.tell(peer, FLAPPING, unsteady, now);
    }

    fn check_metrics(&mut self, info: &PeerInfo, now: Now) {
        let (peer, peername) = (info.peer_id, display_name(info));
        let full = [FREESPACE, REPOSIZE].iter().filter_map(|name| self.windows.newest(&peer, name)).find_map(|entry| {
            let is_full = !entry.metric().valid && !entry.is_expired(now.instant);
            let what = || format!("{peername} takes nothing new: {}", entry.metric().note);
            is_full.then(|| (entry.forwarded(now.instant), what()))
        });
        self.tell(peer, FULL, full, now);
        let measurements = self.windows.of(&peer).filter(|entry| entry.metric().name != PING);
        let findings: Vec<(String, Option<(Metric, String)>)> = measurements
            .map(|entry| {
                let name = &entry.metric().name;
                let expired = entry.is_expired(now.instant).then(|| entry.forwarded(now.instant));
                (metric_subject(name), expired.map(|last| (last, format!("{name} of {peername} is no longer renewed"))))
            })
            .collect();
        // Nobody waits for the return of a metric that is forgotten.
        let resolved = self.alerts.resolve_where(now.wall, |about, subject| {
            let is_remembered = || findings.iter().any(|(known, _)| known == subject);
            *about == peer && subject.starts_with(METRIC_PREFIX) && !is_remembered()
        });
        log_resolved(&resolved);
        for (subject, expired) in findings {
            self.tell(peer, &subject, expired, now);
        }
    }

    /// Something is wrong, or it is not.
    fn tell(&mut self, peer: PeerId, subject: &str, wrong: Option<(Metric, String)>, now: Now) {
        match wrong {
            Some((metric, what)) => {
                if self.alerts.fire(peer, subject, now.wall, metric, what.clone()) {
                    tracing::warn!(%peer, subject, what, "alert");
                }
            }
            None => {
                if self.alerts.resolve(peer, subject, now.wall) {
                    log_resolved(&[(peer, subject.to_owned())]);
                }
            }
        }
    }
}

pub(super) fn log_resolved(subjects: &[Subject]) {
    for (peer, subject) in subjects {
        tracing::info!(%peer, subject, "alert resolved");
    }
}

fn metric_subject(name: &str) -> String {
    format!("{METRIC_PREFIX}{name}")
}

/// The peer's name, or its ID when it has none.
fn display_name(info: &PeerInfo) -> String {
    if info.name.is_empty() { info.peer_id.to_string() } else { info.name.clone() }
}
