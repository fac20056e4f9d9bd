//! The whole connector in one process: a stand-in for consensus-svc behind real mTLS, and either a node that a test
//! steers or the embedded one.

mod attempts;
mod collection;
mod consensus;
#[path = "../../tests/daemon/mod.rs"]
mod daemon;
mod kubo;
#[path = "../../tests/kubo_sim/mod.rs"]
mod kubo_sim;
mod life;
mod monitor;
mod node;
mod ownership;
mod recovery;
mod storing;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pinfold_common::channel::Channels;
use pinfold_common::identity::Identity;
use pinfold_common::peerset::{PeersHandle, View};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::status::TrackerStatus;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use pinfold_common::{Cid, PeerId};
use pinfold_proto::connector::blocks_client::BlocksClient;
use pinfold_proto::connector::holdings_client::HoldingsClient;
use pinfold_proto::connector::tracker_client::TrackerClient;
use pinfold_proto::connector::{ApproveCall, DescribeCall, HeldCall, RecoverCall, StatusAllCall, TrackerStatusCall};
use pinfold_proto::types::{self, PinInfo};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::config::{Backend, Config, Tracker};
use crate::informer::{DiskMetric, Informer, Planned};
use crate::node::IpfsNode;
use crate::node::embedded::EmbeddedConfig;
use crate::store::Policy;
use crate::{Listeners, run_with};

use consensus::Pinset;
use monitor::Monitor;

/// For any condition of a test.
const PATIENCE: Duration = Duration::from_secs(60);

/// What stays when the connector is restarted.
struct House {
    folder: tempfile::TempDir,
    secret: ClusterSecret,
    identity: Identity,
    pinset: Pinset,
    consensus: String,
    monitor: String,
    concurrent_pins: usize,
    metric_ttl: Duration,
    /// 0: no limit.
    max_attempts: u32,
    unpin_disable: bool,
    stop: Shutdown,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.trigger();
    }
}

/// A running connector.
struct Connector {
    channel: Channel,
    stop: Shutdown,
    running: JoinHandle<pinfold_common::Result<()>>,
}

impl House {
    async fn new() -> House {
        let (secret, identity) = (ClusterSecret::generate(), Identity::generate());
        let pinset = Pinset::default();
        let stop = Shutdown::new();
        let tls = Tls::new(&secret, &identity, Room::Consensus).unwrap();
        let consensus = consensus::serve(pinset.clone(), tls, stop.clone()).await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(crate::FOLDER)).unwrap();
        // Nobody there: informers must not be what anything waits for.
        let monitor = "127.0.0.1:9".to_owned();
        let metric_ttl = Duration::from_secs(30);
        House {
            folder,
            secret,
            identity,
            pinset,
            consensus,
            monitor,
            concurrent_pins: 4,
            metric_ttl,
            max_attempts: 0,
            unpin_disable: false,
            stop,
        }
    }

    async fn serve_monitor(&mut self) -> Monitor {
        let tls = Tls::new(&self.secret, &self.identity, Room::Monitor).unwrap();
        let monitor = Monitor::default();
        self.monitor = monitor::serve(monitor.clone(), tls, self.stop.clone()).await;
        monitor
    }

    fn own(&self) -> PeerId {
        self.identity.peer_id
    }

    fn config(&self) -> Config {
        Config {
            tls: Tls::new(&self.secret, &self.identity, Room::Connector).unwrap(),
            folder: self.folder.path().to_owned(),
            peername: "test".to_owned(),
            backend: Backend::Embedded(EmbeddedConfig::new(self.folder.path().join("ipfs"))),
            tracker: Tracker {
                concurrent_pins: self.concurrent_pins,
                policy: Policy {
                    priority_max_age_ms: 86_400_000,
                    priority_max_retries: 5,
                    first_backoff_ms: 1_000,
                    last_backoff_ms: 60_000,
                    max_attempts: self.max_attempts,
                    max_queued_pins: 1_000_000,
                },
                check_interval: Duration::from_secs(3600),
                unpin_disable: self.unpin_disable,
            },
            informers: [
                Informer::Disk { kind: DiskMetric::Freespace, watermark: 0.85 },
                Informer::PinQueue { bucket: 0 },
                Informer::Tags([("group".to_owned(), "default".to_owned())].into()),
            ]
            .map(|informer| Planned { informer, ttl: self.metric_ttl })
            .to_vec(),
            informer_trigger_interval: 0,
            connect_swarms_delay: Duration::ZERO,
            swarm_connect_deadline: Duration::from_secs(5),
            consensus: self.consensus.clone(),
            monitor: self.monitor.clone(),
        }
    }

    async fn start(&self, node: Arc<dyn IpfsNode>) -> Connector {
        let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = grpc.local_addr().unwrap().to_string();
        let config = self.config();
        let channels = Channels::new(config.tls.clone());
        let peers = PeersHandle::fixed(View::default());
        let stop = Shutdown::new();
        let listeners = Listeners { grpc, metrics: None };
        let running = tokio::spawn(run_with(config, listeners, node, channels.clone(), peers, stop.clone()));
        Connector { channel: channels.to(Room::Connector, &self.own(), &address), stop, running }
    }

    /// An entry of the pinset that is allocated to this peer.
    fn here(&self, cid: &Cid) -> types::Pin {
        self.pin(cid, &self.own())
    }

    /// The same for the one block only.
    fn direct(&self, cid: &Cid) -> types::Pin {
        types::Pin { max_depth: 0, ..self.here(cid) }
    }

    fn elsewhere(&self, cid: &Cid) -> types::Pin {
        self.pin(cid, &Identity::generate().peer_id)
    }

    fn pin(&self, cid: &Cid, peer: &PeerId) -> types::Pin {
        types::Pin {
            cid: cid.to_bytes(),
            r#type: types::PinType::Data as i32,
            max_depth: -1,
            options: Some(types::PinOptions {
                replication_factor_min: 1,
                replication_factor_max: 1,
                name: "a name".to_owned(),
                ..Default::default()
            }),
            allocations: vec![peer.to_bytes()],
            timestamp: Some(types::Time { seconds: 1_700_000_000, nanos: 0 }),
            ..Default::default()
        }
    }

    fn tracker_folder(&self) -> std::path::PathBuf {
        self.folder.path().join(crate::FOLDER)
    }
}

