//! Stand-ins for the rooms a gateway talks to, over the real TLS and audience check: a pinset in memory, and for each
//! peer a tracker that says what a test wants.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;
use pinfold_common::channel::Channels;
use pinfold_common::identity::Identity;
use pinfold_common::peerset::{PeerInfo, PeerSet, PeerState, PeersHandle, View};
use pinfold_common::pin::{Pin, PinRequest};
use pinfold_common::server;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::status::TrackerStatus;
use pinfold_common::time::Timestamp;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use pinfold_common::{Cid, Code, Error};
use pinfold_proto::connector::node_server::{Node, NodeServer};
use pinfold_proto::connector::tracker_server::{Tracker, TrackerServer};
use pinfold_proto::consensus::peers_server::{Peers, PeersServer};
use pinfold_proto::consensus::pins_server::{Pins, PinsServer};
use pinfold_proto::monitor::monitor_server::{Monitor, MonitorServer};
use pinfold_proto::{connector, consensus, monitor, types};
use prost::Message as _;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = BoxStream<'static, Result<T, Status>>;

/// The pinset that all rooms of a test share.
#[derive(Clone, Default)]
pub struct Pinset(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    pins: BTreeMap<Vec<u8>, Pin>,
    index: u64,
}

impl Pinset {
    fn pin(&self, request: PinRequest) -> (Pin, u64) {
        let mut contents = self.0.lock();
        contents.index += 1;
        let pin = Pin {
            cid: request.cid,
            kind: request.kind,
            max_depth: request.max_depth,
            options: request.options,
            allocations: request.user_allocations,
            leaving: Vec::new(),
            reference: None,
            timestamp: Timestamp::now(),
            revision: contents.index,
        };
        contents.pins.insert(pin.cid.to_bytes(), pin.clone());
        (pin, contents.index)
    }

    fn get(&self, cid: &[u8]) -> (Option<Pin>, u64) {
        let contents = self.0.lock();
        let stored = contents.pins.get(cid).cloned();
        (stored.map(|pin| Pin { timestamp: pin.timestamp.truncated(), ..pin }), contents.index)
    }

    fn remove(&self, cid: &[u8]) -> Option<Pin> {
        let mut contents = self.0.lock();
        contents.index += 1;
        contents.pins.remove(cid)
    }

    fn all(&self) -> Vec<Pin> {
        self.0.lock().pins.values().cloned().collect()
    }
}

pub struct Consensus(pub Pinset);

#[tonic::async_trait]
impl Pins for Consensus {
    type ListStream = Stream<consensus::ListReply>;
    type FollowStream = Stream<consensus::FollowReply>;

    async fn pin(&self, request: Request<consensus::PinCall>) -> Answer<consensus::PinReply> {
        let request = PinRequest::try_from(request.into_inner().request.unwrap_or_default())?;
        if request.options.replication_factor_min > request.options.replication_factor_max {
            return Err(Error::rejected("cluster.replication_factor_min is larger than max").into());
        }
        let user_allocations = types::PinRequest::from(request.clone()).user_allocations;
        let (pin, index) = self.0.pin(request);
        Ok(Response::new(consensus::PinReply { pin: Some(pin.into()), index, user_allocations }))
    }

    async fn pin_many(&self, _: Request<consensus::PinManyCall>) -> Answer<consensus::PinManyReply> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn unpin(&self, request: Request<consensus::UnpinCall>) -> Answer<consensus::PinReply> {
        let pin = self.0.remove(&request.into_inner().cid).ok_or_else(Error::not_in_pinset)?;
        let pin = Pin { timestamp: pin.timestamp.truncated(), ..pin };
        Ok(Response::new(consensus::PinReply { pin: Some(pin.into()), ..Default::default() }))
    }

    async fn get(&self, request: Request<consensus::GetCall>) -> Answer<consensus::GetReply> {
        let call = request.into_inner();
        let (pin, index) = self.0.get(&call.cid);
        if call.min_index > index {
            return Err(Status::internal("asked to wait for an index that nobody was answered with"));
        }
        Ok(Response::new(consensus::GetReply { pin: pin.map(Into::into), index, stale: false }))
    }

