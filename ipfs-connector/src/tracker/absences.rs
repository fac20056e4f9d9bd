//! Spares questions about whose a pin is while many new ones wait. A complete list of the node's pins, a few seconds old,
//! says of every CID that is not in it what the question says too: nobody had pinned it then. What is in it is asked for
//! by name all the same, and so is everything when there is no such list: it failed, it is older than an answer may be, it
//! lacks what the node must have, or the node is perhaps another one since.
//!
//! Why that is as safe as asking: an answer counts until the `pin/add` that follows it, and may itself be
//! `LOOK_UP_DEADLINE` old by then. A list is used for less than that, counted from before its first line.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pinfold_common::status::TrackerStatus;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::listing::Listing;
use super::queue::{LOOK_UP_DEADLINE, Shared};
use super::reconcile::{Known, is_believable};
use crate::error::Result;
use crate::store::now_ms;

/// A list is used for so long, from before it was asked for.
const GOOD_FOR: Duration = Duration::from_secs(25);
const _: () = assert!(GOOD_FOR.as_secs() < LOOK_UP_DEADLINE.as_secs());
/// The next one is asked for so long before its end, and as long before that as the last one took: listing pins is work for
/// the node as well, the less of it the better.
const IN_TIME: Duration = Duration::from_secs(5);
/// After a list that is not believed, or too many pins to list for this.
const PAUSE: Duration = Duration::from_secs(2);
const LONG_PAUSE: Duration = Duration::from_secs(600);
/// Fewer waiting pins are asked for one by one,
const MIN_WAITING: u64 = 1_000;
/// and so are those beside so many times as many pins: listing them would cost more than asking.
const LISTED_PER_WAITING: u64 = 10;
/// The longest list.
const MAX_LISTED: usize = 200_000;
/// Pins of ours that a list must have, besides its length.
const SAMPLE: usize = 16;

/// A list and since when it counts.
struct Recent {
    listing: Listing,
    began: Instant,
    /// How often the node had come back then.
    returns: u64,
}

/// Clones are not needed: it lives in the queue's shared part.
#[derive(Default)]
pub(super) struct Absences {
    recent: Mutex<Option<Arc<Recent>>>,
    wanted: Notify,
}

impl Absences {
    /// Many pins are about to be asked for, or few.
    pub fn expect(&self, shared: &Shared) {
        let counts = shared.store.counts();
        let (waiting, pinned) = (counts.of(TrackerStatus::PinQueued), counts.of(TrackerStatus::Pinned));
        let is_worth_it = waiting >= MIN_WAITING && pinned <= LISTED_PER_WAITING * waiting;
        if is_worth_it && !shared.node.capabilities().answers_at_once {
            self.wanted.notify_one();
        }
    }

    /// Whether it is known that nobody had pinned it, in either mode, a moment ago.
    pub fn is_absent(&self, cid: &[u8], returns: u64) -> bool {
        let recent = self.recent.lock().clone();
        recent.is_some_and(|recent| {
            recent.returns == returns && recent.began.elapsed() < GOOD_FOR && recent.listing.lacks(cid)
        })
    }
}

/// Keeps a list as long as many wait. Part of the queue's work.
pub(super) async fn keep(shared: &Shared) {
    loop {
        shared.absences.wanted.notified().await;
        shared.health.up().await;
        let pause = match look(shared).await {
            Ok(Some(recent)) => {
                let took = recent.began.elapsed();
                *shared.absences.recent.lock() = Some(Arc::new(recent));
                GOOD_FOR.saturating_sub(IN_TIME + 2 * took).max(took)
            }
            Ok(None) => PAUSE,
            Err(error) => {
                tracing::debug!(%error, "list the node's pins for those that wait; they are asked for one by one");
                LONG_PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// `None`: the list lacks something that the node has.
async fn look(shared: &Shared) -> Result<Option<Recent>> {
    let (began, since_ms) = (Instant::now(), now_ms());
    let returns = *shared.health.returns().borrow();
    let pinned_before = shared.store.counts().of(TrackerStatus::Pinned);
    let sample = shared.store.page(&[], TrackerStatus::Pinned.bit(), SAMPLE).await?;
    let listing = Listing::read(shared.node.as_ref(), MAX_LISTED).await?;
    let pinned_after = shared.store.counts().of(TrackerStatus::Pinned);
    let known = Known { pinned: pinned_before.min(pinned_after), since_ms };
    let is_good = is_believable(&listing, &sample, known);
    Ok(is_good.then_some(Recent { listing, began, returns }))
}

#[cfg(test)]
mod tests {
    use pinfold_common::pin::PinMode;

    use super::*;

    /// Goal: issue 6. A list says that a CID is absent only while it is fresh, and of the node that it was read from; what is
    /// in it, in whatever mode, is never absent.
    #[tokio::test(start_paused = true)]
    async fn absent_is_what_a_fresh_list_of_this_node_lacks() {
        let absences = Absences::default();
        assert!(!absences.is_absent(b"c", 1), "nothing was listed");
        let mut listing = Listing::default();
        listing.add(b"a", PinMode::Recursive);
        listing.add(b"b", PinMode::Direct);
        listing.sort();
        *absences.recent.lock() = Some(Arc::new(Recent { listing, began: Instant::now(), returns: 1 }));
        assert!(absences.is_absent(b"c", 1));
        assert!(!absences.is_absent(b"a", 1) && !absences.is_absent(b"b", 1));
        assert!(!absences.is_absent(b"c", 2), "the node came back since, perhaps as another one");
        tokio::time::advance(GOOD_FOR).await;
        assert!(!absences.is_absent(b"c", 1), "too old");
    }
}
