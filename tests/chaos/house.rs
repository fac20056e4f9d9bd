//! A cluster of whole peers for faults: real processes, each peer in a namespace of its own where the machine has them,
//! else on loopback. Further peers are prepared and join when a scenario says so.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ctl::local::Programs;
use ctl::local::cluster::addresses;
use ctl::local::peer::{Peer, ROOMS};
use ctl::local::ports::Ports;
use ctl::local::service::{Service, State, Tell};
use pinfold_common::address;
use pinfold_common::channel::Channels;
use pinfold_common::config::{Overrides, write_new};
use pinfold_common::identity::Identity;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use pinfold_proto::consensus::peers_client::PeersClient;
use pinfold_proto::consensus::status_reply::Role;
use pinfold_proto::consensus::{StatusCall, StatusReply};
use pinfold_tests::cluster::{PATIENCE, eventually, programs};
use pinfold_tests::needs::{self, Need};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::network::Network;
use crate::proxy::SlowLink;

const STATUS_DEADLINE: Duration = Duration::from_secs(2);
/// One house at a time: two would starve each other on a small machine, and every fault here is about time.
static TURN: OnceLock<Arc<Semaphore>> = OnceLock::new();

/// Slow enough for a busy machine of two cores, so that an election means a fault.
const HEARTBEAT: &str = "400ms";
const ELECTION: &str = "1s";

/// On what the peers stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    Loopback,
    /// In namespaces.
    Namespaces,
    /// On loopback; Raft's messages take that long each way.
    Slow(Duration),
}

/// What a scenario wants.
pub struct Wish {
    pub peers: usize,
    /// Prepared, to be started with `join`.
    pub spare: usize,
    pub ground: Ground,
    pub folder: Option<PathBuf>,
    pub settings: Overrides,
}

impl Default for Wish {
    fn default() -> Wish {
        Wish { peers: 3, spare: 0, ground: Ground::Loopback, folder: None, settings: Vec::new() }
    }
}

pub struct House {
    pub peers: Vec<Peer>,
    pub network: Option<Network>,
    spare: Vec<(PathBuf, Programs)>,
    identities: Vec<Channels>,
    consensus: Vec<String>,
    slow: Vec<SlowLink>,
    // Dropped last.
    folder: tempfile::TempDir,
    _turn: OwnedSemaphorePermit,
}

/// What namespaces need of the machine.
pub const NAMESPACES: [Need; 3] = [Need::Root, Need::Ip, Need::Nft];

impl House {
    pub async fn start(wish: Wish) -> House {
        let turn = TURN.get_or_init(|| Arc::new(Semaphore::new(1))).clone();
        let turn = turn.acquire_owned().await.expect("the semaphore is never closed");
        let folder = tempfile::Builder::new().prefix("pinfold-chaos-").tempdir().expect("a temporary folder");
        let root = wish.folder.clone().unwrap_or_else(|| folder.path().join("peers"));
        let count = wish.peers + wish.spare;
        let network = match wish.ground {
            Ground::Namespaces => {
                assert_eq!(needs::missing(&NAMESPACES), None, "namespaces were asked for");
                Some(Network::new(count))
            }
            Ground::Loopback | Ground::Slow(_) => None,
        };
        let mut house = House {
            peers: Vec::new(),
            network,
            spare: Vec::new(),
            identities: Vec::new(),
            consensus: Vec::new(),
            slow: Vec::new(),
            folder,
            _turn: turn,
        };
        let secret = ClusterSecret::generate();
        for index in 0..count {
            let prepared = house.prepare(index, &root.join(format!("peer{index}")), &secret, &wish).await;
            house.spare.push(prepared);
        }
        house.spare.reverse();
        for _ in 0..wish.peers {
            house.join();
        }
        house.ready().await;
        house
    }