    async fn list(&self, _: Request<consensus::ListCall>) -> Answer<Self::ListStream> {
        let pins = self.0.all().into_iter().map(|pin| Pin { timestamp: pin.timestamp.truncated(), ..pin });
        let replies: Vec<_> = pins
            .map(|pin| {
                let pin = pinfold_proto::types::Pin::from(pin).encode_to_vec();
                Ok(consensus::ListReply { pins: vec![pin.into()], ..Default::default() })
            })
            .collect();
        Ok(Response::new(stream::iter(replies).boxed()))
    }

    async fn follow(&self, _: Request<consensus::FollowCall>) -> Answer<Self::FollowStream> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn allocate_for_add(&self, _: Request<consensus::AllocateCall>) -> Answer<consensus::AllocateReply> {
        Err(Error::unavailable("nobody to allocate to").into())
    }

    async fn replication(&self, _: Request<consensus::ReplicationCall>) -> Answer<consensus::ReplicationReply> {
        Err(Error::unavailable("nobody counts").into())
    }
}

#[tonic::async_trait]
impl Peers for Consensus {
    type WatchStream = Stream<consensus::WatchReply>;

    async fn status(&self, _: Request<consensus::StatusCall>) -> Answer<consensus::StatusReply> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn watch(&self, _: Request<consensus::WatchCall>) -> Answer<Self::WatchStream> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn add(&self, _: Request<consensus::AddPeerCall>) -> Answer<consensus::AddPeerReply> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn remove(&self, _: Request<consensus::RemovePeerCall>) -> Answer<consensus::RemovePeerReply> {
        Err(Error::not_found("no such peer").into())
    }

    async fn drain(&self, _: Request<consensus::DrainPeerCall>) -> Answer<consensus::DrainPeerReply> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn digest(&self, _: Request<consensus::DigestCall>) -> Answer<consensus::DigestReply> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn departures(&self, _: Request<consensus::DeparturesCall>) -> Answer<consensus::DeparturesReply> {
        Ok(Response::new(consensus::DeparturesReply::default()))
    }
}

pub struct Measures(pub Vec<monitor::Verdict>);

#[tonic::async_trait]
impl Monitor for Measures {
    async fn publish(&self, _: Request<monitor::PublishCall>) -> Answer<monitor::PublishReply> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn contacts(&self, _: Request<Streaming<monitor::ContactReport>>) -> Answer<monitor::ContactsReply> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn allocate(&self, _: Request<monitor::AllocateRequest>) -> Answer<monitor::AllocateReply> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn latest_metrics(&self, _: Request<monitor::LatestMetricsCall>) -> Answer<monitor::LatestMetricsReply> {
        Ok(Response::new(monitor::LatestMetricsReply::default()))
    }

    async fn metric_names(&self, _: Request<monitor::MetricNamesCall>) -> Answer<monitor::MetricNamesReply> {
        Ok(Response::new(monitor::MetricNamesReply { names: vec!["ping".to_owned(), "freespace".to_owned()] }))
    }

    async fn verdicts(&self, _: Request<monitor::VerdictsCall>) -> Answer<monitor::VerdictsReply> {
        Ok(Response::new(monitor::VerdictsReply { verdicts: self.0.clone(), ..monitor::VerdictsReply::default() }))
    }

    async fn alerts(&self, _: Request<monitor::AlertsCall>) -> Answer<monitor::AlertsReply> {
        Ok(Response::new(monitor::AlertsReply::default()))
    }
}

/// What the stand-in's node resolves, and to what.
pub const PATHS: [(&str, &str); 3] = [
    ("/ipns/docs.example", "bafkqaaa"),
    ("/ipns/docs.example/a guide/\u{e9}", "bafkqabiaaebagba"),
    ("/ipfs/bafkqaaa/inner", "bafkqabyaaebagbafa4"),
];

/// Says `pinned` of what concerns its peer.
#[derive(Clone)]
pub struct Connector {
    pub pinset: Pinset,
    pub peer: Vec<u8>,
    pub name: String,
    pub ipfs: types::IpfsId,
}

