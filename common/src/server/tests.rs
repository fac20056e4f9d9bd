//! Over real loopback connections: who is let in, what the refused are told, and how a server ends.

use std::pin::Pin;
use std::time::Instant;

use futures::Stream;
use pinfold_proto::consensus::peers_client::PeersClient;
use pinfold_proto::consensus::peers_server::{Peers, PeersServer};
use pinfold_proto::consensus::{self, StatusCall, WatchCall, WatchReply};
use pinfold_proto::monitor::gossip_client::GossipClient;
use pinfold_proto::monitor::gossip_server::{Gossip, GossipServer};
use pinfold_proto::monitor::{PeerPing, PullCall, PullReply, PushCall, PushReply};
use pinfold_proto::{WIRE_VERSION, types};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::audience::{Standing, caller};
use crate::channel::{Channels, call, traced};
use crate::identity::Identity;
use crate::identity::tests::rsa_identity;
use crate::peerset::{NOT_ANSWERED, PeersHandle};
use crate::tls::{ClusterSecret, Room};
use crate::{Code, PeerId};

const SOON: Duration = Duration::from_secs(10);

struct Table(Vec<(PeerId, Standing)>);

impl Members for Table {
    fn standing(&self, peer: &PeerId) -> Standing {
        self.0.iter().find(|(known, _)| known == peer).map_or(Standing::Unknown, |(_, standing)| *standing)
    }
}

/// A member service that answers with its caller, and hangs when it is pulled.
struct Echo;

#[tonic::async_trait]
impl Gossip for Echo {
    async fn push(&self, _: Request<PushCall>) -> Result<Response<PushReply>, Status> {
        futures::future::pending().await
    }

    async fn pull(&self, request: Request<PullCall>) -> Result<Response<PullReply>, Status> {
        let peer_id = caller(&request)?.to_bytes();
        Ok(Response::new(PullReply {
            metrics: Vec::new(),
            pings: vec![PeerPing { peer_id, ping: None, age_ms: 0 }],
            incidents: Vec::new(),
        }))
    }
}

/// An own service that sends what the test puts into it, until the shutdown.
struct Teller {
    replies: watch::Sender<WatchReply>,
    shutdown: Shutdown,
}

#[tonic::async_trait]
impl Peers for Teller {
    async fn status(&self, _: Request<StatusCall>) -> Result<Response<consensus::StatusReply>, Status> {
        Ok(Response::new(consensus::StatusReply::default()))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchReply, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchCall>) -> Result<Response<Self::WatchStream>, Status> {
        let replies = WatchStream::new(self.replies.subscribe()).map(Ok);
        let stopped = self.shutdown.triggered();
        Ok(Response::new(Box::pin(futures::StreamExt::take_until(replies, stopped))))
    }

    async fn add(&self, _: Request<consensus::AddPeerCall>) -> Result<Response<consensus::AddPeerReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn remove(
        &self,
        _: Request<consensus::RemovePeerCall>,
    ) -> Result<Response<consensus::RemovePeerReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn drain(&self, _: Request<consensus::DrainPeerCall>) -> Result<Response<consensus::DrainPeerReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn digest(&self, _: Request<consensus::DigestCall>) -> Result<Response<consensus::DigestReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn departures(
        &self,
        _: Request<consensus::DeparturesCall>,
    ) -> Result<Response<consensus::DeparturesReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

/// One server of peer `identity` on a free port.
struct Running {
    identity: Identity,
    address: String,
    shutdown: Shutdown,
    served: tokio::task::JoinHandle<Result<(), Error>>,
    replies: watch::Sender<WatchReply>,
}

impl Running {
    async fn start(secret: &ClusterSecret, room: Room, members: Vec<(PeerId, Standing)>) -> Running {
        let listener = bind("services.test", &"/ip4/127.0.0.1/tcp/0".parse().unwrap()).await.unwrap();
        Running::start_on(listener, secret, Identity::generate(), room, members)
    }

