//! consensus-svc alone: one real process with its folder, asked as its own gateway asks it. Pins go everywhere, so that
//! nobody has to allocate, and no other service of the peer is needed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ctl::local::cluster::addresses;
use ctl::local::ports::Ports;
use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES};
use pinfold_common::config::{Overrides, write_new};
use pinfold_common::identity::Identity;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use pinfold_proto::consensus::peers_client::PeersClient;
use pinfold_proto::consensus::pins_client::PinsClient;
use pinfold_proto::consensus::{StatusCall, StatusReply};
use pinfold_proto::types;
use serde_json::json;
use tokio::process::{Child, Command};
use tonic::transport::Channel;

use crate::cluster::{PATIENCE, POLL, programs};

const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Lines of its log in messages.
const LAST_LINES: usize = 12;

pub struct Alone {
    pub folder: PathBuf,
    /// How another one joins by it.
    pub bootstrap_address: String,
    identity: Identity,
    secret: ClusterSecret,
    port: u16,
    channels: Channels,
    log: PathBuf,
}

impl Alone {
    /// A folder with an identity and a configuration, on ports that the kernel gave out. `settings` come last.
    pub fn prepare(folder: &Path, secret: &ClusterSecret, settings: Overrides) -> Alone {
        std::fs::create_dir_all(folder).expect("a folder");
        let identity = Identity::generate();
        identity.save(folder).expect("an identity");
        let ports = Ports::free().expect("free ports");
        let mut keys = addresses(&ports);
        keys.extend([
            ("cluster.secret", json!(secret.to_hex())),
            ("cluster.replication_factor_min", json!(-1)),
            ("cluster.replication_factor_max", json!(-1)),
        ]);
        keys.extend(settings);
        write_new(folder, keys).expect("a configuration");
        Alone::at(folder, secret, identity, ports.consensus)
    }

    fn at(folder: &Path, secret: &ClusterSecret, identity: Identity, port: u16) -> Alone {
        // Each has its own connections: a channel does not outlive the process that it leads to by much.
        let channels = Channels::new(Tls::new(secret, &identity, Room::Gateway).expect("a certificate"));
        Alone {
            folder: folder.to_owned(),
            bootstrap_address: format!("/ip4/127.0.0.1/tcp/{port}/p2p/{}", identity.peer_id),
            identity,
            secret: secret.clone(),
            port,
            channels,
            log: folder.with_extension("log"),
        }
    }

    /// The same peer in another folder, which is a copy of this one's. Only one of the two may run.
    pub fn in_copy(&self, folder: &Path, secret: &ClusterSecret) -> Alone {
        Alone::at(folder, secret, self.identity.clone(), self.port)
    }

    /// Where its standard output and error go: beside the folder when nothing else is said.
    pub fn log_to(&mut self, log: PathBuf) {
        self.log = log;
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The program.
    pub fn program() -> PathBuf {
        programs().path("consensus-svc").expect("consensus-svc is built")
    }

    /// Starts it, by way of another one or as the first of a cluster. Killed when dropped.
    pub fn start(&self, bootstrap: Option<&Alone>) -> Child {
        let mut command = Command::new(Alone::program());
        if let Some(member) = bootstrap {
            command.args(["--bootstrap", &member.bootstrap_address]);
        }
        self.spawn(command)
    }

    /// Starts `command` on this folder, which is the program or something around it.
    pub fn spawn(&self, mut command: Command) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).expect("a log file");
        command
            .arg("--config")
            .arg(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts")
    }

    /// The one connection that everything here asks by.
    pub fn channel(&self) -> Channel {
        self.channel_of(&self.channels)
    }

    /// A connection of its own.
    pub fn new_channel(&self) -> Channel {
        let tls = Tls::new(&self.secret, &self.identity, Room::Gateway).expect("a certificate");
        self.channel_of(&Channels::new(tls))
    }

    fn channel_of(&self, channels: &Channels) -> Channel {
        channels.to(Room::Consensus, &self.identity.peer_id, &format!("127.0.0.1:{}", self.port))
    }

    pub fn pins(&self) -> PinsClient<Channel> {
        pins_over(self.channel())
    }

    /// What it says of itself; `None`: nothing.
    pub async fn status(&self) -> Option<StatusReply> {
        let mut client = PeersClient::new(self.channel());
        let asked = tokio::time::timeout(CALL_DEADLINE, client.status(StatusCall {})).await;
        asked.ok()?.ok().map(tonic::Response::into_inner)
    }

    /// Waits until it is; it must be within the patience of all tests.
    pub async fn ready(&self) {
        let becomes_ready = async {
            while !self.status().await.is_some_and(|status| status.ready) {
                tokio::time::sleep(POLL).await;
            }
        };
        let is_ready = tokio::time::timeout(PATIENCE, becomes_ready).await;
        let folder = self.folder.display();
        assert!(is_ready.is_ok(), "waited {PATIENCE:?} for {folder} to be ready\n{}", self.words());
    }

    /// The end of its log, for messages.
    pub fn words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

/// A client of the pinset.
pub fn pins_over(channel: Channel) -> PinsClient<Channel> {
    PinsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// A pin as everybody makes it, with these options.
pub fn request(cid: &[u8], options: types::PinOptions) -> types::PinRequest {
    types::PinRequest {
        cid: cid.to_vec(),
        r#type: types::PinType::Data as i32,
        max_depth: -1,
        options: Some(options),
        ..types::PinRequest::default()
    }
}
