//! Receiving the whole state from a leader: pieces into a file, checksum, a check of the file, then the library installs
//! it. Until then the state is as it was, and a broken transfer leaves nothing.

use std::time::Instant;

use openraft::Snapshot;
use openraft::async_runtime::watch::WatchReceiver as _;
use pinfold_common::{Code, Error, PeerId};
use pinfold_proto::consensus as wire;
use pinfold_proto::consensus::snapshot_chunk::Part;
use tonic::Streaming;

use super::{Service, required};
use crate::raft::machine::SnapshotData;
use crate::raft::network::meta_to_proto;
use crate::raft::types::{Vote, snapshot_meta, vote_from_proto, vote_to_proto, vote_to_store};
use crate::store::{self, Copy, Keeps};

type Messages = Streaming<wire::SnapshotChunk>;

impl Service {
    pub(super) async fn receive_snapshot(
        &self,
        peer: PeerId,
        mut messages: Messages,
    ) -> Result<wire::SnapshotReply, Error> {
        let header = match self.next_part(&mut messages).await? {
            Some(Part::Header(header)) => header,
            Some(Part::Data(_) | Part::Checksum(_)) | None => {
                return Err(Error::invalid("snapshot: does not begin with its header"));
            }
        };
        let from = self.admit(peer, header.target.as_ref())?;
        let vote = required(header.vote.as_ref().map(vote_from_proto), "vote")?;
        let own_vote = self.raft.metrics().borrow_watched().vote;
        if own_vote > vote {
            // Somebody else leads by now: no need to take all of it first.
            return Ok(wire::SnapshotReply { vote: Some(vote_to_proto(&own_vote)) });
        }
        let permit = tokio::time::timeout(self.patience, self.incoming_snapshots.acquire()).await;
        let _permit = permit.map_err(|_| Error::unavailable("other snapshots are being received"))?;
        tracing::info!(node = from, bytes = header.size_bytes, "receiving a snapshot");
        let copy = self.receive_file(&header, &mut messages).await?;
        self.install(vote, copy).await
    }

    async fn next_part(&self, messages: &mut Messages) -> Result<Option<Part>, Error> {
        let message = tokio::time::timeout(self.patience, messages.message()).await;
        let message = message.map_err(|_| Error::unavailable("snapshot: the sender fell silent"))?;
        let message = message.map_err(|status| Error::unavailable(format!("snapshot: {}", status.message())))?;
        Ok(message.and_then(|message| message.part))
    }

    async fn receive_file(&self, header: &wire::SnapshotHeader, messages: &mut Messages) -> Result<Copy, Error> {
        let started = Instant::now();
        let mut incoming = self.state.receive().await.map_err(on_disk)?;
        let received = loop {
            match self.next_part(messages).await? {
                Some(Part::Data(data)) => {
                    if incoming.size_bytes() + data.len() as u64 > header.size_bytes {
                        return Err(Error::invalid("snapshot: longer than its header says"));
                    }
                    incoming.write(data).await.map_err(on_disk)?;
                }
                Some(Part::Checksum(checksum)) => {
                    let received = incoming.end().await.map_err(on_disk)?;
                    if received.size_bytes != header.size_bytes || received.sha256 != checksum[..] {
                        return Err(Error::invalid("snapshot: it was changed on its way"));
                    }
                    break received;
                }
                Some(Part::Header(_)) => return Err(Error::invalid("snapshot: a second header")),
                None => return Err(Error::unavailable("snapshot: the sender broke off")),
            }
        };
        let received_in = started.elapsed();
        let keeps = if self.state.pin_count() == 0 { Keeps::Nothing } else { Keeps::Pins };
        let copy = received.check(keeps).await.map_err(on_disk)?;
        let checked_in = started.elapsed() - received_in;
        tracing::info!(pins = copy.pin_count, ?received_in, ?checked_in, "received a snapshot");
        if Some(meta_to_proto(&copy.meta)) != header.meta {
            return Err(Error::invalid("snapshot: its contents are not what its header says"));
        }
        Ok(copy)
    }

    async fn install(&self, vote: Vote, copy: Copy) -> Result<wire::SnapshotReply, Error> {
        let leader = vote_to_store(&vote);
        if copy.meta.applied.is_some_and(|applied| (applied.term, applied.node) > (leader.term, leader.node)) {
            return Err(Error::invalid("snapshot: it is from beyond its sender's leadership"));
        }
        let meta = snapshot_meta(&copy.meta).map_err(on_disk)?;
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Received(copy) };
        let answer = self.raft.install_full_snapshot(vote, snapshot).await;
        let answer = answer.map_err(|error| Error::unavailable(format!("install a snapshot: {error}")))?;
        Ok(wire::SnapshotReply { vote: Some(vote_to_proto(&answer.vote)) })
    }
}

/// A copy that can't be taken. The state itself is untouched.
fn on_disk(error: store::Error) -> Error {
    let code = match &error {
        store::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Code::StorageFull,
        store::Error::Refused(_) => Code::Incompatible,
        store::Error::Damaged(_) => Code::InvalidArgument,
        store::Error::Io { .. } | store::Error::Sqlite { .. } | store::Error::Halt(_) | store::Error::Closed => {
            Code::Internal
        }
    };
    Error::new(code, format!("snapshot: {error}"))
}
