//! Asks a monitor where pins go: this peer's own, and when it does not answer in time another voter's (protocols.md 5).

use std::time::Duration;

use pinfold_common::channel::{MAX_MESSAGE_BYTES, call};
use pinfold_common::ids::peer_from_bytes;
use pinfold_common::tls::Room;
use pinfold_common::{Error, Result};
use pinfold_proto::consensus::{AllocateCall, AllocateReply};
use pinfold_proto::monitor::allocation_client::AllocationClient;
use pinfold_proto::monitor::monitor_client::MonitorClient;
use pinfold_proto::{consensus, monitor};
use tokio::time::Instant;

use super::Origin;
use super::rules;
use crate::core::{Core, Leader, at_leader};

/// A monitor that has not answered by then is away.
const ALLOCATE_DEADLINE: Duration = Duration::from_millis(200);
/// Monitors that do not answer, or are warming up, are asked again for so long; nothing is decided meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(100);
/// Other voters' monitors asked after the own one.
const MAX_OTHERS: usize = 2;
/// Items of one call, as the monitor takes them.
const MAX_ITEMS: usize = 1000;

/// One result for each item, in order.
pub(crate) async fn items(core: &Core, items: Vec<monitor::Item>) -> Result<Vec<monitor::Result>> {
    let mut results = Vec::with_capacity(items.len());
    let mut rest = items.into_iter().peekable();
    while rest.peek().is_some() {
        let chunk: Vec<monitor::Item> = rest.by_ref().take(MAX_ITEMS).collect();
        let asked = chunk.len();
        let told = ask(core, monitor::AllocateRequest { items: chunk }).await?;
        if told.len() != asked {
            return Err(Error::internal(format!("allocate: the monitor answered {} of {asked} items", told.len())));
        }
        results.extend(told);
    }
    Ok(results)
}

async fn ask(core: &Core, request: monitor::AllocateRequest) -> Result<Vec<monitor::Result>> {
    let started = Instant::now();
    loop {
        match round(core, &request).await {
            Ok(results) => {
                metrics::histogram!("pinfold_consensus_allocate_seconds").record(started.elapsed().as_secs_f64());
                return Ok(results);
            }
            Err(error) if started.elapsed() + PAUSE > PATIENCE => {
                metrics::counter!("pinfold_consensus_allocate_failures_total").increment(1);
                // Nothing was proposed, so nothing happened, whatever became of the question.
                return Err(Error::unavailable(format!("no monitor could allocate: {error}")));
            }
            Err(error) => {
                tracing::debug!(%error, "allocate; asking again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One round of questions, about no more than [`MAX_ITEMS`]; whoever asks can do without.
pub(super) async fn once(core: &Core, items: Vec<monitor::Item>) -> Result<Vec<monitor::Result>> {
    round(core, &monitor::AllocateRequest { items }).await
}

/// The own monitor, and in its place another voter's.
async fn round(core: &Core, request: &monitor::AllocateRequest) -> Result<Vec<monitor::Result>> {
    let mut own = MonitorClient::new(core.own_monitor()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut failed = match call("allocate", ALLOCATE_DEADLINE, own.allocate(request.clone())).await {
        Ok(reply) => return Ok(reply.results),
        Err(error) => error,
    };
    let facts = core.state.facts();
    let others = facts.peers.members().filter(|row| row.voter && row.peer_id != core.own_bytes);
    for row in others.take(MAX_OTHERS) {
        let address = row.addresses.as_ref().map(|addresses| addresses.monitor.as_str()).unwrap_or_default();
        let Ok(peer) = peer_from_bytes(&row.peer_id) else { continue };
        let channel = core.channels.to(Room::Monitor, &peer, address);
        let mut client = AllocationClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        match call("allocate", ALLOCATE_DEADLINE, client.allocate(request.clone())).await {
            Ok(reply) => {
                tracing::debug!(%peer, "allocated by another peer's monitor");
                return Ok(reply.results);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The destinations of an upload, decided by the leader.
pub(super) async fn for_add(core: &Core, request: AllocateCall, origin: Origin) -> Result<AllocateReply> {
    match core.leader_for(origin).await? {
        Leader::This { .. } => here(core, request).await,
        Leader::Other(peer) if origin == Origin::Own => {
            let mut client = core.forward_client(&peer)?;
            at_leader("allocate for an add at the leader", Core::FORWARD_DEADLINE, client.allocate_for_add(request))
                .await
        }
        Leader::Other(_) | Leader::Nobody => Err(core.not_leading()),
    }
}

async fn here(core: &Core, request: AllocateCall) -> Result<consensus::AllocateReply> {
    let options = request.options.unwrap_or_default();
    let chosen = rules::factors(options.replication_factor_min, options.replication_factor_max, core.config.factors)?;
    let item = monitor::Item {
        replication_factor_min: chosen.min,
        replication_factor_max: chosen.max,
        priority: request.user_allocations,
        growth: monitor::item::Growth::ForBlocks as i32,
        ..monitor::Item::default()
    };
    let result = items(core, vec![item]).await?.pop().and_then(|result| result.result);
    match result {
        Some(monitor::result::Result::Peers(peers)) if !peers.peers.is_empty() => Ok(AllocateReply {
            allocations: peers.peers,
            everywhere: chosen.min == -1,
            replication_factor_min: chosen.min,
            replication_factor_max: chosen.max,
        }),
        Some(monitor::result::Result::TooFew(too_few)) => Err(rules::too_few(&too_few)),
        Some(monitor::result::Result::Peers(_)) | None => {
            Err(Error::unavailable("allocate for an add: no peer can take blocks now"))
        }
    }
}
