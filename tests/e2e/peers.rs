//! The peerset as operators see it: `ctl peers`, REST, readiness, and what the processes of a peer do about it.

use ctl::local::cluster::Ipfs;
use ctl::local::service::State;
use pinfold_common::ids;
use pinfold_common::json::{AddedJson, IdJson, PinJson};
use pinfold_common::tls::Room;
use pinfold_proto::api;
use pinfold_proto::types::departure::Phase;
use pinfold_tests::cluster::{PATIENCE, TestCluster, eventually};
use pinfold_tests::content;
use serde_json::json;

/// Runs `ctl` at a peer: its exit code, stdout and stderr.
async fn ctl(cluster: &TestCluster, at: usize, words: &[&str]) -> (i32, String, String) {
    cluster.run_ctl(at, words).await
}

async fn listed(cluster: &TestCluster, at: usize) -> Vec<String> {
    let peers: Vec<IdJson> = cluster.rest(at).get("/peers").await.lines();
    peers.into_iter().map(|peer| peer.id).collect()
}

/// What is not ready at a peer, and why.
async fn troubles(cluster: &TestCluster, at: usize) -> Option<Vec<String>> {
    let health = cluster.api(at).health(api::HealthRequest {}).await.ok()?.into_inner();
    let ill = health.rooms.into_iter().filter(|room| !room.ready);
    Some(ill.map(|room| format!("{}: {}", room.name, room.reason)).collect())
}

/// Goal: the contacted peer says its versions; `ctl peers drain`, `undrain` and `rm` do what they say: the listing shows the draining, the removed peer stops by
/// itself as one that was removed, nobody lists it, and its supervisor does not start it again.
#[tokio::test(flavor = "multi_thread")]
async fn seed_a4_f15_f16_f17_removed_by_ctl() {
    let cluster = TestCluster::start(3).await;
    let (_, version, _) = ctl(&cluster, 0, &["--enc", "json", "version"]).await;
    assert!(version.contains(pinfold_common::VERSION), "{version}");
    let (_, id, _) = ctl(&cluster, 0, &["--enc", "json", "id"]).await;
    let id: IdJson = serde_json::from_str(&id).unwrap();
    assert_eq!(
        (id.version.as_str(), id.rpc_protocol_version.as_str()),
        (pinfold_common::VERSION, "/ipfscluster/1.0/rpc")
    );
    let gone = cluster.peer(2).peer_id.to_string();
    let (code, out, err) = ctl(&cluster, 0, &["peers", "drain", &gone]).await;
    assert_eq!((code, out.as_str()), (0, format!("{gone} | drained\n").as_str()), "{err}");
    eventually("the listing shows it", || async {
        let (_, out, _) = ctl(&cluster, 1, &["peers", "ls"]).await;
        out.contains("> Draining: drained").then_some(())
    })
    .await;
    let (code, out, _) = ctl(&cluster, 1, &["--enc", "json", "peers", "undrain", &gone]).await;
    assert!(code == 0 && out.contains("\"phase\": \"not draining\""), "{out}");

    let (code, out, err) = ctl(&cluster, 1, &["peers", "rm", &gone]).await;
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    assert!(err.contains(&format!("{gone} | removed")), "{err}");
    for at in [0, 1] {
        eventually("nobody lists it", || async { (listed(&cluster, at).await.len() == 2).then_some(()) }).await;
    }
    let consensus = cluster.peer(2).service(Room::Consensus).unwrap();
    consensus.subscribe().wait_for(|state| *state == State::Removed).await.unwrap();
    assert!(cluster.peer(2).folder.join("raft.old.0/log.db").exists());
    let why = cluster.peer(2).not_ready().await.unwrap_err().to_string();
    assert!(why.contains("state clean"), "{why}");
    // Once more, by REST, and the ones that must stay.
    assert_eq!(cluster.rest(0).send("DELETE", &format!("/peers/{gone}")).await.unwrap().status, 204);
    let other = cluster.peer(1).peer_id.to_string();
    assert_eq!(cluster.rest(1).send("DELETE", &format!("/peers/{other}")).await.unwrap().status, 204);
    eventually("one is left", || async { (listed(&cluster, 0).await.len() == 1).then_some(()) }).await;
    let last = cluster.peer(0).peer_id.to_string();
    let refused = cluster.rest(0).send("DELETE", &format!("/peers/{last}")).await.unwrap();
    assert_eq!(refused.status, 500);
    assert!(refused.body.contains("cannot remove ourselves from a one-peer cluster"), "{}", refused.body);
}

