//! What can become of a proposal or a change of the membership.

use openraft::errors::{ChangeMembershipError, ClientWriteError, ForwardToLeader, RaftError};
use pinfold_common::{Code, Error, ids};

use super::NodeAndPeer;
use super::types::{Address, Types};

/// Why a proposal or a read has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was written. The leader, if one is known.
    #[error("this peer does not lead")]
    NotLeader(Option<NodeAndPeer>),
    /// Nothing was written; later it may work.
    #[error("{0}")]
    Unavailable(String),
    /// It may have been written, now or later. A retry needs the same request key.
    #[error("{0}")]
    OutcomeUnknown(String),
    /// This process is about to stop.
    #[error("{0}")]
    Fatal(String),
}

impl From<ProposeError> for Error {
    fn from(error: ProposeError) -> Error {
        let code = match &error {
            ProposeError::NotLeader(_) | ProposeError::Unavailable(_) => Code::Unavailable,
            ProposeError::OutcomeUnknown(_) => Code::OutcomeUnknown,
            ProposeError::Fatal(_) => Code::Internal,
        };
        Error::new(code, error.to_string())
    }
}

/// Why a step of a membership change was not done. Steps are repeated by whoever wants the change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("this peer does not lead")]
    NotLeader(Option<NodeAndPeer>),
    /// Another change is on its way.
    #[error("{0}")]
    InProgress(String),
    /// Against a rule; repeating does not help.
    #[error("{0}")]
    Refused(String),
    /// It may have been done, now or later.
    #[error("{0}")]
    OutcomeUnknown(String),
    #[error("{0}")]
    Fatal(String),
}

impl From<ChangeError> for Error {
    fn from(error: ChangeError) -> Error {
        let code = match &error {
            ChangeError::NotLeader(_) | ChangeError::InProgress(_) => Code::Unavailable,
            ChangeError::Refused(_) => Code::Rejected,
            ChangeError::OutcomeUnknown(_) => Code::OutcomeUnknown,
            ChangeError::Fatal(_) => Code::Internal,
        };
        Error::new(code, error.to_string())
    }
}

/// `None` for an address that no version of ours writes.
pub(super) fn node_and_peer(node_id: u64, address: &Address) -> Option<NodeAndPeer> {
    let peer_id = ids::peer_from_bytes(&address.peer_id).ok()?;
    Some(NodeAndPeer { node_id, peer_id, address: address.host_port.clone() })
}

pub(super) fn leader_of(forward: &ForwardToLeader<Types>) -> Option<NodeAndPeer> {
    node_and_peer(forward.leader_id?, forward.leader_node.as_ref()?)
}

pub(super) fn of_write(error: ClientWriteError<Types>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => ProposeError::NotLeader(leader_of(&forward)),
        ClientWriteError::LogEntryDiscarded(_) => {
            ProposeError::OutcomeUnknown("the leader changed while the entry was on its way".to_owned())
        }
        ClientWriteError::ChangeMembershipError(error) => ProposeError::Unavailable(error.to_string()),
        ClientWriteError::PreconditionFailed(error) => ProposeError::Unavailable(error.to_string()),
    }
}

pub(super) fn of_change(error: RaftError<Types, ClientWriteError<Types>>) -> ChangeError {
    let error = match error {
        RaftError::Fatal(error) => return ChangeError::Fatal(error.to_string()),
        RaftError::APIError(error) => error,
    };
    match error {
        ClientWriteError::ForwardToLeader(forward) => ChangeError::NotLeader(leader_of(&forward)),
        ClientWriteError::LogEntryDiscarded(_) => {
            ChangeError::OutcomeUnknown("the leader changed while the membership was changing".to_owned())
        }
        ClientWriteError::PreconditionFailed(error) => ChangeError::InProgress(error.to_string()),
        ClientWriteError::ChangeMembershipError(error) => match &error {
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                ChangeError::InProgress(error.to_string())
            }
            ChangeMembershipError::EmptyMembership(_)
            | ChangeMembershipError::LearnerNotFound(_)
            | ChangeMembershipError::UnsupportedMembershipTransition(_)
            | ChangeMembershipError::NodeMetadataChanged(_) => ChangeError::Refused(error.to_string()),
        },
    }
}
