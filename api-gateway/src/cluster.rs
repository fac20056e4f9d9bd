//! The gateway's way into its cluster: clients of this peer's own services and of every peer's connector, the index to
//! read at, and what is known of peers that do not answer. Keeps nothing that matters beyond a request.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES, explain, traced};
use pinfold_common::peerset::{PeerInfo, PeersHandle, View};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{Error, PeerId, Result};
use pinfold_proto::connector::node_client::NodeClient;
use pinfold_proto::connector::tracker_client::TrackerClient;
use pinfold_proto::consensus::peers_client::PeersClient;
use pinfold_proto::consensus::pins_client::PinsClient;
use pinfold_proto::consensus::repin_client::RepinClient;
use pinfold_proto::consensus::state_client::StateClient;
use pinfold_proto::monitor::monitor_client::MonitorClient;
use pinfold_proto::{consensus, monitor, types};
use prost::Message as _;
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

use crate::config::Config;

/// A write that has no answer by then may or may not have happened.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);
pub const READ_DEADLINE: Duration = Duration::from_secs(10);
/// A join or a removal is several log entries, and a learner has to catch up.
pub const MEMBERSHIP_DEADLINE: Duration = Duration::from_secs(60);
/// Each peer of a fan-out, and each pause within a stream of it (beh:B17).
pub const PEER_DEADLINE: Duration = Duration::from_secs(15);
/// Resolving a path may need the network.
pub const RESOLVE_DEADLINE: Duration = Duration::from_secs(60);
/// What is known of peers is an ornament of answers: they do not wait long for it.
const DIRECTORY_DEADLINE: Duration = Duration::from_millis(500);
const DIRECTORY_TTL: Duration = Duration::from_secs(1);

pub struct Cluster {
    pub own: PeerId,
    pub peername: String,
    pub peers: PeersHandle,
    channels: Channels,
    connector_address: String,
    pins: PinsClient<Channel>,
    peerset: PeersClient<Channel>,
    repin: RepinClient<Channel>,
    state: StateClient<Channel>,
    monitor: MonitorClient<Channel>,
    node: NodeClient<Channel>,
    seen: Mutex<Seen>,
    /// One refresh at a time; the others wait for it, or take what was known before.
    directory: tokio::sync::Mutex<(Option<Instant>, Arc<Directory>)>,
}

/// The highest index this gateway was answered with (protocols.md 4). Indexes of another lineage do not count.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    lineage: u64,
    index: u64,
}

/// What is known of a peer without asking it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    pub name: String,
    pub ipfs: types::IpfsId,
}

pub type Directory = HashMap<PeerId, Known>;

impl Cluster {
    pub fn new(config: &Config, channels: Channels, shutdown: Shutdown) -> Cluster {
        let own = config.identity.peer_id;
        let file = config.folder.join("peerset.pb");
        let peers = follow(&channels, own, &config.consensus, &file, shutdown);
        Cluster::with_peers(config, channels, peers)
    }

