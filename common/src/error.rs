//! The closed set of errors that cross a process boundary, and its two tables: to gRPC and to HTTP.
//! Every room maps its own error enum into this one; nothing else maps to a wire.

use std::fmt;

/// What went wrong, as far as a caller has to tell cases apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request is malformed; the message names the field.
    InvalidArgument,
    /// The thing asked for does not exist.
    NotFound,
    /// Well-formed, but against a rule (`beh:B8`); nothing was changed.
    Rejected,
    /// Not enough peers can take a pin.
    NotEnoughPeers,
    /// Who are you?
    Unauthenticated,
    /// The caller is known and not in the audience of this service.
    PermissionDenied,
    /// The caller is not in the peerset as this peer knows it: this peer may be behind. Retryable.
    UnknownMember,
    /// The log says that the caller is gone. Final.
    Removed,
    /// Cannot be done now (no leader, warming up, a sibling is away); nothing was changed. Retryable.
    Unavailable,
    /// A deadline passed: the request may or may not have taken effect.
    OutcomeUnknown,
    /// A bound is reached: queue, connections.
    Exhausted,
    /// The disk, or the IPFS node's storage limit, is full.
    StorageFull,
    /// The two sides speak different wire versions or belong to different clusters.
    Incompatible,
    /// A defect, or a failure below us: IPFS node, disk.
    Internal,
}

impl Code {
    pub const ALL: [Code; 14] = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::Rejected,
        Code::NotEnoughPeers,
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::UnknownMember,
        Code::Removed,
        Code::Unavailable,
        Code::OutcomeUnknown,
        Code::Exhausted,
        Code::StorageFull,
        Code::Incompatible,
        Code::Internal,
    ];

    /// The name on the wire (metadata `pinfold-code`, `Failure.code`).
    pub const fn name(self) -> &'static str {
        match self {
            Code::InvalidArgument => "invalid_argument",
            Code::NotFound => "not_found",
            Code::Rejected => "rejected",
            Code::NotEnoughPeers => "not_enough_peers",
            Code::Unauthenticated => "unauthenticated",
            Code::PermissionDenied => "permission_denied",
            Code::UnknownMember => "unknown_member",
            Code::Removed => "removed",
            Code::Unavailable => "unavailable",
            Code::OutcomeUnknown => "outcome_unknown",
            Code::Exhausted => "exhausted",
            Code::StorageFull => "storage_full",
            Code::Incompatible => "incompatible",
            Code::Internal => "internal",
        }
    }

    pub fn from_name(name: &str) -> Option<Code> {
        Code::ALL.into_iter().find(|code| code.name() == name)
    }

    /// The gRPC status code.
    pub const fn grpc(self) -> tonic::Code {
        match self {
            Code::InvalidArgument => tonic::Code::InvalidArgument,
            Code::NotFound => tonic::Code::NotFound,
            Code::Rejected | Code::NotEnoughPeers | Code::Incompatible => tonic::Code::FailedPrecondition,
            Code::Unauthenticated => tonic::Code::Unauthenticated,
            Code::PermissionDenied | Code::Removed => tonic::Code::PermissionDenied,
            Code::UnknownMember | Code::Unavailable => tonic::Code::Unavailable,
            Code::OutcomeUnknown => tonic::Code::DeadlineExceeded,
            Code::Exhausted | Code::StorageFull => tonic::Code::ResourceExhausted,
            Code::Internal => tonic::Code::Internal,
        }
    }

    /// The HTTP status. The original knows 400, 401, 404 and 500 only (rest-api.md 2); 507 is ours for a full disk.
    pub const fn http(self) -> u16 {
        match self {
            Code::InvalidArgument => 400,
            Code::Unauthenticated => 401,
            Code::NotFound => 404,
            Code::StorageFull => 507,
            Code::Rejected
            | Code::NotEnoughPeers
            | Code::PermissionDenied
            | Code::UnknownMember
            | Code::Removed
            | Code::Unavailable
            | Code::OutcomeUnknown
            | Code::Exhausted
            | Code::Incompatible
            | Code::Internal => 500,
        }
    }

    /// Whether the same request may succeed later without anybody changing it, and is sure to have had no effect.
    pub const fn is_retryable(self) -> bool {
        match self {
            Code::Unavailable | Code::UnknownMember | Code::Exhausted => true,
            Code::InvalidArgument
            | Code::NotFound
            | Code::Rejected
            | Code::NotEnoughPeers
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::Removed
            | Code::OutcomeUnknown
            | Code::StorageFull
            | Code::Incompatible
            | Code::Internal => false,
        }
    }
}

/// A code and a sentence for people: lower case, no full stop, naming the thing and the action.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    pub code: Code,
    pub message: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Error {
        Error { code, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(Code::InvalidArgument, message)
    }

    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(Code::NotFound, message)
    }

    pub fn rejected(message: impl Into<String>) -> Error {
        Error::new(Code::Rejected, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Error {
        Error::new(Code::Unavailable, message)
    }

    pub fn outcome_unknown(message: impl Into<String>) -> Error {
        Error::new(Code::OutcomeUnknown, message)
    }

    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(Code::Internal, message)
    }

    /// The same error, with what was being done in front: "join cluster: connection refused".
    pub fn context(self, doing: impl fmt::Display) -> Error {
        Error { code: self.code, message: format!("{doing}: {}", self.message) }
    }

    /// The original's text, which clients compare (rest-api.md 2).
    pub fn not_in_pinset() -> Error {
        Error::not_found("pin is not part of the pinset")
    }
}

const CODE_KEY: &str = "pinfold-code";

impl From<Error> for tonic::Status {
    fn from(error: Error) -> tonic::Status {
        let mut status = tonic::Status::new(error.code.grpc(), error.message);
        status.metadata_mut().insert(CODE_KEY, tonic::metadata::MetadataValue::from_static(error.code.name()));
        status
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Error {
        let named = status.metadata().get(CODE_KEY).and_then(|value| value.to_str().ok()).and_then(Code::from_name);
        let code = named.unwrap_or(match status.code() {
            tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Code::InvalidArgument,
            tonic::Code::NotFound => Code::NotFound,
            tonic::Code::Unauthenticated => Code::Unauthenticated,
            tonic::Code::PermissionDenied => Code::PermissionDenied,
            tonic::Code::Unavailable => Code::Unavailable,
            tonic::Code::ResourceExhausted => Code::Exhausted,
            tonic::Code::FailedPrecondition | tonic::Code::AlreadyExists => Code::Rejected,
            // The other side may have done it: Cancelled and DeadlineExceeded are our own deadlines.
            tonic::Code::Cancelled | tonic::Code::DeadlineExceeded | tonic::Code::Aborted | tonic::Code::Unknown => {
                Code::OutcomeUnknown
            }
            tonic::Code::Ok | tonic::Code::Unimplemented | tonic::Code::Internal | tonic::Code::DataLoss => {
                Code::Internal
            }
        });
        Error { code, message: status.message().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an error survives a hop unchanged, whatever its code.
    #[test]
    fn every_code_survives_a_hop() {
        for code in Code::ALL {
            let error = Error::new(code, "open log store: read header");
            assert_eq!(Error::from(tonic::Status::from(error.clone())), error);
            assert_eq!(Code::from_name(code.name()), Some(code));
        }
    }
}
