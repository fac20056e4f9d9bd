//! What this peer keeps on disk for Raft, and the only place that names `sqlx`. It knows nothing of gRPC and nothing of
//! the consensus library: `raft/` adapts these types to it.
//!
//! - [`Log`]: `raft/log.db` (WAL, synchronous=FULL). One row per group of entries, the vote, what was purged. An entry,
//!   a vote or a truncation that was answered is on disk.
//! - [`State`]: `raft/state.db` (WAL, synchronous=NORMAL). The pinset, the peerset, settings and request keys as the
//!   entries up to `applied` left them, written together with `applied`. After a power cut it may be some entries
//!   behind, never torn; the log still has those entries, because it is purged only behind a synced checkpoint
//!   ([`State::checkpoint`]). It may be some entries ahead of the log too, which a majority of other peers had on their disks
//!   before this one; it knows how many ([`Meta::unlogged`]).
//!
//! One task writes each file; it drains its bounded queue into one transaction. Reads have their own connections. No
//! memory mapping: four mappings of a gigabyte are not worth the resident memory.
//!
//! An error of the disk is final ([`Failure`]): the process stops rather than guess what reached the disk.

mod build;
mod checkpoints;
mod error;
mod log;
mod readers;
pub mod recent;
mod record;
mod sqlite;
mod state;
mod sum;
mod survivor;
mod wal;

use std::path::{Path, PathBuf};

use pinfold_common::files::sync_folder;

pub use build::{Build, Seed};
pub use error::{Error, Failure, Result};
pub use log::{Done, Log, LogStatus};
pub use recent::Recent;
pub use record::{LogId, Membership, Payload, Proposal, Record, Vote};
pub use state::{Chunk, Copy, Digest, Facts, Holding, Incoming, Keeps, Meta, Reading, State};
pub use survivor::Survivor;

/// The Raft log and the vote.
pub const LOG_FILE: &str = "log.db";

/// The two files of one peer, opened.
#[derive(Clone)]
pub struct Stores {
    pub log: Log,
    pub state: State,
}

impl Stores {
    /// Opens or creates both below `folder` (`<peer>/raft`). The caller holds the folder's lock.
    /// Errors: SQLite older than 3.51.3, a file of a later format, a damaged file, the disk.
    pub async fn open(folder: &Path) -> Result<Stores> {
        sqlite::check_version().await?;
        std::fs::create_dir_all(folder).map_err(Error::io("create the raft folder"))?;
        let failure = Failure::default();
        let log = Log::open(folder, failure.clone()).await?;
        let state = State::open(folder, failure).await?;
        // SQLite syncs the folder for the write-ahead logs that it has just made, and does not look at how that went.
        let synced = sync_folder(folder).map_err(Error::io("sync the raft folder"));
        if let Err(error) = synced.and_then(|()| check_ends(folder, &log, &state)) {
            state.close().await;
            log.close().await;
            return Err(error);
        }
        Ok(Stores { log, state })
    }

    /// Whether opening would change the files to this version's format.
    pub async fn is_of_older_format(folder: &Path) -> Result<bool> {
        Ok(Log::is_of_older_format(folder).await? || State::is_of_older_format(folder).await?)
    }

    /// The ends of the log, if it is whole and the state is damaged; `None`: the damage is elsewhere.
    pub async fn log_beside_damaged_state(folder: &Path) -> Result<Option<LogStatus>> {
        let Ok(log) = Log::open(folder, Failure::default()).await else { return Ok(None) };
        let status = log.status();
        log.close().await;
        match State::rehearse(folder, Failure::default()).await {
            Err(Error::Damaged(_)) => Ok(Some(status)),
            Err(error) => Err(error),
            Ok(state) => {
                state.close().await;
                Ok(None)
            }
        }
    }

    /// Puts a copy of `file` into the place of the state, or an empty one, whose files are kept in the returned folder.
    /// Nothing is open.
    pub async fn replace_state(folder: &Path, file: Option<&Path>) -> Result<PathBuf> {
        let (folder, file) = (folder.to_owned(), file.map(Path::to_owned));
        let replaced = tokio::task::spawn_blocking(move || state::replace(&folder, file.as_deref()));
        replaced.await.map_err(|_| Error::Closed)?
    }

