//! Blocks as files, one each, named by their key, in 32 × 32 folders: a million blocks are a thousand a folder.
//! A file appears under its name whole and on disk, or not at all: written beside, flushed, renamed, its folder flushed.
//! Everything here blocks, and is called from blocking threads only.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use pinfold_common::files::sync_folder;

use super::key::Key;

const BLOCKS: &str = "blocks";
const INCOMING: &str = "incoming";
const DAMAGED: &str = "damaged";
/// Files or folders that are flushed or removed side by side.
const PARALLEL_WORK: usize = 8;
/// The letters of base32, which name the folders of both levels.
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

#[derive(Debug)]
pub struct Files {
    blocks: PathBuf,
    incoming: PathBuf,
    damaged: PathBuf,
    /// Names in `incoming`.
    next: AtomicU64,
}

/// A file written, not under its name yet. Dropped without being published, it is removed.
#[derive(Debug)]
pub struct Written {
    from: PathBuf,
    to: PathBuf,
    is_published: bool,
}

impl Drop for Written {
    fn drop(&mut self) {
        if !self.is_published {
            // What cannot be removed now goes at the next start.
            let _ = fs::remove_file(&self.from);
        }
    }
}

impl Files {
    /// Makes the folders, and removes what was on its way in when the last process ended.
    pub fn open(folder: &Path) -> io::Result<Files> {
        let files = Files {
            blocks: folder.join(BLOCKS),
            incoming: folder.join(INCOMING),
            damaged: folder.join(DAMAGED),
            next: AtomicU64::new(0),
        };
        for path in [&files.blocks, &files.incoming, &files.damaged] {
            fs::create_dir_all(path)?;
        }
        for entry in fs::read_dir(&files.incoming)? {
            fs::remove_file(entry?.path())?;
        }
        sync_folder(folder)?;
        Ok(files)
    }

    /// The two levels are the letters before the last one: the last one carries fewer bits, the first are the same
    /// for all keys of a hash function.
    fn path(&self, key: &Key) -> PathBuf {
        let name = key.name();
        let letters = name.as_bytes();
        let letter = |from_end: usize| {
            let at = letters.len().checked_sub(from_end);
            char::from(at.and_then(|at| letters.get(at)).copied().unwrap_or(b'a')).to_string()
        };
        self.blocks.join(letter(3)).join(letter(2)).join(name)
    }

    /// A folder that is emptied at each start.
    pub fn scratch(&self) -> &Path {
        &self.incoming
    }

    pub fn read(&self, key: &Key) -> io::Result<Option<Vec<u8>>> {
        present(fs::read(self.path(key)))
    }

    /// Its size, if it is there.
    pub fn size(&self, key: &Key) -> io::Result<Option<u64>> {
        present(fs::metadata(self.path(key)).map(|metadata| metadata.len()))
    }

    /// Writes beside; `publish` gives it its name.
    fn write(&self, key: &Key, data: &[u8]) -> io::Result<(File, Written)> {
        let from = self.incoming.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let mut file = File::create_new(&from)?;
        let written = Written { from, to: self.path(key), is_published: false };
        file.write_all(data)?;
        Ok((file, written))
    }

    /// Stores blocks that are not here; when this returns all are on disk, or, with an error, perhaps some. All are written
    /// before the first is flushed: one commit of the file system's journal is then for most of them.
    pub fn store(&self, blocks: &[(Key, Bytes)]) -> io::Result<()> {
        let (files, written): (Vec<File>, Vec<Written>) =
            in_parallel(blocks, |(key, data)| self.write(key, data))?.into_iter().unzip();
        in_parallel(&files, File::sync_data)?;
        self.publish(written)
    }

    /// Gives files their names; when this returns they have them for good.
    fn publish(&self, written: Vec<Written>) -> io::Result<()> {
        let mut folders = BTreeSet::new();
        for mut file in written {
            let Some(folder) = file.to.parent() else { continue };
            if !folder.exists() {
                fs::create_dir_all(folder)?;
                folders.extend(folder.parent().map(Path::to_owned));
                folders.insert(self.blocks.clone());
            }
            fs::rename(&file.from, &file.to)?;
            folders.insert(folder.to_owned());
            file.is_published = true;
        }
        let folders: Vec<PathBuf> = folders.into_iter().collect();
        in_parallel(&folders, |folder| sync_folder(folder)).map(drop)
    }

