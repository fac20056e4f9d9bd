//! The connector: what this peer's IPFS node really holds, and the work towards it. It follows the committed pinset,
//! keeps a queue on disk, pins and unpins at the node, answers for this peer's statuses, takes and gives raw blocks,
//! and tells the own monitor what it measures. It alone talks to the IPFS node, a Kubo beside it or the embedded one.
//! It never decides about other peers, never changes the pinset, and unpins only what it pinned itself.

pub mod config;
pub mod error;
pub mod follow;
mod grpc;
pub mod informer;
mod lists;
pub mod node;
pub mod store;
mod swarm;
pub mod tracker;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pinfold_common::channel::Channels;
use pinfold_common::peerset::PeersHandle;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::status::TrackerStatus;
use pinfold_common::{Error, Result, files, server, telemetry};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use node::IpfsNode;
use node::embedded::EmbeddedNode;
use node::embedded::exchange::Siblings;
use node::kubo::KuboNode;
use tracker::operation::Todo;

pub use config::{Backend, Config};

/// This room's folder below the peer's.
const FOLDER: &str = "tracker";
const PEERSET_FILE: &str = "peerset.pb";
/// How often the gauges are set.
const GAUGE_INTERVAL: Duration = Duration::from_secs(5);

/// Bound by the caller.
pub struct Listeners {
    pub grpc: TcpListener,
    /// For Prometheus; none unless it is configured.
    pub metrics: Option<TcpListener>,
}

/// Runs until `shutdown`. The folder is locked while it runs.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> Result<()> {
    let folder = config.folder.join(FOLDER);
    let _lock = files::lock_folder(&folder)?;
    let channels = Channels::new(config.tls.clone());
    let own = config.tls.own();
    let file = folder.join(PEERSET_FILE);
    let peers = PeersHandle::follow(channels.clone(), own, config.consensus.clone(), file, shutdown.clone());
    match config.backend.clone() {
        Backend::Kubo(kubo) => {
            let node = KuboNode::new(kubo)
                .map_err(|error| Error::from(error).context("ipfs_connector.ipfshttp.node_multiaddress"))?;
            run_with(config, listeners, Arc::new(node), channels, peers, shutdown).await
        }
        Backend::Embedded(embedded) => {
            let siblings = Arc::new(Siblings::new(channels.clone(), peers.clone()));
            let node = EmbeddedNode::open(embedded, vec![siblings]).await?;
            let ran = run_with(config, listeners, Arc::new(node.clone()), channels, peers, shutdown).await;
            ran.and(node.close().await.map_err(Error::from))
        }
    }
}

