//! The leader's loop over the expiry index: what is past its time is proposed to go. `plan` decides, from the leader's
//! clock and those of the other voters as the own monitor knows them.

pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pinfold_common::channel::{MAX_MESSAGE_BYTES, call};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::time::Timestamp;
use pinfold_proto::monitor::VerdictsCall;
use pinfold_proto::monitor::monitor_client::MonitorClient;
use pinfold_proto::storage;
use pinfold_proto::storage::command::Command as Kind;

use self::plan::{Clocks, Due, Held, MAX_PER_ROUND};
use crate::core::{Core, Leader};

/// Between two looks at the index.
const INTERVAL: Duration = Duration::from_secs(5);
const VERDICTS_DEADLINE: Duration = Duration::from_secs(2);

pub async fn run(core: Arc<Core>, shutdown: Shutdown) {
    let work = async {
        let mut held = None;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let Leader::This { term } = core.position.borrow().leader else {
                held = None;
                continue;
            };
            let now = round(&core, term).await.err();
            if now != held {
                match now {
                    Some(Held::Skewed(seconds)) => {
                        tracing::error!(seconds, "this leader's clock is far from the voters': nothing expires");
                    }
                    Some(Held::NoSecondClock) => tracing::warn!("no other voter's clock is known: nothing expires"),
                    None => tracing::info!("pins expire again"),
                }
                held = now;
            }
        }
    };
    shutdown.race(work).await;
}

/// One look; the error says why nothing may expire.
async fn round(core: &Core, term: u64) -> Result<(), Held> {
    let now = Timestamp::now().seconds;
    let rows = match core.state.expiring(now, MAX_PER_ROUND).await {
        Ok(rows) => rows,
        Err(error) => {
            tracing::warn!(%error, "read the expiry index");
            return Ok(());
        }
    };
    if rows.is_empty() {
        return Ok(());
    }
    let due: Vec<Due> = rows
        .iter()
        .map(|pin| Due {
            cid: pin.cid.clone(),
            revision: pin.revision,
            expire_at_seconds: pin.options.as_ref().map_or(0, |options| options.expire_at_seconds),
        })
        .collect();
    let planned = plan::plan(&due, &clocks(core, now).await)?;
    let proposals = planned.into_iter().map(|expire| async {
        let command = storage::Command {
            at: Some(Timestamp::now().into()),
            request_key: Vec::new(),
            command: Some(Kind::Expire(expire)),
        };
        core.raft.propose_in_term(command, term).await
    });
    let done = join_all(proposals).await;
    let expired = done.iter().filter(|result| result.is_ok()).count();
    metrics::counter!("pinfold_consensus_pins_expired_total").increment(expired as u64);
    if let Some(Err(error)) = done.iter().find(|result| result.is_err()) {
        tracing::debug!(%error, "propose expiries; the next round finds them again");
    }
    Ok(())
}

/// The voters' clocks. A monitor that does not answer leaves them unknown.
async fn clocks(core: &Core, leader: i64) -> Clocks {
    let facts = core.state.facts();
    let voters: Vec<&[u8]> = facts
        .peers
        .members()
        .filter(|row| row.voter && row.node_id != core.node_id)
        .map(|row| row.peer_id.as_slice())
        .collect();
    if voters.is_empty() {
        return Clocks { leader, others: Vec::new(), other_voters: 0 };
    }
    let mut monitor = MonitorClient::new(core.own_monitor()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let verdicts = match call("ask for the voters' clocks", VERDICTS_DEADLINE, monitor.verdicts(VerdictsCall {})).await
    {
        Ok(reply) => reply.verdicts,
        Err(error) => {
            tracing::debug!(%error, "expiry");
            Vec::new()
        }
    };
    let others = verdicts
        .iter()
        .filter(|verdict| voters.contains(&verdict.peer_id.as_slice()))
        .filter_map(|verdict| verdict.wall_clock.map(|clock| clock.seconds))
        .collect();
    Clocks { leader, others, other_voters: voters.len() }
}
