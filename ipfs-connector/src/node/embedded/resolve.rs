//! From a path to a CID, through UnixFS directories (also sharded ones) and DAG-CBOR maps and lists. Blocks on the way
//! that are not here are fetched and not kept.

use std::time::Duration;

use bytes::Bytes;
use ipld_core::ipld::Ipld;
use ipld_dagpb::{PbLink, PbNode};
use prost::Message;

use pinfold_common::Cid;
use pinfold_common::ids::{parse_cid, shorten};

use super::Inner;
use super::links::malformed;
use crate::node::verify::codec;
use crate::node::{NodeError, Result};

/// For each block on the way.
const BLOCK_DEADLINE: Duration = Duration::from_secs(30);
/// Blocks of one sharded directory that are looked through for one name.
const MAX_SHARD_BLOCKS: usize = 10_000;
const MAX_SEGMENTS: usize = 256;

/// As much of UnixFS as names need.
#[derive(Clone, PartialEq, Message)]
struct UnixFs {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(uint64, optional, tag = "6")]
    fanout: Option<u64>,
}

const DIRECTORY: i32 = 1;
const HAMT_SHARD: i32 = 5;

pub async fn resolve(inner: &Inner, path: &str) -> Result<Cid> {
    let shown = shorten(path);
    let rest = match path.strip_prefix('/') {
        None => path,
        Some(rest) if rest.starts_with("ipns/") => {
            return Err(NodeError::Refused(format!("resolve {shown}: the embedded node cannot resolve /ipns names")));
        }
        Some(rest) => rest
            .strip_prefix("ipfs/")
            .or_else(|| rest.strip_prefix("ipld/"))
            .ok_or_else(|| NodeError::Refused(format!("resolve {shown}: not an /ipfs path")))?,
    };
    let mut segments = rest.split('/').filter(|segment| !segment.is_empty());
    let root = segments.next().unwrap_or_default();
    let mut cid = parse_cid(root).map_err(|error| NodeError::Refused(format!("resolve {shown}: {error}")))?;
    let segments: Vec<&str> = segments.collect();
    if segments.len() > MAX_SEGMENTS {
        return Err(NodeError::Refused(format!("resolve {shown}: more than {MAX_SEGMENTS} segments")));
    }
    let mut rest = segments.as_slice();
    while !rest.is_empty() {
        let data = inner.read(&cid, BLOCK_DEADLINE).await?;
        (cid, rest) = match cid.codec() {
            codec::DAG_PB => (named(inner, &cid, data, rest[0]).await?, &rest[1..]),
            codec::DAG_CBOR => inside_cbor(&cid, &data, rest)?,
            other => {
                return Err(NodeError::NotFound(format!(
                    "resolve {shown}: {cid} has codec 0x{other:x} and nothing inside to name"
                )));
            }
        };
    }
    Ok(cid)
}

fn no_link(cid: &Cid, name: &str) -> NodeError {
    NodeError::NotFound(format!("no link named {:?} under {cid}", shorten(name)))
}

async fn named(inner: &Inner, cid: &Cid, data: Bytes, name: &str) -> Result<Cid> {
    let node = PbNode::from_bytes(data).map_err(|error| malformed(cid, "dag-pb", &error))?;
    let unixfs = node.data.clone().and_then(|data| UnixFs::decode(data).ok());
    match unixfs {
        Some(UnixFs { kind: HAMT_SHARD, fanout }) => in_shards(inner, cid, node.links, fanout, name).await,
        Some(UnixFs { kind: DIRECTORY, .. }) | None => node
            .links
            .into_iter()
            .find(|link| link.name.as_deref() == Some(name))
            .map(|link| link.cid)
            .ok_or_else(|| no_link(cid, name)),
        Some(UnixFs { kind, .. }) => {
            Err(NodeError::NotFound(format!("no link named {:?}: {cid} is of UnixFS type {kind}", shorten(name))))
        }
    }
}

/// A link of a sharded directory begins with its place in two hex digits (for a fan-out of 256); with nothing behind
/// it, it leads to another shard. All shards are looked through rather than only the right one: the hash that tells
/// which (murmur3) is needed nowhere else here.
async fn in_shards(inner: &Inner, root: &Cid, links: Vec<PbLink>, fanout: Option<u64>, name: &str) -> Result<Cid> {
    let digits = match fanout {
        Some(fanout @ 2..=1024) => format!("{:X}", fanout - 1).len(),
        other => return Err(malformed(root, "sharded directory", &format!("fan-out {other:?}"))),
    };
    let mut pending = links;
    let mut read = 0;
    while let Some(link) = pending.pop() {
        let Some(entry) = link.name.as_deref().and_then(|text| text.get(digits..)) else { continue };
        if entry == name {
            return Ok(link.cid);
        }
        if !entry.is_empty() {
            continue;
        }
        read += 1;
        if read > MAX_SHARD_BLOCKS {
            return Err(NodeError::Refused(format!("directory {root}: more than {MAX_SHARD_BLOCKS} shards")));
        }
        let data = inner.read(&link.cid, BLOCK_DEADLINE).await?;
        let shard = PbNode::from_bytes(data).map_err(|error| malformed(&link.cid, "dag-pb", &error))?;
        pending.extend(shard.links);
    }
    Err(no_link(root, name))
}

/// Goes inside one block up to the first link, and answers what of the path is left there.
fn inside_cbor<'a, 'b>(cid: &Cid, data: &[u8], segments: &'a [&'b str]) -> Result<(Cid, &'a [&'b str])> {
    let mut value: Ipld = serde_ipld_dagcbor::from_slice(data).map_err(|error| malformed(cid, "dag-cbor", &error))?;
    for (at, segment) in segments.iter().enumerate() {
        let inner = match value {
            Ipld::Map(mut map) => map.remove(*segment),
            Ipld::List(mut list) => {
                segment.parse::<usize>().ok().filter(|at| *at < list.len()).map(|at| list.swap_remove(at))
            }
            Ipld::Link(_)
            | Ipld::Null
            | Ipld::Bool(_)
            | Ipld::Integer(_)
            | Ipld::Float(_)
            | Ipld::String(_)
            | Ipld::Bytes(_) => None,
        };
        value = inner.ok_or_else(|| no_link(cid, segment))?;
        if let Ipld::Link(next) = value {
            return Ok((next, &segments[at + 1..]));
        }
    }
    Err(NodeError::NotFound(format!("the path ends inside block {cid}, not at a CID")))
}
