//! Errors of the disk, and the one place where the first of them stays.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::pinset::Halt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing}: {source}")]
    Sqlite { doing: Cow<'static, str>, source: Arc<sqlx::Error> },
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
        move |source| Error::Sqlite { doing: doing.into(), source: Arc::new(source) }
    }

    pub(super) fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { doing, source: Arc::new(source) }
    }

    /// Names the file that damage was found in.
    pub(super) fn in_file(self, path: &Path) -> Error {
        match self {
            Error::Sqlite { doing, source } if is_damage(&source) => {
                Error::Damaged(format!("{}: {doing}: {source}", path.display()))
            }
            Error::Sqlite { doing, source } if !doing.contains(&*path.to_string_lossy()) => {
                Error::Sqlite { doing: format!("{}: {doing}", path.display()).into(), source }
            }
            Error::Damaged(what) if !what.contains(&*path.to_string_lossy()) => {
                Error::Damaged(format!("{}: {what}", path.display()))
            }
            other => other,
        }
    }

    /// A row that was to be new is there.
    pub(super) fn is_of_a_known_row(&self) -> bool {
        matches!(self, Error::Sqlite { source, .. } if source.as_database_error().is_some_and(|e| e.is_unique_violation()))
    }

    pub(super) fn damaged(what: impl Into<String>) -> Error {
        Error::Damaged(what.into())
    }
}

/// SQLite's codes for a file whose contents contradict themselves, for one that is no database, and for tables that are
/// not ours, as none of our statements is wrong by itself.
fn is_damage(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(ERROR | CORRUPT | NOT_A_DATABASE))
}

/// The disk's own errors, and contents that contradict themselves.
fn is_of_the_disk(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(IO | CORRUPT | NOT_A_DATABASE))
}

const ERROR: u32 = 1;
const IO: u32 = 10;
const CORRUPT: u32 = 11;
const NOT_A_DATABASE: u32 = 26;

/// SQLite's primary code.
fn code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?.parse::<u32>().ok()?;
    Some(code & 0xff)
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

    /// An error of a read of `file`: final when it is the disk's, or damage. It would come again, to everybody who asks, and
    /// others have what this peer cannot read.
    pub(super) fn set_by_read(&self, error: &Error, file: &Path) {
        let Error::Sqlite { source, .. } = error else { return };
        if is_of_the_disk(source) {
            self.set(&error.clone().in_file(file));
        }
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
