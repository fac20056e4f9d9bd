//! Asks a connector what it really holds (protocols.md 7).

use std::time::Duration;

use futures::{StreamExt as _, stream};
use pinfold_common::channel::{MAX_MESSAGE_BYTES, call, explain};
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::tls::Room;
use pinfold_common::{Error, Result};
use pinfold_proto::connector::holdings_client::HoldingsClient;
use pinfold_proto::connector::{Held, HoldingsCall, HoldingsReply, holdings_reply};
use pinfold_proto::types;

use super::plan::settle::Copy;
use crate::core::Core;
use crate::pinset::PeerTable;

/// One connector's answer about a page; each item may be a question to its IPFS node.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// One answer for each, in order. An error says nothing about any of them.
pub(crate) async fn ask(core: &Core, peers: &PeerTable, peer: &[u8], about: &[&types::Pin]) -> Result<Vec<Copy>> {
    let row = peers.member(peer).ok_or_else(|| Error::unavailable("not a member"))?;
    let address = row.addresses.as_ref().map(|addresses| addresses.connector.as_str()).unwrap_or_default();
    let channel = core.channels.to(Room::Connector, &peer_from_bytes(peer)?, address);
    let mut client = HoldingsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let items = about.iter().map(|pin| Held { cid: pin.cid.clone(), revision: pin.revision }).collect();
    let asked = stream::iter([HoldingsCall { items }]);
    let mut replies = call("ask what it holds", ANSWER_DEADLINE, client.check(asked)).await?;
    let reply = tokio::time::timeout(ANSWER_DEADLINE, replies.next()).await;
    let reply = match reply {
        Ok(Some(Ok(reply))) => reply,
        Ok(Some(Err(status))) => return Err(explain(status)),
        Ok(None) => return Err(Error::unavailable("the stream ended without an answer")),
        Err(_) => return Err(Error::unavailable(format!("no answer within {ANSWER_DEADLINE:?}"))),
    };
    if reply.answers.len() != about.len() {
        return Err(Error::internal(format!("{} answers to {} questions", reply.answers.len(), about.len())));
    }
    Ok(decode(&reply))
}

fn decode(reply: &HoldingsReply) -> Vec<Copy> {
    let copy = |answer: holdings_reply::Answer| match answer {
        holdings_reply::Answer::Held => Copy::Held,
        holdings_reply::Answer::No => Copy::No,
        holdings_reply::Answer::Unknown => Copy::Unknown,
    };
    reply.answers().map(copy).collect()
}
