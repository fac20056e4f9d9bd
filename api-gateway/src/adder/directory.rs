//! Directories: one dag-pb node with sorted links, or, above Kubo's threshold, a HAMT of nodes (hash array mapped trie,
//! fan-out 256, murmur3). Pure. Also symlinks, which are a UnixFS node without links.

use bytes::Bytes;
use pinfold_common::{Error, Result};

use super::Attributes;
use super::dag::{Block, Link, Node, UnixFs, UnixFsKind, dag_pb_block};
use super::murmur3::murmur3_x64_64;
use super::params::CidFormat;

/// Above this many bytes of names and CIDs a directory is sharded.
const SHARDING_THRESHOLD_BYTES: usize = 256 * 1024;
const FANOUT: usize = 256;
/// Multihash code of murmur3-x64-64.
const MURMUR3: u64 = 0x22;
/// A 64-bit hash has eight indices of eight bits.
const MAX_LEVELS: usize = 8;

/// The directory of `links`, which are sorted by name and have no name twice.
pub(super) fn directory(
    format: CidFormat,
    links: Vec<Link>,
    attributes: Attributes,
    blocks: &mut Vec<Block>,
) -> Result<Node> {
    debug_assert!(links.is_sorted_by(|one, next| one.name.as_bytes() < next.name.as_bytes()));
    let estimate: usize = links.iter().map(|link| link.name.len() + link.cid.encoded_len()).sum();
    if estimate <= SHARDING_THRESHOLD_BYTES {
        return Ok(close(format, &links, &UnixFs::new(UnixFsKind::Directory).with(attributes), blocks));
    }
    let mut hashed: Vec<(u64, Link)> =
        links.into_iter().map(|link| (murmur3_x64_64(link.name.as_bytes()), link)).collect();
    hashed.sort_by_key(|(hash, _)| *hash);
    shard(format, hashed, 0, attributes, blocks)
}

/// One node of the HAMT: entries that share the first `level` bytes of their hash, sorted by hash. An index that only
/// one entry has is that entry; several go one level down. Attributes are those of the node at level 0 alone.
fn shard(
    format: CidFormat,
    hashed: Vec<(u64, Link)>,
    level: usize,
    attributes: Attributes,
    blocks: &mut Vec<Block>,
) -> Result<Node> {
    if level == MAX_LEVELS {
        return Err(Error::invalid("sharded directory: two names have the same hash"));
    }
    let mut bits = [0_u8; FANOUT / 8];
    let mut links = Vec::new();
    let mut rest = hashed.into_iter().peekable();
    while let Some((hash, link)) = rest.next() {
        let index = index_at(hash, level);
        bits[FANOUT / 8 - 1 - index / 8] |= 1 << (index % 8);
        let mut same = vec![(hash, link)];
        while let Some(next) = rest.next_if(|(other, _)| index_at(*other, level) == index) {
            same.push(next);
        }
        links.push(match same.len() {
            1 => {
                let (_, link) = same.remove(0);
                Link { name: format!("{index:02X}{}", link.name), ..link }
            }
            _ => {
                let child = shard(format, same, level + 1, Attributes::default(), blocks)?;
                Link { name: format!("{index:02X}"), cid: child.cid, dag_bytes: child.dag_bytes }
            }
        });
    }
    let first_byte = bits.iter().position(|byte| *byte != 0).unwrap_or(bits.len());
    let unixfs = UnixFs {
        data: Some(Bytes::copy_from_slice(&bits[first_byte..])),
        hash_type: Some(MURMUR3),
        fanout: Some(FANOUT as u64),
        ..UnixFs::new(UnixFsKind::HamtShard)
    };
    Ok(close(format, &links, &unixfs.with(attributes), blocks))
}

/// The index of a hash at a level: its bytes from the most significant on.
fn index_at(hash: u64, level: usize) -> usize {
    usize::from(hash.to_be_bytes()[level])
}

/// Its mode is nobody's concern: that of what it leads to counts.
pub(super) fn symlink(format: CidFormat, target: &str, attributes: Attributes, blocks: &mut Vec<Block>) -> Node {
    let data = Some(Bytes::copy_from_slice(target.as_bytes()));
    let unixfs = UnixFs { data, ..UnixFs::new(UnixFsKind::Symlink) };
    close(format, &[], &unixfs.with(Attributes { mode: None, ..attributes }), blocks)
}

fn close(format: CidFormat, links: &[Link], unixfs: &UnixFs, blocks: &mut Vec<Block>) -> Node {
    let block = dag_pb_block(format, links, unixfs);
    let dag_bytes = block.data.len() as u64 + links.iter().map(|link| link.dag_bytes).sum::<u64>();
    let node = Node { cid: block.cid, content_bytes: 0, dag_bytes };
    blocks.push(block);
    node
}
