//! What blocks are kept under: their multihash. Never the CID, so that a CIDv0 and a CIDv1 of the same block, or two
//! codecs of it, are one file and one entry of the live set (measured.md B, trap 1).

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use cid::multibase::Base;
use pinfold_common::Cid;

use crate::node::verify::codec;

/// A multihash as bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<[u8]>);

/// The most characters of a file name that is a key: a multihash of 64 bytes has 108.
const MAX_NAME_CHARACTERS: usize = 160;

impl Key {
    pub fn of(cid: &Cid) -> Key {
        Key(cid.hash().to_bytes().into())
    }

    pub fn from_bytes(bytes: Vec<u8>) -> Key {
        Key(bytes.into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The file name: base32 in lower case.
    pub fn name(&self) -> String {
        Base::Base32Lower.encode(&self.0)
    }

    /// Back from a file name; `None` for what is not one of ours.
    pub fn from_name(name: &str) -> Option<Key> {
        if name.len() > MAX_NAME_CHARACTERS {
            return None;
        }
        let bytes = Base::Base32Lower.decode(name).ok()?;
        // Only what is a multihash, and only in the spelling that `name` gives it.
        let key = Key(multihash::Multihash::<64>::from_bytes(&bytes).ok()?.to_bytes().into());
        (key.name() == name).then_some(key)
    }

    /// The key as a CID, as Kubo's GC names blocks: v1, raw.
    pub fn to_cid(&self) -> Option<Cid> {
        multihash::Multihash::from_bytes(&self.0).ok().map(|hash| Cid::new_v1(codec::RAW, hash))
    }
}

/// Sixteen bytes in the place of a key, for sets that must stay small. Seeded anew each time, so that nobody can make
/// two keys that fall together.
#[derive(Clone, Debug, Default)]
pub struct ShortKeys(RandomState, RandomState);

impl ShortKeys {
    pub fn shorten(&self, bytes: &[u8]) -> u128 {
        (u128::from(self.0.hash_one(bytes)) << 64) | u128::from(self.1.hash_one(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: v0 and v1 have one key, and a file name leads back to it.
    #[test]
    fn one_key_for_both_versions() {
        let v0: Cid = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG".parse().unwrap();
        let v1 = Cid::new_v1(v0.codec(), *v0.hash());
        let key = Key::of(&v0);
        assert_eq!(key, Key::of(&v1));
        assert_eq!(Key::from_name(&key.name()), Some(key.clone()));
        assert_eq!(key.to_cid().unwrap().hash(), v0.hash());
        assert_eq!(Key::from_name("lock"), None);
        assert_eq!(Key::from_name(&key.name().to_uppercase()), None);
    }
}
