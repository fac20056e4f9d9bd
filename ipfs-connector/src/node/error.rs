//! Why an IPFS node did not do what it was asked to, as far as somebody has to tell cases apart.

use pinfold_common::{Code, Error};
use pinfold_proto::types::Reason;

pub type Result<T, E = NodeError> = std::result::Result<T, E>;

/// The text is whole: it names the call, and is what users see in `error` of a status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The node cannot be reached, or broke off an answer.
    #[error("{0}")]
    Down(String),
    /// The node was reached and did not answer in time.
    #[error("{0}")]
    Timeout(String),
    /// A pin made no progress for the configured time.
    #[error("{0}")]
    Stalled(String),
    /// Nobody who was asked has a block.
    #[error("{0}")]
    NoProviders(String),
    /// The disk or the node's storage limit is full.
    #[error("{0}")]
    DiskFull(String),
    /// The node will not do this, however often it is asked: unknown hash or codec, block too large, wrong hash.
    #[error("{0}")]
    Refused(String),
    /// A path leads nowhere.
    #[error("{0}")]
    NotFound(String),
    /// Anything else the node or its disk said.
    #[error("{0}")]
    Other(String),
}

impl NodeError {
    /// The machine-readable reason of protocols.md 11.
    pub fn reason(&self) -> Reason {
        match self {
            NodeError::Down(_) => Reason::NodeDown,
            NodeError::Timeout(_) => Reason::NodeTimeout,
            NodeError::Stalled(_) => Reason::Stalled,
            NodeError::NoProviders(_) => Reason::NoProviders,
            NodeError::DiskFull(_) => Reason::DiskFull,
            NodeError::Refused(_) => Reason::Refused,
            NodeError::NotFound(_) | NodeError::Other(_) => Reason::None,
        }
    }

    /// Whether the node itself is in trouble, rather than this one CID: a reason to pause everything.
    pub fn is_node_trouble(&self) -> bool {
        match self {
            NodeError::Down(_) | NodeError::Timeout(_) | NodeError::DiskFull(_) => true,
            NodeError::Stalled(_)
            | NodeError::NoProviders(_)
            | NodeError::Refused(_)
            | NodeError::NotFound(_)
            | NodeError::Other(_) => false,
        }
    }

    /// The same error with what was being done in front.
    pub fn context(self, doing: impl std::fmt::Display) -> NodeError {
        match self {
            NodeError::Down(text) => NodeError::Down(format!("{doing}: {text}")),
            NodeError::Timeout(text) => NodeError::Timeout(format!("{doing}: {text}")),
            NodeError::Stalled(text) => NodeError::Stalled(format!("{doing}: {text}")),
            NodeError::NoProviders(text) => NodeError::NoProviders(format!("{doing}: {text}")),
            NodeError::DiskFull(text) => NodeError::DiskFull(format!("{doing}: {text}")),
            NodeError::Refused(text) => NodeError::Refused(format!("{doing}: {text}")),
            NodeError::NotFound(text) => NodeError::NotFound(format!("{doing}: {text}")),
            NodeError::Other(text) => NodeError::Other(format!("{doing}: {text}")),
        }
    }
}

impl From<NodeError> for Error {
    fn from(error: NodeError) -> Error {
        let code = match &error {
            NodeError::Down(_) => Code::Unavailable,
            NodeError::Timeout(_) | NodeError::Stalled(_) => Code::OutcomeUnknown,
            NodeError::NoProviders(_) | NodeError::NotFound(_) => Code::NotFound,
            NodeError::DiskFull(_) => Code::StorageFull,
            NodeError::Refused(_) => Code::Rejected,
            NodeError::Other(_) => Code::Internal,
        };
        Error::new(code, error.to_string())
    }
}
