//! One pin on Kubo, from the look whether it is there already to the object that says it is done (beh:B13.1 to B13.6).

use std::time::Duration;

use futures::future::join_all;
use multiaddr::Multiaddr;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use pinfold_common::Cid;
use pinfold_common::ids::parse_cid;
use pinfold_common::pin::PinMode;

use super::rpc::{Call, Rpc};
use super::{Shared, is_pinned};
use crate::node::{Known, MAX_ORIGINS_DIALED, NodeError, PinAdd, PinEvent, PinProgress, Result};

/// For the look, after a pin without any sign of life, whether it was the node or the content that did not come.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// A line of `pin/add`: progress lines, then one with `Pins`.
#[derive(Deserialize)]
struct AddLine {
    #[serde(rename = "Pins")]
    pins: Option<Vec<String>>,
    #[serde(rename = "Progress", default)]
    blocks: i64,
    #[serde(rename = "Bytes", default)]
    bytes: i64,
}

#[derive(Deserialize)]
struct UpdateAnswer {
    #[serde(rename = "Pins", default)]
    pins: Vec<String>,
}

/// Pins; progress and the end go to `events`. Only the mode that is wanted is looked for first: Kubo makes a direct pin
/// recursive by itself, and refuses the opposite by itself.
pub async fn add(shared: &Shared, request: PinAdd, events: mpsc::Sender<Result<PinEvent>>) -> Result<()> {
    let is_there = match request.known {
        Known::Nothing => is_pinned(shared, &request.cid, request.mode).await?,
        // Should it be there all the same, `pin/add` says so at once.
        Known::NotPinned => false,
    };
    let done = if is_there {
        PinProgress::default()
    } else {
        let _dialing = dial_origins(shared, &request.origins);
        if update(shared, &request).await? {
            PinProgress::default()
        } else {
            fetch_and_pin(shared, &request, &events).await?
        }
    };
    // Nobody listens any more: the pin is there all the same, and the next look finds it.
    let _ = events.send(Ok(PinEvent::Done(done))).await;
    Ok(())
}

/// Dials in the background until the returned set is dropped; failures do not matter.
fn dial_origins(shared: &Shared, origins: &[Multiaddr]) -> JoinSet<()> {
    let mut dialing = JoinSet::new();
    for origin in origins.iter().take(MAX_ORIGINS_DIALED) {
        let (rpc, origin, deadline) = (shared.rpc.clone(), origin.clone(), shared.config.request_timeout);
        dialing.spawn(async move {
            if let Err(error) = connect(&rpc, &origin, deadline).await {
                tracing::debug!(%origin, %error, "origin not reached");
            }
        });
    }
    dialing
}

/// Connects to one node.
pub async fn connect(rpc: &Rpc, address: &Multiaddr, deadline: Duration) -> Result<()> {
    rpc.ask_bytes(Call::new("swarm/connect").arg(address), 64 * 1024, deadline).await.map(drop)
}

/// Connects to each; `Ok` when one was reached or none was asked for.
pub async fn connect_any(rpc: &Rpc, addresses: &[Multiaddr], deadline: Duration) -> Result<()> {
    let mut outcome = Ok(());
    for chunk in addresses.chunks(MAX_ORIGINS_DIALED) {
        for answer in join_all(chunk.iter().map(|address| connect(rpc, address, deadline))).await {
            match answer {
                Ok(()) => return Ok(()),
                Err(error) => outcome = Err(error),
            }
        }
    }
    outcome
}

/// beh:B13.5: from a pin that is similar. Kubo tells nothing on the way, so it gets one stall timeout in all; when it
/// does not work out, the ordinary pin follows, and finds what this one fetched.
async fn update(shared: &Shared, request: &PinAdd) -> Result<bool> {
    let Some(from) = request.pin_update.filter(|from| *from != request.cid && request.mode == PinMode::Recursive)
    else {
        return Ok(false);
    };
    if !is_pinned(shared, &from, PinMode::Recursive).await? {
        return Ok(false);
    }
    let call = Call::new("pin/update").arg(from).arg(request.cid).option("unpin", false);
    match shared.rpc.ask::<UpdateAnswer>(call, shared.config.pin_timeout).await {
        Ok(answer) => Ok(names(&answer.pins, &request.cid)),
        Err(error @ NodeError::Down(_)) => Err(error),
        Err(error) => {
            tracing::debug!(cid = %request.cid, %from, %error, "pin/update did not work, pinning without it");
            Ok(false)
        }
    }
}

async fn fetch_and_pin(
    shared: &Shared,
    request: &PinAdd,
    events: &mpsc::Sender<Result<PinEvent>>,
) -> Result<PinProgress> {
    let patience = shared.config.pin_timeout;
    let call = Call::new("pin/add")
        .arg(request.cid)
        .option("recursive", request.mode == PinMode::Recursive)
        .option("progress", true);
    let mut moved = Instant::now();
    let mut seen = PinProgress::default();
    let mut pinned = false;
    // Kubo sends the head of its answer with the first progress.
    let mut lines = match timeout_at(moved + patience, shared.rpc.open(call)).await {
        Ok(lines) => lines?,
        Err(_) => return Err(nothing_came(shared, request).await),
    };
    loop {
        let line = match timeout_at(moved + patience, lines.next::<AddLine>()).await {
            Ok(line) => line?,
            Err(_) if seen == PinProgress::default() => return Err(nothing_came(shared, request).await),
            Err(_) => {
                return Err(NodeError::Stalled(format!(
                    "pin {}: no progress for {patience:?} after {} blocks and {} bytes",
                    request.cid, seen.blocks, seen.bytes
                )));
            }
        };
        let Some(line) = line else { break };
        if let Some(pins) = &line.pins {
            if !names(pins, &request.cid) {
                return Err(NodeError::Other(format!("pin {}: the node says it pinned {pins:?}", request.cid)));
            }
            pinned = true;
        }
        // A node that counts backwards is not believed.
        let now = PinProgress {
            blocks: seen.blocks.max(u64::try_from(line.blocks).unwrap_or(0)),
            bytes: seen.bytes.max(u64::try_from(line.bytes).unwrap_or(0)),
        };
        if now != seen {
            (seen, moved) = (now, Instant::now());
            // A reader that is slow misses some progress, and the pin does not wait for it.
            let _ = events.try_send(Ok(PinEvent::Progress(seen)));
        }
    }
    if pinned {
        Ok(seen)
    } else {
        Err(NodeError::Other(format!(
            "pin {}: the node ended its answer without saying that it is pinned",
            request.cid
        )))
    }
}

/// Not one block in the whole time: nobody has it, unless the node does not answer anything else either.
async fn nothing_came(shared: &Shared, request: &PinAdd) -> NodeError {
    let patience = shared.config.pin_timeout;
    let probe = shared.rpc.ask::<serde::de::IgnoredAny>(Call::new("version"), PROBE_DEADLINE);
    match timeout(PROBE_DEADLINE, probe).await {
        Ok(Ok(_)) => NodeError::NoProviders(format!("pin {}: no block of it came within {patience:?}", request.cid)),
        Ok(Err(_)) | Err(_) => {
            NodeError::Timeout(format!("pin {}: the ipfs node did not answer within {patience:?}", request.cid))
        }
    }
}

fn names(pins: &[String], cid: &Cid) -> bool {
    pins.iter().any(|text| parse_cid(text).is_ok_and(|pinned| pinned == *cid))
}
