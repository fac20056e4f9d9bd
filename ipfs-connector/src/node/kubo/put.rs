//! Blocks into Kubo: one `dag/import` of a CAR without roots, so that blocks of all codecs and hashes keep their CIDs
//! (`block/put` gives all blocks of a request those of the first, beh:B13.13). The CAR is written as blocks arrive.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use reqwest::{Body, multipart};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use super::rpc::{Call, Rpc};
use crate::node::verify::{check_bounds, inline_data};
use crate::node::{Block, Blocks, NodeError, PutReport, Result};

/// The CARv1 header `{roots: [], version: 1}` in DAG-CBOR, with its length in front.
const CAR_HEADER: &[u8] = b"\x11\xa2\x65roots\x80\x67version\x01";

/// What the upload waits for, and what became of it.
struct Upload {
    report: PutReport,
    /// Why the source of the blocks ended it.
    failed: Option<NodeError>,
    waiting: Waiting,
}

#[derive(Clone, Copy)]
enum Waiting {
    ForBlocks,
    ForKubo { since: Instant },
}

/// Sends all blocks; at the end Kubo has them on its disk (as durable as its datastore is configured to be). Fails
/// with `Timeout` when Kubo takes nothing for `patience` while there is something to take.
pub async fn put(rpc: &Rpc, blocks: Blocks, patience: Duration) -> Result<PutReport> {
    let mut blocks = bounded(blocks);
    let Some(first) = blocks.next().await else { return Ok(PutReport::default()) };
    let first = first?;
    let upload = Arc::new(Mutex::new(Upload {
        report: PutReport::default(),
        failed: None,
        waiting: Waiting::ForKubo { since: Instant::now() },
    }));
    let blocks = stream::once(async { Ok(first) }).chain(blocks).boxed();
    let form = multipart::Form::new()
        .part("file", multipart::Part::stream(Body::wrap_stream(car(blocks, upload.clone()))).file_name("blocks.car"));
    let call = Call::new("dag/import")
        .option("pin-roots", false)
        .option("allow-big-block", true)
        .option("silent", true)
        .option("stats", true);
    let answered = tokio::select! {
        answered = import(rpc, call, form) => answered,
        () = Box::pin(watch(&upload, patience)) => {
            Err(NodeError::Timeout(format!("ipfs node: dag/import: nothing taken for {patience:?}")))
        }
    };
    let upload = upload.lock();
    if let Some(error) = &upload.failed {
        return Err(error.clone());
    }
    match answered? {
        Some(count) if count != upload.report.blocks => Err(NodeError::Other(format!(
            "ipfs node: dag/import: took {count} blocks of the {} sent",
            upload.report.blocks
        ))),
        Some(_) | None => Ok(upload.report),
    }
}

/// Blocks that Kubo takes if they are what they say, which it finds out itself: `dag/import` computes the hash of each
/// ("mismatch in content integrity"). Those inside their own CID need not be stored.
fn bounded(blocks: Blocks) -> stream::BoxStream<'static, Result<Block>> {
    blocks
        .map(|block| block.and_then(|block| check_bounds(&block.cid, &block.data).map(|()| block)))
        .filter(|block| {
            let stored = match block {
                Ok(block) => inline_data(&block.cid).is_none(),
                Err(_) => true,
            };
            std::future::ready(stored)
        })
        .boxed()
}

#[derive(Deserialize)]
struct ImportLine {
    #[serde(rename = "Stats")]
    stats: Option<Stats>,
}

#[derive(Deserialize)]
struct Stats {
    #[serde(rename = "BlockCount")]
    block_count: u64,
}

/// The number of blocks Kubo says it took; `None` when it says nothing.
async fn import(rpc: &Rpc, call: Call, form: multipart::Form) -> Result<Option<u64>> {
    let mut lines = rpc.upload(call, form).await?;
    let mut count = None;
    while let Some(line) = lines.next::<ImportLine>().await? {
        count = line.stats.map(|stats| stats.block_count).or(count);
    }
    Ok(count)
}

/// Resolves when Kubo has taken nothing for `patience`.
async fn watch(upload: &Mutex<Upload>, patience: Duration) {
    loop {
        let waiting = upload.lock().waiting;
        let look_again = match waiting {
            Waiting::ForBlocks => Instant::now() + patience,
            Waiting::ForKubo { since } if since.elapsed() >= patience => return,
            Waiting::ForKubo { since } => since + patience,
        };
        sleep_until(look_again).await;
    }
}

type CarChunk = Result<Bytes, std::io::Error>;

/// The bytes of the CAR. A failing source breaks the request off, so that Kubo does not take it for complete.
fn car(
    blocks: stream::BoxStream<'static, Result<Block>>,
    upload: Arc<Mutex<Upload>>,
) -> impl futures::Stream<Item = CarChunk> + Send + 'static {
    let header = stream::once(async { Ok(Bytes::from_static(CAR_HEADER)) });
    let sections = stream::unfold((blocks, upload), |(mut blocks, upload)| async move {
        upload.lock().waiting = Waiting::ForBlocks;
        let next = blocks.next().await;
        let mut state = upload.lock();
        state.waiting = Waiting::ForKubo { since: Instant::now() };
        let chunks: Vec<CarChunk> = match next? {
            Ok(block) => {
                state.report.blocks += 1;
                state.report.bytes += block.data.len() as u64;
                vec![Ok(section_head(&block)), Ok(block.data)]
            }
            Err(error) => {
                let broken = std::io::Error::other(error.to_string());
                state.failed = Some(error);
                vec![Err(broken)]
            }
        };
        drop(state);
        Some((stream::iter(chunks), (blocks, upload)))
    });
    header.chain(sections.flatten())
}

/// Length and CID; the data follows.
fn section_head(block: &Block) -> Bytes {
    let cid = block.cid.to_bytes();
    let mut head = BytesMut::with_capacity(cid.len() + 10);
    let mut rest = (cid.len() + block.data.len()) as u64;
    while rest >= 0x80 {
        head.put_u8((rest as u8) | 0x80);
        rest >>= 7;
    }
    head.put_u8(rest as u8);
    head.extend_from_slice(&cid);
    head.freeze()
}
