//! Whole consensus rooms in this process, over real mTLS, each with a stand-in for its monitor (the test seam): it
//! allocates round robin among the members it is told of, and counts what it was asked.

#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use consensus_svc::config::Config;
use consensus_svc::error::Error;
use consensus_svc::{Listeners, run};
use parking_lot::Mutex;
use pinfold_common::audience::{Members, Standing};
use pinfold_common::channel::Channels;
use pinfold_common::config::keys::KEYS;
use pinfold_common::config::{File, Overrides, write_new};
use pinfold_common::identity::Identity;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use pinfold_common::{PeerId, server};
use pinfold_proto::consensus::membership_client::MembershipClient;
use pinfold_proto::consensus::peers_client::PeersClient;
use pinfold_proto::consensus::pins_client::PinsClient;
use pinfold_proto::consensus::state_client::StateClient;
use pinfold_proto::consensus::{PinCall, PinReply, StatusCall, StatusReply};
use pinfold_proto::monitor::allocation_server::{Allocation, AllocationServer};
use pinfold_proto::monitor::monitor_server::{Monitor, MonitorServer};
use pinfold_proto::monitor::{
    AlertsCall, AlertsReply, AllocateReply, AllocateRequest, ContactReport, ContactsReply, Item, LatestMetricsCall,
    LatestMetricsReply, MetricNamesCall, MetricNamesReply, Peers, PublishCall, PublishReply, Result as Placed, TooFew,
    VerdictsCall, VerdictsReply, item, result,
};
use pinfold_proto::{WIRE_VERSION, types};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// Everything here happens within this time, or the test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, poll).await.is_ok(), "not within {DEADLINE:?}: {what}");
}

/// What the stand-ins know; all of a cluster share one.
#[derive(Default)]
pub struct Monitors {
    pub peers: Mutex<Vec<Vec<u8>>>,
    pub is_down: AtomicBool,
    pub calls: AtomicUsize,
    pub items: AtomicUsize,
    pub contacts: Mutex<BTreeMap<Vec<u8>, u64>>,
    next: AtomicUsize,
}

#[derive(Clone)]
struct FakeMonitor(Arc<Monitors>);

impl FakeMonitor {
    fn allocate_now(&self, request: AllocateRequest) -> Result<Response<AllocateReply>, Status> {
        if self.0.is_down.load(Ordering::Acquire) {
            return Err(pinfold_common::Error::unavailable("warming_up").into());
        }
        self.0.calls.fetch_add(1, Ordering::AcqRel);
        self.0.items.fetch_add(request.items.len(), Ordering::AcqRel);
        let results = request.items.iter().map(|item| self.place(item)).collect();
        Ok(Response::new(AllocateReply { results }))
    }

    fn place(&self, item: &Item) -> Placed {
        let all = self.0.peers.lock().clone();
        if item.growth() == item::Growth::ForBlocks && item.replication_factor_min == -1 {
            return Placed { result: Some(result::Result::Peers(Peers { peers: all })) };
        }
        let mut chosen: Vec<Vec<u8>> = item.current.iter().filter(|peer| all.contains(peer)).cloned().collect();
        let current = chosen.len() as i32;
        if item.growth() == item::Growth::IfBelowMin
            && (item.replication_factor_min..=item.replication_factor_max).contains(&current)
        {
            return Placed { result: Some(result::Result::Peers(Peers { peers: chosen })) };
        }
        let mut candidates: Vec<Vec<u8>> =
            item.priority.iter().filter(|peer| all.contains(peer) && !chosen.contains(peer)).cloned().collect();
        let start = self.0.next.fetch_add(1, Ordering::AcqRel);
        for step in 0..all.len() {
            let peer = &all[(start + step) % all.len()];
            if !chosen.contains(peer) && !candidates.contains(peer) && !item.exclude.contains(peer) {
                candidates.push(peer.clone());
            }
        }
        let needed = item.replication_factor_min - current;
        if (candidates.len() as i32) < needed {
            let too_few = TooFew {
                needed,
                wanted: item.replication_factor_max - current,
                candidates: candidates.len() as i32,
                ..TooFew::default()
            };
            return Placed { result: Some(result::Result::TooFew(too_few)) };
        }
        chosen.extend(candidates);
        chosen.truncate(item.replication_factor_max.max(0) as usize);
        Placed { result: Some(result::Result::Peers(Peers { peers: chosen })) }
    }
}

