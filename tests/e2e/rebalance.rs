//! `ctl rebalance`: full peers give to empty ones, whoever leads.

use std::collections::BTreeMap;

use pinfold_common::pin::PinRequest;
use pinfold_common::tls::Room;
use pinfold_proto::types;
use pinfold_proto::types::repin_change_call::Switch;
use pinfold_proto::types::repin_status_reply::Phase;
use pinfold_proto::types::{RepinChangeCall, RepinStatusReply};
use pinfold_tests::cluster::{TestCluster, eventually};
use pinfold_tests::content;
use pinfold_tests::pins::{Pinset, pin_all};
use serde_json::{Value, json};

use super::repin::{id, pinset, settings, start, status, status_when, without_peers};

const PINS: usize = 200;
/// So that the run is still under way when its leader is killed.
const PER_SECOND: u32 = 40;
const SAMPLE: usize = 5;

/// Everything on the first two of four peers, as a person wished.
async fn pin_on_two(cluster: &TestCluster) {
    let request = |number: usize| {
        let mut request = types::PinRequest::from(PinRequest::new(content::identity_cid(&format!("uneven {number}"))));
        request.user_allocations = vec![id(cluster, 0), id(cluster, 1)];
        let options = request.options.get_or_insert_default();
        (options.replication_factor_min, options.replication_factor_max) = (2, 2);
        options.name = format!("uneven {number}");
        request
    };
    let requests = (0..PINS).map(request).collect();
    pin_all(cluster.pins(0), requests).await;
}

fn counts(cluster: &TestCluster, pins: &Pinset) -> Vec<usize> {
    let count = |index| pins.values().filter(|pin| pin.allocations.contains(&id(cluster, index))).count();
    (0..cluster.len()).map(count).collect()
}

fn run_of(status: &RepinStatusReply) -> types::Rebalance {
    status.rebalance.unwrap_or_default()
}

async fn change(cluster: &TestCluster, switch: Switch) -> RepinStatusReply {
    let call = RepinChangeCall { switch: switch as i32, ..RepinChangeCall::default() };
    cluster.repin(1).change(call).await.unwrap().into_inner()
}

async fn ctl(cluster: &TestCluster, arguments: &[&str]) -> Value {
    let out = cluster.ctl_prints(1, &[&["--enc", "json"], arguments].concat()).await;
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

/// Goal: the plan says what would move and changes nothing; a run takes exactly that many copies to the empty peers, at
/// the rate of re-pinning, while it is not paused, although its leader is killed on the way; each item keeps its options
/// and its number of copies; and what is even is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn full_peers_give_to_empty_ones() {
    let mut keys = settings("30s");
    keys.retain(|(key, _)| *key != "repin.pins_per_second");
    keys.push(("repin.pins_per_second", json!(PER_SECOND)));
    let cluster = start(4, keys).await;
    pin_on_two(&cluster).await;
    let before = pinset(&cluster, 0).await.expect("a list");
    assert_eq!(counts(&cluster, &before), [PINS, PINS, 0, 0]);

    let plan = ctl(&cluster, &["rebalance", "--dry-run"]).await;
    assert_eq!(plan["moves"], json!(PINS), "{plan}");
    let by_peer: BTreeMap<&str, &Value> =
        plan["peers"].as_array().unwrap().iter().map(|row| (row["peer"].as_str().unwrap(), row)).collect();
    let first = by_peer[cluster.peer(0).peer_id.to_string().as_str()];
    assert_eq!((&first["items"], &first["share"], &first["gives"]), (&json!(PINS), &json!(100), &json!(100)), "{plan}");
    assert_eq!(pinset(&cluster, 0).await.as_ref(), Some(&before), "a plan changes nothing");

    change(&cluster, Switch::Pause).await;
    assert!(run_of(&change(&cluster, Switch::Rebalance).await).running);
    let held = status_when(&cluster, 1, "the leader holds it", |status| status.phase() == Phase::Paused).await;
    assert_eq!((run_of(&held).running, run_of(&held).moved), (true, 0));
    assert_eq!(pinset(&cluster, 0).await.as_ref(), Some(&before), "it is paused");
    change(&cluster, Switch::Resume).await;
    status_when(&cluster, 1, "some are moved", |status| run_of(status).moved >= 20).await;
    let leader = cluster.leader(&[0, 1, 2, 3]).await;
    let service = cluster.peer(leader).service(Room::Consensus).unwrap();
    service.kill_and_hold().await;
    let others: Vec<usize> = (0..4).filter(|index| *index != leader).collect();
    cluster.leader(&others).await;
    service.resume().await;
    let done = status_when(&cluster, others[0], "the next leader ends it", |status| {
        !run_of(status).running && status.unconfirmed == 0
    });
    done.await;

    let after = eventually("every old copy is let go", || async {
        let pins = pinset(&cluster, others[0]).await?;
        pins.values().all(|pin| pin.leaving.is_empty()).then_some(pins)
    })
    .await;
    assert_eq!(counts(&cluster, &after), [PINS / 2; 4]);
    for (cid, pin) in &after {
        assert_eq!(pin.allocations.len(), 2);
        assert_eq!(without_peers(pin), without_peers(&before[cid]), "all options are kept");
    }
    for cid in after.keys().step_by(PINS / SAMPLE) {
        let cid = pinfold_common::ids::cid_from_bytes(cid).unwrap().to_string();
        eventually(&format!("{cid} is on two nodes"), || async {
            let info = cluster.rest(others[0]).status(&cid).await;
            let count = |wanted: &str| info.peer_map.values().filter(|there| there.status == wanted).count();
            ((count("pinned"), count("remote")) == (2, 2)).then_some(())
        })
        .await;
    }

    let plan = ctl(&cluster, &["rebalance", "--apply"]).await;
    assert_eq!(plan["moves"], json!(0), "{plan}");
    assert_eq!(pinset(&cluster, others[0]).await.as_ref(), Some(&after), "even enough: nothing is written");
    assert!(!run_of(&status(&cluster, others[0]).await.unwrap()).running);
}
