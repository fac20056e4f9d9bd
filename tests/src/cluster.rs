//! A cluster of real processes in a temporary folder, on ports that the kernel gave out, ended when dropped.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ctl::local::Programs;
use ctl::local::cluster::{Cluster, Ipfs, Options, PortPlan};
use ctl::local::peer::Peer;
use ctl::local::service::Tell;
use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES};
use pinfold_common::config::{Args, File, Overrides};
use pinfold_common::identity::Identity;
use pinfold_common::tls::{Room, Tls};
use pinfold_proto::{api, connector, consensus};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::Channel;

use crate::rest::Rest;

/// Far more than anything here needs; only a defect takes this long.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a condition.
pub const POLL: Duration = Duration::from_millis(50);

/// Two cores: more clusters at once would only wait for each other.
static TURNS: std::sync::OnceLock<Arc<Semaphore>> = std::sync::OnceLock::new();
const CLUSTERS_AT_ONCE: usize = 2;

pub struct TestCluster {
    pub cluster: Cluster,
    // Dropped after the cluster, in this order.
    _folder: Option<tempfile::TempDir>,
    _turn: OwnedSemaphorePermit,
}

/// Where the service programs are: cargo puts them two levels above this test.
pub fn programs() -> Programs {
    let programs = Programs::find();
    for name in ["consensus-svc", "monitor-svc", "ipfs-connector", "api-gateway", "ctl"] {
        programs.path(name).unwrap_or_else(|error| panic!("{error}; `make test` does both"));
    }
    programs
}

impl TestCluster {
    /// Peers with embedded nodes that fetch from nowhere but each other.
    pub async fn start(peers: u16) -> TestCluster {
        TestCluster::with(peers, Ipfs::Embedded { gateways: Vec::new() }, Vec::new()).await
    }

    pub async fn with(peers: u16, ipfs: Ipfs, settings: Overrides) -> TestCluster {
        let turns = TURNS.get_or_init(|| Arc::new(Semaphore::new(CLUSTERS_AT_ONCE)));
        let turn = turns.clone().acquire_owned().await.expect("the semaphore is never closed");
        let folder = tempfile::Builder::new().prefix("pinfold-test-").tempdir().expect("a temporary folder");
        let options = Options {
            folder: folder.path().to_owned(),
            peers,
            ipfs,
            replication: None,
            ports: PortPlan::Free,
            programs: programs(),
            settings,
        };
        let tell: Tell = Arc::new(|service, sentence| eprintln!("{service}: {sentence}"));
        let cluster = Cluster::start(options, tell).await.unwrap_or_else(|error| panic!("{error}"));
        let mut this = TestCluster { cluster, _folder: Some(folder), _turn: turn };
        if let Err(error) = this.cluster.wait_ready(PATIENCE, |_, _| {}).await {
            panic!("{error}\n{}", this.logs());
        }
        if std::env::var_os("PINFOLD_KEEP").is_some() {
            let kept = this._folder.take().map(tempfile::TempDir::keep);
            eprintln!("kept: {kept:?}");
        }
        this
    }

    pub fn peer(&self, index: usize) -> &Peer {
        &self.cluster.peers[index]
    }

    pub fn len(&self) -> usize {
        self.cluster.peers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cluster.peers.is_empty()
    }

    pub fn index_of(&self, peer: &pinfold_common::PeerId) -> usize {
        self.cluster.peers.iter().position(|own| own.peer_id == *peer).expect("a peer of this cluster")
    }

    pub fn rest(&self, index: usize) -> Rest {
        Rest::new(&self.peer(index).api)
    }

    pub fn pins(&self, index: usize) -> api::pins_client::PinsClient<Channel> {
        let channel = self.peer(index).channel().expect("a channel");
        api::pins_client::PinsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn api(&self, index: usize) -> api::cluster_client::ClusterClient<Channel> {
        let channel = self.peer(index).channel().expect("a channel");
        api::cluster_client::ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn repin(&self, index: usize) -> api::repin_client::RepinClient<Channel> {
        let channel = self.peer(index).channel().expect("a channel");
        api::repin_client::RepinClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// What the peer's consensus-svc says of itself, asked as that peer would.
    pub async fn consensus_status(&self, index: usize) -> consensus::StatusReply {
        let channel = inside(self.peer(index), Room::Consensus);
        let mut client = consensus::peers_client::PeersClient::new(channel);
        client.status(consensus::StatusCall {}).await.expect("a status").into_inner()
    }

    /// Waits until the monitor of peer `at` has an alert that fires about peer `about`.
    pub async fn alert_about(&self, at: usize, about: usize) {
        let id = self.peer(about).peer_id.to_string();
        eventually("an alert", || async { self.rest(at).get("/health/alerts").await.body.contains(&id).then_some(()) })
            .await;
    }

    /// The blocks that a peer's node holds, asked as that peer itself would.
    pub fn blocks(&self, index: usize) -> connector::blocks_client::BlocksClient<Channel> {
        let channel = inside(self.peer(index), Room::Connector);
        connector::blocks_client::BlocksClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn config(&self, index: usize) -> File {
        config(self.peer(index))
    }

    /// Which peer leads, as soon as one does and all `of` agree.
    pub async fn leader(&self, of: &[usize]) -> usize {
        let found = eventually("one leader that all agree on", || async {
            let mut leaders = Vec::new();
            for index in of {
                let reply = self.api(*index).id(api::IdRequest {}).await.ok()?.into_inner();
                if reply.role == "leader" {
                    leaders.push(*index);
                }
            }
            if leaders.len() == 1 { leaders.pop() } else { None }
        });
        found.await
    }

    /// The ends of all log files, for the message of a test that failed.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for peer in &self.cluster.peers {
            for service in peer.services() {
                let log = std::fs::read_to_string(service.log()).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(15)..].join("\n");
                text.push_str(&format!("--- {} {}\n{tail}\n", peer.peer_id, service.name()));
            }
        }
        text
    }

    /// `ctl` at a peer: its exit code, standard output and standard error.
    pub async fn run_ctl(&self, at: usize, arguments: &[&str]) -> (i32, String, String) {
        let mut command = tokio::process::Command::new(TestCluster::ctl());
        command.args(["--host", &self.peer(at).api]).args(arguments).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("in time").expect("ctl runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// What `ctl` at a peer prints on standard output; it must succeed.
    pub async fn ctl_prints(&self, at: usize, arguments: &[&str]) -> String {
        let (code, out, err) = self.run_ctl(at, arguments).await;
        assert_eq!(code, 0, "ctl {arguments:?}: {out}{err}");
        out
    }

    /// The programs of this build, for tests that run `ctl` itself.
    pub fn ctl() -> PathBuf {
        programs().path("ctl").expect("ctl is built")
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// A connection to one of the peer's services, with that peer's certificate.
pub fn inside(peer: &Peer, room: Room) -> Channel {
    let file = config(peer);
    let identity = Identity::load(&peer.folder).expect("an identity");
    let tls = Tls::new(&file.secret().expect("a secret"), &identity, Room::Ctl).expect("a certificate");
    let address = file.announce(room).expect("an address");
    Channels::new(tls).to(room, &peer.peer_id, &address)
}

fn config(peer: &Peer) -> File {
    let args = Args { folder: Some(peer.folder.clone()), loglevel: "info".to_owned(), debug: false };
    File::load(&args).expect("the peer's configuration")
}

/// Asks again and again until there is an answer. Waiting on a condition, never on the clock.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(POLL).await;
    }
}
