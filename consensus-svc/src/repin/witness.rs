//! Asks the witnesses (protocols.md 6): this peer's monitor, and, while that misses somebody or does not answer, the
//! other voters' monitors. One that does not answer says nothing; it never counts as doubt.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use pinfold_common::channel::{MAX_MESSAGE_BYTES, call};
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::tls::Room;
use pinfold_proto::monitor::VerdictsCall;
use pinfold_proto::monitor::monitor_client::MonitorClient;
use pinfold_proto::monitor::witness_client::WitnessClient;
use pinfold_proto::types;
use pinfold_proto::types::peer::State;

use super::plan::judge::{Testimony, testimony};
use crate::core::Core;
use crate::pinset::PeerTable;

/// For one answer. Two in a row are far from being a pause of this process.
const DEADLINE: Duration = Duration::from_secs(1);

pub(super) struct Words {
    pub own: Option<Testimony>,
    pub others: Vec<Testimony>,
    /// What an item takes on average, if the own monitor says so; 0: it does not know.
    pub mean_item_bytes: Option<u64>,
}

pub(super) async fn hear(core: &Core, peers: &PeerTable) -> Words {
    let mut monitor = MonitorClient::new(core.own_monitor()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut mean_item_bytes = None;
    let own = match call("ask the own monitor about the members", DEADLINE, monitor.verdicts(VerdictsCall {})).await {
        Ok(reply) => {
            mean_item_bytes = Some(reply.mean_item_bytes);
            Some(testimony(reply.verdicts))
        }
        Err(error) => {
            tracing::debug!(%error, "judge without the own monitor");
            None
        }
    };
    let missed: BTreeSet<&Vec<u8>> = match &own {
        Some(words) => words.iter().filter(|(_, word)| word.is_suspect).map(|(peer, _)| peer).collect(),
        None => BTreeSet::new(),
    };
    if own.is_some() && missed.is_empty() {
        return Words { own, others: Vec::new(), mean_item_bytes };
    }
    let is_witness = |row: &&types::Peer| {
        row.voter && row.node_id != core.node_id && row.state() != State::Away && !missed.contains(&row.peer_id)
    };
    let asked = peers.members().filter(is_witness).map(|row| ask(core, row));
    let others = join_all(asked).await.into_iter().flatten().collect();
    Words { own, others, mean_item_bytes }
}

async fn ask(core: &Core, row: &types::Peer) -> Option<Testimony> {
    let peer = peer_from_bytes(&row.peer_id).ok()?;
    let address = row.addresses.as_ref().map(|addresses| addresses.monitor.as_str()).unwrap_or_default();
    let channel = core.channels.to(Room::Monitor, &peer, address);
    let mut client = WitnessClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    match call("ask a voter's monitor about the members", DEADLINE, client.testify(VerdictsCall {})).await {
        Ok(reply) => Some(testimony(reply.verdicts)),
        Err(error) => {
            tracing::debug!(%peer, %error, "a witness does not answer");
            None
        }
    }
}
