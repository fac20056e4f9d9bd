//! Blocks from siblings over real links with mTLS, and from HTTP gateways, good and bad.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use ipfs_connector::node::embedded::exchange::{BlockExchange, Gateways, Siblings, Sources, Want};
use ipfs_connector::node::embedded::{EmbeddedConfig, EmbeddedNode};
use ipfs_connector::node::{IpfsNode, NodeError};
use pinfold_common::channel::Channels;
use pinfold_common::identity::Identity;
use pinfold_common::ids::cid_from_bytes;
use pinfold_common::peerset::{PeerInfo, PeerSet, PeerState, PeersHandle, View};
use pinfold_common::pin::PinMode;
use pinfold_common::server::serve;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use pinfold_proto::connector::blocks_server::{Blocks, BlocksServer};
use pinfold_proto::connector::{BlockReply, GetBlocks, PutBlocks, PutBlocksReply};
use pinfold_proto::types::ServiceAddresses;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};

use crate::dag::*;
use crate::embedded::{config, open};
use crate::fake_kubo::{Answer, http_server};

/// A sibling's side: what a node has on its disk, or, as `lies`, other data.
struct Serving {
    node: EmbeddedNode,
    asked: Arc<AtomicUsize>,
    lies: bool,
}

#[tonic::async_trait]
impl Blocks for Serving {
    type GetStream = BoxStream<'static, Result<BlockReply, Status>>;

    async fn put(&self, _: Request<Streaming<PutBlocks>>) -> Result<Response<PutBlocksReply>, Status> {
        Err(Status::unimplemented("this sibling only gives"))
    }

    async fn get(&self, request: Request<Streaming<GetBlocks>>) -> Result<Response<Self::GetStream>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (node, lies) = (self.node.clone(), self.lies);
        let answers = request.into_inner().flat_map(move |wanted| {
            let node = node.clone();
            futures::stream::iter(wanted.unwrap().cids).then(move |bytes| {
                let node = node.clone();
                async move {
                    let cid = cid_from_bytes(&bytes).unwrap();
                    let data = node.get_block_local(&cid).await.unwrap();
                    let data = data.map(|data| if lies { Bytes::from_static(b"lies") } else { data });
                    Ok(BlockReply { cid: bytes, found: data.is_some(), data: data.unwrap_or_default() })
                }
            })
        });
        Ok(Response::new(answers.boxed()))
    }
}

struct Sibling {
    info: PeerInfo,
    node: EmbeddedNode,
    asked: Arc<AtomicUsize>,
    _folder: tempfile::TempDir,
}

fn info(identity: &Identity, connector: String) -> PeerInfo {
    PeerInfo {
        peer_id: identity.peer_id,
        node_id: 1,
        name: String::new(),
        addresses: ServiceAddresses { connector, ..ServiceAddresses::default() },
        multiaddresses: Vec::new(),
        version: String::new(),
        wire_version: String::new(),
        state: PeerState::Healthy,
        voter: true,
        joined_index: 1,
    }
}

fn view(peers: Vec<PeerInfo>) -> View {
    View { peerset: PeerSet { peers, ..PeerSet::default() }, ready: true, ..View::default() }
}

async fn sibling(secret: &ClusterSecret, members: &PeersHandle, lies: bool, shutdown: &Shutdown) -> Sibling {
    let folder = tempfile::tempdir().unwrap();
    let node = open(&folder, Vec::new()).await;
    let identity = Identity::generate();
    let tls = Tls::new(secret, &identity, Room::Connector).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let serving = Serving { node: node.clone(), asked: asked.clone(), lies };
    let routes = tonic::service::Routes::new(BlocksServer::new(serving));
    tokio::spawn(serve(listener, tls, Arc::new(members.clone()), routes, shutdown.clone()));
    Sibling { info: info(&identity, address), node, asked, _folder: folder }
}

