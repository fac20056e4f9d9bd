//! What this peer's IPFS node should hold, what it holds, and the work in between. The table (`store`) is the memory;
//! this module reads statuses out of it, laid over with what runs right now (`board`), and re-queues what a person
//! wants tried again. Orders come in through `follow`, work goes out through `queue`.

mod absences;
mod aside;
mod attempt;
pub mod board;
pub mod check;
pub mod collection;
pub mod health;
pub mod identity;
mod info;
mod listing;
pub mod operation;
pub mod queue;
pub mod reconcile;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use pinfold_common::ids::cid_from_bytes;
use pinfold_common::pin::PinMode;
use pinfold_common::status::{Filter, TrackerStatus};
use pinfold_proto::connector::holdings_reply::Answer;
use pinfold_proto::types::PinInfo;

use crate::error::Result;
use crate::node::{IpfsNode, PinState};
use crate::store::{Settlement, Store};

use health::Health;
use info::Scene;
use operation::{Hold, Item, Outcome, Todo};
use queue::Queue;

/// A status that must not be older than an index waits so long for it, and is then answered as it is.
const FOLLOW_DEADLINE: Duration = Duration::from_secs(5);
/// For one question to the node that a request waits for.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// Rows read at once for lists.
pub const PAGE: usize = 512;

/// Clones share everything.
#[derive(Clone)]
pub struct Tracker {
    pub store: Store,
    pub queue: Queue,
    pub health: Health,
    pub node: Arc<dyn IpfsNode>,
    /// This peer's ID.
    pub own: Arc<[u8]>,
}

/// A stretch of a list.
#[derive(Debug, Default)]
pub struct Page {
    pub infos: Vec<PinInfo>,
    /// Where the next one starts; `None`: that was all.
    pub next: Option<Vec<u8>>,
}

impl Tracker {
    /// Waits until the table has followed the log up to `index`, at most `FOLLOW_DEADLINE`.
    pub async fn followed(&self, index: u64) {
        let mut position = self.store.position();
        let waited = position.wait_for(|position| *position >= index);
        // Late, or stopping: the caller gets what there is.
        let _ = tokio::time::timeout(FOLLOW_DEADLINE, waited).await;
    }

    /// The status of each CID, in their order.
    pub async fn status(&self, cids: &[Vec<u8>]) -> Result<Vec<PinInfo>> {
        let items = self.store.get(cids).await?;
        let scene = self.scene();
        let running = self.queue.board().running(cids.iter().map(Vec::as_slice));
        Ok(cids
            .iter()
            .zip(running)
            .map(|(cid, running)| match items.get(cid) {
                Some(item) => info::of(item, running, &scene),
                None => info::absent(cid, &scene),
            })
            .collect())
    }

    /// Statuses after a CID in byte order. A page may be empty and not the last.
    pub async fn page(&self, after: &[u8], filter: Filter) -> Result<Page> {
        let in_flight = TrackerStatus::Pinning.bit() | TrackerStatus::Unpinning.bit();
        if filter.0 != 0 && filter.0 & !in_flight == 0 {
            return self.page_of_running(after, filter).await;
        }
        let items = self.store.page(after, info::stored_statuses(filter), PAGE).await?;
        let next = if items.len() == PAGE { items.last().map(|item| item.cid.clone()) } else { None };
        Ok(Page { infos: self.infos(&items, filter), next })
    }

    /// What runs is few: its rows are read by name instead of all queued ones.
    async fn page_of_running(&self, after: &[u8], filter: Filter) -> Result<Page> {
        let mut cids = self.queue.board().running_cids();
        cids.retain(|cid| cid.as_slice() > after);
        let items = self.store.get(&cids).await?;
        let items: Vec<Item> = cids.iter().filter_map(|cid| items.get(cid).cloned()).collect();
        Ok(Page { infos: self.infos(&items, filter), next: None })
    }

    fn infos(&self, items: &[Item], filter: Filter) -> Vec<PinInfo> {
        let scene = self.scene();
        let running = self.queue.board().running(items.iter().map(|item| item.cid.as_slice()));
        items
            .iter()
            .zip(running)
            .filter(|(item, running)| filter.matches(info::status(item, running.as_ref())))
            .map(|(item, running)| info::of(item, running, &scene))
            .collect()
    }

    fn scene(&self) -> Scene {
        Scene::new(self.own.clone(), &self.health.current())
    }

