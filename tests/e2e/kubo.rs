//! The same job with a real Kubo beside each peer.

use ctl::local::cluster::Ipfs;
use pinfold_common::json::AddedJson;
use pinfold_proto::api::HealthRequest;
use pinfold_tests::cluster::{TestCluster, eventually};
use pinfold_tests::{content, kubo};
use serde_json::json;

#[path = "../../ipfs-connector/tests/daemon/mod.rs"]
mod daemon;

use crate::pinning::{holders, settled};

/// Reads from one daemon what it has itself, fetching nothing.
async fn cat(cluster: &TestCluster, index: usize, cid: &str) -> Result<Vec<u8>, String> {
    let node = cluster.config(index).multiaddr("ipfs_connector.ipfshttp.node_multiaddress").unwrap();
    let authority = pinfold_common::address::host_port(&node).unwrap();
    let url = format!("http://{authority}/api/v0/cat?arg={cid}&offline=true");
    let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(30)).build().unwrap();
    let response = client.post(url).send().await.map_err(|error| error.to_string())?;
    if response.status() != 200 {
        return Err(response.text().await.unwrap_or_default());
    }
    response.bytes().await.map(|bytes| bytes.to_vec()).map_err(|error| error.to_string())
}

/// Goal: content added through the cluster lies on the Kubo daemons of the allocated peers, byte for byte.
#[tokio::test(flavor = "multi_thread")]
async fn kubo_add_and_read_back_from_each_holder() {
    if !kubo::is_here("kubo_add_and_read_back_from_each_holder") {
        return;
    }
    let cluster = TestCluster::with(3, Ipfs::StartKubo, Vec::new()).await;
    let data = content::bytes(4, 3_000_001);
    let answer = cluster.rest(0).add("", vec![("three.bin", data.clone())]).await;
    let cid = answer.lines::<AddedJson>().pop().unwrap_or_else(|| panic!("{}", answer.body)).cid.unwrap();
    settled(&cluster, 1, &cid, 2).await;
    let pin = cluster.rest(2).allocations().await.remove(&cid).unwrap();
    for index in holders(&cluster, &pin.allocations.unwrap()) {
        assert!(cat(&cluster, index, &cid).await.unwrap() == data);
    }
}

/// Goal: issue 6, seed:D3. A Kubo that collects garbage every second, whatever it has: the operator is told, and what an add
/// told the CID of is there, byte for byte, however often the GC came between its blocks and its pin.
#[tokio::test(flavor = "multi_thread")]
async fn seed_d3_kubo_adds_are_verified_beside_an_automatic_gc() {
    if !kubo::is_here("seed_d3_kubo_adds_are_verified_beside_an_automatic_gc") {
        return;
    }
    // It begins at a hundredth of the limit: with the first add.
    let limits = [("Datastore.StorageMax", "\"200MB\""), ("Datastore.StorageGCWatermark", "1")];
    let configuration = [[("Datastore.GCPeriod", "\"1s\"")].as_slice(), &limits].concat();
    let daemon = daemon::start_with(&configuration, &["--enable-gc"]);
    // A pin without blocks is given up soon, and tried again.
    let settings = vec![("ipfs_connector.ipfshttp.pin_timeout", json!("5s"))];
    let cluster = TestCluster::with(1, Ipfs::RunningKubo(vec![daemon.api.clone()]), settings).await;
    eventually("the operator is told", || async {
        let health = cluster.api(0).health(HealthRequest {}).await.ok()?.into_inner();
        let connector = health.rooms.into_iter().find(|room| room.name == "ipfs-connector")?;
        (connector.ready && connector.reason.contains("automatic GC is on")).then_some(())
    })
    .await;
    let mut told = 0;
    for n in 0..12 {
        let data = content::bytes(100 + n, 3_000_001);
        let answer = cluster.rest(0).add("stream-channels=true&cid-version=1", vec![("x", data.clone())]).await;
        let Some(cid) = answer.lines::<AddedJson>().pop().and_then(|line| line.cid) else { continue };
        told += 1;
        assert!(cat(&cluster, 0, &cid).await.unwrap() == data, "{cid} was told and is not there");
    }
    assert!(told > 0, "no add succeeded");
}

/// Goal: content that one daemon has is pinned by the others over bitswap: the cluster connected their swarms.
#[tokio::test(flavor = "multi_thread")]
async fn kubo_pins_by_bitswap() {
    if !kubo::is_here("kubo_pins_by_bitswap") {
        return;
    }
    let cluster = TestCluster::with(3, Ipfs::StartKubo, Vec::new()).await;
    let data = content::bytes(5, 2_000_000);
    let answer = cluster.rest(1).add("replication=1&local=true&cid-version=1", vec![("one.bin", data.clone())]).await;
    let cid = answer.lines::<AddedJson>().pop().unwrap_or_else(|| panic!("{}", answer.body)).cid.unwrap();
    settled(&cluster, 1, &cid, 1).await;
    assert_eq!(cluster.rest(0).post(&format!("/pins/{cid}?replication=-1")).await.status, 200);
    settled(&cluster, 0, &cid, 3).await;
    for index in 0..3 {
        assert!(cat(&cluster, index, &cid).await.unwrap() == data);
    }
    assert_eq!(cluster.rest(2).delete(&format!("/pins/{cid}")).await.status, 200);
    eventually("unpinned by every daemon", || async {
        let status = cluster.rest(0).status(&cid).await;
        status.peer_map.values().all(|peer| peer.status == "unpinned").then_some(())
    })
    .await;
}