impl Connector {
    fn tracker(&self) -> TrackerClient<Channel> {
        TrackerClient::new(self.channel.clone())
    }

    fn blocks(&self) -> BlocksClient<Channel> {
        BlocksClient::new(self.channel.clone())
    }

    fn holdings(&self) -> HoldingsClient<Channel> {
        HoldingsClient::new(self.channel.clone())
    }

    async fn info(&self, cid: &Cid, min_index: u64) -> PinInfo {
        let call = TrackerStatusCall { cids: vec![cid.to_bytes()], min_index };
        self.tracker().status(call).await.unwrap().into_inner().infos.remove(0)
    }

    async fn status(&self, cid: &Cid, min_index: u64) -> TrackerStatus {
        TrackerStatus::from_proto(self.info(cid, min_index).await.status)
    }

    async fn until(&self, cid: &Cid, expected: TrackerStatus) -> PinInfo {
        let what = format!("{cid} is {expected}");
        eventually(&what, async || {
            let info = self.info(cid, 0).await;
            if TrackerStatus::from_proto(info.status) == expected { Ok(info) } else { Err(format!("{info:?}")) }
        })
        .await
    }

    async fn list(&self, filter: u32) -> Vec<PinInfo> {
        let mut stream =
            self.tracker().status_all(StatusAllCall { filter, ..Default::default() }).await.unwrap().into_inner();
        let mut infos = Vec::new();
        while let Some(reply) = stream.message().await.unwrap() {
            infos.extend(reply.infos);
        }
        infos
    }

    /// What the connector says of its IPFS node.
    async fn node(&self) -> types::IpfsId {
        self.tracker().describe(DescribeCall {}).await.unwrap().into_inner().ipfs.unwrap()
    }

    async fn held(&self) -> Vec<types::HeldUnpin> {
        let mut stream = self.tracker().held(HeldCall {}).await.unwrap().into_inner();
        let mut items = Vec::new();
        while let Some(reply) = stream.message().await.unwrap() {
            items.extend(reply.items);
        }
        items
    }

    async fn approve(&self, cids: &[Cid]) -> u64 {
        let cids = cids.iter().map(Cid::to_bytes).collect();
        self.tracker().approve(ApproveCall { cids }).await.unwrap().into_inner().approved
    }

    async fn recover(&self, cid: &Cid) -> (PinInfo, bool) {
        let reply = self.tracker().recover(RecoverCall { cid: cid.to_bytes() }).await.unwrap().into_inner();
        (reply.info.unwrap(), reply.requeued)
    }

    async fn stop(self) {
        self.stop.trigger();
        self.running.await.unwrap().unwrap();
    }
}

/// Waits for a condition; says what it last was.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    let waiting = async {
        loop {
            match ask().await {
                Ok(value) => return value,
                Err(now) => last = now,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}; last: {last}"))
}

/// A CID that is nobody's.
fn cid(number: u32) -> Cid {
    use multihash_codetable::MultihashDigest as _;
    Cid::new_v1(0x55, multihash_codetable::Code::Sha2_256.digest(&number.to_be_bytes()))
}

fn remove_folder(folder: &Path) {
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::create_dir(folder).unwrap();
}
