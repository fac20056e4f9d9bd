//! `Blocks`: raw blocks between siblings. Whoever receives a block checks its hash; here that is the node.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use pinfold_common::ids::cid_from_bytes;
use pinfold_proto::connector::blocks_server::Blocks;
use pinfold_proto::connector::{self, BlockReply, GetBlocks, PutBlocks, PutBlocksReply};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Rooms;
use crate::error::ConnectorError;
use crate::node::{Block, Collection, NodeError};

/// CIDs of one message.
const MAX_CIDS: usize = 256;
/// Blocks read ahead of a slow caller: at most so many times 2 MiB.
const READ_AHEAD: usize = 8;
/// Replies that wait for a slow caller.
const REPLIES: usize = 2;

pub(super) struct BlocksService(pub Arc<Rooms>);

#[tonic::async_trait]
impl Blocks for BlocksService {
    /// One message is decoded at a time and handed on block by block; the node's own pace is what the sender feels.
    async fn put(&self, request: Request<Streaming<PutBlocks>>) -> Result<Response<PutBlocksReply>, Status> {
        let messages = request.into_inner();
        let blocks = messages.flat_map(|message| {
            stream::iter(match message {
                Ok(PutBlocks { blocks }) => blocks.into_iter().map(block).collect(),
                Err(status) => vec![Err(NodeError::Other(format!("receive blocks: {}", status.message())))],
            })
        });
        let put = self.0.node.put_blocks(blocks.boxed()).await;
        self.0.trigger.hit();
        match put {
            Ok(report) => {
                metrics::counter!("cluster_blocks_put").increment(1);
                metrics::counter!("cluster_blocks_added").increment(report.blocks);
                metrics::counter!("cluster_blocks_added_size").increment(report.bytes);
                let unheld = self.0.health.current().collection == Collection::ByItself;
                Ok(Response::new(PutBlocksReply { blocks: report.blocks, bytes: report.bytes, unheld }))
            }
            Err(error) => {
                metrics::counter!("cluster_blocks_put_errors").increment(1);
                self.0.health.doubt(&error);
                Err(ConnectorError::from(error).into())
            }
        }
    }

    type GetStream = ReceiverStream<Result<BlockReply, Status>>;

    async fn get(&self, request: Request<Streaming<GetBlocks>>) -> Result<Response<Self::GetStream>, Status> {
        let mut calls = request.into_inner();
        let rooms = self.0.clone();
        let (replies, stream) = mpsc::channel(REPLIES);
        tokio::spawn(async move {
            let work = async {
                while let Some(call) = calls.message().await.transpose() {
                    if let Err(status) = serve(&rooms, call, &replies).await {
                        // Who does not listen any more needs no reason.
                        let _ = replies.send(Err(status)).await;
                        return;
                    }
                }
            };
            rooms.shutdown.race(work).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Answers one message, in the order asked.
async fn serve(
    rooms: &Rooms,
    call: Result<GetBlocks, Status>,
    replies: &mpsc::Sender<Result<BlockReply, Status>>,
) -> Result<(), Status> {
    let cids = call?.cids;
    if cids.len() > MAX_CIDS {
        return Err(ConnectorError::Invalid(format!("blocks: {} CIDs, at most {MAX_CIDS}", cids.len())).into());
    }
    let mut blocks = stream::iter(cids).map(|cid| read(rooms, cid)).buffered(READ_AHEAD);
    while let Some(block) = blocks.next().await {
        if replies.send(Ok(block?)).await.is_err() {
            return Err(Status::cancelled("the caller is gone"));
        }
    }
    Ok(())
}

async fn read(rooms: &Rooms, bytes: Vec<u8>) -> Result<BlockReply, Status> {
    let cid = cid_from_bytes(&bytes)?;
    let data = rooms.node.get_block_local(&cid).await.map_err(ConnectorError::from)?;
    Ok(BlockReply { cid: bytes, found: data.is_some(), data: data.unwrap_or_default() })
}

fn block(block: connector::Block) -> Result<Block, NodeError> {
    let cid = cid_from_bytes(&block.cid).map_err(|error| NodeError::Refused(error.to_string()))?;
    Ok(Block { cid, data: block.data })
}