impl Connector {
    fn info(&self, cid: &[u8]) -> types::PinInfo {
        let (pin, _) = self.pinset.get(cid);
        let status = if pin.is_some() { TrackerStatus::Pinned } else { TrackerStatus::Unpinned };
        types::PinInfo {
            cid: cid.to_vec(),
            status: status.to_proto() as i32,
            timestamp: pin.map(|pin| pin.timestamp.into()),
            ..types::PinInfo::default()
        }
    }
}

#[tonic::async_trait]
impl Tracker for Connector {
    type StatusAllStream = Stream<connector::StatusAllReply>;
    type RecoverAllStream = Stream<connector::StatusAllReply>;
    type GcStream = Stream<connector::GcReply>;
    type HeldStream = Stream<connector::HeldReply>;

    async fn status(&self, request: Request<connector::TrackerStatusCall>) -> Answer<connector::TrackerStatusReply> {
        let infos = request.into_inner().cids.iter().map(|cid| self.info(cid)).collect();
        Ok(Response::new(connector::TrackerStatusReply { infos }))
    }

    async fn status_all(&self, request: Request<connector::StatusAllCall>) -> Answer<Self::StatusAllStream> {
        let filter = pinfold_common::status::Filter(request.into_inner().filter);
        let infos: Vec<_> = self
            .pinset
            .all()
            .iter()
            .filter(|pin| pin.allocations.is_empty() || pin.allocations.iter().any(|peer| peer.to_bytes() == self.peer))
            .map(|pin| self.info(&pin.cid.to_bytes()))
            .filter(|info| filter.matches(TrackerStatus::from_proto(info.status)))
            .collect();
        Ok(Response::new(stream::iter([Ok(connector::StatusAllReply { infos })]).boxed()))
    }

    async fn recover(&self, request: Request<connector::RecoverCall>) -> Answer<connector::RecoverReply> {
        let info = Some(self.info(&request.into_inner().cid));
        Ok(Response::new(connector::RecoverReply { info, requeued: false }))
    }

    async fn recover_all(&self, _: Request<connector::RecoverAllCall>) -> Answer<Self::RecoverAllStream> {
        Ok(Response::new(stream::empty().boxed()))
    }

    async fn describe(&self, _: Request<connector::DescribeCall>) -> Answer<connector::DescribeReply> {
        Ok(Response::new(connector::DescribeReply {
            peername: self.name.clone(),
            version: "1.2.3".to_owned(),
            ipfs: Some(self.ipfs.clone()),
            backend: "kubo".to_owned(),
        }))
    }

    async fn gc(&self, _: Request<connector::GcCall>) -> Answer<Self::GcStream> {
        let cid = Cid::try_from("bafkqaaa").unwrap().to_bytes();
        let keys = vec![connector::GcKey { cid, error: String::new() }];
        Ok(Response::new(stream::iter([Ok(connector::GcReply { keys })]).boxed()))
    }

    async fn swarm_peers(&self, _: Request<connector::SwarmPeersCall>) -> Answer<connector::SwarmPeersReply> {
        Ok(Response::new(connector::SwarmPeersReply::default()))
    }

    async fn held(&self, _: Request<connector::HeldCall>) -> Answer<Self::HeldStream> {
        let item = types::HeldUnpin { cid: vec![1, 0x55, 0, 0], why: "too many".to_owned(), ..Default::default() };
        Ok(Response::new(stream::iter([Ok(connector::HeldReply { items: vec![item] })]).boxed()))
    }

    async fn approve(&self, request: Request<connector::ApproveCall>) -> Answer<connector::ApproveReply> {
        let approved = request.into_inner().cids.len().max(1) as u64;
        Ok(Response::new(connector::ApproveReply { approved }))
    }
}

#[tonic::async_trait]
impl Node for Connector {
    async fn status(&self, _: Request<connector::NodeStatusCall>) -> Answer<connector::NodeStatusReply> {
        let ready = true;
        Ok(Response::new(connector::NodeStatusReply { ipfs: Some(self.ipfs.clone()), ready, ..Default::default() }))
    }

    async fn resolve(&self, request: Request<connector::ResolveCall>) -> Answer<connector::ResolveReply> {
        let path = request.into_inner().path;
        match PATHS.iter().find(|(known, _)| *known == path) {
            Some((_, leads_to)) => {
                let cid = Cid::try_from(*leads_to).unwrap().to_bytes();
                Ok(Response::new(connector::ResolveReply { cid }))
            }
            None => Err(Error::new(Code::NotFound, format!("resolve {path}: no such name")).into()),
        }
    }

