//! From decisions to log entries and back to results. One entry for a batch's puts and one for its unpins, unless they
//! would be too large: an entry that no message can carry would stop replication for ever.

use futures::future::join_all;
use pinfold_common::Error;
use pinfold_common::time::Timestamp;
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{storage, types};
use prost::Message as _;
use tokio::time::Instant;

use super::decide::{Item, MAX_ATTEMPTS, Open, Step, settle};
use super::rules::Draft;
use crate::core::Core;
use crate::pinset::{ItemOutcome, Outcome, Stale};
use crate::raft::ProposeError;

/// Puts of one entry, encoded. Far below what a message may have, as several entries travel in one.
const MAX_ENTRY_BYTES: usize = 1 << 20;

/// The puts of one entry, and whose they are.
#[derive(Default)]
struct Puts {
    puts: Vec<storage::Put>,
    items: Vec<(Item, Box<Draft>)>,
    size_bytes: usize,
}

/// The unpins of one entry; `None`: one that goes along with the item before it.
#[derive(Default)]
struct Unpins {
    unpins: Vec<storage::Unpin>,
    items: Vec<Option<Item>>,
}

type Committed = Result<(u64, Vec<ItemOutcome>), ProposeError>;

/// Proposes all steps side by side and settles them; returns those that came back stale, if they may be decided again.
pub(super) async fn propose(
    core: &Core,
    term: u64,
    open: &mut [Open],
    steps: Vec<(Item, Step)>,
    now: Timestamp,
    last: bool,
) -> Vec<Item> {
    let (mut batches, unpins) = entries(open, steps);
    let put = batches.iter_mut().map(|batch| {
        let puts = std::mem::take(&mut batch.puts);
        commit(core, term, Kind::PutMany(storage::PutMany { puts }), batch.items.len(), now)
    });
    let unpin =
        commit(core, term, Kind::UnpinMany(storage::UnpinMany { unpins: unpins.unpins }), unpins.items.len(), now);
    let (put, unpin) = tokio::join!(join_all(put), unpin);

    let mut again = Vec::new();
    for (batch, committed) in batches.into_iter().zip(put) {
        settle_puts(core, open, batch.items, committed, last, &mut again).await;
    }
    settle_unpins(open, unpins.items, unpin, last, &mut again);
    again
}

fn entries(open: &[Open], steps: Vec<(Item, Step)>) -> (Vec<Puts>, Unpins) {
    let mut batches: Vec<Puts> = Vec::new();
    let mut unpins = Unpins::default();
    for (item, step) in steps {
        let request_key = open[item.job].job.key.clone();
        match step {
            Step::Put(draft) => {
                let expected_revision = draft.expected_revision();
                let put = storage::Put { pin: Some(draft.pin.clone()), expected_revision, request_key };
                let size_bytes = put.encoded_len();
                if batches.last().is_none_or(|batch| batch.size_bytes + size_bytes > MAX_ENTRY_BYTES) {
                    batches.push(Puts::default());
                }
                if let Some(batch) = batches.last_mut() {
                    batch.puts.push(put);
                    batch.items.push((item, draft));
                    batch.size_bytes += size_bytes;
                }
            }
            Step::Unpin { cids, revision } => {
                // The item's own entry is the one that was read; what goes with it goes as it is.
                let mut own = Some(item);
                for (cid, expected_revision) in cids.into_iter().zip([revision, 0]) {
                    unpins.unpins.push(storage::Unpin { cid, expected_revision, request_key: request_key.clone() });
                    unpins.items.push(own.take());
                }
            }
        }
    }
    (batches, unpins)
}

async fn commit(core: &Core, term: u64, kind: Kind, count: usize, now: Timestamp) -> Committed {
    if count == 0 {
        return Ok((0, Vec::new()));
    }
    let started = Instant::now();
    let command = storage::Command { at: Some(now.into()), request_key: Vec::new(), command: Some(kind) };
    let (index, outcome) = core.raft.propose_in_term(command, term).await?;
    metrics::histogram!("pinfold_consensus_proposal_seconds").record(started.elapsed().as_secs_f64());
    match outcome {
        Outcome::Items(items) if items.len() == count => Ok((index, items)),
        Outcome::Items(_) | Outcome::Peer(_) | Outcome::Done | Outcome::Refused(_) => {
            unreachable!("apply answers a batch item by item")
        }
    }
}

async fn settle_puts(
    core: &Core,
    open: &mut [Open],
    items: Vec<(Item, Box<Draft>)>,
    committed: Committed,
    last: bool,
    again: &mut Vec<Item>,
) {
    let (index, outcomes) = match committed {
        Ok(committed) => committed,
        Err(error) => {
            items.iter().for_each(|(item, _)| open[item.job].failed = Some(error.clone()));
            return;
        }
    };
    metrics::counter!("pinfold_consensus_pins_committed_total").increment(items.len() as u64);
    for ((item, draft), outcome) in items.into_iter().zip(outcomes) {
        match outcome {
            ItemOutcome::Written(revision) if revision == index => {
                settle(open, &item, index, Ok(types::Pin { revision, ..draft.pin }));
            }
            // Under a key that was used before.
            ItemOutcome::Written(revision) => {
                let pin = first_written(core, draft.pin, revision).await;
                settle(open, &item, index, Ok(pin));
            }
            ItemOutcome::Stale(stale) => retry(open, item, stale, last, again),
            ItemOutcome::Removed(_) | ItemOutcome::Absent => {
                settle(open, &item, index, Err(Error::invalid("request_key: was used for an unpin")));
            }
        }
    }
}

fn settle_unpins(open: &mut [Open], items: Vec<Option<Item>>, committed: Committed, last: bool, again: &mut Vec<Item>) {
    let (index, outcomes) = match committed {
        Ok(committed) => committed,
        Err(error) => {
            items.iter().flatten().for_each(|item| open[item.job].failed = Some(error.clone()));
            return;
        }
    };
    metrics::counter!("pinfold_consensus_unpins_committed_total").increment(items.len() as u64);
    for (item, outcome) in items.into_iter().zip(outcomes) {
        let Some(item) = item else { continue };
        match outcome {
            ItemOutcome::Removed(pin) => settle(open, &item, index, Ok(pin.as_ref().clone())),
            ItemOutcome::Absent => settle(open, &item, index, Err(Error::not_in_pinset())),
            ItemOutcome::Stale(stale) => retry(open, item, stale, last, again),
            ItemOutcome::Written(_) => {
                settle(open, &item, index, Err(Error::invalid("request_key: was used for a pin")));
            }
        }
    }
}

/// The entry that the first use of the key wrote, or what this use would have written when it is gone by now.
async fn first_written(core: &Core, mut pin: types::Pin, revision: u64) -> types::Pin {
    if let Ok(Some(there)) = core.state.get(&pin.cid).await
        && there.revision == revision
    {
        return there;
    }
    pin.revision = revision;
    pin
}

fn retry(open: &mut [Open], item: Item, stale: Stale, last: bool, again: &mut Vec<Item>) {
    metrics::counter!("pinfold_consensus_stale_total").increment(1);
    if !last {
        again.push(item);
        return;
    }
    let why = match stale {
        Stale::Moved => "the entry kept changing",
        Stale::Peer => "the peers it was given to kept going away",
    };
    settle(open, &item, 0, Err(Error::unavailable(format!("{why} while it was decided on, {MAX_ATTEMPTS} times"))));
}
