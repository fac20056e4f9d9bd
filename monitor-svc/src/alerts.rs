//! The history of what went wrong with members: firing, then resolved (`beh:B14.11`, `seed:G6`). PURE: the time is
//! passed in.
//!
//! Level-triggered: the caller says on every check what is wrong now, and the first time it is said, or no longer said,
//! is written down. One incident is one alert, however often it is checked. A monitor that was restarted learns the
//! history from the others: what two of them saw of one incident is one alert as well.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use pinfold_common::PeerId;
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::time::Timestamp;
use pinfold_proto::monitor::Incident;
use pinfold_proto::types::Metric;

/// Alerts remembered (`beh:B14.10`); beyond that the oldest resolved one goes.
pub const MAX_ALERTS: usize = 1000;
/// Two monitors see one incident at most so far apart; two incidents that are closer are told as one.
pub const SAME_INCIDENT: Duration = Duration::from_secs(60);
/// Bounds of what another monitor tells.
const MAX_TEXT_BYTES: usize = 512;
const MAX_AGE: Duration = Duration::from_secs(365 * 24 * 3600);

/// One incident.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    pub peer: PeerId,
    /// What it is about: `ping`, `ipfs`, a room, `metric <name>`; see `known::checks`.
    pub subject: String,
    /// The last metric that was seen, or a ping that never came.
    pub metric: Metric,
    pub what: String,
    pub triggered_at: Timestamp,
    /// `None`: firing.
    pub resolved_at: Option<Timestamp>,
}

/// What an alert is about.
pub type Subject = (PeerId, String);

/// All incidents, oldest first.
#[derive(Debug, Default)]
pub struct Alerts {
    history: VecDeque<(u64, Alert)>,
    firing: HashMap<Subject, u64>,
    next_id: u64,
}

impl Alerts {
    /// Something is wrong now. True when that is new.
    pub fn fire(&mut self, peer: PeerId, subject: &str, at: Timestamp, metric: Metric, what: String) -> bool {
        if self.firing.contains_key(&(peer, subject.to_owned())) {
            return false;
        }
        self.insert(Alert { peer, subject: subject.to_owned(), metric, what, triggered_at: at, resolved_at: None });
        true
    }

    /// In its place by time.
    fn insert(&mut self, alert: Alert) {
        if self.history.len() >= MAX_ALERTS {
            let oldest = self.history.iter().position(|(_, known)| known.resolved_at.is_some()).unwrap_or(0);
            self.history.remove(oldest);
        }
        let id = self.next_id;
        self.next_id += 1;
        if alert.resolved_at.is_none() {
            self.firing.insert((alert.peer, alert.subject.clone()), id);
        }
        let later = self.history.iter().rev().take_while(|(_, known)| known.triggered_at > alert.triggered_at).count();
        self.history.insert(self.history.len() - later, (id, alert));
    }

    /// It is right again. True when it was not.
    pub fn resolve(&mut self, peer: PeerId, subject: &str, at: Timestamp) -> bool {
        let Some(id) = self.firing.remove(&(peer, subject.to_owned())) else { return false };
        // Not found: so much fired meanwhile that its entry went.
        if let Some((_, alert)) = self.history.iter_mut().find(|(known, _)| *known == id) {
            alert.resolved_at = Some(at);
        }
        true
    }

    /// Resolves everything that `is_right` says is right, or nobody's concern any more, and tells what that was.
    pub fn resolve_where(&mut self, at: Timestamp, is_right: impl Fn(&PeerId, &str) -> bool) -> Vec<Subject> {
        let mut right: Vec<Subject> =
            self.firing.keys().filter(|(peer, subject)| is_right(peer, subject)).cloned().collect();
        right.sort();
        for (peer, subject) in &right {
            self.resolve(*peer, subject, at);
        }
        right
    }

