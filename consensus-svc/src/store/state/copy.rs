//! Copies of the state as files: made for a peer that needs one, and received from a leader.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use ring::digest::{Context as Digest, SHA256, SHA256_OUTPUT_LEN};
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

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
const SYNCED_TOGETHER_BYTES: u64 = 8 << 20;
/// Pieces that wait to be written.
const PIECES: usize = 16;

/// A copy that is being received. Removed when dropped before it is a [`Copy`].
///
/// Pieces are summed and written by a thread of their own: what else this service does, consensus first, does not wait.
pub struct Incoming {
    file: Temporary,
    pieces: mpsc::Sender<Bytes>,
    writing: JoinHandle<std::io::Result<[u8; SHA256_OUTPUT_LEN]>>,
    size_bytes: u64,
}

/// A copy that was received and is on disk.
pub struct Received {
    file: Temporary,
    pub size_bytes: u64,
    pub sha256: [u8; SHA256_OUTPUT_LEN],
}

/// A file that is removed when dropped.
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            files::remove(path);
        }
    }
}

/// Until no more pieces come.
fn write_pieces(mut file: File, mut pieces: mpsc::Receiver<Bytes>) -> std::io::Result<[u8; SHA256_OUTPUT_LEN]> {
    let mut digest = Digest::new(&SHA256);
    let mut unsynced_bytes = 0;
    while let Some(data) = pieces.blocking_recv() {
        digest.update(&data);
        file.write_all(&data)?;
        unsynced_bytes += data.len() as u64;
        if unsynced_bytes >= SYNCED_TOGETHER_BYTES {
            file.sync_data()?;
            unsynced_bytes = 0;
        }
    }
    file.sync_all()?;
    let mut sha256 = [0; SHA256_OUTPUT_LEN];
    sha256.copy_from_slice(digest.finish().as_ref());
    Ok(sha256)
}

impl State {
    /// Copies the state while writes go on; takes a second or so per million pins. The copy is not forced to disk: what is
    /// acknowledged meanwhile would wait for it, and a copy that a crash leaves behind is removed at the next start.
    pub async fn copy(&self) -> Result<Copy> {
        let doing = "copy the state";
        let path = files::snapshot(&self.shared.folder, "outgoing")?;
        let mut copy = Copy { path, meta: Meta::default(), pin_count: 0, size_bytes: 0, is_verified: false };
        let mut connection = sqlite::open_copier(&self.generation().path).await?;
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
        let file = File::create(&path).map_err(Error::io(RECEIVING))?;
        let (pieces, coming) = mpsc::channel(PIECES);
        let writing = tokio::task::spawn_blocking(move || write_pieces(file, coming));
        Ok(Incoming { file: Temporary(Some(path)), pieces, writing, size_bytes: 0 })
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

const RECEIVING: &str = "receive a snapshot";

impl Incoming {
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        self.size_bytes += data.len() as u64;
        if self.pieces.send(data).await.is_ok() {
            return Ok(());
        }
        // The thread has ended, and says why.
        match (&mut self.writing).await {
            Ok(Err(error)) => Err(Error::io(RECEIVING)(error)),
            Ok(Ok(_)) | Err(_) => Err(Error::Closed),
        }
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Forces the rest to disk.
    pub async fn end(self) -> Result<Received> {
        let Incoming { file, pieces, writing, size_bytes } = self;
        drop(pieces);
        let sha256 = writing.await.map_err(|_| Error::Closed)?.map_err(Error::io(RECEIVING))?;
        Ok(Received { file, size_bytes, sha256 })
    }
}

impl Received {
    /// Checks that it is a whole database of our format. An error says that the copy is no good; the state is as it was.
    /// `keeps` is what the copy is to replace: with nothing in it there is nothing to lose, and a large copy is verified
    /// once it serves, like a large state that was only restarted.
    pub async fn check(mut self, keeps: Keeps) -> Result<Copy> {
        let doing = "check a received snapshot";
        let path = self.file.0.take().ok_or(Error::Closed)?;
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
