//! `service.json`, `CLUSTER_…` variables and flags as one checked tree: defaults < file < environment < flags.
//! A room reads its section by full key names, so that every message names the key; what may stand there is in `keys`.

pub mod keys;
mod load;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use multiaddr::{Multiaddr, Protocol};
use serde_json::Value;

use crate::telemetry::Telemetry;
use crate::tls::{ClusterSecret, Room};
use crate::{Error, Result, address, time};

pub use load::{FILE_NAME, from_text, without_secrets};
pub use write::{Overrides, write_new};

/// Flags that every program of a peer takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Folder of the peer: service.json, identity.json and all data [default: ~/.ipfs-cluster]
    #[arg(short = 'c', long = "config", env = "IPFS_CLUSTER_PATH", value_name = "FOLDER", global = true)]
    pub folder: Option<PathBuf>,
    /// `level` or `component:level`, separated by commas: info,consensus_svc:debug
    #[arg(short = 'l', long, env = "IPFS_CLUSTER_LOG_LEVEL", default_value = "info", global = true)]
    pub loglevel: String,
    /// Everything at debug level
    #[arg(short, long, global = true)]
    pub debug: bool,
}

impl Args {
    pub fn folder(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.folder {
            return Ok(folder.clone());
        }
        std::env::home_dir()
            .map(|home| home.join(".ipfs-cluster"))
            .ok_or_else(|| Error::invalid("no home directory is known: give the peer's folder with --config"))
    }

    fn level(&self) -> String {
        if self.debug { "debug".to_owned() } else { self.loglevel.clone() }
    }
}

/// The loaded and checked configuration of one peer.
#[derive(Clone, Debug)]
pub struct File {
    folder: PathBuf,
    /// What was written down, by file, environment or flag: canonical keys only.
    tree: Value,
    level: String,
}

impl File {
    /// Reads and checks everything; an error names the key and says what would be right.
    pub fn load(args: &Args) -> Result<File> {
        let folder = args.folder()?;
        let tree = load::read(&folder, std::env::vars())?;
        Ok(File { folder, tree, level: args.level() })
    }

    /// Defaults and nothing else, for tests.
    pub fn defaults() -> File {
        File { folder: PathBuf::from("."), tree: write::defaults(), level: "info".to_owned() }
    }

