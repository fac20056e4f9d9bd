use std::sync::Arc;

use pinfold_proto::storage::{self, command};
use sqlx::Row as _;
use tempfile::TempDir;

use super::*;
use crate::store::record::{Payload, Proposal};

fn id(term: u64, index: u64) -> LogId {
    LogId { term, node: 1, index }
}

fn record(term: u64, index: u64, size: usize) -> Record {
    let setting = storage::Setting { key: index.to_string(), value: "x".repeat(size) };
    let command = storage::Command { command: Some(command::Command::Setting(setting)), ..Default::default() };
    Record { id: id(term, index), payload: Payload::Command(Arc::new(Proposal::new(command))) }
}

async fn open(folder: &TempDir, cache_bytes: usize) -> Log {
    Log::open_bounded(folder.path(), Failure::default(), cache_bytes).await.unwrap()
}

async fn append(log: &Log, term: u64, indexes: impl IntoIterator<Item = u64>) {
    let (done, written) = oneshot::channel();
    let records = indexes.into_iter().map(|index| record(term, index, 100)).collect();
    let done = Box::new(move |result| drop(done.send(result)));
    log.append(records, done).await.unwrap();
    written.await.unwrap().unwrap();
}

async fn ids(log: &Log, start: u64, end: u64) -> Vec<(u64, u64)> {
    let records = log.read(start, end, usize::MAX).await.unwrap();
    for record in &records {
        let Payload::Command(proposal) = &record.payload else { panic!("a command was written") };
        let Some(command::Command::Setting(setting)) = &proposal.command.command else { panic!("a setting was") };
        assert_eq!(setting.key, record.id.index.to_string());
    }
    records.into_iter().map(|record| (record.id.term, record.id.index)).collect()
}

/// Goal: an entry counts as logged when it is on disk, or when that it was purged is, not before.
#[tokio::test]
async fn unlogged_is_what_is_not_on_disk() {
    let folder = TempDir::new().unwrap();
    let log = open(&folder, usize::MAX).await;
    assert_eq!(log.unlogged(4), 5);
    append(&log, 1, 0..3).await;
    assert_eq!((log.unlogged(1), log.unlogged(2), log.unlogged(4)), (0, 0, 2));
    let (done, written) = oneshot::channel();
    log.append(vec![record(1, 3, 100)], Box::new(move |result| drop(done.send(result)))).await.unwrap();
    // The writer is a task of this thread, and had no turn since.
    assert_eq!(log.unlogged(3), 1, "queued only");
    written.await.unwrap().unwrap();
    assert_eq!(log.unlogged(3), 0);
    log.truncate_after(Some(id(1, 1))).await.unwrap();
    assert_eq!(log.unlogged(3), 2);
    log.purge(id(1, 9)).await.unwrap();
    assert_eq!((log.unlogged(9), log.unlogged(10)), (0, 1));
    drop(log);
    assert_eq!(open(&folder, usize::MAX).await.unlogged(10), 1);
}

/// Goal: what a start finds in the write-ahead log, which an earlier error of the disk may have left in the kernel's memory
/// alone, is written anew before anybody hears of it.
#[tokio::test]
async fn a_start_writes_anew_what_it_finds() {
    let copy = |from: &TempDir, files: &[&str]| {
        let to = TempDir::new().unwrap();
        for file in files {
            std::fs::copy(from.path().join(file), to.path().join(file)).unwrap();
        }
        to
    };
    let folder = TempDir::new().unwrap();
    let log = open(&folder, usize::MAX).await;
    append(&log, 1, 0..3).await;
    assert_eq!(open(&copy(&folder, &["log.db"]), usize::MAX).await.status().last, None, "it is in the write-ahead log");
    let crashed = copy(&folder, &["log.db", "log.db-wal"]);
    let started = open(&crashed, usize::MAX).await;
    let last = started.status().last;
    assert_eq!(last, Some(id(1, 2)));
    assert_eq!(open(&copy(&crashed, &["log.db"]), usize::MAX).await.status().last, last);
}

