//! Whole monitors over TLS on loopback, each with its own connector's measurements: what they tell each other, and what
//! they answer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use monitor_svc::{Config, Listeners, run, run_with};
use pinfold_common::channel::{Channels, call};
use pinfold_common::config::{Args, File, write_new};
use pinfold_common::identity::Identity;
use pinfold_common::ids::peers_from_bytes;
use pinfold_common::peerset::{PeerInfo, PeerSet, PeerState, PeersHandle, View};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use pinfold_common::{Code, PeerId, Result};
use pinfold_proto::monitor::allocation_client::AllocationClient;
use pinfold_proto::monitor::gossip_client::GossipClient;
use pinfold_proto::monitor::monitor_client::MonitorClient;
use pinfold_proto::monitor::result::Result as Outcome;
use pinfold_proto::monitor::{
    AlertsCall, AllocateRequest, Contact, ContactReport, Item, LatestMetricsCall, MetricNamesCall, PublishCall,
    PullCall, PushCall, Verdict, VerdictsCall, verdict,
};
use pinfold_proto::types::{IpfsId, Metric, ServiceAddresses};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

const DEADLINE: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_millis(500);

/// A peer whose monitor may run.
struct Peer {
    id: PeerId,
    tls: Arc<Tls>,
    /// As a sibling or a member calls others: the channels of its consensus.
    channels: Channels,
    address: String,
    peers: PeersHandle,
    running: Option<(Shutdown, JoinHandle<Result<()>>)>,
}

async fn free_port() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn row(peer: &Peer, name: usize) -> PeerInfo {
    PeerInfo {
        peer_id: peer.id,
        node_id: name as u64,
        name: format!("p{name}"),
        addresses: ServiceAddresses { monitor: peer.address.clone(), ..ServiceAddresses::default() },
        multiaddresses: Vec::new(),
        version: String::new(),
        wire_version: String::new(),
        state: PeerState::Healthy,
        voter: true,
        joined_index: 1,
    }
}

fn view(peers: &[Peer]) -> View {
    let rows = peers.iter().enumerate().map(|(name, peer)| row(peer, name)).collect();
    View { peerset: PeerSet { peers: rows, ..PeerSet::default() }, ready: true, ..View::default() }
}

/// Peers with addresses, all members of one cluster; none runs yet.
async fn peers(count: usize) -> Vec<Peer> {
    let secret = ClusterSecret::generate();
    let mut peers = Vec::new();
    for _ in 0..count {
        let identity = Identity::generate();
        let consensus = Tls::new(&secret, &identity, Room::Consensus).unwrap();
        peers.push(Peer {
            id: identity.peer_id,
            tls: Tls::new(&secret, &identity, Room::Monitor).unwrap(),
            channels: Channels::new(consensus),
            address: free_port().await.1,
            peers: PeersHandle::fixed(View::default()),
            running: None,
        });
    }
    let whole = view(&peers);
    for peer in &peers {
        peer.peers.set(whole.clone());
    }
    peers
}

impl Peer {
    async fn start(&mut self, name: &str) {
        // Nobody answers at the siblings' addresses.
        let nobody = || async { free_port().await.1 };
        let config = Config {
            tls: self.tls.clone(),
            folder: std::env::temp_dir(),
            peername: name.to_owned(),
            ping_interval: PING_INTERVAL,
            check_interval: Duration::from_millis(200),
            allocate_by: vec!["tag:group".to_owned(), "freespace".to_owned()],
            pinqueue_bucket: 100_000,
            consensus: nobody().await,
            connector: nobody().await,
            gateway: nobody().await,
        };
        let grpc = TcpListener::bind(&self.address).await.unwrap();
        let shutdown = Shutdown::new();
        let channels = Channels::new(self.tls.clone());
        let listeners = Listeners { grpc, metrics: None };
        let task = tokio::spawn(run_with(config, listeners, channels, self.peers.clone(), shutdown.clone()));
        self.running = Some((shutdown, task));
    }

