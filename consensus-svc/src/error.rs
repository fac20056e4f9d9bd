//! Why this service does not start, or stops. Requests fail with `pinfold_common::Error`, which crosses the wire.

use std::process::ExitCode;

use crate::store;

/// A refused configuration or state: starting again changes nothing, a person must act.
pub const EXIT_REFUSED: u8 = 78;
/// This peer is not a member of its cluster any more: only `state clean` and `--bootstrap` make it one again.
pub const EXIT_REMOVED: u8 = 77;
/// It was to leave its cluster on a clean stop and could not: it has stopped as a member, with its data.
pub const EXIT_NOT_LEFT: u8 = 79;
pub const EXIT_FAILURE: u8 = 1;
/// The disk failed (fault:D2, fault:D4).
pub const EXIT_DISK: u8 = 74;
/// Another process works in the folder (fault:P14).
pub const EXIT_LOCKED: u8 = 75;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data on disk and what was asked for do not go together.
    #[error("{0}")]
    Refused(String),
    /// This peer was taken out of its cluster.
    #[error("{0}")]
    Removed(String),
    /// This peer could not leave its cluster, and stopped as a member.
    #[error("{0}")]
    NotLeft(String),
    /// Another process has the folder.
    #[error("error obtaining execution lock: {0}")]
    Locked(String),
    /// A file that is not one of SQLite's could not be read or written.
    #[error("{0}")]
    Io(String),
    /// The disk, or the SQLite files on it. Final: never go on with a guess about what reached the disk (fault:F4).
    #[error("{0}")]
    Store(#[from] store::Error),
    #[error("{0}")]
    Common(#[from] pinfold_common::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A small file could not be written: as final as an error of the stores.
    pub fn disk(error: impl std::fmt::Display) -> Error {
        Error::Io(error.to_string())
    }

    pub fn exit_code(&self) -> ExitCode {
        use pinfold_common::Code;
        ExitCode::from(match self {
            Error::Refused(_) => EXIT_REFUSED,
            Error::Removed(_) => EXIT_REMOVED,
            Error::NotLeft(_) => EXIT_NOT_LEFT,
            Error::Locked(_) => EXIT_LOCKED,
            Error::Io(_) => EXIT_DISK,
            Error::Common(error) => match error.code {
                Code::InvalidArgument | Code::Incompatible | Code::Removed => EXIT_REFUSED,
                Code::NotFound
                | Code::Rejected
                | Code::NotEnoughPeers
                | Code::Unauthenticated
                | Code::PermissionDenied
                | Code::UnknownMember
                | Code::Unavailable
                | Code::OutcomeUnknown
                | Code::Exhausted
                | Code::StorageFull
                | Code::Internal => EXIT_FAILURE,
            },
            // Starting again reads the same damage.
            Error::Store(store::Error::Refused(_) | store::Error::Damaged(_)) => EXIT_REFUSED,
            Error::Store(store::Error::Sqlite { .. } | store::Error::Io { .. }) => EXIT_DISK,
            Error::Store(store::Error::Halt(_) | store::Error::Closed) => EXIT_FAILURE,
        })
    }
}
