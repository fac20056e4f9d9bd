//! The leader's side: read what is there, check the rules, ask for allocations once, propose, and decide again what
//! came back stale. Nothing is decided by a leader that has not applied its own first entry, and what it proposes is
//! fenced by its term (protocols.md 3).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pinfold_common::time::Timestamp;
use pinfold_common::{Code, Error, Result};
use pinfold_proto::storage::stored_outcome::Outcome as StoredKind;
use pinfold_proto::{monitor, storage, types};
use prost::Message as _;
use tokio::time::Instant;

use super::rules::{self, Draft, Surroundings};
use super::{Answer, Job, Work, allocate, propose};
use crate::core::{Core, unreadable};
use crate::pinset::{self, PeerTable};
use crate::raft::ProposeError;

/// Entries of one job, together: its answer has to fit in a message (`pin_update` makes little requests large).
const MAX_ANSWER_BYTES: usize = 6 << 20;
/// A decision that came back stale is made so often in all.
pub(super) const MAX_ATTEMPTS: usize = 3;

/// One item of one job.
pub(super) struct Item {
    pub job: usize,
    pub place: usize,
}

/// A job with what its items came to so far.
pub(super) struct Open {
    pub job: Job,
    results: Vec<Option<Result<types::Pin>>>,
    index: u64,
    answer_bytes: usize,
    /// Set when the proposal of some item failed: the job as a whole goes back, or fails.
    pub failed: Option<ProposeError>,
}

impl Open {
    fn count_answer(&mut self) {
        self.answer_bytes = self.results.iter().flatten().flatten().map(types::Pin::encoded_len).sum();
    }
}

/// What is proposed for one item.
pub(super) enum Step {
    Put(Box<Draft>),
    /// The CIDs that go, the item's own first, and its revision.
    Unpin {
        cids: Vec<Vec<u8>>,
        revision: u64,
    },
}

/// Answers the jobs. Those that come back are to be brought to the next leader: nothing happened to them, or their keys
/// make a second try harmless.
pub(super) async fn batch(core: &Core, term: u64, jobs: Vec<Job>, retries: &mut Retries) -> Vec<Job> {
    let started = Instant::now();
    let mut open: Vec<Open> = jobs
        .into_iter()
        .map(|job| Open { results: vec![None; job.work.len()], job, index: 0, answer_bytes: 0, failed: None })
        .collect();
    let mut undecided: Vec<Item> = (0..)
        .zip(&open)
        .flat_map(|(job, open)| (0..open.results.len()).map(move |place| Item { job, place }))
        .collect();
    metrics::histogram!("pinfold_consensus_batch_items").record(undecided.len() as f64);
    for attempt in 1.. {
        let last = attempt == MAX_ATTEMPTS;
        // What is decided again is counted again.
        open.iter_mut().for_each(Open::count_answer);
        undecided = match once(core, term, &mut open, undecided, attempt).await {
            Ok(stale) => stale,
            Err((error, items)) => {
                for item in items {
                    open[item.job].results[item.place] = Some(Err(error.clone()));
                }
                Vec::new()
            }
        };
        if undecided.is_empty() || last {
            break;
        }
    }
    metrics::histogram!("pinfold_consensus_batch_seconds").record(started.elapsed().as_secs_f64());
    finish(open, retries).await
}