/// Goal: what was answered is there after a crash, in every combination of writes.
#[tokio::test]
async fn everything_answered_survives() {
    let folder = TempDir::new().unwrap();
    for cache_bytes in [usize::MAX, 0] {
        let log = open(&folder, cache_bytes).await;
        let status = log.status();
        if status.last.is_none() {
            append(&log, 1, 0..10).await;
            append(&log, 1, 10..20).await;
            log.truncate_after(Some(id(1, 14))).await.unwrap();
            append(&log, 2, 15..18).await;
            log.save_vote(Vote { term: 3, node: 7, committed: false }).await.unwrap();
            log.save_starts(2, 7).await.unwrap();
            log.purge(id(1, 3)).await.unwrap();
            log.save_committed(Some(id(2, 16)));
            append(&log, 2, 18..=18).await;
        }
        // Dropped without closing, as by kill -9.
        drop(log);
        let log = open(&folder, cache_bytes).await;
        assert_eq!(log.status(), LogStatus { purged: Some(id(1, 3)), last: Some(id(2, 18)) });
        assert_eq!(log.vote(), Some(Vote { term: 3, node: 7, committed: false }));
        assert_eq!((log.starts(), log.node()), (2, Some(7)));
        assert_eq!(log.committed(), Some(id(2, 16)));
        let expected: Vec<(u64, u64)> =
            (4..15).map(|index| (1, index)).chain((15..19).map(|index| (2, index))).collect();
        assert_eq!(ids(&log, 0, 100).await, expected);
    }
}

/// Goal: a commit index that the log does not reach is not believed after a crash.
#[tokio::test]
async fn a_commit_index_beyond_the_log_is_not_kept() {
    let folder = TempDir::new().unwrap();
    let log = open(&folder, usize::MAX).await;
    append(&log, 1, 0..3).await;
    log.save_committed(Some(id(1, 9)));
    append(&log, 1, 3..4).await;
    drop(log);
    assert_eq!(open(&folder, usize::MAX).await.committed(), None);
}

/// Goal: with hardly a cache the file answers, and nothing is missing or doubled where the two meet.
#[tokio::test]
async fn entries_outside_the_cache_are_read_from_the_file() {
    let folder = TempDir::new().unwrap();
    let log = open(&folder, 2000).await;
    for start in (0..300).step_by(3) {
        append(&log, 1, start..start + 3).await;
    }
    assert!(log.0.cache.lock().first() > 290, "the cache is bounded");
    for (start, end) in [(0, 300), (17, 19), (100, 299), (297, 300), (299, 400), (300, 301)] {
        let expected: Vec<(u64, u64)> = (start..end.min(300)).map(|index| (1, index)).collect();
        assert_eq!(ids(&log, start, end).await, expected, "{start}..{end}");
    }
    let some = log.read(10, 300, 500).await.unwrap();
    assert!(!some.is_empty() && some.len() < 6 && some[0].id.index == 10, "bounded by bytes");
    assert_eq!(log.read(10, 300, 1).await.unwrap().len(), 1, "at least one");
    log.purge(id(1, 150)).await.unwrap();
    assert_eq!(ids(&log, 0, 300).await.len(), 149);
}

/// Goal: a snapshot from the leader lies beyond the log; the log starts anew after it.
#[tokio::test]
async fn a_purge_beyond_the_end_empties_the_log() {
    let folder = TempDir::new().unwrap();
    let log = open(&folder, usize::MAX).await;
    append(&log, 1, 0..5).await;
    log.purge(id(4, 100)).await.unwrap();
    assert_eq!(log.status(), LogStatus { purged: Some(id(4, 100)), last: Some(id(4, 100)) });
    assert!(log.append(vec![record(4, 102, 1)], Box::new(|_| ())).await.is_err(), "a hole is refused");
    append(&log, 4, 101..103).await;
    drop(log);
    let log = open(&folder, usize::MAX).await;
    assert_eq!(log.status(), LogStatus { purged: Some(id(4, 100)), last: Some(id(4, 102)) });
    assert_eq!(ids(&log, 0, 200).await, vec![(4, 101), (4, 102)]);
}

/// Goal: concurrent appends share transactions, and so fsyncs: the rows are fewer than the appends.
#[tokio::test]
async fn appends_are_committed_in_groups() {
    let folder = TempDir::new().unwrap();
    let log = open(&folder, usize::MAX).await;
    let mut waiting = Vec::new();
    for index in 0..500 {
        let (done, written) = oneshot::channel();
        let done = Box::new(move |result| drop(done.send(result)));
        log.append(vec![record(1, index, 10)], done).await.unwrap();
        waiting.push(written);
    }
    for written in waiting {
        written.await.unwrap().unwrap();
    }
    let row = sqlx::query("SELECT count(*) FROM groups")
        .fetch_one(&mut *log.0.readers.acquire().await.unwrap())
        .await
        .unwrap();
    let groups: i64 = row.get(0);
    assert!(groups < 250, "{groups} rows for 500 appends");
    assert_eq!(ids(&log, 0, 1000).await.len(), 500);
    log.close().await;
    log.close().await;
    assert!(log.save_vote(Vote { term: 1, node: 1, committed: true }).await.is_err(), "closed");
}
