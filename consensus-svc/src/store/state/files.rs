//! Which file is the state: `CURRENT` names it. Installing a snapshot puts the new file beside the old one, makes
//! `CURRENT` name it, and only then removes the old one; a crash in between leaves one of the two, whole.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pinfold_common::files::sync_folder;

use crate::store::error::{Error, Result};

const CURRENT: &str = "CURRENT";
/// Before the first snapshot is installed.
pub const FIRST: &str = "state.db";
const SNAPSHOTS: &str = "snapshots";
/// For a connection's thread to end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(30);
const CLOSE_PAUSE: Duration = Duration::from_millis(2);
/// SQLite's companions of a database file.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The state's file. What an interrupted install or transfer left behind is removed.
pub fn current(folder: &Path) -> Result<PathBuf> {
    let name = match fs::read_to_string(folder.join(CURRENT)) {
        Ok(name) => checked(name.trim())?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => FIRST.to_owned(),
        Err(error) => return Err(Error::io("read raft/CURRENT")(error)),
    };
    let path = folder.join(&name);
    if name != FIRST && !path.exists() {
        return Err(Error::damaged(format!("raft/CURRENT names {name}, which is not there")));
    }
    remove_others(folder, &name)?;
    Ok(path)
}

/// Whether there is a state, or a pointer to one.
pub fn is_in(folder: &Path) -> Result<bool> {
    let exists = |name: &str| folder.join(name).try_exists().map_err(Error::io("look for the state"));
    Ok(exists(CURRENT)? || exists(FIRST)?)
}

fn checked(name: &str) -> Result<String> {
    if name == FIRST || generation(name).is_some() {
        return Ok(name.to_owned());
    }
    Err(Error::damaged(format!("raft/CURRENT names {name:?}, which is no state file")))
}

fn generation(name: &str) -> Option<u64> {
    name.strip_prefix("state-")?.strip_suffix(".db")?.parse().ok()
}

fn remove_others(folder: &Path, keep: &str) -> Result<()> {
    let doing = "clean the raft folder";
    for entry in fs::read_dir(folder).map_err(Error::io(doing))? {
        let name = entry.map_err(Error::io(doing))?.file_name().to_string_lossy().into_owned();
        let database = COMPANIONS.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(&name);
        let is_state = database == FIRST || generation(database).is_some();
        if is_state && database != keep {
            fs::remove_file(folder.join(&name)).map_err(Error::io(doing))?;
        }
    }
    let snapshots = folder.join(SNAPSHOTS);
    if snapshots.exists() {
        fs::remove_dir_all(&snapshots).map_err(Error::io(doing))?;
    }
    Ok(())
}

/// A new file for a snapshot on its way in or out; `what` says which. Removed at the next start, if not before.
pub fn snapshot(folder: &Path, what: &str) -> Result<PathBuf> {
    let doing = "create the snapshot folder";
    let snapshots = folder.join(SNAPSHOTS);
    fs::create_dir_all(&snapshots).map_err(Error::io(doing))?;
    Ok(snapshots.join(format!("{what}-{:016x}.db", rand::random::<u64>())))
}

/// Makes `received`, whose contents are on disk, the state's file.
pub fn adopt(folder: &Path, old: &Path, received: &Path) -> Result<PathBuf> {
    let doing = "install a snapshot";
    let old_generation = old.file_name().and_then(|name| generation(&name.to_string_lossy())).unwrap_or(0);
    let name = format!("state-{}.db", old_generation + 1);
    let path = folder.join(&name);
    fs::rename(received, &path).map_err(Error::io(doing))?;
    sync_folder(folder).map_err(Error::io(doing))?;
    let pointer = folder.join("CURRENT.new");
    let mut file = File::create(&pointer).map_err(Error::io(doing))?;
    file.write_all(name.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::io(doing))?;
    fs::rename(&pointer, folder.join(CURRENT)).map_err(Error::io(doing))?;
    sync_folder(folder).map_err(Error::io(doing))?;
    Ok(path)
}

