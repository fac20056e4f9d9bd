//! The folder `raft/`: its lock, whether this peer may start on what lies there, and its way to `raft.old.N`.
//! Touches names and the lock only; what is in the files is the store's.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use pinfold_common::member::{Member, RemovedMarker};

use crate::error::{Error, Result};

/// Written by the store; its absence means that there is no log.
const LOG_FILE: &str = "log.db";

/// The locked folder. The lock goes with the process, however it ends.
#[derive(Debug)]
pub struct StateFolder {
    raft: PathBuf,
    _lock: File,
}

/// What a start finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No membership: this peer may found or join, if its log is empty too.
    Nothing,
    /// It is a member and has its log.
    Member(Member),
}

impl StateFolder {
    /// Creates the folder if need be and locks it, for this process alone.
    pub fn lock(raft: &Path) -> Result<StateFolder> {
        let lock = pinfold_common::files::lock_folder(raft).map_err(|error| {
            let is_held = error.code == pinfold_common::Code::Rejected;
            if is_held { Error::Locked(error) } else { Error::Common(error) }
        })?;
        Ok(StateFolder { raft: raft.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.raft
    }

    /// Whether this peer may start here (protocols.md 2). `folder` is the peer's.
    pub fn examine(&self, folder: &Path) -> Result<Found> {
        if let Some(marker) = RemovedMarker::load(folder)? {
            return Err(removed(&marker));
        }
        let has_log = self.raft.join(LOG_FILE).exists();
        match Member::load(folder)? {
            None => Ok(Found::Nothing),
            Some(member) if has_log => Ok(Found::Member(member)),
            Some(member) => Err(Error::Refused(format!(
                "this peer is node {} of cluster {}, and its data in {} is gone; a peer that lost its log must not vote: \
                 remove it from the cluster, clean its state (consensus-svc state clean) and join it again",
                member.node_id,
                hex(&member.cluster_id),
                self.raft.display()
            ))),
        }
    }
}

/// What a removed peer says, when it learns it and at every start afterwards.
pub fn removed(marker: &RemovedMarker) -> Error {
    Error::Removed(format!(
        "this peer was removed from cluster {} ({}); its state lies in raft.old.0; to let it join again as a new member: \
         consensus-svc state clean, then start it with --bootstrap",
        hex(&marker.cluster_id),
        marker.reason
    ))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Moves `raft/` to `raft.old.0`, older ones up by one; at most `keep` stay (beh:B20.5). Nothing there: nothing happens.
/// The stores must be closed.
pub fn move_aside(raft: &Path, keep: u64) -> Result<()> {
    let failed = |error: io::Error| {
        Error::Common(pinfold_common::Error::internal(format!("move {} aside: {error}", raft.display())))
    };
    if !raft.exists() {
        return Ok(());
    }
    let old =
        |number: u64| raft.with_file_name(format!("{}.old.{number}", raft.file_name().unwrap_or_default().display()));
    let last = old(keep.saturating_sub(1));
    if last.exists() {
        std::fs::remove_dir_all(&last).map_err(failed)?;
    }
    for number in (0..keep.saturating_sub(1)).rev() {
        if old(number).exists() {
            std::fs::rename(old(number), old(number + 1)).map_err(failed)?;
        }
    }
    std::fs::rename(raft, old(0)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: two processes never share a folder, and the lock goes with its owner.
    #[test]
    fn one_owner_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let raft = folder.path().join("raft");
        let first = StateFolder::lock(&raft).unwrap();
        assert!(StateFolder::lock(&raft).is_err());
        drop(first);
        StateFolder::lock(&raft).unwrap();
    }

    /// Goal: a member without its log, and a removed peer, are refused with 78 instead of founding a cluster.
    #[test]
    fn lost_and_removed_peers_do_not_start() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::lock(&folder.path().join("raft")).unwrap();
        assert_eq!(state.examine(folder.path()).unwrap(), Found::Nothing);
        let member = Member { cluster_id: vec![1; 16], node_id: 7 };
        member.save(folder.path()).unwrap();
        assert!(matches!(state.examine(folder.path()), Err(Error::Refused(_))));
        std::fs::write(state.path().join(LOG_FILE), b"").unwrap();
        assert_eq!(state.examine(folder.path()).unwrap(), Found::Member(member));
        RemovedMarker { cluster_id: vec![1; 16], node_id: 7, reason: "for a test".into() }.save(folder.path()).unwrap();
        assert!(matches!(state.examine(folder.path()), Err(Error::Removed(_))));
    }

    /// Goal: the newest backup is .0 and only `keep` stay.
    #[test]
    fn backups_rotate() {
        let folder = tempfile::tempdir().unwrap();
        let raft = folder.path().join("raft");
        for round in 0..4 {
            std::fs::create_dir(&raft).unwrap();
            std::fs::write(raft.join("round"), round.to_string()).unwrap();
            move_aside(&raft, 3).unwrap();
        }
        let round = |number: u64| std::fs::read_to_string(folder.path().join(format!("raft.old.{number}/round"))).ok();
        assert_eq!(
            (round(0), round(1), round(2), round(3)),
            (Some("3".into()), Some("2".into()), Some("1".into()), None)
        );
        assert!(!raft.exists());
    }
}
