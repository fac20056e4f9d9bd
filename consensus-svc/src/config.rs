//! This room's sections of `service.json`: `consensus.raft`, `services.consensus`, and what the coordinator needs of
//! `cluster`. A plain, checked struct; every message names the key.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pinfold_common::address::{host_port, multiaddr_of, parse_multiaddr, peer_of};
use pinfold_common::channel::Hints;
use pinfold_common::config::File;
use pinfold_common::identity::Identity;
use pinfold_common::ids::parse_peer_id;
use pinfold_common::tls::{ClusterSecret, Room};
use pinfold_common::{Error, PeerId, Result, VERSION};
use pinfold_proto::{WIRE_VERSION, types};

use crate::coordinator::rules::{self, Factors};
use crate::membership::MAX_NAME_BYTES;
use crate::raft::RaftConfig;
use crate::repin::plan::judge::CONTACT_FRESH;

/// Timers below this are below what the scheduler can keep (config.md 4).
const SHORTEST_TIMER: Duration = Duration::from_millis(5);
const MAX_APPEND_ENTRIES: std::ops::RangeInclusive<u64> = 1..=4096;
/// An even number bears no more failures than the odd one below it.
const MAX_VOTERS: std::ops::RangeInclusive<u64> = 1..=15;

/// Where a peer's consensus service is, as somebody told us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    pub peer_id: PeerId,
    pub host_port: String,
}

/// Where this room keeps its data: all that is needed to look at it.
#[derive(Clone, Debug)]
pub struct Place {
    /// The peer's folder.
    pub folder: PathBuf,
    /// `<folder>/raft`, or `consensus.raft.data_folder`.
    pub raft: PathBuf,
    pub backups_rotate: u64,
}

impl Place {
    pub fn of(file: &File) -> Result<Place> {
        let folder = file.folder().to_owned();
        let raft = match file.string("consensus.raft.data_folder")? {
            name if name.is_empty() => folder.join("raft"),
            name => folder.join(name),
        };
        Ok(Place { folder, raft, backups_rotate: at_least_one(file, "consensus.raft.backups_rotate")? })
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    /// The peer's folder.
    pub folder: PathBuf,
    /// `<folder>/raft`, or `consensus.raft.data_folder`.
    pub raft_folder: PathBuf,
    pub peerstore: PathBuf,
    pub backups_rotate: u64,
    pub identity: Identity,
    pub secret: ClusterSecret,
    /// What this peer says about itself when it joins.
    pub name: String,
    /// That of this build; another one in tests only (protocols.md 10).
    pub wire_version: String,
    pub addresses: types::ServiceAddresses,
    pub multiaddresses: Vec<String>,
    pub own_monitor: String,
    /// `--bootstrap`, in the order given; empty: not asked to join.
    pub bootstrap: Vec<KnownPeer>,
    /// First-start voters, this peer among them; empty: found a cluster of one.
    pub init_peerset: Vec<PeerId>,
    /// `cluster.peer_addresses` and the `peerstore` file: hints where others may be.
    pub known_peers: Vec<KnownPeer>,
    pub wait_for_leader: Duration,
    pub commit_retries: u64,
    pub commit_retry_delay: Duration,
    pub factors: Factors,
    /// A clean stop leaves the cluster first, for at most so long (seed:F20).
    pub leave_on_shutdown: Option<Duration>,
    /// Refuses all writes (beh:B8.1).
    pub follower_mode: bool,
    pub raft: RaftConfig,
    /// Further members stay learners.
    pub max_voters: usize,
    pub repin: RepinConfig,
    pub backup: BackupConfig,
}

/// Automatic re-pinning (docs/repin.md); the leader's own settings count.
#[derive(Clone, Debug, PartialEq)]
pub struct RepinConfig {
    /// A peer may be away for so long before its copies count as lost.
    pub grace: Duration,
    /// A peer with a younger Raft message is there.
    pub contact_fresh: Duration,
    /// So long may an IPFS node be down; zero: for ever.
    pub ipfs_down_after: Duration,
    pub pins_per_second: u32,
    /// Items that were moved to one peer and that it does not hold yet.
    pub max_unconfirmed_per_peer: u64,
    /// The same in bytes, at the mean size of what all peers hold.
    pub max_unconfirmed_bytes_per_peer: u64,
    pub stop_fraction: f64,
    /// The tag whose values are failure domains.
    pub failure_domain: String,
    /// `cluster.disable_repinning`, or a follower: nothing is moved from one peer to another, whatever becomes of them
    /// (seed:C3).
    pub is_disabled: bool,
}

/// `backup.*`
#[derive(Clone, Debug)]
pub struct BackupConfig {
    pub folder: PathBuf,
    /// Zero: none is made by itself.
    pub interval: Duration,
    /// So many of those that were made by themselves are kept.
    pub keep: usize,
}

impl Config {
    /// `bootstrap` are the multiaddresses of `--bootstrap`.
    pub fn from_file(file: &File, bootstrap: &[String]) -> Result<Config> {
        let identity = Identity::load(file.folder())?;
        Config::with_identity(file, bootstrap, identity)
    }

