//! Statuses as other rooms see them: a row, laid over with what runs right now and with whether the node is there.

use std::sync::Arc;

use pinfold_common::status::{Filter, TrackerStatus};
use pinfold_common::time::Timestamp;
use pinfold_proto::types::{self, PinInfo, Reason, Time};
use prost::Message as _;

use super::board::Running;
use super::health::State;
use super::operation::{Class, Item, Todo};

/// What is the same for all infos of one answer.
pub struct Scene {
    own: Arc<[u8]>,
    /// Why the queue waits, when the node is away.
    node_down: Option<String>,
    now: Time,
}

impl Scene {
    pub fn new(own: Arc<[u8]>, node: &State) -> Scene {
        let node_down = (node.up == Some(false)).then(|| format!("the IPFS node is down: {}", node.error));
        Scene { own, node_down, now: Timestamp::now().into() }
    }
}

/// Rows that may have one of these statuses once what runs is laid over them.
pub fn stored_statuses(filter: Filter) -> u32 {
    let mut statuses = filter.0;
    if statuses & TrackerStatus::Pinning.bit() != 0 {
        statuses |=
            TrackerStatus::PinQueued.bit() | TrackerStatus::PinError.bit() | TrackerStatus::UnexpectedlyUnpinned.bit();
    }
    if statuses & TrackerStatus::Unpinning.bit() != 0 {
        statuses |= TrackerStatus::UnpinQueued.bit() | TrackerStatus::UnpinError.bit();
    }
    statuses
}

/// The status of beh:B11.3.
pub fn status(item: &Item, running: Option<&Running>) -> TrackerStatus {
    match running.map(|running| running.todo) {
        Some(Todo::Pin) if item.todo == Todo::Pin => TrackerStatus::Pinning,
        Some(Todo::Unpin) if item.todo == Todo::Unpin && item.class == Class::Gone => TrackerStatus::Unpinning,
        Some(Todo::Nothing | Todo::Pin | Todo::Unpin) | None => item.status,
    }
}

pub fn of(item: &Item, running: Option<Running>, scene: &Scene) -> PinInfo {
    let status = status(item, running.as_ref());
    // Our own bytes; a pin that cannot be read has no name.
    let pin = types::Pin::decode(item.pin.as_slice()).unwrap_or_default();
    let options = pin.options.unwrap_or_default();
    let created = pin.timestamp.unwrap_or_default();
    let mut info = PinInfo {
        cid: item.cid.clone(),
        peer: scene.own.to_vec(),
        status: status.bit() as i32,
        error: item.error.clone(),
        reason: item.reason as i32,
        attempt_count: item.attempts,
        priority: item.priority && item.todo == Todo::Pin,
        // beh:B12.3: of the operation while there is one, else of the pin.
        timestamp: Some(if item.todo == Todo::Nothing { created } else { time(item.changed_ms) }),
        next_try: item.next_try_ms.filter(|_| item.todo != Todo::Nothing).map(time),
        blocks: item.fetched.blocks,
        bytes: item.fetched.bytes,
        last_block: item.fetched.last_block_ms.map(time),
        name: options.name,
        allocations: pin.allocations,
        origins: options.origins,
        created: Some(created),
        metadata: options.metadata,
    };
    match running.filter(|_| status == TrackerStatus::Pinning || status == TrackerStatus::Unpinning) {
        Some(running) => {
            info.attempt_count = info.attempt_count.saturating_add(1);
            info.timestamp = Some(time(running.progress.started_ms));
            info.next_try = None;
            info.error.clear();
            info.reason = Reason::None as i32;
            info.blocks = running.progress.fetched.blocks;
            info.bytes = running.progress.fetched.bytes;
            info.last_block = running.progress.fetched.last_block_ms.map(time);
        }
        None => {
            let waits =
                matches!(status, TrackerStatus::PinQueued | TrackerStatus::UnpinQueued) && info.next_try.is_some();
            if let Some(down) = scene.node_down.as_ref().filter(|_| waits) {
                info.reason = Reason::NodeDown as i32;
                info.error = down.clone();
            }
        }
    }
    info
}

/// Not in the pinset and nothing owed (beh:B12.1).
pub fn absent(cid: &[u8], scene: &Scene) -> PinInfo {
    PinInfo {
        cid: cid.to_vec(),
        peer: scene.own.to_vec(),
        status: TrackerStatus::Unpinned.bit() as i32,
        timestamp: Some(scene.now),
        ..PinInfo::default()
    }
}

fn time(unix_ms: i64) -> Time {
    Time { seconds: unix_ms.div_euclid(1000), nanos: unix_ms.rem_euclid(1000) as u32 * 1_000_000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a filter on what runs also reads the rows that may be running.
    #[test]
    fn stored_statuses_of_filters() {
        assert_eq!(stored_statuses(Filter::ALL), 0);
        assert_eq!(stored_statuses(Filter(16)), 16);
        assert_eq!(stored_statuses(Filter(32 + 16)), 16 + 32 + 512 + 4 + 4096);
        assert_eq!(stored_statuses(Filter(64)), 64 + 1024 + 8);
    }
}
