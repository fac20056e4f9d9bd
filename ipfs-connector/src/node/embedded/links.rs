//! Which blocks a block links to, by its codec. A codec that is not known here is refused: a DAG of which we cannot
//! tell whether it is complete must not be called pinned.

use bytes::Bytes;
use ipld_core::codec::Links as _;
use ipld_dagpb::PbNode;
use pinfold_common::Cid;
use serde_ipld_dagcbor::codec::DagCborCodec;

use crate::node::verify::codec;
use crate::node::{NodeError, Result};

/// Whether blocks of this codec have no links, so that they need not be read to be walked.
pub fn is_leaf(cid: &Cid) -> bool {
    cid.codec() == codec::RAW
}

/// All links, in order, with repetitions.
pub fn links(cid: &Cid, data: &Bytes) -> Result<Vec<Cid>> {
    match cid.codec() {
        codec::RAW => Ok(Vec::new()),
        codec::DAG_PB => PbNode::from_bytes(data.clone())
            .map(|node| node.links.into_iter().map(|link| link.cid).collect())
            .map_err(|error| malformed(cid, "dag-pb", &error)),
        codec::DAG_CBOR => {
            DagCborCodec::links(data).map(Iterator::collect).map_err(|error| malformed(cid, "dag-cbor", &error))
        }
        codec::DAG_JSON => {
            let value = serde_json::from_slice(data).map_err(|error| malformed(cid, "dag-json", &error))?;
            let mut found = Vec::new();
            json_links(&value, &mut found).map_err(|text| malformed(cid, "dag-json", &text))?;
            Ok(found)
        }
        other => Err(unknown_codec(cid, other)),
    }
}

/// Whether `links` will know what to do with its block, before anybody fetches it.
pub fn check_codec_known(cid: &Cid) -> Result<()> {
    match cid.codec() {
        codec::RAW | codec::DAG_PB | codec::DAG_CBOR | codec::DAG_JSON => Ok(()),
        other => Err(unknown_codec(cid, other)),
    }
}

fn unknown_codec(cid: &Cid, codec: u64) -> NodeError {
    NodeError::Refused(format!("block {cid}: unknown codec 0x{codec:x}, cannot follow its links"))
}

/// A link is a map with the only key "/" and a string; bytes are `{"/": {"bytes": …}}` and no link. The parser bounds
/// the depth.
fn json_links(value: &serde_json::Value, found: &mut Vec<Cid>) -> Result<(), String> {
    match value {
        serde_json::Value::Object(map) => match map.get("/").filter(|_| map.len() == 1) {
            Some(serde_json::Value::String(text)) => {
                found.push(text.parse().map_err(|error| format!("link: {error}"))?);
                Ok(())
            }
            Some(_) | None => map.values().try_for_each(|value| json_links(value, found)),
        },
        serde_json::Value::Array(list) => list.iter().try_for_each(|value| json_links(value, found)),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => Ok(()),
    }
}

pub fn malformed(cid: &Cid, codec_name: &str, error: &dyn std::fmt::Display) -> NodeError {
    NodeError::Refused(format!("block {cid}: not valid {codec_name}: {error}"))
}

#[cfg(test)]
mod tests {
    use ipld_core::ipld;
    use ipld_dagpb::PbLink;
    use multihash_codetable::{Code, MultihashDigest as _};

    use super::*;

    fn cid(codec: u64, data: &[u8]) -> Cid {
        Cid::new_v1(codec, Code::Sha2_256.digest(data))
    }

    /// Goal: links of each codec that is walked are found, and nothing else passes for one.
    #[test]
    fn of_every_codec() {
        let leaf = cid(codec::RAW, b"leaf");
        assert_eq!(links(&leaf, &Bytes::from_static(b"leaf")).unwrap(), []);

        let link = PbLink { cid: leaf, name: Some("a".into()), size: Some(4) };
        let node = Bytes::from(PbNode { links: vec![link.clone(), link], data: None }.into_bytes());
        assert_eq!(links(&cid(codec::DAG_PB, &node), &node).unwrap(), [leaf, leaf]);

        let node = Bytes::from(serde_ipld_dagcbor::to_vec(&ipld!({"a": [1, {"b": leaf}], "c": "d"})).unwrap());
        assert_eq!(links(&cid(codec::DAG_CBOR, &node), &node).unwrap(), [leaf]);

        let node = Bytes::from(format!("{{\"a\":[{{\"/\":\"{leaf}\"}}],\"b\":{{\"/\":{{\"bytes\":\"AA\"}}}}}}"));
        assert_eq!(links(&cid(codec::DAG_JSON, &node), &node).unwrap(), [leaf]);

        for (codec, name) in [(codec::DAG_PB, "dag-pb"), (codec::DAG_CBOR, "dag-cbor"), (codec::DAG_JSON, "dag-json")] {
            let error = links(&cid(codec, b"x"), &Bytes::from_static(b"\xff\xffx")).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        let error = links(&cid(0x78, b""), &Bytes::new()).unwrap_err();
        assert!(error.to_string().contains("unknown codec 0x78"), "{error}");
    }

    /// Goal: a block that is nothing but opening brackets is refused, not followed down the stack.
    #[test]
    fn depth_is_bounded() {
        let cbor = Bytes::from(vec![0x81; 1024 * 1024]);
        assert!(links(&cid(codec::DAG_CBOR, &cbor), &cbor).is_err());
        let json = Bytes::from(vec![b'['; 1024 * 1024]);
        assert!(links(&cid(codec::DAG_JSON, &json), &json).is_err());
    }
}