/// The same with a node and a peerset that somebody else provides: a test, as a rule.
pub async fn run_with(
    config: Config,
    listeners: Listeners,
    node: Arc<dyn IpfsNode>,
    channels: Channels,
    peers: PeersHandle,
    shutdown: Shutdown,
) -> Result<()> {
    let own = config.tls.own();
    let folder = config.folder.join(FOLDER);
    let store = store::Store::open(&folder, config.tracker.policy).await?;
    let health = tracker::health::Health::default();
    let trigger = informer::Trigger::every(config.informer_trigger_interval);
    let (caught_up, is_caught_up) = watch::channel(false);
    let queue = tracker::queue::Queue::new(tracker::queue::Parts {
        store: store.clone(),
        node: node.clone(),
        health: health.clone(),
        trigger: trigger.clone(),
        concurrent_pins: config.tracker.concurrent_pins,
        unpin_disable: config.tracker.unpin_disable,
        caught_up: is_caught_up.clone(),
        shutdown: shutdown.clone(),
    });
    let tracker = tracker::Tracker {
        store: store.clone(),
        queue: queue.clone(),
        health: health.clone(),
        node: node.clone(),
        own: own.to_bytes().into(),
    };
    let follower = follow::Follower {
        store: store.clone(),
        queue: queue.clone(),
        channels: channels.clone(),
        own,
        consensus: config.consensus,
        caught_up,
    };
    let check = tracker::check::Check {
        store: store.clone(),
        queue: queue.clone(),
        node: node.clone(),
        health: health.clone(),
        interval: config.tracker.check_interval,
        caught_up: is_caught_up,
    };
    let publisher = informer::Publisher {
        own,
        channels: channels.clone(),
        monitor: config.monitor,
        planned: config.informers,
        node: node.clone(),
        health: health.clone(),
        store: store.clone(),
        trigger: trigger.clone(),
    };
    let swarm = swarm::SwarmConnect {
        own,
        node: node.clone(),
        health: health.clone(),
        channels,
        peers: peers.clone(),
        delay: config.connect_swarms_delay,
        deadline: config.swarm_connect_deadline,
    };
    let rooms = grpc::Rooms {
        tracker: tracker.clone(),
        node: node.clone(),
        health: health.clone(),
        trigger,
        peername: config.peername,
        shutdown: shutdown.clone(),
    };

    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    let stop = || shutdown.clone();
    let identity = tracker::identity::Identity { store: store.clone(), queue: queue.clone() };
    let collection = tracker::collection::watch(node.clone(), health.clone(), stop());
    tasks.spawn(essential("GC watch", collection, stop()));
    tasks.spawn(essential("health probe", health.run(node, identity, stop()), stop()));
    tasks.spawn(essential("follower", follower.run(stop()), stop()));
    tasks.spawn(essential("queue", queue.run(), stop()));
    tasks.spawn(essential("check", check.run(stop()), stop()));
    tasks.spawn(essential("informers", publisher.run(stop()), stop()));
    tasks.spawn(essential("swarm connect", swarm.run(stop()), stop()));
    tasks.spawn(essential("gauges", gauges(tracker, stop()), stop()));
    if let Some(listener) = listeners.metrics {
        tasks.spawn(telemetry::serve_metrics(listener, shutdown.clone()));
    }
    tasks.spawn(server::serve(listeners.grpc, config.tls, Arc::new(peers), grpc::routes(rooms), shutdown.clone()));

    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or_else(|error| Err(Error::internal(format!("connector task: {error}"))));
        if let Err(error) = &ended {
            tracing::error!(%error, "connector stops");
            shutdown.trigger();
        }
        outcome = outcome.and(ended);
    }
    store.close().await;
    outcome
}

/// A connector that goes on without one of its loops would be wrong in silence: the early end of one is a failure of
/// the whole.
async fn essential(name: &'static str, task: impl Future<Output = ()>, shutdown: Shutdown) -> Result<()> {
    task.await;
    if shutdown.is_triggered() { Ok(()) } else { Err(Error::internal(format!("{name} ended before it was asked to"))) }
}

/// The series of spec/config.md 13.
async fn gauges(tracker: tracker::Tracker, shutdown: Shutdown) {
    loop {
        let count = |status| tracker.store.counts().of(status) as f64;
        let pinning = tracker.queue.board().count_running(Todo::Pin) as f64;
        let pinned = count(TrackerStatus::Pinned);
        let queued = count(TrackerStatus::PinQueued);
        let failed = count(TrackerStatus::PinError) + count(TrackerStatus::UnexpectedlyUnpinned);
        let elsewhere = count(TrackerStatus::Remote) + count(TrackerStatus::Sharded);
        metrics::gauge!("cluster_pins").set(pinned + queued + failed + elsewhere);
        metrics::gauge!("cluster_pins_ipfs_pins").set(pinned);
        metrics::gauge!("cluster_pins_pin_queued").set((queued - pinning).max(0.0));
        metrics::gauge!("cluster_pins_pinning").set(pinning);
        metrics::gauge!("cluster_pins_pin_error").set(count(TrackerStatus::PinError));
        metrics::gauge!("pinfold_pins_unpin_queued").set(count(TrackerStatus::UnpinQueued));
        metrics::gauge!("pinfold_pins_unpin_error").set(count(TrackerStatus::UnpinError));
        metrics::gauge!("pinfold_pin_slots").set(tracker.queue.slots() as f64);
        metrics::gauge!("pinfold_pins_waiting_aside").set(tracker.queue.aside() as f64);
        if shutdown.race(tokio::time::sleep(GAUGE_INTERVAL)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
extern crate self as ipfs_connector; // kubo-sim names this crate as the test programs beside it do

#[cfg(test)]
mod tests;
