//! The history of what went wrong with members: firing, then resolved (`beh:B14.11`, `seed:G6`). PURE: the time is
//! passed in.
//!
//! Level-triggered: the caller says on every check what is wrong now, and the first time it is said, or no longer said,
//! is written down. One incident is one alert, however often it is checked.

use std::collections::{HashMap, VecDeque};

use pinfold_common::PeerId;
use pinfold_common::time::Timestamp;
use pinfold_proto::types::Metric;

/// Alerts remembered (`beh:B14.10`); beyond that the oldest resolved one goes.
pub const MAX_ALERTS: usize = 1000;

/// One incident.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// The last metric that was seen, or a ping that never came.
    pub metric: Metric,
    pub what: String,
    pub triggered_at: Timestamp,
    /// `None`: firing.
    pub resolved_at: Option<Timestamp>,
}

/// What an alert is about: `ping`, another metric, `ipfs`, or a room.
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
        let key = (peer, subject.to_owned());
        if self.firing.contains_key(&key) {
            return false;
        }
        if self.history.len() >= MAX_ALERTS {
            let oldest = self.history.iter().position(|(_, alert)| alert.resolved_at.is_some()).unwrap_or(0);
            self.history.remove(oldest);
        }
        self.firing.insert(key, self.next_id);
        self.history.push_back((self.next_id, Alert { metric, what, triggered_at: at, resolved_at: None }));
        self.next_id += 1;
        true
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

    pub fn firing_count(&self) -> usize {
        self.firing.len()
    }

    /// Newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Alert> {
        self.history.iter().rev().map(|(_, alert)| alert)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fire(alerts: &mut Alerts, peer: PeerId, at: i64) {
        alerts.fire(peer, "ping", Timestamp::from_seconds(at), Metric::default(), "no ping".to_owned());
    }

    /// Goal: one incident is one alert, resolved on return; the next incident is another one.
    #[test]
    fn one_alert_per_incident() {
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
}
