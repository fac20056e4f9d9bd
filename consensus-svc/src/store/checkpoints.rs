//! When the write-ahead log of a file is moved to it. SQLite would do it within a commit, and keep an error of the disk to
//! itself; here it happens between transactions, and an error of it is final as that of a commit is.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection as _, Row as _};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::{Error, Failure, Result};
use super::sqlite::{LOG_PAGE_BYTES, STATE_PAGE_BYTES, open_mover, sync_wal};

/// Pages in the write-ahead log before they are moved. Those of the log are written once or twice, and what is proposed
/// meanwhile waits for all of them.
pub const LOG_PAGES: u64 = 1024;
/// CIDs are random, and so are the pages of their index: the more of them wait, the more often one that is written again
/// is moved once.
pub const STATE_WAL_BYTES: u64 = 128 << 20;
/// So many times the usual may wait while they are moved beside the writer, which waits then.
const AT_MOST: u64 = 2;
/// What is left of the usual is moved by the writer itself: only with nothing left does the write-ahead log begin anew.
const SMALL_SHARE: u64 = 256;
/// In a database so many times as large as its write-ahead log may be, nearly every page that waits is another one, so that
/// nothing is won by waiting; and to sync all of them, here and there in a large file, holds up whoever syncs another one for
/// a second. They are moved as soon as so many wait, but no more often than this: each time takes a connection.
const LARGE: u64 = 4;
const STEP_PAGES: u64 = 512;
const STEP_INTERVAL: Duration = Duration::from_millis(100);
/// The disk gets what is written beside it in small portions, by pages as estimated and by time: whoever syncs another
/// file meanwhile, as the log does, waits for no more than one of them.
const SYNC_PAGES: u64 = 1024;
const SYNC_INTERVAL: Duration = Duration::from_millis(5);

/// Moves a writer's write-ahead log to its file in time.
pub struct Checkpoints {
    /// Pages that wait to be moved, and those written since the write-ahead log could begin anew, estimated, rather too many
    /// than too few.
    waiting: u64,
    since_anew: u64,
    /// It shall begin anew at so many.
    most: u64,
    /// What the last move left, because somebody still reads what was before it.
    left: u64,
    /// So many more are moved.
    step: u64,
    beside: Option<Beside>,
}

/// Moving by another connection, while the writer goes on: it takes two waits for the disk, and long ones.
struct Beside {
    path: PathBuf,
    failure: Failure,
    /// A file above that is large.
    large_bytes: u64,
    /// When the last move began.
    begun: Option<Instant>,
    /// The database, to sync what was moved to it, which SQLite does with the last page only. Closing it drops SQLite's
    /// locks: it stays open as long as the writer's connection.
    file: Arc<File>,
    running: Option<JoinHandle<Result<Moved>>>,
    /// Pages of the write-ahead log that were not given to the disk, estimated.
    unsynced: u64,
    syncing: Option<JoinHandle<()>>,
}

/// What moving beside the writer came to, in pages: those that waited when it began, and those it left of them.
struct Moved {
    before: u64,
    left: u64,
}

impl Checkpoints {
    /// By the writer itself, at so many pages. What a file that was not closed has waiting is unknown: the first commit looks.
    pub fn at(most: u64) -> Checkpoints {
        Checkpoints { waiting: most, since_anew: most, most, left: 0, step: most, beside: None }
    }

    /// Beside the writer of `path`, as long as that keeps up with it. To be dropped after the writer's connection.
    pub fn beside(path: &Path, failure: &Failure, most_bytes: u64) -> Result<Checkpoints> {
        let file = File::open(path).map(Arc::new).map_err(Error::io("open a database to sync it"))?;
        let most = most_bytes / page_bytes(&file);
        let (path, failure) = (path.to_owned(), failure.clone());
        let large_bytes = LARGE * most_bytes;
        let beside =
            Beside { path, failure, large_bytes, begun: None, file, running: None, unsynced: 0, syncing: None };
        Ok(Checkpoints { beside: Some(beside), ..Checkpoints::at(most) })
    }

