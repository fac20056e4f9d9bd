//! What the node listed as pinned, in little memory.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};

use futures::StreamExt as _;
use pinfold_common::pin::PinMode;

use crate::error::Result;
use crate::node::{IpfsNode, NodeError};

/// The node's list of pins, eight bytes each, whatever the CIDs are. Two pins that share a hash hide one loss; the
/// hash is keyed anew each time, so that the next pass finds it.
#[derive(Default)]
pub struct Listing {
    keys: RandomState,
    hashes: Vec<u64>,
    sorted: bool,
}

impl Listing {
    pub fn add(&mut self, cid: &[u8], mode: PinMode) {
        let hash = self.hash(cid, mode);
        self.hashes.push(hash);
        self.sorted = false;
    }

    /// All pins that the node lists, of both modes; an error where the list is not complete or longer than `most`.
    pub async fn read(node: &dyn IpfsNode, most: usize) -> Result<Listing> {
        let mut listing = Listing::default();
        for mode in [PinMode::Recursive, PinMode::Direct] {
            let mut pins = node.pin_ls(mode);
            while let Some(pin) = pins.next().await {
                let (cid, mode) = pin?;
                if listing.len() >= most {
                    return Err(NodeError::Other(format!("more than {most} pins are listed")).into());
                }
                listing.add(&cid.to_bytes(), mode);
            }
        }
        listing.sort();
        Ok(listing)
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Must be called between the last `add` and the first `covers`.
    pub fn sort(&mut self) {
        self.hashes.sort_unstable();
        self.sorted = true;
    }

    /// Whether the block or DAG is pinned so or more: a recursive pin keeps the block of a direct one too.
    pub fn covers(&self, cid: &[u8], mode: PinMode) -> bool {
        self.contains(cid, mode) || (mode == PinMode::Direct && self.contains(cid, PinMode::Recursive))
    }

    /// Whether it is not pinned, in either mode.
    pub fn lacks(&self, cid: &[u8]) -> bool {
        !self.covers(cid, PinMode::Direct)
    }

    fn contains(&self, cid: &[u8], mode: PinMode) -> bool {
        debug_assert!(self.sorted, "sort before asking");
        self.hashes.binary_search(&self.hash(cid, mode)).is_ok()
    }

    fn hash(&self, cid: &[u8], mode: PinMode) -> u64 {
        let mut hasher = self.keys.build_hasher();
        cid.hash(&mut hasher);
        (mode == PinMode::Direct).hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: modes are told apart in a listing, and order does not matter.
    #[test]
    fn listing_knows_modes() {
        let mut listing = Listing::default();
        listing.add(b"b", PinMode::Direct);
        listing.add(b"a", PinMode::Recursive);
        listing.sort();
        assert!(listing.contains(b"a", PinMode::Recursive) && listing.contains(b"b", PinMode::Direct));
        assert!(!listing.contains(b"a", PinMode::Direct) && !listing.contains(b"b", PinMode::Recursive));
        assert!(listing.covers(b"a", PinMode::Direct) && !listing.covers(b"b", PinMode::Recursive));
        assert!(!listing.lacks(b"a") && !listing.lacks(b"b") && listing.lacks(b"c"));
    }
}
