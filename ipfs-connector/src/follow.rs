//! Follows the own consensus-svc from the stored cursor on (protocols.md 8), and turns what it says into rows. Level,
//! not edge: a stream that breaks is opened again at the cursor, which moves in the same transaction as the rows, so a
//! message is either in the table or will be sent again. A comparison with the whole pinset is merged with our rows in
//! key order, page by page; what it would unpin is held until its end, where the mass-unpin guard decides.

use std::time::Duration;

use futures::StreamExt as _;
use pinfold_common::channel::{Channels, MAX_MESSAGE_BYTES, call, explain};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{Error, PeerId};
use pinfold_proto::consensus::follow_reply::Message;
use pinfold_proto::consensus::pins_client::PinsClient;
use pinfold_proto::consensus::{Changes, Cursor, FollowCall, FollowReply, Page, change};
use pinfold_proto::types;
use tokio::sync::watch;

use crate::error::Result;
use crate::store::{Change, Source, Store};
use crate::tracker::board::Halt;
use crate::tracker::operation::{Hold, Order};
use crate::tracker::queue::Queue;
use crate::tracker::reconcile::{Guard, Unusual, guard};
use pinfold_common::status::TrackerStatus;

/// For the first answer; keep-alive watches the stream from then on.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts: doubled from the first to the last, each with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Messages that are ready and are taken into one transaction.
const MESSAGES_AT_ONCE: usize = 32;
/// After a transaction, so that a busy pinset costs a hundred transactions a second and not one for each entry. The
/// first change after a quiet time is taken at once.
const PACE: Duration = Duration::from_millis(10);

pub struct Follower {
    pub store: Store,
    pub queue: Queue,
    pub channels: Channels,
    pub own: PeerId,
    /// Of the own consensus-svc, host:port.
    pub consensus: String,
    /// Whether nothing committed is missing here: unpins wait for it.
    pub caught_up: watch::Sender<bool>,
}

/// A comparison that is under way.
struct Comparison {
    cursor: Cursor,
    lineage_changed: bool,
    tracker_rebuilt: bool,
    /// Items that were pinned here before it.
    pinned: u64,
    /// The last CID of the last page.
    after: Vec<u8>,
    is_empty: bool,
}

