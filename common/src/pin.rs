//! The pin object (beh:B7): its domain form, parsed and valid, and the way to protobuf and back. JSON is in `json`.

use std::collections::BTreeMap;

use multiaddr::Multiaddr;
use pinfold_proto::types;

use crate::ids::{Cid, PeerId, cid_from_bytes, optional_cid, peers_from_bytes, peers_to_bytes};
use crate::time::Timestamp;
use crate::{Error, Result};

/// Longest name kept. The original has no limit; a pin travels in every log entry, so ours has one.
pub const MAX_NAME_BYTES: usize = 1024;
/// Most metadata entries, and most bytes of all keys and values together.
pub const MAX_METADATA_ENTRIES: usize = 1024;
pub const MAX_METADATA_BYTES: usize = 16 * 1024;
pub const MAX_ORIGINS: usize = 64;
pub const MAX_USER_ALLOCATIONS: usize = 256;
pub const MAX_REQUEST_KEY_BYTES: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PinType {
    Bad,
    #[default]
    Data,
    Meta,
    ClusterDag,
    Shard,
}

impl PinType {
    pub const fn name(self) -> &'static str {
        match self {
            PinType::Bad => "bad-type",
            PinType::Data => "pin",
            PinType::Meta => "meta-pin",
            PinType::ClusterDag => "clusterdag-pin",
            PinType::Shard => "shard-pin",
        }
    }

    pub fn from_name(name: &str) -> PinType {
        match name {
            "pin" => PinType::Data,
            "meta-pin" => PinType::Meta,
            "clusterdag-pin" => PinType::ClusterDag,
            "shard-pin" => PinType::Shard,
            _ => PinType::Bad,
        }
    }

    pub const fn to_proto(self) -> types::PinType {
        match self {
            PinType::Bad => types::PinType::Bad,
            PinType::Data => types::PinType::Data,
            PinType::Meta => types::PinType::Meta,
            PinType::ClusterDag => types::PinType::ClusterDag,
            PinType::Shard => types::PinType::Shard,
        }
    }

    pub fn from_proto(number: i32) -> PinType {
        match types::PinType::try_from(number) {
            Ok(types::PinType::Data) => PinType::Data,
            Ok(types::PinType::Meta) => PinType::Meta,
            Ok(types::PinType::ClusterDag) => PinType::ClusterDag,
            Ok(types::PinType::Shard) => PinType::Shard,
            Ok(types::PinType::Bad) | Err(_) => PinType::Bad,
        }
    }

    /// A comma-separated list for `filter=` of `/allocations`; empty and `all` are no restriction. Unknown names
    /// beside a known one are ignored.
    pub fn parse_filter(text: &str) -> Result<Vec<PinType>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = text.split(',').collect();
        if names.iter().any(|name| name.is_empty() || *name == "all") {
            return Ok(Vec::new());
        }
        let known: Vec<PinType> =
            names.into_iter().map(PinType::from_name).filter(|kind| *kind != PinType::Bad).collect();
        if known.is_empty() { Err(Error::invalid("invalid filter value")) } else { Ok(known) }
    }
}

/// Mode and depth are one thing (beh:B7.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PinMode {
    #[default]
    Recursive,
    Direct,
}

impl PinMode {
    pub const fn name(self) -> &'static str {
        match self {
            PinMode::Recursive => "recursive",
            PinMode::Direct => "direct",
        }
    }

    pub const fn of_depth(max_depth: i32) -> PinMode {
        if max_depth == 0 { PinMode::Direct } else { PinMode::Recursive }
    }

    pub const fn depth(self) -> i32 {
        match self {
            PinMode::Recursive => -1,
            PinMode::Direct => 0,
        }
    }
}

/// What a user may say about a pin. Factors of 0 mean the configured default and appear in requests only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PinOptions {
    pub replication_factor_min: i32,
    pub replication_factor_max: i32,
    pub name: String,
    pub shard_size_bytes: u64,
    pub metadata: BTreeMap<String, String>,
    pub pin_update: Option<Cid>,
    /// Unset: never.
    pub expire_at: Timestamp,
    pub origins: Vec<Multiaddr>,
}

