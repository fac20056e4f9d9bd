//! What an operator asks about pins that do not move and about unpins that wait, through `ctl` itself.

use std::collections::BTreeMap;

use cid::Cid;
use multihash::Multihash;
use pinfold_common::json::GlobalPinInfoJson;
use pinfold_common::tls::Room;
use pinfold_tests::cluster::{PATIENCE, TestCluster, eventually, programs};
use pinfold_tests::content;

async fn text(cluster: &TestCluster, arguments: &[&str]) -> String {
    cluster.ctl_prints(0, arguments).await
}

async fn json(cluster: &TestCluster, arguments: &[&str]) -> serde_json::Value {
    let all: Vec<&str> = ["--enc", "json"].into_iter().chain(arguments.iter().copied()).collect();
    serde_json::from_str(&text(cluster, &all).await).unwrap()
}

/// Goal: a pin that nobody can provide is explained with its reason, its attempts, its next try and what to do; the
/// nodes' garbage is collected on all peers; nothing is held on a healthy cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_pin_is_explained() {
    let cluster = TestCluster::start(2).await;
    let dead = Cid::new_v1(0x55, Multihash::wrap(0x12, &[7; 32]).unwrap()).to_string();
    text(&cluster, &["pin", "add", &dead, "--name", "dead", "--no-status"]).await;
    let explained = eventually("the reason", || async {
        let explained = json(&cluster, &["pin", "explain", &dead]).await;
        let peers = explained["peers"].as_array()?.clone();
        peers.iter().all(|peer| peer["reason"] == "no_providers" && peer["next_try"].is_string()).then_some(explained)
    })
    .await;
    assert_eq!(explained["peers"].as_array().unwrap().len(), 2);
    let eyes = eventually("words for it", || async {
        // An attempt may be running right now.
        let eyes = text(&cluster, &["pin", "explain", &dead]).await;
        eyes.contains("ctl recover").then_some(eyes)
    })
    .await;
    assert!(eyes.contains("(dead)") && eyes.lines().count() < 24, "{eyes}");

    let gc = json(&cluster, &["ipfs", "gc"]).await;
    assert_eq!(gc["peer_map"].as_object().unwrap().len(), 2, "{gc}");
    assert_eq!(text(&cluster, &["approve"]).await, "Nothing is held.\n");
    let peering = json(&cluster, &["ipfs", "peering"]).await;
    assert_eq!(peering["Peering"]["Peers"], serde_json::json!([]), "nobody can dial embedded nodes");
}

/// Goal: with its tracker's folder lost, a peer does not unpin what may have been somebody else's: `ctl approve` lists
/// it with the reason, and lets it go ahead.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_unpin_is_approved() {
    let cluster = TestCluster::start(1).await;
    let kept = content::identity_cid("kept until approved").to_string();
    text(&cluster, &["pin", "add", &kept, "--wait", "--no-status"]).await;
    let connector = cluster.peer(0).service(Room::Connector).unwrap();
    connector.kill_and_hold().await;
    std::fs::remove_dir_all(cluster.peer(0).folder.join("tracker")).unwrap();
    connector.resume().await;
    cluster.peer(0).wait_ready(PATIENCE, |_| {}).await.unwrap();
    eventually("it is known again", || async {
        (cluster.rest(0).status(&kept).await.peer_map.values().next()?.status == "pinned").then_some(())
    })
    .await;
    text(&cluster, &["pin", "rm", &kept, "--no-status"]).await;
    let held = eventually("the unpin is held", || async {
        let held = json(&cluster, &["approve"]).await;
        (held[0]["held"].as_array()?.len() == 1).then_some(held)
    })
    .await;
    assert_eq!((&held[0]["held"][0]["cid"], &held[0]["held"][0]["cause"]), (&kept.as_str().into(), &"adopted".into()));
    assert!(text(&cluster, &["approve"]).await.contains("1 unpins are held"));
    assert!(text(&cluster, &["approve", "--all"]).await.contains("1 unpins go ahead"));
    eventually("nothing is held", || async {
        (text(&cluster, &["approve"]).await == "Nothing is held.\n").then_some(())
    })
    .await;
}