/// One round of the items; returns those to be decided again. The error is for all items that were not proposed.
async fn once(
    core: &Core,
    term: u64,
    open: &mut [Open],
    items: Vec<Item>,
    attempt: usize,
) -> Result<Vec<Item>, (Error, Vec<Item>)> {
    let now = Timestamp::now();
    let facts = core.state.facts();
    let read_index = core.state.applied_index();
    let count = items.len();
    let takes_for_new = attempt == 1 && core.expect_new_items.load(Ordering::Relaxed);
    let reading = if takes_for_new { Reading::Others } else { Reading::Everything };
    let cids = cids(open, &items, reading);
    let existing: HashMap<Vec<u8>, Arc<types::Pin>> = match core.state.get_many(&cids).await {
        Ok(rows) => rows.into_iter().map(|(cid, pin)| (cid, Arc::new(pin))).collect(),
        Err(error) => return Err((unreadable(error), items)),
    };
    let mut unread = Vec::new();
    let mut steps: Vec<(Item, Step)> = Vec::with_capacity(count);
    for item in items {
        match step(core, &open[item.job].job, item.place, &existing, &facts.peers, now) {
            Ok(Step::Put(draft)) => {
                let job = &mut open[item.job];
                job.answer_bytes += draft.pin.encoded_len();
                if job.answer_bytes > MAX_ANSWER_BYTES {
                    let error = "the batch is too large to be answered: ask for fewer items at once";
                    settle(open, &item, read_index, Err(Error::new(Code::Exhausted, error)));
                } else {
                    steps.push((item, Step::Put(draft)));
                }
            }
            Ok(step) => steps.push((item, step)),
            Err(_) if reading == Reading::Others => unread.push(item),
            Err(error) => {
                let first = first_result(core, &open[item.job].job, item.place, now).await;
                settle(open, &item, read_index, first.unwrap_or(Err(error)));
            }
        }
    }
    let source = if attempt == 1 { Source::Stock } else { Source::Monitor };
    let steps = match place(core, open, steps, reading, source, &mut unread).await {
        Ok(steps) => steps,
        Err((_, items)) if reading == Reading::Others => {
            unread.extend(items);
            Vec::new()
        }
        Err((error, items)) => return Err((error, items)),
    };
    let mut changed = Vec::with_capacity(steps.len());
    for (item, step) in steps {
        match &step {
            Step::Put(draft) => match draft.unchanged() {
                Some(existing) => {
                    settle(open, &item, read_index.max(existing.revision), Ok(existing.as_ref().clone()));
                }
                None => changed.push((item, step)),
            },
            Step::Unpin { .. } => changed.push((item, step)),
        }
    }
    let mut again = propose::propose(core, term, open, changed, now, attempt == MAX_ATTEMPTS).await;
    again.append(&mut unread);
    let known = match reading {
        Reading::Others => again.len(),
        Reading::Everything => existing.len(),
    };
    core.expect_new_items.store(known * 8 < count, Ordering::Relaxed);
    Ok(again)
}

/// What is read before it is decided. When most of what was asked for lately was new, a pin is decided as if it were, which
/// spares the look: the entry says so, and `apply` gives it back as stale when it is not. That, and whatever is refused,
/// is decided again by what is read then.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// What is unpinned, and what pins take their options from, but not the pins themselves.
    Others,
    Everything,
}

fn cids(open: &[Open], items: &[Item], reading: Reading) -> Vec<Vec<u8>> {
    let mut cids = Vec::with_capacity(items.len());
    for item in items {
        match &open[item.job].job.work {
            Work::Pin(requests) => {
                let request = &requests[item.place];
                let own = (reading == Reading::Everything).then(|| request.cid.to_bytes());
                cids.extend(own.into_iter().chain(rules::source_of(request)));
            }
            Work::Unpin(cid) => cids.push(cid.clone()),
        }
    }
    cids
}

fn step(
    core: &Core,
    job: &Job,
    place: usize,
    existing: &HashMap<Vec<u8>, Arc<types::Pin>>,
    peers: &PeerTable,
    now: Timestamp,
) -> Result<Step> {
    match &job.work {
        Work::Pin(requests) => {
            let request = &requests[place];
            let there = existing.get(&request.cid.to_bytes()).cloned();
            let source = rules::source_of(request).and_then(|cid| existing.get(&cid));
            let around = Surroundings { defaults: core.config.factors, now, peers };
            rules::pin(request, there, source.map(Arc::as_ref), around).map(|draft| Step::Put(Box::new(draft)))
        }
        Work::Unpin(cid) => {
            let there = existing.get(cid);
            let cids = rules::unpin(there.map(Arc::as_ref))?;
            Ok(Step::Unpin { cids, revision: there.map_or(0, |pin| pin.revision) })
        }
    }
}

