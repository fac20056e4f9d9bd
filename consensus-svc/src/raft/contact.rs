//! When each other node was last heard from, in either direction. One of the two senses by which a peer is found to be
//! away (protocols.md 6).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

/// Clones share one table.
#[derive(Clone, Debug, Default)]
pub struct Contacts(Arc<Mutex<HashMap<u64, Instant>>>);

impl Contacts {
    /// A message or an answer came from it just now.
    pub(super) fn heard(&self, node_id: u64) {
        self.0.lock().insert(node_id, Instant::now());
    }

    /// Forgets everybody else.
    pub(super) fn retain(&self, is_known: impl Fn(u64) -> bool) {
        self.0.lock().retain(|node_id, _| is_known(*node_id));
    }

    /// `None`: not since this process started.
    pub fn last(&self, node_id: u64) -> Option<Instant> {
        self.0.lock().get(&node_id).copied()
    }

    pub fn all(&self) -> HashMap<u64, Instant> {
        self.0.lock().clone()
    }
}
