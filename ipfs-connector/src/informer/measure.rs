//! The values of beh:B14.4, one informer at a time.

use std::time::Duration;

use pinfold_common::metric::{FREESPACE, NUMPIN, PINQUEUE, REPOSIZE, TAG_PREFIX};
use pinfold_common::status::TrackerStatus;
use pinfold_common::time::Timestamp;
use pinfold_proto::types::Metric;

use super::{DiskMetric, Informer};
use crate::node::{IpfsNode, RepoStat};
use crate::store::Store;
use crate::tracker::health::Health;

const STAT_DEADLINE: Duration = Duration::from_secs(10);
/// Of a large limit no more than this is kept free.
const MAX_RESERVE_BYTES: u64 = 10 << 30;
/// Of a large file system no more than this: room for logs and databases that grow.
const MAX_DISK_RESERVE_BYTES: u64 = 2 << 30;

/// The metrics of an informer now; peer and TTL are filled in by the caller. `None`: nothing valid to say, try again
/// soon.
pub async fn metrics(informer: &Informer, node: &dyn IpfsNode, health: &Health, store: &Store) -> Option<Vec<Metric>> {
    match informer {
        Informer::Disk { kind, watermark } => {
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
            Some(vec![disk(*kind, *watermark, stat, store.counts().of(TrackerStatus::Pinned))])
        }
        Informer::PinQueue { bucket } => Some(vec![pin_queue(store.counts().of(TrackerStatus::PinQueued), *bucket)]),
        Informer::Tags(tags) => Some(
            tags.iter()
                .map(|(key, value)| Metric {
                    partitionable: true,
                    ..metric(format!("{TAG_PREFIX}{key}"), value.clone(), 0)
                })
                .collect(),
        ),
        Informer::NumPin => Some(vec![num_pin(store.counts().of(TrackerStatus::Pinned))]),
    }
}

/// A disk that is full, or nearly, says so by a metric that is not valid: a peer that falls silent cannot be told from
/// one whose connector is away (beh:B14.4 leaves it unsaid). How much it holds, and of how many items, goes along.
fn disk(kind: DiskMetric, watermark: f64, stat: RepoStat, pinned_items: u64) -> Metric {
    let free = stat.free_bytes();
    let measured = match kind {
        DiskMetric::Freespace => metric(FREESPACE.to_owned(), free.to_string(), signed(free)),
        DiskMetric::Reposize => metric(REPOSIZE.to_owned(), stat.size_bytes.to_string(), -signed(stat.size_bytes)),
    };
    metrics::gauge!("cluster_informer_disk").set(match kind {
        DiskMetric::Freespace => free as f64,
        DiskMetric::Reposize => stat.size_bytes as f64,
    });
    let lack = lack(watermark, stat);
    metrics::gauge!("pinfold_connector_disk_full").set(if lack.is_some() { 1.0 } else { 0.0 });
    let capacity_bytes = stat.size_bytes.saturating_add(free);
    Metric {
        valid: lack.is_none(),
        note: lack.unwrap_or_default(),
        capacity_bytes,
        used_bytes: stat.size_bytes,
        pinned_items,
        ..measured
    }
}

/// Why nothing new should come here, if so: the share above the watermark is kept free, of the node's own limit and of
/// the file system, and of large ones no more than a fixed number of bytes.
fn lack(watermark: f64, stat: RepoStat) -> Option<String> {
    let reserve = |size: u64, most: u64| ((size as f64 * (1.0 - watermark)) as u64).min(most);
    let limit = stat.storage_max_bytes;
    let left = limit.saturating_sub(stat.size_bytes);
    if left == 0 || left < reserve(limit, MAX_RESERVE_BYTES) {
        return Some(format!("{} of {limit} bytes that the ipfs node may use are used", stat.size_bytes));
    }
    let disk = stat.disk?;
    let is_full = disk.free_bytes == 0 || disk.free_bytes < reserve(disk.size_bytes, MAX_DISK_RESERVE_BYTES);
    is_full.then(|| format!("the file system has {} of {} bytes left", disk.free_bytes, disk.size_bytes))
}