    async fn stop(&mut self) {
        let (shutdown, task) = self.running.take().unwrap();
        shutdown.trigger();
        tokio::time::timeout(DEADLINE, task).await.expect("stops in time").unwrap().unwrap();
    }

    fn channel_to(&self, other: &Peer) -> Channel {
        self.channels.to(Room::Monitor, &other.id, &other.address)
    }

    fn monitor(&self) -> MonitorClient<Channel> {
        MonitorClient::new(self.channel_to(self))
    }

    /// As the connector does.
    async fn publish(&self, free_bytes: i64) {
        let ipfs = Some(IpfsId { id: self.id.to_bytes(), ..IpfsId::default() });
        let metrics = vec![metric("freespace", free_bytes), Metric { partitionable: true, ..metric("tag:group", 0) }];
        let message = PublishCall { room: "ipfs-connector".to_owned(), metrics, ipfs };
        call("publish", DEADLINE, self.monitor().publish(message)).await.unwrap();
    }

    async fn free_space(&self) -> Vec<i64> {
        let latest = LatestMetricsCall { name: "freespace".to_owned() };
        let reply = call("metrics", DEADLINE, self.monitor().latest_metrics(latest)).await.unwrap();
        let mut weights: Vec<i64> = reply.metrics.iter().map(|metric| metric.weight).collect();
        weights.sort();
        weights
    }

    async fn verdict_of(&self, other: &Peer) -> Verdict {
        let reply = call("verdicts", DEADLINE, self.monitor().verdicts(VerdictsCall {})).await.unwrap();
        reply.verdicts.into_iter().find(|verdict| verdict.peer_id == other.id.to_bytes()).unwrap()
    }
}

fn metric(name: &str, weight: i64) -> Metric {
    Metric {
        name: name.to_owned(),
        value: weight.unsigned_abs().to_string(),
        weight,
        valid: true,
        ttl_ms: 30_000,
        ..Metric::default()
    }
}

fn batch(range: std::ops::Range<u32>, factor: i32) -> AllocateRequest {
    let item = |number: u32| Item {
        cid: number.to_be_bytes().to_vec(),
        replication_factor_min: factor,
        replication_factor_max: factor,
        ..Item::default()
    };
    AllocateRequest { items: range.map(item).collect() }
}

async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Goal: two monitors that start together know of each other within a moment, and allocate; what each says of itself
/// is what the other one has, with the sender's name, node and services inside.
#[tokio::test(flavor = "multi_thread")]
async fn seed_g4_two_monitors_tell_each_other() {
    let mut peers = peers(2).await;
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.start(&format!("p{number}")).await;
    }
    let [a, b] = &peers[..] else { panic!() };
    let refused = call("allocate", DEADLINE, a.monitor().allocate(batch(0..1, 2))).await.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable);
    assert!(refused.message.contains("warming up"), "{refused}");

    let started = std::time::Instant::now();
    a.publish(1000).await;
    b.publish(2000).await;
    until("both know both", || async { a.free_space().await == [1000, 2000] && b.free_space().await == [1000, 2000] })
        .await;
    let may_allocate = async |peer: &Peer| call("allocate", DEADLINE, peer.monitor().allocate(batch(0..1, 2))).await;
    until("both allocate", || async { may_allocate(a).await.is_ok() && may_allocate(b).await.is_ok() }).await;
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());

    let names = call("names", DEADLINE, a.monitor().metric_names(MetricNamesCall {})).await.unwrap().names;
    assert_eq!(names, ["freespace", "ping", "tag:group"]);
    until("b's siblings are found silent", || async { a.verdict_of(b).await.degraded.len() == 3 }).await;
    let verdict = a.verdict_of(b).await;
    assert_eq!(verdict.state(), verdict::State::Healthy);
    assert_eq!(verdict.peername, "p1");
    assert_eq!(verdict.ipfs.unwrap().id, b.id.to_bytes());
    assert!(verdict.wall_clock.is_some());
    for peer in &mut peers {
        peer.stop().await;
    }
}