/// What the item came to when its key was used first. Asked only where the rules refuse it now: `apply` looks keys up
/// for all that is proposed.
async fn first_result(core: &Core, job: &Job, place: usize, now: Timestamp) -> Option<Result<types::Pin>> {
    if job.key.is_empty() {
        return None;
    }
    let stored = match core.state.outcome_of(&job.key).await {
        Ok(stored) => stored?,
        Err(error) => return Some(Err(Error::internal(format!("look a request key up: {error}")))),
    };
    if (now.seconds - stored.at_seconds).abs() > pinset::KEY_LIFE_SECONDS {
        return None;
    }
    let cid = match &job.work {
        Work::Pin(requests) => requests[place].cid.to_bytes(),
        Work::Unpin(cid) => cid.clone(),
    };
    let Some(StoredKind::Items(items)) = stored.outcome else { return None };
    let item = items.items.into_iter().find(|item| item.cid == cid)?;
    match item.result? {
        storage::item_outcome::Result::Removed(pin) => Some(Ok(pin)),
        storage::item_outcome::Result::Written(revision) => {
            let there = core.state.get(&cid).await.ok().flatten()?;
            (there.revision == revision).then_some(Ok(there))
        }
        storage::item_outcome::Result::Absent(_) | storage::item_outcome::Result::Stale(_) => None,
    }
}

/// Where allocations come from.
#[derive(Clone, Copy)]
enum Source {
    /// What was asked for beforehand, where there is enough of it.
    Stock,
    /// What was in stock may be why a decision came back.
    Monitor,
}

/// Asks for the allocations of all drafts that need some, in one call, and settles those that can't have them, unless
/// they are `unread` and may not need any.
async fn place(
    core: &Core,
    open: &mut [Open],
    steps: Vec<(Item, Step)>,
    reading: Reading,
    source: Source,
    unread: &mut Vec<Item>,
) -> Result<Vec<(Item, Step)>, (Error, Vec<Item>)> {
    let wanted: Vec<monitor::Item> = steps
        .iter()
        .filter_map(|(_, step)| match step {
            Step::Put(draft) => draft.allocate.clone(),
            Step::Unpin { .. } => None,
        })
        .collect();
    if wanted.is_empty() {
        return Ok(steps);
    }
    let in_stock = match source {
        Source::Stock => core.stock.take(&wanted, Instant::now()),
        Source::Monitor => None,
    };
    let told = match in_stock {
        Some(results) => Ok(results),
        None => allocate::items(core, wanted).await,
    };
    let mut told = match told {
        Ok(results) => results.into_iter(),
        Err(error) => {
            // Those that need no allocation fail with the others of their batch and can be tried again like them.
            return Err((error, steps.into_iter().map(|(item, _)| item).collect()));
        }
    };
    let mut placed = Vec::with_capacity(steps.len());
    for (item, step) in steps {
        match step {
            Step::Put(mut draft) if draft.allocate.is_some() => match told.next().and_then(|result| result.result) {
                Some(monitor::result::Result::Peers(peers)) if !peers.peers.is_empty() => {
                    draft.place(peers.peers);
                    placed.push((item, Step::Put(draft)));
                }
                Some(monitor::result::Result::TooFew(_)) if reading == Reading::Others => unread.push(item),
                Some(monitor::result::Result::TooFew(too_few)) => {
                    tracing::warn!(reasons = ?too_few.reasons, "not enough peers for a pin");
                    settle(open, &item, 0, Err(rules::too_few(&too_few)));
                }
                Some(monitor::result::Result::Peers(_)) | None => {
                    settle(open, &item, 0, Err(Error::internal("the monitor's allocation names no peer")));
                }
            },
            Step::Put(_) | Step::Unpin { .. } => placed.push((item, step)),
        }
    }
    Ok(placed)
}

