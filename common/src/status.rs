//! The tracker's statuses and the filters made of them (beh:B11.1, rest-api.md 5.1).

use pinfold_proto::types;

use crate::{Error, Result};

/// What became of a pin on one peer. The numbers are bits, as filters use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum TrackerStatus {
    Undefined = 0,
    ClusterError = 2,
    PinError = 4,
    UnpinError = 8,
    Pinned = 16,
    Pinning = 32,
    Unpinning = 64,
    Unpinned = 128,
    Remote = 256,
    PinQueued = 512,
    UnpinQueued = 1024,
    Sharded = 2048,
    UnexpectedlyUnpinned = 4096,
}

impl TrackerStatus {
    pub const ALL: [TrackerStatus; 13] = [
        TrackerStatus::Undefined,
        TrackerStatus::ClusterError,
        TrackerStatus::PinError,
        TrackerStatus::UnpinError,
        TrackerStatus::Pinned,
        TrackerStatus::Pinning,
        TrackerStatus::Unpinning,
        TrackerStatus::Unpinned,
        TrackerStatus::Remote,
        TrackerStatus::PinQueued,
        TrackerStatus::UnpinQueued,
        TrackerStatus::Sharded,
        TrackerStatus::UnexpectedlyUnpinned,
    ];

    pub const fn bit(self) -> u32 {
        self as u32
    }

    pub const fn name(self) -> &'static str {
        match self {
            TrackerStatus::Undefined => "undefined",
            TrackerStatus::ClusterError => "cluster_error",
            TrackerStatus::PinError => "pin_error",
            TrackerStatus::UnpinError => "unpin_error",
            TrackerStatus::Pinned => "pinned",
            TrackerStatus::Pinning => "pinning",
            TrackerStatus::Unpinning => "unpinning",
            TrackerStatus::Unpinned => "unpinned",
            TrackerStatus::Remote => "remote",
            TrackerStatus::PinQueued => "pin_queued",
            TrackerStatus::UnpinQueued => "unpin_queued",
            TrackerStatus::Sharded => "sharded",
            TrackerStatus::UnexpectedlyUnpinned => "unexpectedly_unpinned",
        }
    }

    pub fn from_bit(bit: u32) -> TrackerStatus {
        TrackerStatus::ALL.into_iter().find(|status| status.bit() == bit).unwrap_or(TrackerStatus::Undefined)
    }

    pub fn from_proto(number: i32) -> TrackerStatus {
        u32::try_from(number).map_or(TrackerStatus::Undefined, TrackerStatus::from_bit)
    }

    pub fn to_proto(self) -> types::TrackerStatus {
        types::TrackerStatus::try_from(self.bit() as i32).unwrap_or_default()
    }
}

impl std::fmt::Display for TrackerStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of statuses; the empty set means all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter(pub u32);

impl Filter {
    pub const ALL: Filter = Filter(0);
    const ERROR: u32 = 2 + 4 + 8;
    const QUEUED: u32 = 512 + 1024;

    /// A comma-separated list of names; `error` and `queued` are groups. Unknown names beside a known one are
    /// ignored; a list without any known one is refused (rest-api.md 8).
    pub fn parse(text: &str) -> Result<Filter> {
        if text.is_empty() {
            return Ok(Filter::ALL);
        }
        let bits = text.split(',').map(str::trim).fold(0, |bits, name| {
            bits | match name {
                "error" => Filter::ERROR,
                "queued" => Filter::QUEUED,
                _ => TrackerStatus::ALL.iter().find(|status| status.name() == name).map_or(0, |status| status.bit()),
            }
        });
        if bits == 0 { Err(Error::invalid("invalid filter value")) } else { Ok(Filter(bits)) }
    }

    pub fn matches(self, status: TrackerStatus) -> bool {
        self.0 == 0 || self.0 & status.bit() != 0
    }

    /// Whether only statuses of running or failed operations are asked for.
    pub fn is_operations_only(self) -> bool {
        let settled = TrackerStatus::Pinned.bit()
            | TrackerStatus::UnexpectedlyUnpinned.bit()
            | TrackerStatus::Sharded.bit()
            | TrackerStatus::Remote.bit();
        self.0 != 0 && self.0 & settled == 0
    }
}

/// Why an item is not where it should be (protocols.md 11).
pub const fn reason_name(reason: types::Reason) -> &'static str {
    match reason {
        types::Reason::None => "",
        types::Reason::NoProviders => "no_providers",
        types::Reason::Stalled => "stalled",
        types::Reason::NodeDown => "node_down",
        types::Reason::NodeTimeout => "node_timeout",
        types::Reason::DiskFull => "disk_full",
        types::Reason::QueueFull => "queue_full",
        types::Reason::Refused => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: filters take what the original's clients send.
    #[test]
    fn filters() {
        assert_eq!(Filter::parse("").unwrap(), Filter::ALL);
        assert_eq!(Filter::parse("error, queued").unwrap(), Filter(14 + 1536));
        assert_eq!(Filter::parse("pinned,nonsense").unwrap(), Filter(16));
        assert!(Filter::parse("undefined").is_err());
        assert!(Filter::parse("nonsense").is_err());
        assert!(Filter::parse("unpin_error").unwrap().is_operations_only());
        assert!(!Filter::parse("error,remote").unwrap().is_operations_only());
    }

    /// Goal: the protobuf numbers are the bits.
    #[test]
    fn proto_numbers_are_bits() {
        for status in TrackerStatus::ALL {
            assert_eq!(status.to_proto() as u32, status.bit());
            assert_eq!(TrackerStatus::from_proto(status.bit() as i32), status);
        }
    }
}
