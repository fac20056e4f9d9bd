//! What a stopped peer knows: its state, and what its log has beyond it, read without changing either.
//!
//! The entries beyond the applied ones are applied in a transaction that is never committed. All of them, also those of
//! which this peer was not told that they are committed: each of them may be, and an election that this peer wins would
//! make them so. Whoever asked for one that is not was told that its outcome is unknown. What this peer can't know is
//! what it never received.

use std::path::Path;
use std::sync::Arc;

use super::error::{Error, Failure, Result};
use super::log::Log;
use super::record::LogId;
use super::state::{Chunk, Facts, Meta, State};
use super::{check_ends, sqlite};

/// Entries applied at once, by bytes.
const APPLY_BYTES: usize = 4 << 20;
/// Pins of one chunk.
const CHUNK_PINS: usize = 1000;

pub struct Survivor {
    state: State,
    log: Option<Log>,
    /// Entries in the log of which this peer was not told that they are committed.
    pub undecided: u64,
}

impl Survivor {
    /// `folder` is `raft/`, a `raft.old.N`, or a backup, which has no log. Errors: as of [`super::Stores::open`], and a
    /// folder that has no state.
    pub async fn open(folder: &Path) -> Result<Survivor> {
        sqlite::check_version().await?;
        let failure = Failure::default();
        let has_log = folder.join(super::LOG_FILE).exists();
        if !has_log && !State::is_in(folder)? {
            return Err(Error::Refused(format!("there is no state in {}", folder.display())));
        }
        let (log, state) = if has_log {
            let log = Log::open(folder, failure.clone()).await?;
            (Some(log), State::rehearse(folder, failure).await?)
        } else {
            (None, State::look(folder, failure).await?)
        };
        let mut survivor = Survivor { state, log, undecided: 0 };
        if let Err(error) = survivor.apply_the_rest(folder).await {
            survivor.close().await;
            return Err(error);
        }
        Ok(survivor)
    }

    async fn apply_the_rest(&mut self, folder: &Path) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        check_ends(folder, log, &self.state)?;
        let applied = self.state.meta().applied.map(|id| id.index);
        let Some(last) = log.status().last.map(|id| id.index) else { return Ok(()) };
        let mut next = applied.map_or(0, |index| index + 1);
        while next <= last {
            let records = log.read(next, last + 1, APPLY_BYTES).await;
            let records = records.map_err(|error| error.in_file(&folder.join(super::LOG_FILE)))?;
            let Some(newest) = records.last().map(|record| record.id.index) else {
                return Err(Error::damaged(format!("{}: log entry {next} is missing", folder.display())));
            };
            self.state.apply(records).await?;
            next = newest + 1;
        }
        let known = log.committed().map(|id| id.index).max(applied);
        let is_alone = match self.meta().membership.membership.configs.as_slice() {
            [] => true,
            configs => configs.iter().all(|set| set.ids.len() <= 1),
        };
        if !is_alone {
            self.undecided = last.saturating_sub(known.unwrap_or(0));
        }
        Ok(())
    }

    /// As the whole log leaves it.
    pub fn meta(&self) -> Meta {
        self.state.meta()
    }

    /// The newest entry it has: of two peers, the one with the higher one knows more.
    pub fn last(&self) -> Option<LogId> {
        self.meta().applied
    }

    pub fn facts(&self) -> Arc<Facts> {
        self.state.facts()
    }

    pub fn pin_count(&self) -> u64 {
        self.state.pin_count()
    }

    /// Pins whose CID is above `after`, in CID order.
    pub async fn list(&self, after: &[u8]) -> Result<Chunk> {
        self.state.list_rehearsed(after, CHUNK_PINS).await
    }

    /// Takes back what was applied, and closes the files.
    pub async fn close(self) {
        self.state.close().await;
        if let Some(log) = self.log {
            log.close().await;
        }
    }
}