    /// For tests, which make their identities up.
    pub fn with_identity(file: &File, bootstrap: &[String], identity: Identity) -> Result<Config> {
        let own = identity.peer_id;
        let Place { folder, raft: raft_folder, backups_rotate } = Place::of(file)?;
        let peerstore = folder.join(file.string("cluster.peerstore_file")?);
        let consensus = file.announce(Room::Consensus)?;
        let announced = multiaddr_of(&consensus)?;
        let addresses = types::ServiceAddresses {
            consensus,
            monitor: file.announce(Room::Monitor)?,
            connector: file.announce(Room::Connector)?,
            gateway: file.announce(Room::Gateway)?,
        };
        let mut known_peers = known_peers(&file.strings("cluster.peer_addresses")?)
            .map_err(|error| error.context("cluster.peer_addresses"))?;
        known_peers.extend(read_peerstore(&peerstore));
        known_peers.retain(|peer| peer.peer_id != own);
        Ok(Config {
            raft_folder,
            peerstore,
            backups_rotate,
            secret: file.secret()?,
            name: peername(file)?,
            wire_version: WIRE_VERSION.to_owned(),
            own_monitor: addresses.monitor.clone(),
            addresses,
            multiaddresses: vec![format!("{announced}/p2p/{own}")],
            bootstrap: bootstrap_peers(bootstrap, &own)?,
            init_peerset: init_peerset(file, own)?,
            known_peers,
            wait_for_leader: file.positive_duration("consensus.raft.wait_for_leader_timeout")?,
            commit_retries: file.uint("consensus.raft.commit_retries")?,
            commit_retry_delay: file.positive_duration("consensus.raft.commit_retry_delay")?,
            factors: default_factors(file)?,
            leave_on_shutdown: match file.bool("cluster.leave_on_shutdown")? {
                true => Some(file.positive_duration("cluster.leave_timeout")?),
                false => None,
            },
            follower_mode: file.bool("cluster.follower_mode")?,
            raft: raft_config(file)?,
            repin: repin_config(file)?,
            backup: BackupConfig {
                folder: folder.join(file.string("backup.folder")?),
                interval: file.duration("backup.interval")?,
                keep: usize::try_from(at_least_one(file, "backup.keep")?).unwrap_or(usize::MAX),
            },
            max_voters: max_voters(file)?,
            folder,
            identity,
        })
    }

    /// Where others may be, for links that do not find them where they should be.
    pub fn hints(&self) -> Hints {
        let mut hints: HashMap<PeerId, Vec<String>> = HashMap::new();
        for known in &self.known_peers {
            hints.entry(known.peer_id).or_default().push(known.host_port.clone());
        }
        Arc::new(hints)
    }

    /// What this peer says about itself, as its row will have it.
    pub fn own_row(&self) -> types::Peer {
        types::Peer {
            peer_id: self.identity.peer_id.to_bytes(),
            name: self.name.clone(),
            addresses: Some(self.addresses.clone()),
            multiaddresses: self.multiaddresses.clone(),
            version: VERSION.to_owned(),
            wire_version: self.wire_version.clone(),
            ..types::Peer::default()
        }
    }
}

/// As long as a row may have it.
fn peername(file: &File) -> Result<String> {
    let name = file.peername()?;
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!("cluster.peername: {} bytes, at most {MAX_NAME_BYTES}", name.len())));
    }
    Ok(name)
}

fn at_least_one(file: &File, key: &str) -> Result<u64> {
    match file.uint(key)? {
        0 => Err(Error::invalid(format!("{key}: must be greater than 0"))),
        number => Ok(number),
    }
}

