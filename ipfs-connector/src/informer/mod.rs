//! What this peer measures about itself, told to the own monitor (beh:B14.4): free or used space, the pin queue, tags,
//! and who the IPFS node is. At the start, every half TTL, when a trigger says so, and as soon as the monitor turns out
//! not to have what was told: it keeps everything in memory, and may have been restarted at any time.

mod measure;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES, call};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{PeerId, Result};
use pinfold_proto::monitor::monitor_client::MonitorClient;
use pinfold_proto::monitor::{LatestMetricsCall, PublishCall};
use pinfold_proto::types::{IpfsId, Metric};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::node::IpfsNode;
use crate::store::Store;
use crate::tracker::health::Health;

/// For one publication, and for the question whether it is still known.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);
/// How often the monitor is asked whether it still has what it was told.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// After a failed publication: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// After a measurement that failed, or a quarter of its TTL where that is shorter.
const MEASURE_AGAIN: Duration = Duration::from_secs(5);

/// What `repo/stat` is told as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskMetric {
    Freespace,
    Reposize,
}

/// One informer and the life of its metrics.
#[derive(Clone, Debug, PartialEq)]
pub enum Informer {
    Disk {
        kind: DiskMetric,
        /// Used share of the space, above 0 and at most 1, from which on nothing new is taken.
        watermark: f64,
    },
    PinQueue {
        bucket: u64,
    },
    Tags(BTreeMap<String, String>),
    /// This peer's pins.
    NumPin,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub informer: Informer,
    pub ttl: Duration,
}

/// Counts metric trigger points (beh:B13.9); every n-th publishes everything at once. Clones share the count.
#[derive(Clone, Default)]
pub struct Trigger {
    interval: u64,
    count: Arc<AtomicU64>,
    fired: Arc<Notify>,
}

impl Trigger {
    /// 0: never.
    pub fn every(interval: u64) -> Trigger {
        Trigger { interval, ..Trigger::default() }
    }

    pub fn hit(&self) {
        if self.interval > 0 && (self.count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(self.interval) {
            self.fired.notify_one();
        }
    }
}

pub struct Publisher {
    pub own: PeerId,
    pub channels: Channels,
    /// Of the own monitor, host:port.
    pub monitor: String,
    pub planned: Vec<Planned>,
    pub node: Arc<dyn IpfsNode>,
    pub health: Health,
    pub store: Store,
    pub trigger: Trigger,
}

impl Publisher {
    pub async fn run(self, shutdown: Shutdown) {
        shutdown.race(self.publish_for_ever()).await;
    }

    async fn publish_for_ever(&self) {
        let mut health = self.health.subscribe();
        let mut due = vec![Instant::now(); self.planned.len()];
        let mut pause = FIRST_PAUSE;
        let mut tell_ipfs = true;
        // A metric that the monitor should have.
        let mut told: Option<String> = None;
        let mut check_at = Instant::now() + CHECK_INTERVAL;
        loop {
            let ipfs = public(health.borrow_and_update().to_proto());
            let (metrics, next) = self.measure(&due).await;
            let name = metrics.first().map(|metric| metric.name.clone());
            let published = if metrics.is_empty() && !tell_ipfs { Ok(()) } else { self.tell(metrics, ipfs).await };
            match published {
                Ok(()) => {
                    due = next;
                    told = name.or(told);
                    tell_ipfs = false;
                    pause = FIRST_PAUSE;
                }
                Err(error) => {
                    // Whatever was told before may be lost with the monitor that took it.
                    tracing::debug!(%error, "metrics are not published");
                    due = vec![Instant::now(); due.len()];
                    tell_ipfs = true;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                    continue;
                }
            }
            let wait_until = due.iter().copied().min().unwrap_or(check_at).min(check_at);
            tokio::select! {
                () = tokio::time::sleep_until(wait_until) => {}
                () = self.trigger.fired.notified() => due = vec![Instant::now(); due.len()],
                changed = health.changed() => {
                    // The sender lives as long as self; a node that came back is measured at once.
                    if changed.is_ok() {
                        due = vec![Instant::now(); due.len()];
                        tell_ipfs = true;
                    }
                }
            }
            if Instant::now() >= check_at {
                if let Some(name) = &told
                    && !self.is_known(name).await
                {
                    due = vec![Instant::now(); due.len()];
                    tell_ipfs = true;
                }
                check_at = Instant::now() + CHECK_INTERVAL;
            }
        }
    }

