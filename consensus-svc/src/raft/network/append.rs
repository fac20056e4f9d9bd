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

/// Opens the stream. It ends when `input` does and all is answered, or with the first error.
pub async fn run<'s, S>(
    context: &'s Arc<Context>,
    target: u64,
    client: Result<RaftClient<Channel>, Error>,
    input: S,
) -> Result<BoxStream<'s, Result<StreamAppendResult, RpcError>>, RpcError>
where
    S: Stream<Item = AppendEntriesRequest> + Send + Unpin + 'static,
{
    let mut client = context.observe(target, client)?;
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