#[tonic::async_trait]
impl Allocation for FakeMonitor {
    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateReply>, Status> {
        self.allocate_now(request.into_inner())
    }
}

#[tonic::async_trait]
impl Monitor for FakeMonitor {
    async fn publish(&self, _request: Request<PublishCall>) -> Result<Response<PublishReply>, Status> {
        Ok(Response::new(PublishReply {}))
    }

    async fn contacts(&self, request: Request<Streaming<ContactReport>>) -> Result<Response<ContactsReply>, Status> {
        let mut reports = request.into_inner();
        while let Some(report) = reports.message().await? {
            let mut known = self.0.contacts.lock();
            known.extend(report.contacts.into_iter().map(|contact| (contact.peer_id, contact.age_ms)));
        }
        Ok(Response::new(ContactsReply {}))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateReply>, Status> {
        self.allocate_now(request.into_inner())
    }

    async fn latest_metrics(
        &self,
        _request: Request<LatestMetricsCall>,
    ) -> Result<Response<LatestMetricsReply>, Status> {
        Ok(Response::new(LatestMetricsReply::default()))
    }

    async fn metric_names(&self, _request: Request<MetricNamesCall>) -> Result<Response<MetricNamesReply>, Status> {
        Ok(Response::new(MetricNamesReply::default()))
    }

    async fn verdicts(&self, _request: Request<VerdictsCall>) -> Result<Response<VerdictsReply>, Status> {
        Ok(Response::new(VerdictsReply::default()))
    }

    async fn alerts(&self, _request: Request<AlertsCall>) -> Result<Response<AlertsReply>, Status> {
        Ok(Response::new(AlertsReply::default()))
    }
}

struct Everybody;

impl Members for Everybody {
    fn standing(&self, _peer: &PeerId) -> Standing {
        Standing::Member
    }
}

/// How often the folder of a peer that ends is emptied, until nothing is written any more.
const REMOVALS: usize = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// One peer: its folder, its ports, and what runs of it.
pub struct Peer {
    pub identity: Identity,
    pub folder: tempfile::TempDir,
    pub address: String,
    pub channels: Channels,
    secret: ClusterSecret,
    wire_version: String,
    file: File,
    /// What is set in `file`.
    settings: Overrides,
    monitor_end: Shutdown,
    running: Option<(Shutdown, JoinHandle<Result<(), Error>>)>,
}

pub struct Cluster {
    pub secret: ClusterSecret,
    pub monitors: Arc<Monitors>,
}

impl Cluster {
    pub fn new() -> Cluster {
        // Another test of this process may have been first.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        Cluster { secret: ClusterSecret::generate(), monitors: Arc::default() }
    }

    /// A peer with its monitor, not started.
    pub async fn peer(&self) -> Peer {
        self.peer_of(Identity::generate()).await
    }

    /// The same with an identity that is there already.
    pub async fn peer_of(&self, identity: Identity) -> Peer {
        self.monitors.peers.lock().push(identity.peer_id.to_bytes());
        let folder = tempfile::tempdir().unwrap();
        let monitor = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let monitor_port = monitor.local_addr().unwrap().port();
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let settings: Overrides = vec![
            ("cluster.secret", json!(self.secret.to_hex())),
            ("cluster.peername", json!(format!("peer-{port}"))),
            ("cluster.replication_factor_min", json!(1)),
            ("cluster.replication_factor_max", json!(2)),
            ("services.consensus.listen_multiaddress", json!(format!("/ip4/127.0.0.1/tcp/{port}"))),
            ("services.monitor.listen_multiaddress", json!(format!("/ip4/127.0.0.1/tcp/{monitor_port}"))),
        ];
        let file = File::defaults().in_folder(folder.path());
        let file = settings.iter().fold(file, |file, (key, value)| file.with(key, value.clone()));
        let monitor_end = Shutdown::new();
        let tls = Tls::new(&self.secret, &identity, Room::Monitor).unwrap();
        let fake = FakeMonitor(self.monitors.clone());
        let routes = Routes::new(MonitorServer::new(fake.clone())).add_service(AllocationServer::new(fake));
        tokio::spawn(server::serve(monitor, tls, Arc::new(Everybody), routes, monitor_end.clone()));
        let channels = Channels::new(Tls::new(&self.secret, &identity, Room::Gateway).unwrap());
        let address = format!("127.0.0.1:{port}");
        let (secret, wire_version) = (self.secret.clone(), WIRE_VERSION.to_owned());
        Peer { identity, folder, address, channels, secret, wire_version, file, settings, monitor_end, running: None }
    }

