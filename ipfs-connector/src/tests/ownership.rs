//! Whose a pin is, while so many wait that a list of the node's pins stands for most questions.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use pinfold_common::Cid;
use pinfold_common::pin::PinMode;
use pinfold_common::status::TrackerStatus;

use super::kubo_sim::{KuboSim, ListFault, Mood};
use super::{House, eventually};
use crate::node::{IpfsNode as _, PinAdd, PinState};

/// More than what a list is wanted for.
const ITEMS: u32 = 3_000;
/// Just so many: where nothing is believed, each is asked for.
const FEW_ITEMS: u32 = 1_200;
/// Every so many items one is somebody else's.
const STEP: u32 = 10;
/// Of those that are ours, so many are taken out of the pinset with all of the others.
const OURS_REMOVED: u32 = 100;
/// Of each answer, so that the list is there before most are asked for.
const LATENCY: Duration = Duration::from_millis(20);

/// Needs no block.
fn item(number: u32) -> Cid {
    Cid::new_v1(0x55, multihash::Multihash::wrap(0, &number.to_be_bytes()).unwrap())
}

async fn pin_beside_the_cluster(sim: &KuboSim, number: u32, mode: PinMode) {
    let events: Vec<_> = sim.engine().pin_add(PinAdd::new(item(number), mode)).collect().await;
    assert!(events.last().is_some_and(Result::is_ok), "{events:?}");
}

/// Pins all on a node where a person has pinned some of them, every second one directly, takes those and some of ours out of the
/// pinset again, and looks at what is left. Gives how often the node was asked about one CID.
async fn pin_and_unpin_all(items: u32, list: ListFault, latency: Duration) -> usize {
    let foreign = items / STEP;
    let (mut house, sim) = (House::new().await, KuboSim::start().await);
    house.concurrent_pins = 64;
    let connector = house.start(Arc::new(sim.node(Duration::from_secs(20)))).await;
    // A node on which nothing is known to be pinned is not believed.
    house.pinset.put((items..items + 20).map(|n| house.here(&item(n))));
    for n in items..items + 20 {
        connector.until(&item(n), TrackerStatus::Pinned).await;
    }
    for n in 0..foreign {
        let mode = if n % 2 == 0 { PinMode::Recursive } else { PinMode::Direct };
        pin_beside_the_cluster(&sim, n * STEP, mode).await;
    }
    let asked = || sim.journal("pin/ls").iter().filter(|argument| !argument.is_empty()).count();
    let before = asked();
    sim.set_list(list);
    sim.set_mood(Mood::Slow(latency));
    let index = house.pinset.put((0..items).map(|n| house.here(&item(n))));
    connector.status(&item(0), index).await;
    eventually("all are pinned", async || {
        let waiting = connector.list(TrackerStatus::PinQueued.bit() | TrackerStatus::Pinning.bit()).await.len();
        if waiting == 0 { Ok(()) } else { Err(waiting.to_string()) }
    })
    .await;
    let questions = asked() - before;
    sim.set_mood(Mood::Well);

    let removed = (0..foreign).map(|n| n * STEP).chain((0..OURS_REMOVED).map(|n| n * STEP + 1));
    let last = removed.map(|n| house.pinset.remove(&item(n).to_bytes())).max().unwrap();
    connector.status(&item(0), last).await;
    eventually("ours are unpinned", async || {
        let mut left = 0;
        let mut pins = sim.engine().pin_ls(PinMode::Recursive);
        while let Some(pin) = pins.next().await {
            pin.unwrap();
            left += 1;
        }
        // What a person pinned directly was made recursive, as before, and is still theirs.
        if left == items + 20 - OURS_REMOVED { Ok(()) } else { Err(left.to_string()) }
    })
    .await;
    for n in 0..foreign {
        let state = sim.engine().pin_state(&item(n * STEP)).await.unwrap();
        assert_eq!(state, PinState::Recursive, "{n} was somebody else's");
    }
    connector.stop().await;
    questions
}

/// Goal: issue 6, protocols.md 8. With a list of the node's pins few questions are asked, and ours is only what was ours: every
/// pin of a person's stays, ours go.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_spares_questions_and_keeps_foreign_pins() {
    let questions = pin_and_unpin_all(ITEMS, ListFault::None, LATENCY).await;
    assert!(questions < ITEMS as usize, "{questions} questions for {ITEMS} pins");
}

/// Goal: a list that is empty, or never ends, makes nothing ours: everything is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_lies_makes_nothing_ours() {
    for list in [ListFault::Empty, ListFault::Hung] {
        let questions = pin_and_unpin_all(FEW_ITEMS, list, Duration::ZERO).await;
        let all = (2 * FEW_ITEMS - FEW_ITEMS / STEP) as usize;
        assert!(questions >= all, "{questions} questions");
    }
}
