//! What can go wrong in this room, and which of the closed set of `common::error` each case is.

use pinfold_common::{Code, Error};

use crate::node::NodeError;

pub type Result<T, E = ConnectorError> = std::result::Result<T, E>;

/// A failure of the connector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectorError {
    /// SQLite, or the disk below it.
    #[error("tracker store: {doing}: {why}")]
    Store { doing: &'static str, why: String },
    /// A row or a key of the tracker's database that this version cannot read.
    #[error("tracker store: {what}; tracker/ may be deleted while the connector is stopped, it is rebuilt")]
    Corrupt { what: String },
    /// The store has stopped, or is about to.
    #[error("tracker store: stopping")]
    Stopping,
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A request that breaks a bound of its service.
    #[error("{0}")]
    Invalid(String),
    /// Another room's answer.
    #[error(transparent)]
    Room(#[from] Error),
}

impl From<ConnectorError> for Error {
    fn from(error: ConnectorError) -> Error {
        let message = error.to_string();
        match error {
            ConnectorError::Store { .. } | ConnectorError::Corrupt { .. } => Error::internal(message),
            ConnectorError::Stopping => Error::unavailable(message),
            ConnectorError::Node(error) => error.into(),
            ConnectorError::Invalid(_) => Error::new(Code::InvalidArgument, message),
            ConnectorError::Room(error) => error,
        }
    }
}

impl From<ConnectorError> for tonic::Status {
    fn from(error: ConnectorError) -> tonic::Status {
        Error::from(error).into()
    }
}
