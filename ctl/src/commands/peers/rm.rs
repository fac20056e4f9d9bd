//! `ctl peers rm`: orders the removal and shows how far it is, until it is done. The order outlives this command.

use std::time::{Duration, Instant};

use pinfold_common::{Code, PeerId};
use pinfold_proto::api::RemovePeerRequest;
use pinfold_proto::types::departure::Phase;

use crate::cli::Encoding;
use crate::client::{Client, Failure, Outcome};
use crate::output;

/// Between two lines of progress.
const LOOK: Duration = Duration::from_secs(2);
/// A cluster that can't answer for so long, while its leader changes for instance, is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);

/// Whether what only that peer has may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    WhenNothingIsLeft,
    AtOnce,
}

pub async fn run(client: &Client, encoding: Encoding, peer: &PeerId, how: How) -> Outcome {
    let request = RemovePeerRequest {
        peer_id: peer.to_bytes(),
        force: how == How::AtOnce,
        wait_ms: u32::try_from(LOOK.as_millis()).unwrap_or(u32::MAX),
    };
    let mut shown = None;
    let mut answered = Instant::now();
    loop {
        let departure = match client.cluster().remove_peer(request.clone()).await {
            Ok(reply) => reply.into_inner().departure.unwrap_or_default(),
            Err(status) => match Failure::from(status) {
                Failure::Api(error) if error.code == Code::Unavailable && answered.elapsed() < PATIENCE => {
                    eprintln!("{}; asking again", error.message);
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                failure => return Err(failure),
            },
        };
        answered = Instant::now();
        if shown.as_ref() != Some(&departure) {
            output::show_removal(encoding, peer, &departure)?;
        }
        match departure.phase() {
            Phase::Removed => return Ok(()),
            Phase::Unspecified => {
                return Err(Failure::local("removing the peer", "the removal was called off meanwhile"));
            }
            Phase::Draining | Phase::Reallocating | Phase::Drained => shown = Some(departure),
        }
    }
}
