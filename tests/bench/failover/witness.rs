//! What a peer's log says became of the items, change by change: a run of any length with any number of leaders, in which
//! no move is missed and none is counted twice.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ctl::local::peer::Peer;
use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::tls::Room;
use pinfold_proto::consensus::change::Change;
use pinfold_proto::consensus::follow_reply::Message;
use pinfold_proto::consensus::pins_client::PinsClient;
use pinfold_proto::consensus::{Cursor, FollowCall};
use pinfold_proto::types;
use pinfold_tests::pins::Pinset;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::cluster::min_of;

/// Between two attempts, while the peer's consensus-svc is gone.
const PAUSE: Duration = Duration::from_millis(100);

/// What was seen so far.
pub struct Seen {
    pub pins: Pinset,
    /// Killed, and not back.
    pub dead: BTreeSet<Vec<u8>>,
    /// Changes that gave an item a holder that it did not have.
    pub moved: usize,
    /// Of them: of items that had their minimum when they were moved; a second move of a repaired item is one.
    pub needless: usize,
    pub first_move: Option<Instant>,
    pub last_move: Option<Instant>,
}

pub struct Witness {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Witness {
    /// Follows a peer from what it has now; `pins` is that.
    pub fn follow(peer: &Peer, pins: Pinset) -> Witness {
        let (dead, moved, needless) = (BTreeSet::new(), 0, 0);
        let seen = Seen { pins, dead, moved, needless, first_move: None, last_move: None };
        let seen = Arc::new(Mutex::new(seen));
        let channel = pinfold_tests::cluster::inside(peer, Room::Consensus);
        let task = tokio::spawn(follow(channel, seen.clone()));
        Witness { seen, task }
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics with it")
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(channel: Channel, seen: Arc<Mutex<Seen>>) {
    let mut client = PinsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut cursor: Option<Cursor> = None;
    loop {
        if let Ok(replies) = client.follow(FollowCall { cursor: cursor.clone() }).await {
            let mut replies = replies.into_inner();
            while let Ok(Some(reply)) = replies.message().await {
                match reply.message {
                    Some(Message::Resume(resume)) => cursor = resume.cursor,
                    Some(Message::Compare(compare)) => cursor = compare.cursor,
                    // The pinset as it is: items that nobody touched are as they were, and the others are judged by
                    // what they were before.
                    Some(Message::Page(page)) => {
                        let mut seen = seen.lock().expect("nobody panics with it");
                        page.pins.into_iter().for_each(|pin| seen.put(pin));
                    }
                    Some(Message::Changes(changes)) => {
                        let mut seen = seen.lock().expect("nobody panics with it");
                        for change in changes.changes {
                            match change.change {
                                Some(Change::Put(pin)) => seen.put(pin),
                                Some(Change::Removed(cid)) => drop(seen.pins.remove(&cid)),
                                None => {}
                            }
                        }
                        cursor = changes.cursor.or(cursor);
                    }
                    Some(Message::Behind(_)) | None => {}
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Seen {
    fn put(&mut self, pin: types::Pin) {
        let Some(old) = self.pins.get(&pin.cid) else {
            self.pins.insert(pin.cid.clone(), pin);
            return;
        };
        if pin.allocations.iter().any(|peer| !old.allocations.contains(peer)) {
            let now = Instant::now();
            self.moved += 1;
            self.needless += usize::from(self.live(old) >= min_of(old));
            self.first_move.get_or_insert(now);
            self.last_move = Some(now);
        }
        self.pins.insert(pin.cid.clone(), pin);
    }

    /// Holders that were not killed.
    pub fn live(&self, pin: &types::Pin) -> usize {
        pin.allocations.iter().filter(|peer| !self.dead.contains(*peer)).count()
    }

    pub fn is_below(&self, pin: &types::Pin) -> bool {
        self.live(pin) < min_of(pin)
    }
}