    /// How much was written is not known.
    pub fn look_next(&mut self) {
        (self.waiting, self.since_anew) = (self.most, self.most);
    }

    /// `rows` were written, with `bytes` in them that do not fit into one page.
    pub fn wrote(&mut self, rows: usize, bytes: usize) {
        /// A leaf of the table and one of each of two indexes.
        const PAGES_OF_A_ROW: usize = 3;
        let pages = (rows * PAGES_OF_A_ROW + bytes / LOG_PAGE_BYTES as usize) as u64;
        self.waiting = self.waiting.saturating_add(pages);
        self.since_anew = self.since_anew.saturating_add(pages);
        if let Some(beside) = &mut self.beside {
            beside.unsynced = beside.unsynced.saturating_add(pages);
        }
    }

    /// Outside of a transaction of `connection`, the writer's.
    pub async fn keep_up(&mut self, connection: &mut SqliteConnection) -> Result<()> {
        if let Some(beside) = &mut self.beside {
            beside.sync_in_time();
        }
        if self.is_moving() && self.since_anew < AT_MOST * self.most {
            return Ok(());
        }
        let moved = self.moved().await?;
        if moved.is_none() && !self.is_step() && !self.is_full() {
            return Ok(());
        }
        let pages = look(connection).await?;
        self.waiting = pages.waiting;
        self.since_anew = self.since_anew.min(pages.all);
        self.step = self.beside.as_ref().map_or(Ok(self.most), |beside| beside.step(self.most))?;
        // Until it can begin anew, as long as what comes meanwhile gets less; then the writer moves the rest.
        let is_much =
            self.waiting >= self.most / SMALL_SHARE && moved.is_none_or(|moved| self.waiting < moved.before / 2);
        let (is_full, is_step) = (self.is_full(), self.is_step());
        match &mut self.beside {
            Some(beside) if is_full && is_much || !is_full && is_step => beside.begin(self.waiting),
            Some(_) | None if is_full => {
                self.waiting = move_by(connection).await?.waiting;
                (self.left, self.since_anew) = (self.waiting, 0);
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    /// Whether it is time for the write-ahead log to begin anew.
    fn is_full(&self) -> bool {
        self.since_anew >= self.most
    }

    fn is_step(&self) -> bool {
        let begun = self.beside.as_ref().and_then(|beside| beside.begun);
        self.waiting >= self.left.saturating_add(self.step) && begun.is_none_or(|at| at.elapsed() >= STEP_INTERVAL)
    }

    fn is_moving(&self) -> bool {
        let running = self.beside.as_ref().and_then(|beside| beside.running.as_ref());
        running.is_some_and(|running| !running.is_finished())
    }

    /// Waits until nobody works at the file beside the writer any more.
    pub async fn settle(&mut self) -> Result<()> {
        self.moved().await?;
        let Some(syncing) = self.beside.as_mut().and_then(|beside| beside.syncing.take()) else { return Ok(()) };
        syncing.await.map_err(|_| Error::Closed)
    }

    /// Waits until nothing is moved beside the writer any more; `None`: nothing was.
    async fn moved(&mut self) -> Result<Option<Moved>> {
        let Some(running) = self.beside.as_mut().and_then(|beside| beside.running.take()) else { return Ok(None) };
        let moved = running.await.map_err(|_| Error::Closed)??;
        self.left = moved.left;
        Ok(Some(moved))
    }
}

impl Beside {
    /// Begins to move the pages that wait, `before` of them.
    fn begin(&mut self, before: u64) {
        self.begun = Some(Instant::now());
        let (path, file, failure) = (self.path.clone(), self.file.clone(), self.failure.clone());
        self.running = Some(tokio::spawn(async move {
            let moved = move_all(&path, &file).await.map_err(|error| error.in_file(&path));
            // The writer may have nothing to write for long.
            moved.inspect_err(|error| failure.set(error)).map(|left| Moved { before, left })
        }));
    }

    /// How many pages are moved at a time.
    fn step(&self, most: u64) -> Result<u64> {
        let bytes = self.file.metadata().map_err(Error::io("look at the size of a database"))?.len();
        Ok(if bytes > self.large_bytes { STEP_PAGES.min(most) } else { most })
    }

    /// Gives the write-ahead log to the disk when enough of it waits, one portion at a time.
    fn sync_in_time(&mut self) {
        let is_syncing = self.syncing.as_ref().is_some_and(|syncing| !syncing.is_finished());
        if self.unsynced < SYNC_PAGES || is_syncing {
            return;
        }
        self.unsynced = 0;
        let (path, failure) = (self.path.clone(), self.failure.clone());
        self.syncing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = sync_wal(&path) {
                failure.set(&error.in_file(&path));
            }
        }));
    }
}

