//! Errors of the disk, and the one place where the first of them stays.

use std::sync::Arc;

use tokio::sync::watch;

use crate::pinset::Halt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing}: {source}")]
    Sqlite { doing: &'static str, source: Arc<sqlx::Error> },
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: Arc<std::io::Error> },
    /// What lies on disk, or came from a peer, contradicts itself.
    #[error("{0}")]
    Damaged(String),
    /// The disk's contents are fine and this program cannot use them.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Halt(#[from] Halt),
    #[error("the store is closed")]
    Closed,
}

impl Error {
    pub(super) fn sqlite(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
        move |source| Error::Sqlite { doing, source: Arc::new(source) }
    }

    pub(super) fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { doing, source: Arc::new(source) }
    }

    pub(super) fn damaged(what: impl Into<String>) -> Error {
        Error::Damaged(what.into())
    }
}

/// Whether the disk has failed. Clones share one answer; the first error stays.
#[derive(Clone, Debug)]
pub struct Failure(Arc<watch::Sender<Option<Error>>>);

impl Default for Failure {
    fn default() -> Failure {
        Failure(Arc::new(watch::Sender::new(None)))
    }
}

impl Failure {
    pub fn set(&self, error: &Error) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                tracing::error!(%error, "the store failed; this process has to stop");
                *first = Some(error.clone());
            }
            is_first
        });
    }

    pub fn get(&self) -> Option<Error> {
        self.0.borrow().clone()
    }

    /// Resolves when there is one.
    pub async fn happened(&self) -> Error {
        let mut receiver = self.0.subscribe();
        loop {
            if let Some(error) = receiver.borrow_and_update().clone() {
                return error;
            }
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