/// What one peer says of everything it tracks: the status and the attempts, by CID.
async fn tracked(cluster: &TestCluster) -> BTreeMap<String, (String, u32)> {
    let lines = cluster.rest(0).get("/pins?local=true").await.lines::<GlobalPinInfoJson>();
    let told = lines.into_iter().filter_map(|info| {
        let here = info.peer_map.into_values().next()?;
        Some((info.cid, (here.status, here.attempt_count)))
    });
    told.collect()
}

/// Goal: a queue full of pins that nobody can provide survives kill -9 of the connector: nothing is missing, attempts
/// are not counted anew but for the last one, and what can be pinned is, behind all of them.
#[tokio::test(flavor = "multi_thread")]
async fn the_queue_survives_kill_9() {
    const DEAD: u8 = 200;
    let cluster = TestCluster::start(1).await;
    let dead: Vec<String> =
        (0..DEAD).map(|number| Cid::new_v1(0x55, Multihash::wrap(0x12, &[number; 32]).unwrap()).to_string()).collect();
    for cid in &dead {
        assert_eq!(cluster.rest(0).post(&format!("/pins/{cid}")).await.status, 200);
    }
    let before = eventually("some were tried", || async {
        let tracked = tracked(&cluster).await;
        let tried = dead.iter().filter(|cid| tracked.get(*cid).is_some_and(|(_, attempts)| *attempts > 0)).count();
        (tried >= 10).then_some(tracked)
    })
    .await;
    let connector = cluster.peer(0).service(Room::Connector).unwrap();
    connector.kill_and_hold().await;
    connector.resume().await;
    cluster.peer(0).wait_ready(PATIENCE, |_| {}).await.unwrap();
    let after = tracked(&cluster).await;
    for cid in &dead {
        let (status, attempts) = &after[cid];
        // What was counted in the moment of the kill may not have reached the disk.
        assert!(attempts + 1 >= before[cid].1, "{cid}: {attempts} attempts after {}", before[cid].1);
        assert!(["pin_queued", "pinning", "pin_error"].contains(&status.as_str()), "{cid}: {status}");
    }
    let good = content::identity_cid("behind the dead").to_string();
    text(&cluster, &["pin", "add", &good, "--wait", "--no-status"]).await;
}

/// Goal: an import that leaves out most of the pinset unpins nothing on its own: the mass-unpin guard holds it, says why,
/// and lets it go ahead when a person says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_mass_unpin_after_an_import_is_held() {
    let cluster = TestCluster::start(1).await;
    let cids: Vec<String> = (0..40).map(|n| content::identity_cid(&format!("imported {n}")).to_string()).collect();
    for cid in &cids {
        text(&cluster, &["pin", "add", cid, "--wait", "--no-status"]).await;
    }
    let folder = &cluster.peer(0).folder;
    let export = text(&cluster, &["state", "export", "--consistent"]).await;
    let some: String = export.lines().take(10).flat_map(|line| [line, "\n"]).collect();
    let file = folder.join("some.jsonl");
    std::fs::write(&file, some).unwrap();
    cluster.peer(0).stop().await;
    let mut import = tokio::process::Command::new(programs().path("consensus-svc").unwrap());
    let output = import.arg("--config").arg(folder).args(["state", "import", "--force"]).arg(&file).output().await;
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.peer(0).resume().await;
    cluster.peer(0).wait_ready(PATIENCE, |_| {}).await.unwrap();

    let held = eventually("the unpins are held", || async {
        let held = json(&cluster, &["approve"]).await;
        (held[0]["held"].as_array()?.len() == 30).then_some(held)
    })
    .await;
    let first = &held[0]["held"][0];
    assert!(first["why"].as_str().unwrap().contains("mass-unpin guard"), "{first}");
    for cid in &cids {
        let told: GlobalPinInfoJson = cluster.rest(0).get(&format!("/pins/{cid}?local=true")).await.json();
        let here = told.peer_map.values().next().map_or("", |here| here.status.as_str());
        assert!(["pinned", "unpin_queued"].contains(&here), "{cid}: {here}");
    }
    assert!(text(&cluster, &["approve", "--all"]).await.contains("30 unpins go ahead"));
    eventually("ten are left", || async {
        let tracked = tracked(&cluster).await;
        (tracked.len() == 10 && tracked.values().all(|(status, _)| status == "pinned")).then_some(())
    })
    .await;
}
