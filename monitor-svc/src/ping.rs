//! What a ping says, and the task that sends it: every `cluster.monitor_ping_interval`, and at once when something in
//! it changes. The task waits for nobody: it reads the latest values and leaves the beat where the lanes of `gossip`
//! find it (protocols.md 6). A ping says that the peer is alive, not its IPFS node (`beh:B14.3`); how that one is
//! stands inside.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pinfold_common::ids::{peer_from_bytes, shorten};
use pinfold_common::metric::PING;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::time::Timestamp;
use pinfold_common::tls::Room;
use pinfold_proto::monitor::PingDetail;
use pinfold_proto::types::{IpfsId, Metric};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::store::Store;

/// Bounds of what a ping may carry; a receiver cuts what is longer.
pub const MAX_PEERNAME_BYTES: usize = 256;
pub const MAX_ADDRESSES: usize = 32;
pub const MAX_ADDRESS_BYTES: usize = 256;
pub const MAX_DEGRADED: usize = 8;

/// Numbers that grow over restarts too, as long as the clock does: what a receiver orders this peer's metrics by.
#[derive(Clone, Debug)]
pub struct Sequence(Arc<AtomicU64>);

impl Sequence {
    pub fn start() -> Sequence {
        let micros = Timestamp::now().unix_nanos() / 1000;
        Sequence(Arc::new(AtomicU64::new(u64::try_from(micros).unwrap_or(0))))
    }

    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// One ping of this peer.
#[derive(Clone, Debug)]
pub struct Beat {
    pub metric: Metric,
    pub detail: PingDetail,
    pub at: Instant,
}

impl Beat {
    /// The ping as it is sent now: what is left of its TTL, and the clock as it stands.
    pub fn forwarded(&self, now: Instant) -> (Metric, PingDetail) {
        let age = u64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        let metric = Metric { ttl_ms: self.metric.ttl_ms.saturating_sub(age), ..self.metric.clone() };
        let detail = PingDetail { wall_clock: Some(Timestamp::now().into()), ..self.detail.clone() };
        (metric, detail)
    }
}

/// What the ping task reads and writes.
pub struct Pinger {
    pub peername: String,
    pub interval: Duration,
    pub sequence: Sequence,
    pub ipfs: watch::Receiver<IpfsId>,
    pub degraded: watch::Receiver<Vec<Room>>,
    pub beats: watch::Sender<Option<Arc<Beat>>>,
    pub store: Store,
}

impl Pinger {
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once.
        while shutdown.race(self.next(&mut ticks)).await.is_some() {
            let beat = Arc::new(self.beat());
            self.store.offer_own_ping(beat.clone());
            self.beats.send_replace(Some(beat));
            metrics::counter!("pinfold_monitor_pings_total").increment(1);
        }
    }

    async fn next(&mut self, ticks: &mut tokio::time::Interval) {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = self.ipfs.changed() => {}
            Ok(()) = self.degraded.changed() => {}
        }
    }

    fn beat(&mut self) -> Beat {
        let ipfs = self.ipfs.borrow_and_update().clone();
        let degraded = self.degraded.borrow_and_update().iter().map(|room| room.name().to_owned()).collect();
        let now = Timestamp::now();
        let metric = Metric {
            name: PING.to_owned(),
            value: value(&self.peername, &ipfs),
            valid: true,
            ttl_ms: u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX).saturating_mul(2),
            sequence: self.sequence.next(),
            sent_at_ns: now.unix_nanos(),
            ..Metric::default()
        };
        let detail = PingDetail {
            peername: self.peername.clone(),
            ipfs_down: !ipfs.error.is_empty(),
            ipfs: Some(ipfs),
            degraded,
            wall_clock: Some(now.into()),
        };
        Beat { metric, detail: bounded(detail), at: Instant::now() }
    }
}

/// The value as the original writes it (`beh:B14.3`): clients read it as JSON.
fn value(peername: &str, ipfs: &IpfsId) -> String {
    #[derive(serde::Serialize)]
    struct Value<'a> {
        peer_name: &'a str,
        #[serde(skip_serializing_if = "String::is_empty")]
        ipfs_id: String,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        ipfs_addresses: Vec<&'a str>,
    }
    let ipfs_id = peer_from_bytes(&ipfs.id).map(|peer| peer.to_string()).unwrap_or_default();
    let addresses = ipfs.addresses.iter().map(String::as_str).filter(|address| is_public(address));
    let whole = Value { peer_name: peername, ipfs_id, ipfs_addresses: addresses.take(MAX_ADDRESSES / 2).collect() };
    serde_json::to_string(&whole).unwrap_or_default()
}

