//! Entries to a follower: one pipelined stream, answers in the order of the requests.

use std::collections::VecDeque;
use std::sync::Arc;
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
type OnTheWay = Arc<Mutex<VecDeque<Sent>>>;

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
    let on_the_way = OnTheWay::default();
    let addressed = context.addressed(target);
    let sent = on_the_way.clone();
    let requests = input.map(move |request| {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        sent.lock().push_back(Sent { at: Instant::now(), previous: request.prev_log_id, last });
        encode(addressed.clone(), &request)
    });
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
    on_the_way: OnTheWay,
}

impl Answers {
    /// `None`: the other side has answered everything and ended the stream.
    async fn next(&mut self) -> Option<Result<StreamAppendResult, RpcError>> {
        let reply = match self.reply_in_time().await {
            Ok(reply) => reply?,
            Err(error) => return Some(self.context.observe(self.target, Err(error))),
        };
        self.context.contacts.heard(self.target);
        let Some(sent) = self.on_the_way.lock().pop_front() else {
            return Some(Err(broken("an answer that nothing was asked for")));
        };
        Some(decode(&reply, &sent))
    }

    /// An idle stream may stay so; one with a request on the way must move.
    async fn reply_in_time(&mut self) -> Result<Option<wire::AppendReply>, Error> {
        loop {
            match tokio::time::timeout(self.context.patience, self.replies.message()).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(status)) => return Err(explain(status)),
                Err(_) => {
                    let oldest: Option<Duration> = self.on_the_way.lock().front().map(|sent| sent.at.elapsed());
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
        let heartbeat = AppendEntriesRequest {
            vote: vote_from_proto(&storage::Vote::default()),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        sender.send(heartbeat).await.unwrap();
        assert!(matches!(opening.await, Err(RpcError::Unreachable(_))), "nobody listens there");
    }
}
