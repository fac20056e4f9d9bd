//! The services of this room: decode, call the store, encode.

mod allocation;
mod gossip;
mod monitor;
mod witness;

use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::monitor::allocation_server::AllocationServer;
use pinfold_proto::monitor::gossip_server::GossipServer;
use pinfold_proto::monitor::monitor_server::MonitorServer;
use pinfold_proto::monitor::witness_server::WitnessServer;
use tonic::service::Routes;

use crate::store::Store;

/// All services on one port; the audience layer tells their callers apart.
pub fn routes(store: &Store, shutdown: &Shutdown) -> Routes {
    let monitor = monitor::MonitorService { store: store.clone(), shutdown: shutdown.clone() };
    let gossip = gossip::GossipService { store: store.clone() };
    let allocation = allocation::AllocationService { store: store.clone() };
    let witness = witness::WitnessService { store: store.clone() };
    Routes::new(
        MonitorServer::new(monitor)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    )
    .add_service(
        GossipServer::new(gossip)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    )
    .add_service(
        WitnessServer::new(witness)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    )
    .add_service(
        AllocationServer::new(allocation)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    )
}
