//! The peerset as a value, and as every service but consensus-svc sees it: followed from the own consensus-svc, kept
//! on disk, so that a start without an answer from consensus still knows the members (protocols.md 1).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pinfold_proto::consensus::peers_client::PeersClient;
use pinfold_proto::consensus::{WatchCall, WatchReply};
use pinfold_proto::types;
use prost::Message as _;
use rand::Rng as _;
use tokio::sync::watch;

use crate::audience::{Members, Standing};
use crate::channel::{Channels, MAX_MESSAGE_BYTES, call, explain};
use crate::files::{PRIVATE, read_small, write_atomically};
use crate::ids::peer_from_bytes;
use crate::shutdown::Shutdown;
use crate::tls::Room;
use crate::{Code, Error, PeerId, Result};

/// The own consensus-svc gets so long to open the stream; keep-alive watches it from then on.
const WATCH_DEADLINE: Duration = Duration::from_secs(5);
/// Between two attempts: doubled from the first to the last, each with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// `View::not_ready_reason` of a view that comes from the disk.
pub const NOT_ANSWERED: &str = "consensus-svc has not answered yet";

/// What the log says about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    Healthy,
    Away,
    Draining,
    Removed,
}

/// A row of the replicated peerset.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerInfo {
    pub peer_id: PeerId,
    pub node_id: u64,
    pub name: String,
    pub addresses: types::ServiceAddresses,
    pub multiaddresses: Vec<String>,
    pub version: String,
    pub wire_version: String,
    pub state: PeerState,
    pub voter: bool,
    pub joined_index: u64,
}

/// The peerset as one log index left it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerSet {
    pub cluster_id: Vec<u8>,
    pub lineage: u64,
    pub index: u64,
    /// Sorted by peer ID; without removed ones.
    pub peers: Vec<PeerInfo>,
    pub removed: Vec<PeerInfo>,
}

impl PeerInfo {
    /// Where that process of the peer listens, as it announced it; `None` for one that does not.
    pub fn address(&self, room: Room) -> Option<&str> {
        let address = match room {
            Room::Consensus => &self.addresses.consensus,
            Room::Monitor => &self.addresses.monitor,
            Room::Connector => &self.addresses.connector,
            Room::Gateway => &self.addresses.gateway,
            Room::Ctl => return None,
        };
        Some(address.as_str()).filter(|address| !address.is_empty())
    }
}

impl PeerSet {
    pub fn get(&self, peer: &PeerId) -> Option<&PeerInfo> {
        self.peers.iter().find(|info| info.peer_id == *peer)
    }

    /// A peer that came back as a new node is both removed and there, and is there.
    pub fn standing(&self, peer: &PeerId) -> Standing {
        match self.get(peer).map(|info| info.state) {
            Some(PeerState::Healthy | PeerState::Away | PeerState::Draining) => Standing::Member,
            Some(PeerState::Removed) => Standing::Removed,
            None if self.removed.iter().any(|info| info.peer_id == *peer) => Standing::Removed,
            None => Standing::Unknown,
        }
    }
}

impl From<PeerState> for types::peer::State {
    fn from(state: PeerState) -> types::peer::State {
        match state {
            PeerState::Healthy => types::peer::State::Healthy,
            PeerState::Away => types::peer::State::Away,
            PeerState::Draining => types::peer::State::Draining,
            PeerState::Removed => types::peer::State::Removed,
        }
    }
}

impl From<types::peer::State> for PeerState {
    fn from(state: types::peer::State) -> PeerState {
        match state {
            types::peer::State::Healthy => PeerState::Healthy,
            types::peer::State::Away => PeerState::Away,
            types::peer::State::Draining => PeerState::Draining,
            types::peer::State::Removed => PeerState::Removed,
        }
    }
}

impl TryFrom<types::Peer> for PeerInfo {
    type Error = Error;

