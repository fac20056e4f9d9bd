//! The whole state to a peer that the log can't help any more: a copy of the file, in pieces, with its SHA-256.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use openraft::errors::{NetworkError, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use pinfold_common::Error;
use pinfold_common::channel::{call, explain};
use pinfold_proto::consensus as wire;
use pinfold_proto::consensus::raft_client::RaftClient;
use pinfold_proto::consensus::snapshot_chunk::Part;
use pinfold_proto::storage;
use ring::digest::{Context as Digest, SHA256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::Context;
use crate::raft::machine::{LiveState, MachineSnapshot, SnapshotData};
use crate::raft::types::{Types, Vote, vote_from_proto, vote_to_proto, vote_to_store};
use crate::store::{Copy, LogId, Meta};

pub const CHUNK_BYTES: usize = 256 << 10;
/// Pieces that are read before they are taken.
const CHUNKS_AHEAD: usize = 8;
/// A copy above this takes seconds to send, and writes go on that share processor, disk and link with it: a piece takes
/// [`PACE`] at least then, which is 160 MiB a second, more than a link of a gigabit carries.
const LARGE_BYTES: u64 = 512 << 20;
const PACE: Duration = Duration::from_micros(1_400);

/// Copies, sends, and waits until the other side has it installed.
pub async fn send(
    context: &Arc<Context>,
    target: u64,
    client: Result<RaftClient<Channel>, Error>,
    vote: Vote,
    snapshot: MachineSnapshot,
) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
    let mut client = client.map_err(unreachable)?;
    // Nobody there: no need to copy anything. A stream without a message asks for nothing.
    let reached = call("reach a node that needs a snapshot", context.patience, client.append(stream::empty())).await;
    drop(context.observe(target, reached)?);
    // From before the copy on: what is purged after it would be missing at the other side.
    let _transfer = context.transfers.begin();
    let started = Instant::now();
    let copy = match snapshot.snapshot {
        SnapshotData::Live(LiveState(state)) => state.copy().await.map_err(broken)?,
        SnapshotData::Received(copy) => copy,
    };
    let leader = vote_to_store(&vote);
    if copy.meta.applied.is_some_and(|applied| (applied.term, applied.node) > (leader.term, leader.node)) {
        // Another leader's entries are in it already: this leader's time is over, and its receiver would not accept
        // a snapshot from beyond it.
        return Err(unreachable("the state is ahead of this leadership"));
    }
    let copied_in = started.elapsed();
    tracing::info!(node = target, bytes = copy.size_bytes, index = ?copy.meta.applied, ?copied_in, "sending a snapshot");
    let header = wire::SnapshotHeader {
        target: Some(context.addressed(target)),
        vote: Some(vote_to_proto(&vote)),
        meta: Some(meta_to_proto(&copy.meta)),
        size_bytes: copy.size_bytes,
    };
    let progress = Arc::new(AtomicU64::new(0));
    let chunks = chunks(header, copy.path.clone(), progress.clone());
    let size = copy.size_bytes;
    let sending = async { client.snapshot(chunks).await.map_err(explain) };
    let answer = tokio::select! {
        answer = sending => answer,
        stalled = stall(context, &progress, size) => Err(stalled),
    };
    let reply = context.observe(target, answer)?.into_inner();
    drop_copy(copy).await;
    let vote = reply.vote.ok_or_else(|| unreachable("a snapshot's answer without a vote"))?;
    Ok(SnapshotResponse::new(vote_from_proto(&vote)))
}

fn unreachable(why: impl ToString) -> StreamingError<Types> {
    StreamingError::Unreachable(Unreachable::from_string(why))
}

fn broken(why: impl ToString) -> StreamingError<Types> {
    StreamingError::Network(NetworkError::from_string(why))
}

/// Removing a large file takes its time.
async fn drop_copy(copy: Copy) {
    let _ = tokio::task::spawn_blocking(move || drop(copy)).await;
}

pub fn meta_to_proto(meta: &Meta) -> storage::SnapshotMeta {
    let index = meta.applied.map_or(0, |id| id.index);
    storage::SnapshotMeta {
        last_log_id: meta.applied.map(LogId::to_proto),
        membership: Some(storage::StoredMembership {
            log_id: meta.membership.log_id.map(LogId::to_proto),
            membership: Some(meta.membership.membership.as_ref().clone()),
        }),
        id: index.to_string(),
    }
}

/// Resolves when nothing moves any more: no piece was taken for `patience`, or the answer to the last one is overdue.
async fn stall(context: &Context, progress: &AtomicU64, size: u64) -> Error {
    let mut seen = 0;
    let mut quiet = Duration::ZERO;
    let step = context.patience / 4;
    loop {
        tokio::time::sleep(step).await;
        let now = progress.load(Ordering::Acquire);
        quiet = if now == seen { quiet + step } else { Duration::ZERO };
        seen = now;
        let allowed = if now >= size { context.install_timeout } else { context.patience };
        if quiet >= allowed {
            return Error::outcome_unknown(format!("the receiver of a snapshot stopped at {now} of {size} bytes"));
        }
    }
}

/// The messages of one transfer, read and summed by a thread of their own. A read error ends the stream early: the
/// receiver sees that the checksum is missing.
fn chunks(
    header: wire::SnapshotHeader,
    path: PathBuf,
    progress: Arc<AtomicU64>,
) -> impl Stream<Item = wire::SnapshotChunk> + Send + 'static {
    let (parts, sent) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = read(&path, &parts) {
            tracing::warn!(%error, "read a snapshot that is being sent");
        }
    });
    let parts = stream::once(std::future::ready(Part::Header(header))).chain(ReceiverStream::new(sent));
    parts.map(move |part| {
        if let Part::Data(data) = &part {
            progress.fetch_add(data.len() as u64, Ordering::AcqRel);
        }
        wire::SnapshotChunk { part: Some(part) }
    })
}

/// Until the end, or nobody takes them any more.
fn read(path: &Path, parts: &mpsc::Sender<Part>) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let pace = if file.metadata()?.len() > LARGE_BYTES { PACE } else { Duration::ZERO };
    let mut digest = Digest::new(&SHA256);
    loop {
        let turn = Instant::now();
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data)?;
        if data.is_empty() {
            break;
        }
        digest.update(&data);
        if parts.blocking_send(Part::Data(Bytes::from(data))).is_err() {
            return Ok(());
        }
        std::thread::sleep(pace.saturating_sub(turn.elapsed()));
    }
    // Whoever took the pieces may have gone.
    let _ = parts.blocking_send(Part::Checksum(digest.finish().as_ref().to_vec()));
    Ok(())
}
