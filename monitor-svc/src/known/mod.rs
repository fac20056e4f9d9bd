//! Everything this monitor knows, as one value: the peerset it follows, metrics, pings, Raft contacts, reservations,
//! alerts; and what follows from them (`checks`: what is wrong now). No `async` and no clock: the `store` task owns it and passes in the time.

mod checks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pinfold_common::PeerId;
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::metric::{FREESPACE, MAX_NAMES_PER_PEER, PING, REPOSIZE, TAG_PREFIX};
use pinfold_common::peerset::{PeerInfo, PeerState, View};
use pinfold_common::time::Timestamp;
use pinfold_common::tls::Room;
use pinfold_proto::monitor::{self as wire, PeerPing, PingDetail, PullReply};
use pinfold_proto::types::{KeyValue, Metric};

use crate::alerts::Alerts;
use crate::allocator::{self, Field, Holding, Item, Ledger, Measured, Outcome, Row, Standing};
use crate::error::MonitorError;
use crate::liveness::{Liveness, State, Verdict};
use crate::ping::{Beat, Sequence, bounded};
use crate::window::{Accepted, Entry, Source, Windows};

/// How long a monitor waits for members it has not heard of before it allocates without them (protocols.md 5).
pub const WARM_UP: Duration = Duration::from_secs(10);
/// Metrics in one message of one peer.
pub const MAX_METRICS_PER_PUSH: usize = MAX_NAMES_PER_PEER + 1;

/// This moment, on both clocks: the monotonic one decides, the wall clock is for display.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub instant: Instant,
    pub wall: Timestamp,
}

impl Now {
    pub fn read() -> Now {
        Now { instant: Instant::now(), wall: Timestamp::now() }
    }
}

/// What of the configuration decides here.
#[derive(Clone, Debug)]
pub struct Rules {
    pub own: PeerId,
    /// How long a member may be silent that never sent a TTL: that of this peer's own pings.
    pub ping_ttl: Duration,
    pub allocate_by: Vec<String>,
    pub pinqueue_bucket: u64,
}

/// What a member's last ping said, and when this monitor or the one it asked heard it.
#[derive(Clone, Debug)]
struct Heard {
    detail: PingDetail,
    at: Instant,
    /// Since when its pings have said, without a break, that its IPFS node is down.
    ipfs_down_since: Option<Instant>,
}

impl Heard {
    fn new(detail: PingDetail, at: Instant, before: Option<&Heard>) -> Heard {
        let since = before.and_then(|before| before.ipfs_down_since).unwrap_or(at);
        Heard { ipfs_down_since: detail.ipfs_down.then_some(since), detail: bounded(detail), at }
    }

    /// A peer that has fallen silent says nothing of its node any more: only what it has said counts.
    fn ipfs_down_for(&self) -> Duration {
        self.ipfs_down_since.map_or(Duration::ZERO, |since| self.at.saturating_duration_since(since))
    }
}

/// The last thing of a member that was not taken.
#[derive(Clone, Debug)]
struct Refused {
    why: String,
    at: Instant,
}

pub struct Known {
    rules: Rules,
    sequence: Sequence,
    view: Arc<View>,
    windows: Windows,
    liveness: Liveness,
    ledger: Ledger,
    heard: HashMap<PeerId, Heard>,
    refused: HashMap<PeerId, Refused>,
    /// Why this peer, which leads, has stopped to re-pin, and when it last said so.
    repin_stopped: Option<(String, Instant)>,
    /// The last leader that was known.
    leader: Option<PeerId>,
    alerts: Alerts,
    /// Once true, it stays: later members are waited for one by one.
    is_warm: bool,
}

impl Known {
    pub fn new(rules: Rules, sequence: Sequence, now: Now) -> Known {
        Known {
            windows: Windows::default(),
            liveness: Liveness::new(rules.own, rules.ping_ttl, now.instant),
            ledger: Ledger::new(now.instant),
            heard: HashMap::new(),
            refused: HashMap::new(),
            repin_stopped: None,
            leader: None,
            alerts: Alerts::default(),
            view: Arc::new(View::default()),
            is_warm: false,
            sequence,
            rules,
        }
    }