fn within(file: &File, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64> {
    let number = file.uint(key)?;
    if range.contains(&number) {
        return Ok(number);
    }
    Err(Error::invalid(format!("{key}: {number} is not within {} to {}", range.start(), range.end())))
}

fn max_voters(file: &File) -> Result<usize> {
    let key = "consensus.raft.max_voters";
    match within(file, key, MAX_VOTERS)? {
        even if even % 2 == 0 => Err(Error::invalid(format!(
            "{key}: {even} is even, and bears no more failures than {}: give an odd number",
            even - 1
        ))),
        odd => Ok(odd as usize),
    }
}

/// 0 is the original's default, everywhere. The checks are those of a request, whose texts name these keys.
fn default_factors(file: &File) -> Result<Factors> {
    let factor = |key: &str| i32::try_from(file.int(key)?).map_err(|_| Error::invalid(format!("{key}: out of range")));
    rules::factors(
        factor("cluster.replication_factor_min")?,
        factor("cluster.replication_factor_max")?,
        Factors { min: -1, max: -1 },
    )
    .map_err(|error| Error::invalid(error.message))
}

/// Timing is the library's own (100 ms, 300 to 450 ms) where the keys are absent (protocols.md 11).
fn raft_config(file: &File) -> Result<RaftConfig> {
    let timer = |key: &str| match file.duration(key)? {
        duration if duration < SHORTEST_TIMER => {
            Err(Error::invalid(format!("{key}: {duration:?} is shorter than {SHORTEST_TIMER:?}, the shortest kept")))
        }
        duration => Ok(duration),
    };
    let (heartbeat_key, election_key) = ("consensus.raft.heartbeat_timeout", "consensus.raft.election_timeout");
    let defaults = RaftConfig::default();
    // The original's heartbeat timeout is how long a follower waits; ours is how often the leader sends.
    let heartbeat_interval = match file.is_present(heartbeat_key) {
        true => (timer(heartbeat_key)? / 2).max(SHORTEST_TIMER),
        false => defaults.heartbeat_interval,
    };
    let (election_timeout_min, election_timeout_max) = match file.is_present(election_key) {
        true => (timer(election_key)?, timer(election_key)? * 2),
        false if file.is_present(heartbeat_key) => (heartbeat_interval * 3, heartbeat_interval * 9 / 2),
        false => (defaults.election_timeout_min, defaults.election_timeout_max),
    };
    if election_timeout_min < heartbeat_interval * 2 {
        return Err(Error::invalid(format!(
            "{election_key}: {election_timeout_min:?} is shorter than {heartbeat_key}: followers would stand against a \
             healthy leader"
        )));
    }
    let config = RaftConfig {
        heartbeat_interval,
        election_timeout_min,
        election_timeout_max,
        max_append_entries: within(file, "consensus.raft.max_append_entries", MAX_APPEND_ENTRIES)?,
        snapshot_threshold: at_least_one(file, "consensus.raft.snapshot_threshold")?,
        snapshot_interval: timer("consensus.raft.snapshot_interval")?,
        trailing_logs: at_least_one(file, "consensus.raft.trailing_logs")?,
        network_timeout: file.positive_duration("consensus.raft.network_timeout")?,
        ..defaults
    };
    config.validate()?;
    Ok(config)
}

fn repin_config(file: &File) -> Result<RepinConfig> {
    let rate_key = "repin.pins_per_second";
    let pins_per_second = u32::try_from(at_least_one(file, rate_key)?);
    let stop_key = "repin.stop_fraction";
    let stop_fraction = file.number(stop_key)?;
    if !(stop_fraction > 0.0 && stop_fraction <= 1.0) {
        return Err(Error::invalid(format!("{stop_key}: {stop_fraction} is not above 0 and at most 1")));
    }
    Ok(RepinConfig {
        grace: file.duration("repin.grace")?,
        contact_fresh: CONTACT_FRESH.min(2 * file.positive_duration("cluster.monitor_ping_interval")?),
        ipfs_down_after: file.duration("repin.ipfs_down_after")?,
        pins_per_second: pins_per_second.map_err(|_| Error::invalid(format!("{rate_key}: out of range")))?,
        max_unconfirmed_per_peer: at_least_one(file, "repin.max_unconfirmed_per_peer")?,
        max_unconfirmed_bytes_per_peer: at_least_one(file, "repin.max_unconfirmed_bytes_per_peer")?,
        stop_fraction,
        failure_domain: file.string("repin.failure_domain")?,
        is_disabled: file.bool("cluster.disable_repinning")? || file.bool("cluster.follower_mode")?,
    })
}

/// The listed peers and this one, sorted. Unlike in the original, a bad ID is refused: a founder that counts the
/// others differently would found another cluster.
fn init_peerset(file: &File, own: PeerId) -> Result<Vec<PeerId>> {
    let key = "consensus.raft.init_peerset";
    let texts = file.strings(key)?;
    let mut peers: Vec<PeerId> =
        texts.iter().map(|text| parse_peer_id(text)).collect::<Result<_>>().map_err(|error| error.context(key))?;
    if peers.is_empty() {
        return Ok(peers);
    }
    peers.push(own);
    peers.sort();
    peers.dedup();
    Ok(peers)
}

fn known_peers(texts: &[String]) -> Result<Vec<KnownPeer>> {
    texts.iter().map(|text| known_peer(text)).collect()
}

fn known_peer(text: &str) -> Result<KnownPeer> {
    let address = parse_multiaddr(text.trim())?;
    let peer_id =
        peer_of(&address).ok_or_else(|| Error::invalid(format!("{address}: does not end in /p2p/<peer ID>")))?;
    Ok(KnownPeer { peer_id, host_port: host_port(&address)? })
}

/// Comma-separated, spaces trimmed, as the original takes them; this peer's own address is left out (beh:B3.5).
fn bootstrap_peers(lists: &[String], own: &PeerId) -> Result<Vec<KnownPeer>> {
    let texts: Vec<String> = lists
        .iter()
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .collect();
    let mut peers = known_peers(&texts).map_err(|error| error.context("--bootstrap"))?;
    let given = peers.len();
    peers.retain(|peer| peer.peer_id != *own);
    if peers.is_empty() && given > 0 {
        tracing::info!("--bootstrap names this peer only: nobody to join");
    }
    Ok(peers)
}

/// Lines that are no usable address are skipped, as in the original: these are hints.
fn read_peerstore(path: &std::path::Path) -> Vec<KnownPeer> {
    let Ok(text) = std::fs::read_to_string(path) else { return Vec::new() };
    text.lines().filter(|line| line.starts_with('/')).filter_map(|line| known_peer(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PEER: &str = "12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6";

    fn file() -> File {
        File::defaults().with("cluster.secret", json!(ClusterSecret::generate().to_hex()))
    }

    fn config(file: &File) -> Result<Config> {
        Config::with_identity(file, &[], Identity::generate())
    }

    /// Goal: absent timing keys mean 100 ms and 300 to 450 ms, present ones are honoured (protocols.md 11).
    #[test]
    fn seed_c6_raft_timing() {
        let (raft, defaults) = (config(&file()).unwrap().raft, RaftConfig::default());
        assert_eq!(raft.heartbeat_interval, defaults.heartbeat_interval);
        assert_eq!(
            (raft.election_timeout_min, raft.election_timeout_max),
            (defaults.election_timeout_min, defaults.election_timeout_max)
        );
        let wan = file()
            .with("consensus.raft.heartbeat_timeout", json!("1s"))
            .with("consensus.raft.election_timeout", json!("2s"));
        let raft = config(&wan).unwrap().raft;
        assert_eq!(raft.heartbeat_interval, Duration::from_millis(500));
        assert_eq!(
            (raft.election_timeout_min, raft.election_timeout_max),
            (Duration::from_secs(2), Duration::from_secs(4))
        );
        let upside_down = file()
            .with("consensus.raft.heartbeat_timeout", json!("10s"))
            .with("consensus.raft.election_timeout", json!("1s"));
        assert!(config(&upside_down).unwrap_err().message.contains("consensus.raft.election_timeout"));
        let tiny = file().with("consensus.raft.heartbeat_timeout", json!("1ms"));
        assert!(config(&tiny).unwrap_err().message.contains("consensus.raft.heartbeat_timeout"));
    }

    /// Goal: as many voters as bear a failure more each two, and no other number.
    #[test]
    fn seed_f4_voters_are_odd() {
        assert_eq!(config(&file()).unwrap().max_voters, 7);
        let even = config(&file().with("consensus.raft.max_voters", json!(4))).unwrap_err();
        assert!(even.message.starts_with("consensus.raft.max_voters: 4 is even"), "{even}");
        assert!(config(&file().with("consensus.raft.max_voters", json!(17))).is_err());
    }

    /// Goal: default factors of 0 mean everywhere, and wrong ones are refused by name.
    #[test]
    fn factors() {
        let unset =
            file().with("cluster.replication_factor_min", json!(0)).with("cluster.replication_factor_max", json!(0));
        assert_eq!(config(&unset).unwrap().factors, Factors { min: -1, max: -1 });
        let wrong =
            file().with("cluster.replication_factor_min", json!(3)).with("cluster.replication_factor_max", json!(2));
        assert_eq!(config(&wrong).unwrap_err().message, "cluster.replication_factor_min is larger than max");
    }

    /// Goal: lists of addresses are taken as the original takes them, and one without a peer ID is refused by flag.
    #[test]
    fn bootstrap_and_peerset() {
        let identity = Identity::generate();
        let own = identity.peer_id;
        let lists = [format!(" /ip4/127.0.0.1/tcp/9096/p2p/{PEER} , /dns4/b/tcp/1/p2p/{own}")];
        let config = Config::with_identity(&file(), &lists, identity.clone()).unwrap();
        let peer_id = parse_peer_id(PEER).unwrap();
        assert_eq!(config.bootstrap, vec![KnownPeer { peer_id, host_port: "127.0.0.1:9096".into() }]);
        let nameless = Config::with_identity(&file(), &["/ip4/127.0.0.1/tcp/9096".into()], identity.clone());
        assert!(nameless.unwrap_err().message.starts_with("--bootstrap: "));
        let founders = file().with("consensus.raft.init_peerset", json!([PEER, PEER]));
        let config = Config::with_identity(&founders, &[], identity).unwrap();
        assert_eq!(config.init_peerset.len(), 2);
        assert!(config.init_peerset.is_sorted());
    }
}
