//! What of `service.json` this room reads (spec/config.md 3, 8, 9 and 11), checked; every message names the full key.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use multiaddr::Multiaddr;
use pinfold_common::config::File;
use pinfold_common::identity::Identity;
use pinfold_common::ids::shorten;
use pinfold_common::metric::{MAX_NAME_BYTES, MAX_NAMES_PER_PEER, MAX_TTL, MAX_VALUE_BYTES, MIN_TTL, TAG_PREFIX};
use pinfold_common::tls::{Room, Tls};
use pinfold_common::{Error, Result};

use crate::informer::{DiskMetric, Informer, Planned};
use crate::node::embedded::EmbeddedConfig;
use crate::node::kubo::KuboConfig;
use crate::store::Policy;

/// Which IPFS node stands beside this peer.
#[derive(Clone, Debug)]
pub enum Backend {
    Kubo(KuboConfig),
    Embedded(EmbeddedConfig),
}

/// The connector of one peer.
#[derive(Clone)]
pub struct Config {
    pub tls: Arc<Tls>,
    /// The peer's folder; this room's is `tracker` in it.
    pub folder: PathBuf,
    pub peername: String,
    pub backend: Backend,
    pub tracker: Tracker,
    pub informers: Vec<Planned>,
    /// beh:B13.9; 0: off.
    pub informer_trigger_interval: u64,
    /// beh:B13.7; 0: never.
    pub connect_swarms_delay: Duration,
    pub swarm_connect_deadline: Duration,
    /// This peer's other services, as host:port.
    pub consensus: String,
    pub monitor: String,
}

/// `pin_tracker.stateless`, and how often the node is compared with the table.
#[derive(Clone, Copy, Debug)]
pub struct Tracker {
    pub concurrent_pins: usize,
    pub policy: Policy,
    pub check_interval: Duration,
    pub unpin_disable: bool,
}

const BACKEND: &str = "ipfs.backend";
const CONCURRENT_PINS: &str = "pin_tracker.stateless.concurrent_pins";
const MAX_QUEUE: &str = "pin_tracker.stateless.max_pin_queue_size";
const PRIORITY_AGE: &str = "pin_tracker.stateless.priority_pin_max_age";
const PRIORITY_RETRIES: &str = "pin_tracker.stateless.priority_pin_max_retries";
const MAX_ATTEMPTS: &str = "pin_tracker.stateless.max_pin_attempts";
const FIRST_RETRY: &str = "pin_tracker.stateless.first_retry_delay";
const LAST_RETRY: &str = "pin_tracker.stateless.last_retry_delay";
const WATERMARK: &str = "informer.disk.watermark";
const TAGS: &str = "informer.tags.tags";
/// What is left of the names that one peer may publish when the other informers have theirs.
const MAX_TAGS: usize = MAX_NAMES_PER_PEER - 8;
const RECOVER_INTERVAL: &str = "cluster.pin_recover_interval";
/// More slots than this would only be more open requests at one node.
const MAX_CONCURRENT_PINS: u64 = 1024;

impl Config {
    pub fn from_file(file: &File) -> Result<Config> {
        let identity = Identity::load(file.folder())?;
        Ok(Config {
            tls: Tls::new(&file.secret()?, &identity, Room::Connector)?,
            folder: file.folder().to_owned(),
            peername: file.peername()?,
            backend: backend(file)?,
            tracker: tracker(file)?,
            informers: informers(file)?,
            informer_trigger_interval: file.uint("ipfs_connector.ipfshttp.informer_trigger_interval")?,
            connect_swarms_delay: file.duration("ipfs_connector.ipfshttp.connect_swarms_delay")?,
            swarm_connect_deadline: file.positive_duration("ipfs_connector.ipfshttp.ipfs_request_timeout")?,
            consensus: file.announce(Room::Consensus)?,
            monitor: file.announce(Room::Monitor)?,
        })
    }
}

fn backend(file: &File) -> Result<Backend> {
    let pin_timeout = file.positive_duration("ipfs_connector.ipfshttp.pin_timeout")?;
    match file.string(BACKEND)?.as_str() {
        "kubo" => Ok(Backend::Kubo(KuboConfig {
            api: node_address(file)?,
            request_timeout: file.positive_duration("ipfs_connector.ipfshttp.ipfs_request_timeout")?,
            pin_timeout,
            unpin_timeout: file.positive_duration("ipfs_connector.ipfshttp.unpin_timeout")?,
            gc_timeout: file.positive_duration("ipfs_connector.ipfshttp.repogc_timeout")?,
        })),
        "embedded" => {
            let folder = file.string("ipfs.embedded.folder")?;
            if folder.is_empty() {
                return Err(Error::invalid("ipfs.embedded.folder: must not be empty"));
            }
            let parallel = positive(file, "ipfs.embedded.fetch_parallel")?;
            let storage_max_bytes = file.uint("ipfs.embedded.storage_max_bytes")?;
            Ok(Backend::Embedded(EmbeddedConfig {
                storage_max_bytes: (storage_max_bytes > 0).then_some(storage_max_bytes),
                gateways: file.strings("ipfs.embedded.gateways")?,
                fetch_parallel: usize::try_from(parallel).unwrap_or(usize::MAX),
                pin_timeout,
                ..EmbeddedConfig::new(file.folder().join(folder))
            }))
        }
        other => Err(Error::invalid(format!("{BACKEND}: {other:?} is neither kubo nor embedded"))),
    }
}

