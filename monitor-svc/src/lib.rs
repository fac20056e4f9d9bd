//! monitor-svc: metrics of all peers, who is alive, alerts, and where a pin goes.
//!
//! It owns what the members say of themselves, in memory only; its one file is the last peerset it saw. It touches the
//! other members' monitors, and asks its own siblings whether they answer. It never changes the pinset, never decides
//! that a peer is away (the log does), and never calls consensus inside a handler (protocols.md 5).
//!
//! `window`, `liveness`, `allocator` and `alerts` are PURE; `known` puts them together; `store` is the one task that
//! owns it; `ping`, `siblings` and `gossip` are the loops around it; `grpc` the doors.

pub mod alerts;
pub mod allocator;
pub mod config;
pub mod error;
mod gossip;
mod grpc;
pub mod known;
pub mod liveness;
mod ping;
mod siblings;
mod store;
pub mod window;

use std::future::Future;
use std::sync::Arc;

use pinfold_common::channel::Channels;
use pinfold_common::peerset::PeersHandle;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::{Error, Result, files, server, telemetry};
use pinfold_proto::types::IpfsId;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use config::Config;

/// This room's folder below the peer's.
const FOLDER: &str = "monitor";
const PEERSET_FILE: &str = "peerset.pb";

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
    let file = folder.join(PEERSET_FILE);
    let own = config.tls.own();
    let peers = PeersHandle::follow(channels.clone(), own, config.consensus.clone(), file, shutdown.clone());
    run_with(config, listeners, channels, peers, shutdown).await
}

/// The same with a peerset that somebody else provides: a test, as a rule.
pub async fn run_with(
    config: Config,
    listeners: Listeners,
    channels: Channels,
    peers: PeersHandle,
    shutdown: Shutdown,
) -> Result<()> {
    let own = config.tls.own();
    let (store, inbox) = store::Store::new();
    let sequence = ping::Sequence::start();
    let (measurements, measured) = watch::channel(Arc::default());
    let (ipfs, ipfs_seen) = watch::channel(IpfsId::default());
    let (beats, beats_seen) = watch::channel(None);
    let (degraded, degraded_seen) = watch::channel(Vec::new());
    let rules = known::Rules {
        own,
        ping_ttl: config.ping_interval * 2,
        allocate_by: config.allocate_by.clone(),
        pinqueue_bucket: config.pinqueue_bucket,
    };
    let owner = store::Owner {
        known: known::Known::new(rules, sequence.clone(), known::Now::read()),
        inbox,
        view: peers.subscribe(),
        check_interval: config.check_interval,
        measurements,
        ipfs,
    };
    let pinger = ping::Pinger {
        peername: config.peername.clone(),
        interval: config.ping_interval,
        sequence,
        ipfs: ipfs_seen,
        degraded: degraded_seen,
        beats,
        store: store.clone(),
    };
    let siblings = siblings::Siblings {
        own,
        channels: channels.clone(),
        consensus: config.consensus,
        connector: config.connector,
        gateway: config.gateway,
    };
    let gossip = gossip::Gossip {
        own,
        channels,
        store: store.clone(),
        view: peers.subscribe(),
        measurements: measured,
        beats: beats_seen,
    };

    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    let stop = || shutdown.clone();
    tasks.spawn(essential("store", owner.run(stop()), stop()));
    tasks.spawn(essential("ping", pinger.run(stop()), stop()));
    tasks.spawn(essential("sibling probe", siblings.watch(config.ping_interval, degraded, stop()), stop()));
    tasks.spawn(essential("gossip", gossip.run(stop()), stop()));
    if let Some(listener) = listeners.metrics {
        tasks.spawn(telemetry::serve_metrics(listener, shutdown.clone()));
    }
    let routes = grpc::routes(&store, &shutdown);
    tasks.spawn(server::serve(listeners.grpc, config.tls, Arc::new(peers), routes, shutdown.clone()));

    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or_else(|error| Err(Error::internal(format!("monitor task: {error}"))));
        if let Err(error) = &ended {
            tracing::error!(%error, "monitor stops");
            shutdown.trigger();
        }
        outcome = outcome.and(ended);
    }
    outcome
}

/// A monitor that goes on without one of its loops is worse than none: the early end of one is a failure of the whole.
async fn essential(name: &'static str, task: impl Future<Output = ()>, shutdown: Shutdown) -> Result<()> {
    task.await;
    if shutdown.is_triggered() { Ok(()) } else { Err(Error::internal(format!("{name} ended before it was asked to"))) }
}
