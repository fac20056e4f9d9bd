//! Peers far apart (fault:N8): 200 ms from one to the other and back, with the timing that configuration.md advises.

use std::time::{Duration, Instant};

use pinfold_tests::cluster::eventually;
use serde_json::json;

use crate::extent::{extent, seed};
use crate::house::{Ground, House, Wish};
use crate::load::Load;
use crate::report::Report;

const ONE_WAY: Duration = Duration::from_millis(100);
const WATCHED_WRITES: u64 = 40;

/// Goal: with suitable timing nobody is elected without need, although every message is 100 ms on its way, and all
/// works.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes longer than every test run has time for: make chaos"]
async fn seed_c6_fault_n8_round_trips_of_200_ms() {
    let mut report = Report::new("fault:N8 round trips of 200 ms");
    let settings =
        vec![("consensus.raft.heartbeat_timeout", json!("2s")), ("consensus.raft.election_timeout", json!("5s"))];
    let house = House::start(Wish { ground: Ground::Slow(ONE_WAY), settings, ..Wish::default() }).await;
    let leader = house.leader().await;
    let term = house.term().await;
    let follower = house.others(leader)[0];
    // A connection that exists already carries nothing faster than a round trip.
    let round_trip = eventually("an answer through the slow link", || async {
        let mut shortest = None;
        for _ in 0..2 {
            let asked = Instant::now();
            house.status_through_link(follower).await?;
            shortest = Some(asked.elapsed());
        }
        shortest
    })
    .await;
    assert!(round_trip >= ONE_WAY * 2, "the link is not slow: {round_trip:?}");
    report.fault("links of 100 ms each way");
    for round in 0..extent().choose(1, 10) {
        let load = Load::start(&house, seed() + round);
        load.more_writes(WATCHED_WRITES).await;
        load.finish(&house, &mut report).await;
    }
    assert_eq!(house.term().await, term, "there was an election without need");
    report.note(format!("round trip {} ms, no election", round_trip.as_millis()));
    house.stop().await;
    report.finish();
}
