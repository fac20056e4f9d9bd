//! Whether this peer's other services answer (protocols.md 6): asked often and cheaply, each with a deadline. A process
//! that is stopped still accepts connections, so an answer is waited for, not only a connection.

use std::time::Duration;

use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES, call};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{Error, PeerId, Result};
use pinfold_proto::connector::NodeStatusCall;
use pinfold_proto::connector::node_client::NodeClient;
use pinfold_proto::consensus::StatusCall;
use pinfold_proto::consensus::peers_client::PeersClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Between two rounds while all is well; shorter when the ping interval is.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Between two rounds while a sibling does not answer.
pub const PROBE_INTERVAL_DEGRADED: Duration = Duration::from_secs(1);
/// For one answer.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// Silent rounds before a sibling is called degraded, so that a restart within a second is not told to the cluster.
pub const ROUNDS_BEFORE_DEGRADED: u32 = 2;

/// Where this peer's other services are, as host:port.
#[derive(Clone, Debug)]
pub struct Siblings {
    pub own: PeerId,
    pub channels: Channels,
    pub consensus: String,
    pub connector: String,
    pub gateway: String,
}

const ROOMS: [Room; 3] = [Room::Consensus, Room::Connector, Room::Gateway];

impl Siblings {
    /// Asks all three, again and again; leaves in `degraded` those that do not answer.
    pub async fn watch(self, interval: Duration, degraded: watch::Sender<Vec<Room>>, shutdown: Shutdown) {
        let mut silent_rounds = [0_u32; ROOMS.len()];
        loop {
            let Some(answers) = shutdown.race(self.probe_all()).await else { return };
            for ((room, answer), silent) in ROOMS.iter().zip(answers).zip(&mut silent_rounds) {
                match answer {
                    Ok(()) => *silent = 0,
                    Err(error) => {
                        *silent = silent.saturating_add(1);
                        tracing::debug!(room = room.name(), %error, "sibling does not answer");
                    }
                }
                metrics::gauge!("pinfold_monitor_sibling_up", "room" => room.name()).set(if *silent == 0 {
                    1.0
                } else {
                    0.0
                });
            }
            let down = || ROOMS.iter().zip(silent_rounds).filter(|(_, silent)| *silent >= ROUNDS_BEFORE_DEGRADED);
            let rooms: Vec<Room> = down().map(|(room, _)| *room).collect();
            degraded.send_if_modified(|known| {
                let is_new = *known != rooms;
                known.clone_from(&rooms);
                is_new
            });
            let all_well = silent_rounds.iter().all(|silent| *silent == 0);
            let pause = if all_well { interval.min(PROBE_INTERVAL) } else { PROBE_INTERVAL_DEGRADED };
            if shutdown.race(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn probe_all(&self) -> [Result<()>; ROOMS.len()] {
        let (consensus, connector, gateway) = tokio::join!(self.consensus(), self.connector(), self.gateway());
        [consensus, connector, gateway]
    }

    async fn consensus(&self) -> Result<()> {
        let channel = self.channels.to(Room::Consensus, &self.own, &self.consensus);
        let mut client = PeersClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        call("ask consensus-svc for its status", PROBE_DEADLINE, client.status(StatusCall {})).await.map(drop)
    }

    async fn connector(&self) -> Result<()> {
        let channel = self.channels.to(Room::Connector, &self.own, &self.connector);
        let mut client = NodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        call("ask ipfs-connector for its status", PROBE_DEADLINE, client.status(NodeStatusCall {})).await.map(drop)
    }

    /// The public port may speak TLS or ask for credentials; any first byte shows that somebody is there.
    async fn gateway(&self) -> Result<()> {
        let exchange = async {
            let mut stream = TcpStream::connect(&self.gateway).await?;
            let request = format!("GET /health HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.gateway);
            stream.write_all(request.as_bytes()).await?;
            stream.read(&mut [0; 1]).await
        };
        match tokio::time::timeout(PROBE_DEADLINE, exchange).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::unavailable(format!("ask api-gateway for its health: {error}"))),
            Err(_) => Err(Error::outcome_unknown("ask api-gateway for its health: no answer")),
        }
    }
}
