//! The services of this room: decode, call, encode.

mod blocks;
mod holdings;
mod node;
mod tracker;

use std::sync::Arc;

use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::connector::blocks_server::BlocksServer;
use pinfold_proto::connector::holdings_server::HoldingsServer;
use pinfold_proto::connector::node_server::NodeServer;
use pinfold_proto::connector::tracker_server::TrackerServer;
use tonic::service::Routes;

use crate::informer::Trigger;
use crate::node::IpfsNode;
use crate::tracker::Tracker;
use crate::tracker::health::Health;

/// What all handlers share.
pub struct Rooms {
    pub tracker: Tracker,
    pub node: Arc<dyn IpfsNode>,
    pub health: Health,
    pub trigger: Trigger,
    pub peername: String,
    pub shutdown: Shutdown,
}

pub fn routes(rooms: Rooms) -> Routes {
    let rooms = Arc::new(rooms);
    Routes::new(NodeServer::new(node::NodeService(rooms.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(
            TrackerServer::new(tracker::TrackerService(rooms.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            HoldingsServer::new(holdings::HoldingsService(rooms.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(BlocksServer::new(blocks::BlocksService(rooms)).max_decoding_message_size(MAX_MESSAGE_BYTES))
}