fn node_address(file: &File) -> Result<Multiaddr> {
    file.multiaddr("ipfs_connector.ipfshttp.node_multiaddress")
}

fn tracker(file: &File) -> Result<Tracker> {
    let concurrent_pins = positive(file, CONCURRENT_PINS)?;
    if concurrent_pins > MAX_CONCURRENT_PINS {
        return Err(Error::invalid(format!("{CONCURRENT_PINS}: at most {MAX_CONCURRENT_PINS}")));
    }
    let (first_retry, last_retry) = (file.positive_duration(FIRST_RETRY)?, file.positive_duration(LAST_RETRY)?);
    if first_retry > last_retry {
        return Err(Error::invalid(format!("{FIRST_RETRY}: must not be longer than {LAST_RETRY}")));
    }
    let milliseconds = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Ok(Tracker {
        concurrent_pins: concurrent_pins as usize,
        policy: Policy {
            priority_max_age_ms: milliseconds(file.positive_duration(PRIORITY_AGE)?),
            priority_max_retries: u32::try_from(positive(file, PRIORITY_RETRIES)?).unwrap_or(u32::MAX),
            first_backoff_ms: milliseconds(first_retry),
            last_backoff_ms: milliseconds(last_retry),
            max_attempts: u32::try_from(file.uint(MAX_ATTEMPTS)?).unwrap_or(u32::MAX),
            // seed:C11: the queue is on disk, and without a number it has no bound.
            max_queued_pins: Some(file.uint(MAX_QUEUE)?).filter(|bound| *bound > 0).unwrap_or(u64::MAX),
        },
        check_interval: file.positive_duration(RECOVER_INTERVAL)?,
        unpin_disable: file.bool("ipfs_connector.ipfshttp.unpin_disable")?,
    })
}

/// Presence enables (spec/config.md 1.4); without any there is nothing to allocate by.
fn informers(file: &File) -> Result<Vec<Planned>> {
    let mut planned = Vec::new();
    if file.is_present("informer.disk") {
        let kind = match file.string("informer.disk.metric_type")?.as_str() {
            "freespace" => DiskMetric::Freespace,
            "reposize" => DiskMetric::Reposize,
            other => {
                let what = format!("informer.disk.metric_type: {other:?} is neither freespace nor reposize");
                return Err(Error::invalid(what));
            }
        };
        let watermark = file.number(WATERMARK)?;
        if !(watermark > 0.0 && watermark <= 1.0) {
            return Err(Error::invalid(format!("{WATERMARK}: {watermark} is not above 0 and at most 1")));
        }
        planned.push(Planned { informer: Informer::Disk { kind, watermark }, ttl: ttl(file, "informer.disk")? });
    }
    if file.is_present("informer.pinqueue") {
        let bucket = file.uint("informer.pinqueue.weight_bucket_size")?;
        planned.push(Planned { informer: Informer::PinQueue { bucket }, ttl: ttl(file, "informer.pinqueue")? });
    }
    if file.is_present("informer.tags") {
        planned.push(Planned { informer: Informer::Tags(tags(file)?), ttl: ttl(file, "informer.tags")? });
    }
    if file.is_present("informer.numpin") {
        planned.push(Planned { informer: Informer::NumPin, ttl: ttl(file, "informer.numpin")? });
    }
    if planned.is_empty() {
        return Err(Error::invalid("informer: at least one of disk, tags, pinqueue and numpin is needed"));
    }
    Ok(planned)
}

/// A lifetime that every receiver believes.
fn ttl(file: &File, section: &str) -> Result<Duration> {
    let key = format!("{section}.metric_ttl");
    let ttl = file.positive_duration(&key)?;
    if (MIN_TTL..=MAX_TTL).contains(&ttl) {
        return Ok(ttl);
    }
    Err(Error::invalid(format!("{key}: {ttl:?} is not between {MIN_TTL:?} and {}h", MAX_TTL.as_secs() / 3600)))
}

/// As many, and as long, as every receiver takes.
fn tags(file: &File) -> Result<BTreeMap<String, String>> {
    let tags = file.map(TAGS)?;
    if tags.len() > MAX_TAGS {
        return Err(Error::invalid(format!("{TAGS}: {} tags, at most {MAX_TAGS}", tags.len())));
    }
    for (key, value) in &tags {
        if key.is_empty() || TAG_PREFIX.len() + key.len() > MAX_NAME_BYTES {
            let most = MAX_NAME_BYTES - TAG_PREFIX.len();
            return Err(Error::invalid(format!("{TAGS}: {:?}: a tag's name has 1 to {most} bytes", shorten(key))));
        }
        if value.len() > MAX_VALUE_BYTES {
            return Err(Error::invalid(format!("{TAGS}.{key}: longer than {MAX_VALUE_BYTES} bytes")));
        }
    }
    Ok(tags)
}

