//! Entries to a follower: one pipelined stream, answers in the order of the requests.
//!
//! The library takes an answer for one of all requests up to the log ID that it confirms, and so for as young as the youngest
//! of them. Of two requests that end at the same entry, such as one with entries and one that only tells what is committed,
//! the answer to the older one would confirm a majority for a consistent read that is younger than it: a leader that stood
//! still, and has answers from before in its socket, would read what others have overwritten. So an answer is given to
//! the library only when no later request is on its way that it would be taken for, and nothing is asked of the library
//! until it has looked at it.
//!
//! What only says that everything sent so far is committed waits a moment for the next entries and goes with them: a lone
//! client's writes then cost a follower one message each and not two. While it waits, an answer that the library would
//! take for one of it is not needed for any majority, and is held back like the others. Entries that come often tell what
//! is committed only so often: a follower applies some of them in one transaction then. Should the entries never be
//! committed that it was left out of, the next heartbeat has it. All this is about pins: word of anything else, such as a
//! removal, goes at once, as a peer that is taken out hears nothing afterwards.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker, ready};
use std::time::{Duration, Instant};

use futures::stream::Fuse;
use futures::{Stream, StreamExt, stream};
use openraft::EntryPayload;
use openraft::base::BoxStream;
use openraft::raft::StreamAppendError;
use parking_lot::Mutex;
use pinfold_common::Error;
use pinfold_common::channel::explain;
use pinfold_proto::consensus as wire;
use pinfold_proto::consensus::append_reply::Result as Outcome;
use pinfold_proto::consensus::raft_client::RaftClient;
use pinfold_proto::storage::command::Command as Kind;
use tokio::time::Sleep;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Context, broken, unreachable_node};
use crate::raft::types::{
    AppendEntriesRequest, Entry, LogId, RpcError, StreamAppendResult, log_id_from_proto, log_id_to_proto, record_of,
    vote_from_proto, vote_to_proto,
};

/// How long word of what is committed may wait.
#[derive(Clone, Copy)]
pub struct Waits {
    /// Without entries, for the next ones. A follower that nobody writes to learns so much later what it may apply.
    alone: Duration,
    /// With entries, since the last word.
    with_entries: Duration,
}

impl Waits {
    pub const REPLICATION: Waits = Waits { alone: Duration::from_millis(5), with_entries: Duration::from_millis(10) };
    /// Reads and elections wait for it.
    pub const PULSE: Waits = Waits { alone: Duration::ZERO, with_entries: Duration::ZERO };
}

/// A request that waits for its answer.
struct Sent {
    at: Instant,
    previous: Option<LogId>,
    last: Option<LogId>,
    /// For the library these are two requests, the first of which ends where the second begins.
    carries_another: bool,
}

/// Shared by the two directions of one stream. The library bounds how far it is ahead.
#[derive(Default)]
struct OnTheWay {
    sent: VecDeque<Sent>,
    /// Where a request ends that the library has made and that was not sent yet.
    waiting: Option<LogId>,
    /// The library has an answer and may not have looked at it.
    is_answering: bool,
    /// Of the requests, which wait for that.
    waker: Option<Waker>,
}

impl OnTheWay {
    /// Whether the library would take the answer `matching` for one of a request that waits. Those further back begin and
    /// end no earlier than the oldest.
    fn would_confirm_another(&self, matching: Option<&LogId>) -> bool {
        let is_confirmed = |sent: &Sent| {
            let previous = sent.previous.as_ref();
            sent.last.as_ref() <= matching || previous < matching || sent.carries_another && previous == matching
        };
        match self.sent.front() {
            Some(sent) => is_confirmed(sent),
            None => self.waiting.is_some() && self.waiting.as_ref() <= matching,
        }
    }
}

/// The library's requests, each written down in the moment in which it is made.
struct Requests<S> {
    input: Fuse<S>,
    addressed: wire::Target,
    on_the_way: Arc<Mutex<OnTheWay>>,
    waits: Waits,
    waiting: Option<Waiting>,
    /// What came after something that it could not go with.
    next: Option<AppendEntriesRequest>,
    /// What the other side was told is committed, and when.
    told: Option<(Option<LogId>, Instant)>,
    /// The last entry that is not about pins, until it was told that it is committed.
    urgent: Option<LogId>,
}

