//! Nodes in one process, over real TLS on the loopback.

mod crash;
mod harness;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver as _;
use pinfold_proto::storage::{self, command::Command as Kind};
use pinfold_proto::{consensus as wire, types as proto};

use super::types::{Address, EntryPayload, Membership, vote_to_proto};
use super::{ChangeError, Node, ProposeError, RaftConfig, Role};
use crate::pinset::Outcome;
use harness::{Cluster, Process, until};

fn put(cid: &str) -> storage::Command {
    let pin = proto::Pin { cid: cid.as_bytes().to_vec(), r#type: 1, ..Default::default() };
    let put = storage::Put { pin: Some(pin), expected_revision: 0, request_key: Vec::new() };
    storage::Command {
        command: Some(Kind::PutMany(storage::PutMany { puts: vec![put] })),
        request_key: cid.as_bytes().to_vec(),
        ..Default::default()
    }
}

fn setting(value: String) -> storage::Command {
    let setting = storage::Setting { key: "key".to_owned(), value };
    storage::Command { command: Some(Kind::Setting(setting)), ..Default::default() }
}

/// The peer rows that the service would write at founding.
fn found(cluster: &Cluster) -> storage::Command {
    let founders = cluster.processes.iter().map(|process| proto::Peer {
        peer_id: process.peer_id().to_bytes(),
        node_id: process.node_id,
        ..Default::default()
    });
    let found = storage::Found { cluster_id: harness::CLUSTER_ID.to_vec(), founders: founders.collect() };
    storage::Command { command: Some(Kind::Found(found)), ..Default::default() }
}

async fn has_pin(process: &Process, cid: &str) -> bool {
    process.state().get(cid.as_bytes()).await.unwrap().is_some()
}

/// Writes by whoever leads. A retry is harmless: the request key is the CID.
async fn write_somewhere(nodes: &[Node], cid: &str) {
    let start = Instant::now();
    while start.elapsed() < harness::DEADLINE {
        for node in nodes {
            if node.propose(put(cid)).await.is_ok() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{cid} could not be written");
}

/// Goal: three nodes choose one leader, what it commits is applied everywhere, and a node that does not lead says who
/// does.
#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_elect_and_replicate() {
    let cluster = Cluster::founded(3, RaftConfig::default()).await;
    let leader = cluster.leader().await;
    let (index, outcome) = leader.node().propose(put("a")).await.unwrap();
    assert!(matches!(outcome, Outcome::Items(_)));
    let status = leader.node().status().borrow().clone();
    assert_eq!((status.voters.len(), status.nodes.len(), status.is_joint), (3, 3, false));
    for process in &cluster.processes {
        process.node().wait_applied(index, harness::DEADLINE).await.unwrap();
        assert!(has_pin(process, "a").await);
        let status = process.node().status().borrow().clone();
        assert_eq!(status.leader.as_ref().map(|leader| leader.node_id), Some(leader.node_id));
        if process.node_id != leader.node_id {
            let refused = process.node().propose(put("b")).await.unwrap_err();
            assert_eq!(refused, ProposeError::NotLeader(Some(leader.address())));
            let refused = process.node().read_index().await.unwrap_err();
            assert_eq!(refused, ProposeError::NotLeader(Some(leader.address())));
            assert!(process.node().contacts().last(leader.node_id).is_some());
            assert_eq!(status.role, Role::Follower);
        }
    }
    assert!(leader.node().read_index().await.unwrap() >= index);
    let again = leader.node().initialize(&[leader.address()]).await;
    assert!(matches!(again, Err(ChangeError::Refused(_))), "a cluster is founded once: {again:?}");
    cluster.shutdown().await;
}

/// Goal: what a leader decided in a term is not written in another one.
#[tokio::test(flavor = "multi_thread")]
async fn proposals_are_fenced_by_the_term() {
    let cluster = Cluster::founded(1, RaftConfig::default()).await;
    let node = cluster.leader().await.node().clone();
    let term = node.status().borrow().term;
    node.propose_in_term(put("a"), term).await.unwrap();
    for other in [term - 1, term + 1] {
        let refused = node.propose_in_term(put("b"), other).await.unwrap_err();
        assert!(matches!(refused, ProposeError::NotLeader(_)), "{refused:?}");
    }
    assert_eq!(node.stores().state.pin_count(), 1);
    cluster.shutdown().await;
}

/// Goal: no acknowledged write is lost when the leader vanishes under load, and it catches up when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_leader_is_replaced() {
    let mut cluster = Cluster::founded(3, RaftConfig::default()).await;
    let first = cluster.leader().await.node_id;
    let done = Arc::new(AtomicBool::new(false));
    let writer = {
        let nodes: Vec<_> = cluster.processes.iter().map(|process| process.node().clone()).collect();
        let done = done.clone();
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                if done.load(Ordering::Acquire) {
                    break;
                }
                let cid = format!("pin-{number}");
                write_somewhere(&nodes, &cid).await;
                acknowledged.push(cid);
            }
            acknowledged
        })
    };
    until("some writes", async || cluster.processes[0].state().pin_count() > 50).await;
    let killed_at = Instant::now();
    cluster.kill(first).await;
    let second = cluster.leader_other_than(first).await.node_id;
    let gap = killed_at.elapsed();
    assert!(gap < Duration::from_secs(10), "{gap:?}");
    let before = cluster.process(second).state().pin_count();
    until("more writes", async || cluster.process(second).state().pin_count() > before + 50).await;
    done.store(true, Ordering::Release);
    let acknowledged = writer.await.unwrap();
    cluster.restart(first).await;
    let index = cluster.process(second).node().read_index().await.unwrap();
    for process in &cluster.processes {
        process.node().wait_applied(index, harness::DEADLINE).await.unwrap();
        for cid in &acknowledged {
            assert!(has_pin(process, cid).await, "{cid} on {}", process.node_id);
        }
    }
    cluster.shutdown().await;
}