/// Of a state, which keeps what it was created with; one that has no page yet gets ours.
fn page_bytes(file: &File) -> u64 {
    let mut header = [0; 2];
    match file.read_exact_at(&mut header, 16).map(|()| u16::from_be_bytes(header)) {
        // SQLite's way of writing 65,536.
        Ok(1) => 1 << 16,
        Ok(bytes) if bytes.is_power_of_two() => u64::from(bytes),
        // What is wrong with that page is for SQLite to say, which reads it before anything else.
        Ok(_) | Err(_) => u64::from(STATE_PAGE_BYTES),
    }
}

/// Moves what there is, and gives it to the disk portion by portion; how many pages are left of it.
async fn move_all(path: &Path, file: &Arc<File>) -> Result<u64> {
    let mut connection = open_mover(path).await?;
    let moved = {
        let mut moving = pin!(move_by(&mut connection));
        loop {
            match timeout(SYNC_INTERVAL, &mut moving).await {
                Ok(moved) => break moved,
                Err(_) => sync(file).await?,
            }
        }
    };
    connection.close().await.map_err(Error::sqlite("close a database"))?;
    let left = moved?.waiting;
    sync(file).await?;
    Ok(left)
}

async fn sync(file: &Arc<File>) -> Result<()> {
    let file = file.clone();
    let synced = tokio::task::spawn_blocking(move || file.sync_data()).await.map_err(|_| Error::Closed)?;
    synced.map_err(Error::io("sync a database"))
}

/// Of a write-ahead log: its pages, and those that are not in the file.
struct Pages {
    all: u64,
    waiting: u64,
}

async fn look(connection: &mut SqliteConnection) -> Result<Pages> {
    pages_after(connection, "PRAGMA wal_checkpoint(NOOP)").await
}

/// The same after they were moved. Those that a reader still needs wait.
async fn move_by(connection: &mut SqliteConnection) -> Result<Pages> {
    pages_after(connection, "PRAGMA wal_checkpoint(PASSIVE)").await
}

