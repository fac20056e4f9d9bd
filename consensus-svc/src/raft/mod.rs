//! Raft: the log that all peers agree on, and the only place that names `openraft`. Its alphas change their interfaces,
//! and its own encodings, so neither leaves this folder: disk and wire are `pinfold_proto::storage` and
//! `pinfold.consensus.v1.Raft`.
//!
//! [`Node`] is what the rest of the service sees:
//!
//! - [`Node::start`] opens nothing by itself: it takes the opened [`Stores`](crate::store::Stores). A node that was
//!   never in a cluster waits, until [`Node::initialize`] founds one or a leader adds it.
//! - [`Node::propose`] is answered when the entry is on the disks of a majority and applied here. Deadlines and lost
//!   leaderships say honestly whether the outcome is known ([`ProposeError`]).
//! - [`Node::read_index`] confirms leadership with a majority; [`Node::wait_applied`] then makes the local state current
//!   enough. Lease reads, which depend on clocks, are not offered.
//! - [`Node::status`] is the latest [`RaftStatus`]; the supervisor's loops (promote, finish, remove) go by it.
//! - [`service`] is the gRPC side that other peers' nodes call.
//!
//! Membership changes are steps that a supervisor repeats until it is so ([`Node::add_learner`], [`Node::promote`],
//! [`Node::remove_nodes`], [`Node::finish_joint`]): a step that was interrupted leaves nothing that the next one does
//! not take up. Node IDs are never used twice, and a wiped node comes back under a new one (openraft#1823).
//!
//! An error of the disk stops the library and resolves [`Node::failed`]: the process has to end.

mod config;
mod contact;
mod error;
mod log_store;
mod machine;
mod network;
mod node;
mod service;
mod status;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;
mod types;
mod watching;

use pinfold_common::PeerId;

pub use config::RaftConfig;
pub use contact::Contacts;
pub use error::{ChangeError, ProposeError};
pub use network::Links;
pub use node::{Node, Start};
pub use service::service;
pub use status::{Follower, RaftStatus, Role};

/// A node of the membership: who it is and where its consensus service listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeAndPeer {
    pub node_id: u64,
    pub peer_id: PeerId,
    /// host:port
    pub address: String,
}
