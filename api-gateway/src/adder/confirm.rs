//! The end of an add beside an IPFS node that removes blocks by itself: its word that the blocks are on disk is good only
//! until its next GC, so the add is done when the node has them pinned. A pin walks the whole DAG with the GC locked
//! out; what a GC took before is missing then.

use std::time::Duration;

use pinfold_common::status::TrackerStatus;
use pinfold_common::{Cid, Error, PeerId, Result};
use pinfold_proto::types::PinInfo;
use tokio::time::Instant;

use super::cluster::Cluster;

/// A pin that does not get on for so long is not waited for.
const STALL_DEADLINE: Duration = Duration::from_secs(60);
/// Between two questions: the first time, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What one status means for the add.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Confirmed,
    /// Blocks and bytes so far.
    OnItsWay(u64, u64),
    Failed(String),
}

fn judge(info: &PinInfo) -> Standing {
    let status = TrackerStatus::from_proto(info.status);
    match status {
        TrackerStatus::Pinned => Standing::Confirmed,
        TrackerStatus::PinQueued | TrackerStatus::Pinning => Standing::OnItsWay(info.blocks, info.bytes),
        TrackerStatus::PinError | TrackerStatus::UnexpectedlyUnpinned | TrackerStatus::ClusterError => {
            Standing::Failed(info.error.clone())
        }
        TrackerStatus::Undefined
        | TrackerStatus::Unpinned
        | TrackerStatus::Unpinning
        | TrackerStatus::UnpinQueued
        | TrackerStatus::UnpinError
        | TrackerStatus::Remote
        | TrackerStatus::Sharded => Standing::Failed(format!("it is {status} by now")),
    }
}

/// Waits until the peer has pinned `cid`, as ordered at `index`.
pub(super) async fn pinned(cluster: &dyn Cluster, peer: PeerId, cid: &Cid, index: u64) -> Result<()> {
    const WHAT: &str = "its IPFS node removes blocks by itself, and the pin that would keep them failed";
    let mut seen = Standing::OnItsWay(0, 0);
    let mut moved = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let answer = cluster.status(peer, cid, index).await;
        match answer.as_ref().map(judge) {
            Ok(Standing::Confirmed) => return Ok(()),
            Ok(Standing::Failed(why)) => return Err(Error::unavailable(format!("{WHAT}: {why}"))),
            Ok(now @ Standing::OnItsWay(..)) if now != seen => (seen, moved) = (now, Instant::now()),
            Ok(Standing::OnItsWay(..)) | Err(_) => {}
        }
        if moved.elapsed() >= STALL_DEADLINE {
            let seconds = STALL_DEADLINE.as_secs();
            let why = answer.err().map_or_else(|| "it does not get on".to_owned(), |error| error.message);
            return Err(Error::outcome_unknown(format!("{WHAT}, or takes longer: nothing new for {seconds}s: {why}")));
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LAST_PAUSE);
    }
}
