//! What re-pinning decides (protocols.md 6, 7). PURE: states, words of witnesses and instants come in, commands come
//! out; a simulation drives all of it in virtual time.
//!
//! [`judge`] turns what monitors say into `PeerAway` and `PeerBack`; [`gate`] says whether anything may move now;
//! [`moves`] says what one entry needs and what its new allocations mean; [`settle`] says when an old holder may go;
//! [`budget`] bounds the rate, of [`balance`] as well, which makes full peers give to empty ones.

pub mod balance;
pub mod budget;
pub mod gate;
pub mod judge;
pub mod moves;
pub mod settle;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use pinfold_proto::types;
use pinfold_proto::types::peer::State;

use crate::pinset::PeerTable;

/// Replicated settings that steer re-pinning (docs/repin.md).
pub const PAUSED: &str = "repin.paused";
pub const PINS_PER_SECOND: &str = "repin.pins_per_second";
/// "true" from an operator's wish until all peers hold an even share.
pub const REBALANCE: &str = "repin.rebalance";
/// The nodes that were away when an operator lifted a stop, as hexadecimal numbers with commas.
pub const STOP_LIFTED: &str = "repin.stop_lifted";
/// Followed by the node's ID in hexadecimal; the value is when its maintenance ends, in Unix seconds.
pub const MAINTENANCE: &str = "repin.maintenance.";

/// How a peer counts for the entries that name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Holds its copies, and may get more.
    Live,
    /// `PeerAway` is committed; it may come back with its copies.
    Away,
    /// It is here, and its IPFS node has been down for longer than that is borne (seed:H9.11).
    IpfsDown,
    /// Leaves for good, and holds its copies until others have them.
    Draining,
    /// Removed, never a member of this cluster (seed:I11), or away while it was to leave for good: nobody waits for it.
    Gone,
}

impl Standing {
    /// Whether a copy there counts towards the minimum.
    pub fn counts(self) -> bool {
        match self {
            Standing::Live => true,
            Standing::Away | Standing::IpfsDown | Standing::Draining | Standing::Gone => false,
        }
    }

    /// Whether entries have to let it go even when they have enough without it.
    pub fn leaves_for_good(self) -> bool {
        match self {
            Standing::Draining | Standing::Gone => true,
            Standing::Live | Standing::Away | Standing::IpfsDown => false,
        }
    }
}

/// The members, as entries see them at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    members: BTreeMap<Vec<u8>, Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    standing: Standing,
    back_index: u64,
}

impl Standings {
    /// `ipfs_down`: peers whose IPFS nodes have been down for too long.
    pub fn new(peers: &PeerTable, ipfs_down: &BTreeSet<Vec<u8>>) -> Standings {
        let member = |row: &types::Peer| {
            let standing = match row.state() {
                State::Away if row.draining => Standing::Gone,
                State::Away => Standing::Away,
                State::Draining => Standing::Draining,
                State::Removed => Standing::Gone,
                State::Healthy if ipfs_down.contains(&row.peer_id) => Standing::IpfsDown,
                State::Healthy => Standing::Live,
            };
            (row.peer_id.clone(), Member { standing, back_index: row.back_index })
        };
        Standings { members: peers.members().map(member).collect() }
    }

    pub fn of(&self, peer: &[u8]) -> Standing {
        self.members.get(peer).map_or(Standing::Gone, |member| member.standing)
    }

    /// Whether the peer came back from an absence since the entry was written.
    pub fn has_returned(&self, peer: &[u8], pin: &types::Pin) -> bool {
        self.members
            .get(peer)
            .is_some_and(|member| member.standing == Standing::Live && member.back_index > pin.revision)
    }

    pub fn is_member(&self, peer: &[u8]) -> bool {
        self.members.contains_key(peer)
    }

    /// Members that hold their copies and may get more.
    pub fn live(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.members.iter().filter(|(_, member)| member.standing.counts()).map(|(peer, _)| peer)
    }

    /// Members that can get nothing now.
    pub fn unable(&self) -> Vec<Vec<u8>> {
        self.members.iter().filter(|(_, member)| !member.standing.counts()).map(|(peer, _)| peer.clone()).collect()
    }
}

/// How many copies an entry has to have, and may have at most; `None` when every peer holds it.
pub fn factors(pin: &types::Pin) -> Option<(usize, usize)> {
    let options = pin.options.as_ref()?;
    match (usize::try_from(options.replication_factor_min), usize::try_from(options.replication_factor_max)) {
        (Ok(min), Ok(max)) if min > 0 => Some((min, max.max(min))),
        _ => None,
    }
}
