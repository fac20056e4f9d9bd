//! Connections that only read a file. A pool of sqlx asks each connection whether it lives when it comes back, which is
//! a hand-over to its thread and a task for it; a file does not go away like a server.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Error, Result};
use super::sqlite;

/// For a reader that finds every connection taken.
const DEADLINE: Duration = Duration::from_secs(10);

/// Opened as they are needed. Clones share them.
#[derive(Clone)]
pub struct Readers(Arc<Shared>);

struct Shared {
    path: PathBuf,
    idle: Mutex<Vec<SqliteConnection>>,
    places: Arc<Semaphore>,
}

/// One of them, until it is dropped. A query that was broken off leaves it as good as it was.
pub struct Reader {
    /// There until the drop.
    connection: Option<SqliteConnection>,
    readers: Readers,
    _place: OwnedSemaphorePermit,
}

impl Readers {
    pub fn new(path: &Path, most: usize) -> Readers {
        let places = Arc::new(Semaphore::new(most));
        Readers(Arc::new(Shared { path: path.to_owned(), idle: Mutex::default(), places }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    pub async fn acquire(&self) -> Result<Reader> {
        let place = tokio::time::timeout(DEADLINE, self.0.places.clone().acquire_owned()).await;
        let place = match place {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(Error::Closed),
            Err(_) => return Err(Error::sqlite("wait for a connection that reads")(sqlx::Error::PoolTimedOut)),
        };
        let idle = self.0.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => sqlite::open_reader(&self.0.path).await?,
        };
        Ok(Reader { connection: Some(connection), readers: self.clone(), _place: place })
    }

    /// Nobody gets one any more; those that are taken are closed when they come back.
    pub async fn close(&self) {
        self.0.places.close();
        let idle = std::mem::take(&mut *self.0.idle.lock());
        for connection in idle {
            if let Err(error) = connection.close().await {
                tracing::debug!(%error, "close a connection that reads");
            }
        }
    }
}

impl Deref for Reader {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.connection.as_ref().expect("there until the drop")
    }
}

impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.connection.as_mut().expect("there until the drop")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut idle = self.readers.0.idle.lock();
        if !self.readers.0.places.is_closed() {
            idle.extend(self.connection.take());
        }
    }
}
