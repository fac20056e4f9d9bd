//! Blocks from the other peers' connectors, over the peers' own links (`connector.v1.Blocks`). Whoever had a block of a
//! DAG is asked first for the next ones; when that one does not have it, all others are asked, a few at a time.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES};
use pinfold_common::peerset::{PeerState, PeersHandle};
use pinfold_common::tls::Room;
use pinfold_common::{Cid, PeerId};
use pinfold_proto::connector::GetBlocks;
use pinfold_proto::connector::blocks_client::BlocksClient;

use super::{BlockExchange, Want};
use crate::node::verify::Verified;
use crate::node::{NodeError, Result};

/// For one block from one sibling. It only reads its disk.
const BLOCK_DEADLINE: Duration = Duration::from_secs(10);
/// Siblings asked at the same time for a block of which nobody knows who has it.
const ASKED_AT_ONCE: usize = 3;
/// A sibling that did not answer is left alone for so long.
const AVOIDED: Duration = Duration::from_secs(5);
/// DAGs of which a holder is remembered; when there are more, all are forgotten.
const MAX_REMEMBERED: usize = 1024;

/// All members of the peerset but this one.
pub struct Siblings {
    channels: Channels,
    peers: PeersHandle,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Who had a block of the DAG with this root.
    holders: HashMap<Cid, PeerId>,
    avoided: HashMap<PeerId, Instant>,
}

impl Siblings {
    pub fn new(channels: Channels, peers: PeersHandle) -> Siblings {
        Siblings { channels, peers, memory: Mutex::default() }
    }

    /// Peer and address of each sibling, the probable holder first.
    fn others(&self, root: &Cid) -> Vec<(PeerId, String)> {
        let view = self.peers.current();
        let own = self.channels.own();
        let holder = self.memory.lock().holders.get(root).copied();
        let mut others: Vec<_> = view
            .peerset
            .peers
            .iter()
            .filter(|peer| match peer.state {
                // One that is away may be back, and its address costs only a refused connection.
                PeerState::Healthy | PeerState::Draining | PeerState::Away => peer.peer_id != own,
                PeerState::Removed => false,
            })
            .map(|peer| (peer.peer_id, peer.addresses.connector.clone()))
            .filter(|(_, address)| !address.is_empty())
            .collect();
        others.sort_by_key(|(peer, _)| Some(*peer) != holder);
        others
    }

    fn is_avoided(&self, peer: &PeerId) -> bool {
        self.memory.lock().avoided.get(peer).is_some_and(|since| since.elapsed() < AVOIDED)
    }

    fn remember(&self, root: Cid, peer: PeerId) {
        let mut memory = self.memory.lock();
        if memory.holders.len() >= MAX_REMEMBERED && !memory.holders.contains_key(&root) {
            memory.holders.clear();
        }
        memory.holders.insert(root, peer);
    }

    async fn ask(&self, peer: PeerId, address: String, want: Want) -> Result<Option<Verified>> {
        if self.is_avoided(&peer) {
            return Err(NodeError::Down(format!("{peer}: did not answer just now")));
        }
        let asked = timeout(BLOCK_DEADLINE, self.request(&peer, &address, want.cid)).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => {
                self.memory.lock().avoided.insert(peer, Instant::now());
                return Err(NodeError::Down(format!("{peer}: {}", status.message())));
            }
            Err(_) => {
                self.memory.lock().avoided.insert(peer, Instant::now());
                return Err(NodeError::Timeout(format!("{peer}: no answer within {BLOCK_DEADLINE:?}")));
            }
        };
        let Some(data) = answer else { return Ok(None) };
        let block = Verified::check(want.cid, data).map_err(|error| {
            // A sibling that serves other data than asked for is broken, and its disk should be looked at.
            tracing::error!(%peer, %error, "sibling sent a block that is not what it should be");
            error.context(peer)
        })?;
        self.remember(want.root, peer);
        Ok(Some(block))
    }

    async fn request(&self, peer: &PeerId, address: &str, cid: Cid) -> Result<Option<Bytes>, tonic::Status> {
        let channel = self.channels.to(Room::Connector, peer, address);
        let mut client = BlocksClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let wanted = stream::iter([GetBlocks { cids: vec![cid.to_bytes()] }]);
        let mut answers = client.get(wanted).await?.into_inner();
        Ok(answers.message().await?.filter(|answer| answer.found).map(|answer| answer.data))
    }
}

#[async_trait]
impl BlockExchange for Siblings {
    fn name(&self) -> &'static str {
        "siblings"
    }

    async fn fetch(&self, want: Want) -> Result<Option<Verified>> {
        let others = self.others(&want.root);
        let mut trouble = None;
        let has_holder = self.memory.lock().holders.contains_key(&want.root);
        let (first, rest) = others.split_at(if has_holder { others.len().min(1) } else { 0 });
        let groups = [first, rest].into_iter().filter(|group| !group.is_empty());
        for group in groups {
            let asked = stream::iter(group.to_vec()).map(|(peer, address)| self.ask(peer, address, want));
            let mut answers = asked.buffer_unordered(ASKED_AT_ONCE);
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(Some(block)) => return Ok(Some(block)),
                    Ok(None) => {}
                    Err(error) => trouble = Some(error),
                }
            }
        }
        trouble.map_or(Ok(None), Err)
    }
}