fn positive(file: &File, key: &str) -> Result<u64> {
    match file.uint(key)? {
        0 => Err(Error::invalid(format!("{key}: must be greater than 0"))),
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Goal: the defaults are those of spec/config.md.
    #[test]
    fn defaults() {
        let file = File::defaults();
        let tracker = tracker(&file).unwrap();
        assert_eq!((tracker.concurrent_pins, tracker.policy.max_queued_pins), (10, u64::MAX));
        assert_eq!((tracker.policy.first_backoff_ms, tracker.policy.last_backoff_ms), (60_000, 6 * 3_600_000));
        assert_eq!(tracker.policy.priority_max_age_ms, 86_400_000);
        let names: Vec<Informer> = informers(&file).unwrap().into_iter().map(|planned| planned.informer).collect();
        assert!(names.contains(&Informer::Disk { kind: DiskMetric::Freespace, watermark: 0.85 }), "{names:?}");
        assert!(matches!(backend(&file).unwrap(), Backend::Kubo(_)));
        let embedded = backend(&file.with(BACKEND, json!("embedded"))).unwrap();
        assert!(matches!(embedded, Backend::Embedded(config) if config.storage_max_bytes.is_none()));
    }

    /// Goal: a number in `max_pin_queue_size` is the bound, as in the original; 0 is none.
    #[test]
    fn seed_c11_bound_of_the_queue() {
        let bound = |value| tracker(&File::defaults().with(MAX_QUEUE, json!(value))).unwrap().policy.max_queued_pins;
        assert_eq!((bound(50_000), bound(0)), (50_000, u64::MAX));
        assert!(File::defaults().try_with(MAX_QUEUE, json!(-1)).err().unwrap().message.starts_with(MAX_QUEUE));
    }

    /// Goal: what cannot work is refused with the key's full name.
    #[test]
    fn refusals_name_the_key() {
        type Read = fn(&File) -> Option<Error>;
        let cases: [(&str, serde_json::Value, Read); 14] = [
            (FIRST_RETRY, json!("7h"), |file| tracker(file).err()),
            (BACKEND, json!("go-ipfs"), |file| backend(file).err()),
            ("ipfs_connector.ipfshttp.pin_timeout", json!("0s"), |file| backend(file).err()),
            ("ipfs_connector.ipfshttp.unpin_timeout", json!("0s"), |file| backend(file).err()),
            (CONCURRENT_PINS, json!(0), |file| tracker(file).err()),
            (CONCURRENT_PINS, json!(100_000), |file| tracker(file).err()),
            (PRIORITY_AGE, json!("0s"), |file| tracker(file).err()),
            ("informer.disk.metric_type", json!("inodes"), |file| informers(file).err()),
            ("informer.disk.metric_ttl", json!("25h"), |file| informers(file).err()),
            ("informer.pinqueue.metric_ttl", json!("1ms"), |file| informers(file).err()),
            (WATERMARK, json!(0), |file| informers(file).err()),
            (WATERMARK, json!(1.1), |file| informers(file).err()),
            (TAGS, json!({"": "x"}), |file| informers(file).err()),
            (TAGS, json!({"region": "x".repeat(5000)}), |file| informers(file).err()),
        ];
        for (key, value, read) in cases {
            let error = read(&File::defaults().with(key, value)).unwrap();
            assert!(error.message.starts_with(key), "{error}");
        }
    }

    /// Goal: an informer runs when its section is there, each with its own TTL, and numpin too, which the original
    /// cannot switch on.
    #[test]
    fn seed_c13_c14_presence_enables() {
        let with_numpin = File::defaults()
            .with("informer.numpin.metric_ttl", json!("7s"))
            .with("informer.disk.metric_ttl", json!("5m"))
            .with(TAGS, json!({"region": "eu"}));
        let planned = informers(&with_numpin).unwrap();
        let ttl_of = |informer: &Informer| planned.iter().find(|one| one.informer == *informer).map(|one| one.ttl);
        let disk = Informer::Disk { kind: DiskMetric::Freespace, watermark: 0.85 };
        assert_eq!(ttl_of(&disk), Some(Duration::from_secs(300)));
        assert_eq!(ttl_of(&Informer::NumPin), Some(Duration::from_secs(7)));
        assert_eq!(
            ttl_of(&Informer::Tags([("region".to_owned(), "eu".to_owned())].into())),
            Some(Duration::from_secs(30))
        );
        assert!(informers(&File::defaults()).unwrap().iter().all(|one| one.informer != Informer::NumPin));
    }
}
