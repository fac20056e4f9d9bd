//! The services of this room, one file each: decode, call, encode.

mod forward;
mod joining;
mod membership;
mod peers;
mod pins;
mod repin;
mod state;

use std::sync::Arc;

use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::consensus::forward_server::ForwardServer;
use pinfold_proto::consensus::membership_server::MembershipServer;
use pinfold_proto::consensus::peers_server::PeersServer;
use pinfold_proto::consensus::pins_server::PinsServer;
use pinfold_proto::consensus::repin_forward_server::RepinForwardServer;
use pinfold_proto::consensus::repin_server::RepinServer;
use pinfold_proto::consensus::state_server::StateServer;
use pinfold_proto::consensus::{Failure, PinManyReply, PinResult, pin_result};
use tokio::sync::Semaphore;
use tonic::service::Routes;

use crate::coordinator::{Answer, Coordinator};
use crate::core::Core;
use crate::raft;

pub use joining::{Invitation, Joining, joining_routes};

/// The bounds that all our messages have, on a server.
macro_rules! sized {
    ($server:expr) => {
        $server.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
    };
}
/// All services of a member.
pub fn routes(core: Arc<Core>, coordinator: Coordinator, shutdown: Shutdown) -> Routes {
    let pins = pins::PinsService { core: core.clone(), coordinator: coordinator.clone(), shutdown: shutdown.clone() };
    let forward = forward::ForwardService { core: core.clone(), coordinator };
    let peers = peers::PeersService { core: core.clone(), shutdown: shutdown.clone() };
    let state = state::StateService { core: core.clone(), shutdown, copying: Arc::new(Semaphore::new(1)) };
    let raft = raft::service(&core.raft);
    let membership = membership::MembershipService { core: core.clone() };
    let mut routes = Routes::builder();
    routes
        .add_service(sized!(PinsServer::new(pins)))
        .add_service(sized!(ForwardServer::new(forward)))
        .add_service(sized!(PeersServer::new(peers)))
        .add_service(sized!(RepinServer::new(repin::RepinService { core: core.clone() })))
        .add_service(sized!(RepinForwardServer::new(repin::RepinService { core: core.clone() })))
        .add_service(sized!(StateServer::new(state)))
        .add_service(sized!(MembershipServer::new(membership)))
        .add_service(raft);
    routes.routes()
}

fn pin_many_reply(answer: Answer) -> PinManyReply {
    let results = answer
        .results
        .into_iter()
        .map(|result| PinResult {
            result: Some(match result {
                Ok(pin) => pin_result::Result::Pin(pin),
                Err(error) => {
                    pin_result::Result::Failure(Failure { code: error.code.name().to_owned(), message: error.message })
                }
            }),
        })
        .collect();
    PinManyReply { results, index: answer.index }
}