    /// Queues again what is in error (beh:B11.11), and what the node turns out to have lost. Gives the status
    /// afterwards and whether something was queued.
    pub async fn recover(&self, cid: &[u8]) -> Result<(PinInfo, bool)> {
        let item = self.store.get(&[cid.to_vec()]).await?.remove(cid);
        let again = match &item {
            Some(item) if !self.queue.board().is_in_hand(cid) => {
                let rules = self.store.rules();
                match operation::recover(item, &rules) {
                    Some(again) => Some(Settlement::of(item, again)),
                    None if self.is_lost(item).await => {
                        Some(Settlement::of(item, operation::after(item, Outcome::Lost, &rules, 0.0)))
                    }
                    None => None,
                }
            }
            Some(_) | None => None,
        };
        let requeued = match again {
            Some(settlement) => self.store.settle(vec![settlement]).await? == [true],
            None => false,
        };
        self.queue.wake();
        let mut infos = self.status(&[cid.to_vec()]).await?;
        Ok((infos.swap_remove(0), requeued))
    }

    /// Said to be pinned, and the node says it is not. No answer is not "lost".
    async fn is_lost(&self, item: &Item) -> bool {
        match self.node_state(item).await {
            Some(PinState::NotPinned) => true,
            Some(PinState::Direct) => item.mode == PinMode::Recursive,
            Some(PinState::Recursive) | None => false,
        }
    }

    /// `None`: not said to be pinned, or no answer.
    async fn node_state(&self, item: &Item) -> Option<PinState> {
        if item.status != TrackerStatus::Pinned || item.todo != Todo::Nothing || !self.health.current().is_up() {
            return None;
        }
        let cid = cid_from_bytes(&item.cid).ok()?;
        tokio::time::timeout(ASK_DEADLINE, self.node.pin_state(&cid)).await.ok()?.ok()
    }

    /// Queues again what is in error, a page at a time; gives what it queued.
    pub async fn recover_page(&self, after: &[u8]) -> Result<Page> {
        let items = self.store.troubled(after, PAGE).await?;
        let next = if items.len() == PAGE { items.last().map(|item| item.cid.clone()) } else { None };
        let rules = self.store.rules();
        let again: Vec<(Settlement, Vec<u8>)> = items
            .iter()
            .filter(|item| !self.queue.board().is_in_hand(&item.cid))
            .filter_map(|item| {
                operation::recover(item, &rules).map(|again| (Settlement::of(item, again), item.cid.clone()))
            })
            .collect();
        let (settlements, cids): (Vec<Settlement>, Vec<Vec<u8>>) = again.into_iter().unzip();
        let done = self.store.settle(settlements).await?;
        self.queue.wake();
        let queued: Vec<Vec<u8>> = cids.into_iter().zip(done).filter_map(|(cid, done)| done.then_some(cid)).collect();
        Ok(Page { infos: self.status(&queued).await?, next })
    }

    /// Unpins that are held until a person approves, after a CID, of one kind.
    pub async fn held(&self, hold: Hold, after: &[u8]) -> Result<Vec<Item>> {
        self.store.held(hold, after, PAGE).await
    }

    /// Lets held unpins go ahead: these, or all when there are none named. Gives how many.
    pub async fn approve(&self, cids: &[Vec<u8>]) -> Result<u64> {
        let mut approved = 0;
        if cids.is_empty() {
            for hold in [Hold::Guarded, Hold::Adopted] {
                let mut after = Vec::new();
                loop {
                    let items = self.held(hold, &after).await?;
                    let Some(last) = items.last() else { break };
                    after.clone_from(&last.cid);
                    approved += self.approve_items(items).await?;
                }
            }
        } else {
            approved = self.approve_items(self.store.get(cids).await?.into_values().collect()).await?;
        }
        self.queue.wake();
        Ok(approved)
    }

    async fn approve_items(&self, items: Vec<Item>) -> Result<u64> {
        let rules = self.store.rules();
        let settlements: Vec<Settlement> = items
            .iter()
            .filter_map(|item| operation::approve(item, &rules).map(|approved| Settlement::of(item, approved)))
            .collect();
        let done = self.store.settle(settlements).await?;
        Ok(done.into_iter().filter(|done| *done).count() as u64)
    }

    /// Whether this peer really holds what the pinset had at `revision` (protocols.md 7). The node is asked: others
    /// drop their copies on this answer.
    pub async fn holds(&self, item: Option<&Item>, revision: u64) -> Answer {
        let Some(item) = item else {
            // Not followed that far, or not in the pinset any more; the leader knows which.
            return if *self.store.position().borrow() >= revision { Answer::No } else { Answer::Unknown };
        };
        if item.revision < revision {
            return Answer::Unknown;
        }
        if item.status != TrackerStatus::Pinned || item.todo != Todo::Nothing {
            return Answer::No;
        }
        match self.node_state(item).await {
            None => Answer::Unknown,
            Some(state) if state.is(item.mode) || state == PinState::Recursive => Answer::Held,
            Some(PinState::NotPinned | PinState::Direct | PinState::Recursive) => {
                let lost = operation::after(item, Outcome::Lost, &self.store.rules(), 0.0);
                if let Err(error) = self.store.settle(vec![Settlement::of(item, lost)]).await {
                    tracing::warn!(%error, "note that the node lost a pin; the next check finds it again");
                }
                self.queue.wake();
                Answer::No
            }
        }
    }
}
