//! IPFS paths in pin and unpin requests: `/ipfs/<cid>[/…]`, `/ipns/<name>[/…]`, `/ipld/<cid>[/…]`. PURE.

use pinfold_common::ids::{MAX_PATH_BYTES, parse_cid, shorten};
use pinfold_common::{Cid, Error, Result};

/// Deeper ones are refused rather than resolved link by link (`attack:IN3`).
pub const MAX_SEGMENTS: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpfsPath {
    /// Nothing to resolve.
    Root(Cid),
    /// For the IPFS node.
    Deep(String),
}

/// A path with its leading slash; a bare CID is taken as `/ipfs/<cid>`.
pub fn parse(path: &str) -> Result<IpfsPath> {
    let invalid = |why: &str| Error::invalid(format!("error parsing path: invalid path {:?}: {why}", shorten(path)));
    let full = if path.starts_with('/') { path.to_owned() } else { format!("/ipfs/{path}") };
    // What goes to the IPFS node is bounded, not what is left away of it.
    if full.len() > MAX_PATH_BYTES {
        return Err(invalid("too long"));
    }
    let segments: Vec<&str> = full.split('/').filter(|segment| !segment.is_empty()).collect();
    if segments.len() > MAX_SEGMENTS {
        return Err(invalid("too many segments"));
    }
    if segments.iter().any(|segment| matches!(*segment, "." | "..") || segment.contains('\0')) {
        return Err(invalid("segments must not be '.' or '..' or hold a NUL"));
    }
    match segments.as_slice() {
        ["ipfs" | "ipld", root, rest @ ..] => {
            let cid = parse_cid(root).map_err(|error| {
                let why = error.message.strip_prefix("error decoding Cid: ").unwrap_or(&error.message);
                invalid(&format!("invalid cid: {why}"))
            })?;
            if rest.is_empty() && segments[0] == "ipfs" { Ok(IpfsPath::Root(cid)) } else { Ok(IpfsPath::Deep(full)) }
        }
        ["ipns", _, ..] => Ok(IpfsPath::Deep(full)),
        ["ipfs" | "ipld" | "ipns"] => Err(invalid("not enough path components")),
        _ => Err(invalid("unknown namespace")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only a bare CID is answered without the IPFS node; a root that is no CID is refused with the words of
    /// the original.
    #[test]
    fn paths() {
        assert!(matches!(parse("/ipfs/bafkqaaa").unwrap(), IpfsPath::Root(_)));
        assert!(matches!(parse("bafkqaaa").unwrap(), IpfsPath::Root(_)));
        assert_eq!(parse("/ipfs/bafkqaaa/a/b").unwrap(), IpfsPath::Deep("/ipfs/bafkqaaa/a/b".into()));
        assert_eq!(parse("/ipns/docs.ipfs.tech").unwrap(), IpfsPath::Deep("/ipns/docs.ipfs.tech".into()));
        let error = parse("/ipfs/nope/x").unwrap_err();
        assert!(
            error.message.starts_with("error parsing path: invalid path \"/ipfs/nope/x\": invalid cid: "),
            "{error}"
        );
        for bad in ["/ipfs", "/ipns/", "/other/bafkqaaa", "/ipfs/bafkqaaa/../x", "", "/ipfs/bafkqaaa/\0"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse(&format!("/ipfs/bafkqaaa{}", "/a".repeat(300))).is_err());
        // As long as the connector takes, with the prefix that is put before a bare CID, and not a byte longer.
        let name = "n".repeat(MAX_PATH_BYTES - "/ipfs/bafkqaaa/".len());
        for prefix in ["/ipfs/", ""] {
            let longest = format!("{prefix}bafkqaaa/{name}");
            assert!(matches!(parse(&longest), Ok(IpfsPath::Deep(full)) if full.len() == MAX_PATH_BYTES), "{prefix}");
            assert!(parse(&format!("{longest}n")).is_err(), "{prefix}");
        }
    }
}