    /// The whole history for another monitor, in durations: two wall clocks are never compared.
    pub fn export(&self, now: Timestamp) -> Vec<Incident> {
        let told = self.history.iter().map(|(_, alert)| Incident {
            peer_id: alert.peer.to_bytes(),
            subject: alert.subject.clone(),
            what: alert.what.clone(),
            triggered_ms_ago: ms_between(alert.triggered_at, now),
            resolved: alert.resolved_at.is_some(),
            resolved_ms_ago: alert.resolved_at.map_or(0, |at| ms_between(at, now)),
            metric: Some(Metric { value: cut(&alert.metric.value), ..alert.metric.clone() }),
        });
        told.collect()
    }

    /// What another monitor remembers. What is firing there is firing here until a check finds it right.
    pub fn import(&mut self, told: Vec<Incident>, now: Timestamp) {
        for incident in told.into_iter().take(MAX_ALERTS) {
            let Some(alert) = decode(incident, now) else { continue };
            match self.history.iter_mut().find(|(_, known)| is_same(known, &alert, now)) {
                None => self.insert(alert),
                Some((_, known)) => known.triggered_at = known.triggered_at.min(alert.triggered_at),
            }
        }
        self.history.make_contiguous().sort_by_key(|(_, alert)| alert.triggered_at);
    }

    pub fn firing_count(&self) -> usize {
        self.firing.len()
    }

    /// Newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Alert> {
        self.history.iter().rev().map(|(_, alert)| alert)
    }
}

fn is_same(known: &Alert, told: &Alert, now: Timestamp) -> bool {
    if known.peer != told.peer || known.subject != told.subject {
        return false;
    }
    let end = |alert: &Alert| alert.resolved_at.unwrap_or(now);
    let reaches = |from: Timestamp, until: Timestamp| until.checked_add(SAME_INCIDENT).is_none_or(|late| from <= late);
    reaches(known.triggered_at, end(told)) && reaches(told.triggered_at, end(known))
}

fn decode(incident: Incident, now: Timestamp) -> Option<Alert> {
    let peer = peer_from_bytes(&incident.peer_id).ok()?;
    let ago = |ms: u64| {
        let nanos = Duration::from_millis(ms).min(MAX_AGE).as_nanos() as i64;
        Timestamp::from_unix_nanos(now.unix_nanos().saturating_sub(nanos))
    };
    let triggered_at = ago(incident.triggered_ms_ago);
    let resolved_at = incident.resolved.then(|| ago(incident.resolved_ms_ago).max(triggered_at));
    let metric = incident.metric.unwrap_or_default();
    let metric = Metric {
        name: cut(&metric.name),
        value: cut(&metric.value),
        note: cut(&metric.note),
        peer: incident.peer_id,
        ..metric
    };
    Some(Alert { peer, subject: cut(&incident.subject), metric, what: cut(&incident.what), triggered_at, resolved_at })
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT_BYTES)].to_owned()
}

