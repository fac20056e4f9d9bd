//! A block is what its CID says, or it is nothing: the one place where data meets its hash.

use bytes::Bytes;
use multihash_codetable::{Code, MultihashDigest};
use pinfold_common::Cid;

use super::{Block, MAX_BLOCK_BYTES, NodeError, Result};

/// Multicodec codes that are used here.
pub mod codec {
    pub const RAW: u64 = 0x55;
    pub const DAG_PB: u64 = 0x70;
    pub const DAG_CBOR: u64 = 0x71;
    pub const DAG_JSON: u64 = 0x0129;
    pub const LIBP2P_KEY: u64 = 0x72;
}

const IDENTITY: u64 = 0x00;
/// The shortest digest that is taken, as in Kubo's verifier.
const MIN_DIGEST_BYTES: usize = 20;

/// A block whose data has been checked against its CID, and whose size is within bounds. There is no other way to
/// make one, and only such blocks get to disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified(Block);

impl Verified {
    pub fn check(cid: Cid, data: Bytes) -> Result<Verified> {
        check_bounds(&cid, &data)?;
        if is_of(&cid, &data) {
            Ok(Verified(Block { cid, data }))
        } else {
            Err(NodeError::Refused(format!("block {cid}: its data has another hash")))
        }
    }

    pub fn cid(&self) -> &Cid {
        &self.0.cid
    }

    pub fn data(&self) -> &Bytes {
        &self.0.data
    }

    pub fn into_data(self) -> Bytes {
        self.0.data
    }
}

/// What can be said without computing a hash: for a node that computes it itself.
pub fn check_bounds(cid: &Cid, data: &[u8]) -> Result<()> {
    check_hash_known(cid)?;
    if data.len() > MAX_BLOCK_BYTES {
        return Err(NodeError::Refused(format!(
            "block {cid}: {} bytes, at most {MAX_BLOCK_BYTES} are taken",
            data.len()
        )));
    }
    Ok(())
}

/// The data inside an identity CID, which needs no block anywhere.
pub fn inline_data(cid: &Cid) -> Option<&[u8]> {
    (cid.hash().code() == IDENTITY).then(|| cid.hash().digest())
}

/// Refuses a hash that nobody here can compute, or a digest cut so short that it proves nothing.
pub fn check_hash_known(cid: &Cid) -> Result<()> {
    let hash = cid.hash();
    if hash.code() == IDENTITY {
        return Ok(());
    }
    if Code::try_from(hash.code()).is_err() {
        return Err(NodeError::Refused(format!("block {cid}: unknown hash function 0x{:x}", hash.code())));
    }
    if usize::from(hash.size()) < MIN_DIGEST_BYTES {
        return Err(NodeError::Refused(format!(
            "block {cid}: digest of {} bytes, at least {MIN_DIGEST_BYTES} needed",
            hash.size()
        )));
    }
    Ok(())
}

/// Digests may be cut short (`mhlen`), so only as much is compared as the CID holds.
fn is_of(cid: &Cid, data: &[u8]) -> bool {
    let hash = cid.hash();
    if hash.code() == IDENTITY {
        return hash.digest() == data;
    }
    match Code::try_from(hash.code()) {
        Ok(code) => {
            let computed = code.digest(data);
            computed.digest().get(..hash.digest().len()) == Some(hash.digest())
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use multihash::Multihash;

    use super::*;

    /// Goal: every hash of the table is checked, whole or cut short; wrong data, unknown hashes and short digests
    /// are refused.
    #[test]
    fn only_what_the_hash_says() {
        let data = Bytes::from_static(b"block");
        let hashes = [
            Code::Sha2_256,
            Code::Sha2_512,
            Code::Sha3_256,
            Code::Keccak256,
            Code::Blake2b256,
            Code::Blake2s256,
            Code::Blake3_256,
        ];
        for code in hashes {
            let cid = Cid::new_v1(codec::RAW, code.digest(&data));
            assert!(Verified::check(cid, data.clone()).is_ok(), "{code:?}");
            assert!(matches!(Verified::check(cid, Bytes::from_static(b"other")), Err(NodeError::Refused(_))));
        }
        let whole = Code::Sha2_512.digest(&data);
        let cut = Multihash::<64>::wrap(whole.code(), &whole.digest()[..20]).unwrap();
        assert!(Verified::check(Cid::new_v1(codec::RAW, cut), data.clone()).is_ok());
        let too_short = Multihash::<64>::wrap(whole.code(), &whole.digest()[..4]).unwrap();
        assert!(Verified::check(Cid::new_v1(codec::RAW, too_short), data.clone()).is_err());
        let unknown = Multihash::<64>::wrap(0x7012, &whole.digest()[..32]).unwrap();
        let error = Verified::check(Cid::new_v1(codec::RAW, unknown), data.clone()).unwrap_err();
        assert!(error.to_string().contains("unknown hash function 0x7012"), "{error}");
        let inline = Cid::new_v1(codec::RAW, Multihash::wrap(IDENTITY, &data).unwrap());
        assert!(Verified::check(inline, data.clone()).is_ok());
        assert_eq!(inline_data(&inline), Some(data.as_ref()));
    }

    /// Goal: a block above the limit is refused before anybody hashes it.
    #[test]
    fn too_large() {
        let data = Bytes::from(vec![0; MAX_BLOCK_BYTES + 1]);
        let cid = Cid::new_v1(codec::RAW, Code::Sha2_256.digest(b""));
        assert!(Verified::check(cid, data).unwrap_err().to_string().contains("at most"));
    }
}
