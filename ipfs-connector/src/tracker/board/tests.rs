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
        first_backoff_ms: 0,
        last_backoff_ms: 0,
        max_attempts: 0,
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
    board.make_ready(Shelf::Repin, item);
    board.start(Line::Pins).unwrap().1
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
    board.make_ready(Shelf::Repin, taken[0].clone());
    board.changed(&[touched(b"a", 2, Todo::Pin), touched(b"b", 2, Todo::Pin)]);
    board.make_ready(Shelf::Repin, taken[1].clone());
    assert!(board.start(Line::Pins).is_none());
    assert_eq!(board.leases(), 0);
}

/// Goal: while every lane has work, young pins get seven of ten slots, two of them for those that were tried, re-pins two,
/// retries one; the newest pin is among the next two; and a lane alone gets everything (fault:F19).
#[test]
fn lanes_have_their_shares() {
    let board = Board::default();
    let mut shelf_of = std::collections::HashMap::new();
    for (place, shelf) in PIN_SHELVES.into_iter().enumerate() {
        for n in 0..100_u8 {
            let item = item(&[place as u8, n], 1);
            board.begin_reading(Line::Pins);
            board.take(Line::Pins, vec![item.clone()]);
            shelf_of.insert(item.cid.clone(), shelf);
            board.make_ready(shelf, item);
        }
    }
    let started: Vec<Vec<u8>> = (0..100).map(|_| board.start(Line::Pins).unwrap().0.cid).collect();
    let count = |shelf| started.iter().filter(|cid| shelf_of[*cid] == shelf).count();
    assert_eq!((count(Shelf::New), count(Shelf::Newest), count(Shelf::Again)), (30, 20, 20));
    assert_eq!((count(Shelf::Repin), count(Shelf::Retry)), (20, 10));
    assert!(started[..2].contains(&vec![1, 99]), "the newest is not first: {:?}", &started[..2]);
    let rest = std::iter::from_fn(|| board.start(Line::Pins)).count();
    assert_eq!(rest, 400);
}

/// Goal: after a halt nothing is in hand, nothing is taken, and what was being read is not believed.
#[tokio::test]
async fn halt_waits_for_running_work() {
    let board = Board::default();
    let cancel = run(&board, item(b"a", 1));
    board.begin_reading(Line::Pins);
    let halting = tokio::spawn({
        let board = board.clone();
        async move { board.halt(Halt::Lineage).await }
    });
    cancel.cancelled().await;
    assert!(!halting.is_finished());
    board.finish(b"a");
    halting.await.unwrap();
    assert!(board.take(Line::Pins, vec![item(b"b", 1)]).is_empty());
    board.begin_reading(Line::Pins);
    assert!(board.take(Line::Pins, vec![item(b"b", 1)]).is_empty());
    board.halt(Halt::Node).await;
    board.resume(Halt::Lineage);
    board.begin_reading(Line::Pins);
    assert!(board.take(Line::Pins, vec![item(b"b", 1)]).is_empty(), "the other reason is still there");
    board.resume(Halt::Node);
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
