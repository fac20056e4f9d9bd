//! The newest metric of each (name, peer), with the moment until which this receiver believes it. PURE: the instant is
//! passed in.
//!
//! A TTL is a duration from the sender, so clocks of different hosts are never compared (`beh:B14.11`). Everything a
//! sender controls is bounded here: names, sizes, lifetimes, weights. Whether a peer is a member is decided by the
//! caller; what is held for peers that are no longer members is dropped by `retain`.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use pinfold_common::PeerId;
use pinfold_common::metric::{
    FREESPACE, MAX_NAME_BYTES, MAX_NAMES_PER_PEER, MAX_NOTE_BYTES, MAX_TTL, MAX_VALUE_BYTES, MIN_TTL, NUMPIN, PING,
    PINQUEUE, REPOSIZE,
};
use pinfold_proto::types::Metric;

use crate::error::MonitorError;

/// Peers with metrics; far above any cluster that one leader can serve.
pub const MAX_PEERS: usize = 4096;
/// No disk has more; a larger free space is a lie or a defect, and would draw every pin.
pub const MAX_FREE_BYTES: i64 = 1 << 60;
/// Nor does any peer hold more pins.
const MAX_COUNT: i64 = 1 << 48;
/// How long an expired metric is remembered, so that its expiry can be told.
pub const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// Who told us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The peer the metric is about.
    Itself,
    /// Another member, asked by a monitor that just started. What the peer itself says always replaces it.
    Hearsay,
}

/// What became of an offered metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    New,
    /// Known already, or older than what is known.
    Old,
}

/// One metric as this receiver holds it.
#[derive(Clone, Debug)]
pub struct Entry {
    metric: Metric,
    expires: Instant,
    source: Source,
}

impl Entry {
    /// The metric as it came, with its whole TTL and this receiver's wall clock.
    pub fn metric(&self) -> &Metric {
        &self.metric
    }

    pub fn source(&self) -> Source {
        self.source
    }

    pub fn is_expired(&self, now: Instant) -> bool {
        now >= self.expires
    }

    /// Whether it may be used (`beh:B14.6`).
    pub fn is_usable(&self, now: Instant) -> bool {
        self.metric.valid && !self.is_expired(now)
    }

    /// The metric with what is left of its TTL, for another receiver.
    pub fn forwarded(&self, now: Instant) -> Metric {
        let left = self.expires.saturating_duration_since(now);
        Metric { ttl_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX), ..self.metric.clone() }
    }
}

/// All metrics of all members.
#[derive(Debug, Default)]
pub struct Windows {
    peers: HashMap<PeerId, BTreeMap<String, Entry>>,
}

impl Windows {
    /// Takes a metric about `peer`, whatever peer it names itself. `wall_ns` is this receiver's wall clock, for display.
    pub fn accept(
        &mut self,
        peer: PeerId,
        mut metric: Metric,
        source: Source,
        now: Instant,
        wall_ns: i64,
    ) -> Result<Accepted, MonitorError> {
        check(&metric)?;
        let ttl = Duration::from_millis(metric.ttl_ms).min(MAX_TTL);
        metric.ttl_ms = ttl.as_millis() as u64;
        metric.peer = peer.to_bytes();
        metric.received_at_ns = wall_ns;
        if !self.peers.contains_key(&peer) && self.peers.len() >= MAX_PEERS {
            return Err(refusal(&metric, "metrics of too many peers are held"));
        }
        let names = self.peers.entry(peer).or_default();
        if let Some(known) = names.get(&metric.name)
            && !replaces(&metric, source, known, now)
        {
            return Ok(Accepted::Old);
        }
        if names.len() >= MAX_NAMES_PER_PEER && !names.contains_key(&metric.name) {
            let expired =
                names.iter().filter(|(_, entry)| entry.is_expired(now)).min_by_key(|(_, entry)| entry.expires);
            let Some(name) = expired.map(|(name, _)| name.clone()) else {
                return Err(refusal(&metric, "the peer publishes too many names"));
            };
            names.remove(&name);
        }
        names.insert(metric.name.clone(), Entry { expires: now + ttl, metric, source });
        Ok(Accepted::New)
    }

    /// The newest metric of that name, valid or not, expired or not.
    pub fn newest(&self, peer: &PeerId, name: &str) -> Option<&Entry> {
        self.peers.get(peer)?.get(name)
    }

    /// Whether the peer has any metric but the ping that has not expired: its connector has spoken.
    pub fn has_measurements(&self, peer: &PeerId, now: Instant) -> bool {
        self.of(peer).any(|entry| entry.metric.name != PING && !entry.is_expired(now))
    }

    /// Everything known of one peer, by name.
    pub fn of(&self, peer: &PeerId) -> impl Iterator<Item = &Entry> {
        self.peers.get(peer).into_iter().flat_map(BTreeMap::values)
    }

