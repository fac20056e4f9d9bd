//! What becomes of a request to pin or unpin: at the leader it is decided once and proposed (protocols.md 3), anywhere
//! else it goes on to the leader, one hop.
//!
//! Requests of all callers meet in one bounded queue, so that they share one read, one allocation, one log entry and
//! one fsync (`queue`). `decide` works a batch off at the leader and `propose` brings it into the log, `forward` takes
//! one to the leader; `rules` is the pure part, `allocate` asks the monitors, and `stock` does beforehand. No lock and no
//! slot of this queue's callers is held while a monitor is asked.

pub(crate) mod allocate;
mod decide;
mod forward;
mod propose;
mod queue;
pub mod rules;
pub(crate) mod stock;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pinfold_common::pin::{MAX_REQUEST_KEY_BYTES, PinRequest};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::{Code, Error, Result};
use pinfold_proto::{consensus, types};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::core::Core;

/// Items of one `PinMany`.
pub const MAX_ITEMS: usize = 1000;
/// Requests that wait to be taken up.
const QUEUE_JOBS: usize = 16_384;
/// What the requests that wait or are worked on may take together.
const QUEUE_BYTES: usize = 64 << 20;
/// No request counts as less.
const LEAST_JOB_BYTES: usize = 256;

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This peer's own services: may go on to the leader.
    Own,
    /// Another peer's consensus-svc: one hop, never two.
    Forwarded,
}

/// What is asked for.
#[derive(Debug)]
pub(crate) enum Work {
    /// Not empty, each CID once.
    Pin(Vec<PinRequest>),
    Unpin(Vec<u8>),
}

impl Work {
    fn len(&self) -> usize {
        match self {
            Work::Pin(requests) => requests.len(),
            Work::Unpin(_) => 1,
        }
    }

    /// The CIDs whose entries it reads or writes: two jobs that share one are not worked on at the same time.
    fn cids(&self) -> Vec<Vec<u8>> {
        match self {
            Work::Pin(requests) => requests
                .iter()
                .flat_map(|request| std::iter::once(request.cid.to_bytes()).chain(rules::source_of(request)))
                .collect(),
            Work::Unpin(cid) => vec![cid.clone()],
        }
    }
}

/// The results in the order of the request, and the index at which they can be read.
#[derive(Debug)]
pub struct Answer {
    pub results: Vec<Result<types::Pin>>,
    pub index: u64,
}

/// A request on its way. Dropped without an answer: this service stops.
#[derive(Debug)]
pub(crate) struct Job {
    work: Work,
    /// Empty: none.
    key: Vec<u8>,
    origin: Origin,
    /// Without a leader until then, it fails.
    give_up: Instant,
    reply: oneshot::Sender<Result<Answer>>,
    size_bytes: usize,
    _room: OwnedSemaphorePermit,
}

impl Job {
    fn answer(self, answer: Result<Answer>) {
        // The caller may be gone.
        let _ = self.reply.send(answer);
    }
}

/// Takes requests. Clones share one queue.
#[derive(Clone)]
pub struct Coordinator {
    core: Arc<Core>,
    queue: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
}

impl Coordinator {
    /// Spawns the loops of the queue and the stock, which end on `shutdown`.
    pub fn start(core: Arc<Core>, shutdown: Shutdown) -> Coordinator {
        let (queue, jobs) = mpsc::channel(QUEUE_JOBS);
        tokio::spawn(stock::fill(core.clone(), shutdown.clone()));
        tokio::spawn(queue::run(core.clone(), jobs, shutdown));
        Coordinator { core, queue, room: Arc::new(Semaphore::new(QUEUE_BYTES)) }
    }

    pub async fn pin(&self, requests: Vec<types::PinRequest>, key: Vec<u8>, origin: Origin) -> Result<Answer> {
        self.check_writable()?;
        if requests.is_empty() {
            return Ok(Answer { results: Vec::new(), index: self.core.state.applied_index() });
        }
        if requests.len() > MAX_ITEMS {
            return Err(Error::invalid(format!("requests: {}, at most {MAX_ITEMS}", requests.len())));
        }
        let size_bytes = requests.iter().map(|request| request.encoded_len()).sum();
        let total = requests.len();
        let mut refused: Vec<(usize, Error)> = Vec::new();
        let mut accepted = Vec::with_capacity(total);
        let mut seen = HashSet::with_capacity(total);
        for (place, request) in requests.into_iter().enumerate() {
            match PinRequest::try_from(request) {
                Err(error) => refused.push((place, error)),
                Ok(request) if !seen.insert(request.cid) => {
                    refused
                        .push((place, Error::invalid(format!("cid {} is asked for twice in one batch", request.cid))));
                }
                Ok(request) => accepted.push(request),
            }
        }
        if accepted.is_empty() {
            let results = refused.into_iter().map(|(_, error)| Err(error)).collect();
            return Ok(Answer { results, index: 0 });
        }
        let mut answer = self.submit(Work::Pin(accepted), key, origin, size_bytes).await?;
        for (place, error) in refused {
            answer.results.insert(place, Err(error));
        }
        Ok(answer)
    }

    /// The entry as it was.
    pub async fn unpin(&self, cid: Vec<u8>, key: Vec<u8>, origin: Origin) -> Result<(types::Pin, u64)> {
        self.check_writable()?;
        pinfold_common::ids::cid_from_bytes(&cid)?;
        let size_bytes = cid.len();
        let answer = self.submit(Work::Unpin(cid), key, origin, size_bytes).await?;
        single(answer)
    }

    /// Where the blocks of an upload should go (beh:B9.9).
    pub async fn allocate_for_add(
        &self,
        call: consensus::AllocateCall,
        origin: Origin,
    ) -> Result<consensus::AllocateReply> {
        self.check_writable()?;
        allocate::for_add(&self.core, call, origin).await
    }

    async fn submit(&self, work: Work, key: Vec<u8>, origin: Origin, size_bytes: usize) -> Result<Answer> {
        if key.len() > MAX_REQUEST_KEY_BYTES {
            return Err(Error::invalid(format!("request_key: {} bytes, at most {MAX_REQUEST_KEY_BYTES}", key.len())));
        }
        let size_bytes = size_bytes.clamp(LEAST_JOB_BYTES, QUEUE_BYTES);
        let full = || Error::new(Code::Exhausted, "too many requests are waiting for the leader; try again later");
        let room = self.room.clone().try_acquire_many_owned(size_bytes as u32).map_err(|_| full())?;
        let (reply, answered) = oneshot::channel();
        let give_up = Instant::now() + self.patience(origin);
        let job = Job { work, key, origin, give_up, reply, size_bytes, _room: room };
        self.queue.try_send(job).map_err(|_| full())?;
        answered.await.map_err(|_| Error::outcome_unknown("this peer is stopping; the outcome is unknown"))?
    }

    /// How long a request waits for a leader.
    fn patience(&self, origin: Origin) -> Duration {
        match origin {
            Origin::Own => self.core.config.wait_for_leader,
            // The peer that sent it does the waiting.
            Origin::Forwarded => Duration::ZERO,
        }
    }

    fn check_writable(&self) -> Result<()> {
        if self.core.config.follower_mode {
            return Err(Error::rejected(
                "this peer is configured to be in follower mode. Write operations are disabled",
            ));
        }
        Ok(())
    }
}

/// The only result of a request for one item.
pub fn single(answer: Answer) -> Result<(types::Pin, u64)> {
    let index = answer.index;
    match answer.results.into_iter().next() {
        Some(result) => result.map(|pin| (pin, index)),
        None => Err(Error::internal("a request for one item was answered with none")),
    }
}
