//! Entries to a follower: one pipelined stream, answers in the order of the requests.
//!
//! The library takes an answer for one of all requests up to the log ID that it confirms, and so for as young as the youngest
//! of them. Of two requests that end at the same entry, such as one with entries and one that only tells what is committed,
//! the answer to the older one would confirm a majority for a consistent read that is younger than it: a leader that stood
//! still, and has answers from before in its socket, would read what others have overwritten. So an answer is given to
//! the library only when no later request is on its way that it would be taken for, and nothing is asked of the library
//! until it has looked at it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker, ready};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, stream};
use openraft::base::BoxStream;
use openraft::raft::StreamAppendError;
use parking_lot::Mutex;
use pinfold_common::Error;
use pinfold_common::channel::explain;
use pinfold_proto::consensus as wire;
use pinfold_proto::consensus::append_reply::Result as Outcome;
use pinfold_proto::consensus::raft_client::RaftClient;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Context, broken, unreachable_node};
use crate::raft::types::{
    AppendEntriesRequest, LogId, RpcError, StreamAppendResult, log_id_from_proto, log_id_to_proto, record_of,
    vote_from_proto, vote_to_proto,
};

/// A request that waits for its answer.
struct Sent {
    at: Instant,
    previous: Option<LogId>,
    last: Option<LogId>,
}

/// Shared by the two directions of one stream. The library bounds how far it is ahead.
#[derive(Default)]
struct OnTheWay {
    sent: VecDeque<Sent>,
    /// The library has an answer and may not have looked at it.
    is_answering: bool,
    /// Of the requests, which wait for that.
    waker: Option<Waker>,
}

impl OnTheWay {
    /// Whether the library would take the answer `matching` for one of a request that waits. Those further back begin and
    /// end no earlier than the oldest.
    fn would_confirm_another(&self, matching: Option<&LogId>) -> bool {
        let is_confirmed = |sent: &Sent| sent.last.as_ref() <= matching || sent.previous.as_ref() < matching;
        self.sent.front().is_some_and(is_confirmed)
    }
}

/// The library's requests, each written down in the moment in which it is made.
struct Requests<S> {
    input: S,
    addressed: wire::Target,
    on_the_way: Arc<Mutex<OnTheWay>>,
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
        let Some(request) = ready!(Pin::new(&mut self.input).poll_next(cx)) else { return Poll::Ready(None) };
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        on_the_way.sent.push_back(Sent { at: Instant::now(), previous: request.prev_log_id, last });
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
    let requests = Requests { input, addressed: context.addressed(target), on_the_way: on_the_way.clone() };
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
        let mut opening = Box::pin(run(&context, 2, Ok(RaftClient::new(channel)), ReceiverStream::new(input)));
        // Long enough for any refused connection on this host.
        assert!(
            tokio::time::timeout(Duration::from_millis(500), &mut opening).await.is_err(),
            "called without a request"
        );
        sender.send(heartbeat()).await.unwrap();
        assert!(matches!(opening.await, Err(RpcError::Unreachable(_))), "nobody listens there");
    }

    fn heartbeat() -> AppendEntriesRequest {
        AppendEntriesRequest {
            vote: vote_from_proto(&storage::Vote::default()),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        }
    }

    fn entry(index: u64) -> Option<LogId> {
        Some(log_id_from_proto(&storage::LogId { index, ..storage::LogId::default() }))
    }

    /// Goal: an answer that the library would take for one of a later request is held back: a leader that stood still
    /// would have its reads confirmed by answers from before.
    #[test]
    fn answers_confirm_no_later_request() {
        let on_the_way = |requests: &[(u64, u64)]| {
            let sent = |(previous, last): &(u64, u64)| Sent {
                at: Instant::now(),
                previous: entry(*previous),
                last: entry(*last),
            };
            OnTheWay { sent: requests.iter().map(sent).collect(), ..OnTheWay::default() }
        };
        for (requests, matching, expected) in [
            (&[][..], 5, false),
            (&[(5, 7)], 5, false),
            (&[(5, 5)], 5, true),
            (&[(5, 7), (7, 7)], 5, false),
            (&[(4, 7)], 5, true),
            (&[(5, 5)], 4, false),
        ] {
            let told = on_the_way(requests).would_confirm_another(entry(matching).as_ref());
            assert_eq!(told, expected, "{requests:?} after an answer up to {matching}");
        }
    }

    /// Goal: no request is made while the library may not have looked at an answer; then it is, and is written down.
    #[tokio::test]
    async fn requests_wait_for_answers() {
        let (sender, input) = mpsc::channel(1);
        let on_the_way: Arc<Mutex<OnTheWay>> = Arc::default();
        let addressed = wire::Target::default();
        let mut requests = Requests { input: ReceiverStream::new(input), addressed, on_the_way: on_the_way.clone() };
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
}
