//! One attempt at one item: from the moment it has a slot until its end is in the table. It never decides whether
//! there is another one; that is what `operation::after` and `next_try` say.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use multiaddr::Multiaddr;
use pinfold_common::Cid;
use pinfold_common::ids::{cid_from_bytes, optional_cid};
use pinfold_common::pin::PinMode;
use pinfold_common::status::TrackerStatus;
use pinfold_proto::types::{self, Reason};
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::aside::Place;
use super::board::Line;
use super::operation::{self, Item, Outcome, Todo};
use super::queue::{LOOK_UP_DEADLINE, Shared, failure};
use super::slots::Slot;
use crate::node::{Known, NodeError, PinAdd, PinEvent, PinProgress, PinState};
use crate::store::Settlement;

/// An attempt without a first block for so long goes aside (protocols.md 8);
const FIRST_BLOCK: Duration = Duration::from_secs(1);
/// one that stopped moving later gets longer: blocks of a large DAG come in bursts.
const NEXT_BLOCK: Duration = Duration::from_secs(10);
/// After an unpin that follows a broken-off pin: the node may finish that pin yet, and is asked once more.
const LATE_PIN: Duration = Duration::from_secs(1);

pub(super) async fn run(shared: Arc<Shared>, line: Line, item: Item, cancel: CancellationToken, slot: Slot) {
    let work = async {
        match (line, cid_from_bytes(&item.cid)) {
            (_, Err(error)) => Outcome::Refused(error.to_string()),
            (Line::Pins, Ok(cid)) => pin(&shared, &item, cid, slot).await,
            (Line::Unpins, Ok(cid)) => unpin(&shared, cid, &item.cid, slot).await,
        }
    };
    let outcome = tokio::select! {
        outcome = work => Some(outcome),
        () = cancel.cancelled() => None,
        () = shared.shutdown.triggered() => None,
    };
    match outcome {
        Some(outcome) => {
            if matches!(outcome, Outcome::NodeDown(_)) {
                // The call may have had its effect all the same (fault:K3): the next attempt asks first.
                shared.board.set_doubtful(&item.cid);
            }
            write_back(&shared, item, outcome).await;
        }
        // The row has a newer order, or the next start finds it as it is.
        None => {
            shared.board.set_doubtful(&item.cid);
            shared.board.finish(&item.cid);
            shared.wake(line);
        }
    }
}

/// The item stays in hand until its row says what became of it; otherwise a feeder would take it again.
async fn write_back(shared: &Shared, mut item: Item, outcome: Outcome) {
    report(&item, &outcome);
    if let Some((revision, status)) = shared.board.standing(&item.cid) {
        item.revision = revision;
        item.status = status;
    }
    if item.todo == Todo::Pin {
        item.fetched = shared.board.fetched(&item.cid);
    }
    let after = operation::after(&item, outcome, &shared.store.rules(), rand::random());
    let cid = item.cid.clone();
    match shared.store.settle(vec![Settlement::of(&item, after)]).await {
        Ok(done) if done == [true] => shared.board.finish(&cid),
        // A newer order came in between: the row is read again. Or the disk failed, and so it is tried again.
        Ok(_) => {
            shared.board.finish(&cid);
            shared.wake(if item.todo == Todo::Unpin { Line::Unpins } else { Line::Pins });
        }
        Err(error) => {
            tracing::warn!(%error, "write what became of an item; it is tried again");
            shared.board.finish(&cid);
        }
    }
}

fn report(item: &Item, outcome: &Outcome) {
    match (outcome, item.todo) {
        (Outcome::Pinned | Outcome::Found(_), _) => metrics::counter!("cluster_pins_pin_add").increment(1),
        (Outcome::Failed { error, .. } | Outcome::Refused(error), todo) => {
            if todo == Todo::Pin {
                metrics::counter!("cluster_pins_pin_add_errors").increment(1);
            }
            let cid = cid_from_bytes(&item.cid).map(|cid| cid.to_string()).unwrap_or_default();
            tracing::debug!(cid, ?todo, attempts = item.attempts + 1, error, "an attempt failed");
        }
        (Outcome::NodeDown(_) | Outcome::Unpinned | Outcome::Claim(_) | Outcome::Lost, _) => {}
    }
}

async fn pin(shared: &Shared, item: &Item, cid: Cid, slot: Slot) -> Outcome {
    shared.trigger.hit();
    let outcome = match prepare(shared, item, &cid).await {
        Some(outcome) => outcome,
        None => fetch(shared, item, cid, slot).await,
    };
    shared.trigger.hit();
    outcome
}

/// What must be known or done before the `pin/add`. An outcome when that is all.
async fn prepare(shared: &Shared, item: &Item, cid: &Cid) -> Option<Outcome> {
    // After a cancelled call the node is asked about this one CID (protocols.md 8); and before a direct pin of ours
    // replaces a recursive one, which no node does by itself.
    let doubtful = shared.board.resolve_doubt(&item.cid);
    let narrowing = item.mode == PinMode::Direct;
    if !doubtful && !narrowing {
        return None;
    }
    match shared.node.pin_state(cid).await {
        Ok(state) if state.is(item.mode) => Some(Outcome::Pinned),
        Ok(PinState::Recursive) if item.ownership == operation::Ownership::Claimed => match remove(shared, cid).await {
            Ok(()) => None,
            Err(error) => Some(failure(shared, error).await),
        },
        Ok(PinState::Recursive) => Some(Outcome::Found(item.ownership)),
        Ok(PinState::NotPinned | PinState::Direct) => None,
        Err(error) => Some(failure(shared, error).await),
    }
}