/// Goal: a peer with items is removed without force, while it runs and when it is dead: its items move to the others,
/// those that have their minimum elsewhere leave it too, and then it is out.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f15_f16_f21_items_move_and_then_the_peer_goes() {
    let settings = vec![
        ("cluster.monitor_ping_interval", json!("1s")),
        ("monitor.pubsubmon.check_interval", json!("1s")),
        ("repin.grace", json!("1s")),
        ("repin.pins_per_second", json!(1000)),
    ];
    let cluster = TestCluster::with(4, Ipfs::Embedded { gateways: Vec::new() }, settings).await;
    const ITEMS: usize = 24;
    for number in 0..ITEMS {
        // Every other one has leeway: a holder that leaves takes none of its minimum.
        let factors = ["replication-min=2&replication-max=2", "replication-min=1&replication-max=3"][number % 2];
        let cid = content::identity_cid(&format!("stays {number}"));
        assert_eq!(cluster.rest(0).post(&format!("/pins/{cid}?{factors}")).await.status, 200);
    }
    let leader = cluster.leader(&[0, 1, 2, 3]).await;
    let [asked, alive, dead] = [1, 2, 3].map(|step| (leader + step) % 4);
    for gone in [alive, dead] {
        if gone == dead {
            cluster.peer(dead).kill().await;
        }
        let id = cluster.peer(gone).peer_id.to_string();
        let before = allocations(&cluster, asked).await;
        assert!(before.iter().any(|(_, peers)| peers.contains(&id)), "{before:?}");
        let (code, _, err) = ctl(&cluster, asked, &["peers", "rm", &id]).await;
        assert!(code == 0 && err.contains(&format!("{id} | removed")), "{err}");
        let after = eventually("nobody names it", || async {
            let pins = allocations(&cluster, asked).await;
            pins.iter().all(|(_, peers)| !peers.contains(&id)).then_some(pins)
        })
        .await;
        assert_eq!(after.len(), ITEMS);
        assert!(after.iter().all(|(minimum, peers)| peers.len() >= *minimum), "{after:?}");
    }
}

/// The minimum and the peers of each pin, as one peer lists them.
async fn allocations(cluster: &TestCluster, at: usize) -> Vec<(usize, Vec<String>)> {
    let pins: Vec<PinJson> = cluster.rest(at).get("/allocations").await.lines();
    let minimum = |pin: &PinJson| usize::try_from(pin.replication_factor_min).expect("a minimum");
    pins.into_iter().map(|pin| (minimum(&pin), pin.allocations.expect("its peers"))).collect()
}

/// Goal: what every peer pins names nobody, and yet the peer with its only copy stays until another one has it too; whoever
/// asks is told what the removal waits for, and then it goes by itself.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f16_f21_the_only_copy_of_what_everybody_pins() {
    let cluster = TestCluster::start(3).await;
    let (stays, going) = ([0, 1], 2);
    for at in stays {
        cluster.peer(at).service(Room::Connector).unwrap().stop().await;
    }
    let data = content::bytes(7, 600_000);
    let everywhere = "local=true&replication-min=-1&replication-max=-1&cid-version=1";
    let answer = cluster.rest(going).add(everywhere, vec![("only.bin", data.clone())]).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let cid = answer.lines::<AddedJson>().pop().unwrap().cid.unwrap();
    let order = api::RemovePeerRequest { peer_id: cluster.peer(going).peer_id.to_bytes(), force: false, wait_ms: 1000 };
    let ordered = async || Some(cluster.api(0).remove_peer(order.clone()).await.ok()?.into_inner().departure?);
    eventually("the removal says what it waits for", || async {
        let departure = ordered().await?;
        assert_ne!(departure.phase(), Phase::Removed, "with the only copy");
        (departure.waits_for.contains(&cid) && departure.waits_for.contains("pinned everywhere")).then_some(())
    })
    .await;
    let at_rest = cluster.rest(1).delete(&format!("/peers/{}", cluster.peer(going).peer_id)).await;
    assert!(at_rest.status != 204 && at_rest.body.contains("pinned everywhere"), "{}", at_rest.body);
    cluster.peer(stays[0]).service(Room::Connector).unwrap().resume().await;
    eventually("it goes", || async { (ordered().await?.phase() == Phase::Removed).then_some(()) }).await;
    let root = ids::parse_cid(&cid).unwrap();
    assert!(content::read_file(&mut cluster.blocks(stays[0]), &root).await.unwrap() == data);
}