    async fn speaking(version: &str, secret: &ClusterSecret, members: Vec<(PeerId, Standing)>) -> Running {
        let listener = bind("services.test", &"/ip4/127.0.0.1/tcp/0".parse().unwrap()).await.unwrap();
        let identity = Identity::generate();
        let tls = Tls::speaking(version, secret, &identity, Room::Monitor).unwrap();
        Running::serve(listener, tls, identity, members)
    }

    fn start_on(
        listener: TcpListener,
        secret: &ClusterSecret,
        identity: Identity,
        room: Room,
        members: Vec<(PeerId, Standing)>,
    ) -> Running {
        Running::serve(listener, Tls::new(secret, &identity, room).unwrap(), identity, members)
    }

    fn serve(listener: TcpListener, tls: Arc<Tls>, identity: Identity, members: Vec<(PeerId, Standing)>) -> Running {
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = Shutdown::new();
        let replies = watch::Sender::new(WatchReply::default());
        let routes = tonic::service::Routes::new(GossipServer::new(Echo))
            .add_service(PeersServer::new(Teller { replies: replies.clone(), shutdown: shutdown.clone() }));
        let served = tokio::spawn(serve(listener, tls, Arc::new(Table(members)), routes, shutdown.clone()));
        Running { identity, address, shutdown, served, replies }
    }

    fn gossip(&self, channels: &Channels) -> GossipClient<tonic::transport::Channel> {
        GossipClient::new(channels.to(Room::Monitor, &self.identity.peer_id, &self.address))
    }
}

fn channels(secret: &ClusterSecret, identity: &Identity) -> Channels {
    Channels::new(Tls::new(secret, identity, Room::Monitor).unwrap())
}

/// Goal: a process of another wire version is refused as caller and as callee, by a text that names both versions, also
/// when it belongs to the same peer.
#[tokio::test]
async fn seed_a3_a5_another_wire_version_is_refused_both_ways() {
    let secret = ClusterSecret::generate();
    let member = Identity::generate();
    let members = || vec![(member.peer_id, Standing::Member)];
    let (ours, theirs) = (Running::start(&secret, Room::Monitor, members()).await, "9.7");
    let other = Running::speaking(theirs, &secret, members()).await;
    let speaking = |version: &str, identity: &Identity| {
        Channels::new(Tls::speaking(version, &secret, identity, Room::Monitor).unwrap())
    };
    for (server, version, identity) in [
        (&ours, theirs, &member),
        (&ours, theirs, &ours.identity),
        (&other, WIRE_VERSION, &member),
        (&other, WIRE_VERSION, &other.identity),
    ] {
        let mut client = server.gossip(&speaking(version, identity));
        let refused = call("pull", SOON, client.pull(PullCall {})).await.unwrap_err();
        assert_eq!(refused.code, Code::Incompatible, "{refused}");
        assert!(refused.message.contains(theirs) && refused.message.contains(WIRE_VERSION), "{refused}");
    }
    let mut client = other.gossip(&speaking(theirs, &member));
    call("pull", SOON, client.pull(PullCall {})).await.unwrap();
}

/// Goal: a member is let in, under the peer ID of its key, Ed25519 or RSA; an unknown and a removed peer get two
/// different errors; a service for this peer's own processes refuses other members and takes the own ones.
#[tokio::test]
async fn seed_f19_callers_are_told_apart() {
    let secret = ClusterSecret::generate();
    let [member, removed, unknown] = std::array::from_fn(|_| Identity::generate());
    let old = rsa_identity();
    let members =
        vec![(member.peer_id, Standing::Member), (old.peer_id, Standing::Member), (removed.peer_id, Standing::Removed)];
    let server = Running::start(&secret, Room::Monitor, members).await;

    for identity in [&member, &old, &server.identity] {
        let mut client = server.gossip(&channels(&secret, identity));
        let reply = call("pull", SOON, client.pull(traced(PullCall {}))).await.unwrap();
        assert_eq!(reply.pings[0].peer_id, identity.peer_id.to_bytes());
    }
    for (identity, expected) in [(&removed, Code::Removed), (&unknown, Code::UnknownMember)] {
        let mut client = server.gossip(&channels(&secret, identity));
        let error = call("pull", SOON, client.pull(PullCall {})).await.unwrap_err();
        assert_eq!(error.code, expected, "{error}");
        assert!(error.message.starts_with("pull: ") && error.message.contains(&identity.peer_id.to_string()));
    }

    let own_service = async |identity: &Identity| {
        let channel = channels(&secret, identity).to(Room::Monitor, &server.identity.peer_id, &server.address);
        call("status", SOON, PeersClient::new(channel).status(StatusCall {})).await
    };
    assert_eq!(own_service(&member).await.unwrap_err().code, Code::PermissionDenied);
    own_service(&server.identity).await.unwrap();
}

/// Goal: another secret is named as what it is (beh:B1.7, seed:F14), and a process of another peer or room at an
/// address is not taken for the one that was meant.
#[tokio::test]
async fn a_wrong_server_is_named() {
    let secret = ClusterSecret::generate();
    let member = Identity::generate();
    let server = Running::start(&secret, Room::Monitor, vec![(member.peer_id, Standing::Member)]).await;

    let mut client = server.gossip(&channels(&ClusterSecret::generate(), &member));
    let error = call("pull metrics", SOON, client.pull(PullCall {})).await.unwrap_err();
    assert_eq!(error.code, Code::Unauthenticated);
    assert!(error.message.ends_with("the other side has another cluster secret"), "{error}");

    let channels = channels(&secret, &member);
    for (room, peer) in [(Room::Monitor, member.peer_id), (Room::Connector, server.identity.peer_id)] {
        let mut client = GossipClient::new(channels.to(room, &peer, &server.address));
        let error = call("pull", SOON, client.pull(PullCall {})).await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.message.contains(&format!("not the {room} of peer {peer}")), "{error}");
    }
}