/// A request that waits for entries to go with.
struct Waiting {
    request: AppendEntriesRequest,
    until: Pin<Box<Sleep>>,
}

impl<S: Stream<Item = AppendEntriesRequest> + Unpin> Requests<S> {
    fn new(input: S, addressed: wire::Target, on_the_way: Arc<Mutex<OnTheWay>>, waits: Waits) -> Requests<S> {
        let (waiting, next, told, urgent) = (None, None, None, None);
        Requests { input: input.fuse(), addressed, on_the_way, waits, waiting, next, told, urgent }
    }

    /// Leaves out what is committed where that can wait.
    fn tell(&mut self, request: &mut AppendEntriesRequest, now: Instant) {
        let is_urgent = self.is_urgent(request);
        let may_wait = !request.entries.is_empty() && !is_urgent;
        match self.told {
            Some((told, at)) if may_wait && now - at < self.waits.with_entries => request.leader_commit = told,
            Some(_) | None => self.told = Some((request.leader_commit, now)),
        }
        let newest = request.entries.iter().rev().find(|entry| !is_about_pins(entry)).map(|entry| entry.log_id);
        self.urgent = newest.or(self.urgent.filter(|_| !is_urgent));
    }

    /// Whether it says that something is committed that the other side must hear of.
    fn is_urgent(&self, request: &AppendEntriesRequest) -> bool {
        self.urgent.is_some() && self.urgent <= request.leader_commit
    }