impl PinOptions {
    /// beh:B7.5
    pub fn is_everywhere(&self) -> bool {
        self.replication_factor_min == -1 && self.replication_factor_max == -1
    }

    /// beh:B7.7; the Unix epoch counts as unset.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        !self.expire_at.is_unset() && self.expire_at.seconds != 0 && self.expire_at < now
    }
}

/// An entry of the pinset.
#[derive(Clone, Debug, PartialEq)]
pub struct Pin {
    pub cid: Cid,
    pub kind: PinType,
    /// -1 recursive, 0 direct.
    pub max_depth: i32,
    pub options: PinOptions,
    /// Empty when pinned everywhere.
    pub allocations: Vec<PeerId>,
    /// Keep their copy until the new holders really have it (protocols.md 7).
    pub leaving: Vec<PeerId>,
    pub reference: Option<Cid>,
    pub timestamp: Timestamp,
    /// Log index that wrote this entry.
    pub revision: u64,
}

impl Pin {
    pub fn mode(&self) -> PinMode {
        PinMode::of_depth(self.max_depth)
    }

    /// beh:B7.6: whether `peer` has nothing to do with it. A leaving peer keeps its copy.
    pub fn is_remote_for(&self, peer: &PeerId) -> bool {
        !self.options.is_everywhere() && !self.allocations.contains(peer) && !self.leaving.contains(peer)
    }
}

/// A request: options with defaults not yet applied.
#[derive(Clone, Debug, PartialEq)]
pub struct PinRequest {
    pub cid: Cid,
    pub kind: PinType,
    pub max_depth: i32,
    pub options: PinOptions,
    /// Preferred peers, best effort (beh:B9.6).
    pub user_allocations: Vec<PeerId>,
    /// Preset by an add: peers that were sent the blocks.
    pub allocations: Vec<PeerId>,
}

impl PinRequest {
    pub fn new(cid: Cid) -> PinRequest {
        PinRequest {
            cid,
            kind: PinType::Data,
            max_depth: -1,
            options: PinOptions::default(),
            user_allocations: Vec::new(),
            allocations: Vec::new(),
        }
    }
}

impl From<PinOptions> for types::PinOptions {
    fn from(options: PinOptions) -> types::PinOptions {
        types::PinOptions {
            replication_factor_min: options.replication_factor_min,
            replication_factor_max: options.replication_factor_max,
            name: options.name,
            shard_size_bytes: options.shard_size_bytes,
            metadata: options.metadata.into_iter().map(|(key, value)| types::KeyValue { key, value }).collect(),
            pin_update: options.pin_update.map(|cid| cid.to_bytes()).unwrap_or_default(),
            expire_at_seconds: if options.expire_at.is_unset() { 0 } else { options.expire_at.seconds },
            origins: options.origins.iter().map(|origin| origin.to_vec()).collect(),
        }
    }
}

impl TryFrom<types::PinOptions> for PinOptions {
    type Error = Error;

    fn try_from(options: types::PinOptions) -> Result<PinOptions> {
        if options.name.len() > MAX_NAME_BYTES {
            return Err(Error::invalid(format!(
                "name: {} bytes, at most {MAX_NAME_BYTES} are kept",
                options.name.len()
            )));
        }
        check_metadata(options.metadata.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())))?;
        if options.origins.len() > MAX_ORIGINS {
            return Err(Error::invalid(format!("origins: {}, at most {MAX_ORIGINS}", options.origins.len())));
        }
        let origins = options
            .origins
            .into_iter()
            .map(|bytes| Multiaddr::try_from(bytes).map_err(|error| Error::invalid(format!("origins: {error}"))))
            .collect::<Result<_>>()?;
        Ok(PinOptions {
            replication_factor_min: options.replication_factor_min,
            replication_factor_max: options.replication_factor_max,
            name: options.name,
            shard_size_bytes: options.shard_size_bytes,
            metadata: options.metadata.into_iter().map(|entry| (entry.key, entry.value)).collect(),
            pin_update: optional_cid(&options.pin_update).map_err(|error| error.context("pin_update"))?,
            expire_at: match options.expire_at_seconds {
                0 => Timestamp::default(),
                seconds => Timestamp::from_seconds(seconds),
            },
            origins,
        })
    }
}