    /// The same with a peerset that is already known, for tests.
    pub fn with_peers(config: &Config, channels: Channels, peers: PeersHandle) -> Cluster {
        let own = config.identity.peer_id;
        let to_consensus = channels.to(Room::Consensus, &own, &config.consensus);
        let to_connector = channels.to(Room::Connector, &own, &config.connector);
        let to_monitor = channels.to(Room::Monitor, &own, &config.monitor);
        Cluster {
            own,
            peername: config.peername.clone(),
            peers,
            connector_address: config.connector.clone(),
            pins: PinsClient::new(to_consensus.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            repin: RepinClient::new(to_consensus.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            state: StateClient::new(to_consensus.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            peerset: PeersClient::new(to_consensus).max_decoding_message_size(MAX_MESSAGE_BYTES),
            monitor: MonitorClient::new(to_monitor).max_decoding_message_size(MAX_MESSAGE_BYTES),
            node: NodeClient::new(to_connector).max_decoding_message_size(MAX_MESSAGE_BYTES),
            channels,
            seen: Mutex::default(),
            directory: tokio::sync::Mutex::new((None, Arc::default())),
        }
    }

    pub fn pins(&self) -> PinsClient<Channel> {
        self.pins.clone()
    }

    pub fn peerset(&self) -> PeersClient<Channel> {
        self.peerset.clone()
    }

    pub fn repin(&self) -> RepinClient<Channel> {
        self.repin.clone()
    }

    pub fn state(&self) -> StateClient<Channel> {
        self.state.clone()
    }

    pub fn monitor(&self) -> MonitorClient<Channel> {
        self.monitor.clone()
    }

    pub fn node(&self) -> NodeClient<Channel> {
        self.node.clone()
    }

    /// A member's connector. Our own is asked where the configuration says, whatever the peerset says.
    pub fn tracker(&self, peer: &PeerInfo) -> TrackerClient<Channel> {
        if peer.peer_id == self.own {
            return self.own_tracker();
        }
        let channel = self.channels.to(Room::Connector, &peer.peer_id, &peer.addresses.connector);
        TrackerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn own_tracker(&self) -> TrackerClient<Channel> {
        let channel = self.channels.to(Room::Connector, &self.own, &self.connector_address);
        TrackerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn view(&self) -> Arc<View> {
        self.peers.current()
    }

    /// The index to wait for before a read, so that it sees every write that was answered here.
    pub fn min_index(&self) -> u64 {
        let lineage = self.view().peerset.lineage;
        let seen = *self.seen.lock();
        if seen.lineage == lineage { seen.index } else { 0 }
    }

    /// Remembers an index that a client was answered with.
    pub fn note_index(&self, index: u64) {
        let lineage = self.view().peerset.lineage;
        let mut seen = self.seen.lock();
        if seen.lineage == lineage {
            seen.index = seen.index.max(index);
        } else {
            *seen = Seen { lineage, index };
        }
    }

    pub async fn pin(&self, call: consensus::PinCall) -> Result<consensus::PinReply> {
        let reply = ask("pin", WRITE_DEADLINE, self.pins().pin(traced(call))).await?;
        self.note_index(reply.index);
        Ok(reply)
    }

    pub async fn pin_many(&self, call: consensus::PinManyCall) -> Result<consensus::PinManyReply> {
        let reply = ask("pin", WRITE_DEADLINE, self.pins().pin_many(traced(call))).await?;
        self.note_index(reply.index);
        Ok(reply)
    }

    pub async fn unpin(&self, call: consensus::UnpinCall) -> Result<consensus::PinReply> {
        let reply = ask("unpin", WRITE_DEADLINE, self.pins().unpin(traced(call))).await?;
        self.note_index(reply.index);
        Ok(reply)
    }

    /// An entry of the pinset, or none, after every write that was answered here.
    pub async fn get(&self, cid: Vec<u8>, consistency: consensus::Consistency) -> Result<consensus::GetReply> {
        let call = consensus::GetCall { cid, consistency: consistency as i32, min_index: self.min_index() };
        ask("read the pinset", READ_DEADLINE, self.pins().get(traced(call))).await
    }

    /// Names and IPFS nodes of all members, at most `DIRECTORY_TTL` old where the monitor answers.
    pub async fn directory(&self) -> Arc<Directory> {
        let mut cached = self.directory.lock().await;
        if cached.0.is_some_and(|when| when.elapsed() < DIRECTORY_TTL) {
            return cached.1.clone();
        }
        let mut monitor = self.monitor();
        let asked = monitor.verdicts(monitor::VerdictsCall {});
        let verdicts = match ask("ask the monitor about the members", DIRECTORY_DEADLINE, asked).await {
            Ok(reply) => reply.verdicts,
            Err(error) => {
                tracing::debug!(%error, "what is known of the members may be old");
                Vec::new()
            }
        };
        let known = merge_directory(&self.view(), verdicts, &cached.1);
        *cached = (Some(Instant::now()), Arc::new(known));
        cached.1.clone()
    }
}

fn follow(channels: &Channels, own: PeerId, consensus: &str, file: &Path, shutdown: Shutdown) -> PeersHandle {
    PeersHandle::follow(channels.clone(), own, consensus.to_owned(), file.to_owned(), shutdown)
}

/// Members by the peerset; names and IPFS nodes by the verdicts, or as they were known before.
fn merge_directory(view: &View, verdicts: Vec<monitor::Verdict>, before: &Directory) -> Directory {
    let mut said: HashMap<Vec<u8>, monitor::Verdict> =
        verdicts.into_iter().map(|verdict| (verdict.peer_id.clone(), verdict)).collect();
    let known = view.peerset.peers.iter().map(|peer| {
        let before = before.get(&peer.peer_id);
        let said = said.remove(&peer.peer_id.to_bytes());
        let ipfs = said.and_then(|verdict| verdict.ipfs).filter(|ipfs| !ipfs.id.is_empty());
        let ipfs = ipfs.or_else(|| before.map(|known| known.ipfs.clone())).unwrap_or_default();
        (peer.peer_id, Known { name: peer.name.clone(), ipfs })
    });
    known.collect()
}

/// One call to another room. What that room says is passed on as it is, because clients compare the words; what only
/// the transport says is put behind `what` was being done.
pub async fn ask<T>(
    what: &str,
    deadline: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    match timeout(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(from_status(what, status)),
        Err(_) => {
            let seconds = deadline.as_secs_f32();
            Err(Error::outcome_unknown(format!("{what}: no answer within {seconds}s, the outcome is unknown")))
        }
    }
}

/// The entry of an answer. Where it may only be missing, the error says so.
pub fn found(reply: consensus::GetReply) -> Result<types::Pin> {
    let missing = || match reply.stale {
        false => Error::not_in_pinset(),
        true => Error::not_in_pinset().context("this peer has no leader or is behind it, and as far as it knows"),
    };
    reply.pin.ok_or_else(missing)
}

/// The pins of a chunk, which come as they lie on disk.
pub fn pins_of(reply: consensus::ListReply) -> Result<Vec<types::Pin>> {
    let pins = reply.pins.into_iter().map(types::Pin::decode);
    pins.collect::<std::result::Result<_, _>>().map_err(|error| Error::internal(format!("list the pinset: {error}")))
}

/// The error of a call or stream that failed.
pub fn from_status(what: &str, status: tonic::Status) -> Error {
    let is_from_transport = std::error::Error::source(&status).is_some();
    let error = explain(status);
    if is_from_transport { error.context(what) } else { error }
}

/// Whether an IPFS node's address is one that others may dial: `ipfs_peer_addresses` shows only those.
pub fn is_public_address(text: &str) -> bool {
    use multiaddr::Protocol;
    let Ok(address) = text.parse::<multiaddr::Multiaddr>() else { return false };
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_broadcast()
                || ip.is_multicast()
                || ip.is_documentation()
                || shared)
        }
        Some(Protocol::Ip6(ip)) => {
            let first = ip.segments()[0];
            let is_local = first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80;
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_local)
        }
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => true,
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only addresses that the world can dial are shown.
    #[test]
    fn public_addresses() {
        for public in ["/ip4/8.8.8.8/tcp/4001", "/ip6/2607:f8b0::1/tcp/4001", "/dns4/example.com/tcp/4001"] {
            assert!(is_public_address(public), "{public}");
        }
        for hidden in [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/10.1.2.3/tcp/1",
            "/ip4/100.64.0.1/tcp/1",
            "/ip6/::1/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/p2p/12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6",
            "nonsense",
        ] {
            assert!(!is_public_address(hidden), "{hidden}");
        }
    }
}
