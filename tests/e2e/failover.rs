//! Peers that die in the middle of it.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use pinfold_common::tls::Room;
use pinfold_tests::cluster::{PATIENCE, TestCluster, eventually};
use pinfold_tests::content;

/// Goal: the peer through which the others joined is killed for good, and the others go on (in the original they never
/// had a leader again).
#[tokio::test(flavor = "multi_thread")]
async fn the_peer_that_others_joined_through_dies() {
    let cluster = TestCluster::start(3).await;
    let before = content::identity_cid("before").to_string();
    assert_eq!(cluster.rest(0).post(&format!("/pins/{before}?replication=-1")).await.status, 200);
    cluster.peer(0).kill().await;
    let leader = cluster.leader(&[1, 2]).await;
    for index in [1, 2] {
        let cid = content::identity_cid(&format!("after {index}, led by {leader}")).to_string();
        let answer = eventually("a pin without the first peer", || async {
            let answer = cluster.rest(index).post(&format!("/pins/{cid}?replication-min=1&replication-max=2")).await;
            (answer.status == 200).then_some(answer)
        })
        .await;
        assert!(answer.body.contains(&cid));
    }
    // Both restarted, without the one that knew them both.
    for index in [1, 2] {
        cluster.peer(index).stop().await;
    }
    for index in [1, 2] {
        cluster.peer(index).resume().await;
    }
    cluster.leader(&[1, 2]).await;
    for index in [1, 2] {
        assert!(cluster.rest(index).allocations().await.contains_key(&before));
    }
}

/// Goal: kill -9 of the leader in a stream of pins from several clients: every acknowledged pin is in the list afterwards,
/// on every peer, none twice.
#[tokio::test(flavor = "multi_thread")]
async fn leader_killed_in_a_stream_of_pins() {
    const CLIENTS: usize = 8;
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    let acknowledged = Mutex::new(BTreeSet::new());
    let stop = AtomicBool::new(false);
    let client = |number: usize| {
        let (others, acknowledged, stop, cluster) = (&others, &acknowledged, &stop, &cluster);
        async move {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let cid = content::identity_cid(&format!("client {number} pin {n}")).to_string();
                let path = format!("/pins/{cid}?replication-min=1&replication-max=3");
                let answer = cluster.rest(others[n % 2]).send("POST", &path).await;
                if answer.is_ok_and(|answer| answer.status == 200) {
                    acknowledged.lock().unwrap().insert(cid);
                }
            }
        }
    };
    let enough = |more_than: usize| {
        let acknowledged = &acknowledged;
        eventually("acknowledged pins", move || async move {
            (acknowledged.lock().unwrap().len() > more_than).then_some(())
        })
    };
    let drive = async {
        enough(100).await;
        cluster.peer(leader).service(Room::Consensus).unwrap().kill_and_hold().await;
        let so_far = acknowledged.lock().unwrap().len();
        cluster.leader(&others).await;
        enough(so_far + 100).await;
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(drive, futures::future::join_all((0..CLIENTS).map(client)));

    cluster.peer(leader).service(Room::Consensus).unwrap().resume().await;
    cluster.peer(leader).wait_ready(PATIENCE, |_| {}).await.unwrap();
    let acknowledged = acknowledged.into_inner().unwrap();
    for index in 0..3 {
        // `allocations` itself fails on a pin that is listed twice.
        eventually(&format!("all {} acknowledged pins on peer {index}", acknowledged.len()), || async {
            let here = cluster.rest(index).allocations().await;
            acknowledged.iter().all(|cid| here.contains_key(cid)).then_some(())
        })
        .await;
    }
}