    /// The usable metrics of that name, in peer ID order.
    pub fn latest(&self, name: &str, now: Instant) -> Vec<&Entry> {
        let mut found: Vec<&Entry> =
            self.peers.values().filter_map(|names| names.get(name)).filter(|entry| entry.is_usable(now)).collect();
        found.sort_by(|a, b| a.metric.peer.cmp(&b.metric.peer));
        found
    }

    /// The names seen so far, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<&String> = self.peers.values().flat_map(BTreeMap::keys).collect();
        names.sort();
        names.dedup();
        names.into_iter().cloned().collect()
    }

    /// All that another receiver may still believe.
    pub fn unexpired(&self, now: Instant) -> impl Iterator<Item = &Entry> {
        self.peers.values().flat_map(BTreeMap::values).filter(move |entry| !entry.is_expired(now))
    }

    /// Drops peers that are no longer members, and metrics that nobody will miss.
    pub fn retain(&mut self, is_member: impl Fn(&PeerId) -> bool, now: Instant) {
        self.peers.retain(|peer, names| {
            names.retain(|name, entry| name == PING || now < entry.expires + FORGET_AFTER);
            is_member(peer) && !names.is_empty()
        });
    }
}

/// Sequences start from the sender's wall clock, in microseconds, and grow by one: a message that was overtaken is a few
/// behind, and a sender that restarted with its clock set back is far behind.
const RESTART_GAP: u64 = 1_000_000;

/// Whether an offered metric takes the place of the known one.
fn replaces(offered: &Metric, source: Source, known: &Entry, now: Instant) -> bool {
    match (source, known.source) {
        (Source::Itself, Source::Hearsay) => true,
        (Source::Itself, Source::Itself) => {
            let began_anew = offered.sequence.saturating_add(RESTART_GAP) < known.metric.sequence;
            offered.sequence > known.metric.sequence || began_anew || known.is_expired(now)
        }
        (Source::Hearsay, Source::Itself) => known.is_expired(now) && offered.sequence > known.metric.sequence,
        (Source::Hearsay, Source::Hearsay) => offered.sequence > known.metric.sequence,
    }
}

fn check(metric: &Metric) -> Result<(), MonitorError> {
    if metric.name.is_empty() || metric.name.len() > MAX_NAME_BYTES {
        return Err(refusal(metric, "its name is empty or too long"));
    }
    if metric.value.len() > MAX_VALUE_BYTES || metric.note.len() > MAX_NOTE_BYTES {
        return Err(refusal(metric, "its value is too long"));
    }
    if Duration::from_millis(metric.ttl_ms) < MIN_TTL {
        return Err(refusal(metric, "its TTL is too short"));
    }
    let limits = match metric.name.as_str() {
        FREESPACE => Some(0..=MAX_FREE_BYTES),
        REPOSIZE => Some(-MAX_FREE_BYTES..=0),
        PINQUEUE | NUMPIN => Some(-MAX_COUNT..=0),
        _ => None,
    };
    let Some(limits) = limits else { return Ok(()) };
    if !limits.contains(&metric.weight) {
        return Err(refusal(metric, "its weight is implausible"));
    }
    // People and scripts read the value: a metric that counts has a count in it.
    if metric.value.parse::<u64>().is_err() {
        return Err(refusal(metric, "its value is not a count"));
    }
    Ok(())
}

