//! Adding a peer that did not ask (`POST /peers`, beh:B4.3): it is reached first, and then asks to join as any joiner
//! does. So a peer that can't be reached never becomes a member, let alone a voter (seed:F11).

use std::time::Duration;

use pinfold_common::address::{host_port, parse_multiaddr};
use pinfold_common::channel::{MAX_MESSAGE_BYTES, explain};
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::tls::Room;
use pinfold_common::{Error, PeerId, Result};
use pinfold_proto::consensus::membership_client::MembershipClient;
use pinfold_proto::consensus::{AddPeerCall, InviteCall};
use pinfold_proto::types;

use crate::core::Core;

/// For the other peer to ask to join, and be taken.
const INVITE_DEADLINE: Duration = Duration::from_secs(25);
/// For what it became to be applied here.
const ROW_DEADLINE: Duration = Duration::from_secs(5);

/// The row of the peer, once it has one. A member has it already.
pub async fn invite(core: &Core, request: AddPeerCall) -> Result<types::Peer> {
    let peer = peer_from_bytes(&request.peer_id)?;
    if let Some(row) = core.state.facts().peers.member(&request.peer_id) {
        return Ok(row.clone());
    }
    let address = address_of(core, &peer, &request.address)?;
    let cluster_id = core.state.facts().cluster_id.clone();
    if cluster_id.is_empty() {
        return Err(Error::unavailable("add a peer: this cluster is not founded yet"));
    }
    let channel = core.channels.to(Room::Consensus, &peer, &address);
    let mut client = MembershipClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let call = InviteCall { cluster_id, address: core.config.addresses.consensus.clone() };
    match tokio::time::timeout(INVITE_DEADLINE, client.invite(call)).await {
        Ok(Ok(_)) => {}
        Ok(Err(status)) => return Err(explain(status).context(format!("add peer {peer}"))),
        Err(_) => {
            return Err(Error::outcome_unknown(format!(
                "add peer {peer}: it has not joined within {INVITE_DEADLINE:?}; see ctl peers ls"
            )));
        }
    }
    let mut facts = core.state.watch_facts();
    let applied = facts.wait_for(|facts| facts.peers.member(&request.peer_id).is_some());
    let row = match tokio::time::timeout(ROW_DEADLINE, applied).await {
        Ok(Ok(facts)) => facts.peers.member(&request.peer_id).cloned(),
        Ok(Err(_)) | Err(_) => None,
    };
    row.ok_or_else(|| {
        Error::outcome_unknown(format!("add peer {peer}: it has joined, and this peer has not seen it yet"))
    })
}

/// As given, or as `cluster.peer_addresses` and the peerstore have it.
fn address_of(core: &Core, peer: &PeerId, given: &str) -> Result<String> {
    if !given.is_empty() {
        let address = parse_multiaddr(given).map_err(|error| error.context("address"))?;
        return host_port(&address).map_err(|error| error.context("address"));
    }
    let known = core.config.known_peers.iter().find(|known| known.peer_id == *peer);
    known.map(|known| known.host_port.clone()).ok_or_else(|| {
        Error::rejected(format!(
            "the address of peer {peer} is not known here: give it (ctl peers add {peer} <multiaddress>), or start that peer \
             with --bootstrap {}",
            core.config.multiaddresses.first().map(String::as_str).unwrap_or_default()
        ))
    })
}