    /// To be called every `OBSERVE_INTERVAL`, and before anything else is asked.
    pub fn observe(&mut self, now: Now) {
        self.liveness.observe(now.instant);
        if !self.is_warm {
            self.is_warm = self.awaited(now).is_none();
        }
    }

    /// The peerset as it is now.
    pub fn follow(&mut self, view: Arc<View>, now: Now) {
        if view.leader.is_some() && view.leader != self.leader {
            if self.leader.is_some() {
                self.liveness.judge_anew(now.instant);
            }
            self.leader = view.leader;
        }
        self.view = view;
        let members = self.view.peerset.peers.iter().filter(|info| info.state != PeerState::Removed);
        self.liveness.set_members(members.map(|info| info.peer_id), now.instant);
        self.forget(now);
        metrics::gauge!("pinfold_monitor_members").set(self.view.peerset.peers.len() as f64);
    }

    /// Drops what concerns no member any more, or nobody.
    fn forget(&mut self, now: Now) {
        let (liveness, own) = (&self.liveness, self.rules.own);
        let is_kept = |peer: &PeerId| *peer == own || liveness.is_member(peer);
        self.windows.retain(is_kept, now.instant);
        self.ledger.retain(is_kept);
        self.heard.retain(|peer, _| is_kept(peer));
        self.refused.retain(|peer, _| is_kept(peer));
        checks::log_resolved(&self.alerts.resolve_where(now.wall, |peer, _| !is_kept(peer)));
    }

    /// What this peer's own connector measured. Everything that can be taken is taken; the first refusal is answered.
    pub fn publish(&mut self, measured: Vec<Metric>, now: Now) -> Result<(), MonitorError> {
        check_count(measured.len())?;
        let mut outcome = Ok(());
        for metric in measured {
            let sent_at_ns = if metric.sent_at_ns == 0 { now.wall.unix_nanos() } else { metric.sent_at_ns };
            let metric = Metric { sequence: self.sequence.next(), sent_at_ns, ..metric };
            if metric.name == PING {
                outcome =
                    outcome.and(Err(MonitorError::Metric { name: metric.name, why: "pings are the monitor's own" }));
                continue;
            }
            outcome = outcome.and(self.accept(self.rules.own, metric, Source::Itself, now).map(drop));
        }
        outcome
    }

    /// This peer's measurements that have not expired, for the others.
    pub fn own_measurements(&self, now: Now) -> Vec<Entry> {
        let own = self.windows.of(&self.rules.own);
        let is_ours = |entry: &&Entry| entry.metric().name != PING && entry.source() == Source::Itself;
        own.filter(is_ours).filter(|entry| !entry.is_expired(now.instant)).cloned().collect()
    }

    /// This peer's own ping, which it believes like those of others.
    pub fn own_ping(&mut self, beat: &Beat, now: Now) {
        let (metric, detail) = beat.forwarded(now.instant);
        self.hear(self.rules.own, vec![metric], Some(detail), now);
    }

    /// What a member pushed about itself. What breaks a bound is refused alone, and counted.
    pub fn push(
        &mut self,
        from: PeerId,
        metrics: Vec<Metric>,
        ping: Option<PingDetail>,
        now: Now,
    ) -> Result<(), MonitorError> {
        check_count(metrics.len())?;
        if self.liveness.is_member(&from) {
            self.hear(from, metrics, ping, now);
        }
        Ok(())
    }

    fn hear(&mut self, from: PeerId, metrics: Vec<Metric>, ping: Option<PingDetail>, now: Now) {
        for metric in metrics {
            let (is_ping, ttl) = (metric.name == PING, Duration::from_millis(metric.ttl_ms));
            match self.accept(from, metric, Source::Itself, now) {
                Ok(Accepted::New) if is_ping => self.liveness.ping(&from, now.instant, ttl),
                Ok(Accepted::New | Accepted::Old) => {}
                Err(error) => {
                    metrics::counter!("pinfold_monitor_metrics_refused_total").increment(1);
                    tracing::debug!(peer = %from, %error, "metric of another peer");
                    self.refused.insert(from, Refused { why: error.to_string(), at: now.instant });
                }
            }
        }
        if let Some(detail) = ping {
            let heard = Heard::new(detail, now.instant, self.heard.get(&from));
            self.heard.insert(from, heard);
        }
    }

