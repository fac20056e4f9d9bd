//! The state through `ctl` and the gateway: exported and backed up while the house runs, restored when it does not, with
//! the commands of docs/state.md.

use std::path::Path;

use pinfold_common::config::Overrides;
use pinfold_common::pin::PinRequest;
use pinfold_proto::{api, types};
use pinfold_tests::cluster::{PATIENCE, TestCluster, eventually, programs};
use pinfold_tests::content;

use crate::pinning::settled;

async fn pin(cluster: &TestCluster, texts: std::ops::Range<u32>) -> Vec<String> {
    let cids: Vec<_> = texts.map(|number| content::identity_cid(&format!("state {number}"))).collect();
    let requests = cids.iter().map(|cid| types::PinRequest::from(PinRequest::new(*cid))).collect();
    let call = api::PinManyRequest { requests, request_key: Vec::new() };
    cluster.pins(0).pin_many(call).await.unwrap();
    cids.iter().map(ToString::to_string).collect()
}

/// `ctl` on a peer; its standard output.
async fn ctl(cluster: &TestCluster, arguments: &[&str]) -> String {
    let folder = cluster.peer(0).folder.to_str().unwrap();
    cluster.ctl_prints(0, &[&["--config", folder], arguments].concat()).await
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// Goal: an operator exports and backs up a running peer, sees the backup's age, restores it into a new cluster, and what
/// the IPFS node has is pinned again without being fetched (seed:I8, seed:I10).
#[tokio::test(flavor = "multi_thread")]
async fn seed_i8_i10_export_backup_restore() {
    let settings: Overrides = vec![("backup.interval", "0s".into())];
    let ipfs = ctl::local::cluster::Ipfs::Embedded { gateways: Vec::new() };
    let cluster = TestCluster::with(1, ipfs, settings).await;
    let cids = pin(&cluster, 0..300).await;
    settled(&cluster, 0, &cids[7], 1).await;
    let exported = ctl(&cluster, &["state", "export", "--consistent"]).await;
    assert_eq!(lines(&exported).len(), 300);
    let file = cluster.peer(0).folder.join("pinset.jsonl");
    ctl(&cluster, &["state", "export", "-f", file.to_str().unwrap()]).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), exported);

    assert!(ctl(&cluster, &["health", "ready"]).await.contains("last backup     none"));
    let made = ctl(&cluster, &["--enc", "json", "backup", "create"]).await;
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert_eq!((made["pins"].as_u64(), made["with_keys"].as_bool()), (Some(300), Some(false)));
    let (name, path) = (made["name"].as_str().unwrap(), made["path"].as_str().unwrap());
    let listed = ctl(&cluster, &["backup", "ls"]).await;
    assert!(listed.contains(name) && listed.contains("300 pins") && listed.contains("without keys"), "{listed}");
    let health = ctl(&cluster, &["health", "ready"]).await;
    assert!(health.contains(" s ago") && health.contains(name), "{health}");
    assert!(Path::new(path).join("manifest.json").exists());

    let later = pin(&cluster, 300..310).await;
    let before = cluster.api(0).id(api::IdRequest {}).await.unwrap().into_inner();
    cluster.peer(0).stop().await;
    ctl(&cluster, &["backup", "restore", "--force", name]).await;
    cluster.peer(0).resume().await;
    cluster.peer(0).wait_ready(PATIENCE, |_| {}).await.unwrap();
    assert_eq!(ctl(&cluster, &["state", "export", "--consistent"]).await, exported);
    // No gateway and no other peer: a fetch could not succeed.
    settled(&cluster, 0, &cids[7], 1).await;
    assert_eq!(cluster.api(0).id(api::IdRequest {}).await.unwrap().into_inner().id, before.id);
    assert!(!exported.contains(&later[0]));
}

/// Of no peer of any of these clusters.
const NOBODY: &str = "12D3KooWARqgQvTqiZMKpKkMcx6zgBFbg23atYsE2BsV6GhP8JDX";

/// Goal: imported items whose allocations name nobody any more count as under-replicated: they are given to a peer of the
/// new cluster, which pins them; nothing waits for a peer that will never come (seed:I11).
#[tokio::test(flavor = "multi_thread")]
async fn seed_i11_imported_allocations_that_name_nobody() {
    let ipfs = ctl::local::cluster::Ipfs::Embedded { gateways: Vec::new() };
    let cluster = TestCluster::with(1, ipfs, vec![("backup.interval", "0s".into())]).await;
    let cids = pin(&cluster, 0..20).await;
    let file = cluster.peer(0).folder.join("pinset.jsonl");
    ctl(&cluster, &["state", "export", "--consistent", "-f", file.to_str().unwrap()]).await;

    cluster.peer(0).stop().await;
    let mut import = tokio::process::Command::new(programs().path("consensus-svc").unwrap());
    import.arg("--config").arg(&cluster.peer(0).folder).args(["state", "import", "--force"]).arg(&file);
    import.args(["--rmin", "1", "--rmax", "1", "--allocs", NOBODY]);
    let output = import.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut export = tokio::process::Command::new(programs().path("consensus-svc").unwrap());
    let output = export.arg("--config").arg(&cluster.peer(0).folder).args(["state", "export"]).output().await.unwrap();
    let imported = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(imported.matches(NOBODY).count(), cids.len(), "they name nobody: {imported}");

    cluster.peer(0).resume().await;
    cluster.peer(0).wait_ready(PATIENCE, |_| {}).await.unwrap();
    let own = cluster.peer(0).peer_id.to_string();
    eventually("every item given to this peer", || async {
        let pins = cluster.rest(0).allocations().await;
        let is_ours = |cid: &String| pins[cid].allocations.as_deref() == Some(std::slice::from_ref(&own));
        cids.iter().all(is_ours).then_some(())
    })
    .await;
    for cid in [&cids[0], &cids[19]] {
        settled(&cluster, 0, cid, 1).await;
    }
}