    /// `count` peers of one cluster, all ready and all voters.
    pub async fn started(count: usize) -> (Cluster, Vec<Peer>) {
        Cluster::started_with(count, &[]).await
    }

    /// The same with other values of keys for all of them.
    pub async fn started_with(count: usize, keys: &[(&str, serde_json::Value)]) -> (Cluster, Vec<Peer>) {
        let cluster = Cluster::new();
        let mut first = cluster.peer().await;
        keys.iter().for_each(|(key, value)| first.set(key, value.clone()));
        first.start(&[]).await;
        first.ready().await;
        let mut peers = vec![first];
        for _ in 1..count {
            let mut peer = cluster.peer().await;
            keys.iter().for_each(|(key, value)| peer.set(key, value.clone()));
            peer.start(&[peers[0].multiaddress()]).await;
            peers.push(peer);
        }
        for peer in &peers {
            peer.ready().await;
            // A peer that is ready has its vote; the others may not have heard of it yet.
            until("everybody is seen to vote", || async {
                let peerset = peer.status().await.and_then(|status| status.peerset).unwrap_or_default();
                peerset.peers.iter().filter(|row| row.voter).count() == count
            })
            .await;
        }
        (cluster, peers)
    }
}

impl Peer {
    pub fn id(&self) -> Vec<u8> {
        self.identity.peer_id.to_bytes()
    }

    pub fn multiaddress(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", self.address.rsplit_once(':').unwrap().1, self.identity.peer_id)
    }

    pub fn set(&mut self, key: &str, value: serde_json::Value) {
        self.file = self.file.clone().with(key, value.clone());
        let known = KEYS.iter().find(|known| known.path == key).unwrap();
        self.settings.push((known.path, value));
    }

    pub fn config_file(&self) -> &File {
        &self.file
    }

    /// Writes what the program itself reads at its start.
    pub fn write_folder(&self) {
        write_new(self.path(), self.settings.clone()).unwrap();
        if !self.path().join("identity.json").exists() {
            self.identity.save(self.path()).unwrap();
        }
    }

    /// The program on this peer's folder.
    pub fn program(&self, arguments: &[&str]) -> std::process::Command {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_consensus-svc"));
        program.arg("-c").arg(self.path()).args(arguments);
        program
    }

