//! How Raft is timed and when the log is cut. `consensus.raft.*` of the configuration fills it.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use pinfold_common::{Error, Result};

/// Entries that one append to the log takes from the queue.
const MAX_LOG_APPEND_ENTRIES: u64 = 4096;
/// Entries that one purge removes at least, so that it is not a transaction for each.
const PURGE_BATCH_ENTRIES: u64 = 256;
/// Proposals and messages that wait for the library's core.
const CORE_QUEUE: u64 = 4096;
/// Between attempts to reach a follower that can't be reached.
const UNREACHABLE_PAUSE: &str = "200ms";
/// The shortest times that the timers keep.
const SHORTEST: Duration = Duration::from_millis(5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftConfig {
    /// The leader says so often that it is there.
    pub heartbeat_interval: Duration,
    /// A follower that has not heard from the leader calls an election after a random time between the two, and not
    /// before the maximum has passed as the leader's lease: fail-over takes about twice the maximum.
    pub election_timeout_min: Duration,
    pub election_timeout_max: Duration,
    /// Entries in one message to a follower; a megabyte ends it sooner.
    pub max_append_entries: u64,
    /// Entries applied since the last checkpoint before the log is cut again.
    pub snapshot_threshold: u64,
    /// How often that is looked at; sixteen times the threshold is not waited for.
    pub snapshot_interval: Duration,
    /// Entries kept behind the checkpoint, so that a peer that was away for a moment needs no snapshot.
    pub trailing_logs: u64,
    /// Without an answer for so long, a connection that has a request on the way is given up.
    pub network_timeout: Duration,
    /// A peer that has the whole snapshot has so long to check and install it.
    pub install_snapshot_timeout: Duration,
    /// A proposal without a result for so long has an unknown outcome.
    pub propose_timeout: Duration,
}

impl Default for RaftConfig {
    fn default() -> RaftConfig {
        RaftConfig {
            heartbeat_interval: Duration::from_millis(100),
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: Duration::from_millis(450),
            max_append_entries: 300,
            snapshot_threshold: 8192,
            snapshot_interval: Duration::from_secs(120),
            trailing_logs: 100_000,
            network_timeout: Duration::from_secs(10),
            install_snapshot_timeout: Duration::from_secs(120),
            propose_timeout: Duration::from_secs(10),
        }
    }
}

impl RaftConfig {
    /// Refuses what can't work, naming the field.
    pub fn validate(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::invalid(format!("consensus.raft: {what}")));
        for (name, value) in [
            ("heartbeat_interval", self.heartbeat_interval),
            ("election_timeout_min", self.election_timeout_min),
            ("election_timeout_max", self.election_timeout_max),
            ("snapshot_interval", self.snapshot_interval),
            ("network_timeout", self.network_timeout),
            ("install_snapshot_timeout", self.install_snapshot_timeout),
            ("propose_timeout", self.propose_timeout),
        ] {
            if value < SHORTEST {
                return refuse(format!("{name} is {value:?}; timers are not finer than {SHORTEST:?}"));
            }
        }
        if self.election_timeout_min >= self.election_timeout_max {
            return refuse("election_timeout_min must be below election_timeout_max".to_owned());
        }
        if self.election_timeout_min <= self.heartbeat_interval {
            return refuse("election_timeout_min must be above heartbeat_interval".to_owned());
        }
        if self.max_append_entries == 0 || self.snapshot_threshold == 0 {
            return refuse("max_append_entries and snapshot_threshold must be above 0".to_owned());
        }
        if self.trailing_logs == 0 {
            // openraft#1828: a follower behind an empty log never got a snapshot.
            return refuse("trailing_logs must be above 0".to_owned());
        }
        Ok(())
    }

    /// The library's settings. Cutting the log is triggered by the node, which also minds transfers.
    pub(super) fn library(&self, cluster_id: &[u8]) -> Result<Config> {
        self.validate()?;
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: cluster_id.iter().map(|byte| format!("{byte:02x}")).collect(),
            heartbeat_interval: millis(self.heartbeat_interval),
            election_timeout_min: millis(self.election_timeout_min),
            election_timeout_max: millis(self.election_timeout_max),
            max_payload_entries: self.max_append_entries,
            max_append_entries: Some(MAX_LOG_APPEND_ENTRIES),
            install_snapshot_timeout: millis(self.install_snapshot_timeout),
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.trailing_logs,
            purge_batch_size: PURGE_BATCH_ENTRIES,
            api_channel_size: Some(CORE_QUEUE),
            enable_pre_vote: Some(true),
            allow_log_reversion: Some(false),
            // A leader sends entries while its own disk writes them. One that lost its newest ones with its process, and
            // went on in its old term, would write others at the same places: two pinsets, for ever. It is elected again.
            enable_leader_restore: Some(false),
            backoff: UNREACHABLE_PAUSE.to_owned(),
            ..Config::default()
        };
        config.validate().map_err(|error| Error::invalid(format!("consensus.raft: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused() {
        let good = RaftConfig::default();
        let library = good.library(b"\x01\xff").unwrap();
        assert_eq!((library.cluster_name.as_str(), library.enable_pre_vote), ("01ff", Some(true)));
        assert_eq!(library.enable_leader_restore, Some(false));
        let bad = [
            RaftConfig { heartbeat_interval: Duration::from_millis(300), ..good.clone() },
            RaftConfig { heartbeat_interval: Duration::from_micros(1), ..good.clone() },
            RaftConfig { election_timeout_max: good.election_timeout_min, ..good.clone() },
            RaftConfig { trailing_logs: 0, ..good.clone() },
            RaftConfig { snapshot_threshold: 0, ..good.clone() },
        ];
        for config in bad {
            assert!(config.library(b"").unwrap_err().message.starts_with("consensus.raft: "), "{config:?}");
        }
    }
}
