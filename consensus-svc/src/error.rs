//! Why this service does not start, or stops. Requests fail with `pinfold_common::Error`, which crosses the wire.

use std::process::ExitCode;

use crate::store;

/// A refused configuration or state: starting again changes nothing, a person must act.
pub const EXIT_REFUSED: u8 = 78;
pub const EXIT_FAILURE: u8 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data on disk and what was asked for do not go together.
    #[error("{0}")]
    Refused(String),
    /// The disk, or the SQLite files on it. Final: never go on with a guess about what reached the disk (fault:F4).
    #[error("{0}")]
    Store(#[from] store::Error),
    #[error("{0}")]
    Common(#[from] pinfold_common::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn exit_code(&self) -> ExitCode {
        use pinfold_common::Code;
        ExitCode::from(match self {
            Error::Refused(_) => EXIT_REFUSED,
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
            Error::Store(store::Error::Refused(_)) => EXIT_REFUSED,
            Error::Store(_) => EXIT_FAILURE,
        })
    }
}
