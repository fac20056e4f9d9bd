//! What an upload may ask for (rest-api.md 9.1), parsed from text and with the server's defaults.
//! Texts of errors are the original's where clients may compare them.

use multihash_codetable::Code;
use pinfold_common::pin::PinOptions;
use pinfold_common::{Error, PeerId, Result};

use super::Attributes;
use super::chunker::Chunker;

/// How the leaves of a file are joined into a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    #[default]
    Balanced,
    Trickle,
}

impl Layout {
    /// Empty means balanced.
    pub fn parse(text: &str) -> Result<Layout> {
        match text {
            "" | "balanced" => Ok(Layout::Balanced),
            "trickle" => Ok(Layout::Trickle),
            _ => Err(Error::invalid("layout parameter is invalid")),
        }
    }
}

/// What the bytes of an upload are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Files and directories, imported as UnixFS.
    #[default]
    Unixfs,
    /// One CAR file (version 1, or 2 around it) with ready-made blocks.
    Car,
}

impl Format {
    /// Empty means unixfs.
    pub fn parse(text: &str) -> Result<Format> {
        match text {
            "" | "unixfs" => Ok(Format::Unixfs),
            "car" => Ok(Format::Car),
            _ => Err(Error::invalid("format parameter is invalid")),
        }
    }
}

/// One upload's options. `cid_version` and `hash` are as given and checked by `add`, because the original reports
/// them only after it has answered 200.
#[derive(Clone, Debug, PartialEq)]
pub struct AddParams {
    pub layout: Layout,
    pub chunker: Chunker,
    /// Unset: raw leaves exactly when the CID version is above 0.
    pub raw_leaves: Option<bool>,
    pub cid_version: u32,
    /// A multihash name; case does not matter; empty means sha2-256.
    pub hash: String,
    pub wrap_with_directory: bool,
    /// Attributes of entries are kept; without, they are not even when the client sends them, as in Kubo.
    pub preserve_mode: bool,
    pub preserve_mtime: bool,
    pub no_pin: bool,
    /// Blocks go to this peer only; the other allocations fetch them later (beh:B19.4).
    pub local: bool,
    pub progress: bool,
    pub format: Format,
    /// `pin_update` is ignored and the mode is always recursive.
    pub pin: PinOptions,
    pub user_allocations: Vec<PeerId>,
    /// Makes a retry of the final pin harmless; empty: no key.
    pub request_key: Vec<u8>,
}

impl Default for AddParams {
    fn default() -> AddParams {
        AddParams {
            layout: Layout::default(),
            chunker: Chunker::default(),
            raw_leaves: None,
            cid_version: 0,
            hash: DEFAULT_HASH.to_owned(),
            wrap_with_directory: false,
            preserve_mode: false,
            preserve_mtime: false,
            no_pin: false,
            local: false,
            progress: false,
            format: Format::default(),
            pin: PinOptions::default(),
            user_allocations: Vec::new(),
            request_key: Vec::new(),
        }
    }
}

const DEFAULT_HASH: &str = "sha2-256";

/// How the CIDs of a DAG are made: checked version, hash and kind of leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CidFormat {
    pub version: cid::Version,
    pub hash: Code,
    pub raw_leaves: bool,
}

impl AddParams {
    pub(super) fn cid_format(&self) -> Result<CidFormat> {
        let hash = hash_of_name(&self.hash)?;
        let version = match self.cid_version {
            0 => cid::Version::V0,
            1 => cid::Version::V1,
            other => return Err(Error::invalid(format!("bad CID Version: {other} is not 0 or 1"))),
        };
        if version == cid::Version::V0 && hash != Code::Sha2_256 {
            return Err(Error::invalid(format!("bad CID Version: 0 allows {DEFAULT_HASH} only, not {}", self.hash)));
        }
        // A raw block has no room for them.
        let keeps_attributes = self.preserve_mode || self.preserve_mtime;
        if keeps_attributes && self.raw_leaves == Some(true) {
            let message = "raw-leaves can't be used with UnixFS metadata like mode or modification time";
            return Err(Error::invalid(message));
        }
        let raw_leaves = self.raw_leaves.unwrap_or(version == cid::Version::V1 && !keeps_attributes);
        Ok(CidFormat { version, hash, raw_leaves })
    }

    /// Those that this upload keeps.
    pub(super) fn kept(&self, attributes: Attributes) -> Attributes {
        Attributes {
            mode: attributes.mode.filter(|mode| self.preserve_mode && *mode > 0),
            mtime: attributes.mtime.filter(|_| self.preserve_mtime),
        }
    }
}

/// The hash functions that Kubo accepts in a CID and our library has (not sha1: the library keeps it out of its table).
/// Neither are keccak-224 and keccak-384, which no Kubo can compute. A digest under 20 bytes is never one of them.
fn hash_of_name(name: &str) -> Result<Code> {
    match name.to_lowercase().as_str() {
        "" | DEFAULT_HASH => Ok(Code::Sha2_256),
        "sha2-512" => Ok(Code::Sha2_512),
        "sha3" | "sha3-512" => Ok(Code::Sha3_512),
        "sha3-224" => Ok(Code::Sha3_224),
        "sha3-256" => Ok(Code::Sha3_256),
        "sha3-384" => Ok(Code::Sha3_384),
        "keccak-256" => Ok(Code::Keccak256),
        "keccak-512" => Ok(Code::Keccak512),
        "blake2b-256" => Ok(Code::Blake2b256),
        "blake2b-512" => Ok(Code::Blake2b512),
        "blake2s-256" => Ok(Code::Blake2s256),
        "blake3" => Ok(Code::Blake3_256),
        _ => Err(Error::invalid("hash function name not known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the defaults are the reference server's, and a hash that CIDv0 cannot carry is refused, not upgraded.
    #[test]
    fn versions_and_hashes() {
        let format = AddParams::default().cid_format().unwrap();
        assert_eq!(format, CidFormat { version: cid::Version::V0, hash: Code::Sha2_256, raw_leaves: false });
        let v1 = AddParams { cid_version: 1, hash: "BLAKE3".to_owned(), ..AddParams::default() };
        assert_eq!(
            v1.cid_format().unwrap(),
            CidFormat { version: cid::Version::V1, hash: Code::Blake3_256, raw_leaves: true }
        );
        let plain = AddParams { raw_leaves: Some(false), ..v1 };
        assert!(!plain.cid_format().unwrap().raw_leaves);
        let with_times = AddParams { cid_version: 1, preserve_mtime: true, ..AddParams::default() };
        assert!(!with_times.cid_format().unwrap().raw_leaves);
        assert!(AddParams { raw_leaves: Some(true), ..with_times }.cid_format().is_err());
        for (version, hash) in [(0, "blake3"), (7, "sha2-256"), (1, "identity"), (1, "nothing")] {
            let bad = AddParams { cid_version: version, hash: hash.to_owned(), ..AddParams::default() };
            assert!(bad.cid_format().is_err(), "{version} {hash}");
        }
    }
}