/// Goal: a peer that stops is suspected when pings and Raft contact are both silent, an alert fires, and its return
/// resolves it. Raft contact alone keeps it healthy.
#[tokio::test(flavor = "multi_thread")]
async fn seed_g1_g5_a_peer_goes_and_comes_back() {
    let mut peers = peers(2).await;
    peers[0].start("p0").await;
    peers[1].start("p1").await;
    let state = async |peers: &[Peer]| peers[0].verdict_of(&peers[1]).await.state();
    until("heard", || async { peers[0].verdict_of(&peers[1]).await.ping_age_ms != u64::MAX }).await;

    peers[1].stop().await;
    until("suspect", || async { state(&peers).await == verdict::State::Suspect }).await;
    let alerts = async |peers: &[Peer]| {
        let alerts = call("alerts", DEADLINE, peers[0].monitor().alerts(AlertsCall {})).await.unwrap().alerts;
        alerts.into_iter().filter(|alert| alert.what.contains("pings")).collect::<Vec<_>>()
    };
    until("alert", || async { !alerts(&peers).await.is_empty() }).await;
    let alert = alerts(&peers).await.remove(0);
    assert_eq!(alert.resolved_at, None);
    assert_eq!(alert.metric.unwrap().peer, peers[1].id.to_bytes());

    let (reports, stream) = tokio::sync::mpsc::channel(1);
    let mut monitor = peers[0].monitor();
    let contacts =
        tokio::spawn(
            async move { monitor.contacts(tokio_stream::wrappers::ReceiverStream::new(stream)).await.map(|_| ()) },
        );
    let contact = Contact { peer_id: peers[1].id.to_bytes(), age_ms: 100 };
    reports.send(ContactReport { contacts: vec![contact], ..ContactReport::default() }).await.unwrap();
    until("healthy by raft", || async { state(&peers).await == verdict::State::Healthy }).await;
    drop(reports);
    contacts.await.unwrap().unwrap();

    peers[1].start("p1").await;
    until("resolved", || async { alerts(&peers).await.iter().all(|alert| alert.resolved_at.is_some()) }).await;
    assert_eq!(alerts(&peers).await.len(), 1);
    for peer in &mut peers {
        peer.stop().await;
    }
}

/// Goal: a monitor that starts in a cluster that runs is warm by what the others know, at once: it need not wait for
/// the next measurements of anybody's connector.
#[tokio::test(flavor = "multi_thread")]
async fn warm_start() {
    let mut peers = peers(3).await;
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.start(&format!("p{number}")).await;
    }
    for peer in &peers {
        peer.publish(1000).await;
    }
    until("all know all", || async { peers[0].free_space().await.len() == 3 }).await;
    peers[0].stop().await;
    peers[0].start("p0").await;
    let allocate = async || call("allocate", DEADLINE, peers[0].monitor().allocate(batch(0..1, 3))).await;
    until("allocated", || async {
        match allocate().await {
            Err(error) => {
                assert_eq!(error.code, Code::Unavailable, "{error}");
                false
            }
            Ok(reply) => {
                assert!(matches!(&reply.results[0].result, Some(Outcome::Peers(peers)) if peers.peers.len() == 3));
                true
            }
        }
    })
    .await;
    for peer in &mut peers {
        peer.stop().await;
    }
}