fn refusal(metric: &Metric, why: &'static str) -> MonitorError {
    MonitorError::Metric { name: pinfold_common::ids::shorten(&metric.name), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> PeerId {
        PeerId::random()
    }

    fn metric(name: &str, sequence: u64, ttl_ms: u64) -> Metric {
        Metric {
            name: name.to_owned(),
            value: "1".to_owned(),
            weight: 1,
            valid: true,
            ttl_ms,
            sequence,
            ..Metric::default()
        }
    }

    fn accept(windows: &mut Windows, peer: PeerId, metric: Metric, now: Instant) -> Result<Accepted, MonitorError> {
        windows.accept(peer, metric, Source::Itself, now, 0)
    }

    /// Goal: a metric is believed for its TTL by the receiver's clock, and its expiry stays visible as "newest".
    #[test]
    fn ttl_is_the_receivers() {
        let (mut windows, now, a) = (Windows::default(), Instant::now(), peer());
        let offered = Metric { sent_at_ns: i64::MAX, ..metric(FREESPACE, 1, 30_000) };
        accept(&mut windows, a, offered, now).unwrap();
        let just_before = now + Duration::from_millis(29_999);
        assert_eq!(windows.latest(FREESPACE, just_before).len(), 1);
        assert_eq!(windows.newest(&a, FREESPACE).unwrap().forwarded(just_before).ttl_ms, 1);
        let after = now + Duration::from_secs(30);
        assert!(windows.latest(FREESPACE, after).is_empty());
        assert!(windows.newest(&a, FREESPACE).unwrap().is_expired(after));
    }

    /// Goal: repeating a metric does not lengthen its life; only a later sequence does, or anything after expiry.
    #[test]
    fn sequences_order_metrics() {
        let (mut windows, now, a) = (Windows::default(), Instant::now(), peer());
        assert_eq!(accept(&mut windows, a, metric(FREESPACE, 5, 1000), now), Ok(Accepted::New));
        let later = now + Duration::from_millis(500);
        assert_eq!(accept(&mut windows, a, metric(FREESPACE, 5, 1000), later), Ok(Accepted::Old));
        assert_eq!(accept(&mut windows, a, metric(FREESPACE, 4, 1000), later), Ok(Accepted::Old));
        let expired = now + Duration::from_millis(1000);
        assert!(windows.latest(FREESPACE, expired).is_empty());
        // A restarted sender may say anything once that has expired, and at once with a clock that was set back.
        assert_eq!(accept(&mut windows, a, metric(FREESPACE, 3, 1000), expired), Ok(Accepted::New));
        assert_eq!(accept(&mut windows, a, metric(FREESPACE, 4, 1000), expired), Ok(Accepted::New));
    }

    /// Goal: hearsay fills gaps and never outlives the peer's own word, however high its sequence.
    #[test]
    fn hearsay_gives_way() {
        let (mut windows, now, a) = (Windows::default(), Instant::now(), peer());
        let forged = metric(FREESPACE, u64::MAX, 60_000);
        assert_eq!(windows.accept(a, forged.clone(), Source::Hearsay, now, 0), Ok(Accepted::New));
        assert_eq!(accept(&mut windows, a, metric(FREESPACE, 1, 60_000), now), Ok(Accepted::New));
        assert_eq!(windows.accept(a, forged, Source::Hearsay, now, 0), Ok(Accepted::Old));
        assert_eq!(windows.newest(&a, FREESPACE).unwrap().metric().sequence, 1);
    }

    /// Goal: nothing a sender chooses grows without bound, and nonsense is refused (`attack:RP6`, `fault:A12`).
    #[test]
    fn bounds() {
        let (mut windows, now, a) = (Windows::default(), Instant::now(), peer());
        let refused = [
            metric("", 1, 1000),
            metric(&"n".repeat(MAX_NAME_BYTES + 1), 1, 1000),
            Metric { value: "v".repeat(MAX_VALUE_BYTES + 1), ..metric("x", 1, 1000) },
            metric("x", 1, 0),
            Metric { weight: -1, ..metric(FREESPACE, 1, 1000) },
            Metric { weight: i64::MAX, ..metric(FREESPACE, 1, 1000) },
            Metric { weight: i64::MIN, ..metric(REPOSIZE, 1, 1000) },
            Metric { weight: 1, ..metric(PINQUEUE, 1, 1000) },
            Metric { weight: i64::MIN, ..metric(NUMPIN, 1, 1000) },
            Metric { value: "NaN".to_owned(), ..metric(FREESPACE, 1, 1000) },
            Metric { value: "-1".to_owned(), ..metric(FREESPACE, 1, 1000) },
            Metric { value: "1e300".to_owned(), ..metric(FREESPACE, 1, 1000) },
            // Not valid does not mean unchecked.
            Metric { valid: false, weight: i64::MAX, ..metric(FREESPACE, 1, 1000) },
            Metric { note: "n".repeat(MAX_NOTE_BYTES + 1), ..metric("x", 1, 1000) },
        ];
        for bad in refused {
            assert!(accept(&mut windows, a, bad.clone(), now).is_err(), "{bad:?}");
        }
        accept(&mut windows, a, metric("long", 1, u64::MAX), now).unwrap();
        assert!(windows.newest(&a, "long").unwrap().is_expired(now + MAX_TTL));
        for n in 1..MAX_NAMES_PER_PEER {
            accept(&mut windows, a, metric(&format!("m{n}"), 1, 1000), now).unwrap();
        }
        assert!(accept(&mut windows, a, metric("one more", 1, 1000), now).is_err());
        let later = now + Duration::from_secs(1);
        accept(&mut windows, a, metric("one more", 1, 1000), later).unwrap();
        assert_eq!(windows.of(&a).count(), MAX_NAMES_PER_PEER);
    }

    /// Goal: what was said about a peer that left is dropped, and lists are in peer ID order.
    #[test]
    fn members_only_and_sorted() {
        let (mut windows, now) = (Windows::default(), Instant::now());
        let peers: Vec<PeerId> = (0..8).map(|_| peer()).collect();
        for each in &peers {
            accept(&mut windows, *each, metric(FREESPACE, 1, 1000), now).unwrap();
            accept(&mut windows, *each, metric(PING, 1, 1000), now).unwrap();
        }
        windows.retain(|each| *each != peers[0], now);
        let listed: Vec<Vec<u8>> = windows.latest(FREESPACE, now).iter().map(|e| e.metric().peer.clone()).collect();
        let mut expected: Vec<Vec<u8>> = peers[1..].iter().map(|each| each.to_bytes()).collect();
        expected.sort();
        assert_eq!(listed, expected);
        assert_eq!(windows.names(), [FREESPACE, PING]);
        assert!(windows.has_measurements(&peers[1], now));
        windows.retain(|_| true, now + FORGET_AFTER + Duration::from_secs(1));
        assert_eq!(windows.names(), [PING]);
    }
}
