//! Starts nodes with stores in temporary folders, and stops them gently or not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pinfold_common::PeerId;
use pinfold_common::audience::{Members, Standing};
use pinfold_common::channel::Channels;
use pinfold_common::identity::Identity;
use pinfold_common::server;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use pinfold_proto::consensus::raft_client::RaftClient;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::raft::{Links, Node, NodeAndPeer, RaftConfig, Start, service};
use crate::store::{State, Stores};

pub const CLUSTER_ID: &[u8] = b"a test cluster";
/// For anything that is bound to happen.
pub const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Waits until it is so.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(POLL).await;
    }
}

struct Everybody;

impl Members for Everybody {
    fn standing(&self, _: &PeerId) -> Standing {
        Standing::Member
    }
}

pub struct Process {
    pub folder: TempDir,
    pub node_id: u64,
    pub port: u16,
    identity: Identity,
    running: Option<Running>,
}

struct Running {
    node: Node,
    shutdown: Shutdown,
    server: JoinHandle<()>,
    tls: Arc<Tls>,
}

pub struct Cluster {
    pub processes: Vec<Process>,
    secret: ClusterSecret,
    config: RaftConfig,
}

impl Process {
    pub fn node(&self) -> &Node {
        &self.running.as_ref().expect("it runs").node
    }

    pub fn state(&self) -> &State {
        &self.node().stores().state
    }

    pub fn peer_id(&self) -> PeerId {
        self.identity.peer_id
    }

    pub fn address(&self) -> NodeAndPeer {
        let address = format!("127.0.0.1:{}", self.port);
        NodeAndPeer { node_id: self.node_id, peer_id: self.peer_id(), address }
    }

    /// A client with this process's certificate.
    pub fn client_to(&self, other: &Process) -> RaftClient<Channel> {
        RaftClient::new(Channels::new(self.running.as_ref().expect("it runs").tls.clone()).to(
            Room::Consensus,
            &other.peer_id(),
            &other.address().address,
        ))
    }
}

impl Cluster {
    /// `count` voters, founded by the first of them; it has a leader.
    pub async fn founded(count: u64, config: RaftConfig) -> Cluster {
        let mut cluster = Cluster { processes: Vec::new(), secret: ClusterSecret::generate(), config };
        for node_id in 1..=count {
            cluster.add_process(node_id).await;
        }
        let founders: Vec<NodeAndPeer> = cluster.processes.iter().map(Process::address).collect();
        cluster.processes[0].node().initialize(&founders).await.unwrap();
        cluster.leader().await;
        cluster
    }

    pub async fn add_process(&mut self, node_id: u64) -> &Process {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (folder, identity) = (TempDir::new().unwrap(), Identity::generate());
        let mut process = Process { folder, node_id, port, identity, running: None };
        process.running = Some(self.start(&process, listener).await);
        self.processes.push(process);
        self.processes.last().unwrap()
    }

    async fn start(&self, process: &Process, listener: TcpListener) -> Running {
        let tls = Tls::new(&self.secret, &process.identity, Room::Consensus).unwrap();
        let stores = Stores::open(&process.folder.path().join("raft")).await.unwrap();
        let start = Start {
            config: self.config.clone(),
            cluster_id: CLUSTER_ID.to_vec(),
            node_id: process.node_id,
            stores,
            links: Links::new(&tls, &Default::default()),
        };
        let node = Node::start(start).await.unwrap();
        let shutdown = Shutdown::new();
        let routes = tonic::service::Routes::new(service(&node));
        let serving = server::serve(listener, tls.clone(), Arc::new(Everybody), routes, shutdown.clone());
        let server = tokio::spawn(async move { serving.await.unwrap() });
        Running { node, shutdown, server, tls }
    }

    pub fn process(&self, node_id: u64) -> &Process {
        self.processes.iter().find(|process| process.node_id == node_id).unwrap()
    }

    /// The process whose node leads and can be read from.
    pub async fn leader(&self) -> &Process {
        self.leader_other_than(u64::MAX).await
    }

    pub async fn leader_other_than(&self, node_id: u64) -> &Process {
        let find = || {
            let mut running = self.processes.iter().filter(|process| process.running.is_some());
            running.find(|process| process.node_id != node_id && process.node().status().borrow().is_ready_to_lead)
        };
        until("a leader", async || find().is_some()).await;
        find().unwrap()
    }

    fn take(&mut self, node_id: u64) -> Running {
        let process = self.processes.iter_mut().find(|process| process.node_id == node_id);
        process.unwrap().running.take().expect("it runs")
    }

    /// As near to kill -9 as one process gets: nothing is handed over, flushed or closed.
    pub async fn kill(&mut self, node_id: u64) {
        let running = self.take(node_id);
        running.server.abort();
        running.node.stop().await;
        running.shutdown.trigger();
    }

    pub async fn stop(&mut self, node_id: u64) {
        let running = self.take(node_id);
        running.node.shutdown().await;
        running.shutdown.trigger();
        running.server.await.unwrap();
    }

    pub async fn restart(&mut self, node_id: u64) {
        let process = self.process(node_id);
        let port = process.port;
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(POLL).await,
            }
        };
        let running = self.start(process, listener).await;
        self.processes.iter_mut().find(|process| process.node_id == node_id).unwrap().running = Some(running);
    }

    pub async fn shutdown(mut self) {
        let ids: Vec<u64> =
            self.processes.iter().filter(|process| process.running.is_some()).map(|process| process.node_id).collect();
        for id in ids {
            let started = Instant::now();
            self.stop(id).await;
            assert!(started.elapsed() < Duration::from_secs(30), "a stop takes {:?}", started.elapsed());
        }
    }
}