/// Goal: the end that is called names another secret too (beh:B1.7).
#[tokio::test]
async fn both_ends_name_another_secret() {
    let identity = Identity::generate();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ours = Tls::new(&ClusterSecret::generate(), &identity, Room::Monitor).unwrap();
    let theirs = channels(&ClusterSecret::generate(), &identity).to(Room::Monitor, &identity.peer_id, &address);
    let caller = tokio::spawn(async move { GossipClient::new(theirs).pull(PullCall {}).await });
    let (tcp, _) = listener.accept().await.unwrap();
    let error = handshake(TlsAcceptor::from(ours.server()), tcp).await.map(|_| ()).unwrap_err();
    assert_eq!(explain_handshake(&error), "the other side has another cluster secret");
    assert!(caller.await.unwrap().is_err());
}

/// Goal: no connection is Unavailable (nothing happened), whatever is wrong with the address, and says where to.
#[tokio::test]
async fn nobody_there_is_unavailable() {
    let identity = Identity::generate();
    let channels = channels(&ClusterSecret::generate(), &identity);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    for address in [closed.as_str(), "", "no port", "127.0.0.1:99999", "nobody.invalid:1"] {
        let mut client = GossipClient::new(channels.to(Room::Monitor, &identity.peer_id, address));
        let error = call("pull", SOON, client.pull(PullCall {})).await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "{address}: {error}");
        assert!(error.message.contains(&format!("connect to monitor-svc at {address}: ")), "{error}");
    }
}

/// Goal: a channel is kept, and finds a server that came back at its address.
#[tokio::test]
async fn a_channel_outlives_its_server() {
    let secret = ClusterSecret::generate();
    let server = Running::start(&secret, Room::Monitor, Vec::new()).await;
    let channels = channels(&secret, &server.identity);
    let mut client = server.gossip(&channels);
    call("pull", SOON, client.pull(PullCall {})).await.unwrap();
    server.shutdown.trigger();
    server.served.await.unwrap().unwrap();
    assert!(call("pull", SOON, client.pull(PullCall {})).await.is_err());

    let address = crate::address::multiaddr_of(&server.address).unwrap();
    let listener = bind("services.test", &address).await.unwrap();
    let _again = Running::start_on(listener, &secret, server.identity, Room::Monitor, Vec::new());
    let started = Instant::now();
    while let Err(error) = call("pull", SOON, client.pull(PullCall {})).await {
        assert!(started.elapsed() < SOON, "{error}");
    }
}