pub(super) fn settle(open: &mut [Open], item: &Item, index: u64, result: Result<types::Pin>) {
    let open = &mut open[item.job];
    open.index = open.index.max(index);
    open.results[item.place] = Some(result);
}

/// Answers what is decided; returns what has to be tried again.
async fn finish(open: Vec<Open>, retries: &mut Retries) -> Vec<Job> {
    let mut back = Vec::new();
    let mut uncommitted = Vec::new();
    for open in open {
        match open.failed {
            None => {
                let undecided = || Err(Error::internal("an item was left undecided"));
                let results = open.results.into_iter().map(|result| result.unwrap_or_else(undecided)).collect();
                open.job.answer(Ok(Answer { results, index: open.index }));
            }
            Some(ProposeError::NotLeader(_)) => back.push(open.job),
            Some(ProposeError::OutcomeUnknown(_)) if !open.job.key.is_empty() => back.push(open.job),
            Some(ProposeError::Unavailable(_)) => uncommitted.push(open.job),
            Some(error @ (ProposeError::OutcomeUnknown(_) | ProposeError::Fatal(_))) => {
                open.job.answer(Err(error.into()));
            }
        }
    }
    if !uncommitted.is_empty() && retries.again().await {
        back.append(&mut uncommitted);
    }
    for job in uncommitted {
        job.answer(Err(Error::unavailable("the leader could not commit this; nothing was changed")));
    }
    back
}

/// What is left of `commit_retries`, with `commit_retry_delay` before each (seed:C5, beh:B10.2): a commit that was
/// refused before anything was written is tried again, so that a network that comes and goes fails fewer requests, later.
pub(super) struct Retries {
    left: u64,
    pause: Duration,
}

impl Retries {
    pub fn new(retries: u64, pause: Duration) -> Retries {
        Retries { left: retries, pause }
    }

    /// Whether to try once more, after the pause.
    async fn again(&mut self) -> bool {
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        tokio::time::sleep(self.pause).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pinfold_common::pin::PinRequest;
    use tokio::sync::{Semaphore, oneshot};

    use super::super::Origin;
    use super::*;

    fn refused() -> (Open, oneshot::Receiver<Result<Answer>>) {
        let (reply, answered) = oneshot::channel();
        let cid = pinfold_common::ids::cid_from_bytes(&[&[1, 0x55, 0, 20][..], &[7; 20]].concat()).unwrap();
        let job = Job {
            work: Work::Pin(vec![PinRequest::new(cid)]),
            key: Vec::new(),
            origin: Origin::Own,
            give_up: Instant::now(),
            reply,
            size_bytes: 256,
            _room: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
        };
        let failed = Some(ProposeError::Unavailable("no majority of the voters answers".to_owned()));
        (Open { results: vec![None], job, index: 0, answer_bytes: 0, failed }, answered)
    }

    /// Goal: a refused commit comes back to be tried again `commit_retries` times, each after `commit_retry_delay`, and
    /// then fails in words; with none it fails at once. More retries are slower failures.
    #[tokio::test(start_paused = true)]
    async fn seed_c5_a_refused_commit_is_tried_again_so_often() {
        let pause = Duration::from_millis(200);
        for retries in [0, 1, 3] {
            let started = Instant::now();
            let mut left = Retries::new(retries, pause);
            let (mut open, mut answered) = refused();
            for retry in 0..retries {
                let mut back = finish(vec![open], &mut left).await;
                assert!(answered.try_recv().is_err(), "retry {retry} of {retries}: no answer yet");
                let job = back.pop().expect("the request comes back");
                open = Open { job, ..refused().0 };
            }
            assert!(finish(vec![open], &mut left).await.is_empty());
            let error = answered.try_recv().expect("an answer").map(drop).unwrap_err();
            assert_eq!(error.code, Code::Unavailable);
            assert!(error.message.contains("nothing was changed"), "{error}");
            assert_eq!(started.elapsed(), pause * retries as u32);
        }
    }
}
