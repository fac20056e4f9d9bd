//! The IPFS nodes of the cluster connect to each other (beh:B13.7), so that they fetch from one another directly: some
//! time after the own node is there, and again when a member is new. Failures are nothing but debug lines: IPFS finds
//! its peers without us too, only later.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use multiaddr::Multiaddr;
use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES, call};
use pinfold_common::peerset::{PeerInfo, PeersHandle};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{Error, PeerId};
use pinfold_proto::connector::DescribeCall;
use pinfold_proto::connector::tracker_client::TrackerClient;

use crate::error::Result;
use crate::node::IpfsNode;
use crate::tracker::health::Health;

/// For what a member's connector says about its node.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(15);

pub struct SwarmConnect {
    pub own: PeerId,
    pub node: Arc<dyn IpfsNode>,
    pub health: Health,
    pub channels: Channels,
    pub peers: PeersHandle,
    /// 0: never.
    pub delay: Duration,
    /// For one node.
    pub deadline: Duration,
}

impl SwarmConnect {
    pub async fn run(self, shutdown: Shutdown) {
        if self.delay.is_zero() || !self.node.capabilities().dials_peers {
            shutdown.triggered().await;
            return;
        }
        shutdown.race(self.connect_for_ever()).await;
    }

    async fn connect_for_ever(&self) {
        let mut view = self.peers.subscribe();
        let mut connected: HashSet<PeerId> = HashSet::new();
        loop {
            self.health.up().await;
            tokio::time::sleep(self.delay).await;
            let members = view.borrow_and_update().peerset.peers.clone();
            connected.retain(|peer| members.iter().any(|member| member.peer_id == *peer));
            let mut missing = 0_usize;
            for member in members.iter().filter(|member| member.peer_id != self.own) {
                if connected.contains(&member.peer_id) {
                    continue;
                }
                match self.connect(member).await {
                    Ok(()) => {
                        connected.insert(member.peer_id);
                    }
                    Err(error) => {
                        missing += 1;
                        tracing::debug!(peer = %member.peer_id, %error, "connect to a member's IPFS node");
                    }
                }
            }
            // Those that failed are tried again after the delay; without any, when there is a new member.
            if missing == 0 && view.changed().await.is_err() {
                return;
            }
        }
    }

    async fn connect(&self, member: &PeerInfo) -> Result<()> {
        let host_port = member
            .address(Room::Connector)
            .ok_or_else(|| Error::unavailable(format!("peer {} announces no connector", member.peer_id)))?;
        let channel = self.channels.to(Room::Connector, &member.peer_id, host_port);
        let mut client = TrackerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let described = call("describe", DESCRIBE_DEADLINE, client.describe(DescribeCall {})).await?;
        let texts = described.ipfs.unwrap_or_default().addresses;
        let addresses: Vec<Multiaddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        if addresses.is_empty() {
            // An embedded node: nobody can dial it, and its blocks come by the connectors.
            return Ok(());
        }
        match tokio::time::timeout(self.deadline, self.node.swarm_connect(&addresses)).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(Error::outcome_unknown("swarm/connect: no answer").into()),
        }
    }
}
