//! Content of tests: bytes that are the same on every run, CIDs that need no network, and a file read back from the
//! blocks that one peer holds.

use cid::Cid;
use futures::StreamExt as _;
use multihash::Multihash;
use pinfold_proto::connector::{GetBlocks, blocks_client::BlocksClient};
use prost::Message;
use tonic::transport::Channel;

const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;
const IDENTITY: u64 = 0x00;

/// Bytes that look random and are the same for the same seed (SplitMix64).
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out.truncate(length);
    out
}

/// A CID whose content is inside it, so that every node has it at once.
pub fn identity_cid(text: &str) -> Cid {
    Cid::new_v1(RAW, Multihash::wrap(IDENTITY, text.as_bytes()).expect("at most 64 bytes"))
}

/// The part of a UnixFS node that holds bytes.
#[derive(Clone, PartialEq, Message)]
struct UnixFs {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", optional, tag = "2")]
    data: Option<Vec<u8>>,
}

/// Reads a whole UnixFS file from what one peer's node holds; an error names the block that is missing.
pub async fn read_file(blocks: &mut BlocksClient<Channel>, root: &Cid) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut todo = vec![*root];
    while let Some(cid) = todo.pop() {
        let block = get_block(blocks, &cid).await?;
        match cid.codec() {
            RAW => out.extend_from_slice(&block),
            DAG_PB => {
                let node = ipld_dagpb::PbNode::from_bytes(block.into()).map_err(|error| format!("{cid}: {error}"))?;
                out.extend_from_slice(&data_of(&node)?);
                let links: Vec<Cid> = node.links.iter().map(|link| link.cid).collect();
                todo.extend(links.into_iter().rev());
            }
            codec => return Err(format!("{cid}: codec {codec:#x}")),
        }
    }
    Ok(out)
}

fn data_of(node: &ipld_dagpb::PbNode) -> Result<Vec<u8>, String> {
    let data = node.data.as_ref().ok_or("a node without UnixFS data")?;
    let unixfs = UnixFs::decode(data.as_ref()).map_err(|error| error.to_string())?;
    Ok(unixfs.data.unwrap_or_default())
}

pub async fn get_block(blocks: &mut BlocksClient<Channel>, cid: &Cid) -> Result<Vec<u8>, String> {
    let asked = futures::stream::iter([GetBlocks { cids: vec![cid.to_bytes()] }]);
    let replies = blocks.get(asked).await.map_err(|status| status.to_string())?.into_inner();
    let mut replies = Box::pin(replies);
    match replies.next().await {
        Some(Ok(reply)) if reply.found => Ok(reply.data.to_vec()),
        Some(Ok(_)) => Err(format!("{cid} is not there")),
        Some(Err(status)) => Err(status.to_string()),
        None => Err(format!("{cid}: no answer")),
    }
}