/// Refuses metadata that is too large to travel in every log entry.
pub fn check_metadata<'a>(entries: impl Iterator<Item = (&'a str, &'a str)>) -> Result<()> {
    let (mut count, mut bytes) = (0, 0);
    for (key, value) in entries {
        count += 1;
        bytes += key.len() + value.len();
    }
    if count > MAX_METADATA_ENTRIES {
        return Err(Error::invalid(format!("metadata: {count} entries, at most {MAX_METADATA_ENTRIES}")));
    }
    if bytes > MAX_METADATA_BYTES {
        return Err(Error::invalid(format!("metadata: {bytes} bytes, at most {MAX_METADATA_BYTES}")));
    }
    Ok(())
}

impl From<Pin> for types::Pin {
    fn from(pin: Pin) -> types::Pin {
        types::Pin {
            cid: pin.cid.to_bytes(),
            r#type: pin.kind.to_proto() as i32,
            max_depth: pin.max_depth,
            options: Some(pin.options.into()),
            allocations: peers_to_bytes(&pin.allocations),
            leaving: peers_to_bytes(&pin.leaving),
            reference: pin.reference.map(|cid| cid.to_bytes()).unwrap_or_default(),
            timestamp: Some(pin.timestamp.into()),
            revision: pin.revision,
        }
    }
}

impl TryFrom<types::Pin> for Pin {
    type Error = Error;

    fn try_from(pin: types::Pin) -> Result<Pin> {
        Ok(Pin {
            cid: cid_from_bytes(&pin.cid)?,
            kind: PinType::from_proto(pin.r#type),
            max_depth: pin.max_depth,
            options: pin.options.unwrap_or_default().try_into()?,
            allocations: peers_from_bytes(&pin.allocations).map_err(|error| error.context("allocations"))?,
            leaving: peers_from_bytes(&pin.leaving).map_err(|error| error.context("leaving"))?,
            reference: optional_cid(&pin.reference).map_err(|error| error.context("reference"))?,
            timestamp: pin.timestamp.map(Timestamp::from).unwrap_or_default(),
            revision: pin.revision,
        })
    }
}

impl From<PinRequest> for types::PinRequest {
    fn from(request: PinRequest) -> types::PinRequest {
        types::PinRequest {
            cid: request.cid.to_bytes(),
            r#type: request.kind.to_proto() as i32,
            max_depth: request.max_depth,
            options: Some(request.options.into()),
            user_allocations: peers_to_bytes(&request.user_allocations),
            allocations: peers_to_bytes(&request.allocations),
        }
    }
}

impl TryFrom<types::PinRequest> for PinRequest {
    type Error = Error;

    fn try_from(request: types::PinRequest) -> Result<PinRequest> {
        if request.user_allocations.len() > MAX_USER_ALLOCATIONS {
            return Err(Error::invalid(format!(
                "user_allocations: {}, at most {MAX_USER_ALLOCATIONS}",
                request.user_allocations.len()
            )));
        }
        Ok(PinRequest {
            cid: cid_from_bytes(&request.cid)?,
            kind: PinType::from_proto(request.r#type),
            max_depth: request.max_depth,
            options: request.options.unwrap_or_default().try_into()?,
            user_allocations: peers_from_bytes(&request.user_allocations)
                .map_err(|error| error.context("user_allocations"))?,
            allocations: peers_from_bytes(&request.allocations).map_err(|error| error.context("allocations"))?,
        })
    }
}
