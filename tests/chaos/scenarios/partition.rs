//! A cluster in two parts, and what becomes of the pins (seed:H9.9): only the part with a majority may say who is away.

use std::collections::BTreeSet;

use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::pin::PinRequest;
use pinfold_proto::api;
use pinfold_proto::types::peer_repin::State;
use pinfold_proto::types::{self, RepinStatusCall, RepinStatusReply};
use pinfold_tests::cluster::eventually;
use pinfold_tests::content::identity_cid;
use pinfold_tests::needs;
use pinfold_tests::pins::{Pinset, pin_all};
use pinfold_tests::rest::Rest;
use serde_json::json;

use crate::house::{Ground, House, NAMESPACES, Wish};
use crate::network::Direction;
use crate::report::Report;

const PINS: usize = 200;
const COPIES: i32 = 2;
/// Statuses looked at on the nodes themselves.
const SAMPLE: usize = 5;

/// Goal: five peers, the leader and one more on one side of a cut. Their side starts nothing; the other three elect a
/// leader, take the two for away and bring every item back to two copies among themselves. After healing all five hold
/// the same pinset, nobody is missed, and each item is down to its two copies again, on the nodes too.
#[tokio::test(flavor = "multi_thread")]
async fn seed_h9_9_a_cut_through_the_cluster() {
    if !needs::are_met("seed_h9_9_a_cut_through_the_cluster", &NAMESPACES) {
        return;
    }
    let mut report = Report::new("seed:H9.9 a cut through the cluster");
    let settings = vec![
        ("cluster.monitor_ping_interval", json!("1s")),
        ("monitor.pubsubmon.check_interval", json!("1s")),
        ("repin.grace", json!("1s")),
        ("repin.pins_per_second", json!(1000)),
    ];
    let house = House::start(Wish { peers: 5, ground: Ground::Namespaces, settings, ..Wish::default() }).await;
    let network = house.network.as_ref().expect("namespaces");
    let leader = house.leader().await;
    pin(&house, leader).await;
    let before = pinset(&house, leader).await.expect("a list");
    assert_eq!(before.len(), PINS);

    let minority = [leader, (leader + 1) % 5];
    let majority: Vec<usize> = house.all().into_iter().filter(|peer| !minority.contains(peer)).collect();
    let cut_off: BTreeSet<Vec<u8>> = minority.iter().map(|peer| id(&house, *peer)).collect();
    for peer in minority {
        network.drop_packets(peer, &majority, Direction::Both);
    }
    let new_leader = house.leader_of(&majority).await;
    let told = eventually("the majority takes the others for away", || async {
        let told = repin_status(&house, new_leader).await?;
        let away = told.peers.iter().filter(|peer| peer.state() == State::Away).map(|peer| peer.peer_id.clone());
        (away.collect::<BTreeSet<_>>() == cut_off).then_some(told)
    })
    .await;
    assert_eq!(told.peers.len(), 2, "{told:?}");
    let repaired = eventually("two copies of everything on the majority's side", || async {
        let pins = pinset(&house, new_leader).await?;
        let here = |pin: &types::Pin| pin.allocations.iter().filter(|peer| !cut_off.contains(*peer)).count();
        pins.values().all(|pin| here(pin) >= COPIES as usize && pin.leaving.is_empty()).then_some(pins)
    })
    .await;
    for peer in minority {
        assert_eq!(
            pinset(&house, peer).await.as_ref(),
            Some(&before),
            "peer {peer}, without a majority, changed nothing"
        );
        assert!(network.dropped(peer) > 0, "the cut took effect at peer {peer}");
    }
    report.fault("cut");
    for (cid, pin) in &repaired {
        let had = before[cid].allocations.iter().filter(|peer| !cut_off.contains(*peer)).count();
        assert_eq!(pin != &before[cid], had < COPIES as usize, "what had its copies was not written: {pin:?}");
    }

    for peer in minority {
        network.heal(peer);
    }
    eventually("nobody is missed", || async {
        let told = repin_status(&house, new_leader).await?;
        told.peers.is_empty().then_some(())
    })
    .await;
    let after = eventually("all agree, and nobody holds too much", || async {
        let pins = pinset(&house, new_leader).await?;
        let is_settled = |pin: &types::Pin| pin.leaving.is_empty() && pin.allocations.len() == COPIES as usize;
        if pins.len() != PINS || !pins.values().all(is_settled) {
            return None;
        }
        for peer in house.others(new_leader) {
            (pinset(&house, peer).await?.values().eq(pins.values())).then_some(())?;
        }
        Some(pins)
    })
    .await;
    for cid in after.keys().step_by(PINS / SAMPLE) {
        let cid = pinfold_common::ids::cid_from_bytes(cid).expect("a CID").to_string();
        eventually(&format!("{cid} is on two nodes and no other"), || async {
            let status = Rest::new(house.api(new_leader)).status(&cid).await;
            let count = |wanted: &str| status.peer_map.values().filter(|there| there.status == wanted).count();
            ((count("pinned"), count("remote")) == (COPIES as usize, 3)).then_some(())
        })
        .await;
    }
    report.counted(PINS, 0);
    report.finish();
    house.stop().await;
}

fn id(house: &House, peer: usize) -> Vec<u8> {
    house.peers[peer].peer_id.to_bytes()
}

async fn pin(house: &House, at: usize) {
    let request = |number: usize| {
        let mut request = types::PinRequest::from(PinRequest::new(identity_cid(&format!("cut {number}"))));
        let options = request.options.get_or_insert_default();
        (options.replication_factor_min, options.replication_factor_max) = (COPIES, COPIES);
        request
    };
    pin_all(pins(house, at), (0..PINS).map(request).collect()).await;
}

fn pins(house: &House, at: usize) -> api::pins_client::PinsClient<tonic::transport::Channel> {
    let channel = house.peers[at].channel().expect("a channel");
    api::pins_client::PinsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// What the peer's own state holds.
async fn pinset(house: &House, at: usize) -> Option<Pinset> {
    pinfold_tests::pins::list(pins(house, at)).await
}

async fn repin_status(house: &House, at: usize) -> Option<RepinStatusReply> {
    let channel = house.peers[at].channel().expect("a channel");
    let mut client = api::repin_client::RepinClient::new(channel);
    Some(client.status(RepinStatusCall::default()).await.ok()?.into_inner())
}
