//! What the clients asked and were answered, in the order in which it happened. An operation that failed is one of
//! unknown outcome: a client cannot tell whether it took effect.

use std::sync::{Mutex, PoisonError};

/// What was asked of one CID. Names are unique in a history, so that each write can be told from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Pin {
        name: u64,
    },
    Unpin,
    /// With `consistent`.
    Get,
}

/// What came back. REST shows no revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Pinned {
        revision: Option<u64>,
    },
    Unpinned,
    Found {
        name: u64,
        revision: Option<u64>,
    },
    /// Not in the pinset: an answer to `Unpin` and `Get`.
    NotThere,
}

/// One operation. Moments are positions in the history.
#[derive(Clone, Debug)]
pub struct Operation {
    pub key: u64,
    /// Which peer was asked: for the message of a history that is not linearizable.
    pub peer: usize,
    pub asked: Asked,
    pub called: u64,
    /// `None`: unknown.
    pub answered: Option<(u64, Answer)>,
}

#[derive(Default)]
pub struct History(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    now: u64,
    operations: Vec<Operation>,
}

/// An operation that was called and has no answer yet.
pub struct Open(usize);

impl History {
    /// To be called before anything is sent.
    pub fn call(&self, peer: usize, key: u64, asked: Asked) -> Open {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.now += 1;
        let operation = Operation { key, peer, asked, called: inner.now, answered: None };
        inner.operations.push(operation);
        Open(inner.operations.len() - 1)
    }

    /// To be called after the answer has come. Operations that are never answered stay unknown.
    pub fn answer(&self, open: Open, answer: Answer) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.now += 1;
        let now = inner.now;
        inner.operations[open.0].answered = Some((now, answer));
    }

    pub fn operations(&self) -> Vec<Operation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).operations.clone()
    }
}