/// Goal: without an answer the outcome is unknown, be it that the deadline passes or that the connection is cut; and
/// a request that hangs holds up the end of a server by the drain's deadline and no longer.
#[tokio::test]
async fn an_unanswered_request_has_an_unknown_outcome() {
    let secret = ClusterSecret::generate();
    let server = Running::start(&secret, Room::Monitor, Vec::new()).await;
    let mut client = server.gossip(&channels(&secret, &server.identity));
    let late = call("push metrics", Duration::from_millis(200), client.push(PushCall::default())).await.unwrap_err();
    assert_eq!(late.code, Code::OutcomeUnknown);
    assert_eq!(late.message, "push metrics: no answer within 200ms, the outcome is unknown");

    let hanging = tokio::spawn(async move { call("push", SOON, client.push(PushCall::default())).await });
    let mut second = server.gossip(&channels(&secret, &server.identity));
    call("pull", SOON, second.pull(PullCall {})).await.unwrap(); // the server is alive when it is told to stop
    let stopped = Instant::now();
    server.shutdown.trigger();
    server.served.await.unwrap().unwrap();
    assert!(stopped.elapsed() < DRAIN_DEADLINE + Duration::from_secs(1));
    let cut = hanging.await.unwrap().unwrap_err();
    assert_eq!(cut.code, Code::OutcomeUnknown, "{cut}");
}

/// Goal: who shows no certificate, speaks TLS 1.2, or does not speak TLS gets nothing, and the server goes on.
#[tokio::test]
async fn strangers_are_dropped() {
    let secret = ClusterSecret::generate();
    let server = Running::start(&secret, Room::Monitor, Vec::new()).await;
    let own = server.identity.peer_id;
    let tls = Tls::new(&secret, &server.identity, Room::Monitor).unwrap();

    let mut plain = TcpStream::connect(&server.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(SOON, plain.read_to_end(&mut rest)).await.expect("dropped");
    assert!(rest.len() < 16, "an alert at most");

    let mut roots = rustls::RootCertStore::empty();
    roots.add(tls.authority().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let tcp = TcpStream::connect(&server.address).await.unwrap();
        let name = crate::tls::server_name(Room::Monitor, &own).unwrap();
        // In TLS 1.3 the client is done before the server looks at its certificate: the refusal comes with a read.
        let connected = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        assert!(version.version == rustls::ProtocolVersion::TLSv1_3 || connected.is_err(), "TLS 1.2 is refused");
        if let Ok(mut stream) = connected {
            let read = tokio::time::timeout(SOON, stream.read(&mut [0; 64])).await.expect("dropped");
            assert!(!matches!(read, Ok(count) if count > 0), "{version:?}");
        }
    }
    let mut client = server.gossip(&channels(&secret, &server.identity));
    call("pull", SOON, client.pull(PullCall {})).await.unwrap();
}

/// Goal: a port that is taken is one sentence with the key, the port and what to do.
#[tokio::test]
async fn a_taken_port_is_one_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let address = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    let error = bind("services.monitor.listen_multiaddress", &address).await.unwrap_err();
    assert_eq!(
        error.message,
        format!(
            "services.monitor.listen_multiaddress: port {port} on 127.0.0.1 is in use by another program; \
             stop it or choose another port"
        )
    );
    let elsewhere = "/ip4/192.0.2.1/tcp/0".parse().unwrap();
    let error = bind("services.monitor.listen_multiaddress", &elsewhere).await.unwrap_err();
    assert!(error.message.contains("192.0.2.1 is not an address of this machine"), "{error}");
}

