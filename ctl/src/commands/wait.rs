//! `--wait`: asks for the status until enough peers have got there (spec/ctl.md A.7).

use std::time::{Duration, Instant};

use pinfold_common::Cid;
use pinfold_common::status::TrackerStatus;
use pinfold_proto::api::{GlobalPinInfo, StatusRequest};

use crate::cli::Wait;
use crate::client::{Client, Failure, Outcome};

const POLL: Duration = Duration::from_millis(250);

/// What is waited for, and how many peers must show it when `--wait-limit` does not say.
#[derive(Clone, Copy)]
pub enum Target {
    /// With the pin's minimum of copies; -1: everywhere.
    Pinned {
        minimum: i32,
    },
    Unpinned,
}

/// The status once it is reached. `watch` sees each answer on the way, for a progress line.
pub async fn until(
    client: &Client,
    cid: &Cid,
    target: Target,
    wait: &Wait,
    mut watch: impl FnMut(&GlobalPinInfo),
) -> Outcome<GlobalPinInfo> {
    let started = Instant::now();
    loop {
        let request = StatusRequest { cid: cid.to_bytes(), local: false };
        let info = client.pins().status(request).await?.into_inner();
        watch(&info);
        let statuses: Vec<_> = info.peers.iter().map(|peer| TrackerStatus::from_proto(peer.status)).collect();
        let failed = |status: &TrackerStatus| match status {
            TrackerStatus::Undefined
            | TrackerStatus::ClusterError
            | TrackerStatus::PinError
            | TrackerStatus::UnpinError => true,
            TrackerStatus::Pinned
            | TrackerStatus::Pinning
            | TrackerStatus::Unpinning
            | TrackerStatus::Unpinned
            | TrackerStatus::Remote
            | TrackerStatus::PinQueued
            | TrackerStatus::UnpinQueued
            | TrackerStatus::Sharded
            | TrackerStatus::UnexpectedlyUnpinned => false,
        };
        if is_reached(&statuses, target, wait.wait_limit) {
            return Ok(info);
        }
        if statuses.iter().any(failed) {
            let word = match target {
                Target::Pinned { .. } => "pinned",
                Target::Unpinned => "unpinned",
            };
            let message = format!("error has occurred while attempting to reach status: {word}");
            return Err(Failure::local("waiting for pin status", message));
        }
        if !wait.wait_timeout.is_zero() && started.elapsed() >= wait.wait_timeout {
            return Err(Failure::WaitTimedOut);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn is_reached(statuses: &[TrackerStatus], target: Target, limit: i32) -> bool {
    let wanted = match target {
        Target::Pinned { .. } => TrackerStatus::Pinned,
        Target::Unpinned => TrackerStatus::Unpinned,
    };
    let limit = match (limit, target) {
        (0, Target::Pinned { minimum }) => minimum,
        (0, Target::Unpinned) => -1,
        (given, _) => given,
    };
    let there = statuses.iter().filter(|status| **status == wanted).count();
    match usize::try_from(limit) {
        Ok(limit) if limit > 0 => there >= limit.min(statuses.len()),
        _ => {
            let skips_remote = matches!(target, Target::Pinned { .. });
            let counted = statuses.iter().filter(|status| !(skips_remote && **status == TrackerStatus::Remote)).count();
            counted > 0 && there == counted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TrackerStatus::{Pinned, Pinning, Remote, Unpinned, Unpinning};

    /// Goal: the limits mean what the original's mean.
    #[test]
    fn limits() {
        let two = Target::Pinned { minimum: 2 };
        assert!(is_reached(&[Pinned, Pinned, Remote], two, 0));
        assert!(!is_reached(&[Pinned, Pinning, Remote], two, 0));
        assert!(is_reached(&[Pinned, Pinning, Remote], two, 1));
        assert!(is_reached(&[Pinned, Pinned, Remote], two, -1));
        assert!(!is_reached(&[Pinned, Pinning, Pinned], Target::Pinned { minimum: -1 }, 0));
        assert!(is_reached(&[Pinned], Target::Pinned { minimum: 3 }, 0));
        assert!(!is_reached(&[Unpinned, Unpinning], Target::Unpinned, 0));
        assert!(is_reached(&[Unpinned, Unpinned], Target::Unpinned, 0));
    }
}
