//! `ctl daemon`: one whole peer in the foreground, from its folder.

use std::sync::Arc;
use std::time::Duration;

use pinfold_common::config::Args;
use pinfold_common::shutdown::Shutdown;

use crate::cli::{Daemon, Global};
use crate::client::{Failure, Outcome};
use crate::local::Programs;
use crate::local::peer::Peer;
use crate::local::service::Tell;

/// A service refuses its configuration or state, or the peer is not a member any more; as the services say it.
const EXIT_REFUSED: u8 = 78;
const EXIT_REMOVED: u8 = 77;
const EXIT_NOT_LEFT: u8 = 79;
const SAY_AGAIN: Duration = Duration::from_secs(30);

pub async fn run(global: &Global, arguments: Daemon) -> Outcome {
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|error| Failure::local("watching signals", error))?;
    let args = Args { folder: global.config.clone(), ..Args::default() };
    let folder = args.folder().map_err(|error| Failure::local("reading --config", error))?;
    let tell: Tell = Arc::new(|service, sentence| eprintln!("{service}: {sentence}"));
    let failed = |error: crate::local::LocalError| Failure::local("starting the peer", error);
    let peer = Peer::start(&folder, &Programs::find(), &arguments.bootstrap, tell).map_err(failed)?;
    eprintln!("peer {} from {}", peer.peer_id, folder.display());
    let outcome = shutdown.race(watch(&peer)).await;
    eprintln!("stopping");
    peer.stop().await;
    if peer.consensus_exit_code() == Some(i32::from(EXIT_NOT_LEFT)) {
        eprintln!("{}", peer.last_words().unwrap_or_else(|| "this peer could not leave the cluster".to_owned()));
        return Err(Failure::Exit(EXIT_NOT_LEFT));
    }
    outcome.unwrap_or(Ok(()))
}

/// Says when the peer becomes ready and what it waits for; never ends but by a refusal: not being ready is a state, not
/// a reason to exit (beh:B2.4).
async fn watch(peer: &Peer) -> Outcome {
    let mut was_ready = false;
    let mut last = String::new();
    loop {
        let state = peer.not_ready().await.map_err(|error| {
            eprintln!("{error}");
            Failure::Exit(if peer.is_removed() { EXIT_REMOVED } else { EXIT_REFUSED })
        })?;
        match state {
            None if !was_ready => {
                eprintln!("READY: REST and gRPC at {}", peer.api);
                was_ready = true;
            }
            Some(reason) if was_ready || reason != last => {
                eprintln!("not ready: {reason}");
                was_ready = false;
                last = reason;
            }
            None | Some(_) => {}
        }
        tokio::time::sleep(if was_ready { SAY_AGAIN / 10 } else { Duration::from_millis(200) }).await;
    }
}