fn pin_queue(queued: u64, bucket: u64) -> Metric {
    let units = queued.checked_div(bucket).unwrap_or(queued);
    metric(PINQUEUE.to_owned(), queued.to_string(), -signed(units))
}

/// The original leaves its weight at 0 and cannot switch it on; here the peer with the fewest pins comes first.
fn num_pin(pinned: u64) -> Metric {
    metric(NUMPIN.to_owned(), pinned.to_string(), -signed(pinned))
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
    use crate::node::Disk;

    const GIB: u64 = 1 << 30;

    fn stat(size_bytes: u64, storage_max_bytes: u64) -> RepoStat {
        RepoStat { size_bytes, storage_max_bytes, blocks: None, disk: None }
    }

    fn beside(stat: RepoStat, free_bytes: u64, size_bytes: u64) -> RepoStat {
        RepoStat { disk: Some(Disk { free_bytes, size_bytes }), ..stat }
    }

    fn free_space(stat: RepoStat) -> Metric {
        disk(DiskMetric::Freespace, 0.85, stat, 3)
    }

    /// Goal: values and weights are those of the table in beh:B14.4, and numpin, which the original cannot switch on.
    #[test]
    fn seed_g2_values_and_weights() {
        let free = free_space(stat(30, 100));
        assert_eq!((free.name.as_str(), free.value.as_str(), free.weight, free.valid), ("freespace", "70", 70, true));
        assert_eq!((free.capacity_bytes, free.used_bytes, free.pinned_items), (100, 30, 3));
        let used = disk(DiskMetric::Reposize, 0.85, stat(30, 100), 3);
        assert_eq!((used.name.as_str(), used.value.as_str(), used.weight), ("reposize", "30", -30));
        assert_eq!((used.used_bytes, used.pinned_items), (30, 3));
        let queue = pin_queue(250_000, 100_000);
        assert_eq!((queue.name.as_str(), queue.value.as_str(), queue.weight), ("pinqueue", "250000", -2));
        assert_eq!(pin_queue(7, 0).weight, -7);
        let pins = num_pin(12);
        assert_eq!((pins.name.as_str(), pins.value.as_str(), pins.weight), ("numpin", "12", -12));
    }

    /// Goal: free space is what is left of StorageMax and of the file system, whichever is less; from the watermark on
    /// nothing new is taken, with the reason, and of large ones no more than some GiB are kept free.
    #[test]
    fn seed_d6_free_space_and_watermark() {
        assert_eq!(free_space(beside(stat(30, 100), 50, 100)).weight, 50);
        assert_eq!(free_space(beside(stat(30, 100), 90, 100)).weight, 70);
        assert!(free_space(stat(85, 100)).valid);
        let full = free_space(stat(86, 100));
        assert_eq!((full.valid, full.weight), (false, 14));
        assert_eq!(full.note, "86 of 100 bytes that the ipfs node may use are used");
        let crowded = free_space(beside(stat(1, 100), 14, 100));
        assert_eq!((crowded.valid, crowded.note.as_str()), (false, "the file system has 14 of 100 bytes left"));
        assert!(free_space(stat(989 * GIB, 1000 * GIB)).valid);
        assert!(!free_space(stat(991 * GIB, 1000 * GIB)).valid);
        assert!(free_space(beside(stat(1, 1000 * GIB), 3 * GIB, 1000 * GIB)).valid);
        assert!(!free_space(beside(stat(1, 1000 * GIB), GIB, 1000 * GIB)).valid);
        // As in the original, where an operator wants that: full is full.
        assert!(disk(DiskMetric::Freespace, 1.0, stat(99, 100), 0).valid);
        for over in [stat(100, 100), stat(101, 100), beside(stat(1, 100), 0, 100)] {
            assert!(!disk(DiskMetric::Freespace, 1.0, over, 0).valid);
        }
        // Used space is no way around it.
        assert!(!disk(DiskMetric::Reposize, 0.85, stat(86, 100), 0).valid);
    }
}
