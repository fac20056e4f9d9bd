//! Puts a new `raft/` into the place of the old one: for imports, restores and recoveries.
//!
//! The new folder is built beside the old one, as `raft.new`, and synced. Then `READY` is written into it, with the
//! membership that goes with it: from here on the exchange happens, whoever dies, because every later start and every
//! `state` command [`finish`]es it first. Before that, nothing of the old one has changed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use pinfold_common::files::{PRIVATE, lock_folder, read_small, sync_folder, write_atomically};
use pinfold_common::member::{self, Member};

use super::{set_aside, sibling};
use crate::error::{Error, Result};

const READY: &str = "READY";
const MAX_READY_BYTES: u64 = 64 * 1024;

/// A new folder that is being built. Dropped before [`Exchange::commit`], it is removed.
pub struct Exchange {
    raft: PathBuf,
    new: PathBuf,
    is_ready: bool,
    _lock: File,
}

impl Exchange {
    /// The caller holds the lock of `raft`.
    pub fn begin(raft: &Path) -> Result<Exchange> {
        let new = sibling(raft, "new");
        let lock = lock_folder(&new)?;
        let exchange = Exchange { raft: raft.to_owned(), new, is_ready: false, _lock: lock };
        exchange.empty()?;
        Ok(exchange)
    }

    /// Where the new files go.
    pub fn path(&self) -> &Path {
        &self.new
    }

    /// What an earlier attempt left.
    fn empty(&self) -> Result<()> {
        let failed = |error| failed(&self.new, &error);
        for entry in fs::read_dir(&self.new).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name() == "lock" {
                continue;
            }
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(failed)?;
        }
        Ok(())
    }

    /// Makes it so: the old folder becomes `raft.old.0`, the new one `raft`, and `member.json` says who this peer is in
    /// it. Returns where the old one went; `None` when there was none. The new files are on disk already.
    pub fn commit(mut self, folder: &Path, member: &Member, keep: u64) -> Result<Option<PathBuf>> {
        let failed = |error| failed(&self.new, &error);
        let bytes = serde_json::to_vec(member).map_err(|error| failed(error.into()))?;
        sync_folder(&self.new).map_err(failed)?;
        write_atomically(&self.new.join(READY), &bytes, PRIVATE).map_err(failed)?;
        self.is_ready = true;
        exchange(&self.raft, &self.new, folder, keep)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.is_ready
            && let Err(error) = fs::remove_dir_all(&self.new)
        {
            tracing::warn!(%error, path = %self.new.display(), "an unfinished folder could not be removed");
        }
    }
}

/// Finishes an exchange that was decided and interrupted; removes one that was not. Nothing to do: does nothing.
pub fn finish(raft: &Path, folder: &Path, keep: u64) -> Result<()> {
    let new = sibling(raft, "new");
    if !new.exists() {
        // The last step of an exchange: until it is done, doing it all again changes nothing.
        return remove_ready(raft);
    }
    let Ok(_lock) = lock_folder(&new) else {
        // Somebody is building it, under the lock of `raft`, which the caller is about to ask for.
        return Ok(());
    };
    if new.join(READY).exists() {
        tracing::warn!(path = %new.display(), "an exchange of the state was interrupted; it is finished now");
        exchange(raft, &new, folder, keep)?;
        return Ok(());
    }
    fs::remove_dir_all(&new).map_err(|error| failed(&new, &error))
}

fn exchange(raft: &Path, new: &Path, folder: &Path, keep: u64) -> Result<Option<PathBuf>> {
    let failed = |error| failed(new, &error);
    let ready = read_small(&new.join(READY), MAX_READY_BYTES).map_err(failed)?;
    let ready = ready.ok_or_else(|| Error::Refused(format!("{} has no {READY}", new.display())))?;
    let member: Member = serde_json::from_slice(&ready).map_err(|error| failed(error.into()))?;
    let old = set_aside(raft, folder, keep)?;
    member::forget(folder)?;
    member.save(folder).map_err(Error::disk)?;
    fs::rename(new, raft).map_err(failed)?;
    sync_folder(folder).map_err(failed)?;
    remove_ready(raft)?;
    Ok(old)
}

fn remove_ready(raft: &Path) -> Result<()> {
    match fs::remove_file(raft.join(READY)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(raft, &error)),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::Io(format!("exchange the state by {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node_id: u64) -> Member {
        Member { cluster_id: vec![9; 16], node_id, starts: 0 }
    }

    /// Goal: whichever step a crash hits, the next start finds the old state whole, or the new one, with its membership
    /// (seed:I6).
    #[test]
    fn an_exchange_happens_or_not() {
        for crash_after in 0..4 {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            let raft = folder.join("raft");
            fs::create_dir(&raft).unwrap();
            fs::write(raft.join("log.db"), "old").unwrap();
            member(1).save(folder).unwrap();
            let new = Exchange::begin(&raft).unwrap();
            fs::write(new.path().join("log.db"), "new").unwrap();
            let path = new.path().to_owned();
            if crash_after == 0 {
                std::mem::forget(new);
            } else {
                fs::write(path.join(READY), serde_json::to_vec(&member(2)).unwrap()).unwrap();
                std::mem::forget(new);
                if crash_after >= 2 {
                    set_aside(&raft, folder, 3).unwrap();
                }
                if crash_after >= 3 {
                    member(2).save(folder).unwrap();
                    // Another start came in between, and made an empty folder to lock.
                    fs::create_dir(&raft).unwrap();
                    fs::write(raft.join("lock"), "").unwrap();
                }
            }
            // The lock went with the process; here it is still held by this one, in the forgotten value.
            fs::remove_file(path.join("lock")).unwrap();
            finish(&raft, folder, 3).unwrap();
            finish(&raft, folder, 3).unwrap();
            let (text, node) = if crash_after == 0 { ("old", 1) } else { ("new", 2) };
            assert_eq!(fs::read_to_string(raft.join("log.db")).unwrap(), text, "{crash_after}");
            assert_eq!(Member::load(folder).unwrap(), Some(member(node)), "{crash_after}");
            assert!(!path.exists() && !raft.join(READY).exists());
            let old = folder.join("raft.old.0");
            assert_eq!(old.exists(), crash_after > 0);
            if crash_after > 0 {
                assert_eq!(fs::read_to_string(old.join("log.db")).unwrap(), "old");
                assert_eq!(Member::load(&old).unwrap(), Some(member(1)), "it can be put back");
            }
        }
    }
}
