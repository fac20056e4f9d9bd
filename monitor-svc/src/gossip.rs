//! What this peer tells the other monitors, and asks of them (`beh:B14.11`): one lane for each other member, so that a
//! slow one holds up nobody. A lane sends the latest state, never a queue of states: this peer's ping and all its live
//! measurements, at once when either changes (a new ping changes it every `cluster.monitor_ping_interval`), and again
//! after a failure. A new lane also asks what the other one knows, until it answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES, call};
use pinfold_common::peerset::{PeerState, View};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{PeerId, Result};
use pinfold_proto::monitor::gossip_client::GossipClient;
use pinfold_proto::monitor::{PullCall, PushCall};
use tokio::sync::watch;

use crate::ping::Beat;
use crate::store::Store;
use crate::window::Entry;

/// For one push or pull.
const CALL_DEADLINE: Duration = Duration::from_secs(3);
/// Between attempts after a failure: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A member that did not answer a pull for so long is not asked again: its own pings tell the rest.
const PULL_GIVE_UP: Duration = Duration::from_secs(60);

/// All lanes.
pub struct Gossip {
    pub own: PeerId,
    pub channels: Channels,
    pub store: Store,
    pub view: watch::Receiver<Arc<View>>,
    pub measurements: watch::Receiver<Arc<Vec<Entry>>>,
    pub beats: watch::Receiver<Option<Arc<Beat>>>,
}

impl Gossip {
    /// Keeps a lane to every other member, as the peerset changes.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut lanes: HashMap<PeerId, (String, Shutdown)> = HashMap::new();
        loop {
            let view = self.view.borrow_and_update().clone();
            let wanted = self.addresses(&view);
            lanes.retain(|peer, (address, lane)| {
                let is_kept = wanted.get(peer) == Some(address);
                if !is_kept {
                    lane.trigger();
                }
                is_kept
            });
            for (peer, address) in wanted {
                lanes.entry(peer).or_insert_with(|| {
                    let stop = shutdown.child();
                    let lane = self.lane(peer, address.clone());
                    let stopped = stop.clone();
                    tokio::spawn(async move { stopped.race(lane.run()).await });
                    (address, stop)
                });
            }
            match shutdown.race(self.view.changed()).await {
                Some(Ok(())) => {}
                // The peerset is no longer followed: only when everything stops.
                Some(Err(_)) | None => return,
            }
        }
    }

    /// Where the other members' monitors are. One that is away is told too: it may be back.
    fn addresses(&self, view: &View) -> HashMap<PeerId, String> {
        let others = view.peerset.peers.iter().filter(|info| info.peer_id != self.own);
        others
            .filter(|info| info.state != PeerState::Removed)
            .filter_map(|info| Some((info.peer_id, info.address(Room::Monitor)?.to_owned())))
            .collect()
    }

    fn lane(&self, peer: PeerId, address: String) -> Lane {
        let channel = self.channels.to(Room::Monitor, &peer, &address);
        Lane {
            peer,
            client: GossipClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            store: self.store.clone(),
            measurements: self.measurements.clone(),
            beats: self.beats.clone(),
        }
    }
}

/// The way to one other member.
struct Lane {
    peer: PeerId,
    client: GossipClient<tonic::transport::Channel>,
    store: Store,
    measurements: watch::Receiver<Arc<Vec<Entry>>>,
    beats: watch::Receiver<Option<Arc<Beat>>>,
}

impl Lane {
    async fn run(mut self) {
        let (client, store, peer) = (self.client.clone(), self.store.clone(), self.peer);
        tokio::join!(pull_until_answered(client, store, peer), self.push_changes());
    }

    async fn push_changes(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.push_latest().await {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    if !self.changed().await {
                        return;
                    }
                }
                Err(error) => {
                    metrics::counter!("pinfold_monitor_push_failures_total").increment(1);
                    tracing::debug!(peer = %self.peer, %error, ?pause, "push metrics");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// Sends what is live now, if anything is.
    async fn push_latest(&mut self) -> Result<()> {
        let now = Instant::now();
        let mut message = PushCall::default();
        let entries = self.measurements.borrow_and_update().clone();
        message.metrics.extend(entries.iter().filter(|entry| !entry.is_expired(now)).map(|entry| entry.forwarded(now)));
        let beat = self.beats.borrow_and_update().clone();
        if let Some((metric, detail)) = beat.map(|beat| beat.forwarded(now)).filter(|(metric, _)| metric.ttl_ms > 0) {
            message.metrics.push(metric);
            message.ping = Some(detail);
        }
        if message.metrics.is_empty() {
            return Ok(());
        }
        call("push metrics", CALL_DEADLINE, self.client.push(message)).await.map(drop)
    }

    /// False when nothing will change any more.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.measurements.changed() => changed.is_ok(),
            changed = self.beats.changed() => changed.is_ok(),
        }
    }
}

async fn pull_until_answered(mut client: GossipClient<tonic::transport::Channel>, store: Store, peer: PeerId) {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    while started.elapsed() < PULL_GIVE_UP {
        match call("pull metrics", CALL_DEADLINE, client.pull(PullCall {})).await {
            Ok(reply) => {
                if let Err(error) = store.pulled(peer, reply).await {
                    tracing::debug!(%peer, %error, "take pulled metrics");
                }
                return;
            }
            Err(error) => tracing::debug!(%peer, %error, ?pause, "pull metrics"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}
