//! A peer whose disk is lost and whose IPFS repository is not (fault:M5): a new peer takes its place with that repository.

use std::collections::BTreeMap;

use pinfold_proto::api;
use pinfold_tests::cluster::{PATIENCE, eventually};
use pinfold_tests::content;
use pinfold_tests::rest::Rest;
use serde_json::json;

use crate::house::{House, Wish};
use crate::report::Report;
use crate::scenarios::membership::everybody_votes;
use crate::solo::copy;

const ITEMS: u64 = 24;
const ITEM_BYTES: usize = 20_000;

/// The holders of each item.
type Holders = BTreeMap<String, Vec<String>>;

/// Goal: the new peer has another identity and the old one's blocks. What only the lost peer held is pinned again, from
/// those; what it held with another one keeps that one; of all the rest nothing moves.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes longer than every test run has time for: make chaos"]
async fn seed_f16_fault_m5_a_lost_disk_is_replaced() {
    let mut report = Report::new("fault:M5 a lost disk is replaced");
    let settings = vec![("repin.grace", json!("1s")), ("repin.pins_per_second", json!(1000))];
    let mut house = House::start(Wish { spare: 1, settings, ..Wish::default() }).await;
    let lost = house.others(house.leader().await)[0];
    let gone = house.peers[lost].peer_id;
    for item in 0..ITEMS {
        // Every third one is at the lost peer alone.
        let (at, query) = match item % 3 {
            0 => (lost, "replication=1&local=true"),
            _ => ((item % 3) as usize, "replication=2"),
        };
        let data = content::bytes(item, ITEM_BYTES);
        let answer = Rest::new(house.api(at)).add(&format!("{query}&cid-version=1"), vec![("item", data)]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let asked = house.others(lost)[0];
    let rest = Rest::new(house.api(asked));
    let before = holders(&rest).await;
    pinned(&rest, &before).await;
    let id = gone.to_string();
    let alone = before.values().filter(|holders| **holders == [id.clone()]).count();
    assert!(alone > 0, "{before:?}");

    house.peers[lost].kill().await;
    let repository = house.peers[lost].folder.join("ipfs");
    copy(&repository, &house.next_folder().join("ipfs"));
    std::fs::remove_dir_all(house.peers[lost].folder.join("raft")).expect("the folder is ours");
    std::fs::remove_file(house.peers[lost].folder.join("identity.json")).expect("the folder is ours");
    report.fault("a lost disk");
    let joined = house.join_by(asked);
    house.peer_ready(joined).await;
    let client = api::cluster_client::ClusterClient::new(house.peers[asked].channel().expect("a channel"));
    let order = api::RemovePeerRequest { peer_id: gone.to_bytes(), force: false, wait_ms: 1000 };
    let after = eventually("the lost peer is out, and holds nothing", || async {
        // It is out when its items are elsewhere: asked again until then.
        let _ = tokio::time::timeout(PATIENCE, client.clone().remove_peer(order.clone())).await;
        let peerset = house.status(asked).await?.peerset?;
        let is_out = !peerset.peers.iter().any(|row| row.peer_id == gone.to_bytes());
        let after = holders(&rest).await;
        (is_out && after.values().all(|holders| !holders.contains(&id))).then_some(after)
    })
    .await;
    pinned(&rest, &after).await;
    house.forget(lost);
    everybody_votes(&house).await;

    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "the same items");
    let mut moved = 0;
    for (cid, old) in &before {
        let new = &after[cid];
        let kept = old.iter().filter(|holder| **holder != id);
        assert!(kept.clone().all(|holder| new.contains(holder)), "{cid} left a peer that works: {old:?}, {new:?}");
        assert_eq!(new.len(), old.len(), "{cid}: {old:?}, {new:?}");
        moved += usize::from(kept.count() < old.len());
    }
    report.note(format!("{moved} of {ITEMS} items moved, {alone} of them from the kept repository alone"));
    house.stop().await;
    report.finish();
}

async fn holders(rest: &Rest) -> Holders {
    let pins = rest.allocations().await.into_iter();
    pins.map(|(cid, pin)| (cid, pin.allocations.unwrap_or_default())).collect()
}

/// Waits until every holder of every item says that it has it.
async fn pinned(rest: &Rest, items: &Holders) {
    for (cid, holders) in items {
        eventually(&format!("{cid} is pinned at {holders:?}"), || async {
            let status = rest.status(cid).await;
            let is_pinned = |holder: &String| status.peer_map.get(holder).is_some_and(|at| at.status == "pinned");
            holders.iter().all(is_pinned).then_some(())
        })
        .await;
    }
}