/// Where an attempt is: in a slot while it moves, aside while it waits.
enum Seat {
    Slot { _held: Slot },
    Aside(Place),
}

async fn fetch(shared: &Shared, item: &Item, cid: Cid, slot: Slot) -> Outcome {
    let mut events = shared.node.pin_add(request(item, cid));
    let mut seat = Seat::Slot { _held: slot };
    let mut seen = PinProgress::default();
    let started = Instant::now();
    let mut quiet_at = started + FIRST_BLOCK;
    loop {
        let evicted = match &seat {
            Seat::Slot { .. } => None,
            Seat::Aside(place) => Some(place.evicted.clone()),
        };
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep_until(quiet_at), if evicted.is_none() => {
                seat = Seat::Aside(shared.aside.enter());
                continue;
            }
            () = async { evicted.unwrap_or_default().cancelled().await }, if matches!(seat, Seat::Aside(_)) => {
                return evicted_outcome(seen, started.elapsed());
            }
        };
        match event {
            Some(Ok(PinEvent::Done(progress))) => {
                shared.board.record(&item.cid, progress);
                shared.slots.pinned(started.elapsed());
                return Outcome::Pinned;
            }
            Some(Ok(PinEvent::Progress(progress))) => {
                let moved = progress.blocks > seen.blocks || progress.bytes > seen.bytes;
                seen = progress;
                shared.board.record(&item.cid, progress);
                if moved {
                    if matches!(seat, Seat::Aside(_)) {
                        // It moves: it needs a slot like everybody, and does not go on without one.
                        seat = Seat::Slot { _held: shared.slots.take().await };
                    }
                    quiet_at = Instant::now() + NEXT_BLOCK;
                }
            }
            Some(Err(error)) => return failure(shared, error).await,
            None => {
                return Outcome::Failed {
                    reason: Reason::None,
                    error: "pin/add: the node's answer ended without a result".to_owned(),
                };
            }
        }
    }
}

/// The waiting pool was full, and this attempt had waited longest.
fn evicted_outcome(seen: PinProgress, after: Duration) -> Outcome {
    let seconds = after.as_secs();
    if seen == PinProgress::default() {
        let error = format!("no block of it came within {seconds} s, and others were waiting for the place");
        return Outcome::Failed { reason: Reason::NoProviders, error };
    }
    let error = format!(
        "no progress after {} blocks and {} bytes, {seconds} s after its start, and others were waiting for the place",
        seen.blocks, seen.bytes
    );
    Outcome::Failed { reason: Reason::Stalled, error }
}

fn request(item: &Item, cid: Cid) -> PinAdd {
    // Hints only: what cannot be read is left out.
    let options = types::Pin::decode(item.pin.as_slice()).ok().and_then(|pin| pin.options).unwrap_or_default();
    // beh:B8.20: for the first attempt, and not for a pin that was there already and got lost.
    let is_first = item.attempts == 0 && item.status != TrackerStatus::UnexpectedlyUnpinned;
    let pin_update = if is_first { optional_cid(&options.pin_update).ok().flatten() } else { None };
    PinAdd {
        cid,
        mode: item.mode,
        origins: options.origins.into_iter().filter_map(|bytes| Multiaddr::try_from(bytes).ok()).collect(),
        pin_update: pin_update.filter(|from| *from != cid),
        // The feeder asked before the claim, and `prepare` after a broken-off call.
        known: Known::NotPinned,
    }
}

/// Claims are about one node's pins. Another one may have taken its place since the last probe, and what is pinned there
/// is not ours: it is asked who it is before anything is taken away.
async fn remove(shared: &Shared, cid: &Cid) -> Result<(), NodeError> {
    let answering = tokio::time::timeout(LOOK_UP_DEADLINE, shared.node.id()).await;
    let late = |_| NodeError::Timeout(format!("id: no answer within {LOOK_UP_DEADLINE:?}"));
    let answering = answering.map_err(late)??.peer_id;
    if shared.store.node() != Some(answering.to_bytes()) {
        return Err(NodeError::Down(format!("another IPFS node answers: {answering}")));
    }
    shared.node.pin_rm(cid).await
}

async fn unpin(shared: &Shared, cid: Cid, key: &[u8], _slot: Slot) -> Outcome {
    if shared.unpin_disable {
        return Outcome::Refused("unpinning is disabled: ipfs_connector.ipfshttp.unpin_disable".to_owned());
    }
    let doubtful = shared.board.resolve_doubt(key);
    if let Err(error) = remove(shared, &cid).await {
        return failure(shared, error).await;
    }
    if !doubtful {
        return Outcome::Unpinned;
    }
    tokio::time::sleep(LATE_PIN).await;
    match shared.node.pin_state(&cid).await {
        Ok(PinState::NotPinned) => Outcome::Unpinned,
        Ok(PinState::Direct | PinState::Recursive) => match remove(shared, &cid).await {
            Ok(()) => Outcome::Unpinned,
            Err(error) => failure(shared, error).await,
        },
        Err(error) => failure(shared, error).await,
    }
}