async fn pages_after(connection: &mut SqliteConnection, pragma: &'static str) -> Result<Pages> {
    let row = sqlx::query(pragma).fetch_one(connection).await.map_err(Error::sqlite("move the write-ahead log"))?;
    let (all, moved): (i64, i64) = (row.get(1), row.get(2));
    Ok(Pages { all: all.max(0) as u64, waiting: all.saturating_sub(moved).max(0) as u64 })
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions as _;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;
    use crate::store::sqlite::{Purpose, open_writer};

    const MOST: u64 = 64;
    const PAGE_BYTES: u64 = STATE_PAGE_BYTES as u64;

    async fn database(path: &Path) -> SqliteConnection {
        let mut connection = open_writer(path, Purpose::State).await.unwrap();
        sqlx::raw_sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)").execute(&mut connection).await.unwrap();
        connection
    }

    async fn write(connection: &mut SqliteConnection, checkpoints: &mut Checkpoints) {
        sqlx::query("INSERT INTO t (v) VALUES (zeroblob(1900))").execute(connection).await.unwrap();
        checkpoints.wrote(1, 0);
    }

    /// Goal: a write-ahead log that is moved while its writer goes on begins anew all the same, and everything is there.
    #[tokio::test(flavor = "multi_thread")]
    async fn moved_beside_the_writer() {
        const ROWS: u64 = 5000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        let mut connection = database(&path).await;
        let mut checkpoints = Checkpoints::beside(&path, &Failure::default(), MOST * PAGE_BYTES).unwrap();
        let mut moved = 0;
        for _ in 0..ROWS {
            write(&mut connection, &mut checkpoints).await;
            checkpoints.keep_up(&mut connection).await.unwrap();
            moved += u64::from(checkpoints.is_moving());
        }
        assert!(moved > 0);
        checkpoints.settle().await.unwrap();
        let size = std::fs::metadata(folder.path().join("t.db-wal")).unwrap().len();
        assert!(size < 4 * AT_MOST * MOST * PAGE_BYTES, "{size} bytes of a write-ahead log");
        connection.close().await.unwrap();
        let mut connection = open_mover(&path).await.unwrap();
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut connection).await.unwrap();
        assert_eq!(rows as u64, ROWS);
    }

    /// Goal: a large database gets its pages in small portions, long before its write-ahead log has to begin anew.
    #[tokio::test(flavor = "multi_thread")]
    async fn large_files_are_moved_in_steps() {
        const MOST: u64 = 8 * STEP_PAGES;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        let mut connection = database(&path).await;
        for is_large in [false, true] {
            let mut checkpoints = Checkpoints::beside(&path, &Failure::default(), MOST * PAGE_BYTES).unwrap();
            for _ in 0..MOST / 4 {
                write(&mut connection, &mut checkpoints).await;
                checkpoints.keep_up(&mut connection).await.unwrap();
            }
            // The pages that came while the last step was taken are the next one.
            checkpoints.settle().await.unwrap();
            tokio::time::sleep(2 * STEP_INTERVAL).await;
            write(&mut connection, &mut checkpoints).await;
            checkpoints.keep_up(&mut connection).await.unwrap();
            checkpoints.settle().await.unwrap();
            let waiting = look(&mut connection).await.unwrap().waiting;
            let expected = if is_large { 0..STEP_PAGES } else { MOST / 4..MOST };
            assert!(expected.contains(&waiting), "{waiting} pages wait, large: {is_large}");
            for _ in 0..LARGE * MOST {
                write(&mut connection, &mut checkpoints).await;
            }
            move_by(&mut connection).await.unwrap();
        }
    }

    /// Goal: the bound in bytes is one in pages of the size that the file has, whoever created it.
    #[tokio::test]
    async fn pages_are_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [512_u32, 4096, 65_536] {
            let path = folder.path().join(format!("{bytes}.db"));
            let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true).page_size(bytes);
            let mut connection = options.connect().await.unwrap();
            sqlx::raw_sql("CREATE TABLE t (v BLOB)").execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            assert_eq!(page_bytes(&File::open(&path).unwrap()), u64::from(bytes));
        }
        let empty = folder.path().join("empty.db");
        std::fs::write(&empty, "").unwrap();
        assert_eq!(page_bytes(&File::open(&empty).unwrap()), PAGE_BYTES);
    }

    /// Goal: what fails beside the writer is told at once, though the writer writes nothing more, and to the writer too.
    #[tokio::test(flavor = "multi_thread")]
    async fn failures_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut connection = database(&folder.path().join("t.db")).await;
        let gone = folder.path().join("gone.db");
        std::fs::write(&gone, "").unwrap();
        let failure = Failure::default();
        let mut checkpoints = Checkpoints::beside(&gone, &failure, MOST * PAGE_BYTES).unwrap();
        std::fs::remove_file(&gone).unwrap();
        for _ in 0..2 * MOST {
            write(&mut connection, &mut checkpoints).await;
        }
        checkpoints.keep_up(&mut connection).await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(60), failure.happened()).await.unwrap();
        assert!(told.to_string().contains("gone.db"), "{told}");
        assert!(checkpoints.settle().await.is_err());
    }
}
