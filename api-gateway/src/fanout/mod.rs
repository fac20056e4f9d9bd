//! Questions that several peers answer (beh:B12, beh:B17): asked in parallel, each with its own deadline, merged into
//! one answer in which a silent peer has an entry that says so. Never decides anything, never keeps an answer.

mod gc;
mod graph;
mod held;
mod listing;
mod one;
mod peers;

use pinfold_common::PeerId;
use pinfold_common::peerset::{PeerInfo, View};
use pinfold_common::status::TrackerStatus;
use pinfold_common::time::Timestamp;
use pinfold_proto::{api, types};

use crate::cluster::{Directory, is_public_address};

pub use gc::{gc, gc_stream};
pub use graph::graph;
pub use held::{approve, held};
pub use listing::{Listing, ListingRequest, recover_all, status_all};
pub use one::{recover_one, status_one};
pub use peers::{describe_added, id, peers};

/// Whom to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Everybody,
    /// The peer that was contacted, and nobody else.
    Local,
}

impl Scope {
    pub fn of(is_local: bool) -> Scope {
        if is_local { Scope::Local } else { Scope::Everybody }
    }
}

/// The members in scope, in peer ID order.
fn members(view: &View, own: PeerId, scope: Scope) -> Vec<PeerInfo> {
    let mut members: Vec<PeerInfo> = match scope {
        Scope::Everybody => view.peerset.peers.clone(),
        Scope::Local => view.peerset.get(&own).into_iter().cloned().collect(),
    };
    members.sort_by_key(|peer| peer.peer_id.to_bytes());
    members
}

/// An entry of `peer_map` without anything that a tracker would have to say.
fn entry(peer: &PeerId, status: TrackerStatus, at: Timestamp, directory: &Directory) -> api::PeerStatus {
    let known = directory.get(peer).cloned().unwrap_or_default();
    api::PeerStatus {
        peer: peer.to_bytes(),
        peername: known.name,
        ipfs_id: known.ipfs.id,
        ipfs_addresses: known.ipfs.addresses.into_iter().filter(|address| is_public_address(address)).collect(),
        status: status.to_proto() as i32,
        timestamp: Some(at.into()),
        ..api::PeerStatus::default()
    }
}

/// An entry with what a tracker said.
fn answered(peer: &PeerId, info: &types::PinInfo, directory: &Directory) -> api::PeerStatus {
    let status = TrackerStatus::from_proto(info.status);
    api::PeerStatus {
        error: info.error.clone(),
        reason: info.reason,
        attempt_count: info.attempt_count,
        priority: info.priority,
        timestamp: info.timestamp.or_else(|| Some(Timestamp::now().into())),
        next_try: info.next_try,
        blocks: info.blocks,
        bytes: info.bytes,
        last_block: info.last_block,
        ..entry(peer, status, Timestamp::now(), directory)
    }
}

fn failed(peer: &PeerId, error: &str, at: Timestamp, directory: &Directory) -> api::PeerStatus {
    api::PeerStatus { error: error.to_owned(), ..entry(peer, TrackerStatus::ClusterError, at, directory) }
}

/// The part of an answer that comes from the pinset.
fn item_of_pin(pin: &types::Pin, peers: Vec<api::PeerStatus>) -> api::GlobalPinInfo {
    let options = pin.options.clone().unwrap_or_default();
    api::GlobalPinInfo {
        cid: pin.cid.clone(),
        name: options.name,
        allocations: pin.allocations.clone(),
        origins: options.origins,
        created: pin.timestamp,
        metadata: options.metadata,
        peers,
    }
}

/// The same from a tracker, for what is asked of trackers alone.
fn item_of_info(info: &types::PinInfo, peers: Vec<api::PeerStatus>) -> api::GlobalPinInfo {
    api::GlobalPinInfo {
        cid: info.cid.clone(),
        name: info.name.clone(),
        allocations: info.allocations.clone(),
        origins: info.origins.clone(),
        created: info.created,
        metadata: info.metadata.clone(),
        peers,
    }
}

/// beh:B7.5, B7.6: whether that peer has to do with the pin.
fn concerns(pin: &types::Pin, peer: &[u8]) -> bool {
    pin.allocations.is_empty()
        || pin.allocations.iter().any(|holder| holder == peer)
        || pin.leaving.iter().any(|holder| holder == peer)
}
