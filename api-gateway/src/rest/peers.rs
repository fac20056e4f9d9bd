//! `/id`, `/version` and `/peers`.

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Limited};
use pinfold_common::ids::parse_peer_id;
use pinfold_common::json::{IdJson, VersionJson, to_go_json};
use pinfold_common::{Code, Error, Result, VERSION, departure};
use pinfold_proto::consensus::{AddPeerCall, DrainPeerCall, RemovePeerCall};
use pinfold_proto::types::Departure;
use pinfold_proto::types::departure::Phase;
use serde::Deserialize;

use super::Call;
use super::respond::{self, Answer};
use crate::cluster::{Cluster, MEMBERSHIP_DEADLINE, ask};
use crate::fanout;

/// A peer ID and an address are far smaller.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The body of `POST /peers`. The address is ours: without it, the peer must be in the peerstore.
#[derive(Deserialize)]
struct AddPeerJson {
    #[serde(default)]
    peer_id: String,
    #[serde(default)]
    address: String,
}

impl Call<'_> {
    pub(super) async fn id(&self) -> Result<Answer> {
        Ok(respond::json(&IdJson::try_from(&fanout::id(&self.rest.cluster).await)?))
    }

    pub(super) fn version(&self) -> Result<Answer> {
        Ok(respond::json(&VersionJson { version: VERSION.to_owned() }))
    }

    pub(super) async fn peers(&self) -> Answer {
        let records = fanout::peers(&self.rest.cluster);
        let lines = records.map(|record| Ok(Bytes::from(to_go_json(&IdJson::try_from(&record)?))));
        respond::stream(lines.boxed()).await
    }

    pub(super) async fn add_peer(&self, body: Body) -> Result<Answer> {
        let bad = || Error::invalid("error decoding request body");
        let bytes = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|_| bad())?.to_bytes();
        // An array would do for a struct of ours, and is no object.
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let asked: AddPeerJson = serde_json::from_value(object.into()).map_err(|_| bad())?;
        let peer = parse_peer_id(&asked.peer_id).map_err(|_| Error::invalid("error decoding peer_id"))?;
        let call = AddPeerCall { peer_id: peer.to_bytes(), address: asked.address };
        // Whatever is wrong with the peer itself is the cluster's word, and 500 in the original.
        let record = add_peer(&self.rest.cluster, call).await.map_err(|error| match error.code.http() {
            400 | 404 => Error { code: Code::Rejected, ..error },
            _ => error,
        })?;
        Ok(respond::json(&IdJson::try_from(&record)?))
    }

    /// A peer that is no member is no error, as recorded (52-peers-rm-unknown). A removal that takes longer than clients
    /// wait is no success yet: the answer says how far it is, and that it goes on.
    pub(super) async fn remove_peer(&self, text: &str) -> Result<Answer> {
        let peer = parse_peer_id(text)?;
        let call = RemovePeerCall { peer_id: peer.to_bytes(), ..RemovePeerCall::default() };
        let departure = match remove_peer(&self.rest.cluster, call).await {
            Ok(departure) => departure,
            Err(error) if error.code == Code::NotFound => return Ok(respond::no_content()),
            Err(error) => return Err(error),
        };
        match departure.phase() {
            Phase::Removed => Ok(respond::no_content()),
            Phase::Unspecified | Phase::Draining | Phase::Reallocating | Phase::Drained => Err(Error::unavailable(
                format!("the removal of {peer} goes on: {}; ask again, or see GET /peers", departure::text(&departure)),
            )),
        }
    }
}

pub async fn add_peer(cluster: &Cluster, call: AddPeerCall) -> Result<pinfold_proto::api::PeerId> {
    let reply = ask("add the peer", MEMBERSHIP_DEADLINE, cluster.peerset().add(call)).await?;
    let added = reply.peer.ok_or_else(|| Error::internal("consensus-svc answered without the peer"))?;
    Ok(fanout::describe_added(cluster, added.try_into()?).await)
}

pub async fn remove_peer(cluster: &Cluster, call: RemovePeerCall) -> Result<Departure> {
    let reply = ask("remove the peer", MEMBERSHIP_DEADLINE, cluster.peerset().remove(call)).await?;
    Ok(reply.departure.unwrap_or_default())
}

pub async fn drain_peer(cluster: &Cluster, call: DrainPeerCall) -> Result<Departure> {
    let reply = ask("drain the peer", MEMBERSHIP_DEADLINE, cluster.peerset().drain(call)).await?;
    Ok(reply.departure.unwrap_or_default())
}