    fn try_from(peer: types::Peer) -> Result<PeerInfo> {
        let state = types::peer::State::try_from(peer.state)
            .map_err(|_| Error::invalid(format!("peerset: unknown state {} of a peer", peer.state)))?;
        Ok(PeerInfo {
            peer_id: peer_from_bytes(&peer.peer_id).map_err(|error| error.context("peerset"))?,
            node_id: peer.node_id,
            name: peer.name,
            addresses: peer.addresses.unwrap_or_default(),
            multiaddresses: peer.multiaddresses,
            version: peer.version,
            wire_version: peer.wire_version,
            state: state.into(),
            voter: peer.voter,
            joined_index: peer.joined_index,
        })
    }
}

impl From<PeerInfo> for types::Peer {
    fn from(info: PeerInfo) -> types::Peer {
        types::Peer {
            peer_id: info.peer_id.to_bytes(),
            node_id: info.node_id,
            name: info.name,
            addresses: Some(info.addresses),
            multiaddresses: info.multiaddresses,
            version: info.version,
            wire_version: info.wire_version,
            state: types::peer::State::from(info.state).into(),
            voter: info.voter,
            joined_index: info.joined_index,
            // Only consensus-svc, which has the rows themselves, must know that an absent peer will go on draining.
            draining: info.state == PeerState::Draining,
            removing: false,
            // The same goes for when it came back.
            back_index: 0,
        }
    }
}

impl TryFrom<types::PeerSet> for PeerSet {
    type Error = Error;

    fn try_from(set: types::PeerSet) -> Result<PeerSet> {
        let rows = |list: Vec<types::Peer>| list.into_iter().map(PeerInfo::try_from).collect::<Result<Vec<_>>>();
        Ok(PeerSet {
            cluster_id: set.cluster_id,
            lineage: set.lineage,
            index: set.index,
            peers: rows(set.peers)?,
            removed: rows(set.removed)?,
        })
    }
}

impl From<PeerSet> for types::PeerSet {
    fn from(set: PeerSet) -> types::PeerSet {
        types::PeerSet {
            cluster_id: set.cluster_id,
            lineage: set.lineage,
            index: set.index,
            peers: set.peers.into_iter().map(types::Peer::from).collect(),
            removed: set.removed.into_iter().map(types::Peer::from).collect(),
        }
    }
}

/// The last that the own consensus-svc said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub peerset: PeerSet,
    /// As consensus-svc sees it; `None` too while that does not answer.
    pub leader: Option<PeerId>,
    /// Whether consensus-svc answers and is ready itself.
    pub ready: bool,
    /// Why not, for people.
    pub not_ready_reason: String,
}

impl TryFrom<WatchReply> for View {
    type Error = Error;

    fn try_from(reply: WatchReply) -> Result<View> {
        let leader = if reply.leader.is_empty() { None } else { Some(peer_from_bytes(&reply.leader)?) };
        Ok(View {
            peerset: reply.peerset.unwrap_or_default().try_into()?,
            leader,
            ready: reply.ready,
            not_ready_reason: reply.not_ready_reason,
        })
    }
}

/// The view of this process. Clones share it.
#[derive(Clone, Debug)]
pub struct PeersHandle(Arc<watch::Sender<Arc<View>>>);

impl PeersHandle {
    /// Starts with the peerset in `file`, when there is one, not ready; then follows `Peers.Watch` of the own
    /// consensus-svc until `shutdown`, and keeps `file` at what it said last. When that says that this peer was removed,
    /// the service has nothing to do any more: `shutdown` is triggered (beh:B4.5).
    pub fn follow(
        channels: Channels,
        own: PeerId,
        own_consensus: String,
        file: PathBuf,
        shutdown: Shutdown,
    ) -> PeersHandle {
        let peerset = match load(&file) {
            Ok(peerset) => peerset.unwrap_or_default(),
            Err(error) => {
                // Consensus has the truth; this copy is only for the time before it answers.
                tracing::warn!(%error, "start without the kept peerset");
                PeerSet::default()
            }
        };
        let view = View { peerset, leader: None, ready: false, not_ready_reason: NOT_ANSWERED.to_owned() };
        let handle = PeersHandle::fixed(view);
        let stop = shutdown.clone();
        let follower = Follower { channels, own, own_consensus, file, view: handle.0.clone(), stop };
        tokio::spawn(async move { shutdown.race(follower.run()).await });
        handle
    }

