//! Compares what the table says with what the node lists, at the start, every `cluster.pin_recover_interval`, and when
//! the node comes back from wherever it was: a pin
//! that the node lost is planned again, and after a lost `tracker/` what the node has is adopted. An answer that is
//! empty, broken or late changes nothing by itself: each missing pin is asked for by name before it counts as lost,
//! and nothing here ever unpins.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use pinfold_common::ids::cid_from_bytes;
use pinfold_common::pin::PinMode;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::status::TrackerStatus;
use tokio::sync::watch;

use super::health::Health;
use super::listing::Listing;
use super::operation::{self, Item, Outcome, Ownership};
use super::queue::Queue;
use super::reconcile::{Finding, judge};
use crate::error::Result;
use crate::node::{IpfsNode, PinState};
use crate::store::{Settlement, Store, now_ms};

/// Rows compared at once.
const PAGE: usize = 1000;
/// Between pages, so that a check is never what a machine is busy with.
const PAGE_PAUSE: Duration = Duration::from_millis(5);
/// Pins that are listed at most: half a gigabyte of hashes.
const MAX_LISTED: usize = 64 * 1024 * 1024;
/// For one question about one pin.
const ASK_DEADLINE: Duration = Duration::from_secs(30);
const ASK_AT_ONCE: usize = 16;
/// After a listing that failed.
const RETRY: Duration = Duration::from_secs(30);

pub struct Check {
    pub store: Store,
    pub queue: Queue,
    pub node: Arc<dyn IpfsNode>,
    pub health: Health,
    pub interval: Duration,
    pub caught_up: watch::Receiver<bool>,
}

/// What one pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub listed: usize,
    pub lost: usize,
    pub adopted: usize,
}

impl Check {
    pub async fn run(self, shutdown: Shutdown) {
        let mut returns = self.health.returns();
        let mut is_failing = false;
        let work = async {
            loop {
                // The sender lives as long as the connector.
                let _ = self.caught_up.clone().wait_for(|caught_up| *caught_up).await;
                self.health.up().await;
                returns.mark_unchanged();
                let pause = match self.pass().await {
                    Ok(found) => {
                        is_failing = false;
                        self.tell(found);
                        self.interval
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut is_failing, true) {
                            tracing::warn!(%error, "the node's pins cannot be listed: nothing is judged by it; trying again");
                        }
                        RETRY.min(self.interval)
                    }
                };
                // The sender lives in the health that this check has.
                let _ = tokio::time::timeout(pause, returns.changed()).await;
            }
        };
        shutdown.race(work).await;
    }

    /// For people: a node that lost pins is a reason to look at its disk.
    fn tell(&self, found: Findings) {
        if found.lost > 0 {
            tracing::warn!(found.listed, found.lost, found.adopted, "the IPFS node lost pins: they are pinned again");
            let (lost, listed) = (found.lost, found.listed);
            self.health.notice(format!(
                "the IPFS node had lost {lost} pins, and lists {listed}: was its repository emptied or restored? They are pinned again"
            ));
        } else {
            if found.adopted > 0 {
                tracing::info!(found.listed, found.adopted, "compared with the node's pins");
            }
            self.health.notice(String::new());
        }
    }

    /// One whole comparison.
    pub async fn pass(&self) -> Result<Findings> {
        let since_ms = now_ms();
        let listing = Listing::read(self.node.as_ref(), MAX_LISTED).await?;
        let rebuilt_index = self.store.rebuilt_index();
        let mut found = Findings { listed: listing.len(), ..Findings::default() };
        let statuses = TrackerStatus::Pinned.bit()
            | TrackerStatus::PinQueued.bit()
            | TrackerStatus::PinError.bit()
            | TrackerStatus::UnexpectedlyUnpinned.bit();
        let mut after = Vec::new();
        loop {
            let items = self.store.page(&after, statuses, PAGE).await?;
            let Some(last) = items.last() else { return Ok(found) };
            after = last.cid.clone();
            let (mut settlements, mut missing) = (Vec::new(), Vec::new());
            for item in items {
                match judge(&item, listing.covers(&item.cid, item.mode), since_ms, rebuilt_index) {
                    Finding::Fine => {}
                    Finding::Missing => missing.push(item),
                    Finding::Adopt => {
                        found.adopted += 1;
                        settlements.push(self.settlement(&item, Outcome::Found(Ownership::Adopted)));
                    }
                }
            }
            for item in self.lost(missing).await {
                found.lost += 1;
                settlements.push(self.settlement(&item, Outcome::Lost));
            }
            if !settlements.is_empty() {
                self.store.settle(settlements).await?;
                self.queue.wake();
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
    }

    fn settlement(&self, item: &Item, outcome: Outcome) -> Settlement {
        Settlement::of(item, operation::after(item, outcome, &self.store.rules(), rand::random()))
    }

    /// Those that the node, asked by name, says it does not have.
    async fn lost(&self, missing: Vec<Item>) -> Vec<Item> {
        let asked = futures::stream::iter(missing).map(|item| async move {
            let is_lost = self.is_lost(&item).await;
            is_lost.then_some(item)
        });
        asked.buffered(ASK_AT_ONCE).filter_map(std::future::ready).collect().await
    }

    /// No answer is not "lost".
    async fn is_lost(&self, item: &Item) -> bool {
        let Ok(cid) = cid_from_bytes(&item.cid) else { return false };
        match tokio::time::timeout(ASK_DEADLINE, self.node.pin_state(&cid)).await {
            Ok(Ok(PinState::NotPinned)) => true,
            Ok(Ok(PinState::Direct)) => item.mode == PinMode::Recursive,
            Ok(Ok(PinState::Recursive) | Err(_)) | Err(_) => false,
        }
    }
}
