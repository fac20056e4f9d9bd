//! Copies of the state as files: made for a peer that needs one, and received from a leader.

use std::path::PathBuf;

use bytes::Bytes;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use super::writer::Op;
use super::{Chunk, Meta, State, files, read, rows, verify};
use crate::store::error::{Error, Result};
use crate::store::sqlite;

/// A file with the whole state at `meta`. Removed when dropped.
#[derive(Debug)]
pub struct Copy {
    pub path: PathBuf,
    pub meta: Meta,
    pub pin_count: u64,
    pub size_bytes: u64,
    /// Whether everything in it was compared with its sums.
    pub is_verified: bool,
}

/// What a state has that a copy is to replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    Nothing,
    Pins,
}

/// A copy that is being read.
pub struct Reading {
    connection: SqliteConnection,
    copy: Copy,
}

impl Copy {
    pub async fn read(self) -> Result<Reading> {
        let connection = sqlite::open_reader(&self.path).await?;
        Ok(Reading { connection, copy: self })
    }
}

impl Reading {
    pub fn pin_count(&self) -> u64 {
        self.copy.pin_count
    }

    /// Pins whose CID is above `after`, in CID order; at most `limit`.
    pub async fn list(&mut self, after: &[u8], limit: usize) -> Result<Chunk> {
        let index = self.copy.meta.applied.map_or(0, |id| id.index);
        read::chunk(&mut self.connection, after, limit, index).await
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        files::remove(&self.path);
    }
}

/// Of a copy that is being received, so much at a time is forced to disk: what is acknowledged meanwhile waits for the same
/// disk, and would wait for all of it at the end.
const SYNCED_TOGETHER_BYTES: u64 = 32 << 20;

/// A copy that is being received. Removed when dropped before it is finished.
pub struct Incoming {
    path: Option<PathBuf>,
    file: File,
    size_bytes: u64,
    unsynced_bytes: u64,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            files::remove(path);
        }
    }
}

impl State {
    /// Copies the state while writes go on; takes a second or so per million pins.
    pub async fn copy(&self) -> Result<Copy> {
        let doing = "copy the state";
        let path = files::snapshot(&self.shared.folder, "outgoing")?;
        let mut copy = Copy { path, meta: Meta::default(), pin_count: 0, size_bytes: 0, is_verified: false };
        let mut connection = sqlite::open_reader(&self.generation().path).await?;
        let target =
            copy.path.to_str().ok_or_else(|| Error::Refused("the raft folder's path is not UTF-8".to_owned()))?;
        sqlx::query("VACUUM INTO ?").bind(target).execute(&mut connection).await.map_err(Error::sqlite(doing))?;
        connection.close().await.map_err(Error::sqlite(doing))?;
        // How far the copy has come is what stands in the copy itself.
        (copy.meta, copy.pin_count) = read_meta(&copy.path).await?;
        copy.size_bytes = tokio::fs::metadata(&copy.path).await.map_err(Error::io(doing))?.len();
        Ok(copy)
    }

    /// Begins to receive a copy.
    pub async fn receive(&self) -> Result<Incoming> {
        let path = files::snapshot(&self.shared.folder, "incoming")?;
        let file = File::create(&path).await.map_err(Error::io("receive a snapshot"))?;
        Ok(Incoming { path: Some(path), file, size_bytes: 0, unsynced_bytes: 0 })
    }

    /// Replaces the whole state by a copy. Readers go on with the old one until they are done.
    pub async fn install(&self, mut copy: Copy) -> Result<Meta> {
        let file = std::mem::take(&mut copy.path);
        let is_verified = copy.is_verified;
        let (done, installed) = oneshot::channel();
        self.send(Op::Install { file, is_verified, done }).await?;
        installed.await.map_err(|_| self.closed())?
    }
}

impl Incoming {
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        let doing = "receive a snapshot";
        self.size_bytes += data.len() as u64;
        self.unsynced_bytes += data.len() as u64;
        self.file.write_all(&data).await.map_err(Error::io(doing))?;
        if self.unsynced_bytes >= SYNCED_TOGETHER_BYTES {
            self.file.sync_data().await.map_err(Error::io(doing))?;
            self.unsynced_bytes = 0;
        }
        Ok(())
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Forces the file to disk and checks that it is a whole database of our format. An error says that the copy is
    /// no good, or the disk; the state is as it was. `keeps` is what the copy is to replace: with nothing in it there is
    /// nothing to lose, and a large copy is verified once it serves, like a large state that was only restarted.
    pub async fn finish(mut self, keeps: Keeps) -> Result<Copy> {
        let doing = "check a received snapshot";
        self.file.flush().await.map_err(Error::io(doing))?;
        self.file.sync_all().await.map_err(Error::io(doing))?;
        let path = self.path.take().ok_or(Error::Closed)?;
        let is_verified = keeps == Keeps::Pins || !sqlite::is_large(&path);
        let mut copy = Copy { path, meta: Meta::default(), pin_count: 0, size_bytes: self.size_bytes, is_verified };
        let mut connection = sqlite::open_reader(&copy.path).await?;
        if sqlite::user_version(&mut connection).await? != rows::VERSION {
            return Err(Error::Refused("the snapshot is of another format: upgrade the older peer".to_owned()));
        }
        if is_verified {
            verify::verify(&mut connection).await.map_err(|error| error.in_file(&copy.path))?;
        }
        let (view, meta) = rows::load_status(&mut connection).await?;
        (copy.meta, copy.pin_count) = (meta, view.pin_count);
        connection.close().await.map_err(Error::sqlite(doing))?;
        Ok(copy)
    }
}

async fn read_meta(path: &std::path::Path) -> Result<(Meta, u64)> {
    let mut connection = sqlite::open_reader(path).await?;
    let (view, meta) = rows::load_status(&mut connection).await?;
    connection.close().await.map_err(Error::sqlite("read a copy of the state"))?;
    Ok((meta, view.pin_count))
}