/// Goal: with `leave_on_shutdown`, a clean stop of a whole peer takes it out of the peerset; a killed one stays in.
#[tokio::test(flavor = "multi_thread")]
async fn seed_f20_a_stopped_peer_leaves_and_a_killed_one_stays() {
    let settings = vec![("cluster.leave_on_shutdown", json!(true)), ("cluster.leave_timeout", json!("60s"))];
    let cluster = TestCluster::with(3, Ipfs::Embedded { gateways: Vec::new() }, settings).await;
    cluster.peer(2).kill().await;
    cluster.peer(2).resume().await;
    // Of the two voters that stay both have to answer.
    cluster.peer(2).wait_ready(PATIENCE, |_| {}).await.unwrap();
    assert_eq!(listed(&cluster, 0).await.len(), 3);
    cluster.peer(1).stop().await;
    assert_eq!(cluster.peer(1).consensus_exit_code(), Some(0));
    assert!(cluster.peer(1).folder.join("removed.json").exists());
    eventually("it has left", || async { (listed(&cluster, 0).await.len() == 2).then_some(()) }).await;
}

/// Goal: one service of a peer stopped: the others go on, readiness says which one is missed, and all recovers by itself.
/// Two of three peers' consensus killed: the follower that is left says that it has no leader, reads locally, refuses
/// writes, and recovers as well.
#[tokio::test(flavor = "multi_thread")]
async fn seed_b6_c4_f2_services_and_leaders_are_missed_and_come_back() {
    let settings = vec![("consensus.raft.wait_for_leader_timeout", json!("1s"))];
    let cluster = TestCluster::with(3, Ipfs::Embedded { gateways: Vec::new() }, settings).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let (left, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let pin = async |at: usize, name: &str| {
        let cid = content::identity_cid(name);
        cluster.rest(at).post(&format!("/pins/{cid}?replication-min=1&replication-max=2")).await.status
    };
    for room in [Room::Monitor, Room::Connector] {
        let service = cluster.peer(left).service(room).unwrap();
        service.stop().await;
        eventually("the missing service is named", || async {
            troubles(&cluster, left).await?.iter().any(|trouble| trouble.starts_with(room.name())).then_some(())
        })
        .await;
        assert_eq!(pin(left, &format!("without {}", room.name())).await, 200);
        service.resume().await;
        eventually("it is well again", || async { troubles(&cluster, left).await?.is_empty().then_some(()) }).await;
    }
    let held = content::identity_cid("without monitor-svc");
    for at in [leader, other] {
        cluster.peer(at).service(Room::Consensus).unwrap().kill_and_hold().await;
    }
    eventually("the leader is missed", || async {
        troubles(&cluster, left).await?.iter().any(|trouble| trouble.contains("no leader")).then_some(())
    })
    .await;
    let stale = |answer: &pinfold_tests::rest::Answer| answer.headers.get("x-pinfold-stale").cloned();
    let marked = Some("true".to_owned());
    let known = cluster.rest(left).get(&format!("/allocations/{held}")).await;
    assert_eq!((known.status, stale(&known)), (200, marked.clone()));
    let list = cluster.rest(left).get("/allocations").await;
    assert_eq!((list.status, stale(&list)), (200, marked));
    let unknown = cluster.rest(left).get(&format!("/allocations/{}", content::identity_cid("never"))).await;
    assert!(unknown.status == 404 && unknown.body.contains("as far as it knows"), "{}", unknown.body);
    assert_eq!(pin(left, "refused").await, 500);
    for at in [leader, other] {
        cluster.peer(at).service(Room::Consensus).unwrap().resume().await;
    }
    eventually("a leader again", || async { troubles(&cluster, left).await?.is_empty().then_some(()) }).await;
    let known = cluster.rest(left).get(&format!("/allocations/{held}")).await;
    assert_eq!((known.status, stale(&known)), (200, None));
    assert_eq!(pin(left, "accepted").await, 200);
}