impl Follower {
    pub async fn run(self, shutdown: Shutdown) {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut answered = false;
            let Some(ended) = shutdown.race(self.session(&mut answered)).await else { return };
            self.caught_up.send_replace(false);
            // A comparison that halted the work and broke off is begun again by the next session.
            self.queue.board().resume(Halt::Lineage);
            match ended {
                Ok(()) => tracing::debug!("consensus-svc ended the stream of changes"),
                Err(error) => tracing::debug!(%error, ?pause, "the pinset is not followed"),
            }
            if answered {
                pause = FIRST_PAUSE;
            }
            if shutdown.race(tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>()))).await.is_none() {
                return;
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// One stream, until it ends or something fails.
    async fn session(&self, answered: &mut bool) -> Result<()> {
        let channel = self.channels.to(Room::Consensus, &self.own, &self.consensus);
        let mut client = PinsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = FollowCall { cursor: self.store.cursor() };
        let stream = call("follow the pinset", OPEN_DEADLINE, client.follow(request)).await?;
        let mut messages = stream.ready_chunks(MESSAGES_AT_ONCE);
        let mut comparison: Option<Comparison> = None;
        while let Some(chunk) = messages.next().await {
            let mut batch = Batch::default();
            for reply in chunk {
                let reply: FollowReply = reply.map_err(|status| explain(status).context("follow the pinset"))?;
                let Some(message) = reply.message else { continue };
                *answered = true;
                match message {
                    Message::Changes(changes) => batch.add(changes, &self.own),
                    Message::Behind(behind) => {
                        self.take(&mut batch).await?;
                        self.set_caught_up(false);
                        tracing::info!(its_index = behind.index, "consensus-svc is behind the tracker; waiting for it");
                    }
                    Message::Resume(resume) => {
                        self.take(&mut batch).await?;
                        // What an unfinished comparison held is ordered again by the changes, where it still is due.
                        self.store.release().await?;
                        tracing::debug!(index = resume.cursor.map_or(0, |cursor| cursor.index), "following changes");
                    }
                    Message::Compare(compare) => {
                        self.take(&mut batch).await?;
                        comparison = Some(self.begin(compare.cursor.unwrap_or_default()).await?);
                    }
                    Message::Page(page) => {
                        self.take(&mut batch).await?;
                        let Some(running) = comparison.as_mut() else {
                            return Err(Error::internal("follow the pinset: a page outside of a comparison").into());
                        };
                        let is_last = page.end;
                        self.page(running, page).await?;
                        if is_last && let Some(whole) = comparison.take() {
                            self.end(whole).await?;
                        }
                    }
                }
            }
            self.take(&mut batch).await?;
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    fn set_caught_up(&self, caught_up: bool) {
        self.caught_up.send_if_modified(|known| std::mem::replace(known, caught_up) != caught_up);
    }

    /// Writes what was gathered, and tells who works on it.
    async fn take(&self, batch: &mut Batch) -> Result<()> {
        let Batch { changes, cursor, caught_up } = std::mem::take(batch);
        let Some(caught_up) = caught_up else { return Ok(()) };
        if !caught_up {
            self.set_caught_up(false);
        }
        let index = cursor.as_ref().map(|cursor| cursor.index);
        if cursor.is_some() && (!changes.is_empty() || cursor != self.store.cursor()) {
            let touched = self.store.follow(changes, cursor, Source::Log).await?;
            self.queue.changed(&touched);
        }
        if caught_up {
            if self.store.rebuilt_index() > index.unwrap_or(0) {
                self.store.rebuilt_up_to(index.unwrap_or(0)).await?;
            }
            self.set_caught_up(true);
        }
        Ok(())
    }

    async fn begin(&self, cursor: Cursor) -> Result<Comparison> {
        self.set_caught_up(false);
        let known = self.store.cursor();
        let lineage_changed = known
            .as_ref()
            .is_some_and(|known| known.cluster_id != cursor.cluster_id || known.lineage != cursor.lineage);
        if lineage_changed {
            tracing::warn!(
                lineage = cursor.lineage,
                "the pinset was imported or restored; comparing everything with it"
            );
            // Revisions of the old lineage say nothing about the new one: no end of an attempt may meet its rows.
            self.queue.board().halt(Halt::Lineage).await;
        } else {
            tracing::info!(index = cursor.index, "comparing with the whole pinset");
        }
        Ok(Comparison {
            cursor,
            lineage_changed,
            tracker_rebuilt: known.is_none(),
            pinned: self.store.counts().of(TrackerStatus::Pinned),
            after: Vec::new(),
            is_empty: true,
        })
    }

    async fn page(&self, comparison: &mut Comparison, page: Page) -> Result<()> {
        let own = self.own.to_bytes();
        comparison.is_empty &= page.pins.is_empty();
        let mut keep: Vec<Vec<u8>> = page.pins.iter().map(|pin| pin.cid.clone()).collect();
        keep.sort_unstable();
        let changes = page.pins.iter().map(|pin| Change::Put(Order::of(pin, &own))).collect();
        let touched = self.store.follow(changes, None, Source::Comparison).await?;
        self.queue.changed(&touched);
        let through = (!page.last.is_empty()).then_some(page.last);
        let mut after = std::mem::take(&mut comparison.after);
        loop {
            let swept = self.store.sweep(after, through.clone(), keep.clone(), comparison.cursor.index).await?;
            self.queue.changed(&swept.touched);
            match swept.next {
                Some(next) => after = next,
                None => break,
            }
        }
        comparison.after = through.unwrap_or_default();
        Ok(())
    }

    async fn end(&self, comparison: Comparison) -> Result<()> {
        let unpins = self.store.count_held(Hold::Comparing).await?;
        let unusual = Unusual {
            lineage_changed: comparison.lineage_changed,
            state_empty: comparison.is_empty,
            tracker_rebuilt: comparison.tracker_rebuilt,
        };
        let hold = match guard(unpins, comparison.pinned, unusual) {
            Guard::Release => None,
            Guard::Hold(why) => {
                tracing::error!(unpins, pinned = comparison.pinned, why, "unpins are held");
                Some(why)
            }
        };
        self.store.end_comparison(comparison.cursor, hold).await?;
        self.queue.board().resume(Halt::Lineage);
        self.queue.wake();
        Ok(())
    }
}

/// Changes of messages that came together.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    cursor: Option<Cursor>,
    /// Of the last message; `None`: no message.
    caught_up: Option<bool>,
}

impl Batch {
    fn add(&mut self, message: Changes, own: &PeerId) {
        let own = own.to_bytes();
        self.changes.extend(message.changes.into_iter().filter_map(|entry| {
            let index = entry.index;
            entry.change.map(|change| match change {
                change::Change::Put(pin) => Change::Put(Order::of(&with_revision(pin, index), &own)),
                change::Change::Removed(cid) => Change::Removed { cid, index },
            })
        }));
        self.cursor = message.cursor.or_else(|| self.cursor.take());
        self.caught_up = Some(message.caught_up);
    }
}

/// An entry says its revision itself; the index of the change is the same.
fn with_revision(mut pin: types::Pin, index: u64) -> types::Pin {
    if pin.revision == 0 {
        pin.revision = index;
    }
    pin
}