    /// What is sent next, and whether a request that waited goes with it.
    fn poll_request(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<(AppendEntriesRequest, bool)>> {
        loop {
            let next = match self.next.take() {
                Some(next) => Poll::Ready(Some(next)),
                None => self.input.poll_next_unpin(cx),
            };
            let request = match next {
                Poll::Ready(Some(request)) => request,
                Poll::Ready(None) => return Poll::Ready(self.waiting.take().map(|waiting| (waiting.request, false))),
                Poll::Pending => {
                    let Some(waiting) = &mut self.waiting else { return Poll::Pending };
                    ready!(waiting.until.as_mut().poll(cx));
                    return Poll::Ready(self.waiting.take().map(|waiting| (waiting.request, false)));
                }
            };
            let Some(waiting) = self.waiting.take() else {
                if !self.may_wait(&request) {
                    return Poll::Ready(Some((request, false)));
                }
                self.waiting = Some(Waiting { request, until: Box::pin(tokio::time::sleep(self.waits.alone)) });
                continue;
            };
            if request.vote != waiting.request.vote || request.prev_log_id != waiting.request.prev_log_id {
                self.next = Some(request);
                return Poll::Ready(Some((waiting.request, false)));
            }
            if !self.may_wait(&request) {
                return Poll::Ready(Some((request, true)));
            }
            self.waiting = Some(Waiting { request, until: waiting.until });
        }
    }

    /// Whether a request has nothing but the word that all before it is committed.
    fn may_wait(&self, request: &AppendEntriesRequest) -> bool {
        let is_all_committed = request.prev_log_id.is_some() && request.leader_commit == request.prev_log_id;
        !self.waits.alone.is_zero() && request.entries.is_empty() && is_all_committed && !self.is_urgent(request)
    }
}

fn is_about_pins(entry: &Entry) -> bool {
    match &entry.payload {
        EntryPayload::Normal(proposal) => {
            matches!(proposal.0.command.command, Some(Kind::PutMany(_) | Kind::Unpin(_)))
        }
        EntryPayload::Blank | EntryPayload::Membership(_) => false,
    }
}

impl<S: Stream<Item = AppendEntriesRequest> + Unpin> Stream for Requests<S> {
    type Item = wire::AppendRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<wire::AppendRequest>> {
        let on_the_way = self.on_the_way.clone();
        let mut on_the_way = on_the_way.lock();
        if on_the_way.is_answering {
            on_the_way.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let polled = self.poll_request(cx);
        on_the_way.waiting = self.waiting.as_ref().and_then(|waiting| waiting.request.prev_log_id);
        let Some((mut request, carries_another)) = ready!(polled) else { return Poll::Ready(None) };
        let now = Instant::now();
        self.tell(&mut request, now);
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        on_the_way.sent.push_back(Sent { at: now, previous: request.prev_log_id, last, carries_another });
        Poll::Ready(Some(encode(self.addressed.clone(), &request)))
    }
}

/// Opens the stream as soon as there is something to send. It ends when `input` does and all is answered, or with the
/// first error.
pub async fn run<'s, S>(
    context: &'s Arc<Context>,
    target: u64,
    client: Result<RaftClient<Channel>, Error>,
    mut input: S,
    waits: Waits,
) -> Result<BoxStream<'s, Result<StreamAppendResult, RpcError>>, RpcError>
where
    S: Stream<Item = AppendEntriesRequest> + Send + Unpin + 'static,
{
    // Made without a word from the other side: that is no contact yet.
    let mut client = client.map_err(unreachable_node)?;
    // The library's pause after a failure is inside `input`: opening first would call a node that is down without one.
    let Some(first) = input.next().await else { return Ok(Box::pin(stream::empty())) };
    let input = stream::once(std::future::ready(first)).chain(input);
    let on_the_way: Arc<Mutex<OnTheWay>> = Arc::default();
    let requests = Requests::new(input, context.addressed(target), on_the_way.clone(), waits);
    let opening = tokio::time::timeout(context.patience, client.append(requests));
    let opened = match opening.await {
        Ok(opened) => opened.map_err(explain),
        Err(_) => Err(Error::unavailable(format!("open a stream to node {target}: no answer in time"))),
    };
    let replies = context.observe(target, opened)?.into_inner();
    let answers = Answers { context: context.clone(), target, replies, on_the_way };
    Ok(Box::pin(stream::unfold(Some(answers), |answers| async move {
        let mut answers = answers?;
        let next = answers.next().await?;
        // Only a plain success leaves the stream's order intact.
        let rest = matches!(&next, Ok(Ok(_))).then_some(answers);
        Some((next, rest))
    })))
}

fn encode(target: wire::Target, request: &AppendEntriesRequest) -> wire::AppendRequest {
    wire::AppendRequest {
        target: Some(target),
        vote: Some(vote_to_proto(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to_proto),
        entries: request.entries.iter().map(|entry| record_of(entry).encode()).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_to_proto),
    }
}

struct Answers {
    context: Arc<Context>,
    target: u64,
    replies: Streaming<wire::AppendReply>,
    on_the_way: Arc<Mutex<OnTheWay>>,
}

impl Answers {
    /// `None`: the other side has answered everything and ended the stream.
    async fn next(&mut self) -> Option<Result<StreamAppendResult, RpcError>> {
        let waker = {
            let mut on_the_way = self.on_the_way.lock();
            on_the_way.is_answering = false;
            on_the_way.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        loop {
            let reply = match self.reply_in_time().await {
                Ok(reply) => reply?,
                Err(error) => return Some(self.context.observe(self.target, Err(error))),
            };
            self.context.contacts.heard(self.target);
            let mut on_the_way = self.on_the_way.lock();
            let Some(sent) = on_the_way.sent.pop_front() else {
                return Some(Err(broken("an answer that nothing was asked for")));
            };
            let answer = decode(&reply, &sent);
            if let Ok(Ok(matching)) = &answer
                && on_the_way.would_confirm_another(matching.as_ref())
            {
                // The later request's answer says as much.
                continue;
            }
            on_the_way.is_answering = true;
            return Some(answer);
        }
    }

    /// An idle stream may stay so; one with a request on the way must move.
    async fn reply_in_time(&mut self) -> Result<Option<wire::AppendReply>, Error> {
        loop {
            match tokio::time::timeout(self.context.patience, self.replies.message()).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(status)) => return Err(explain(status)),
                Err(_) => {
                    let oldest: Option<Duration> = self.on_the_way.lock().sent.front().map(|sent| sent.at.elapsed());
                    if oldest.is_some_and(|age| age >= self.context.patience) {
                        let node = self.target;
                        return Err(Error::outcome_unknown(format!("node {node} does not answer what it was sent")));
                    }
                }
            }
        }
    }
}

