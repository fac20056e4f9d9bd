//! One whole peer from its folder: its four services, supervised. What `ctl daemon` runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::config::{Args, File};
use pinfold_common::identity::Identity;
use pinfold_common::tls::Room;
use pinfold_common::{PeerId, address};
use pinfold_proto::api;
use tonic::transport::{Channel, Endpoint};

use super::service::{Plan, Service, State, Tell};
use super::{LocalError, Programs, Result};

const POLL: Duration = Duration::from_millis(50);
/// What consensus-svc needs beside leaving itself.
const LEAVE_MARGIN: Duration = Duration::from_secs(30);
const CALL_DEADLINE: Duration = Duration::from_secs(2);

/// In the order in which they are started.
pub const ROOMS: [Room; 4] = [Room::Consensus, Room::Monitor, Room::Connector, Room::Gateway];

/// A running peer. Dropping it ends its processes.
pub struct Peer {
    pub folder: PathBuf,
    pub peer_id: PeerId,
    /// host:port of REST and gRPC.
    pub api: String,
    /// Multiaddress of its consensus service with /p2p/<id>: what others bootstrap to.
    pub bootstrap_address: String,
    /// It leaves the cluster on a clean stop, and has so long for it.
    leaves_within: Option<Duration>,
    services: Vec<(Room, Service)>,
}

impl Peer {
    /// Starts the four services. They find each other, or wait for each other, by themselves.
    pub fn start(folder: &Path, programs: &Programs, bootstrap: &[String], tell: Tell) -> Result<Peer> {
        let args = Args { folder: Some(folder.to_owned()), loglevel: "info".to_owned(), debug: false };
        // What is wrong with the folder is said here in one sentence, not by four services in four log files.
        let file = File::load(&args)?;
        file.secret()?;
        let identity = Identity::load(folder)?;
        let consensus = file.announce(Room::Consensus)?;
        let api = file.announce(Room::Gateway)?;
        let leaves_within = match file.bool("cluster.leave_on_shutdown")? {
            true => Some(file.positive_duration("cluster.leave_timeout")? + LEAVE_MARGIN),
            false => None,
        };
        let logs = folder.join("logs");
        std::fs::create_dir_all(&logs).map_err(|error| {
            LocalError::new(format!("{} can't be made: {error}; is the folder writable?", logs.display()))
        })?;
        let mut services = Vec::new();
        for room in ROOMS {
            let mut arguments = vec!["--config".to_owned(), folder.display().to_string()];
            if room == Room::Consensus && !bootstrap.is_empty() {
                arguments.extend(["--bootstrap".to_owned(), bootstrap.join(",")]);
            }
            let plan = Plan {
                name: room.name().to_owned(),
                program: programs.path(room.name())?,
                arguments,
                environment: memory_settings(),
                log: logs.join(format!("{}.log", room.name())),
            };
            services.push((room, Service::start(plan, tell.clone())));
        }
        Ok(Peer {
            folder: folder.to_owned(),
            peer_id: identity.peer_id,
            api,
            bootstrap_address: format!("{}/p2p/{}", address::multiaddr_of(&consensus)?, identity.peer_id),
            leaves_within,
            services,
        })
    }

    pub fn service(&self, room: Room) -> Option<&Service> {
        self.services.iter().find(|(own, _)| *own == room).map(|(_, service)| service)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().map(|(_, service)| service)
    }

    /// The exit code with which consensus-svc was stopped.
    pub fn consensus_exit_code(&self) -> Option<i32> {
        self.service(Room::Consensus).and_then(Service::exit_code)
    }

    /// The last line of consensus-svc's log.
    pub fn last_words(&self) -> Option<String> {
        self.service(Room::Consensus).and_then(|service| last_line(service.log()))
    }

    /// Its consensus-svc has ended because the peer is not a member any more.
    pub fn is_removed(&self) -> bool {
        self.service(Room::Consensus).is_some_and(|service| service.state() == State::Removed)
    }

    /// A connection to the public API, made when it is first used.
    pub fn channel(&self) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.api));
        let endpoint = endpoint.map_err(|error| LocalError::new(format!("{}: {error}", self.api)))?;
        Ok(endpoint.connect_timeout(CALL_DEADLINE).timeout(CALL_DEADLINE).connect_lazy())
    }

    /// Why the peer can't serve yet; `None` when it can.
    pub async fn not_ready(&self) -> Result<Option<String>> {
        for service in self.services() {
            match service.state() {
                State::Refused => {
                    return Err(LocalError::new(format!(
                        "{} refuses to run: {}",
                        service.name(),
                        last_line(service.log()).unwrap_or_else(|| format!("see {}", service.log().display()))
                    )));
                }
                State::Removed => {
                    return Err(LocalError::new(
                        last_line(service.log()).unwrap_or_else(|| "this peer was removed".to_owned()),
                    ));
                }
                State::Starting | State::Running { .. } => {}
                State::BackingOff { why } => return Ok(Some(format!("{} {why}", service.name()))),
                State::Stopped => return Ok(Some(format!("{} is stopped", service.name()))),
            }
        }
        let mut client =
            api::cluster_client::ClusterClient::new(self.channel()?).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let health = match client.health(api::HealthRequest {}).await {
            Ok(health) => health.into_inner(),
            Err(_) => return Ok(Some("api-gateway does not answer yet".to_owned())),
        };
        let waiting = health.rooms.iter().find(|room| !room.ready);
        Ok(match waiting {
            Some(room) => Some(format!("{}: {}", room.name, room.reason)),
            None if health.ready => None,
            None => Some("not ready".to_owned()),
        })
    }

    /// Waits until the peer can serve, telling what it waits for whenever that changes.
    pub async fn wait_ready(&self, deadline: Duration, mut watch: impl FnMut(&str)) -> Result<()> {
        let started = Instant::now();
        let mut last = String::new();
        loop {
            let Some(reason) = self.not_ready().await? else { return Ok(()) };
            if reason != last {
                watch(&reason);
                last = reason;
            }
            if started.elapsed() > deadline {
                return Err(LocalError::new(format!(
                    "peer {} is not ready after {deadline:?}: {last}; the log files are in {}",
                    self.peer_id,
                    self.folder.join("logs").display()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops cleanly: the gateway first, so that nothing new comes in, consensus last (beh:B5.4). A peer that leaves does
    /// so first, while all of it runs: the others copy from it what only it has.
    pub async fn stop(&self) {
        if let (Some(deadline), Some(consensus)) = (self.leaves_within, self.service(Room::Consensus)) {
            consensus.stop_within(deadline).await;
        }
        for room in [Room::Gateway, Room::Connector, Room::Monitor, Room::Consensus] {
            if let Some(service) = self.service(room) {
                service.stop().await;
            }
        }
    }

    /// kill -9 of all four, held until `resume`.
    pub async fn kill(&self) {
        futures::future::join_all(self.services().map(Service::kill_and_hold)).await;
    }

    pub async fn resume(&self) {
        futures::future::join_all(self.services().map(Service::resume)).await;
    }
}

/// Each thread of a service would have a heap of its own, and what is freed there stays there; two are enough for so few
/// busy threads. Who sets it knows better.
fn memory_settings() -> Vec<(String, String)> {
    const HEAPS: &str = "MALLOC_ARENA_MAX";
    match std::env::var_os(HEAPS) {
        Some(_) => Vec::new(),
        None => vec![(HEAPS.to_owned(), "2".to_owned())],
    }
}

/// The last line of a log file, for a message.
fn last_line(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    text.lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}
