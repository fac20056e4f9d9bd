//! The other peers' side: a batch goes to the leader, one hop. Request keys make it harmless to send it again when the
//! answer is lost.

use futures::future::join_all;
use pinfold_common::{Code, Error, PeerId, Result};
use pinfold_proto::consensus::{PinManyCall, UnpinCall, pin_result};
use pinfold_proto::types;
use rand::RngCore as _;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Answer, Job, MAX_ITEMS, Work};
use crate::core::{Core, Leader, Position, at_leader};

const KEY_BYTES: usize = 16;

/// One random key for all requests of the batch whose clients gave none. An outcome is kept by key and CID, so they may
/// share it.
pub(super) fn give_keys(jobs: &mut [Job]) {
    let mut key = [0; KEY_BYTES];
    rand::rng().fill_bytes(&mut key);
    for job in jobs.iter_mut().filter(|job| job.key.is_empty()) {
        job.key = key.to_vec();
    }
}

/// Sends the jobs to `leader` and answers them. Those that come back had no answer, and may be sent again.
pub(super) async fn batch(
    core: &Core,
    leader: &PeerId,
    jobs: Vec<Job>,
    position: &mut watch::Receiver<Position>,
) -> Vec<Job> {
    let groups = group(jobs);
    let sent = join_all(groups.iter().map(|group| send(core, leader, group)));
    let results: Vec<Result<Answer>> = tokio::select! {
        results = sent => results,
        () = leads_no_more(position, leader) => {
            return groups.into_iter().flatten().collect();
        }
    };
    let mut back = Vec::new();
    let now = Instant::now();
    for (jobs, result) in groups.into_iter().zip(results) {
        match result {
            Ok(answer) => share(jobs, answer),
            Err(error) if may_retry(&error) => {
                for job in jobs {
                    if job.give_up <= now { job.answer(Err(error.clone())) } else { back.push(job) }
                }
            }
            Err(error) => jobs.into_iter().for_each(|job| job.answer(Err(error.clone()))),
        }
    }
    if !back.is_empty() {
        // The leader refused or did not answer: give an election the time to be noticed.
        let _ = tokio::time::timeout(core.config.commit_retry_delay, position.changed()).await;
    }
    back
}

/// With a key, an unknown outcome is no reason not to ask again.
fn may_retry(error: &Error) -> bool {
    error.code == Code::OutcomeUnknown || error.code.is_retryable() && error.code != Code::Exhausted
}

async fn leads_no_more(position: &mut watch::Receiver<Position>, leader: &PeerId) {
    let still = |position: &Position| matches!(&position.leader, Leader::Other(peer) if peer == leader);
    if position.wait_for(|position| !still(position)).await.is_err() {
        std::future::pending().await
    }
}

/// Pins with the same key travel together; each unpin alone.
fn group(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut groups: Vec<Vec<Job>> = Vec::new();
    for job in jobs {
        let fits = |group: &&mut Vec<Job>| {
            let items: usize = group.iter().map(|job| job.work.len()).sum();
            let pins = matches!(group[0].work, Work::Pin(_)) && matches!(job.work, Work::Pin(_));
            pins && group[0].key == job.key && items + job.work.len() <= MAX_ITEMS
        };
        match groups.last_mut().filter(|group| fits(group)) {
            Some(group) => group.push(job),
            None => groups.push(vec![job]),
        }
    }
    groups
}

async fn send(core: &Core, leader: &PeerId, jobs: &[Job]) -> Result<Answer> {
    let mut client = core.forward_client(leader)?;
    let key = jobs[0].key.clone();
    if let Work::Unpin(cid) = &jobs[0].work {
        let request = UnpinCall { cid: cid.clone(), request_key: key };
        let result = at_leader("unpin at the leader", Core::FORWARD_DEADLINE, client.unpin(request)).await;
        return match result {
            Ok(reply) => Ok(Answer { results: vec![Ok(reply.pin.unwrap_or_default())], index: reply.index }),
            Err(error) => Err(error),
        };
    }
    let requests: Vec<types::PinRequest> = jobs
        .iter()
        .flat_map(|job| match &job.work {
            Work::Pin(requests) => requests.as_slice(),
            Work::Unpin(_) => &[],
        })
        .map(|request| request.clone().into())
        .collect();
    let asked = requests.len();
    let request = PinManyCall { requests, request_key: key };
    let reply = at_leader("pin at the leader", Core::FORWARD_DEADLINE, client.pin_many(request)).await?;
    if reply.results.len() != asked {
        return Err(Error::internal(format!("the leader answered {} of {asked} items", reply.results.len())));
    }
    let results = reply
        .results
        .into_iter()
        .map(|result| match result.result {
            Some(pin_result::Result::Pin(pin)) => Ok(pin),
            Some(pin_result::Result::Failure(failure)) => {
                Err(Error::new(Code::from_name(&failure.code).unwrap_or(Code::Internal), failure.message))
            }
            None => Err(Error::internal("the leader answered an item with nothing")),
        })
        .collect();
    Ok(Answer { results, index: reply.index })
}

fn share(jobs: Vec<Job>, answer: Answer) {
    let mut results = answer.results.into_iter();
    for job in jobs {
        let own = results.by_ref().take(job.work.len()).collect();
        job.answer(Ok(Answer { results: own, index: answer.index }));
    }
}