    /// Resolves with the first error of the disk: the process has to stop.
    pub fn failure(&self) -> &Failure {
        self.state.failure()
    }

    /// Writes what is queued, checkpoints and closes both. Idempotent.
    pub async fn close(&self) {
        self.state.close().await;
        self.log.close().await;
    }
}

/// Whether the log and the state fit together: nothing is missing between them, and the log has what it had when the state
/// came that far. What a majority of others had by then, and this log not, the state alone may have if the process ended
/// before the log was written: the library goes on behind it. So may a state that came as a snapshot.
fn check_ends(folder: &Path, log: &Log, state: &State) -> Result<()> {
    let LogStatus { purged, last } = log.status();
    let (purged, last) = (purged.map(|id| id.index), last.map(|id| id.index));
    let meta = state.meta();
    let applied = meta.applied.map(|id| id.index);
    let count = |index: Option<u64>| index.map_or(0, |index| index + 1);
    let text = |index: Option<u64>| index.map_or_else(|| "no entry".to_owned(), |index| format!("entry {index}"));
    if purged > applied {
        return Err(Error::damaged(format!(
            "{}: the state ends at {}, and the log was cut at {}: a part of the state is missing",
            folder.join("state.db").display(),
            text(applied),
            text(purged)
        )));
    }
    if count(last) + meta.unlogged < count(applied) && !state.is_from_snapshot() {
        return Err(Error::damaged(format!(
            "{}: the log ends at {}, and the state has applied {}: a part of the log is missing",
            folder.join(LOG_FILE).display(),
            text(last),
            text(applied)
        )));
    }
    if last < applied {
        tracing::info!(
            log = text(last),
            state = text(applied),
            "the log begins anew behind the state, which has what a majority of others has and this disk did not"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::sync::oneshot;

    use super::*;

    fn records(indexes: std::ops::Range<u64>) -> Vec<Record> {
        indexes.map(|index| Record { id: LogId { term: 1, node: 1, index }, payload: Payload::Blank }).collect()
    }

    /// Goal: a state that had what a majority of others had before this log was written opens (fault:D2); one whose log had
    /// more then than it has now does not.
    #[tokio::test]
    async fn a_log_that_lost_entries_is_refused() {
        const LOGGED: u64 = 3;
        const APPLIED: u64 = 5;
        for (unlogged, is_whole) in [(APPLIED - LOGGED, true), (APPLIED - LOGGED - 1, false), (0, false)] {
            let folder = TempDir::new().unwrap();
            let stores = Stores::open(folder.path()).await.unwrap();
            let (done, written) = oneshot::channel();
            stores.log.append(records(0..LOGGED), Box::new(move |result| drop(done.send(result)))).await.unwrap();
            written.await.unwrap().unwrap();
            // Entries on the log's disk by the time of the last transaction count, not by that of those before it.
            for (range, unlogged) in [(0..LOGGED, LOGGED), (LOGGED..APPLIED, unlogged)] {
                let (done, applied) = oneshot::channel();
                let done: state::Applied = Box::new(move |result| drop(done.send(result)));
                stores.state.queue(records(range), unlogged, Some(done)).await.unwrap();
                applied.await.unwrap().unwrap();
            }
            stores.close().await;
            assert_eq!(Survivor::open(folder.path()).await.is_ok(), is_whole, "{unlogged} unlogged entries");
            match Stores::open(folder.path()).await {
                Ok(stores) => {
                    assert!(is_whole, "{unlogged} unlogged entries");
                    assert_eq!(stores.state.applied_index(), APPLIED - 1);
                }
                Err(error) => {
                    assert!(!is_whole, "{error}");
                    assert!(error.to_string().contains("log.db: the log ends at entry 2, and the state"), "{error}");
                }
            }
        }
    }
}