    /// Runs the program to its end with this input: exit code, standard output, standard error.
    pub fn run_program(&self, arguments: &[&str], input: &str) -> (i32, String, String) {
        use std::process::Stdio;
        let mut program = self.program(arguments);
        let program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = program.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        // It may end without having read all of it.
        let feeder = std::thread::spawn(move || drop(std::io::Write::write_all(&mut stdin, input.as_bytes())));
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// From its next start on it listens elsewhere.
    pub async fn moves(&mut self) {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        self.set("services.consensus.listen_multiaddress", json!(format!("/ip4/127.0.0.1/tcp/{port}")));
        self.address = format!("127.0.0.1:{port}");
    }

    /// From its next start on it is a peer of another version, its other services too.
    pub fn speak(&mut self, wire_version: &str) {
        self.wire_version = wire_version.to_owned();
        let tls = Tls::speaking(wire_version, &self.secret, &self.identity, Room::Gateway).unwrap();
        self.channels = Channels::new(tls);
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub async fn start(&mut self, bootstrap: &[String]) {
        let mut config = Config::with_identity(&self.file, bootstrap, self.identity.clone()).unwrap();
        config.wire_version.clone_from(&self.wire_version);
        let grpc = loop {
            // The port may still be in the hands of what ran before.
            match TcpListener::bind(&self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let shutdown = Shutdown::new();
        let running = tokio::spawn(run(config, Listeners { grpc, metrics: None }, shutdown.clone()));
        self.running = Some((shutdown, running));
    }

    /// Its monitor goes away.
    pub async fn stop_monitor(&mut self) {
        self.monitor_end.trigger();
        let port = self.file.multiaddr("services.monitor.listen_multiaddress").unwrap();
        let address = pinfold_common::address::host_port(&port).unwrap();
        until("the monitor is gone", || async { tokio::net::TcpStream::connect(&address).await.is_err() }).await;
    }

    pub async fn stop(&mut self) -> Result<(), Error> {
        let (shutdown, running) = self.running.take().unwrap();
        shutdown.trigger();
        running.await.unwrap()
    }

    /// How the run ended by itself.
    pub async fn ended(&mut self) -> Result<(), Error> {
        let (_, running) = self.running.take().unwrap();
        tokio::time::timeout(DEADLINE, running).await.expect("the run ends").unwrap()
    }

    fn channel(&self) -> Channel {
        self.channels.to(Room::Consensus, &self.identity.peer_id, &self.address)
    }

    pub fn pins(&self) -> PinsClient<Channel> {
        PinsClient::new(self.channel()).max_decoding_message_size(pinfold_common::channel::MAX_MESSAGE_BYTES)
    }

    pub fn peers(&self) -> PeersClient<Channel> {
        PeersClient::new(self.channel())
    }

    pub fn state(&self) -> StateClient<Channel> {
        StateClient::new(self.channel()).max_decoding_message_size(pinfold_common::channel::MAX_MESSAGE_BYTES)
    }

    /// A client with this peer's certificate, towards another peer.
    pub fn membership_of(&self, other: &Peer) -> MembershipClient<Channel> {
        MembershipClient::new(self.channels.to(Room::Consensus, &other.identity.peer_id, &other.address))
    }

    pub async fn status(&self) -> Option<StatusReply> {
        self.peers().status(StatusCall {}).await.ok().map(Response::into_inner)
    }

    pub async fn ready(&self) {
        until("ready", || async { self.status().await.is_some_and(|status| status.ready) }).await;
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.monitor_end.trigger();
        if let Some((shutdown, _)) = &self.running {
            shutdown.trigger();
        }
        // A peer that ends beside this writes its last files while the folder is being emptied.
        for _ in 0..REMOVALS {
            if std::fs::remove_dir_all(self.folder.path()).is_ok() {
                break;
            }
            std::thread::sleep(REMOVAL_PAUSE);
        }
    }
}

/// A pin that only `holder` is to hold.
pub async fn pin_only_at(asked: &Peer, number: u32, holder: &Peer) {
    let mut only_there = request(number);
    let options = only_there.options.as_mut().unwrap();
    (options.replication_factor_min, options.replication_factor_max) = (1, 1);
    only_there.user_allocations = vec![holder.id()];
    let call = PinCall { request: Some(only_there), request_key: Vec::new() };
    asked.pins().pin(call).await.unwrap();
}

/// A CID of raw bytes, by number.
pub fn cid(number: u32) -> Vec<u8> {
    let mut bytes = vec![1, 0x55, 0, 20];
    bytes.extend(number.to_be_bytes());
    bytes.extend([0; 16]);
    bytes
}

pub fn request(number: u32) -> types::PinRequest {
    types::PinRequest {
        cid: cid(number),
        r#type: types::PinType::Data as i32,
        max_depth: -1,
        options: Some(types::PinOptions::default()),
        ..types::PinRequest::default()
    }
}

pub async fn pin(peer: &Peer, number: u32) -> Result<PinReply, pinfold_common::Error> {
    let call = PinCall { request: Some(request(number)), request_key: Vec::new() };
    Ok(peer.pins().pin(call).await.map_err(pinfold_common::Error::from)?.into_inner())
}

/// Where the leader is among `peers`.
pub async fn leader(peers: &[Peer]) -> usize {
    let deadline = Instant::now() + DEADLINE;
    loop {
        for (place, peer) in peers.iter().enumerate() {
            if peer.status().await.is_some_and(|status| status.ready && status.leader == peer.id()) {
                return place;
            }
        }
        assert!(Instant::now() < deadline, "no leader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
