//! Somebody else at the files of a peer that works: another process reads its databases and moves their write-ahead logs
//! (fault:D13). SQLite before 3.51.3 lost committed pages to two that did this at once.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pinfold_common::tls::ClusterSecret;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use crate::extent::extent;
use crate::report::Report;
use crate::solo::{Pinned, Solo};

const SELECTION: Duration = Duration::from_secs(10);
const ALL: Duration = Duration::from_secs(600);
const CLIENTS: usize = 4;
/// Between two requests of a client, so that ten minutes of them can be remembered.
const PAUSE: Duration = Duration::from_millis(4);
/// Each with a table to read.
const FILES: [(&str, &str); 2] = [("log.db", "SELECT count(*) FROM groups"), ("state.db", "SELECT count(*) FROM pins")];

async fn open(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(1));
    options.disable_statement_logging().connect().await.expect("a database")
}

/// Moves the write-ahead log whole, and begins it anew, as often as it can; counts how often there was something to move.
async fn checkpoint(path: &Path, moved: &AtomicUsize) {
    let mut connection = open(path).await;
    for number in 0_usize.. {
        let pragma =
            if number.is_multiple_of(2) { "PRAGMA wal_checkpoint(RESTART)" } else { "PRAGMA wal_checkpoint(TRUNCATE)" };
        let row = sqlx::query(pragma).fetch_one(&mut connection).await.expect("a checkpoint");
        let (busy, frames): (i64, i64) = (row.get(0), row.get(1));
        moved.fetch_add(usize::from(busy == 0 && frames > 0), Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read(path: &Path, question: &'static str) {
    let mut connection = open(path).await;
    loop {
        sqlx::query(question).fetch_one(&mut connection).await.expect("an answer");
    }
}

async fn client(peer: &Solo, label: String, pinned: &Mutex<Pinned>) {
    for number in 0.. {
        assert!(peer.pin(&label, number, pinned).await, "{}", peer.words());
        tokio::time::sleep(PAUSE).await;
    }
}

/// Goal: nothing is refused meanwhile, nothing is lost, and both files are whole afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn fault_d13_another_process_at_the_files() {
    let mut report = Report::new("fault:D13 another process reads and checkpoints, one peer");
    let folder = tempfile::Builder::new().prefix("pinfold-second-").tempdir().expect("a temporary folder");
    let peer = Solo::prepare(&folder.path().join("peer"), &ClusterSecret::generate());
    let running = peer.start(None, None);
    peer.ready().await;
    let pinned = Mutex::default();
    let moved = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let raft = peer.folder.join("raft");
    let paths = FILES.map(|(name, _)| raft.join(name));
    let strangers = async {
        tokio::join!(
            checkpoint(&paths[0], &moved[0]),
            checkpoint(&paths[1], &moved[1]),
            read(&paths[0], FILES[0].1),
            read(&paths[1], FILES[1].1),
        )
    };
    let clients =
        futures::future::join_all((0..CLIENTS).map(|number| client(&peer, format!("client {number}"), &pinned)));
    let work = async { tokio::join!(strangers, clients) };
    tokio::time::timeout(extent().choose(SELECTION, ALL), work).await.expect_err("neither ends by itself");
    for ((name, _), moved) in FILES.iter().zip(&moved) {
        let moved = moved.load(Ordering::Relaxed);
        assert!(moved > 10, "{name}: only {moved} checkpoints had something to move");
        report.note(format!("{name}: {moved} checkpoints"));
    }
    report.fault("another process");
    // A request that was cut off is of unknown outcome: it was asked for.
    peer.verify("beside another process", &pinned).await;
    running.stop().await;
    for path in &paths {
        let mut connection = open(path).await;
        let row = sqlx::query("PRAGMA integrity_check").fetch_one(&mut connection).await.expect("a verdict");
        assert_eq!(row.get::<String, _>(0), "ok", "{}", path.display());
        connection.close().await.expect("it ends");
    }
    let running = peer.start(None, None);
    peer.verify("after it", &pinned).await;
    running.kill().await;
    pinned.into_inner().unwrap().count(&mut report);
    report.finish();
}
