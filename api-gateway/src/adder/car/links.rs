//! What a block of a known codec links to. Pure; the input is hostile.

use bytes::Bytes;
use ipld_core::codec::Links as _;
use pinfold_common::ids::{Cid, cid_from_bytes};
use pinfold_common::{Error, Result};
use prost::Message as _;
use serde_ipld_dagcbor::codec::DagCborCodec;

use crate::adder::dag::{Block, DAG_CBOR, DAG_PB, RAW, UnixFs, is_identity};

/// A dag-pb node as far as links and content go; the reader of the block checks the rest.
#[derive(Clone, PartialEq, prost::Message)]
struct PbNode {
    #[prost(bytes = "bytes", optional, tag = "1")]
    data: Option<Bytes>,
    #[prost(message, repeated, tag = "2")]
    links: Vec<PbLink>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PbLink {
    #[prost(bytes = "vec", tag = "1")]
    hash: Vec<u8>,
}

/// The blocks that this one needs. A CID that holds its block is looked through instead.
pub(super) fn links(block: &Block) -> Result<Vec<Cid>> {
    let mut found = Vec::new();
    let mut inline = direct_links(&block.cid, &block.data)?;
    // An inline block is at most 128 bytes and shorter than what it is in: this ends.
    while let Some(cid) = inline.pop() {
        if is_identity(&cid) {
            inline.extend(direct_links(&cid, cid.hash().digest())?);
        } else {
            found.push(cid);
        }
    }
    Ok(found)
}

fn direct_links(cid: &Cid, data: &[u8]) -> Result<Vec<Cid>> {
    match cid.codec() {
        RAW => Ok(Vec::new()),
        DAG_PB => {
            let node = PbNode::decode(data).map_err(|error| bad_block(cid, &error.to_string()))?;
            node.links.iter().map(|link| cid_from_bytes(&link.hash).map_err(|error| error.context(cid))).collect()
        }
        DAG_CBOR => match DagCborCodec::links(data) {
            Ok(links) => Ok(links.collect()),
            Err(error) => Err(bad_block(cid, &error.to_string())),
        },
        other => Err(bad_block(cid, &format!("codec {other:#x} is not dag-pb, raw or dag-cbor"))),
    }
}

fn bad_block(cid: &Cid, reason: &str) -> Error {
    Error::invalid(format!("car: block {cid}: {reason}"))
}

/// Content bytes of a file; 0 of anything else.
pub(super) fn unixfs_size(block: &Block) -> u64 {
    match block.cid.codec() {
        RAW => block.data.len() as u64,
        DAG_PB => PbNode::decode(block.data.clone())
            .ok()
            .and_then(|node| UnixFs::decode(node.data?).ok())
            .and_then(|unixfs| unixfs.file_size)
            .unwrap_or(0),
        _ => 0,
    }
}