/// Goal: a pin fetches a DAG from the sibling that has it, past one that is down, one that has nothing and one that
/// lies; and once the holder is known the others are left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_from_siblings() {
    let (secret, shutdown, own) = (ClusterSecret::generate(), Shutdown::new(), Identity::generate());
    let members = PeersHandle::fixed(view(vec![info(&own, String::new())]));
    let empty = sibling(&secret, &members, false, &shutdown).await;
    let liar = sibling(&secret, &members, true, &shutdown).await;
    let holder = sibling(&secret, &members, false, &shutdown).await;
    let down = info(&Identity::generate(), "127.0.0.1:1".into());
    let peers = PeersHandle::fixed(view(vec![
        info(&own, "127.0.0.1:1".into()),
        down,
        empty.info.clone(),
        liar.info.clone(),
        holder.info.clone(),
    ]));
    let channels = Channels::new(Tls::new(&secret, &own, Room::Connector).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let siblings: Arc<dyn BlockExchange> = Arc::new(Siblings::new(channels, peers));
    let node = open(&folder, vec![siblings]).await;

    let blocks = tree(3, 30);
    put(&holder.node, &blocks).await;
    put(&liar.node, &blocks).await;
    let done = pin(&node, blocks[0].cid, PinMode::Recursive).await.unwrap();
    assert_eq!(done.blocks, blocks.len() as u64);
    assert_eq!(count_here(&node, &blocks).await, blocks.len());
    assert!(empty.asked.load(Ordering::SeqCst) <= 5, "asked {:?} times", empty.asked);
    println!("siblings: holder asked {:?} times for {} blocks", holder.asked, blocks.len());

    let error = pin(&node, tree(1, 1)[0].cid, PinMode::Recursive).await.unwrap_err();
    assert!(matches!(&error, NodeError::NoProviders(text) if text.contains("siblings")), "{error:?}");
    shutdown.trigger();
}

fn gateway_answers(
    block: &ipfs_connector::node::Block,
    data: Bytes,
) -> impl Fn(&str) -> Answer + Send + Sync + 'static {
    let path = format!("GET /ipfs/{}?format=raw ", block.cid);
    move |head: &str| {
        if head.starts_with(&path) && head.to_lowercase().contains("accept: application/vnd.ipld.raw") {
            Answer::new(200).body(&data)
        } else {
            Answer::new(404)
        }
    }
}

/// Goal: the first gateway that has the right block gives it; wrong data, redirects, errors and silence are passed over.
#[tokio::test]
async fn gateways_good_and_bad() {
    let block = leaf(100_000);
    let good = http_server(gateway_answers(&block, block.data.clone())).await;
    let liar = http_server(gateway_answers(&block, unique(100))).await;
    let failing = http_server(|_| Answer::new(503)).await;
    let target = format!("{good}/ipfs/{}?format=raw", block.cid);
    let redirecting = http_server(move |_| Answer::new(302).header("Location", &target)).await;
    let empty = http_server(|_| Answer::new(404)).await;
    let want = Want { cid: block.cid, root: block.cid };

    let all =
        Gateways::new(&[liar.clone(), failing.clone(), redirecting.clone(), empty.clone(), good.clone()]).unwrap();
    assert_eq!(all.fetch(want).await.unwrap().unwrap().into_data(), block.data);
    assert_eq!(Gateways::new(std::slice::from_ref(&empty)).unwrap().fetch(want).await, Ok(None));
    for bad in [liar, failing, redirecting, "http://127.0.0.1:1".to_owned()] {
        let gateways = Gateways::new(&[bad, empty.clone()]).unwrap();
        assert!(gateways.fetch(want).await.is_err(), "somebody who may have it could not be asked");
        let sources = Sources::new(vec![Arc::new(gateways)]);
        let error = sources.fetch(want, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(&error, NodeError::NoProviders(text) if text.contains("gateways: ")), "{error:?}");
    }
    for text in ["ftp://host", "nonsense", "http://"] {
        assert!(Gateways::new(&[text.to_owned()]).is_err(), "{text}");
    }

    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig { gateways: vec![format!("{good}/")], ..config(&folder) };
    let node = EmbeddedNode::open(config, Vec::new()).await.unwrap();
    pin(&node, block.cid, PinMode::Recursive).await.unwrap();
    assert!(has(&node, &block).await);
}