fn decode(reply: &wire::AppendReply, sent: &Sent) -> Result<StreamAppendResult, RpcError> {
    match &reply.result {
        Some(Outcome::Success(_)) => Ok(Ok(sent.last)),
        Some(Outcome::Partial(partial)) => Ok(Ok(partial.matching.as_ref().map(log_id_from_proto))),
        Some(Outcome::Conflicting(log_id)) => Ok(Err(StreamAppendError::Conflict(log_id_from_proto(log_id)))),
        Some(Outcome::Conflict(_)) => match sent.previous {
            Some(previous) => Ok(Err(StreamAppendError::Conflict(previous))),
            None => Err(broken("a conflict with the beginning of the log")),
        },
        Some(Outcome::HigherVote(vote)) => Ok(Err(StreamAppendError::HigherVote(vote_from_proto(vote)))),
        Some(Outcome::Failure(failure)) => Err(unreachable_node(failure)),
        None => Err(broken("an answer of an unknown kind")),
    }
}

#[cfg(test)]
mod tests {
    use pinfold_common::identity::Identity;
    use pinfold_common::tls::{ClusterSecret, Room, Tls};
    use pinfold_proto::storage;
    use tokio::net::TcpListener;
    use tokio::sync::{mpsc, watch};
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::raft::network::Links;
    use crate::raft::types::Proposal;
    use crate::store;

