//! The cluster as it is: this peer's consensus-svc for allocation and pin, the connectors of the destinations for blocks.

use std::sync::Arc;
use std::time::Duration;

use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES, explain, traced};
use pinfold_common::ids::{peers_from_bytes, peers_to_bytes};
use pinfold_common::peerset::PeersHandle;
use pinfold_common::pin::{Pin, PinOptions, PinRequest};
use pinfold_common::tls::Room;
use pinfold_common::{Cid, Error, PeerId, Result};
use pinfold_proto::connector::blocks_client::BlocksClient;
use pinfold_proto::connector::tracker_client::TrackerClient;
use pinfold_proto::connector::{PutBlocks, PutBlocksReply, TrackerStatusCall};
use pinfold_proto::consensus::pins_client::PinsClient;
use pinfold_proto::consensus::{AllocateCall, PinCall};
use pinfold_proto::types::PinInfo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::AddContext;
use super::cluster::{Allocation, Cluster};
use crate::cluster::{PEER_DEADLINE, ask};

/// For the allocation before the first block.
const ALLOCATE_DEADLINE: Duration = Duration::from_secs(10);
/// For the pin at the end.
const PIN_DEADLINE: Duration = Duration::from_secs(10);
/// For a destination whose queue is full to take the next batch.
const STALL_DEADLINE: Duration = Duration::from_secs(30);

struct Services {
    channels: Channels,
    peers: PeersHandle,
    own: PeerId,
    own_consensus: String,
}

impl AddContext {
    /// `own_consensus` is host:port of this peer's consensus-svc.
    pub fn new(channels: Channels, peers: PeersHandle, own: PeerId, own_consensus: String) -> AddContext {
        let cluster = Arc::new(Services { channels, peers, own, own_consensus });
        AddContext { cluster, own, stall_deadline: STALL_DEADLINE }
    }
}

impl Services {
    fn pins(&self) -> PinsClient<Channel> {
        PinsClient::new(self.channels.to(Room::Consensus, &self.own, &self.own_consensus))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn connector(&self, peer: &PeerId) -> Result<Channel> {
        let view = self.peers.current();
        let Some(info) = view.peerset.get(peer) else {
            return Err(Error::unavailable(format!("{peer} is not in the peerset")));
        };
        let Some(address) = info.address(Room::Connector) else {
            return Err(Error::unavailable(format!("{peer} announced no connector")));
        };
        Ok(self.channels.to(Room::Connector, peer, address))
    }
}

#[tonic::async_trait]
impl Cluster for Services {
    async fn allocate(&self, options: &PinOptions, user_allocations: &[PeerId]) -> Result<Allocation> {
        let request =
            AllocateCall { options: Some(options.clone().into()), user_allocations: peers_to_bytes(user_allocations) };
        let mut pins = self.pins();
        let reply = ask("allocate for an add", ALLOCATE_DEADLINE, pins.allocate_for_add(traced(request))).await?;
        Ok(Allocation {
            peers: peers_from_bytes(&reply.allocations).map_err(|error| error.context("allocate for an add"))?,
            everywhere: reply.everywhere,
            replication_factor_min: reply.replication_factor_min,
        })
    }

    /// As long as the upload: the sink has the deadlines.
    async fn put(&self, peer: PeerId, batches: mpsc::Receiver<PutBlocks>) -> Result<PutBlocksReply> {
        let channel = self.connector(&peer).map_err(|error| error.context("put blocks"))?;
        let mut blocks = BlocksClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        match blocks.put(traced(ReceiverStream::new(batches))).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(explain(status).context("put blocks")),
        }
    }

    async fn status(&self, peer: PeerId, cid: &Cid, min_index: u64) -> Result<PinInfo> {
        const WHAT: &str = "ask for the status of an add";
        let channel = self.connector(&peer).map_err(|error| error.context(WHAT))?;
        let mut tracker = TrackerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let call = TrackerStatusCall { cids: vec![cid.to_bytes()], min_index };
        let infos = ask(WHAT, PEER_DEADLINE, tracker.status(traced(call))).await?.infos;
        infos.into_iter().next().ok_or_else(|| Error::internal(format!("{WHAT}: the answer is empty")))
    }

    async fn pin(&self, request: PinRequest, request_key: Vec<u8>) -> Result<(Pin, u64)> {
        let root = request.cid;
        let request = PinCall { request: Some(request.into()), request_key };
        let mut pins = self.pins();
        let reply = ask("pin the root of an add", PIN_DEADLINE, pins.pin(traced(request))).await?;
        match reply.pin {
            Some(pin) => Ok((pin.try_into()?, reply.index)),
            None => Err(Error::internal(format!("pin the root of an add: the answer has no pin for {root}"))),
        }
    }
}