/// Puts a copy of `file` into the place of the state, or nothing, which is a state that has applied nothing. The old
/// files go to a folder of their own, which is returned. A crash in between leaves no state, and the log that says so.
pub fn replace(folder: &Path, file: Option<&Path>) -> Result<PathBuf> {
    let doing = "replace a damaged state";
    let old = current(folder)?;
    wait_until_closed(&old)?;
    let received = match file {
        None => None,
        Some(file) => {
            let copy = snapshot(folder, "earlier")?;
            fs::copy(file, &copy).and_then(|_| File::open(&copy)?.sync_all()).map_err(Error::io(doing))?;
            Some(copy)
        }
    };
    let kept = (0..).map(|number| folder.join(format!("damaged.{number}"))).find(|kept| !kept.exists());
    let kept = kept.ok_or_else(|| Error::damaged("no name is left for a damaged state"))?;
    fs::create_dir(&kept).map_err(Error::io(doing))?;
    for suffix in [""].into_iter().chain(COMPANIONS) {
        let mut name = old.as_os_str().to_owned();
        name.push(suffix);
        let name = Path::new(&name);
        if let (true, Some(file_name)) = (name.exists(), name.file_name()) {
            fs::rename(name, kept.join(file_name)).map_err(Error::io(doing))?;
        }
    }
    match received {
        Some(received) => drop(adopt(folder, &old, &received)?),
        None => match fs::remove_file(folder.join(CURRENT)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(doing)(error)),
            Err(_) | Ok(()) => {}
        },
    }
    sync_folder(folder).map_err(Error::io(doing))?;
    Ok(kept)
}

/// Waits until this process has nothing of a database open. A connection that is dropped, as one is that could not be opened,
/// is closed by its thread a moment later, and the last one to be closed removes the write-ahead log by its name: it would
/// take one that it finds in the old one's place.
fn wait_until_closed(database: &Path) -> Result<()> {
    let doing = "wait for a damaged state to be closed";
    let Some((folder, name)) = database.parent().zip(database.file_name()) else { return Ok(()) };
    let path = folder.canonicalize().map_err(Error::io(doing))?.join(name);
    let names =
        [""].into_iter().chain(COMPANIONS).map(|suffix| [path.as_os_str().as_bytes(), suffix.as_bytes()].concat());
    let names: Vec<Vec<u8>> = names.collect();
    let deadline = Instant::now() + CLOSE_DEADLINE;
    while Instant::now() < deadline {
        let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return Ok(()) };
        let is_ours = |target: &Path| {
            let target = target.as_os_str().as_bytes();
            let target = target.strip_suffix(b" (deleted)").unwrap_or(target);
            names.iter().any(|name| name == target)
        };
        if !descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| is_ours(&target)) {
            return Ok(());
        }
        std::thread::sleep(CLOSE_PAUSE);
    }
    Err(Error::Refused(format!("{}: something in this process does not close it", path.display())))
}

/// Removes a database that nothing has open.
pub fn remove(path: &Path) {
    for suffix in [""].into_iter().chain(COMPANIONS) {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        if let Err(error) = fs::remove_file(&name)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "a database that is not needed any more could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::{Purpose, open_writer};

    /// Goal: whatever moment a crash hits, exactly one whole state is found, and nothing else stays.
    #[test]
    fn an_install_is_there_or_not() {
        let temporary = tempfile::TempDir::new().unwrap();
        let folder = temporary.path();
        assert_eq!(current(folder).unwrap(), folder.join("state.db"));
        fs::write(folder.join("state.db"), "old").unwrap();
        fs::write(folder.join("state.db-wal"), "old").unwrap();
        // Crashed after the rename of the file, before that of the pointer.
        fs::write(folder.join("state-1.db"), "half").unwrap();
        fs::write(folder.join("log.db"), "log").unwrap();
        assert_eq!(current(folder).unwrap(), folder.join("state.db"));
        assert!(!folder.join("state-1.db").exists() && folder.join("state.db-wal").exists());

        let received = snapshot(folder, "incoming").unwrap();
        fs::write(&received, "new").unwrap();
        let adopted = adopt(folder, &folder.join("state.db"), &received).unwrap();
        assert_eq!(current(folder).unwrap(), adopted);
        assert_eq!(fs::read_to_string(&adopted).unwrap(), "new");
        assert!(!folder.join("state.db").exists() && !folder.join("state.db-wal").exists());
        assert!(folder.join("log.db").exists());
        fs::remove_file(adopted).unwrap();
        assert!(current(folder).is_err(), "a pointer to nothing is not taken for a new peer");
        fs::write(folder.join("CURRENT"), "../../etc/passwd").unwrap();
        assert!(current(folder).is_err());
    }

    /// Goal: the place of a state is free only when the last connection to the old one has removed what it removes.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_open_is_not_replaced() {
        let temporary = tempfile::TempDir::new().unwrap();
        let folder = temporary.path().to_owned();
        let mut connection = open_writer(&folder.join(FIRST), Purpose::State).await.unwrap();
        sqlx::raw_sql("CREATE TABLE t (v)").execute(&mut connection).await.unwrap();
        let replacing = tokio::task::spawn_blocking({
            let folder = folder.clone();
            move || replace(&folder, None)
        });
        tokio::time::sleep(20 * CLOSE_PAUSE).await;
        assert!(!replacing.is_finished() && folder.join("state.db-wal").exists());
        drop(connection);
        let kept = replacing.await.unwrap().unwrap();
        assert!(kept.join(FIRST).exists());
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [kept]);
    }
}
