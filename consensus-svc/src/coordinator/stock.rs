//! Allocations that are asked for before a pin wants them. Pins that come one by one, and want nothing special, are all the
//! same question to the monitor; asked once for each, it is a tenth and more of what such a pin waits for.
//!
//! While pins of one kind come often, the leader has some answers in stock and asks for more before they run out. An answer
//! is used once, within a short time of the question: much shorter than what it was decided by is renewed, and whoever must
//! not have anything by now is part of the kind. `apply` judges each allocation again in any case, and what it refuses is
//! decided anew without the stock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::monitor;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::allocate;
use crate::core::{Core, Leader};

/// An answer is as good as new for so long.
const LIFE: Duration = Duration::from_millis(250);
/// Questions of one kind that must come within [`LIFE`] of each other before there is a stock of it.
const ASKED_BEFORE: usize = 4;
/// A larger batch asks for itself.
const MOST_AT_ONCE: usize = 32;
/// Answers that are asked for together: for as many pins as came during the last [`LIFE`], within these bounds.
const LEAST: usize = 8;
const MOST: usize = 256;
/// Kinds that are remembered: with more of them, none comes often.
const KINDS: usize = 8;

#[derive(Default)]
pub struct Stock {
    kinds: Mutex<Vec<Kind>>,
    /// Something runs low.
    low: Notify,
}

/// What is asked alike.
struct Kind {
    /// Without its CID, which only decides between peers that are as good as each other.
    item: monitor::Item,
    /// With the instants of their questions; the oldest first.
    ready: VecDeque<(Instant, monitor::Result)>,
    asked: Instant,
    /// Questions in a row that came soon after each other.
    row: usize,
    /// Pins since `counted`, and in the stretch before it.
    now: usize,
    before: usize,
    counted: Instant,
}

impl Kind {
    fn new(item: monitor::Item, now: Instant) -> Kind {
        Kind { item, ready: VecDeque::new(), asked: now, row: 0, now: 0, before: 0, counted: now }
    }

    fn ask(&mut self, pins: usize, now: Instant) {
        self.row = if now - self.asked <= LIFE { self.row + 1 } else { 1 };
        self.asked = now;
        if now - self.counted > LIFE {
            self.before = if now - self.counted > 2 * LIFE { 0 } else { self.now };
            (self.now, self.counted) = (0, now);
        }
        self.now += pins;
        while self.ready.front().is_some_and(|(asked, _)| now - *asked > LIFE) {
            self.ready.pop_front();
        }
    }

    /// How many answers are to be asked for now; 0: there are enough, or few are wanted.
    fn missing(&self, now: Instant) -> usize {
        if self.row < ASKED_BEFORE || now - self.asked > LIFE {
            return 0;
        }
        let wanted = self.now.max(self.before).clamp(LEAST, MOST);
        if self.ready.len() > wanted / 2 { 0 } else { wanted }
    }
}

impl Stock {
    /// Answers for all of `items`, or for none.
    pub fn take(&self, items: &[monitor::Item], now: Instant) -> Option<Vec<monitor::Result>> {
        let kind = kind_of(items.first()?);
        let is_plain = kind.current.is_empty() && kind.priority.is_empty();
        if !is_plain || items.len() > MOST_AT_ONCE || items[1..].iter().any(|item| kind_of(item) != kind) {
            return None;
        }
        let mut kinds = self.kinds.lock();
        let known = kinds.iter().position(|known| known.item == kind);
        let place = known.unwrap_or_else(|| {
            if kinds.len() == KINDS {
                let longest_ago = kinds.iter().enumerate().min_by_key(|(_, kind)| kind.asked);
                let place = longest_ago.map_or(0, |(place, _)| place);
                kinds.swap_remove(place);
            }
            kinds.push(Kind::new(kind, now));
            kinds.len() - 1
        });
        let kind = &mut kinds[place];
        kind.ask(items.len(), now);
        let taken = (kind.ready.len() >= items.len())
            .then(|| kind.ready.drain(..items.len()).map(|(_, answer)| answer).collect());
        if kind.missing(now) > 0 {
            self.low.notify_one();
        }
        taken
    }

    /// A kind that runs low, and how many answers to ask for.
    fn wanted(&self, now: Instant) -> Option<(monitor::Item, usize)> {
        let kinds = self.kinds.lock();
        let mut missing = kinds.iter().map(|kind| (&kind.item, kind.missing(now)));
        missing.find(|(_, missing)| *missing > 0).map(|(item, missing)| (item.clone(), missing))
    }

    /// Whether any of the answers is of use.
    fn put(&self, item: &monitor::Item, asked: Instant, answers: Vec<monitor::Result>) -> bool {
        let mut kinds = self.kinds.lock();
        let Some(kind) = kinds.iter_mut().find(|kind| kind.item == *item) else { return true };
        let names_peers = |answer: &monitor::Result| match &answer.result {
            Some(monitor::result::Result::Peers(peers)) => !peers.peers.is_empty(),
            // Whoever asks hears why.
            Some(monitor::result::Result::TooFew(_)) | None => false,
        };
        let before = kind.ready.len();
        kind.ready.extend(answers.into_iter().filter(names_peers).map(|answer| (asked, answer)));
        kind.ready.len() > before
    }
}

fn kind_of(item: &monitor::Item) -> monitor::Item {
    monitor::Item { cid: Vec::new(), ..item.clone() }
}