    /// Goal: a node that is down is called when there is something to send and not before. The library's pause after a
    /// failure is a request that comes late, so without this replication to it spins.
    #[tokio::test]
    async fn a_stream_is_opened_for_the_first_request() {
        let identity = Identity::generate();
        let tls = Tls::new(&ClusterSecret::generate(), &identity, Room::Consensus).unwrap();
        let context = Arc::new(Context {
            links: Links::new(&tls, &Default::default()),
            cluster_id: b"a test cluster".to_vec(),
            own: 1,
            contacts: Default::default(),
            transfers: Default::default(),
            removed: watch::Sender::new(false),
            patience: Duration::from_secs(60),
            install_timeout: Duration::from_secs(60),
        });
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let channel = context.links.replication.to(Room::Consensus, &identity.peer_id, &address);
        let (sender, input) = mpsc::channel(1);
        let mut opening =
            Box::pin(run(&context, 2, Ok(RaftClient::new(channel)), ReceiverStream::new(input), Waits::PULSE));
        // Long enough for any refused connection on this host.
        assert!(
            tokio::time::timeout(Duration::from_millis(500), &mut opening).await.is_err(),
            "called without a request"
        );
        sender.send(heartbeat()).await.unwrap();
        assert!(matches!(opening.await, Err(RpcError::Unreachable(_))), "nobody listens there");
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn heartbeat() -> AppendEntriesRequest {
        AppendEntriesRequest {
            vote: vote_from_proto(&storage::Vote::default()),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        }
    }

    fn log_id(index: u64) -> Option<LogId> {
        Some(log_id_from_proto(&storage::LogId { index, ..storage::LogId::default() }))
    }

    /// The entries behind `previous` up to `last`.
    fn request(previous: u64, last: u64, commit: u64) -> AppendEntriesRequest {
        let put = Kind::PutMany(storage::PutMany::default());
        let command = storage::Command { command: Some(put), ..storage::Command::default() };
        let payload = EntryPayload::Normal(Proposal(Arc::new(store::Proposal::new(command))));
        let entry = |index| Entry { log_id: log_id(index).unwrap(), payload: payload.clone() };
        AppendEntriesRequest {
            prev_log_id: log_id(previous),
            entries: (previous + 1..=last).map(entry).collect(),
            leader_commit: log_id(commit),
            ..heartbeat()
        }
    }

    /// Goal: an answer that the library would take for one of a later request is held back: a leader that stood still
    /// would have its reads confirmed by answers from before.
    #[test]
    fn answers_confirm_no_later_request() {
        let on_the_way = |requests: &[(u64, u64, bool)], waiting: Option<u64>| {
            let sent = |(previous, last, carries_another): &(u64, u64, bool)| Sent {
                at: Instant::now(),
                previous: log_id(*previous),
                last: log_id(*last),
                carries_another: *carries_another,
            };
            OnTheWay {
                sent: requests.iter().map(sent).collect(),
                waiting: waiting.and_then(log_id),
                ..OnTheWay::default()
            }
        };
        for (requests, waiting, matching, expected) in [
            (&[][..], None, 5, false),
            (&[(5, 7, false)], None, 5, false),
            (&[(5, 5, false)], None, 5, true),
            (&[(5, 7, false), (7, 7, false)], None, 5, false),
            (&[(4, 7, false)], None, 5, true),
            (&[(5, 5, false)], None, 4, false),
            (&[(5, 7, true)], None, 5, true),
            (&[(5, 7, true)], None, 4, false),
            (&[], Some(5), 5, true),
            (&[], Some(5), 4, false),
            (&[(5, 7, false)], Some(7), 5, false),
        ] {
            let told = on_the_way(requests, waiting).would_confirm_another(log_id(matching).as_ref());
            assert_eq!(told, expected, "{requests:?} and {waiting:?} after an answer up to {matching}");
        }
    }

    /// Goal: no request is made while the library may not have looked at an answer; then it is, and is written down.
    #[tokio::test]
    async fn requests_wait_for_answers() {
        let (sender, input) = mpsc::channel(1);
        let on_the_way: Arc<Mutex<OnTheWay>> = Arc::default();
        let addressed = wire::Target::default();
        let mut requests = Requests::new(ReceiverStream::new(input), addressed, on_the_way.clone(), Waits::PULSE);
        on_the_way.lock().is_answering = true;
        sender.send(heartbeat()).await.unwrap();
        let mut next = requests.next();
        assert!(futures::poll!(&mut next).is_pending());
        let waker = {
            let mut on_the_way = on_the_way.lock();
            assert!(on_the_way.sent.is_empty());
            on_the_way.is_answering = false;
            on_the_way.waker.take()
        };
        waker.expect("the requests wait").wake();
        assert!(next.await.is_some());
        assert_eq!(on_the_way.lock().sent.len(), 1);
    }

    /// What was sent of these requests: where each begins, how many entries it has, and what it says is committed.
    async fn sent(requests: Vec<AppendEntriesRequest>, waits: Waits) -> Vec<(u64, usize, u64)> {
        let on_the_way: Arc<Mutex<OnTheWay>> = Arc::default();
        let input = stream::iter(requests);
        let requests = Requests::new(input, wire::Target::default(), on_the_way.clone(), waits);
        let index = |id: Option<storage::LogId>| id.map_or(0, |id| id.index);
        let sent = requests.map(|sent| (index(sent.previous), sent.entries.len(), index(sent.leader_commit)));
        let sent = sent.collect::<Vec<_>>().await;
        assert_eq!(on_the_way.lock().sent.len(), sent.len(), "each is written down");
        assert_eq!(on_the_way.lock().waiting, None);
        sent
    }

    /// Goal: word of a commit goes with the entries that follow it, and alone when none do; nothing else waits.
    #[tokio::test]
    async fn commits_go_with_the_next_entries() {
        let long = Waits { alone: HOUR, with_entries: Duration::ZERO };
        let both = vec![request(4, 5, 4), request(5, 5, 5), request(5, 7, 5), request(7, 7, 7), request(7, 7, 7)];
        assert_eq!(sent(both.clone(), long).await, [(4, 1, 4), (5, 2, 5), (7, 0, 7)]);
        let rarely = Waits { alone: HOUR, with_entries: HOUR };
        assert_eq!(sent(both.clone(), rarely).await, [(4, 1, 4), (5, 2, 4), (7, 0, 7)]);
        assert_eq!(sent(both, Waits::PULSE).await, [(4, 1, 4), (5, 0, 5), (5, 2, 5), (7, 0, 7), (7, 0, 7)]);
        // What the entries on the way wait for, and what goes on elsewhere.
        let apart = vec![request(5, 5, 4), request(5, 7, 4), request(7, 7, 7), request(8, 9, 7)];
        assert_eq!(sent(apart, long).await, [(5, 0, 4), (5, 2, 4), (7, 0, 7), (8, 1, 7)]);
        let mut other = vec![request(4, 5, 4), request(5, 5, 5), request(5, 6, 5)];
        other[0].entries[0].payload = EntryPayload::Blank;
        assert_eq!(sent(other, long).await, [(4, 1, 4), (5, 0, 5), (5, 1, 5)], "not about pins");
    }

    /// Goal: entries tell what is committed as often as they may, never less than was told before, and what has no entries
    /// always tells it.
    #[tokio::test]
    async fn commits_are_told_so_often() {
        let input = stream::empty();
        let mut requests = Requests::new(input, wire::Target::default(), Arc::default(), Waits::REPLICATION);
        let (start, pace) = (Instant::now(), Waits::REPLICATION.with_entries);
        let mut told = |request: AppendEntriesRequest, after: Duration| {
            let mut request = request;
            requests.tell(&mut request, start + after);
            request.leader_commit
        };
        let soon = pace / 4;
        assert_eq!(told(request(5, 6, 5), Duration::ZERO), log_id(5), "the first");
        assert_eq!(told(request(6, 7, 6), soon), log_id(5));
        assert_eq!(told(request(7, 8, 7), 2 * soon), log_id(5));
        assert_eq!(told(request(8, 8, 8), 3 * soon), log_id(8));
        assert_eq!(told(request(8, 9, 8), pace), log_id(8));
        assert_eq!(told(request(9, 10, 9), pace + 2 * soon), log_id(8));
        assert_eq!(told(request(10, 11, 10), 2 * pace), log_id(10));
        // A leader's first entry, for example, and what comes before it is told.
        let mut first = request(11, 12, 11);
        first.entries[0].payload = EntryPayload::Blank;
        assert_eq!(told(first, 2 * pace + soon), log_id(10));
        assert_eq!(told(request(12, 13, 11), 2 * pace + 2 * soon), log_id(10));
        assert_eq!(told(request(13, 14, 12), 2 * pace + 2 * soon), log_id(12), "at once");
        assert_eq!(told(request(14, 15, 13), 2 * pace + 2 * soon), log_id(12));
        let mut pulse = Requests::new(stream::empty(), wire::Target::default(), Arc::default(), Waits::PULSE);
        for (request, after) in [(request(5, 6, 5), Duration::ZERO), (request(6, 7, 6), soon)] {
            let mut sent = request.clone();
            pulse.tell(&mut sent, start + after);
            assert_eq!(sent.leader_commit, request.leader_commit);
        }
    }

    /// Goal: a request waits no longer than it may, is known while it does, and is remembered by the one it goes with.
    #[tokio::test(start_paused = true)]
    async fn a_waiting_commit_is_written_down() {
        let (sender, input) = mpsc::channel(2);
        let on_the_way: Arc<Mutex<OnTheWay>> = Arc::default();
        let input = ReceiverStream::new(input);
        let mut requests = Requests::new(input, wire::Target::default(), on_the_way.clone(), Waits::REPLICATION);
        sender.send(request(5, 5, 5)).await.unwrap();
        assert!(futures::poll!(requests.next()).is_pending());
        assert_eq!(on_the_way.lock().waiting, log_id(5));
        sender.send(request(5, 6, 5)).await.unwrap();
        assert!(requests.next().await.is_some());
        assert!(on_the_way.lock().sent.pop_front().is_some_and(|sent| sent.carries_another));
        assert_eq!(on_the_way.lock().waiting, None);
        let since = tokio::time::Instant::now();
        sender.send(request(6, 6, 6)).await.unwrap();
        assert!(requests.next().await.is_some());
        let wait = Waits::REPLICATION.alone;
        assert!(since.elapsed() >= wait && since.elapsed() < 2 * wait);
        assert!(on_the_way.lock().sent.pop_front().is_some_and(|sent| !sent.carries_another));
    }
}