    /// Removes files; what could not be removed, and why. One that is not there is no failure.
    pub fn remove(&self, keys: &[Key]) -> io::Result<Vec<String>> {
        let failures = in_parallel(keys, |key| {
            let failure = present(fs::remove_file(self.path(key))).err();
            Ok(failure.map(|error| format!("remove block {}: {error}", key.name())))
        })?;
        Ok(failures.into_iter().flatten().collect())
    }

    /// Puts a file whose data has another hash out of the way, for a person to look at.
    pub fn set_aside(&self, key: &Key) -> io::Result<()> {
        present(fs::rename(self.path(key), self.damaged.join(key.name()))).map(drop)
    }

    /// The folders that hold files, in both levels.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> + '_ {
        LETTERS.iter().flat_map(move |first| {
            LETTERS.iter().map(move |second| {
                self.blocks.join(char::from(*first).to_string()).join(char::from(*second).to_string())
            })
        })
    }

    /// Keys of the files in one of the `folders`.
    pub fn keys_in(&self, folder: &Path) -> io::Result<Vec<Key>> {
        let Some(entries) = present(fs::read_dir(folder))? else { return Ok(Vec::new()) };
        let mut keys = Vec::new();
        for entry in entries {
            keys.extend(entry?.file_name().to_str().and_then(Key::from_name));
        }
        Ok(keys)
    }
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Flushes and removals wait for the file system's journal, side by side for the same commit. Threads of their own, few and short: a hand-over to a pool
/// for each file costs more than the file on a busy machine.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> io::Result<R> + Sync) -> io::Result<Vec<R>> {
    let share = items.len().div_ceil(PARALLEL_WORK).max(1);
    if items.len() <= share {
        return items.iter().map(work).collect();
    }
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .chunks(share)
            .map(|chunk| scope.spawn(move || chunk.iter().map(work).collect::<io::Result<Vec<R>>>()))
            .collect();
        let mut results = Vec::with_capacity(items.len());
        for thread in threads {
            let chunk = thread.join().map_err(|_| io::Error::other("a writing thread panicked"))?;
            results.extend(chunk?);
        }
        Ok(results)
    })
}

#[cfg(test)]
mod tests {
    use multihash_codetable::{Code, MultihashDigest as _};
    use pinfold_common::Cid;

    use super::*;

    fn key(data: &[u8]) -> Key {
        Key::of(&Cid::new_v1(0x55, Code::Sha2_256.digest(data)))
    }

    /// Goal: a file is there only once it is published, what was left half-way is gone after a start, and the
    /// listing finds each file exactly once.
    #[test]
    fn published_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        let keys: Vec<Key> = (0..50u8).map(|n| key(&[n])).collect();
        let (file, written) = files.write(&keys[0], b"data").unwrap();
        file.sync_data().unwrap();
        assert_eq!(files.read(&keys[0]).unwrap(), None);
        files.publish(vec![written]).unwrap();
        let rest: Vec<_> = keys[1..].iter().map(|key| (key.clone(), Bytes::from_static(b"data"))).collect();
        files.store(&rest).unwrap();
        assert_eq!(files.read(&keys[0]).unwrap().as_deref(), Some(b"data".as_slice()));
        assert_eq!(files.size(&keys[49]).unwrap(), Some(4));
        let mut listed: Vec<Key> = files.folders().flat_map(|folder| files.keys_in(&folder).unwrap()).collect();
        let mut expected = keys.clone();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);
        assert_eq!(files.remove(&keys[..1]).unwrap(), Vec::<String>::new());
        assert_eq!(files.remove(&keys[..1]).unwrap(), Vec::<String>::new());
        assert_eq!(files.size(&keys[0]).unwrap(), None);

        drop(files.write(&keys[0], b"given up").unwrap());
        assert_eq!(fs::read_dir(folder.path().join(INCOMING)).unwrap().count(), 0);
        std::mem::forget(files.write(&keys[0], b"never published").unwrap());
        let files = Files::open(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path().join(INCOMING)).unwrap().count(), 0);
        assert_eq!(files.read(&keys[0]).unwrap(), None);
        assert_eq!(files.size(&keys[1]).unwrap(), Some(4));
    }
}