    async fn repo_stat(&self, _: Request<connector::RepoStatCall>) -> Answer<connector::RepoStatReply> {
        Err(Status::unimplemented("not in these tests"))
    }
}

/// Three peers: the gateway's own, one that answers, one that does not.
pub struct Siblings {
    pub secret: ClusterSecret,
    pub own: Identity,
    pub peers: PeersHandle,
    pub consensus: String,
    pub monitor: String,
    pub connector: String,
}

impl Siblings {
    pub async fn start(shutdown: &Shutdown) -> Siblings {
        let secret = ClusterSecret::generate();
        let identities = [Identity::generate(), Identity::generate(), Identity::generate()];
        let pinset = Pinset::default();
        let connectors: Vec<Connector> =
            identities.iter().enumerate().map(|(at, identity)| connector(&pinset, identity, at)).collect();
        let mut infos: Vec<PeerInfo> = identities.iter().enumerate().map(|(at, identity)| info(identity, at)).collect();
        let peers = PeersHandle::fixed(View::default());

        for at in [0, 1] {
            let routes = Routes::new(TrackerServer::new(connectors[at].clone()))
                .add_service(NodeServer::new(connectors[at].clone()));
            infos[at].addresses.connector =
                serve(&secret, &identities[at], Room::Connector, routes, &peers, shutdown).await;
        }
        // Bound and closed again: nobody listens there.
        infos[2].addresses.connector =
            TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let verdict = |connector: &Connector| monitor::Verdict {
            peer_id: connector.peer.clone(),
            peername: connector.name.clone(),
            ipfs: Some(connector.ipfs.clone()),
            ..monitor::Verdict::default()
        };
        let measures = Routes::new(MonitorServer::new(Measures(connectors.iter().map(verdict).collect())));
        let rooms = Routes::new(PinsServer::new(Consensus(pinset.clone())))
            .add_service(PeersServer::new(Consensus(pinset.clone())));
        let [own, ..] = identities;
        let consensus = serve(&secret, &own, Room::Consensus, rooms, &peers, shutdown).await;
        let monitor = serve(&secret, &own, Room::Monitor, measures, &peers, shutdown).await;
        let connector = infos[0].addresses.connector.clone();
        infos.sort_by_key(|info| info.peer_id.to_bytes());
        let peerset = PeerSet { peers: infos, ..PeerSet::default() };
        peers.set(View { peerset, leader: Some(own.peer_id), ready: true, not_ready_reason: String::new() });
        Siblings { secret, own, peers, consensus, monitor, connector }
    }

    pub fn channels(&self) -> Channels {
        Channels::new(Tls::new(&self.secret, &self.own, Room::Gateway).unwrap())
    }
}

fn connector(pinset: &Pinset, identity: &Identity, at: usize) -> Connector {
    let ipfs = types::IpfsId { id: Identity::generate().peer_id.to_bytes(), ..types::IpfsId::default() };
    Connector { pinset: pinset.clone(), peer: identity.peer_id.to_bytes(), name: format!("p{at}"), ipfs }
}

fn info(identity: &Identity, at: usize) -> PeerInfo {
    PeerInfo {
        peer_id: identity.peer_id,
        node_id: at as u64 + 1,
        name: format!("p{at}"),
        addresses: types::ServiceAddresses::default(),
        multiaddresses: vec![format!("/ip4/127.0.0.1/tcp/9{at}96/p2p/{}", identity.peer_id)],
        version: "1.2.3".to_owned(),
        wire_version: "1.0".to_owned(),
        state: PeerState::Healthy,
        voter: true,
        joined_index: 1,
    }
}

async fn serve(
    secret: &ClusterSecret,
    identity: &Identity,
    room: Room,
    routes: Routes,
    peers: &PeersHandle,
    shutdown: &Shutdown,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tls = Tls::new(secret, identity, room).unwrap();
    tokio::spawn(server::serve(listener, tls, Arc::new(peers.clone()), routes, shutdown.clone()));
    address
}