/// DNS names and addresses that are reachable from anywhere (`beh:B14.3`).
fn is_public(multiaddress: &str) -> bool {
    let mut parts = multiaddress.split('/').skip(1);
    match (parts.next(), parts.next()) {
        (Some("dns" | "dns4" | "dns6" | "dnsaddr"), Some(_)) => multiaddress.len() <= MAX_ADDRESS_BYTES,
        (Some("ip4" | "ip6"), Some(ip)) => ip.parse().is_ok_and(|ip| match ip {
            IpAddr::V4(ip) => {
                !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast())
            }
            IpAddr::V6(ip) => {
                let is_local = ip.is_unique_local() || ip.is_unicast_link_local();
                !(is_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
            }
        }),
        _ => false,
    }
}

/// Cut to the bounds: what another peer says about itself is kept for as long as it is a member.
pub fn bounded(detail: PingDetail) -> PingDetail {
    let ipfs = detail.ipfs.map(bounded_ipfs);
    let mut degraded: Vec<String> = detail.degraded.iter().map(|room| shorten(room)).collect();
    degraded.truncate(MAX_DEGRADED);
    PingDetail { peername: cut(detail.peername, MAX_PEERNAME_BYTES), ipfs, degraded, ..detail }
}

pub fn bounded_ipfs(ipfs: IpfsId) -> IpfsId {
    let mut addresses = ipfs.addresses;
    addresses.retain(|address| address.len() <= MAX_ADDRESS_BYTES);
    addresses.truncate(MAX_ADDRESSES);
    let id = peer_from_bytes(&ipfs.id).map(|peer| peer.to_bytes()).unwrap_or_default();
    IpfsId {
        id,
        addresses,
        agent: cut(ipfs.agent, MAX_ADDRESS_BYTES),
        error: cut(ipfs.error, MAX_ADDRESS_BYTES),
        notice: cut(ipfs.notice, MAX_ADDRESS_BYTES),
    }
}

fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the value reads as the original's, with public addresses only.
    #[test]
    fn value_as_the_original_writes_it() {
        let peer = "12D3KooWHAxxbkpc2zvJip5314vac55wkTwnGf1jU1Xdn9MPh1jU";
        let id = pinfold_common::ids::parse_peer_id(peer).unwrap().to_bytes();
        let mut ipfs = IpfsId { id, ..IpfsId::default() };
        assert_eq!(value("p1", &ipfs), format!(r#"{{"peer_name":"p1","ipfs_id":"{peer}"}}"#));
        ipfs.addresses =
            ["/ip4/127.0.0.1/tcp/4001", "/ip4/10.0.0.1/tcp/4001", "/ip4/93.184.216.34/tcp/4001", "/ip6/::1/tcp/1"]
                .into_iter()
                .chain(["/ip6/2001:db8::1/udp/4001/quic-v1", "/dns4/example.net/tcp/4001", "nonsense"])
                .map(str::to_owned)
                .collect();
        let expected = r#""ipfs_addresses":["/ip4/93.184.216.34/tcp/4001","/ip6/2001:db8::1/udp/4001/quic-v1","/dns4/example.net/tcp/4001"]}"#;
        assert!(value("p1", &ipfs).ends_with(expected), "{}", value("p1", &ipfs));
        assert_eq!(value("p1", &IpfsId::default()), r#"{"peer_name":"p1"}"#);
    }

    /// Goal: what a peer says about itself is bounded.
    #[test]
    fn details_are_cut() {
        let ipfs = IpfsId { id: vec![1; 500], addresses: vec!["/dns4/x".to_owned(); 500], ..IpfsId::default() };
        let long = PingDetail {
            peername: "ä".repeat(500),
            ipfs: Some(ipfs),
            degraded: vec!["x".repeat(500); 50],
            ..PingDetail::default()
        };
        let cut = bounded(long);
        assert!(cut.peername.len() <= MAX_PEERNAME_BYTES);
        assert_eq!(cut.degraded.len(), MAX_DEGRADED);
        let ipfs = cut.ipfs.unwrap();
        assert_eq!((ipfs.id.len(), ipfs.addresses.len()), (0, MAX_ADDRESSES));
    }
}