    /// The same with one key set, for tests. The value is checked like one from a file.
    pub fn with(self, key: &str, value: Value) -> File {
        self.try_with(key, value).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same with one key set, as a flag does.
    pub fn try_with(mut self, key: &str, value: Value) -> Result<File> {
        let known = keys::KEYS.iter().find(|known| known.path == key);
        let known = known.ok_or_else(|| Error::invalid(format!("{key}: no such key")))?;
        load::check(known, &value)?;
        load::insert(&mut self.tree, key, value);
        Ok(self)
    }

    /// The same in another folder.
    pub fn in_folder(mut self, folder: &Path) -> File {
        self.folder = folder.to_owned();
        self
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a key or a section was written down anywhere.
    pub fn is_present(&self, path: &str) -> bool {
        load::find(&self.tree, path).is_some_and(|value| !value.is_null())
    }

    fn value(&self, path: &str) -> Result<Value> {
        if let Some(value) = load::find(&self.tree, path) {
            return Ok(value.clone());
        }
        let key = keys::KEYS.iter().find(|key| key.path == path);
        let key = key.ok_or_else(|| Error::internal(format!("{path}: no such configuration key")))?;
        serde_json::from_str(key.default).map_err(|error| Error::internal(format!("{path}: default: {error}")))
    }

    pub fn string(&self, path: &str) -> Result<String> {
        match self.value(path)? {
            Value::String(text) => Ok(text),
            _ => Err(Error::invalid(format!("{path}: a text is needed"))),
        }
    }

    pub fn strings(&self, path: &str) -> Result<Vec<String>> {
        let bad = || Error::invalid(format!("{path}: a text or a list of texts is needed"));
        match self.value(path)? {
            Value::Null => Ok(Vec::new()),
            Value::String(text) => Ok(vec![text]),
            Value::Array(list) => {
                list.into_iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(bad)).collect()
            }
            _ => Err(bad()),
        }
    }

    pub fn duration(&self, path: &str) -> Result<Duration> {
        time::parse_go_duration(&self.string(path)?).map_err(|error| error.context(path))
    }

    /// A duration that must not be zero.
    pub fn positive_duration(&self, path: &str) -> Result<Duration> {
        match self.duration(path)? {
            Duration::ZERO => Err(Error::invalid(format!("{path}: must be greater than 0"))),
            duration => Ok(duration),
        }
    }

    pub fn int(&self, path: &str) -> Result<i64> {
        self.value(path)?.as_i64().ok_or_else(|| Error::invalid(format!("{path}: a whole number is needed")))
    }

    pub fn uint(&self, path: &str) -> Result<u64> {
        self.value(path)?.as_u64().ok_or_else(|| Error::invalid(format!("{path}: a whole number from 0 on is needed")))
    }

    pub fn number(&self, path: &str) -> Result<f64> {
        self.value(path)?.as_f64().ok_or_else(|| Error::invalid(format!("{path}: a number is needed")))
    }

    pub fn bool(&self, path: &str) -> Result<bool> {
        self.value(path)?.as_bool().ok_or_else(|| Error::invalid(format!("{path}: true or false is needed")))
    }

    pub fn multiaddr(&self, path: &str) -> Result<Multiaddr> {
        address::parse_multiaddr(&self.string(path)?).map_err(|error| error.context(path))
    }

    pub fn multiaddrs(&self, path: &str) -> Result<Vec<Multiaddr>> {
        let texts = self.strings(path)?;
        texts.iter().map(|text| address::parse_multiaddr(text).map_err(|error| error.context(path))).collect()
    }

    /// A map of texts; `None` when it is null.
    pub fn optional_map(&self, path: &str) -> Result<Option<BTreeMap<String, String>>> {
        let value = self.value(path)?;
        if value.is_null() {
            return Ok(None);
        }
        serde_json::from_value(value)
            .map(Some)
            .map_err(|_| Error::invalid(format!("{path}: an object of texts is needed")))
    }

    pub fn map(&self, path: &str) -> Result<BTreeMap<String, String>> {
        Ok(self.optional_map(path)?.unwrap_or_default())
    }

    pub fn lists(&self, path: &str) -> Result<BTreeMap<String, Vec<String>>> {
        let value = self.value(path)?;
        if value.is_null() {
            return Ok(BTreeMap::new());
        }
        serde_json::from_value(value)
            .map_err(|_| Error::invalid(format!("{path}: an object of lists of texts is needed")))
    }

    /// The cluster secret. An empty one is refused: every link between peers is authenticated by it.
    pub fn secret(&self) -> Result<ClusterSecret> {
        ClusterSecret::parse(&self.string("cluster.secret")?).map_err(|error| error.context("cluster.secret"))
    }

    /// The name for people: `cluster.peername`, or the host's.
    pub fn peername(&self) -> Result<String> {
        let name = self.string("cluster.peername")?;
        if !name.is_empty() {
            return Ok(name);
        }
        Ok(rustix::system::uname().nodename().to_string_lossy().into_owned())
    }

    /// Where a service listens. The consensus service also answers to `cluster.listen_multiaddress`, its old name.
    pub fn listen(&self, room: Room) -> Result<Multiaddr> {
        let key = listen_key(room)?;
        if room == Room::Gateway {
            return self
                .multiaddrs(key)?
                .into_iter()
                .next()
                .ok_or_else(|| Error::invalid(format!("{key}: no address")));
        }
        if room == Room::Consensus && !self.is_present(key) {
            let old = self.multiaddrs("cluster.listen_multiaddress")?;
            if let Some(tcp) =
                old.into_iter().find(|address| address.iter().any(|part| matches!(part, Protocol::Tcp(_))))
            {
                return Ok(tcp);
            }
        }
        self.multiaddr(key)
    }

    /// Where the others reach a service, as `host:port`: the announced address, else the one it listens on. When that
    /// is every address (0.0.0.0), it is the one of the interface that leads out.
    pub fn announce(&self, room: Room) -> Result<String> {
        let key = announce_key(room)?;
        if self.is_present(key) && !self.string(key)?.is_empty() {
            return address::host_port(&self.multiaddr(key)?).map_err(|error| error.context(key));
        }
        if room == Room::Consensus {
            let old = self.multiaddrs("cluster.announce_multiaddress")?;
            if let Some(first) = old.iter().find_map(|address| address::host_port(address).ok()) {
                return Ok(first);
            }
        }
        let listening =
            address::host_port(&self.listen(room)?).map_err(|error| error.context(listen_key_name(room)))?;
        match listening.rsplit_once(':') {
            Some(("0.0.0.0" | "[::]", port)) => Ok(format!("{}:{port}", outward_address())),
            _ => Ok(listening),
        }
    }

    /// Where Prometheus finds a service; `None` unless `observations.metrics.enable_stats` is on.
    pub fn metrics_listen(&self, room: Room) -> Result<Option<Multiaddr>> {
        if !self.bool("observations.metrics.enable_stats")? {
            return Ok(None);
        }
        let key = match room {
            Room::Consensus if !self.is_present("services.consensus.metrics_multiaddress") => {
                "observations.metrics.prometheus_endpoint"
            }
            Room::Consensus => "services.consensus.metrics_multiaddress",
            Room::Monitor => "services.monitor.metrics_multiaddress",
            Room::Connector => "services.connector.metrics_multiaddress",
            Room::Gateway => "services.gateway.metrics_multiaddress",
            Room::Ctl => return Ok(None),
        };
        self.multiaddr(key).map(Some)
    }

    pub fn telemetry(&self, room: Room) -> Result<Telemetry> {
        let tracing = self.bool("observations.tracing.enable_tracing")?;
        let sampling = self.number("observations.tracing.sampling_prob")?;
        if sampling < 0.0 {
            return Err(Error::invalid("observations.tracing.sampling_prob: must not be negative"));
        }
        let endpoint = self.string("observations.tracing.otlp_endpoint")?;
        Ok(Telemetry {
            level: self.level.clone(),
            json: std::env::var("PINFOLD_LOG_FORMAT").is_ok_and(|format| format == "json"),
            otlp_endpoint: tracing.then_some(endpoint),
            sampling,
            service_name: format!("{}/{}", self.string("observations.tracing.service_name")?, room.name()),
        })
    }
}

fn listen_key(room: Room) -> Result<&'static str> {
    match room {
        Room::Ctl => Err(Error::internal("ctl listens nowhere")),
        Room::Consensus | Room::Monitor | Room::Connector | Room::Gateway => Ok(listen_key_name(room)),
    }
}

/// The key that says where a service listens, for messages.
pub const fn listen_key_name(room: Room) -> &'static str {
    match room {
        Room::Consensus => "services.consensus.listen_multiaddress",
        Room::Monitor => "services.monitor.listen_multiaddress",
        Room::Connector => "services.connector.listen_multiaddress",
        Room::Gateway | Room::Ctl => "api.restapi.http_listen_multiaddress",
    }
}

fn announce_key(room: Room) -> Result<&'static str> {
    match room {
        Room::Consensus => Ok("services.consensus.announce_multiaddress"),
        Room::Monitor => Ok("services.monitor.announce_multiaddress"),
        Room::Connector => Ok("services.connector.announce_multiaddress"),
        Room::Gateway => Ok("services.gateway.announce_multiaddress"),
        Room::Ctl => Err(Error::internal("ctl announces nothing")),
    }
}

/// The local address that packets to elsewhere would leave from. Connecting a UDP socket sends nothing.
fn outward_address() -> std::net::IpAddr {
    let documentation_net = ("192.0.2.1", 9);
    std::net::UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| socket.connect(documentation_net).and_then(|()| socket.local_addr()))
        .map_or(std::net::IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}
