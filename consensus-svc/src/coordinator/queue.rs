//! The queue between callers and the leader's log: takes what is waiting as one batch, and has few batches on the way
//! at once, none of which share a CID. A lone request goes at once; under load batches grow by themselves while the one
//! before them is on its way to the disks.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use pinfold_common::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::{Job, Origin, decide, forward};
use crate::core::{Core, Leader};

/// Bounds of one batch, which becomes one or two log entries. A larger request is a batch of its own.
const MAX_BATCH_ITEMS: usize = 256;
const MAX_BATCH_BYTES: usize = 256 << 10;
/// While batches are on the way, the next one waits for more items: larger entries cost less than more of them. But some
/// have to be decided and logged while those before them are applied: so many batches at most, and so many items. With one
/// alone a few dozen clients would wait in step, for the disk and then for the processor.
const FLIGHTS: [(usize, usize); 4] = [(1, 1), (2, 16), (4, 64), (12, MAX_BATCH_ITEMS)];
/// Requests looked at for one batch; those behind them wait for the next.
const MAX_WAITING: usize = 4096;

pub(super) async fn run(core: Arc<Core>, mut jobs: mpsc::Receiver<Job>, shutdown: Shutdown) {
    let mut waiting = Waiting::default();
    let mut flights: JoinSet<()> = JoinSet::new();
    let mut cids_of: HashMap<Id, Vec<Vec<u8>>> = HashMap::new();
    let mut busy: HashSet<Vec<u8>> = HashSet::new();
    loop {
        while waiting.len() < MAX_WAITING {
            let Ok(job) = jobs.try_recv() else { break };
            waiting.push_back(job);
        }
        while is_due(flights.len(), waiting.items) {
            let Some((batch, cids)) = next_batch(&mut waiting, &busy) else { break };
            busy.extend(cids.iter().cloned());
            let flight = flights.spawn(carry_out(core.clone(), batch));
            cids_of.insert(flight.id(), cids);
        }
        metrics::gauge!("pinfold_consensus_requests_waiting").set(waiting.len() as f64);
        tokio::select! {
            () = shutdown.triggered() => return,
            job = jobs.recv(), if waiting.len() < MAX_WAITING => match job {
                // What the other callers that are ready have for us comes along.
                Some(job) => {
                    waiting.push_back(job);
                    tokio::task::yield_now().await;
                }
                None => return,
            },
            Some(ended) = flights.join_next_with_id() => {
                let id = match &ended {
                    Ok((id, ())) => *id,
                    Err(error) => error.id(),
                };
                for cid in cids_of.remove(&id).unwrap_or_default() {
                    busy.remove(&cid);
                }
            }
        }
    }
}

/// Whether one more batch may go, with so many on the way and so many items waiting.
fn is_due(flights: usize, items: usize) -> bool {
    FLIGHTS.iter().find(|(most, _)| flights < *most).is_some_and(|(_, enough)| items >= *enough)
}

/// Requests in their order, and how many items they are about.
#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    items: usize,
}

impl Waiting {
    fn len(&self) -> usize {
        self.jobs.len()
    }

    fn push_back(&mut self, job: Job) {
        self.items += weight(&job);
        self.jobs.push_back(job);
    }

    fn push_front(&mut self, job: Job) {
        self.items += weight(&job);
        self.jobs.push_front(job);
    }

    fn pop_front(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.items -= weight(&job);
        Some(job)
    }
}

/// A request about nothing is to be answered too.
fn weight(job: &Job) -> usize {
    job.work.len().max(1)
}

/// The oldest waiting requests that fit together and touch nothing that is on the way, in their order per CID.
fn next_batch(waiting: &mut Waiting, busy: &HashSet<Vec<u8>>) -> Option<(Vec<Job>, Vec<Vec<u8>>)> {
    let (mut batch, mut left): (Vec<Job>, VecDeque<Job>) = (Vec::new(), VecDeque::new());
    let mut taken: HashSet<Vec<u8>> = HashSet::new();
    let mut passed_over: HashSet<Vec<u8>> = HashSet::new();
    let (mut items, mut bytes) = (0, 0);
    while let Some(job) = waiting.pop_front() {
        if job.reply.is_closed() {
            continue;
        }
        let fits = batch.is_empty()
            || (items + job.work.len() <= MAX_BATCH_ITEMS && bytes + job.size_bytes <= MAX_BATCH_BYTES);
        if !fits {
            waiting.push_front(job);
            break;
        }
        let cids = job.work.cids();
        let free = |cid: &Vec<u8>| !busy.contains(cid) && !taken.contains(cid) && !passed_over.contains(cid);
        if cids.iter().all(free) {
            items += job.work.len();
            bytes += job.size_bytes;
            taken.extend(cids);
            batch.push(job);
        } else {
            passed_over.extend(cids);
            left.push_back(job);
        }
    }
    while let Some(job) = left.pop_back() {
        waiting.push_front(job);
    }
    (!batch.is_empty()).then(|| (batch, taken.into_iter().collect()))
}

