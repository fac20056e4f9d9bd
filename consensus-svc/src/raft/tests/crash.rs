//! A real `kill -9`: this test's own binary is started again as the victim.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pinfold_common::identity::Identity;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::harness::{CLUSTER_ID, DEADLINE, until};
use super::put;
use crate::raft::{Links, Node, NodeAndPeer, RaftConfig, Start};
use crate::store::Stores;

const FOLDER: &str = "PINFOLD_TEST_VICTIM_FOLDER";
const VICTIM: &str = "raft::tests::crash::victim";
const WRITERS: usize = 16;
/// Acknowledgements before the kill.
const ACKNOWLEDGED: usize = 400;

/// A cluster of one, without a listener. The log is cut all the time.
async fn start(folder: &Path) -> Node {
    let identity = Identity::generate();
    let tls = Tls::new(&ClusterSecret::generate(), &identity, Room::Consensus).unwrap();
    let start = Start {
        config: RaftConfig {
            snapshot_threshold: 20,
            snapshot_interval: Duration::from_millis(50),
            trailing_logs: 10,
            ..RaftConfig::default()
        },
        cluster_id: CLUSTER_ID.to_vec(),
        node_id: 1,
        stores: Stores::open(folder).await.unwrap(),
        links: Links::new(&tls, &Default::default()),
    };
    let node = Node::start(start).await.unwrap();
    if !node.status().borrow().is_initialized {
        let own = NodeAndPeer { node_id: 1, peer_id: identity.peer_id, address: "127.0.0.1:1".to_owned() };
        node.initialize(&[own]).await.unwrap();
    }
    let status = node.status();
    until("it leads", async || status.borrow().is_ready_to_lead).await;
    node
}

/// Goal: what was acknowledged before `kill -9` is there, while the log was being cut.
#[tokio::test(flavor = "multi_thread")]
async fn kill_minus_nine_loses_nothing_acknowledged() {
    let folder = tempfile::TempDir::new().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        let mut victim = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", VICTIM, "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .env("PINFOLD_TEST_VICTIM_ROUND", round.to_string())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let before = acknowledged.len();
        let reading = async {
            while acknowledged.len() < before + ACKNOWLEDGED {
                let line = lines.next_line().await.unwrap().expect("the victim lives");
                acknowledged.extend(line.strip_prefix("acknowledged ").map(str::to_owned));
            }
        };
        tokio::time::timeout(DEADLINE, reading).await.expect("the victim writes");
        // SIGKILL.
        victim.kill().await.unwrap();
    }
    let node = start(folder.path()).await;
    for cid in &acknowledged {
        assert!(node.stores().state.get(cid.as_bytes()).await.unwrap().is_some(), "{cid} was acknowledged");
    }
    assert!(node.stores().log.status().purged.is_some(), "the log was cut meanwhile");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "is started, and killed, by the test above"]
async fn victim() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let round = std::env::var("PINFOLD_TEST_VICTIM_ROUND").unwrap();
    let node = start(Path::new(&folder)).await;
    let writers = (0..WRITERS).map(|writer| {
        let (node, round) = (node.clone(), round.clone());
        tokio::spawn(async move {
            for number in 0.. {
                let cid = format!("pin-{round}-{writer}-{number}");
                node.propose(put(&cid)).await.unwrap();
                println!("acknowledged {cid}");
            }
        })
    });
    futures::future::join_all(writers).await;
}