    /// Metrics of the informers that are due, and when each is due next.
    async fn measure(&self, due: &[Instant]) -> (Vec<Metric>, Vec<Instant>) {
        let now = Instant::now();
        let mut metrics = Vec::new();
        let mut next = due.to_vec();
        for (planned, next) in self.planned.iter().zip(&mut next).filter(|(_, next)| **next <= now) {
            *next = match measure::metrics(&planned.informer, self.node.as_ref(), &self.health, &self.store).await {
                Some(measured) => {
                    metrics.extend(measured.into_iter().map(|metric| Metric {
                        peer: self.own.to_bytes(),
                        ttl_ms: planned.ttl.as_millis() as u64,
                        ..metric
                    }));
                    now + planned.ttl / 2
                }
                None => now + (planned.ttl / 4).min(MEASURE_AGAIN),
            };
        }
        (metrics, next)
    }

    fn client(&self) -> MonitorClient<Channel> {
        let channel = self.channels.to(Room::Monitor, &self.own, &self.monitor);
        MonitorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn tell(&self, metrics: Vec<Metric>, ipfs: IpfsId) -> Result<()> {
        let request = PublishCall { room: Room::Connector.name().to_owned(), metrics, ipfs: Some(ipfs) };
        call("publish metrics", PUBLISH_DEADLINE, self.client().publish(request)).await.map(drop)
    }

    /// Whether the monitor still has what it was told. No answer: it has not.
    async fn is_known(&self, name: &str) -> bool {
        let request = LatestMetricsCall { name: name.to_owned() };
        let own = self.own.to_bytes();
        match call("ask for own metrics", PUBLISH_DEADLINE, self.client().latest_metrics(request)).await {
            Ok(reply) => reply.metrics.iter().any(|metric| metric.peer == own),
            Err(_) => false,
        }
    }
}

/// Only addresses that mean something elsewhere (beh:B14.3): DNS names and global unicast, which with Go includes
/// private networks.
fn public(mut ipfs: IpfsId) -> IpfsId {
    ipfs.addresses.retain(|text| text.parse::<multiaddr::Multiaddr>().is_ok_and(|address| is_public(&address)));
    ipfs
}

fn is_public(address: &multiaddr::Multiaddr) -> bool {
    use multiaddr::Protocol;
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast())
        }
        Some(Protocol::Ip6(ip)) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local() || ip.is_multicast())
        }
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => true,
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only the n-th trigger point fires, and none when it is off.
    #[tokio::test]
    async fn trigger_points() {
        let trigger = Trigger::every(3);
        let fired = || futures::FutureExt::now_or_never(trigger.fired.notified()).is_some();
        trigger.hit();
        trigger.hit();
        assert!(!fired());
        trigger.hit();
        assert!(fired());
        let off = Trigger::every(0);
        off.hit();
        assert!(futures::FutureExt::now_or_never(off.fired.notified()).is_none());
    }

    /// Goal: addresses that mean nothing elsewhere stay here.
    #[test]
    fn public_addresses() {
        for (address, expected) in [
            ("/ip4/127.0.0.1/tcp/4001", false),
            ("/ip4/10.1.2.3/tcp/4001", true),
            ("/ip4/169.254.1.1/tcp/4001", false),
            ("/ip6/::1/tcp/4001", false),
            ("/ip6/2001:db8::1/tcp/4001", true),
            ("/dns4/ipfs.example/tcp/4001", true),
        ] {
            assert_eq!(is_public(&address.parse().unwrap()), expected, "{address}");
        }
    }
}