/// Goal: the peerset is followed, kept on disk, known at the next start before consensus answers, and stays known,
/// not ready, while consensus is away.
#[tokio::test]
async fn the_peerset_is_followed_and_kept() {
    let secret = ClusterSecret::generate();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("peerset.pb");
    let server = Running::start(&secret, Room::Consensus, Vec::new()).await;
    let own = server.identity.peer_id;
    let (away, gone) = (Identity::generate().peer_id, Identity::generate().peer_id);
    let row = |peer: &PeerId, state: types::peer::State| types::Peer {
        peer_id: peer.to_bytes(),
        state: state.into(),
        addresses: Some(types::ServiceAddresses { monitor: "10.0.0.1:9098".into(), ..Default::default() }),
        ..Default::default()
    };
    let reply = WatchReply {
        peerset: Some(types::PeerSet {
            cluster_id: vec![1; 16],
            lineage: 1,
            index: 7,
            peers: vec![row(&own, types::peer::State::Healthy), row(&away, types::peer::State::Away)],
            removed: vec![row(&gone, types::peer::State::Removed), row(&own, types::peer::State::Removed)],
        }),
        leader: own.to_bytes(),
        ready: true,
        not_ready_reason: String::new(),
    };

    let shutdown = Shutdown::new();
    let follow = || {
        let channels = channels(&secret, &server.identity);
        PeersHandle::follow(channels, own, server.address.clone(), file.clone(), shutdown.clone())
    };
    let peers = follow();
    assert_eq!(peers.current().not_ready_reason, NOT_ANSWERED);
    let mut views = peers.subscribe();
    server.replies.send_replace(reply);
    tokio::time::timeout(SOON, views.wait_for(|view| view.ready)).await.unwrap().unwrap();
    let view = peers.current();
    assert_eq!((view.leader, view.peerset.index), (Some(own), 7));
    assert_eq!(view.peerset.get(&away).unwrap().address(Room::Monitor), Some("10.0.0.1:9098"));
    let known = |peers: &PeersHandle| [own, away, gone, PeerId::random()].map(|peer| peers.standing(&peer));
    let expected = [Standing::Member, Standing::Member, Standing::Removed, Standing::Unknown];
    assert_eq!(known(&peers), expected);

    server.shutdown.trigger();
    server.served.await.unwrap().unwrap();
    tokio::time::timeout(SOON, views.wait_for(|view| !view.ready)).await.unwrap().unwrap();
    assert_eq!(peers.current().leader, None);
    assert!(peers.current().not_ready_reason.contains("consensus-svc"));
    assert_eq!(known(&peers), expected);

    let restarted = follow();
    assert!(!restarted.current().ready);
    assert_eq!(known(&restarted), expected);
    assert_eq!(restarted.current().peerset, view.peerset);

    let address = crate::address::multiaddr_of(&server.address).unwrap();
    let listener = bind("services.test", &address).await.unwrap();
    let again = Running::start_on(listener, &secret, server.identity.clone(), Room::Consensus, Vec::new());
    again.replies.send_replace(WatchReply { ready: true, ..WatchReply::default() });
    for handle in [peers, restarted] {
        let mut back = handle.subscribe();
        tokio::time::timeout(SOON, back.wait_for(|view| view.ready)).await.unwrap().unwrap();
    }
    shutdown.trigger();

    std::fs::write(&file, "damaged").unwrap();
    let fresh = PeersHandle::follow(
        channels(&secret, &again.identity),
        own,
        again.address.clone(),
        file.clone(),
        Shutdown::new(),
    );
    assert_eq!(fresh.current().peerset.peers, Vec::new());

    // Its own removal ends the service.
    let removed = vec![row(&own, types::peer::State::Removed)];
    let peerset = types::PeerSet { removed, ..types::PeerSet::default() };
    let ends = Shutdown::new();
    let _last = PeersHandle::follow(channels(&secret, &again.identity), own, again.address.clone(), file, ends.clone());
    assert!(!ends.is_triggered());
    again.replies.send_replace(WatchReply { peerset: Some(peerset), ..WatchReply::default() });
    tokio::time::timeout(SOON, ends.triggered()).await.unwrap();
}
