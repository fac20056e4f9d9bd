use pinfold_common::pin::PinMode;
use pinfold_proto::types;

use super::*;
use crate::tracker::operation::{Order, Rules, put};

fn item(cid: &[u8], revision: u64) -> Item {
    let pin = types::Pin {
        cid: cid.to_vec(),
        r#type: types::PinType::Data as i32,
        max_depth: -1,
        allocations: vec![b"own".to_vec()],
        revision,
        ..Default::default()
    };
    let rules = Rules {
        now_ms: 0,
        priority_max_age_ms: 0,
        priority_max_retries: 0,
        backoff_cap_ms: 0,
        queue_has_room: true,
        comparing: false,
    };
    put(None, Order::of(&pin, b"own"), &rules).unwrap()
}

fn touched(cid: &[u8], revision: u64, todo: Todo) -> Touched {
    let status = TrackerStatus::PinQueued;
    Touched { cid: cid.to_vec(), revision, todo, status, mode: PinMode::Recursive, planned: true }
}

fn run(board: &Board, item: Item) -> CancellationToken {
    board.begin_reading(Line::Pins);
    assert_eq!(board.take(Line::Pins, vec![item.clone()]).len(), 1);
    board.make_ready(Lane::Pins, item);
    board.start(&[Lane::PriorityPins, Lane::Pins]).unwrap().1
}

/// Goal: one piece of work for each CID, and nothing is taken that changed while it was read.
#[test]
fn one_at_a_time() {
    let board = Board::default();
    run(&board, item(b"a", 1));
    board.begin_reading(Line::Pins);
    board.changed(&[touched(b"b", 2, Todo::Unpin)]);
    let taken = board.take(Line::Pins, vec![item(b"a", 1), item(b"b", 1), item(b"c", 1)]);
    assert_eq!(taken.into_iter().map(|item| item.cid).collect::<Vec<_>>(), [b"c"]);
    board.finish(b"a");
    assert!(!board.is_in_hand(b"a"));
}

/// Goal: a newer order for the same work goes on, one for other work breaks it off (beh:B11.2).
#[test]
fn newer_orders() {
    let board = Board::default();
    let cancel = run(&board, item(b"a", 1));
    board.changed(&[touched(b"a", 2, Todo::Pin)]);
    assert!(!cancel.is_cancelled());
    assert_eq!(board.standing(b"a"), Some((2, TrackerStatus::PinQueued)));
    board.changed(&[touched(b"a", 3, Todo::Unpin)]);
    assert!(cancel.is_cancelled());
}

/// Goal: what waits for a slot is dropped when its order changes; the table has the new one.
#[test]
fn ready_ones_are_dropped() {
    let board = Board::default();
    board.begin_reading(Line::Pins);
    let taken = board.take(Line::Pins, vec![item(b"a", 1), item(b"b", 1)]);
    board.make_ready(Lane::Pins, taken[0].clone());
    board.changed(&[touched(b"a", 2, Todo::Pin), touched(b"b", 2, Todo::Pin)]);
    board.make_ready(Lane::Pins, taken[1].clone());
    assert!(board.start(&[Lane::Pins]).is_none());
    assert_eq!(board.leases(), 0);
}

/// Goal: after a halt nothing is in hand, nothing is taken, and what was being read is not believed.
#[tokio::test]
async fn halt_waits_for_running_work() {
    let board = Board::default();
    let cancel = run(&board, item(b"a", 1));
    board.begin_reading(Line::Pins);
    let halting = tokio::spawn({
        let board = board.clone();
        async move { board.halt().await }
    });
    cancel.cancelled().await;
    assert!(!halting.is_finished());
    board.finish(b"a");
    halting.await.unwrap();
    assert!(board.take(Line::Pins, vec![item(b"b", 1)]).is_empty());
    board.begin_reading(Line::Pins);
    assert!(board.take(Line::Pins, vec![item(b"b", 1)]).is_empty());
    board.resume();
    board.begin_reading(Line::Pins);
    assert_eq!(board.take(Line::Pins, vec![item(b"b", 1)]).len(), 1);
}

/// Goal: doubts are kept up to the bound, and each is resolved once.
#[test]
fn doubts() {
    let board = Board::default();
    for n in 0..=MAX_DOUBTFUL as u32 {
        board.set_doubtful(&n.to_be_bytes());
    }
    assert!(!board.resolve_doubt(&0_u32.to_be_bytes()), "the oldest is forgotten");
    assert!(board.resolve_doubt(&1_u32.to_be_bytes()));
    assert!(!board.resolve_doubt(&1_u32.to_be_bytes()));
}
