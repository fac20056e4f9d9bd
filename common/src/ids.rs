//! CIDs and peer IDs: parsed once, bytes inside, strings only in JSON and logs.

pub use cid::Cid;
pub use libp2p_identity::PeerId;

use crate::{Error, Result};

/// The longest text taken for a CID; an identity CID of 128 bytes in base32 fits well.
pub const MAX_CID_TEXT_BYTES: usize = 512;
/// The largest binary CID taken: an identity multihash of 128 bytes and its prefix.
pub const MAX_CID_BYTES: usize = 160;
/// The longest identity digest taken, as in Kubo's verifier.
pub const MAX_IDENTITY_DIGEST_BYTES: usize = 128;

/// The longest path taken: of something in an IPFS node (`/ipfs/<cid>/a/b`, `/ipns/<name>`), and of an entry in an upload.
/// Linux takes no longer one either (`PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;

const IDENTITY: u64 = 0x00;

/// A CID from text, as Go's library takes it: v0 in base58, anything in any multibase, and nothing after its end.
pub fn parse_cid(text: &str) -> Result<Cid> {
    let bad = |why: &dyn std::fmt::Display| Error::invalid(format!("error decoding Cid: {why}"));
    if text.is_empty() {
        return Err(bad(&"cid too short"));
    }
    if text.len() > MAX_CID_TEXT_BYTES {
        return Err(bad(&format!("longer than {MAX_CID_TEXT_BYTES} characters")));
    }
    if text.len() == V0_TEXT_BYTES && text.starts_with("Qm") {
        return check_cid(Cid::try_from(text).map_err(|error| bad(&error))?);
    }
    let (_, bytes) = multibase::decode(fold_case(text)).map_err(|error| bad(&error))?;
    let cid = Cid::try_from(bytes.as_slice()).map_err(|error| bad(&error))?;
    if cid.encoded_len() != bytes.len() {
        return Err(bad(&"bytes after its end"));
    }
    check_cid(cid)
}

const V0_TEXT_BYTES: usize = 46;

/// Base 16, 32 and 36 have one case, which their prefix names; Go reads either.
fn fold_case(text: &str) -> std::borrow::Cow<'_, str> {
    match text.as_bytes().first() {
        Some(b'b' | b'f' | b'k') => text.to_ascii_lowercase().into(),
        Some(b'B' | b'F' | b'K') => text.to_ascii_uppercase().into(),
        Some(_) | None => text.into(),
    }
}

/// A CID from the wire or the disk, whole: no trailing bytes.
pub fn cid_from_bytes(bytes: &[u8]) -> Result<Cid> {
    if bytes.len() > MAX_CID_BYTES {
        return Err(Error::invalid(format!("cid: longer than {MAX_CID_BYTES} bytes")));
    }
    let cid = Cid::try_from(bytes).map_err(|error| Error::invalid(format!("cid: {error}")))?;
    if cid.encoded_len() != bytes.len() {
        return Err(Error::invalid("cid: bytes after its end"));
    }
    check_cid(cid)
}

fn check_cid(cid: Cid) -> Result<Cid> {
    let digest = cid.hash().digest();
    if cid.hash().code() == IDENTITY && digest.len() > MAX_IDENTITY_DIGEST_BYTES {
        return Err(Error::invalid(format!(
            "error decoding Cid: identity digest of {} bytes, at most {MAX_IDENTITY_DIGEST_BYTES}",
            digest.len()
        )));
    }
    if cid.hash().code() != IDENTITY && digest.len() < 20 {
        return Err(Error::invalid(format!(
            "error decoding Cid: digest of {} bytes, at least 20 needed",
            digest.len()
        )));
    }
    Ok(cid)
}

/// Bytes of an optional CID: empty is none.
pub fn optional_cid(bytes: &[u8]) -> Result<Option<Cid>> {
    if bytes.is_empty() { Ok(None) } else { cid_from_bytes(bytes).map(Some) }
}

/// A peer ID from text: base58 (`12D3KooW…`, `Qm…`) or a CIDv1 with the libp2p-key codec (`k51…`, `bafz…`).
pub fn parse_peer_id(text: &str) -> Result<PeerId> {
    if let Ok(peer) = text.parse::<PeerId>() {
        return Ok(peer);
    }
    let cid = if text.len() <= MAX_CID_TEXT_BYTES { Cid::try_from(text).ok() } else { None };
    cid.filter(|cid| cid.codec() == LIBP2P_KEY)
        .and_then(|cid| PeerId::from_bytes(&cid.hash().to_bytes()).ok())
        .ok_or_else(|| Error::invalid(format!("error decoding Peer ID: {:?} is not one", shorten(text))))
}

pub fn peer_from_bytes(bytes: &[u8]) -> Result<PeerId> {
    PeerId::from_bytes(bytes).map_err(|error| Error::invalid(format!("peer ID: {error}")))
}

pub fn peers_from_bytes<B: AsRef<[u8]>>(list: &[B]) -> Result<Vec<PeerId>> {
    list.iter().map(|bytes| peer_from_bytes(bytes.as_ref())).collect()
}

pub fn peers_to_bytes<'a>(list: impl IntoIterator<Item = &'a PeerId>) -> Vec<Vec<u8>> {
    list.into_iter().map(|peer| peer.to_bytes()).collect()
}

const LIBP2P_KEY: u64 = 0x72;

/// The peer ID as a CIDv1 in base36, which fits a DNS label (protocols.md 2).
pub fn peer_id_base36(peer: &PeerId) -> String {
    let multihash = multihash::Multihash::<64>::from_bytes(&peer.to_bytes());
    match multihash {
        Ok(hash) => multibase::encode(multibase::Base::Base36Lower, Cid::new_v1(LIBP2P_KEY, hash).to_bytes()),
        Err(_) => unreachable!("a peer ID is a multihash of at most 64 bytes"),
    }
}

/// At most 64 characters of text that somebody else wrote, for messages.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6";

    /// Goal: both spellings of a peer ID are the same peer, and the DNS form fits a label.
    #[test]
    fn peer_id_in_both_spellings() {
        let peer = parse_peer_id(ED25519).unwrap();
        let label = peer_id_base36(&peer);
        assert!(label.len() <= 63, "{label}");
        assert_eq!(parse_peer_id(&label).unwrap(), peer);
        assert!(parse_peer_id("12D3KooW").is_err());
    }

    /// Goal: v0 and v1 of one block stay two CIDs, and bytes go both ways.
    #[test]
    fn cids_keep_their_version() {
        let v0 = parse_cid("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG").unwrap();
        let v1 = parse_cid("bafybeie5745rpv2m6tjyuugywy4d5ewrqgqqhfnf445he3omzpjbx5xqxe").unwrap();
        assert_ne!(v0.to_bytes(), v1.to_bytes());
        assert_eq!(cid_from_bytes(&v0.to_bytes()).unwrap(), v0);
        let mut long = v1.to_bytes();
        long.push(0);
        assert!(cid_from_bytes(&long).is_err());
        assert_eq!(parse_cid("zQmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG").unwrap(), v0);
        assert_eq!(parse_cid("bafybeie5745rpv2m6tjyuuGYWY4d5ewrqgqqhfnf445he3omzpjbx5xqxe").unwrap(), v1);
        for bad in
            ["", "Q", "b", "notacid", &"Q".repeat(10_000), &multibase::encode(multibase::Base::Base32Lower, long)]
        {
            assert!(parse_cid(bad).is_err(), "{bad}");
        }
    }
}