/// 0 when the wall clock was set back meanwhile.
fn ms_between(from: Timestamp, to: Timestamp) -> u64 {
    let nanos = to.unix_nanos().saturating_sub(from.unix_nanos());
    u64::try_from(nanos / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fire(alerts: &mut Alerts, peer: PeerId, at: i64) {
        alerts.fire(peer, "ping", Timestamp::from_seconds(at), Metric::default(), "no ping".to_owned());
    }

    /// Goal: one incident is one alert, resolved on return; the next incident is another one.
    #[test]
    fn seed_g6_one_alert_per_incident() {
        let (mut alerts, a) = (Alerts::default(), PeerId::random());
        fire(&mut alerts, a, 1);
        fire(&mut alerts, a, 2);
        alerts.resolve(a, "ping", Timestamp::from_seconds(3));
        alerts.resolve(a, "ping", Timestamp::from_seconds(4));
        fire(&mut alerts, a, 5);
        let times: Vec<_> = alerts.newest_first().map(|one| (one.triggered_at.seconds, one.resolved_at)).collect();
        assert_eq!(times, [(5, None), (1, Some(Timestamp::from_seconds(3)))]);
        alerts.resolve_where(Timestamp::from_seconds(6), |peer, _| *peer == a);
        assert_eq!(alerts.firing_count(), 0);
    }

    /// Goal: the history is bounded, and what still fires outlives what is resolved.
    #[test]
    fn bounded_history() {
        let (mut alerts, long) = (Alerts::default(), PeerId::random());
        fire(&mut alerts, long, 0);
        for at in 1..2 * MAX_ALERTS as i64 {
            let peer = PeerId::random();
            fire(&mut alerts, peer, at);
            alerts.resolve(peer, "ping", Timestamp::from_seconds(at));
        }
        assert_eq!(alerts.newest_first().count(), MAX_ALERTS);
        assert_eq!(alerts.newest_first().last().map(|alert| alert.triggered_at.seconds), Some(0));
        for at in 0..2 * MAX_ALERTS as i64 {
            fire(&mut alerts, PeerId::random(), at);
        }
        assert_eq!(alerts.newest_first().count(), MAX_ALERTS);
        alerts.resolve_where(Timestamp::from_seconds(9), |_, _| true);
        assert_eq!(alerts.firing_count(), 0);
    }

    /// Goal: a monitor that starts again has the history of the others, one alert for what several of them saw, whatever
    /// their clocks say; what fires goes on firing until it is found right.
    #[test]
    fn seed_g6_history_outlives_its_monitor() {
        let (a, b) = (PeerId::random(), PeerId::random());
        let mut elder = Alerts::default();
        fire(&mut elder, a, 1000);
        elder.resolve(a, "ping", Timestamp::from_seconds(1300));
        fire(&mut elder, b, 1400);
        let elders_now = Timestamp::from_seconds(1500);
        // Its clock is an hour behind, and it saw everything a little later.
        let mut other = Alerts::default();
        fire(&mut other, a, 1000 - 3600 + 9);
        other.resolve(a, "ping", Timestamp::from_seconds(1300 - 3600 + 4));
        fire(&mut other, b, 1400 - 3600 + 12);

        let mut young = Alerts::default();
        let now = Timestamp::from_seconds(9_000_000);
        young.import(other.export(Timestamp::from_seconds(1500 - 3600)), now);
        young.import(elder.export(elders_now), now);
        young.import(elder.export(elders_now), now);
        let told: Vec<_> = young.newest_first().map(|one| (one.peer, now.seconds - one.triggered_at.seconds)).collect();
        assert_eq!(told, [(b, 100), (a, 500)]);
        assert_eq!(young.firing_count(), 1);
        assert!(!young.fire(b, "ping", now, Metric::default(), "no ping".to_owned()), "it is the same incident");
        young.resolve(b, "ping", now);
        assert_eq!(young.newest_first().next().unwrap().resolved_at, Some(now));
        // Hours later it is another one.
        fire(&mut young, b, now.seconds + 7200);
        assert_eq!(young.newest_first().count(), 3);
    }

    /// Goal: what another monitor tells is bounded, and nonsense in it is passed over.
    #[test]
    fn told_by_a_liar() {
        let mut young = Alerts::default();
        let now = Timestamp::from_seconds(1_000_000_000);
        let lie = |ms: u64| Incident {
            peer_id: PeerId::random().to_bytes(),
            subject: "s".repeat(10_000),
            what: "w".repeat(10_000),
            triggered_ms_ago: ms,
            resolved: true,
            resolved_ms_ago: u64::MAX,
            metric: Some(Metric { value: "v".repeat(100_000), ..Metric::default() }),
        };
        let nobody = Incident { peer_id: vec![1, 2, 3], ..lie(0) };
        young.import((0..5000).map(lie).chain([nobody, lie(u64::MAX)]).collect(), now);
        assert_eq!(young.newest_first().count(), MAX_ALERTS);
        assert!(
            young
                .newest_first()
                .all(|one| one.what.len() == MAX_TEXT_BYTES && one.metric.value.len() == MAX_TEXT_BYTES)
        );
    }
}