    fn accept(&mut self, peer: PeerId, metric: Metric, source: Source, now: Now) -> Result<Accepted, MonitorError> {
        let tells_space = metric.name == FREESPACE || metric.name == REPOSIZE;
        let holding = Holding { bytes: metric.used_bytes, items: metric.pinned_items };
        let accepted = self.windows.accept(peer, metric, source, now.instant, now.wall.unix_nanos())?;
        if tells_space && accepted == Accepted::New {
            self.ledger.measured(&peer, holding);
        }
        Ok(accepted)
    }

    /// What `from` knows of everybody, for a start that need not wait for everybody's next ping.
    pub fn pulled(&mut self, from: PeerId, reply: PullReply, now: Now) {
        let mut ping_ttls: HashMap<PeerId, Duration> = HashMap::new();
        for metric in reply.metrics {
            let Ok(peer) = peer_from_bytes(&metric.peer) else { continue };
            // What this peer's connector measured is known to the others after a restart; of its pings it needs no news.
            let is_news = peer != self.rules.own || metric.name != PING;
            if !is_news || !self.liveness.is_member(&peer) {
                continue;
            }
            if metric.name == PING {
                ping_ttls.insert(peer, Duration::from_millis(metric.ttl_ms));
            }
            let source = if peer == from { Source::Itself } else { Source::Hearsay };
            if let Err(error) = self.accept(peer, metric, source, now) {
                tracing::debug!(%from, %peer, %error, "metric pulled from another peer");
            }
        }
        for PeerPing { peer_id, ping, age_ms } in reply.pings {
            let (Ok(peer), Some(detail)) = (peer_from_bytes(&peer_id), ping) else { continue };
            let Some(at) = now.instant.checked_sub(Duration::from_millis(age_ms)) else { continue };
            if peer == self.rules.own || !self.liveness.is_member(&peer) {
                continue;
            }
            // What is left of its TTL came with the metric; an expired one is known to be silent since its age.
            // Nobody vouches for another one for longer than this peer's own pings would live.
            let ttl =
                ping_ttls.get(&peer).map(|left| (*left).min(self.rules.ping_ttl) + now.instant.duration_since(at));
            self.liveness.ping(&peer, at, ttl.unwrap_or(Duration::ZERO));
            if self.heard.get(&peer).is_none_or(|known| known.at < at) {
                self.heard.insert(peer, Heard::new(detail, at, None));
            }
        }
        self.alerts.import(reply.incidents, now.wall);
        self.forget(now);
    }

    /// Everything, for a monitor that just started.
    pub fn pull(&self, now: Now) -> PullReply {
        let pings = self.heard.iter().map(|(peer, heard)| PeerPing {
            peer_id: peer.to_bytes(),
            ping: Some(heard.detail.clone()),
            age_ms: millis(now.instant.saturating_duration_since(heard.at)),
        });
        PullReply {
            metrics: self.windows.unexpired(now.instant).map(|entry| entry.forwarded(now.instant)).collect(),
            pings: pings.collect(),
            incidents: self.alerts.export(now.wall),
        }
    }

    /// When this peer's consensus last heard of each member over Raft; and why it has stopped to re-pin, if it has.
    pub fn contacts(&mut self, ages: &[(PeerId, Duration)], repin_stopped: String, now: Now) {
        self.repin_stopped = (!repin_stopped.is_empty()).then_some((repin_stopped, now.instant));
        for (peer, age) in ages {
            if let Some(heard) = now.instant.checked_sub(*age) {
                self.liveness.contact(peer, heard);
            }
        }
    }

