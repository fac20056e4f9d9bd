//! Blocks to real servers: this cluster's TLS, the audience check, the transport's flow control.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES};
use pinfold_common::identity::Identity;
use pinfold_common::ids::peers_to_bytes;
use pinfold_common::peerset::{PeerInfo, PeerSet, PeerState, PeersHandle, View};
use pinfold_common::server;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use pinfold_proto::connector::blocks_server::{Blocks, BlocksServer};
use pinfold_proto::connector::{BlockReply, GetBlocks};
use pinfold_proto::consensus::pins_server::{Pins, PinsServer};
use pinfold_proto::consensus::*;
use pinfold_proto::types;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::content::Content;
use super::*;

/// How a connector of the test behaves.
#[derive(Clone)]
enum Manner {
    Good,
    /// Fails after so many batches.
    FailsAfter(usize),
    /// Reads nothing before the value is true.
    WaitsFor(watch::Receiver<bool>),
}

#[derive(Clone)]
struct Connector {
    manner: Manner,
    stored: Arc<Mutex<BTreeMap<Vec<u8>, Bytes>>>,
    received_bytes: Arc<watch::Sender<u64>>,
    open_streams: Arc<watch::Sender<i64>>,
}

/// Counts a stream until its handler is over, however it ends.
struct OpenStream(Arc<watch::Sender<i64>>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

#[tonic::async_trait]
impl Blocks for Connector {
    type GetStream = stream::Empty<Result<BlockReply, Status>>;

    async fn put(&self, request: Request<tonic::Streaming<PutBlocks>>) -> Result<Response<PutBlocksReply>, Status> {
        self.open_streams.send_modify(|open| *open += 1);
        let _open = OpenStream(self.open_streams.clone());
        let mut batches = request.into_inner();
        if let Manner::WaitsFor(mut gate) = self.manner.clone() {
            gate.wait_for(|open| *open).await.map_err(|_| Status::internal("the test is over"))?;
        }
        let mut reply = PutBlocksReply::default();
        for nth in 0.. {
            if matches!(self.manner, Manner::FailsAfter(batches) if batches == nth) {
                return Err(Error::new(pinfold_common::Code::StorageFull, "put blocks: the disk is full").into());
            }
            let Some(batch) = batches.message().await? else { break };
            for block in batch.blocks {
                reply.blocks += 1;
                reply.bytes += block.data.len() as u64;
                self.received_bytes.send_modify(|bytes| *bytes += block.data.len() as u64);
                self.stored.lock().insert(block.cid, block.data);
            }
        }
        Ok(Response::new(reply))
    }

    async fn get(&self, _: Request<tonic::Streaming<GetBlocks>>) -> Result<Response<Self::GetStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

/// A consensus that allocates all peers and remembers the pins.
struct Consensus {
    allocations: Vec<PeerId>,
    pins: Arc<Mutex<Vec<PinCall>>>,
}

#[tonic::async_trait]
impl Pins for Consensus {
    type ListStream = stream::Empty<Result<ListReply, Status>>;
    type FollowStream = stream::Empty<Result<FollowReply, Status>>;

    async fn pin(&self, request: Request<PinCall>) -> Result<Response<PinReply>, Status> {
        let call = request.into_inner();
        self.pins.lock().push(call.clone());
        let request = PinRequest::try_from(call.request.unwrap_or_default())?;
        Ok(Response::new(PinReply { pin: Some(pin_of(request).into()), index: 9, user_allocations: Vec::new() }))
    }

    async fn allocate_for_add(&self, _: Request<AllocateCall>) -> Result<Response<AllocateReply>, Status> {
        Ok(Response::new(AllocateReply {
            allocations: peers_to_bytes(&self.allocations),
            everywhere: false,
            replication_factor_min: 2,
            replication_factor_max: 3,
        }))
    }

    async fn pin_many(&self, _: Request<PinManyCall>) -> Result<Response<PinManyReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn replication(&self, _: Request<ReplicationCall>) -> Result<Response<ReplicationReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn unpin(&self, _: Request<UnpinCall>) -> Result<Response<PinReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn get(&self, _: Request<GetCall>) -> Result<Response<GetReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn list(&self, _: Request<ListCall>) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn follow(&self, _: Request<FollowCall>) -> Result<Response<Self::FollowStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

/// Three peers, each with a connector; the first one with a consensus, and the gateway of the test.
struct Cluster3 {
    context: AddContext,
    handle: PeersHandle,
    peers: Vec<PeerId>,
    connectors: Vec<Connector>,
    pins: Arc<Mutex<Vec<PinCall>>>,
    shutdown: Shutdown,
}

impl Drop for Cluster3 {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

impl Cluster3 {
    async fn start(manners: [Manner; 3]) -> Cluster3 {
        let (secret, shutdown) = (ClusterSecret::generate(), Shutdown::new());
        let identities: Vec<Identity> = (0..3).map(|_| Identity::generate()).collect();
        let peers: Vec<PeerId> = identities.iter().map(|identity| identity.peer_id).collect();
        let mut listeners = Vec::new();
        for _ in 0..4 {
            listeners.push(TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap());
        }
        let address = |at: usize| listeners[at].local_addr().unwrap().to_string();
        let rows = (0..3).map(|at| row(peers[at], address(at))).collect();
        let peerset = PeerSet { peers: rows, index: 1, ..PeerSet::default() };
        let view = View { peerset, leader: None, ready: true, not_ready_reason: String::new() };
        let handle = PeersHandle::fixed(view);
        let own_consensus = address(3);

        let consensus = listeners.pop().unwrap();
        let mut connectors = Vec::new();
        for ((listener, identity), manner) in listeners.into_iter().zip(&identities).zip(manners) {
            let received_bytes = Arc::new(watch::Sender::new(0));
            let open_streams = Arc::new(watch::Sender::new(0));
            let connector = Connector { manner, stored: Arc::default(), received_bytes, open_streams };
            connectors.push(connector.clone());
            let service = BlocksServer::new(connector).max_decoding_message_size(MAX_MESSAGE_BYTES);
            let tls = Tls::new(&secret, identity, Room::Connector).unwrap();
            let routes = tonic::service::Routes::new(service);
            tokio::spawn(server::serve(listener, tls, Arc::new(handle.clone()), routes, shutdown.clone()));
        }
        let pins = Arc::default();
        let service = PinsServer::new(Consensus { allocations: peers.clone(), pins: Arc::clone(&pins) });
        let tls = Tls::new(&secret, &identities[0], Room::Consensus).unwrap();
        let routes = tonic::service::Routes::new(service);
        tokio::spawn(server::serve(consensus, tls, Arc::new(handle.clone()), routes, shutdown.clone()));

        let channels = Channels::new(Tls::new(&secret, &identities[0], Room::Gateway).unwrap());
        let context = AddContext::new(channels, handle.clone(), peers[0], own_consensus);
        Cluster3 { context, handle, peers, connectors, pins, shutdown }
    }

    async fn add(&self, input: Vec<Result<Input>>) -> Result<Done> {
        let (output, _events) = mpsc::channel(16);
        add(&self.context, AddParams::default(), stream::iter(input), output).await
    }
}

fn row(peer_id: PeerId, connector: String) -> PeerInfo {
    PeerInfo {
        peer_id,
        node_id: 0,
        name: String::new(),
        addresses: types::ServiceAddresses { connector, ..types::ServiceAddresses::default() },
        multiaddresses: Vec::new(),
        version: String::new(),
        wire_version: pinfold_proto::WIRE_VERSION.to_owned(),
        state: PeerState::Healthy,
        voter: true,
        joined_index: 0,
    }
}

/// Goal: all destinations hold all blocks, each of them what its CID says, and the pin carries the destinations.
#[tokio::test(flavor = "multi_thread")]
async fn all_destinations_hold_all_blocks() {
    let cluster = Cluster3::start([Manner::Good, Manner::Good, Manner::Good]).await;
    let done = cluster.add(file("x", &Content::new(1).take(20_000_000))).await.unwrap();
    assert!(done.failed.is_empty());
    assert_eq!(done.pin.unwrap().allocations, cluster.peers);
    assert_eq!(done.index, 9);
    let first = cluster.connectors[0].stored.lock().clone();
    assert_eq!(first.len(), 78, "77 leaves and a root");
    for (cid, data) in &first {
        use multihash_codetable::MultihashDigest as _;
        let cid = pinfold_common::ids::cid_from_bytes(cid).unwrap();
        assert_eq!(*cid.hash(), multihash_codetable::Code::Sha2_256.digest(data));
    }
    assert!(cluster.connectors.iter().all(|connector| *connector.stored.lock() == first));
    assert_eq!(cluster.pins.lock().len(), 1);
}

/// Goal: one destination that fails midway is named with its reason; the pin goes to the other two.
#[tokio::test(flavor = "multi_thread")]
async fn one_destination_fails() {
    let cluster = Cluster3::start([Manner::Good, Manner::FailsAfter(3), Manner::Good]).await;
    let done = cluster.add(file("x", &Content::new(1).take(20_000_000))).await.unwrap();
    assert_eq!(done.failed.len(), 1);
    assert_eq!(done.failed[0].0, cluster.peers[1]);
    assert!(done.failed[0].1.contains("the disk is full"), "{:?}", done.failed);
    assert_eq!(done.pin.unwrap().allocations, [cluster.peers[0], cluster.peers[2]]);
    assert_eq!(*cluster.connectors[0].stored.lock(), *cluster.connectors[2].stored.lock());
}

/// Goal: when all fail, nothing is pinned, and a full disk stays a full disk.
#[tokio::test(flavor = "multi_thread")]
async fn all_destinations_fail() {
    let manners = [Manner::FailsAfter(0), Manner::FailsAfter(1), Manner::FailsAfter(2)];
    let cluster = Cluster3::start(manners).await;
    let error = cluster.add(file("x", &Content::new(1).take(20_000_000))).await.unwrap_err();
    assert!(error.message.starts_with("failed to put block on all destinations"), "{error}");
    assert_eq!(error.code, pinfold_common::Code::StorageFull);
    assert!(cluster.pins.lock().is_empty());
}

/// Goal: while one destination reads nothing, no more than bounded buffers are read from the client; then it gets all.
#[tokio::test(flavor = "multi_thread")]
async fn back_pressure_is_bounded() {
    const PIECE_BYTES: u64 = 1 << 20;
    const PIECES: u64 = 96;
    let (open, gate) = watch::channel(false);
    let cluster = Cluster3::start([Manner::Good, Manner::WaitsFor(gate), Manner::Good]).await;
    let read = Arc::new(AtomicU64::new(0));
    let counter = read.clone();
    let mut content = Content::new(1);
    let pieces = (0..PIECES).map(move |_| {
        counter.fetch_add(PIECE_BYTES, Ordering::Relaxed);
        Ok(Input::Data(Bytes::from(content.take(PIECE_BYTES as usize))))
    });
    let begin = [Ok(Input::File { path: "x".to_owned(), attributes: Attributes::default() })];
    let input = stream::iter(begin.into_iter().chain(pieces).chain([Ok(Input::EndOfFile)]));
    let (output, _events) = mpsc::channel(16);
    let adding = add(&cluster.context, AddParams::default(), input, output);

    // The gate opens when the fast ones have what they can get: the slow one's queue and its stream are full by then.
    let mut fast = cluster.connectors[0].received_bytes.subscribe();
    let releasing = async {
        fast.wait_for(|bytes| *bytes >= 4 * PIECE_BYTES).await.unwrap();
        while tokio::time::timeout(std::time::Duration::from_millis(500), fast.changed()).await.is_ok() {}
        let read_before = read.load(Ordering::Relaxed);
        open.send_replace(true);
        read_before
    };
    let (done, read_before) = tokio::join!(adding, releasing);
    assert!(read_before <= 24 * PIECE_BYTES, "{read_before} bytes were read before the slow one took any");
    assert!(done.unwrap().failed.is_empty());
    let first = cluster.connectors[0].stored.lock().clone();
    assert!(cluster.connectors.iter().all(|connector| *connector.stored.lock() == first));
}

/// Goal: a destination that is not in the peerset, or cannot be reached, fails alone; with the second one the minimum of
/// two copies is missed, which is an error that names both, and nothing is pinned.
#[tokio::test(flavor = "multi_thread")]
async fn unreachable_destinations() {
    let cluster = Cluster3::start([Manner::Good, Manner::Good, Manner::Good]).await;
    let mut view = View::clone(&cluster.handle.current());
    // Nobody listens on port 1.
    view.peerset.peers[1].addresses.connector = "127.0.0.1:1".to_owned();
    cluster.handle.set(view.clone());
    let done = cluster.add(file("x", b"content")).await.unwrap();
    let failed: Vec<PeerId> = done.failed.iter().map(|(peer, _)| *peer).collect();
    assert_eq!(failed, [cluster.peers[1]]);
    assert_eq!(done.pin.unwrap().allocations, [cluster.peers[0], cluster.peers[2]]);

    // The third peer becomes unknown.
    view.peerset.peers.pop();
    cluster.handle.set(view);
    let error = cluster.add(file("x", b"content")).await.unwrap_err();
    assert!(error.message.contains("1 have them, 2 are needed"), "{error}");
    assert!(cluster.peers[1..].iter().all(|peer| error.message.contains(&peer.to_string())), "{error}");
    assert_eq!(cluster.pins.lock().len(), 1);
}

/// Goal: an upload that breaks off leaves no stream open at the destinations, and nothing in the pinset.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_input_ends_the_streams() {
    let cluster = Cluster3::start([Manner::Good, Manner::Good, Manner::Good]).await;
    let mut input: Vec<Result<Input>> = file("x", &Content::new(1).take(20_000_000)).into_iter().take(250).collect();
    input.push(Err(Error::unavailable("the client has left")));
    assert_eq!(cluster.add(input).await.unwrap_err().message, "the client has left");
    for connector in &cluster.connectors {
        connector.open_streams.subscribe().wait_for(|open| *open == 0).await.unwrap();
    }
    assert!(cluster.pins.lock().is_empty());
}