/// Goal: when all vanish at once, everything acknowledged is there when they are back.
#[tokio::test(flavor = "multi_thread")]
async fn everything_survives_the_loss_of_all() {
    let mut cluster = Cluster::founded(3, RaftConfig::default()).await;
    let leader = cluster.leader().await.node().clone();
    let writes = (0..40).map(|number| {
        let leader = leader.clone();
        async move { leader.propose(put(&format!("pin-{number}"))).await.unwrap() }
    });
    futures::future::join_all(writes).await;
    drop(leader);
    let ids: Vec<u64> = cluster.processes.iter().map(|process| process.node_id).collect();
    for id in &ids {
        cluster.kill(*id).await;
    }
    for id in &ids {
        cluster.restart(*id).await;
    }
    let leader = cluster.leader().await;
    leader.node().wait_recovered(harness::DEADLINE).await.unwrap();
    let index = leader.node().read_index().await.unwrap();
    for process in &cluster.processes {
        process.node().wait_applied(index, harness::DEADLINE).await.unwrap();
        assert_eq!(process.state().pin_count(), 40);
    }
    cluster.shutdown().await;
}

/// Goal: a planned stop hands the lead over instead of letting the others wait for an election.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over() {
    // Nobody calls an election by itself before the test gives up.
    let config = RaftConfig {
        heartbeat_interval: Duration::from_millis(100),
        election_timeout_min: 5 * harness::DEADLINE,
        election_timeout_max: 6 * harness::DEADLINE,
        ..RaftConfig::default()
    };
    let mut cluster = Cluster::founded(3, config).await;
    let first = cluster.leader().await.node_id;
    cluster.leader().await.node().propose(put("a")).await.unwrap();
    cluster.stop(first).await;
    let second = cluster.leader_other_than(first).await;
    second.node().propose(put("b")).await.unwrap();
    cluster.shutdown().await;
}

/// Goal: how often the state is checkpointed follows `snapshot_interval` and `snapshot_threshold`; a large backlog does not
/// wait for the interval.
#[tokio::test(flavor = "multi_thread")]
async fn seed_c7_i4_snapshots_follow_the_keys() {
    let often = RaftConfig {
        snapshot_threshold: 50,
        snapshot_interval: Duration::from_millis(100),
        trailing_logs: 5,
        ..RaftConfig::default()
    };
    let seldom = RaftConfig { snapshot_interval: Duration::from_secs(3600), ..often.clone() };
    let (often, seldom) = (Cluster::founded(1, often).await, Cluster::founded(1, seldom).await);
    let snapshot_at = async |cluster: &Cluster, index: u64| {
        let mut status = cluster.leader().await.node().status();
        let reached = status.wait_for(|status| status.snapshot_index >= index);
        drop(tokio::time::timeout(harness::DEADLINE, reached).await.expect("a snapshot in time").unwrap());
    };
    for cluster in [&seldom, &often] {
        for number in 0..300 {
            cluster.leader().await.node().propose(put(&format!("pin-{number}"))).await.unwrap();
        }
    }
    snapshot_at(&often, 200).await;
    assert_eq!(seldom.leader().await.node().status().borrow().snapshot_index, 0, "an hour has not passed");
    for number in 300..900 {
        seldom.leader().await.node().propose(put(&format!("pin-{number}"))).await.unwrap();
    }
    snapshot_at(&seldom, 800).await;
    often.shutdown().await;
    seldom.shutdown().await;
}

