//! Monitoring and allocation as an operator meets them: `ctl health …`, `ctl pin <cid>`, `ctl pin ls <cid>`.

use ctl::local::cluster::Ipfs;
use pinfold_common::json::AlertJson;
use pinfold_tests::cluster::{PATIENCE, TestCluster, eventually};
use pinfold_tests::content;
use serde_json::{Value, json};

/// What `ctl` prints on standard output; it must succeed.
async fn ctl(cluster: &TestCluster, peer: usize, arguments: &[&str]) -> String {
    cluster.ctl_prints(peer, arguments).await
}

async fn json_of(cluster: &TestCluster, arguments: &[&str]) -> Value {
    let text = ctl(cluster, 0, &[&["--enc", "json"], arguments].concat()).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

async fn allocations(cluster: &TestCluster, cid: &str) -> usize {
    json_of(cluster, &["pin", "ls", cid]).await["allocations"].as_array().unwrap().len()
}

/// Alerts about the pings of one peer, newest first.
async fn pings_missed(cluster: &TestCluster, of: &str) -> Vec<AlertJson> {
    let alerts: Vec<AlertJson> = serde_json::from_value(json_of(cluster, &["health", "alerts"]).await).unwrap();
    alerts.into_iter().filter(|alert| alert.metric.name == "ping" && alert.metric.peer == of).collect()
}

/// Goal: a peer that stops is told within TTL and check interval, also where nothing is re-pinned, and told as over when
/// it is back, by whichever peer is asked; what is pinned meanwhile avoids it; `ctl pin <cid>` then fills an item up to
/// its maximum, which `ctl pin ls <cid>` shows; `ctl health` sums up.
#[tokio::test(flavor = "multi_thread")]
async fn seed_c3_g4_g5_g6_h7_h8_h10_an_operator_looks() {
    let settings = vec![
        ("cluster.monitor_ping_interval", json!("1s")),
        ("monitor.pubsubmon.check_interval", json!("500ms")),
        ("cluster.disable_repinning", json!(true)),
    ];
    let cluster = TestCluster::with(3, Ipfs::Embedded { gateways: Vec::new() }, settings).await;
    let before = content::identity_cid("before").to_string();
    ctl(&cluster, 0, &["pin", &before, "--rmin", "1", "--rmax", "3"]).await;
    assert_eq!(allocations(&cluster, &before).await, 3);
    let names = json_of(&cluster, &["health", "metrics"]).await;
    assert_eq!(names, json!(["freespace", "ping", "pinqueue", "tag:group"]));
    let spaces = ctl(&cluster, 1, &["health", "metrics", "freespace"]).await;
    assert_eq!(spaces.lines().filter(|line| line.contains("| freespace: ")).count(), 3, "{spaces}");
    let graph = ctl(&cluster, 0, &["health", "graph"]).await;
    assert!(graph.starts_with("digraph cluster {"), "{graph}");
    assert!(graph.contains("C0 -> T") || graph.contains("T0 -> C"), "{graph}");

    let lost = cluster.peer(2).peer_id.to_string();
    cluster.peer(2).stop().await;
    eventually("the alert", || async {
        let alerts = pings_missed(&cluster, &lost).await;
        alerts.first().is_some_and(|alert| alert.resolved_at.is_none()).then_some(())
    })
    .await;
    eventually("the peer is in doubt", || async {
        let text = ctl(&cluster, 0, &["health"]).await;
        let is_told = text.contains("Pins:             1\n") && text.contains("Peers:            3, 2 of them well");
        is_told.then_some(())
    })
    .await;
    // The leader may be another one, and may hear the last of it a moment later.
    let mut pins = 1;
    let during = loop {
        let cid = content::identity_cid(&format!("during {pins}")).to_string();
        ctl(&cluster, 0, &["pin", "add", &cid, "--rmin", "1", "--rmax", "3"]).await;
        pins += 1;
        match allocations(&cluster, &cid).await {
            2 => break cid,
            count => assert!(count == 3 && pins < 100, "nothing new for a peer in doubt: {count}"),
        }
    };

    cluster.peer(2).resume().await;
    cluster.peer(2).wait_ready(PATIENCE, |_| {}).await.unwrap();
    eventually("the alert is over", || async {
        let alerts = pings_missed(&cluster, &lost).await;
        alerts.first().is_some_and(|alert| alert.resolved_at.is_some()).then_some(())
    })
    .await;
    eventually("filled up to the maximum", || async {
        ctl(&cluster, 0, &["pin", &during, "--rmin", "1", "--rmax", "3", "--no-status"]).await;
        (allocations(&cluster, &during).await == 3).then_some(())
    })
    .await;
    // The peer that was away has the history as well, from the others.
    eventually("the history is everywhere", || async {
        let text = ctl(&cluster, 2, &["health", "alerts"]).await;
        text.lines().any(|line| line.starts_with(&lost) && line.contains(": ping. ")).then_some(())
    })
    .await;
    let summary = json_of(&cluster, &["health"]).await;
    for (key, expected) in [("pins", pins), ("under_replicated", 0), ("over_replicated", 0), ("lost", 0)] {
        assert_eq!(summary[key], json!(expected), "{key}: {summary}");
    }
}
