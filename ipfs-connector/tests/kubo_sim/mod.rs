//! kubo-sim: the part of Kubo's RPC that the connector speaks, over an embedded node, with every misbehaviour that a
//! test asks for. It really keeps blocks and pins, so it passes the same cases as real Kubo daemons (`tests/node`): what
//! holds against it holds against them. What only bytes on the wire can show (trailers, endless lines) is in
//! `tests/node/fake_kubo.rs`.

#![allow(dead_code, reason = "two test programs use it, each in part")]

mod answers;
mod http;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipfs_connector::node::embedded::exchange::{BlockExchange, Want};
use ipfs_connector::node::embedded::{EmbeddedConfig, EmbeddedNode};
use ipfs_connector::node::kubo::{KuboConfig, KuboNode};
use ipfs_connector::node::verify::Verified;
use ipfs_connector::node::{IpfsNode as _, Result};
use parking_lot::Mutex;
use pinfold_common::identity::Identity;
use pinfold_common::{Cid, PeerId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How it answers, whatever is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Mood {
    Well,
    /// Each answer begins so late.
    Slow(Duration),
    /// Connections are taken and nothing is answered (fault:K1).
    Hung,
    /// Everything has this status and body (fault:K4).
    Broken(u16, &'static str),
}

/// What becomes of a `pin/add` of one CID.
#[derive(Clone, Debug, PartialEq)]
pub enum PinFault {
    /// So many blocks come, and then none (fault:K2).
    Stall { blocks: u64 },
    /// An error of Kubo's, with these words.
    Fail(&'static str),
    /// Pinned, and the connection is cut before that is said (fault:K3).
    CutBeforeEnd,
    /// The connection is cut after the first progress, and nothing is pinned.
    CutAfterFirstByte,
}

/// What `pin/ls` without a CID says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListFault {
    None,
    /// Nothing, and a good end.
    Empty,
    /// Nothing, and no end (fault:K7).
    Hung,
}

struct Engine {
    node: EmbeddedNode,
    _folder: TempDir,
}

struct State {
    id: PeerId,
    engine: Arc<Engine>,
    mood: Mood,
    pins: HashMap<Cid, PinFault>,
    list: ListFault,
    /// How long a GC holds everything up.
    gc: Duration,
    /// What its command line says, `None` where a proxy keeps that page to itself.
    command_line: Option<Vec<&'static str>>,
    /// What IPNS names and DNSLink domains lead to.
    names: HashMap<String, String>,
    reachable: HashSet<String>,
    connected: Vec<PeerId>,
    journal: Vec<(String, String)>,
    /// `pin/add`s that run now, and how many it were at most.
    running: usize,
    most_running: usize,
}

struct Shared {
    state: Mutex<State>,
    /// Pins read, a GC writes: as in Kubo, where neither runs with the other.
    pin_lock: tokio::sync::RwLock<()>,
    source: Option<Arc<KuboSim>>,
}

/// A Kubo that does what a test says. Dropping it ends it.
pub struct KuboSim {
    shared: Arc<Shared>,
    port: u16,
    serving: Mutex<CancellationToken>,
}

impl Drop for KuboSim {
    fn drop(&mut self) {
        self.serving.lock().cancel();
    }
}

impl KuboSim {
    pub async fn start() -> KuboSim {
        KuboSim::with_source(None).await
    }

    /// One that finds blocks on another one.
    pub async fn beside(source: Arc<KuboSim>) -> KuboSim {
        KuboSim::with_source(Some(source)).await
    }

    async fn with_source(source: Option<Arc<KuboSim>>) -> KuboSim {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let engine = Arc::new(engine(source.as_ref()).await);
        let state = State {
            id: Identity::generate().peer_id,
            engine,
            mood: Mood::Well,
            pins: HashMap::new(),
            list: ListFault::None,
            gc: Duration::ZERO,
            command_line: Some(vec!["ipfs", "daemon"]),
            names: HashMap::new(),
            reachable: HashSet::new(),
            connected: Vec::new(),
            journal: Vec::new(),
            running: 0,
            most_running: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), pin_lock: tokio::sync::RwLock::new(()), source });
        let serving = CancellationToken::new();
        tokio::spawn(http::serve(listener, shared.clone(), serving.clone()));
        KuboSim { shared, port, serving: Mutex::new(serving) }
    }

    pub fn api(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}", self.port)
    }

    /// The connector's side of it, with this time without progress.
    pub fn node(&self, pin_timeout: Duration) -> KuboNode {
        let config = KuboConfig {
            request_timeout: Duration::from_secs(20),
            pin_timeout,
            unpin_timeout: Duration::from_secs(20),
            gc_timeout: Duration::from_secs(20),
            ..KuboConfig::new(self.api().parse().unwrap())
        };
        KuboNode::new(config).unwrap()
    }

    pub fn id(&self) -> PeerId {
        self.shared.state.lock().id
    }

    pub fn set_mood(&self, mood: Mood) {
        self.shared.state.lock().mood = mood;
    }

    pub fn set_fault(&self, cid: &Cid, fault: PinFault) {
        self.shared.state.lock().pins.insert(*cid, fault);
    }

    pub fn clear_fault(&self, cid: &Cid) {
        self.shared.state.lock().pins.remove(cid);
    }

    pub fn set_list(&self, fault: ListFault) {
        self.shared.state.lock().list = fault;
    }

    pub fn set_gc_time(&self, time: Duration) {
        self.shared.state.lock().gc = time;
    }

    /// The command line that it says it was started with; `None`: that page is not there for us.
    pub fn set_command_line(&self, arguments: Option<Vec<&'static str>>) {
        self.shared.state.lock().command_line = arguments;
    }

    /// `/ipns/<name>` leads to this path from now on.
    pub fn set_name(&self, name: &str, path: &str) {
        self.shared.state.lock().names.insert(name.to_owned(), path.to_owned());
    }

    /// `swarm/connect` to this address works.
    pub fn set_reachable(&self, address: &str) {
        self.shared.state.lock().reachable.insert(address.to_owned());
    }

    /// The process is gone: connections break, and new ones are refused.
    pub fn stop(&self) {
        self.serving.lock().cancel();
    }

    /// It is there again, on the same port with the same repository.
    pub async fn start_again(&self) {
        let address = ("127.0.0.1", self.port);
        let listener = loop {
            // The port is free as soon as the task that served it has seen that it shall end.
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let serving = CancellationToken::new();
        *self.serving.lock() = serving.clone();
        tokio::spawn(http::serve(listener, self.shared.clone(), serving));
    }

    /// Another repository under the same ID: the disk was changed, or the datastore converted badly (fault:K6).
    pub async fn wipe(&self) {
        let engine = Arc::new(engine(self.shared.source.as_ref()).await);
        self.shared.state.lock().engine = engine;
    }

    /// Another node in its place, with the same repository or an empty one.
    pub fn change_identity(&self) {
        self.shared.state.lock().id = Identity::generate().peer_id;
    }

    /// The node inside, for what a person does beside the cluster.
    pub fn engine(&self) -> EmbeddedNode {
        self.shared.state.lock().engine.node.clone()
    }

    /// Calls of this command, with their first argument, in the order they came.
    pub fn journal(&self, command: &str) -> Vec<String> {
        let state = self.shared.state.lock();
        state.journal.iter().filter(|(name, _)| name == command).map(|(_, argument)| argument.clone()).collect()
    }

    /// How many `pin/add`s ran at the same time at most.
    pub fn most_running(&self) -> usize {
        self.shared.state.lock().most_running
    }
}

async fn engine(source: Option<&Arc<KuboSim>>) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig {
        storage_max_bytes: Some(1_000_000_000),
        // Kubo keeps nothing that is not pinned.
        hold: Duration::ZERO,
        ..EmbeddedConfig::new(folder.path().join("repo"))
    };
    let exchanges: Vec<Arc<dyn BlockExchange>> =
        source.map(|source| Arc::new(Network(source.clone())) as Arc<dyn BlockExchange>).into_iter().collect();
    Engine { node: EmbeddedNode::open(config, exchanges).await.unwrap(), _folder: folder }
}

/// The rest of the world, which is one other node.
struct Network(Arc<KuboSim>);

#[async_trait]
impl BlockExchange for Network {
    fn name(&self) -> &'static str {
        "network"
    }

    async fn fetch(&self, want: Want) -> Result<Option<Verified>> {
        let data = self.0.engine().get_block_local(&want.cid).await?;
        data.map(|data| Verified::check(want.cid, data)).transpose()
    }
}