/// Brings a batch to whoever leads, until each of its requests is answered.
async fn carry_out(core: Arc<Core>, mut jobs: Vec<Job>) {
    let mut position = core.position.clone();
    let mut retries = decide::Retries::new(core.config.commit_retries, core.config.commit_retry_delay);
    let mut keyed = false;
    loop {
        jobs.retain(|job| !job.reply.is_closed());
        let Some(give_up) = jobs.iter().map(|job| job.give_up).max() else { return };
        let leader = position.borrow_and_update().leader.clone();
        jobs = match leader {
            Leader::This { term } => {
                let back = decide::batch(&core, term, jobs, &mut retries).await;
                if !back.is_empty() {
                    // This peer does not lead after all: the watch will say so in a moment.
                    let _ = tokio::time::timeout(core.config.commit_retry_delay, position.changed()).await;
                }
                give_up_late(back, &core)
            }
            Leader::Other(peer) => {
                let mut own = refuse_second_hop(jobs, &core);
                if !keyed {
                    forward::give_keys(&mut own);
                    keyed = true;
                }
                forward::batch(&core, &peer, own, &mut position).await
            }
            Leader::Nobody => {
                let kept = give_up_late(jobs, &core);
                // Whoever leads next is told by the watch; the time is the bound.
                let _ = tokio::time::timeout_at(give_up, position.changed()).await;
                kept
            }
        };
    }
}

/// Answers the requests whose time is over; returns the others.
fn give_up_late(jobs: Vec<Job>, core: &Core) -> Vec<Job> {
    let now = Instant::now();
    let (late, kept): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.give_up <= now);
    for job in late {
        let error = match job.origin {
            Origin::Own => core.no_leader(),
            Origin::Forwarded => core.not_leading(),
        };
        job.answer(Err(error));
    }
    kept
}

/// A request that was forwarded here while another peer leads goes back to its sender.
fn refuse_second_hop(jobs: Vec<Job>, core: &Core) -> Vec<Job> {
    let (own, forwarded): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.origin == Origin::Own);
    for job in forwarded {
        job.answer(Err(core.not_leading()));
    }
    own
}

#[cfg(test)]
mod tests {
    use pinfold_common::Result;
    use pinfold_common::pin::PinRequest;
    use tokio::sync::{Semaphore, oneshot};

    use super::super::{Answer, Work};
    use super::*;

    fn job(cids: &[u8]) -> (Job, oneshot::Receiver<Result<Answer>>) {
        let requests = cids
            .iter()
            .map(|number| {
                let mut bytes = vec![1, 0x55, 0, 20];
                bytes.extend([*number; 20]);
                PinRequest::new(pinfold_common::ids::cid_from_bytes(&bytes).unwrap())
            })
            .collect();
        let (reply, answered) = oneshot::channel();
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let job = Job {
            work: Work::Pin(requests),
            key: Vec::new(),
            origin: Origin::Own,
            give_up: Instant::now(),
            reply,
            size_bytes: 256,
            _room: room,
        };
        (job, answered)
    }

    fn waiting(jobs: impl IntoIterator<Item = Job>) -> Waiting {
        let mut waiting = Waiting::default();
        jobs.into_iter().for_each(|job| waiting.push_back(job));
        waiting
    }

    /// Goal: requests about one CID keep their order and are never on the way together; others do not wait for them.
    #[tokio::test]
    async fn batches_never_share_a_cid() {
        let (jobs, _answers): (Vec<Job>, Vec<_>) = [job(&[1]), job(&[1, 2]), job(&[2]), job(&[3])].into_iter().unzip();
        let mut waiting = waiting(jobs);
        let (first, mut cids) = next_batch(&mut waiting, &HashSet::new()).unwrap();
        cids.sort();
        assert_eq!((first.len(), cids.len()), (2, 2), "1 and 3; the job on 2 stays behind the one on 1 and 2");
        let busy: HashSet<Vec<u8>> = cids.into_iter().collect();
        assert!(next_batch(&mut waiting, &busy).is_none());
        let (second, _) = next_batch(&mut waiting, &HashSet::new()).unwrap();
        assert_eq!(second[0].work.len(), 2);
        let (third, _) = next_batch(&mut waiting, &HashSet::new()).unwrap();
        assert_eq!((third.len(), waiting.len(), waiting.items), (1, 0, 0));
    }

    /// Goal: a lone request goes at once, and the more is on the way the more has to wait, up to a bound.
    #[test]
    fn further_batches_are_larger() {
        assert!(is_due(0, 1) && !is_due(0, 0));
        assert!(is_due(1, 16) && !is_due(1, 15));
        assert!(is_due(2, 64) && is_due(3, 64) && !is_due(2, 63));
        assert!(is_due(4, MAX_BATCH_ITEMS) && is_due(11, MAX_BATCH_ITEMS) && !is_due(4, MAX_BATCH_ITEMS - 1));
        assert!(!is_due(12, usize::MAX));
    }

    /// Goal: a batch is bounded, a larger request goes alone, and callers that gave up are forgotten.
    #[tokio::test]
    async fn batches_are_bounded() {
        let (big, _big_answer) = job(&(0..=255).collect::<Vec<u8>>());
        let (small, _small_answer) = job(&[7]);
        let (gone, gone_answer) = job(&[8]);
        drop(gone_answer);
        let mut waiting = waiting([gone, big, small]);
        assert_eq!(next_batch(&mut waiting, &HashSet::new()).unwrap().0.len(), 1);
        assert_eq!((waiting.len(), waiting.items), (1, 1));
    }
}