    async fn prepare(
        &mut self,
        index: usize,
        folder: &Path,
        secret: &ClusterSecret,
        wish: &Wish,
    ) -> (PathBuf, Programs) {
        std::fs::create_dir_all(folder).expect("a folder");
        let identity = Identity::generate();
        identity.save(folder).expect("an identity");
        let ports = match self.network {
            Some(_) => Ports::of(0, 0).expect("the usual ports"),
            None => Ports::free().expect("free ports"),
        };
        let host = match &self.network {
            Some(network) => network.address(index),
            None => std::net::Ipv4Addr::LOCALHOST,
        };
        let mut keys = addresses(&ports);
        for (_, value) in &mut keys {
            *value = json!(value.as_str().unwrap_or_default().replace("127.0.0.1", &host.to_string()));
        }
        keys.extend(self.settings(index, secret));
        if let Ground::Slow(delay) = wish.ground {
            let link = SlowLink::to(ports.consensus, delay).await;
            let announced = format!("/ip4/127.0.0.1/tcp/{}", link.port);
            keys.push(("services.consensus.announce_multiaddress", json!(announced)));
            self.slow.push(link);
        }
        keys.extend(wish.settings.iter().cloned());
        write_new(folder, keys).expect("a configuration");
        self.identities.push(Channels::new(Tls::new(secret, &identity, Room::Gateway).expect("a certificate")));
        self.consensus.push(format!("{host}:{}", ports.consensus));
        (folder.to_owned(), self.programs(index))
    }

    fn settings(&self, index: usize, secret: &ClusterSecret) -> Vec<(&'static str, Value)> {
        vec![
            ("cluster.peername", json!(format!("peer{index}"))),
            ("cluster.secret", json!(secret.to_hex())),
            ("cluster.replication_factor_min", json!(1)),
            ("cluster.replication_factor_max", json!(2)),
            ("cluster.monitor_ping_interval", json!("2s")),
            ("consensus.raft.heartbeat_timeout", json!(HEARTBEAT)),
            ("consensus.raft.election_timeout", json!(ELECTION)),
            ("consensus.raft.snapshot_interval", json!("500ms")),
            ("consensus.raft.snapshot_threshold", json!(100)),
            ("consensus.raft.trailing_logs", json!(50)),
            ("ipfs.backend", json!("embedded")),
            ("ipfs.embedded.gateways", json!([])),
            // Within the namespaces nobody else is.
            ("api.allow_insecure_listen", json!(self.network.is_some())),
        ]
    }

