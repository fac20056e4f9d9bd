//! The values of beh:B14.4, one informer at a time.

use std::time::Duration;

use pinfold_common::status::TrackerStatus;
use pinfold_common::time::Timestamp;
use pinfold_proto::types::Metric;

use super::{DiskMetric, Informer};
use crate::node::{IpfsNode, RepoStat};
use crate::store::Store;
use crate::tracker::health::Health;

const STAT_DEADLINE: Duration = Duration::from_secs(10);

/// The metrics of an informer now; peer and TTL are filled in by the caller. `None`: nothing valid to say, try again
/// soon.
pub async fn metrics(informer: &Informer, node: &dyn IpfsNode, health: &Health, store: &Store) -> Option<Vec<Metric>> {
    match informer {
        Informer::Disk(kind) => {
            let stat = match tokio::time::timeout(STAT_DEADLINE, node.repo_stat()).await {
                Ok(Ok(stat)) => stat,
                Ok(Err(error)) => {
                    health.doubt(&error);
                    tracing::debug!(%error, "measure the IPFS node's disk");
                    return None;
                }
                Err(_) => {
                    tracing::debug!("measure the IPFS node's disk: no answer");
                    return None;
                }
            };
            disk(*kind, stat).map(|metric| vec![metric])
        }
        Informer::PinQueue { bucket } => Some(vec![pin_queue(store.counts().of(TrackerStatus::PinQueued), *bucket)]),
        Informer::Tags(tags) => Some(
            tags.iter()
                .map(|(key, value)| Metric { partitionable: true, ..metric(format!("tag:{key}"), value.clone(), 0) })
                .collect(),
        ),
        Informer::NumPin => {
            Some(vec![metric("numpin".to_owned(), store.counts().of(TrackerStatus::Pinned).to_string(), 0)])
        }
    }
}

fn disk(kind: DiskMetric, stat: RepoStat) -> Option<Metric> {
    let (name, value, weight) = match kind {
        // A full repository must not look like one with no room: it says nothing.
        DiskMetric::Freespace if stat.size_bytes >= stat.storage_max_bytes => return None,
        DiskMetric::Freespace => ("freespace", stat.free_bytes(), signed(stat.free_bytes())),
        DiskMetric::Reposize => ("reposize", stat.size_bytes, -signed(stat.size_bytes)),
    };
    metrics::gauge!("cluster_informer_disk").set(value as f64);
    Some(metric(name.to_owned(), value.to_string(), weight))
}

fn pin_queue(queued: u64, bucket: u64) -> Metric {
    let units = queued.checked_div(bucket).unwrap_or(queued);
    metric("pinqueue".to_owned(), queued.to_string(), -signed(units))
}

fn metric(name: String, value: String, weight: i64) -> Metric {
    Metric { name, value, weight, valid: true, sent_at_ns: Timestamp::now().unix_nanos(), ..Metric::default() }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(size_bytes: u64, storage_max_bytes: u64) -> RepoStat {
        RepoStat { size_bytes, storage_max_bytes, blocks: None }
    }

    /// Goal: values and weights are those of the table in beh:B14.4.
    #[test]
    fn values_and_weights() {
        let free = disk(DiskMetric::Freespace, stat(30, 100)).unwrap();
        assert_eq!((free.name.as_str(), free.value.as_str(), free.weight, free.valid), ("freespace", "70", 70, true));
        assert!(disk(DiskMetric::Freespace, stat(100, 100)).is_none());
        let used = disk(DiskMetric::Reposize, stat(30, 100)).unwrap();
        assert_eq!((used.value.as_str(), used.weight), ("30", -30));
        let queue = pin_queue(250_000, 100_000);
        assert_eq!((queue.value.as_str(), queue.weight), ("250000", -2));
        assert_eq!(pin_queue(7, 0).weight, -7);
    }
}
