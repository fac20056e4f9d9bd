//! The folder `raft/`: its lock, whether this peer may start on what lies there, and its way to `raft.old.N`.
//! Touches names and the lock only; what is in the files is the store's.

mod exchange;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use pinfold_common::Code;
use pinfold_common::files::{PRIVATE, sync_folder, write_atomically};
use pinfold_common::member::{MEMBER_FILE, Member, RemovedMarker};

pub use exchange::{Exchange, finish as finish_exchange};

use crate::error::{Error, Result};

/// Its absence means that there is no log.
use crate::store::LOG_FILE;

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
    /// Creates the folder if need be and locks it, for this process alone. One that the original wrote is refused
    /// before it is touched.
    pub fn lock(raft: &Path) -> Result<StateFolder> {
        refuse_original(raft)?;
        let lock = pinfold_common::files::lock_folder(raft).map_err(|error| match error.code {
            Code::Rejected => Error::Locked(error.message),
            _ => Error::disk(error),
        })?;
        Ok(StateFolder { raft: raft.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.raft
    }

    /// Whether this peer may start here (protocols.md 2). `folder` is the peer's.
    pub fn examine(&self, folder: &Path) -> Result<Found> {
        if let Some(marker) = RemovedMarker::load(folder).map_err(of_a_small_file)? {
            return Err(removed(&marker));
        }
        let has_log = self.raft.join(LOG_FILE).exists();
        match Member::load(folder).map_err(of_a_small_file)? {
            None if has_log => self.put_back(folder),
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

/// What is not the file's contents is the disk, or its permissions.
fn of_a_small_file(error: pinfold_common::Error) -> Error {
    match error.code {
        Code::Internal => Error::disk(error),
        _ => Error::Common(error),
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

impl StateFolder {
    /// A `raft.old.N` that was put back by renaming it brings its membership along (beh:B20.7).
    fn put_back(&self, folder: &Path) -> Result<Found> {
        let Some(member) = Member::load(&self.raft)? else { return Ok(Found::Nothing) };
        tracing::warn!(
            node = member.node_id,
            cluster = hex(&member.cluster_id),
            "a folder that was set aside is put back: this peer is again who it was then"
        );
        member.save(folder).map_err(Error::disk)?;
        Ok(Found::Member(member))
    }
}

/// The original's store of its log, what its snapshots have, and the folders of its other stores.
const ORIGINAL_LOG: &str = "raft.db";
const ORIGINAL_SNAPSHOT: &str = "meta.json";
const ORIGINAL_STORES: [&str; 4] = ["pebble", "badger3", "badger", "leveldb"];

fn refuse_original(raft: &Path) -> Result<()> {
    let found = match raft.parent() {
        _ if raft.join(ORIGINAL_LOG).exists() || has_original_snapshot(raft) => Some(raft.to_owned()),
        // Beside data of our own they are only leftovers.
        Some(folder) if !has_data(raft)? && !folder.join(MEMBER_FILE).exists() => {
            ORIGINAL_STORES.iter().map(|name| folder.join(name)).find(|path| path.is_dir())
        }
        Some(_) | None => None,
    };
    let Some(found) = found else { return Ok(()) };
    Err(Error::Refused(format!(
        "{} was written by ipfs-cluster-service, and is left as it is; take its pinset over: ipfs-cluster-service state \
         export -f pinset.jsonl, move that folder out of the way, then consensus-svc state import pinset.jsonl",
        found.display()
    )))
}

fn has_original_snapshot(raft: &Path) -> bool {
    let Ok(snapshots) = std::fs::read_dir(raft.join("snapshots")) else { return false };
    snapshots.flatten().any(|entry| entry.path().join(ORIGINAL_SNAPSHOT).exists())
}

/// Whether anything but the lock is in the folder.
pub fn has_data(raft: &Path) -> Result<bool> {
    let entries = match std::fs::read_dir(raft) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::Io(format!("read {}: {error}", raft.display()))),
    };
    for entry in entries {
        let entry = entry.map_err(|error| Error::Io(format!("read {}: {error}", raft.display())))?;
        if entry.file_name() != "lock" {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `<raft>.<suffix>`
fn sibling(raft: &Path, suffix: &str) -> PathBuf {
    raft.with_file_name(format!("{}.{suffix}", raft.file_name().unwrap_or_default().display()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Copies `raft/` to `raft.old.0`, as [`set_aside`] moves it: before its files are changed for good. The stores must be
/// closed. A crash leaves a whole copy or none under that name.
pub fn copy_aside(raft: &Path, folder: &Path, keep: u64) -> Result<PathBuf> {
    let copy = sibling(raft, "copy");
    let failed = |error: io::Error| Error::Io(format!("copy {} aside: {error}", raft.display()));
    if copy.exists() {
        std::fs::remove_dir_all(&copy).map_err(failed)?;
    }
    std::fs::create_dir(&copy).map_err(failed)?;
    for entry in std::fs::read_dir(raft).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() && entry.file_name() != "lock" {
            let target = copy.join(entry.file_name());
            std::fs::copy(entry.path(), &target).map_err(failed)?;
            File::open(&target).and_then(|file| file.sync_all()).map_err(failed)?;
        }
    }
    copy_member(folder, &copy).map_err(failed)?;
    sync_folder(&copy).map_err(failed)?;
    rotate(raft, &copy, keep)
}

/// Moves `raft/` to `raft.old.0`, older ones up by one; at most `keep` stay (beh:B20.5). `member.json` goes along as a
/// copy, so that the folder can be put back by renaming it. Returns where it went; nothing there: nothing happens.
/// The stores must be closed.
pub fn set_aside(raft: &Path, folder: &Path, keep: u64) -> Result<Option<PathBuf>> {
    let failed = |error: io::Error| Error::Io(format!("move {} aside: {error}", raft.display()));
    if !raft.exists() {
        return Ok(None);
    }
    if !has_data(raft)? {
        std::fs::remove_dir_all(raft).map_err(failed)?;
        return Ok(None);
    }
    copy_member(folder, raft).map_err(failed)?;
    rotate(raft, raft, keep).map(Some)
}

/// As [`set_aside`], for data that is not `member.json`'s any more.
pub fn move_aside(raft: &Path, keep: u64) -> Result<Option<PathBuf>> {
    if has_data(raft)? { rotate(raft, raft, keep).map(Some) } else { Ok(None) }
}

fn copy_member(folder: &Path, to: &Path) -> io::Result<()> {
    match std::fs::read(folder.join(MEMBER_FILE)) {
        Ok(bytes) => write_atomically(&to.join(MEMBER_FILE), &bytes, PRIVATE),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes `newest` the `raft.old.0` of `raft`.
fn rotate(raft: &Path, newest: &Path, keep: u64) -> Result<PathBuf> {
    let failed = |error: io::Error| Error::Io(format!("move {} aside: {error}", newest.display()));
    let old = |number: u64| sibling(raft, &format!("old.{number}"));
    let keep = keep.max(1);
    // Copies beyond the limit, which may have been lowered.
    let mut number = keep;
    while old(number).exists() {
        std::fs::remove_dir_all(old(number)).map_err(failed)?;
        number += 1;
    }
    // Up to the first gap only: a crash may have left one, and nothing has to go then.
    let free = (0..keep).find(|number| !old(*number).exists()).unwrap_or(keep - 1);
    if old(free).exists() {
        std::fs::remove_dir_all(old(free)).map_err(failed)?;
    }
    for number in (0..free).rev() {
        std::fs::rename(old(number), old(number + 1)).map_err(failed)?;
    }
    std::fs::rename(newest, old(0)).map_err(failed)?;
    raft.parent().map_or(Ok(()), sync_folder).map_err(failed)?;
    Ok(old(0))
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
        let member = Member { cluster_id: vec![1; 16], node_id: 7, starts: 0 };
        member.save(folder.path()).unwrap();
        assert!(matches!(state.examine(folder.path()), Err(Error::Refused(_))));
        std::fs::write(state.path().join(LOG_FILE), b"").unwrap();
        assert_eq!(state.examine(folder.path()).unwrap(), Found::Member(member));
        RemovedMarker { cluster_id: vec![1; 16], node_id: 7, reason: "for a test".into() }.save(folder.path()).unwrap();
        assert!(matches!(state.examine(folder.path()), Err(Error::Removed(_))));
    }

    /// Goal: the newest backup is .0, only `keep` stay, each with its membership, and a limit that was lowered counts.
    #[test]
    fn seed_i3_backups_rotate() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let raft = folder.join("raft");
        let make = |round: u64, keep: u64| {
            std::fs::create_dir(&raft).unwrap();
            std::fs::write(raft.join("round"), round.to_string()).unwrap();
            Member { cluster_id: vec![1; 16], node_id: round, starts: 0 }.save(folder).unwrap();
            assert_eq!(set_aside(&raft, folder, keep).unwrap(), Some(folder.join("raft.old.0")));
        };
        let round = |number: u64| {
            let text = std::fs::read_to_string(folder.join(format!("raft.old.{number}/round"))).ok()?;
            let member = Member::load(&folder.join(format!("raft.old.{number}"))).unwrap().unwrap();
            assert_eq!(member.node_id.to_string(), text);
            Some(member.node_id)
        };
        (0..4).for_each(|number| make(number, 3));
        assert_eq!((round(0), round(1), round(2), round(3)), (Some(3), Some(2), Some(1), None));
        // A crash between two renames left a gap: nothing is deleted for the next one.
        std::fs::remove_dir_all(folder.join("raft.old.1")).unwrap();
        make(4, 3);
        assert_eq!((round(0), round(1), round(2)), (Some(4), Some(3), Some(1)));
        make(5, 1);
        assert_eq!((round(0), round(1), round(2)), (Some(5), None, None));
        assert!(!raft.exists());
        std::fs::create_dir(&raft).unwrap();
        assert_eq!(set_aside(&raft, folder, 3).unwrap(), None, "an empty folder is no backup");
        assert_eq!((raft.exists(), round(0)), (false, Some(5)));
    }

    /// Goal: a folder of the original is recognised, named with the way out, and not touched (seed:I9).
    #[test]
    fn seed_i9_the_originals_folder_is_left_alone() {
        for store in ["raft/raft.db", "raft/snapshots/1-2-3/meta.json", "pebble/MANIFEST"] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join(store);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "theirs").unwrap();
            let Err(Error::Refused(why)) = StateFolder::lock(&folder.path().join("raft")) else { panic!("{store}") };
            assert!(why.contains("ipfs-cluster-service state export"), "{why}");
            let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
            assert_eq!(names.len(), 1, "nothing was made");
            assert!(!folder.path().join("raft/lock").exists());
        }
    }
}