    /// The programs, or wrappers that start them in the peer's namespace.
    fn programs(&self, index: usize) -> Programs {
        let Some(network) = &self.network else { return programs() };
        let folder = self.folder.path().join(format!("programs{index}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        for room in ROOMS {
            let program = programs().path(room.name()).expect("the services are built");
            network.wrap(index, &program, &folder);
        }
        Programs::in_folder(folder)
    }

    /// Starts the next prepared peer, which joins by the first one. Its index.
    pub fn join(&mut self) -> usize {
        self.join_by(0)
    }

    /// The same, by another one.
    pub fn join_by(&mut self, member: usize) -> usize {
        let index = self.peers.len();
        let (folder, programs) = self.spare.pop().expect("the wish had enough peers");
        let bootstrap: Vec<String> =
            self.peers.get(member).map(|peer| peer.bootstrap_address.clone()).into_iter().collect();
        let tell: Tell = Arc::new(move |service, sentence| eprintln!("peer {index}: {service}: {sentence}"));
        let peer = Peer::start(&folder, &programs, &bootstrap, tell).unwrap_or_else(|error| panic!("{error}"));
        self.peers.push(peer);
        index
    }

    /// The folder of the peer that is started next.
    pub fn next_folder(&self) -> &Path {
        &self.spare.last().expect("the wish had enough peers").0
    }

    /// Ends a peer for good. Those after it move up by one.
    pub fn forget(&mut self, peer: usize) {
        self.peers.remove(peer);
        self.identities.remove(peer);
        self.consensus.remove(peer);
    }

    /// Starts a peer anew, which was killed, so that it joins by another one.
    pub fn join_again(&mut self, peer: usize, by: usize) {
        let bootstrap = [self.peers[by].bootstrap_address.clone()];
        let tell: Tell = Arc::new(move |service, sentence| eprintln!("peer {peer}: {service}: {sentence}"));
        let started = Peer::start(&self.peers[peer].folder, &self.programs(peer), &bootstrap, tell);
        self.peers[peer] = started.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits until a peer's consensus service refuses to run, and for these words as its last.
    pub async fn refuses(&self, peer: usize, words: &[&str]) {
        let service = self.consensus(peer);
        eventually(&format!("peer {peer} refuses to run"), || async {
            (service.state() == State::Refused).then_some(())
        })
        .await;
        let said = self.peers[peer].last_words().unwrap_or_default();
        for word in words {
            assert!(said.contains(word), "peer {peer} does not say {word:?}: {said}");
        }
    }

    pub fn len(&self) -> usize {
        self.peers.len()
    }

    pub fn consensus(&self, peer: usize) -> &Service {
        self.peers[peer].service(Room::Consensus).expect("every peer has a consensus service")
    }

    pub async fn ready(&self) {
        for peer in 0..self.len() {
            self.peer_ready(peer).await;
        }
    }

    pub async fn peer_ready(&self, peer: usize) {
        if let Err(error) = self.peers[peer].wait_ready(PATIENCE, |_| {}).await {
            panic!("{error}\n{}", self.words());
        }
    }

    /// What a peer's consensus says of itself, asked as its own gateway.
    pub async fn status(&self, peer: usize) -> Option<StatusReply> {
        self.status_at(peer, &self.consensus[peer]).await
    }

    /// The same at the address that the others use.
    pub async fn status_through_link(&self, peer: usize) -> Option<StatusReply> {
        let announced = address::parse_multiaddr(&self.peers[peer].bootstrap_address).expect("our own address");
        self.status_at(peer, &address::host_port(&announced).expect("our own address")).await
    }

    async fn status_at(&self, peer: usize, host_port: &str) -> Option<StatusReply> {
        let channel = self.identities[peer].to(Room::Consensus, &self.peers[peer].peer_id, host_port);
        let mut client = PeersClient::new(channel);
        let asked = tokio::time::timeout(STATUS_DEADLINE, client.status(StatusCall {})).await;
        asked.ok()?.ok().map(tonic::Response::into_inner)
    }

    /// The one among `of` that leads in the newest term, once there is one that `of` follow.
    pub async fn leader_of(&self, of: &[usize]) -> usize {
        eventually("a leader that the others follow", || async {
            let statuses = futures::future::join_all(of.iter().map(|peer| self.status(*peer))).await;
            let known: Vec<(usize, StatusReply)> =
                of.iter().copied().zip(statuses).filter_map(|(peer, status)| Some((peer, status?))).collect();
            let newest = known.iter().map(|(_, status)| status.term).max()?;
            let (leader, row) =
                known.iter().find(|(_, status)| status.term == newest && status.role() == Role::Leader)?;
            let followers = known.iter().filter(|(_, status)| status.term == newest && status.leader == row.peer_id);
            (followers.count() * 2 > of.len()).then_some(*leader)
        })
        .await
    }

    pub async fn leader(&self) -> usize {
        self.leader_of(&self.all()).await
    }

    pub fn all(&self) -> Vec<usize> {
        (0..self.len()).collect()
    }

    pub fn others(&self, than: usize) -> Vec<usize> {
        self.all().into_iter().filter(|peer| *peer != than).collect()
    }

    /// The newest term that anybody knows.
    pub async fn term(&self) -> u64 {
        let statuses = futures::future::join_all(self.all().into_iter().map(|peer| self.status(peer))).await;
        statuses.into_iter().flatten().map(|status| status.term).max().unwrap_or_default()
    }

    pub async fn kill_all(&self) {
        futures::future::join_all(self.peers.iter().map(Peer::kill)).await;
    }

    pub async fn resume_all(&self) {
        futures::future::join_all(self.peers.iter().map(Peer::resume)).await;
    }

    pub async fn stop(&self) {
        futures::future::join_all(self.peers.iter().map(Peer::stop)).await;
    }

    /// host:port of a peer's API.
    pub fn api(&self, peer: usize) -> &str {
        &self.peers[peer].api
    }

    /// The ends of the consensus services' logs, for messages.
    pub fn words(&self) -> String {
        let mut text = String::new();
        for (index, peer) in self.peers.iter().enumerate() {
            for service in peer.services() {
                let log = std::fs::read_to_string(service.log()).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(15)..].join("\n");
                text.push_str(&format!("--- peer {index} {}\n{tail}\n", service.name()));
            }
        }
        text
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.words());
        }
    }
}
