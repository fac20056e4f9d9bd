//! Some peers on loopback in one folder that is kept: what `ctl up` and the tests run.

use std::fs::File as LockFile;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pinfold_common::address;
use pinfold_common::config::{Overrides, write_new};
use pinfold_common::identity::Identity;
use pinfold_common::tls::ClusterSecret;
use serde_json::json;

use super::peer::Peer;
use super::ports::Ports;
use super::service::{Service, Tell};
use super::{LocalError, Programs, Result, kubo};

/// Which IPFS node each peer has.
#[derive(Clone, Debug)]
pub enum Ipfs {
    /// In the connector itself; gateways are where it fetches what no sibling holds.
    Embedded { gateways: Vec<String> },
    /// One Kubo daemon per peer, started here.
    StartKubo,
    /// Daemons that run already, one per peer: multiaddresses of their RPC APIs.
    RunningKubo(Vec<String>),
}

impl Ipfs {
    /// `embedded`, `kubo`, or `kubo=<multiaddress or URL>,…`.
    pub fn parse(text: &str, peers: u16, offline: bool) -> Result<Ipfs> {
        match text.split_once('=') {
            None if text == "embedded" => {
                Ok(Ipfs::Embedded { gateways: if offline { Vec::new() } else { vec![DEFAULT_GATEWAY.to_owned()] } })
            }
            None if text == "kubo" => Ok(Ipfs::StartKubo),
            Some(("kubo", list)) => {
                let addresses: Vec<String> = list.split(',').map(kubo_address).collect::<Result<_>>()?;
                if addresses.len() != usize::from(peers) {
                    return Err(LocalError::new(format!(
                        "--ipfs: {} Kubo addresses for {peers} peers: give one for each",
                        addresses.len()
                    )));
                }
                Ok(Ipfs::RunningKubo(addresses))
            }
            _ => Err(LocalError::new(format!(
                "--ipfs {text}: must be embedded, kubo, or kubo=<address>,… with an address per peer"
            ))),
        }
    }
}

/// The public gateway that a local cluster fetches from unless it is told not to.
pub const DEFAULT_GATEWAY: &str = "https://trustless-gateway.link";

/// A multiaddress as it is, or one made from `http://host:port`.
fn kubo_address(text: &str) -> Result<String> {
    if text.starts_with('/') {
        return Ok(address::parse_multiaddr(text)?.to_string());
    }
    let rest = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    Ok(address::multiaddr_of(rest)?.to_string())
}

#[derive(Clone)]
pub struct Options {
    pub folder: PathBuf,
    pub peers: u16,
    pub ipfs: Ipfs,
    pub replication: Option<u16>,
    pub ports: PortPlan,
    pub programs: Programs,
    /// More keys of service.json for new peers.
    pub settings: Overrides,
}

#[derive(Clone, Debug)]
pub enum PortPlan {
    /// The usual ones, moved by an offset.
    Offset(u16),
    /// Whatever is free when a peer's folder is made; kept with it.
    Free,
}

/// A running cluster. Dropping it ends its processes.
pub struct Cluster {
    pub options: Options,
    pub peers: Vec<Peer>,
    pub kubos: Vec<Service>,
    _lock: LockFile,
}

impl Cluster {
    /// Makes the folders of peers that have none and starts all peers: the first one founds, the others join it.
    pub async fn start(options: Options, tell: Tell) -> Result<Cluster> {
        let folder = &options.folder;
        std::fs::create_dir_all(folder).map_err(|error| {
            LocalError::new(format!("{} can't be made: {error}; give another with --folder", folder.display()))
        })?;
        let lock = lock(folder)?;
        let secret = secret(folder)?;
        let folders: Vec<PathBuf> = (0..options.peers).map(|index| folder.join(format!("peer{index}"))).collect();
        for (index, peer_folder) in (0..options.peers).zip(&folders) {
            prepare(&options, index, peer_folder, &secret)?;
        }
        let kubos = start_kubos(&options, &folders, &tell).await?;
        let mut peers: Vec<Peer> = Vec::new();
        for (index, peer_folder) in folders.iter().enumerate() {
            // Peers that have met keep each other's addresses, so the flag costs nothing later (beh:B3.8).
            let bootstrap: Vec<String> =
                peers.first().map(|first| first.bootstrap_address.clone()).into_iter().collect();
            let tell = tell.clone();
            let named: Tell = Arc::new(move |service, sentence| tell(&format!("peer {index}: {service}"), sentence));
            peers.push(Peer::start(peer_folder, &options.programs, &bootstrap, named)?);
        }
        Ok(Cluster { options, peers, kubos, _lock: lock })
    }

