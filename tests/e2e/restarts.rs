//! Whatever is restarted, alone or together, kindly or not: all pins are still there.

use pinfold_common::tls::Room;
use pinfold_proto::{api, types};
use pinfold_tests::cluster::{PATIENCE, TestCluster, eventually};
use pinfold_tests::content;

use crate::pinning::settled;

const PINS: usize = 200;

async fn pin_some(cluster: &TestCluster, label: &str) -> Vec<String> {
    let cids: Vec<_> = (0..PINS).map(|n| content::identity_cid(&format!("{label} {n}"))).collect();
    let requests = cids.iter().map(|cid| types::PinRequest::from(pinfold_common::pin::PinRequest::new(*cid)));
    let call = api::PinManyRequest { requests: requests.collect(), request_key: Vec::new() };
    let reply = cluster.pins(0).pin_many(call).await.unwrap().into_inner();
    for result in &reply.results {
        assert!(matches!(result.result, Some(api::pin_many_reply::result::Result::Pin(_))), "{result:?}");
    }
    cids.iter().map(ToString::to_string).collect()
}

async fn all_there(cluster: &TestCluster, cids: &[String]) {
    for index in 0..cluster.len() {
        eventually(&format!("{} pins on peer {index}", cids.len()), || async {
            let answer = cluster.rest(index).send("GET", "/allocations").await.ok()?;
            let here: std::collections::BTreeSet<String> =
                answer.lines::<pinfold_common::json::PinJson>().into_iter().filter_map(|pin| pin.cid).collect();
            cids.iter().all(|cid| here.contains(cid)).then_some(())
        })
        .await;
    }
}

/// Goal: each service can be killed and comes back by itself; meanwhile the other peers go on taking pins.
#[tokio::test(flavor = "multi_thread")]
async fn each_service_alone() {
    let cluster = TestCluster::start(3).await;
    let mut cids = pin_some(&cluster, "before").await;
    for room in [Room::Consensus, Room::Monitor, Room::Connector, Room::Gateway] {
        let service = cluster.peer(1).service(room).unwrap();
        service.kill_and_hold().await;
        cids.extend(pin_some(&cluster, room.name()).await);
        service.resume().await;
        cluster.peer(1).wait_ready(PATIENCE, |_| {}).await.unwrap();
    }
    all_there(&cluster, &cids).await;
    // The work of the killed connector was not forgotten either.
    for cid in [&cids[0], &cids[PINS * 3 + 7], &cids[PINS * 4 + 11]] {
        settled(&cluster, 0, cid, 2).await;
    }
}

/// Goal: everything stopped cleanly and started again has its pins and still knows what it holds.
#[tokio::test(flavor = "multi_thread")]
async fn everything_stopped_and_started() {
    let cluster = TestCluster::start(3).await;
    let cids = pin_some(&cluster, "kept").await;
    for cid in &cids[..5] {
        settled(&cluster, 0, cid, 2).await;
    }
    cluster.cluster.stop().await;
    for peer in &cluster.cluster.peers {
        peer.resume().await;
    }
    cluster.cluster.wait_ready(PATIENCE, |_, _| {}).await.unwrap();
    all_there(&cluster, &cids).await;
    for cid in &cids[..5] {
        settled(&cluster, 1, cid, 2).await;
    }
}

/// Goal: kill -9 of all peers at once loses nothing that was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn all_peers_killed_at_once() {
    let cluster = TestCluster::start(3).await;
    let mut cids = pin_some(&cluster, "acknowledged").await;
    let stream = pin_until_refused(&cluster, 0, "in flight");
    let (acknowledged, ()) = tokio::join!(stream, async {
        // Once some of the stream is acknowledged, everything goes.
        eventually("some pins of the stream", || async {
            (cluster.rest(1).allocations().await.len() > PINS + 20).then_some(())
        })
        .await;
        futures::future::join_all(cluster.cluster.peers.iter().map(|peer| peer.kill())).await;
    });
    cids.extend(acknowledged);
    futures::future::join_all(cluster.cluster.peers.iter().map(|peer| peer.resume())).await;
    cluster.cluster.wait_ready(PATIENCE, |_, _| {}).await.unwrap();
    all_there(&cluster, &cids).await;
}

/// Pins one item after the other until the peer does not answer any more; the acknowledged ones.
async fn pin_until_refused(cluster: &TestCluster, index: usize, label: &str) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for n in 0..100_000 {
        let cid = content::identity_cid(&format!("{label} {n}")).to_string();
        match cluster.rest(index).send("POST", &format!("/pins/{cid}")).await {
            Ok(answer) if answer.status == 200 => acknowledged.push(cid),
            Ok(_) | Err(_) => break,
        }
    }
    acknowledged
}
