//! What this peer keeps on disk for Raft, and the only place that names `sqlx`. It knows nothing of gRPC and nothing of
//! the consensus library: `raft/` adapts these types to it.
//!
//! - [`Log`]: `raft/log.db` (WAL, synchronous=FULL). One row per group of entries, the vote, what was purged. An entry,
//!   a vote or a truncation that was answered is on disk.
//! - [`State`]: `raft/state.db` (WAL, synchronous=NORMAL). The pinset, the peerset, settings and request keys as the
//!   entries up to `applied` left them, written together with `applied`. After a power cut it may be some entries
//!   behind, never torn; the log still has those entries, because it is purged only behind a synced checkpoint
//!   ([`State::checkpoint`]).
//!
//! One task writes each file; it drains its bounded queue into one transaction. Reads have their own connections. No
//! memory mapping: four mappings of a gigabyte are not worth the resident memory.
//!
//! An error of the disk is final ([`Failure`]): the process stops rather than guess what reached the disk.

mod error;
mod log;
mod readers;
pub mod recent;
mod record;
mod sqlite;
mod state;

use std::path::Path;

pub use error::{Error, Failure, Result};
pub use log::{Done, Log, LogStatus};
pub use recent::Recent;
pub use record::{LogId, Membership, Payload, Proposal, Record, Vote};
pub use state::{Chunk, Copy, Digest, Facts, Holding, Incoming, Meta, State};

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
        Ok(Stores { log, state })
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