    pub async fn wait_ready(&self, deadline: Duration, mut watch: impl FnMut(usize, &str)) -> Result<()> {
        for (index, peer) in self.peers.iter().enumerate() {
            peer.wait_ready(deadline, |reason| watch(index, reason)).await?;
        }
        Ok(())
    }

    /// Stops all peers cleanly, side by side.
    pub async fn stop(&self) {
        futures::future::join_all(self.peers.iter().map(Peer::stop)).await;
        futures::future::join_all(self.kubos.iter().map(Service::stop)).await;
    }
}

fn lock(folder: &Path) -> Result<LockFile> {
    let path = folder.join("lock");
    let failed = |error: std::io::Error| LocalError::new(format!("{}: {error}", path.display()));
    let file = LockFile::options().create(true).append(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(LocalError::new(format!(
            "a cluster runs in {} already: stop it (Ctrl-C where it was started), or give another --folder",
            folder.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// The secret that the cluster's peers share, made once.
fn secret(folder: &Path) -> Result<ClusterSecret> {
    let path = folder.join("secret");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(ClusterSecret::parse(text.trim()).map_err(|error| error.context(path.display()))?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret = ClusterSecret::generate();
            pinfold_common::files::write_atomically(&path, format!("{}\n", secret.to_hex()).as_bytes(), 0o600)
                .map_err(|error| LocalError::new(format!("{} can't be written: {error}", path.display())))?;
            Ok(secret)
        }
        Err(error) => Err(LocalError::new(format!("{} can't be read: {error}", path.display()))),
    }
}

/// Makes a peer's folder the first time; checks that its ports are free every time.
fn prepare(options: &Options, index: u16, folder: &Path, secret: &ClusterSecret) -> Result<()> {
    if let PortPlan::Offset(offset) = options.ports {
        Ports::of(index, offset)?.check_free(index)?;
    }
    if folder.join(pinfold_common::config::FILE_NAME).is_file() {
        return Ok(());
    }
    let ports = match options.ports {
        PortPlan::Offset(offset) => Ports::of(index, offset)?,
        PortPlan::Free => Ports::free().map_err(|error| LocalError::new(format!("find free ports: {error}")))?,
    };
    std::fs::create_dir_all(folder)
        .map_err(|error| LocalError::new(format!("{} can't be made: {error}", folder.display())))?;
    let copies = options.replication.unwrap_or(options.peers.min(2));
    let mut keys: Overrides = vec![
        ("cluster.peername", json!(format!("peer{index}"))),
        ("cluster.secret", json!(secret.to_hex())),
        ("cluster.replication_factor_min", json!(copies)),
        ("cluster.replication_factor_max", json!(copies)),
        ("cluster.monitor_ping_interval", json!("2s")),
        ("ipfs_connector.ipfshttp.connect_swarms_delay", json!("1s")),
        // Its nodes come and go together; who plays with a cluster does not wait for a minute.
        ("pin_tracker.stateless.first_retry_delay", json!("1s")),
    ];
    keys.extend(addresses(&ports));
    match &options.ipfs {
        Ipfs::Embedded { gateways } => {
            keys.push(("ipfs.backend", json!("embedded")));
            keys.push(("ipfs.embedded.gateways", json!(gateways)));
        }
        Ipfs::StartKubo => {
            let address = format!("/ip4/127.0.0.1/tcp/{}", ports.kubo_rpc);
            keys.push(("ipfs_connector.ipfshttp.node_multiaddress", json!(address)));
            let swarm = format!("{} {}\n", ports.kubo_rpc, ports.kubo_swarm);
            std::fs::write(folder.join("kubo.ports"), swarm)
                .map_err(|error| LocalError::new(format!("write kubo.ports: {error}")))?;
        }
        Ipfs::RunningKubo(list) => {
            keys.push(("ipfs_connector.ipfshttp.node_multiaddress", json!(list[usize::from(index)])));
        }
    }
    keys.extend(options.settings.iter().cloned());
    if !folder.join("identity.json").is_file() {
        Identity::generate().save(folder)?;
    }
    write_new(folder, keys)?;
    Ok(())
}

/// The listen addresses of a peer on loopback.
pub fn addresses(ports: &Ports) -> Overrides {
    let tcp = |port: u16| json!(format!("/ip4/127.0.0.1/tcp/{port}"));
    vec![
        ("services.consensus.listen_multiaddress", tcp(ports.consensus)),
        ("services.monitor.listen_multiaddress", tcp(ports.monitor)),
        ("services.connector.listen_multiaddress", tcp(ports.connector)),
        ("api.restapi.http_listen_multiaddress", tcp(ports.gateway)),
        ("observations.metrics.prometheus_endpoint", tcp(ports.metrics[0])),
        ("services.monitor.metrics_multiaddress", tcp(ports.metrics[1])),
        ("services.connector.metrics_multiaddress", tcp(ports.metrics[2])),
        ("services.gateway.metrics_multiaddress", tcp(ports.metrics[3])),
    ]
}

async fn start_kubos(options: &Options, folders: &[PathBuf], tell: &Tell) -> Result<Vec<Service>> {
    let mut kubos = Vec::new();
    if !matches!(options.ipfs, Ipfs::StartKubo) {
        return Ok(kubos);
    }
    let program = kubo::program()?;
    for (index, folder) in folders.iter().enumerate() {
        let ports = std::fs::read_to_string(folder.join("kubo.ports")).map_err(|_| {
            LocalError::new(format!("{} was made without Kubo: give another --folder", folder.display()))
        })?;
        let mut ports = ports.split_whitespace().filter_map(|port| port.parse::<u16>().ok());
        let (Some(rpc), Some(swarm)) = (ports.next(), ports.next()) else {
            return Err(LocalError::new(format!("{} is damaged", folder.join("kubo.ports").display())));
        };
        let repo = folder.join("kubo");
        kubo::init(&program, &repo, rpc, swarm).await?;
        let logs = folder.join("logs");
        std::fs::create_dir_all(&logs).map_err(|error| LocalError::new(format!("{}: {error}", logs.display())))?;
        let plan = kubo::plan(&format!("peer {index}: kubo"), &program, &repo, logs.join("kubo.log"));
        kubos.push(Service::start(plan, tell.clone()));
    }
    Ok(kubos)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what --ipfs takes, and that a wrong count is said.
    #[test]
    fn ipfs_argument() {
        assert!(
            matches!(Ipfs::parse("embedded", 3, true).unwrap(), Ipfs::Embedded { gateways } if gateways.is_empty())
        );
        assert!(matches!(Ipfs::parse("kubo", 3, false).unwrap(), Ipfs::StartKubo));
        let Ipfs::RunningKubo(list) =
            Ipfs::parse("kubo=/ip4/127.0.0.1/tcp/5001,http://127.0.0.1:5002/", 2, false).unwrap()
        else {
            panic!()
        };
        assert_eq!(list, ["/ip4/127.0.0.1/tcp/5001", "/ip4/127.0.0.1/tcp/5002"]);
        assert!(Ipfs::parse("kubo=/ip4/127.0.0.1/tcp/5001", 2, false).is_err());
        assert!(Ipfs::parse("nonsense", 2, false).is_err());
    }
}