/// Goal: another member may ask for an allocation (protocols.md 5), a burst spreads evenly over the wire too, and a new
/// member is told everything at once.
#[tokio::test(flavor = "multi_thread")]
async fn allocation_for_another_member() {
    let mut peers = peers(5).await;
    let whole = view(&peers);
    let four = view(&peers[..4]);
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.peers.set(four.clone());
        peer.start(&format!("p{number}")).await;
    }
    for peer in &peers {
        peer.publish(10_000_000_000).await;
    }
    until("the four know each other", || async { peers[0].free_space().await.len() == 4 }).await;
    for peer in &peers {
        peer.peers.set(whole.clone());
    }
    until("the fifth is known and knows", || async {
        peers[0].free_space().await.len() == 5 && peers[4].free_space().await.len() == 5
    })
    .await;

    let mut allocation = AllocationClient::new(peers[1].channel_to(&peers[0]));
    let mut counts = std::collections::HashMap::new();
    for start in (0..600).step_by(100) {
        let reply = call("allocate", DEADLINE, allocation.allocate(batch(start..start + 100, 2))).await.unwrap();
        for result in reply.results {
            let Some(Outcome::Peers(chosen)) = result.result else { panic!("{result:?}") };
            for peer in peers_from_bytes(&chosen.peers).unwrap() {
                *counts.entry(peer).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(counts.len(), 5);
    assert!(counts.values().all(|count| (216..=264).contains(count)), "{counts:?}");

    let wrong = call("allocate", DEADLINE, allocation.allocate(batch(0..1, 0))).await.unwrap_err();
    assert_eq!(wrong.code, Code::InvalidArgument);
    assert!(wrong.message.contains("item 0"), "{wrong}");
    let many = call("allocate", DEADLINE, allocation.allocate(batch(0..1001, 1))).await.unwrap_err();
    assert_eq!(many.code, Code::InvalidArgument);
    let few = call("allocate", DEADLINE, allocation.allocate(batch(0..1, 6))).await.unwrap();
    assert!(matches!(&few.results[0].result, Some(Outcome::TooFew(few)) if few.needed == 6 && few.candidates == 5));
    for peer in &mut peers {
        peer.stop().await;
    }
}

/// Goal: each service lets in its audience only, and a member speaks for itself only (attack:RP6).
#[tokio::test(flavor = "multi_thread")]
async fn audiences() {
    let mut peers = peers(3).await;
    let two = view(&peers[..2]);
    peers[0].peers.set(two);
    peers[0].start("p0").await;
    let (member, stranger) = (peers[1].channel_to(&peers[0]), peers[2].channel_to(&peers[0]));

    let not_own = call("verdicts", DEADLINE, MonitorClient::new(member.clone()).verdicts(VerdictsCall {})).await;
    assert_eq!(not_own.unwrap_err().code, Code::PermissionDenied);
    let unknown = call("pull", DEADLINE, GossipClient::new(stranger).pull(PullCall {})).await;
    assert_eq!(unknown.unwrap_err().code, Code::UnknownMember);

    let about_another = Metric { peer: peers[0].id.to_bytes(), sequence: u64::MAX, ..metric("freespace", 7) };
    let message = PushCall { metrics: vec![about_another], ping: None };
    call("push", DEADLINE, GossipClient::new(member).push(message)).await.unwrap();
    let latest = LatestMetricsCall { name: "freespace".to_owned() };
    let metrics = call("metrics", DEADLINE, peers[0].monitor().latest_metrics(latest)).await.unwrap().metrics;
    assert_eq!(metrics.len(), 1);
    assert_eq!(metrics[0].peer, peers[1].id.to_bytes());
    peers[0].stop().await;
}

/// Goal: a peer's folder is enough to start from; a second monitor in it is refused; and it stops when asked to.
#[tokio::test(flavor = "multi_thread")]
async fn from_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    Identity::generate().save(folder.path()).unwrap();
    let secret = ClusterSecret::generate().to_hex();
    write_new(folder.path(), vec![("cluster.secret", secret.into()), ("cluster.peername", "p0".into())]).unwrap();
    let args = Args { folder: Some(folder.path().to_owned()), ..Args::default() };
    let config = Config::from_file(&File::load(&args).unwrap()).unwrap();
    assert_eq!((config.peername.as_str(), config.allocate_by.len()), ("p0", 2));

    let shutdown = Shutdown::new();
    let listeners = async || Listeners { grpc: free_port().await.0, metrics: Some(free_port().await.0) };
    let first = tokio::spawn(run(config.clone(), listeners().await, shutdown.clone()));
    let lock = folder.path().join("monitor/lock");
    until("the folder is locked", || async { lock.exists() }).await;
    let refused = run(config, listeners().await, Shutdown::new()).await.unwrap_err();
    assert_eq!(refused.code, Code::Rejected, "{refused}");
    shutdown.trigger();
    tokio::time::timeout(DEADLINE, first).await.expect("stops in time").unwrap().unwrap();
}
