//! Blocks on their way to all destinations at once (beh:B19.3). Each destination has its own bounded queue and its own
//! fate: one that fails, or takes nothing for too long, is given up and named; the upload goes on while one is left.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pinfold_common::{Cid, Code, Error, PeerId, Result};
use pinfold_proto::connector;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::cluster::Cluster;
use super::dag::Block;

/// A batch is sent when it holds this much; with its last block it stays under the 4 MiB of connector/blocks.proto. As large as
/// a block usually is: a message of several is copied as it grows.
pub(super) const BATCH_BYTES: usize = 256 * 1024;
/// Or this many blocks, when they are small.
const BATCH_BLOCKS: usize = 4096;
/// Batches that wait for one destination: what the fast ones can be ahead of the slow ones, beside the transport's buffers.
pub(super) const QUEUE_BATCHES: usize = 16;
/// From the last block sent to the answer that all are on disk.
const FINISH_DEADLINE: Duration = Duration::from_secs(120);

/// Dropping it ends the streams. A connector cannot tell that from a whole upload, and need not: what it got is pinned by
/// nobody, and goes when its hold is over.
pub(super) struct Sink {
    destinations: Vec<Destination>,
    failed: Vec<(PeerId, Error)>,
    batch: Vec<connector::Block>,
    batch_bytes: usize,
    /// Files with long equal stretches repeat their leaf: the last two CIDs are not sent again (beh:B19.3).
    last: [Option<Cid>; 2],
    sent_blocks: u64,
    /// A destination whose queue stays full for this long is given up.
    stall_deadline: Duration,
}

/// What became of an upload's blocks.
pub(super) struct Stored {
    /// Who does not have them all, and why.
    pub failed: Vec<(PeerId, Error)>,
    /// Who has them on a node that removes blocks by itself.
    pub unheld: Vec<PeerId>,
}

struct Destination {
    peer: PeerId,
    queue: mpsc::Sender<connector::PutBlocks>,
    stream: AbortOnDropHandle<Result<connector::PutBlocksReply>>,
}

impl Sink {
    pub fn open(cluster: &Arc<dyn Cluster>, peers: &[PeerId], stall_deadline: Duration) -> Sink {
        let destinations = peers.iter().map(|peer| Destination::open(Arc::clone(cluster), *peer)).collect();
        Sink {
            destinations,
            failed: Vec::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            last: [None, None],
            sent_blocks: 0,
            stall_deadline,
        }
    }

    pub async fn put(&mut self, block: Block) -> Result<()> {
        if self.last.contains(&Some(block.cid)) {
            return Ok(());
        }
        self.last = [Some(block.cid), self.last[0]];
        self.batch_bytes += block.data.len();
        self.batch.push(connector::Block { cid: block.cid.to_bytes(), data: block.data });
        if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_BLOCKS {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        let blocks = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        if blocks.is_empty() {
            return Ok(());
        }
        self.sent_blocks += blocks.len() as u64;
        let sending = std::mem::take(&mut self.destinations)
            .into_iter()
            .map(|destination| destination.send(connector::PutBlocks { blocks: blocks.clone() }, self.stall_deadline));
        for outcome in join_all(sending).await {
            match outcome {
                Ok(destination) => self.destinations.push(destination),
                Err((peer, error)) => self.give_up(peer, error),
            }
        }
        self.check_one_left()
    }

    /// Sends what is left and waits for all answers. At least one peer has everything then.
    pub async fn finish(mut self) -> Result<Stored> {
        self.flush().await?;
        let sent_blocks = self.sent_blocks;
        let finishing =
            std::mem::take(&mut self.destinations).into_iter().map(|destination| destination.finish(sent_blocks));
        let (mut succeeded, mut unheld) = (0_usize, Vec::new());
        for outcome in join_all(finishing).await {
            match outcome {
                Ok((peer, reply)) => {
                    succeeded += 1;
                    unheld.extend(reply.unheld.then_some(peer));
                }
                Err((peer, error)) => self.give_up(peer, error),
            }
        }
        if succeeded == 0 { Err(self.all_failed()) } else { Ok(Stored { failed: self.failed, unheld }) }
    }

    fn give_up(&mut self, peer: PeerId, error: Error) {
        tracing::warn!(%peer, %error, "a destination of an upload failed");
        self.failed.push((peer, error));
    }

    fn check_one_left(&self) -> Result<()> {
        if self.destinations.is_empty() { Err(self.all_failed()) } else { Ok(()) }
    }

    /// The original's text, with the reasons behind it.
    fn all_failed(&self) -> Error {
        reasons(&self.failed).context("failed to put block on all destinations")
    }
}

/// Why destinations failed, in one error. The code is theirs when they agree, so that a full disk is told.
pub(super) fn reasons(failed: &[(PeerId, Error)]) -> Error {
    let first = failed.first().map(|(_, error)| error.code);
    let code = first.filter(|code| failed.iter().all(|(_, error)| error.code == *code));
    let reasons: Vec<String> = failed.iter().map(|(peer, error)| format!("{peer}: {error}")).collect();
    Error::new(code.unwrap_or(Code::Unavailable), reasons.join("; "))
}

impl Destination {
    fn open(cluster: Arc<dyn Cluster>, peer: PeerId) -> Destination {
        let (queue, batches) = mpsc::channel(QUEUE_BATCHES);
        let stream = AbortOnDropHandle::new(tokio::spawn(async move { cluster.put(peer, batches).await }));
        Destination { peer, queue, stream }
    }

    async fn send(self, batch: connector::PutBlocks, deadline: Duration) -> Result<Destination, (PeerId, Error)> {
        match self.queue.send_timeout(batch, deadline).await {
            Ok(()) => Ok(self),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                Err((self.peer, Error::unavailable(format!("put blocks: nothing was taken for {deadline:?}"))))
            }
            Err(mpsc::error::SendTimeoutError::Closed(_)) => match answer(self.stream).await {
                Ok(_) => Err((self.peer, Error::internal("put blocks: answered before the last block"))),
                Err(error) => Err((self.peer, error)),
            },
        }
    }

    async fn finish(self, sent_blocks: u64) -> Result<(PeerId, connector::PutBlocksReply), (PeerId, Error)> {
        drop(self.queue);
        match answer(self.stream).await {
            Ok(reply) if reply.blocks == sent_blocks => Ok((self.peer, reply)),
            Ok(reply) => {
                let taken = reply.blocks;
                Err((self.peer, Error::internal(format!("put blocks: {taken} of {sent_blocks} blocks were taken"))))
            }
            Err(error) => Err((self.peer, error)),
        }
    }
}

async fn answer(stream: AbortOnDropHandle<Result<connector::PutBlocksReply>>) -> Result<connector::PutBlocksReply> {
    match tokio::time::timeout(FINISH_DEADLINE, stream).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(failure)) => Err(Error::internal(format!("put blocks: {failure}"))),
        Err(_) => {
            let waited = FINISH_DEADLINE.as_secs();
            Err(Error::outcome_unknown(format!("put blocks: no answer within {waited}s")))
        }
    }
}
