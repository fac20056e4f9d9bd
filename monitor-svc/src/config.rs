//! What of `service.json` this room reads (spec/config.md 3 and 10 to 12), checked; every message names the full key.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pinfold_common::config::File;
use pinfold_common::identity::Identity;
use pinfold_common::metric::{FREESPACE, MAX_NAME_BYTES, MAX_TTL, NUMPIN, PINQUEUE, REPOSIZE, TAG_PREFIX};
use pinfold_common::tls::{Room, Tls};
use pinfold_common::{Error, Result};

use crate::allocator::MAX_LEVELS;

/// The monitor of one peer.
#[derive(Clone)]
pub struct Config {
    pub tls: Arc<Tls>,
    /// The peer's folder; this room's is `monitor` in it.
    pub folder: PathBuf,
    pub peername: String,
    /// A ping lives twice as long (`beh:B14.3`).
    pub ping_interval: Duration,
    pub check_interval: Duration,
    pub allocate_by: Vec<String>,
    /// How many queued pins make one unit of weight; what was just allocated is counted in the same unit.
    pub pinqueue_bucket: u64,
    /// This peer's other services, as host:port.
    pub consensus: String,
    pub connector: String,
    pub gateway: String,
}

const PING_INTERVAL: &str = "cluster.monitor_ping_interval";
const CHECK_INTERVAL: &str = "monitor.pubsubmon.check_interval";
const ALLOCATE_BY: &str = "allocator.balanced.allocate_by";

impl Config {
    pub fn from_file(file: &File) -> Result<Config> {
        let identity = Identity::load(file.folder())?;
        let ping_interval = file.positive_duration(PING_INTERVAL)?;
        if ping_interval * 2 > MAX_TTL {
            return Err(Error::invalid(format!("{PING_INTERVAL}: at most 12h")));
        }
        let allocate_by = allocate_by(file)?;
        for metric in &allocate_by {
            if !has_informer(file, metric)? {
                tracing::warn!(
                    key = ALLOCATE_BY,
                    metric,
                    "no informer of this peer publishes this metric: where another peer does, this one gets no pins"
                );
            }
        }
        Ok(Config {
            tls: Tls::new(&file.secret()?, &identity, Room::Monitor)?,
            folder: file.folder().to_owned(),
            peername: file.peername()?,
            ping_interval,
            check_interval: file.positive_duration(CHECK_INTERVAL)?,
            allocate_by,
            pinqueue_bucket: file.uint("informer.pinqueue.weight_bucket_size")?,
            consensus: file.announce(Room::Consensus)?,
            connector: file.announce(Room::Connector)?,
            gateway: file.announce(Room::Gateway)?,
        })
    }
}

/// An absent section means free space only (`beh:B9.10`); an absent or empty list in it, the default.
fn allocate_by(file: &File) -> Result<Vec<String>> {
    if !file.is_present("allocator.balanced") {
        return Ok(vec![FREESPACE.to_owned()]);
    }
    let mut names = file.strings(ALLOCATE_BY)?;
    if names.is_empty() {
        names = vec!["tag:group".to_owned(), FREESPACE.to_owned()];
    }
    if names.len() > MAX_LEVELS {
        return Err(Error::invalid(format!("{ALLOCATE_BY}: {} metrics, at most {MAX_LEVELS}", names.len())));
    }
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(Error::invalid(format!("{ALLOCATE_BY}: a metric's name has 1 to {MAX_NAME_BYTES} bytes")));
        }
        if names[..index].contains(name) {
            return Err(Error::invalid(format!("{ALLOCATE_BY}: {name} is listed twice")));
        }
    }
    Ok(names)
}

fn has_informer(file: &File, metric: &str) -> Result<bool> {
    if let Some(tag) = metric.strip_prefix(TAG_PREFIX) {
        return Ok(file.is_present("informer.tags") && file.map("informer.tags.tags")?.contains_key(tag));
    }
    Ok(match metric {
        FREESPACE | REPOSIZE => file.is_present("informer.disk") && file.string("informer.disk.metric_type")? == metric,
        PINQUEUE => file.is_present("informer.pinqueue"),
        NUMPIN => file.is_present("informer.numpin"),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Goal: absent, empty and wrong lists are treated as the specification says.
    #[test]
    fn allocate_by_rules() {
        assert_eq!(allocate_by(&File::defaults()).unwrap(), ["tag:group", "freespace"]);
        let with = |value| allocate_by(&File::defaults().with(ALLOCATE_BY, value));
        assert_eq!(with(json!([])).unwrap(), ["tag:group", "freespace"]);
        assert_eq!(with(json!(["tag:region", "pinqueue"])).unwrap(), ["tag:region", "pinqueue"]);
        for bad in [json!([""]), json!(["a", "a"]), json!(["1", "2", "3", "4", "5", "6", "7", "8", "9"])] {
            assert!(with(bad).unwrap_err().message.starts_with(ALLOCATE_BY));
        }
    }

    /// Goal: a metric that nobody here publishes is noticed at the start.
    #[test]
    fn informers_of_metrics() {
        let file = File::defaults();
        for (metric, expected) in
            [("tag:group", true), ("tag:region", false), ("freespace", true), ("reposize", false), ("nonsense", false)]
        {
            assert_eq!(has_informer(&file, metric).unwrap(), expected, "{metric}");
        }
    }
}