/// Goal: a node that the log can't help any more gets the whole state, also while writes go on, and then a vote.
#[tokio::test(flavor = "multi_thread")]
async fn a_learner_installs_a_snapshot() {
    let config = RaftConfig {
        snapshot_threshold: 50,
        snapshot_interval: Duration::from_millis(100),
        trailing_logs: 5,
        ..RaftConfig::default()
    };
    let mut cluster = Cluster::founded(1, config).await;
    let leader = cluster.leader().await.node().clone();
    for number in 0..400 {
        leader.propose(put(&format!("pin-{number}"))).await.unwrap();
    }
    let mut status = leader.status();
    let purged = status.wait_for(|status| status.purged_index > 200);
    drop(tokio::time::timeout(harness::DEADLINE, purged).await.expect("the log is cut by itself").unwrap());

    let joiner = cluster.add_process(1 << 63 | 7).await;
    assert_eq!(joiner.node().status().borrow().role, Role::Joining);
    let address = joiner.address();
    let writer = {
        let leader = leader.clone();
        tokio::spawn(async move {
            for number in 400..500 {
                leader.propose(put(&format!("pin-{number}"))).await.unwrap();
            }
        })
    };
    leader.add_learner(&address).await.unwrap();
    writer.await.unwrap();
    let index = leader.read_index().await.unwrap();
    joiner.node().wait_applied(index, harness::DEADLINE).await.unwrap();
    assert_eq!(joiner.state().pin_count(), 500);
    assert!(joiner.folder.path().join("raft/CURRENT").exists(), "by a snapshot");
    assert_eq!(joiner.node().status().borrow().role, Role::Learner);

    until("its lag is known", async || leader.status().borrow().lag(address.node_id).is_some_and(|lag| lag < 50)).await;
    leader.promote(BTreeSet::from([address.node_id])).await.unwrap();
    let (index, _) = leader.propose(setting("both".to_owned())).await.unwrap();
    joiner.node().wait_applied(index, harness::DEADLINE).await.unwrap();
    assert_eq!(joiner.node().status().borrow().voters.len(), 2);
    until("nothing is left of the transfer", async || {
        let mut folders = cluster.processes.iter().map(|process| process.folder.path().join("raft/snapshots"));
        folders.all(|folder| !folder.exists() || std::fs::read_dir(folder).unwrap().count() == 0)
    })
    .await;

    // What was installed is what a restart finds.
    cluster.kill(address.node_id).await;
    cluster.restart(address.node_id).await;
    assert_eq!(cluster.process(address.node_id).state().pin_count(), 500);
    cluster.shutdown().await;
}

/// Goal: a node that is gone by the log is told so, and cannot disturb the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_told() {
    let cluster = Cluster::founded(3, RaftConfig::default()).await;
    let leader = cluster.leader().await;
    leader.node().propose(found(&cluster)).await.unwrap();
    let gone = cluster.processes.iter().find(|process| process.node_id != leader.node_id).unwrap();
    let remove = storage::Remove { peer_id: gone.peer_id().to_bytes(), node_id: gone.node_id, ..Default::default() };
    let command = storage::Command { command: Some(Kind::Remove(remove)), ..Default::default() };
    leader.node().propose(command).await.unwrap();
    leader.node().remove_nodes(BTreeSet::from([gone.node_id])).await.unwrap();
    let term = leader.node().status().borrow().term;
    let mut removed = gone.node().removed();
    let told = removed.wait_for(|removed| *removed);
    drop(tokio::time::timeout(harness::DEADLINE, told).await.expect("it is told").unwrap());
    leader.node().propose(put("a")).await.unwrap();
    let status = leader.node().status().borrow().clone();
    assert_eq!((status.term, status.voters.len(), status.is_joint), (term, 2, false), "pre-votes change no term");
    assert!(!status.is_member(gone.node_id));
    cluster.shutdown().await;
}