    /// A view that nobody follows, for tests.
    pub fn fixed(view: View) -> PeersHandle {
        PeersHandle(Arc::new(watch::Sender::new(Arc::new(view))))
    }

    /// Puts another view in place, for tests.
    pub fn set(&self, view: View) {
        self.0.send_replace(Arc::new(view));
    }

    pub fn current(&self) -> Arc<View> {
        self.0.borrow().clone()
    }

    /// Changes of the view, the newest only.
    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.0.subscribe()
    }
}

impl Members for PeersHandle {
    fn standing(&self, peer: &PeerId) -> Standing {
        self.0.borrow().peerset.standing(peer)
    }
}

struct Follower {
    channels: Channels,
    own: PeerId,
    own_consensus: String,
    file: PathBuf,
    view: Arc<watch::Sender<Arc<View>>>,
    /// Of the whole service.
    stop: Shutdown,
}

impl Follower {
    async fn run(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut answered = false;
            let error = self.watch(&mut answered).await;
            if answered {
                pause = FIRST_PAUSE;
            }
            tracing::debug!(%error, ?pause, "the peerset is not followed");
            self.not_ready(&error);
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Takes what comes until the stream ends, and says why it did. Each message is the whole state.
    async fn watch(&self, answered: &mut bool) -> Error {
        let channel = self.channels.to(Room::Consensus, &self.own, &self.own_consensus);
        let mut client = PeersClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut stream = match call("watch the peerset", WATCH_DEADLINE, client.watch(WatchCall {})).await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        loop {
            let view = match stream.message().await {
                Ok(Some(reply)) => View::try_from(reply),
                Ok(None) => return Error::unavailable("consensus-svc ended the stream"),
                Err(status) => return explain(status),
            };
            match view {
                Ok(view) => self.take(view).await,
                Err(error) => return error,
            }
            *answered = true;
        }
    }

    async fn take(&self, view: View) {
        let changed = self.view.borrow().peerset != view.peerset;
        // First on disk: a service that acted on a peerset knows it after a crash as well.
        if changed && let Err(error) = store(&self.file, view.peerset.clone()).await {
            tracing::error!(%error, "keep the peerset");
        }
        let is_removed = view.peerset.standing(&self.own) == Standing::Removed;
        self.publish(view);
        if is_removed {
            tracing::warn!(peer = %self.own, "this peer was removed from its cluster: this service stops");
            self.stop.trigger();
        }
    }

    fn not_ready(&self, error: &Error) {
        let view = View {
            peerset: self.view.borrow().peerset.clone(),
            leader: None,
            ready: false,
            not_ready_reason: match error.code {
                Code::Unavailable | Code::OutcomeUnknown => format!("consensus-svc does not answer: {error}"),
                _ => error.to_string(),
            },
        };
        self.publish(view);
    }

    /// Wakes subscribers only when something is different.
    fn publish(&self, view: View) {
        self.view.send_if_modified(|current| {
            let different = **current != view;
            if different {
                *current = Arc::new(view);
            }
            different
        });
    }
}

/// Half to one and a half of it, so that restarted processes do not come in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}

fn load(file: &Path) -> Result<Option<PeerSet>> {
    let named = |error: &dyn std::fmt::Display| Error::internal(format!("read {}: {error}", file.display()));
    match read_small(file, MAX_MESSAGE_BYTES as u64).map_err(|error| named(&error))? {
        None => Ok(None),
        Some(bytes) => types::PeerSet::decode(bytes.as_slice())
            .map_err(|error| named(&error))
            .and_then(|set| PeerSet::try_from(set).map_err(|error| named(&error)))
            .map(Some),
    }
}

async fn store(file: &Path, peerset: PeerSet) -> Result<()> {
    let path = file.to_owned();
    let bytes = types::PeerSet::from(peerset).encode_to_vec();
    let written = tokio::task::spawn_blocking(move || write_atomically(&path, &bytes, PRIVATE)).await;
    written
        .unwrap_or_else(|join| Err(std::io::Error::other(join)))
        .map_err(|error| Error::internal(format!("write {}: {error}", file.display())))
}
