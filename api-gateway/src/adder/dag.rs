//! Blocks and their encoding: dag-pb nodes in canonical form (links before data, as the format demands although its
//! field numbers say otherwise), the UnixFS message inside them, and how a block gets its CID. Pure.

use bytes::{Bytes, BytesMut};
use multihash_codetable::MultihashDigest as _;
use pinfold_common::Cid;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::Attributes;
use super::params::CidFormat;

pub(super) const RAW: u64 = 0x55;
pub(super) const DAG_PB: u64 = 0x70;
pub(super) const DAG_CBOR: u64 = 0x71;

/// Multihash code of identity: the CID holds the block.
const IDENTITY: u64 = 0x00;

pub(super) fn is_identity(cid: &Cid) -> bool {
    cid.hash().code() == IDENTITY
}

/// The largest block that travels (connector/blocks.proto).
pub(super) const MAX_BLOCK_BYTES: usize = 2 * 1024 * 1024;

/// A block that is what its CID says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub cid: Cid,
    pub data: Bytes,
}

/// A finished part of a DAG, as its parent has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub cid: Cid,
    /// Of the file's content below it; 0 for directories and symlinks.
    pub content_bytes: u64,
    /// Of all blocks below it and itself, each as often as it is linked.
    pub dag_bytes: u64,
}

/// A named link; in files the name is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub name: String,
    pub cid: Cid,
    pub dag_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnixFsKind {
    Raw,
    Directory,
    File,
    Symlink,
    HamtShard,
}

impl UnixFsKind {
    const fn number(self) -> i32 {
        match self {
            UnixFsKind::Raw => 0,
            UnixFsKind::Directory => 1,
            UnixFsKind::File => 2,
            UnixFsKind::Symlink => 4,
            UnixFsKind::HamtShard => 5,
        }
    }
}

/// The UnixFS `Data` message. Absent and empty differ in the bytes and so in the CID: hence the options.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UnixFs {
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub data: Option<Bytes>,
    #[prost(uint64, optional, tag = "3")]
    pub file_size: Option<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub block_sizes: Vec<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub hash_type: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub fanout: Option<u64>,
    /// Permissions as Unix has them: 0o7777 at most.
    #[prost(uint32, optional, tag = "7")]
    pub mode: Option<u32>,
    #[prost(message, optional, tag = "8")]
    pub mtime: Option<UnixTime>,
}

/// A time in UnixFS: nanoseconds are left out when there are none.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UnixTime {
    #[prost(int64, required, tag = "1")]
    pub seconds: i64,
    #[prost(fixed32, optional, tag = "2")]
    pub nanoseconds: Option<u32>,
}

impl UnixFs {
    pub fn new(kind: UnixFsKind) -> UnixFs {
        UnixFs { kind: kind.number(), ..UnixFs::default() }
    }

    pub fn with(self, attributes: Attributes) -> UnixFs {
        let mtime = attributes.mtime.map(|time| UnixTime {
            seconds: time.seconds,
            nanoseconds: Some(time.nanoseconds).filter(|nanoseconds| *nanoseconds > 0),
        });
        UnixFs { mode: attributes.mode, mtime, ..self }
    }
}

const NODE_DATA: u32 = 1;
const NODE_LINKS: u32 = 2;
const LINK_HASH: u32 = 1;
const LINK_NAME: u32 = 2;
const LINK_TSIZE: u32 = 3;

/// One dag-pb block. The links are written in the order given: files keep it, directories come sorted.
pub(super) fn dag_pb_block(format: CidFormat, links: &[Link], unixfs: &UnixFs) -> Block {
    let encoded_cids: Vec<Vec<u8>> = links.iter().map(|link| link.cid.to_bytes()).collect();
    let link_lens: Vec<usize> =
        links.iter().zip(&encoded_cids).map(|(link, encoded_cid)| encoded_link_len(link, encoded_cid)).collect();
    let data_len = unixfs.encoded_len();
    let links_len: usize = link_lens.iter().map(|len| field_len(NODE_LINKS, *len)).sum();
    let node_len = links_len + field_len(NODE_DATA, data_len);

    let mut buffer = BytesMut::with_capacity(node_len);
    for ((link, encoded_cid), len) in links.iter().zip(&encoded_cids).zip(&link_lens) {
        begin_field(NODE_LINKS, *len, &mut buffer);
        put_field(LINK_HASH, encoded_cid, &mut buffer);
        put_field(LINK_NAME, link.name.as_bytes(), &mut buffer);
        encode_key(LINK_TSIZE, WireType::Varint, &mut buffer);
        encode_varint(link.dag_bytes, &mut buffer);
    }
    begin_field(NODE_DATA, data_len, &mut buffer);
    unixfs.encode_raw(&mut buffer);
    assert_eq!(buffer.len(), node_len, "the length of a node was counted wrongly");
    block(format, DAG_PB, buffer.freeze())
}

/// A block with the data as they are. Its CID is version 1 always: version 0 knows dag-pb only.
pub(super) fn raw_block(format: CidFormat, data: Bytes) -> Block {
    block(CidFormat { version: cid::Version::V1, ..format }, RAW, data)
}

fn block(format: CidFormat, codec: u64, data: Bytes) -> Block {
    let hash = format.hash.digest(&data);
    let cid = match format.version {
        cid::Version::V0 => match Cid::new_v0(hash) {
            Ok(cid) => cid,
            Err(_) => unreachable!("a format of version 0 has sha2-256"),
        },
        cid::Version::V1 => Cid::new_v1(codec, hash),
    };
    Block { cid, data }
}

fn encoded_link_len(link: &Link, encoded_cid: &[u8]) -> usize {
    field_len(LINK_HASH, encoded_cid.len())
        + field_len(LINK_NAME, link.name.len())
        + key_len(LINK_TSIZE)
        + encoded_len_varint(link.dag_bytes)
}

fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

fn begin_field(tag: u32, len: usize, buffer: &mut BytesMut) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(len as u64, buffer);
}

fn put_field(tag: u32, bytes: &[u8], buffer: &mut BytesMut) {
    begin_field(tag, bytes.len(), buffer);
    buffer.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adder::AddParams;

    /// Goal: the two best known blocks of IPFS have their well-known CIDs.
    #[test]
    fn empty_file_and_empty_directory() {
        let format = AddParams::default().cid_format().unwrap();
        let empty_file = UnixFs { file_size: Some(0), ..UnixFs::new(UnixFsKind::File) };
        assert_eq!(
            dag_pb_block(format, &[], &empty_file).cid.to_string(),
            "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"
        );
        assert_eq!(
            dag_pb_block(format, &[], &UnixFs::new(UnixFsKind::Directory)).cid.to_string(),
            "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
        );
    }
}