    /// The latest usable metric of each member, with what is left of its TTL, in peer ID order.
    pub fn latest(&self, name: &str, now: Now) -> Vec<Metric> {
        self.windows.latest(name, now.instant).into_iter().map(|entry| entry.forwarded(now.instant)).collect()
    }

    pub fn names(&self) -> Vec<String> {
        self.windows.names()
    }

    pub fn alerts(&self) -> &Alerts {
        &self.alerts
    }

    /// Decides a batch and reserves what it gave away; on an error nothing is reserved.
    pub fn allocate(&mut self, items: &[Item], now: Now) -> Result<Vec<Outcome>, MonitorError> {
        self.ledger.settle(now.instant);
        let awaited = self.awaited(now);
        if let (false, Some(reason)) = (self.is_warm, &awaited) {
            return Err(MonitorError::WarmingUp(reason.clone()));
        }
        let mut field = Field::new(&self.rules.allocate_by, self.rules.pinqueue_bucket, &self.rows(now), &self.ledger);
        let outcomes = allocator::allocate(&mut field, items);
        let too_few = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::TooFew(_))).count();
        if let (1.., Some(reason)) = (too_few, awaited) {
            // A member that joined a moment ago may be the one that is missing.
            return Err(MonitorError::WarmingUp(reason));
        }
        metrics::counter!("pinfold_monitor_allocations_total").increment(items.len() as u64);
        metrics::counter!("pinfold_monitor_allocations_too_few_total").increment(too_few as u64);
        for (peer, bytes) in field.taken {
            self.ledger.reserve(peer, bytes);
        }
        Ok(outcomes)
    }

    /// Whom an allocation should wait for, in words; `None` when everybody was heard of or had time enough.
    fn awaited(&self, now: Now) -> Option<String> {
        let peers = &self.view.peerset.peers;
        if self.view.peerset.get(&self.rules.own).is_none() {
            return Some("this peer is not in the peerset yet".to_owned());
        }
        let silent = peers.iter().filter(|info| info.state == PeerState::Healthy).filter(|info| {
            let grace_from = self.liveness.known_since(&info.peer_id).max(Some(self.liveness.awake_since()));
            let in_grace = grace_from.is_some_and(|from| now.instant < from + WARM_UP);
            in_grace && !self.is_heard(&info.peer_id, now)
        });
        match silent.count() {
            0 => None,
            count => Some(format!("{count} of {} peers have not been heard of yet", peers.len())),
        }
    }

    /// A member that is alive and whose connector has published; or one that others heard of, and no longer do.
    fn is_heard(&self, peer: &PeerId, now: Now) -> bool {
        let has_measurements = self.windows.has_measurements(peer, now.instant);
        if *peer == self.rules.own {
            return has_measurements;
        }
        match self.liveness.ping_is_fresh(peer, now.instant) {
            true => has_measurements,
            false => self.liveness.was_pinged(peer),
        }
    }

    /// Whether an allocation now would have to wait for somebody.
    pub fn is_warming_up(&self) -> bool {
        !self.is_warm
    }

    fn rows(&self, now: Now) -> Vec<Row<'_>> {
        let members = self.view.peerset.peers.iter().filter(|info| info.state != PeerState::Removed);
        members
            .map(|info| Row {
                peer: info.peer_id,
                standing: self.standing(info, now),
                measured: self
                    .rules
                    .allocate_by
                    .iter()
                    .map(|name| measured(self.windows.newest(&info.peer_id, name), now))
                    .collect(),
            })
            .collect()
    }

    fn standing(&self, info: &PeerInfo, now: Now) -> Standing {
        match info.state {
            PeerState::Draining => return Standing::Draining,
            PeerState::Away | PeerState::Removed => return Standing::Away,
            PeerState::Healthy => {}
        }
        match self.liveness.verdict(&info.peer_id, info.state, now.instant) {
            None | Some(Verdict { state: State::Healthy, is_alive: false, .. }) => Standing::NotHeard,
            Some(Verdict { state: State::Away, .. }) => Standing::Away,
            Some(Verdict { state: State::Suspect, .. }) => Standing::Suspect,
            Some(Verdict { state: State::Healthy, is_alive: true, .. }) => {
                let is_hampered = |detail: &PingDetail| {
                    detail.ipfs_down || detail.degraded.iter().any(|room| room == Room::Connector.name())
                };
                let hampered = self.heard.get(&info.peer_id).is_some_and(|heard| is_hampered(&heard.detail));
                let unsteady = self.liveness.unsteady(&info.peer_id, now.instant).is_some();
                if hampered || unsteady { Standing::Hampered } else { Standing::Live }
            }
        }
    }

    /// Of an item whose size is unknown; 0: nobody has said.
    pub fn mean_item_bytes(&self) -> u64 {
        self.ledger.mean_item_bytes() as u64
    }

    /// What is known of each member, in peer ID order.
    pub fn verdicts(&self, now: Now) -> Vec<wire::Verdict> {
        let mut verdicts: Vec<wire::Verdict> =
            self.view.peerset.peers.iter().filter_map(|info| self.verdict(info, now)).collect();
        verdicts.sort_by(|a, b| a.peer_id.cmp(&b.peer_id));
        verdicts
    }

    fn verdict(&self, info: &PeerInfo, now: Now) -> Option<wire::Verdict> {
        let verdict = self.liveness.verdict(&info.peer_id, info.state, now.instant)?;
        let heard = self.heard.get(&info.peer_id);
        let detail = heard.map(|heard| heard.detail.clone()).unwrap_or_default();
        let state = match verdict.state {
            State::Healthy => wire::verdict::State::Healthy,
            State::Suspect => wire::verdict::State::Suspect,
            State::Away => wire::verdict::State::Away,
        };
        let clock = heard.and_then(|heard| {
            let sent: Timestamp = heard.detail.wall_clock?.into();
            sent.checked_add(now.instant.saturating_duration_since(heard.at))
        });
        Some(wire::Verdict {
            peer_id: info.peer_id.to_bytes(),
            state: state.into(),
            ping_age_ms: verdict.ping_age.map_or(u64::MAX, millis),
            contact_age_ms: verdict.contact_age.map_or(u64::MAX, millis),
            peername: if detail.peername.is_empty() { info.name.clone() } else { detail.peername },
            ipfs: detail.ipfs,
            degraded: detail.degraded,
            ipfs_down: detail.ipfs_down,
            ipfs_down_for_ms: heard.map_or(0, |heard| millis(heard.ipfs_down_for())),
            suspect_for_ms: millis(verdict.suspect_for),
            wall_clock: clock.map(Into::into),
            alive: verdict.is_alive,
            tags: self.tags_of(&info.peer_id),
        })
    }

    /// As it published them last; whoever is away is missed in its failure domain.
    fn tags_of(&self, peer: &PeerId) -> Vec<KeyValue> {
        let mut tags: Vec<KeyValue> = self.windows.of(peer).filter_map(tag_of).collect();
        tags.sort_by(|a, b| a.key.cmp(&b.key));
        tags
    }
}

fn tag_of(entry: &Entry) -> Option<KeyValue> {
    let metric = entry.metric();
    let key = metric.name.strip_prefix(TAG_PREFIX)?.to_owned();
    Some(KeyValue { key, value: metric.value.clone() })
}

fn check_count(count: usize) -> Result<(), MonitorError> {
    match count {
        0..=MAX_METRICS_PER_PUSH => Ok(()),
        _ => Err(MonitorError::TooMany { what: "metrics in one message", count, most: MAX_METRICS_PER_PUSH }),
    }
}

fn measured(entry: Option<&Entry>, now: Now) -> Measured<'_> {
    let Some(entry) = entry else { return Measured::Absent };
    let metric = entry.metric();
    match (metric.valid, entry.is_expired(now.instant)) {
        (_, true) => Measured::Expired,
        (false, false) => Measured::Invalid,
        (true, false) => {
            Measured::Usable { weight: metric.weight, value: &metric.value, partitionable: metric.partitionable }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