/// Goal: a change of the voters that was interrupted half way is finished by whoever looks.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_done_change_is_finished() {
    let cluster = Cluster::founded(3, RaftConfig::default()).await;
    let leader = cluster.leader().await;
    let ids: Vec<u64> = cluster.processes.iter().map(|process| process.node_id).collect();
    let gone = *ids.iter().find(|id| **id != leader.node_id).unwrap();
    let rest: BTreeSet<u64> = ids.iter().copied().filter(|id| *id != gone).collect();
    let nodes: std::collections::BTreeMap<u64, Address> = leader
        .node()
        .raft()
        .metrics()
        .borrow_watched()
        .membership_config
        .nodes()
        .map(|(id, node)| (*id, node.clone()))
        .collect();
    let joint = Membership::new(vec![ids.iter().copied().collect(), rest.clone()], nodes).unwrap();
    leader.node().raft().append_membership(joint, EntryPayload::Blank, []).await.unwrap();
    let mut status = leader.node().status();
    drop(status.wait_for(|status| status.is_joint).await.unwrap());
    leader.node().finish_joint().await.unwrap();
    let finished = status.wait_for(|status| !status.is_joint && status.voters == rest && status.nodes.len() == 2);
    drop(tokio::time::timeout(harness::DEADLINE, finished).await.expect("one configuration").unwrap());
    leader.node().finish_joint().await.unwrap();
    cluster.shutdown().await;
}

/// Goal: a leader that nobody answers says that nothing was written, and does not let its clients wait.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_taken() {
    let config = RaftConfig { propose_timeout: Duration::from_secs(2), ..RaftConfig::default() };
    let mut cluster = Cluster::founded(2, config).await;
    let leader = cluster.leader().await.node().clone();
    let other = cluster.processes.iter().map(|process| process.node_id).find(|id| *id != leader.id()).unwrap();
    cluster.kill(other).await;
    let mut status = leader.status();
    drop(tokio::time::timeout(harness::DEADLINE, status.wait_for(|status| !status.has_quorum)).await.unwrap().unwrap());
    match leader.propose(put("a")).await.unwrap_err() {
        ProposeError::Unavailable(_) | ProposeError::NotLeader(_) => {}
        error @ (ProposeError::OutcomeUnknown(_) | ProposeError::Fatal(_)) => panic!("{error:?}"),
    }
    assert!(matches!(leader.read_index().await, Err(ProposeError::Unavailable(_) | ProposeError::NotLeader(_))));
    cluster.restart(other).await;
    until("a write", async || {
        for process in &cluster.processes {
            if process.node().propose(put("a")).await.is_ok() {
                return true;
            }
        }
        false
    })
    .await;
    cluster.shutdown().await;
}

/// Goal: messages of another cluster, for another node, in another's name, or out of order are refused with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_messages_are_refused() {
    let cluster = Cluster::founded(2, RaftConfig::default()).await;
    let leader = cluster.leader().await;
    let (index, _) = leader.node().propose(found(&cluster)).await.unwrap();
    let follower = cluster.processes.iter().find(|process| process.node_id != leader.node_id).unwrap();
    follower.node().wait_applied(index, harness::DEADLINE).await.unwrap();
    let target = wire::Target { cluster_id: harness::CLUSTER_ID.to_vec(), to: follower.node_id, from: leader.node_id };
    let vote = Some(storage::Vote::default());
    let mut client = leader.client_to(follower);
    let cases = [
        (wire::Target { cluster_id: b"other".to_vec(), ..target.clone() }, "another cluster"),
        (wire::Target { to: 99, ..target.clone() }, "is for node"),
        (wire::Target { from: follower.node_id, ..target.clone() }, "is not of peer"),
    ];
    for (target, reason) in cases {
        let request = wire::VoteRequest { target: Some(target), vote, ..Default::default() };
        let status = client.vote(request).await.unwrap_err();
        assert!(status.message().contains(reason), "{status:?}");
    }
    // A bad message ends the stream, whatever came after it, and the reason is told.
    let vote = leader.node().raft().metrics().borrow_watched().vote;
    let good = wire::AppendRequest { target: Some(target), vote: Some(vote_to_proto(&vote)), ..Default::default() };
    let bad = wire::AppendRequest { target: None, ..good.clone() };
    let stream = tokio_stream::iter([good.clone(), bad, good]);
    let mut replies = client.append(stream).await.unwrap().into_inner();
    let first = replies.message().await.unwrap().unwrap();
    assert!(matches!(first.result, Some(wire::append_reply::Result::Partial(_))), "{first:?}");
    let status = replies.message().await.unwrap_err();
    assert!(status.message().contains("target is missing"), "{status:?}");
    cluster.shutdown().await;
}