/// Fills the stock, while this peer leads.
pub(super) async fn fill(core: Arc<Core>, shutdown: Shutdown) {
    let work = async {
        loop {
            core.stock.low.notified().await;
            while let Some((item, count)) = core.stock.wanted(Instant::now()) {
                if !matches!(core.position.borrow().leader, Leader::This { .. }) {
                    break;
                }
                let asked = Instant::now();
                // Another CID for each: it decides between peers that are as good as each other.
                let items =
                    (0..count).map(|_| monitor::Item { cid: rand::random::<[u8; 16]>().to_vec(), ..item.clone() });
                let useful = match allocate::once(&core, items.collect()).await {
                    Ok(answers) => core.stock.put(&item, asked, answers),
                    Err(error) => {
                        tracing::debug!(%error, "allocate in advance");
                        false
                    }
                };
                if !useful {
                    break;
                }
            }
        }
    };
    shutdown.race(work).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    fn item(cid: &[u8]) -> monitor::Item {
        monitor::Item {
            cid: cid.to_vec(),
            replication_factor_min: 2,
            replication_factor_max: 3,
            ..monitor::Item::default()
        }
    }

    fn answers(count: usize) -> Vec<monitor::Result> {
        let peers = monitor::Peers { peers: vec![b"a peer".to_vec()] };
        vec![monitor::Result { result: Some(monitor::result::Result::Peers(peers)) }; count]
    }

    /// A stock whose kind is asked for often, and the instant after that.
    fn busy() -> (Stock, Instant) {
        let (stock, mut now) = (Stock::default(), Instant::now());
        for _ in 0..ASKED_BEFORE {
            assert!(stock.take(&[item(b"a")], now).is_none(), "nothing is there yet");
            now += STEP;
        }
        (stock, now)
    }

    /// Goal: what is asked for often is in stock, each answer is given once, and more is asked for before none is left.
    #[test]
    fn answers_are_in_stock_while_pins_come_often() {
        let (stock, now) = busy();
        let (kind, missing) = stock.wanted(now).unwrap();
        assert_eq!((kind.clone(), missing), (item(b""), LEAST));
        assert!(stock.put(&kind, now, answers(missing)));
        assert_eq!(stock.wanted(now), None);
        assert_eq!(stock.take(&[item(b"b"), item(b"c")], now).unwrap().len(), 2);
        assert_eq!(stock.wanted(now), None);
        assert_eq!(stock.take(&[item(b"d"), item(b"e")], now).unwrap().len(), 2);
        assert_eq!(stock.wanted(now).map(|(_, missing)| missing), Some(LEAST));
        assert!(stock.take(&vec![item(b"f"); 5], now).is_none(), "all or none");
        assert_eq!(stock.take(&vec![item(b"g"); 4], now).unwrap().len(), 4);
        assert!(stock.take(&[item(b"h")], now).is_none());
    }

    /// Goal: what comes rarely is asked for when it comes, and nothing old is given away.
    #[test]
    fn rare_pins_have_no_stock() {
        let (stock, mut now) = (Stock::default(), Instant::now());
        for _ in 0..10 * ASKED_BEFORE {
            assert!(stock.take(&[item(b"a")], now).is_none());
            assert_eq!(stock.wanted(now), None);
            now += LIFE + STEP;
        }
        let (stock, now) = busy();
        stock.put(&item(b""), now, answers(LEAST));
        assert!(stock.take(&[item(b"b")], now + LIFE + STEP).is_none(), "too old");
        assert_eq!(stock.wanted(now + 3 * LIFE), None, "nobody asks any more");
    }

    /// Goal: the stock grows with the pins, within bounds.
    #[test]
    fn as_many_as_come() {
        let (stock, now) = busy();
        for pins in [20, 30, 32] {
            stock.take(&vec![item(b"a"); pins], now);
        }
        let wanted = ASKED_BEFORE + 82;
        assert_eq!(stock.wanted(now).map(|(_, missing)| missing), Some(wanted));
        assert_eq!(stock.wanted(now + LIFE).map(|(_, missing)| missing), Some(wanted));
        for _ in 0..20 {
            stock.take(&vec![item(b"a"); MOST_AT_ONCE], now);
        }
        assert_eq!(stock.wanted(now).map(|(_, missing)| missing), Some(MOST));
    }

    /// Goal: wishes, holders, mixtures and large batches ask for themselves; a peer that must not be chosen any more is
    /// another kind; what names no peer is not kept.
    #[test]
    fn what_is_special_asks_for_itself() {
        let (stock, now) = busy();
        let others = [
            monitor::Item { priority: vec![b"a peer".to_vec()], ..item(b"a") },
            monitor::Item { current: vec![b"a peer".to_vec()], ..item(b"a") },
            monitor::Item { exclude: vec![b"a peer".to_vec()], ..item(b"a") },
            monitor::Item { replication_factor_max: 4, ..item(b"a") },
            monitor::Item { growth: monitor::item::Growth::ForBlocks as i32, ..item(b"a") },
        ];
        assert!(!stock.put(&item(b""), now, vec![monitor::Result::default(); 4]));
        assert!(stock.put(&item(b""), now, answers(MOST)));
        for other in others {
            assert!(stock.take(std::slice::from_ref(&other), now).is_none(), "{other:?}");
            assert!(stock.take(&[item(b"b"), other], now).is_none());
        }
        assert!(stock.take(&vec![item(b"c"); MOST_AT_ONCE + 1], now).is_none());
        assert!(stock.take(&[], now).is_none());
        assert!(stock.take(&[item(b"d")], now).is_some());
        for factor in 10..30 {
            stock.take(&[monitor::Item { replication_factor_max: factor, ..item(b"e") }], now + STEP);
        }
        assert!(stock.kinds.lock().len() <= KINDS);
        assert!(stock.take(&[item(b"f")], now + STEP).is_none(), "forgotten among so many");
    }
}
