use pinfold_proto::types::{self, Reason};

use super::*;
use crate::tracker::operation::{self, Class, Outcome, Ownership};

const OWN: &[u8] = b"own";

fn policy() -> Policy {
    Policy {
        priority_max_age_ms: 86_400_000,
        priority_max_retries: 5,
        first_backoff_ms: 1_000,
        last_backoff_ms: 60_000,
        max_attempts: 0,
        max_queued_pins: 1_000_000,
    }
}

fn order(cid: &[u8], revision: u64, peer: &[u8]) -> Change {
    Change::Put(Order::of(&pin(cid, revision, peer), OWN))
}

/// Of a pin that was made now.
fn young(cid: &[u8], revision: u64) -> Change {
    let timestamp = Some(types::Time { seconds: now_ms() / 1000, nanos: 0 });
    Change::Put(Order::of(&types::Pin { timestamp, ..pin(cid, revision, OWN) }, OWN))
}

fn pin(cid: &[u8], revision: u64, peer: &[u8]) -> types::Pin {
    types::Pin {
        cid: cid.to_vec(),
        r#type: types::PinType::Data as i32,
        max_depth: -1,
        allocations: vec![peer.to_vec()],
        revision,
        ..Default::default()
    }
}

fn cursor(index: u64) -> Cursor {
    Cursor { cluster_id: vec![1], lineage: 1, index }
}

async fn only(store: &Store, cid: &[u8]) -> Option<Item> {
    store.get(&[cid.to_vec()]).await.unwrap().remove(cid)
}

/// Goal: rows and cursor move together and are there after a restart, the queue with them.
#[tokio::test]
async fn restart_resumes_queue_and_cursor() {
    let folder = tempfile::tempdir().unwrap();
    {
        let store = Store::open(folder.path(), policy()).await.unwrap();
        assert!(store.cursor().is_none());
        assert_eq!(store.rebuilt_index(), i64::MAX as u64);
        let changes = (0..100_u8).map(|n| order(&[n], u64::from(n) + 1, OWN)).collect();
        store.follow(changes, Some(cursor(100)), Source::Log).await.unwrap();
        store.rebuilt_up_to(100).await.unwrap();
        store.close().await;
    }
    let store = Store::open(folder.path(), policy()).await.unwrap();
    assert_eq!(store.cursor(), Some(cursor(100)));
    assert_eq!(*store.position().borrow(), 100);
    assert_eq!(store.rebuilt_index(), 100);
    assert_eq!(store.counts().of(TrackerStatus::PinQueued), 100);
    let due = store.due(Lane::Repin, i64::MAX, (i64::MIN, 0), 1000).await.unwrap();
    assert_eq!(due.len(), 100);
    let rest = store.due(Lane::Repin, i64::MAX, (due[9].next_try_ms.unwrap(), due[9].id), 1000).await.unwrap();
    assert_eq!(rest, due[10..]);
}

/// Goal: the end of an attempt counts only for the order it was made for.
#[tokio::test]
async fn stale_completion_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    store.follow(vec![order(b"a", 1, OWN)], Some(cursor(1)), Source::Log).await.unwrap();
    let before = only(&store, b"a").await.unwrap();
    let touched = store.follow(vec![order(b"a", 2, OWN)], Some(cursor(2)), Source::Log).await.unwrap();
    assert_eq!((touched[0].revision, touched[0].todo), (2, Todo::Pin));
    let pinned = operation::after(&before, Outcome::Pinned, &store.rules(), 0.5);
    assert_eq!(store.settle(vec![Settlement::of(&before, pinned)]).await.unwrap(), [false]);
    let claimed = operation::after(&before, Outcome::Claim(Ownership::Claimed), &store.rules(), 0.5);
    assert_eq!(store.settle(vec![Settlement::claim(&before, claimed)]).await.unwrap(), [false]);
    let item = only(&store, b"a").await.unwrap();
    assert_eq!((item.status, item.ownership), (TrackerStatus::PinQueued, Ownership::Unknown));

    let before = only(&store, b"a").await.unwrap();
    let claimed = operation::after(&before, Outcome::Claim(Ownership::Claimed), &store.rules(), 0.5);
    assert_eq!(store.settle(vec![Settlement::claim(&before, claimed.clone())]).await.unwrap(), [true]);
    assert_eq!(only(&store, b"a").await.unwrap(), claimed);
    let pinned = operation::after(&claimed, Outcome::Pinned, &store.rules(), 0.5);
    assert_eq!(store.settle(vec![Settlement::of(&claimed, pinned)]).await.unwrap(), [true]);
    let item = only(&store, b"a").await.unwrap();
    assert_eq!((item.status, item.ownership), (TrackerStatus::Pinned, Ownership::Claimed));
    assert_eq!(store.counts().of(TrackerStatus::Pinned), 1);
    assert_eq!(store.counts().of(TrackerStatus::PinQueued), 0);
}

/// Goal: a batch is folded in order, what is older than its row is skipped, and rows without purpose go.
#[tokio::test]
async fn batches_are_folded() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    let removed = |cid: &[u8], index| Change::Removed { cid: cid.to_vec(), index };
    let changes = vec![
        order(b"a", 1, OWN),
        removed(b"a", 2),
        order(b"a", 3, OWN),
        order(b"b", 4, OWN),
        removed(b"b", 5),
        order(b"c", 6, b"other"),
    ];
    let touched = store.follow(changes, Some(cursor(6)), Source::Log).await.unwrap();
    assert!(touched.is_empty(), "nothing was there before: {touched:?}");
    assert_eq!(only(&store, b"a").await.unwrap().revision, 3);
    assert!(only(&store, b"b").await.is_none());
    assert_eq!(only(&store, b"c").await.unwrap().class, Class::Remote);
    store.follow(vec![removed(b"a", 2), order(b"c", 5, OWN)], None, Source::Log).await.unwrap();
    assert_eq!(only(&store, b"a").await.unwrap().revision, 3);
    assert_eq!(only(&store, b"c").await.unwrap().class, Class::Remote);
    store.follow(vec![removed(b"c", 7)], None, Source::Log).await.unwrap();
    assert!(only(&store, b"c").await.is_none());
    assert_eq!(store.counts().of(TrackerStatus::Remote), 0);
}

/// Goal: a sweep treats as removed exactly what is in its range and not kept, in chunks, and the end frees or holds.
#[tokio::test]
async fn sweep_and_hold() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    let total = 2 * SWEEP_CHUNK + 10;
    let cid = |n: usize| (n as u32).to_be_bytes().to_vec();
    let changes = (0..total).map(|n| order(&cid(n), 1, OWN)).collect();
    store.follow(changes, Some(cursor(1)), Source::Log).await.unwrap();
    let items = store.page(&[], 0, total).await.unwrap();
    let settlements = items
        .iter()
        .map(|item| operation::after(item, Outcome::Claim(Ownership::Claimed), &store.rules(), 0.5))
        .map(|item| Settlement::of(&item, operation::after(&item, Outcome::Pinned, &store.rules(), 0.5)))
        .collect();
    assert!(store.settle(settlements).await.unwrap().into_iter().all(|done| done));

    let keep: Vec<Vec<u8>> = vec![cid(5), cid(total - 1)];
    let (mut after, mut touched) = (cid(2), 0);
    loop {
        let swept = store.sweep(after, None, keep.clone(), 9).await.unwrap();
        touched += swept.touched.len();
        match swept.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(touched, total - 3 - 2);
    assert_eq!(store.count_held(Hold::Comparing).await.unwrap(), touched as u64);
    assert!(store.newest_due(Lane::Unpins, i64::MAX, 1).await.unwrap().is_empty());
    store.end_comparison(cursor(9), Some("held".into())).await.unwrap();
    assert!(store.newest_due(Lane::Unpins, i64::MAX, 1).await.unwrap().is_empty());
    let held = only(&store, &cid(7)).await.unwrap();
    assert_eq!((held.hold, held.error.as_str()), (Hold::Guarded, "held"));
    assert_eq!(held.status, TrackerStatus::UnpinQueued);

    let swept = store.sweep(Vec::new(), Some(cid(2)), Vec::new(), 10).await.unwrap();
    assert_eq!((swept.touched.len(), swept.next), (3, None));
    store.end_comparison(cursor(10), None).await.unwrap();
    let free = store.due(Lane::Unpins, i64::MAX, (i64::MIN, 0), total).await.unwrap();
    assert_eq!(free.len(), 3, "the guarded ones stay held");
    assert_eq!(*store.position().borrow(), 10);
}

/// Goal: pages come in the order of bytes and by status; errors have their own index.
#[tokio::test]
async fn pages_and_errors() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    let changes = [200_u8, 3, 100, 50].map(|n| order(&[n], 1, OWN)).to_vec();
    store.follow(changes, None, Source::Log).await.unwrap();
    let cids = |items: Vec<Item>| items.into_iter().map(|item| item.cid[0]).collect::<Vec<_>>();
    assert_eq!(cids(store.page(&[], 0, 10).await.unwrap()), [3, 50, 100, 200]);
    assert_eq!(cids(store.page(&[3], 0, 2).await.unwrap()), [50, 100]);
    let item = only(&store, &[100]).await.unwrap();
    let failure = Outcome::Failed { reason: Reason::NoProviders, error: "nobody has it".into() };
    let failed = operation::after(&item, failure, &store.rules(), 0.5);
    store.settle(vec![Settlement::of(&item, failed)]).await.unwrap();
    assert_eq!(cids(store.troubled(&[], 10).await.unwrap()), [100]);
    assert_eq!(cids(store.page(&[], TrackerStatus::PinError.bit(), 10).await.unwrap()), [100]);
    assert_eq!(cids(store.page(&[], TrackerStatus::PinQueued.bit(), 10).await.unwrap()), [3, 50, 200]);
    let item = only(&store, &[100]).await.unwrap();
    assert_eq!((item.reason, item.error.as_str(), item.attempts), (Reason::NoProviders, "nobody has it", 1));
}

/// Goal: a full queue is noticed within one batch.
#[tokio::test]
async fn queue_bound_holds_within_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Policy { max_queued_pins: 3, ..policy() }).await.unwrap();
    let changes = (0..10_u8).map(|n| order(&[n], 1, OWN)).collect();
    store.follow(changes, None, Source::Log).await.unwrap();
    assert_eq!(store.counts().of(TrackerStatus::PinQueued), 3);
    assert_eq!(store.counts().of(TrackerStatus::PinError), 7);
}

/// Goal: a restored pinset at a lower index is followed, also where a row was on its way out already.
#[tokio::test]
async fn a_lower_index_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    store.follow(vec![order(b"a", 100, OWN)], Some(cursor(100)), Source::Log).await.unwrap();
    let item = only(&store, b"a").await.unwrap();
    let claimed = operation::after(&item, Outcome::Claim(Ownership::Claimed), &store.rules(), 0.5);
    assert_eq!(store.settle(vec![Settlement::of(&item, claimed)]).await.unwrap(), [true]);
    let removed = Change::Removed { cid: b"a".to_vec(), index: 101 };
    store.follow(vec![removed], Some(cursor(101)), Source::Log).await.unwrap();
    assert_eq!(only(&store, b"a").await.unwrap().status, TrackerStatus::UnpinQueued);
    let swept = store.sweep(Vec::new(), None, Vec::new(), 7).await.unwrap();
    assert_eq!(swept.touched.len(), 1);
    store.end_comparison(Cursor { lineage: 2, ..cursor(7) }, None).await.unwrap();
    store.follow(vec![order(b"a", 8, OWN)], Some(Cursor { lineage: 2, ..cursor(8) }), Source::Log).await.unwrap();
    assert_eq!(only(&store, b"a").await.unwrap().status, TrackerStatus::PinQueued);
}

/// Goal: what failed does not stand among the new ones, but is as young as they are.
#[tokio::test]
async fn what_failed_has_its_own_lane() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    store.follow(vec![young(b"a", 1), young(b"b", 2)], Some(cursor(2)), Source::Log).await.unwrap();
    fail(&store, b"a").await;
    let cids = async |lane| {
        let due = store.due(lane, i64::MAX, (i64::MIN, 0), 10).await.unwrap();
        due.into_iter().map(|item| item.cid).collect::<Vec<_>>()
    };
    assert_eq!((cids(Lane::New).await, cids(Lane::Again).await), (vec![b"b".to_vec()], vec![b"a".to_vec()]));
    for cid in [b"a", b"b"] {
        assert!(only(&store, cid).await.unwrap().priority);
    }
    for _ in 0..policy().priority_max_retries {
        fail(&store, b"a").await;
    }
    assert_eq!((cids(Lane::Again).await, cids(Lane::Retry).await), (vec![], vec![b"a".to_vec()]));
}

async fn fail(store: &Store, cid: &[u8]) {
    let item = only(store, cid).await.unwrap();
    let outcome = Outcome::Failed { reason: Reason::NoProviders, error: "nobody has it".to_owned() };
    let failed = operation::after(&item, outcome, &store.rules(), 0.5);
    assert_eq!(store.settle(vec![Settlement::of(&item, failed)]).await.unwrap(), [true]);
}

/// Goal: a table of the version before is taken over with all that it says.
#[tokio::test]
async fn version_1_is_taken_over() {
    use sqlx::Connection as _;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    store.follow(vec![young(b"a", 1)], Some(cursor(1)), Source::Log).await.unwrap();
    fail(&store, b"a").await;
    let before = only(&store, b"a").await.unwrap();
    store.close().await;
    drop(store);
    let mut old = schema::connect(&folder.path().join(DATABASE)).await.unwrap();
    sqlx::raw_sql(
        "ALTER TABLE items DROP COLUMN blocks; ALTER TABLE items DROP COLUMN bytes; \
         ALTER TABLE items DROP COLUMN last_block; DROP INDEX items_held; \
         CREATE INDEX items_held ON items (hold) WHERE hold > 0; UPDATE items SET lane = 0; PRAGMA user_version = 1;",
    )
    .execute(&mut old)
    .await
    .unwrap();
    old.close().await.unwrap();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    assert_eq!(store.cursor(), Some(cursor(1)));
    assert_eq!(only(&store, b"a").await.unwrap(), before);
    assert_eq!(store.due(Lane::Again, i64::MAX, (i64::MIN, 0), 10).await.unwrap(), [before]);
    assert!(store.held(Hold::Guarded, &[], 10).await.unwrap().is_empty());
}

/// Goal: claims are given up in any number, their unpins are held, and the node is remembered.
#[tokio::test]
async fn claims_are_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    assert_eq!(store.node(), None);
    let cid = |n: u8| vec![n];
    store.follow((0..20).map(|n| order(&cid(n), 1, OWN)).collect(), Some(cursor(1)), Source::Log).await.unwrap();
    for n in 0..10 {
        let item = only(&store, &cid(n)).await.unwrap();
        let claimed = operation::after(&item, Outcome::Claim(Ownership::Claimed), &store.rules(), 0.5);
        let pinned = operation::after(&claimed, Outcome::Pinned, &store.rules(), 0.5);
        store.settle(vec![Settlement::of(&item, pinned)]).await.unwrap();
    }
    store.follow(vec![Change::Removed { cid: cid(3), index: 2 }], Some(cursor(2)), Source::Log).await.unwrap();
    store.disown_all("another node").await.unwrap();
    store.set_node(b"node".to_vec()).await.unwrap();
    let held = store.held(Hold::Adopted, &[], 10).await.unwrap();
    assert_eq!(held.iter().map(|item| item.cid.clone()).collect::<Vec<_>>(), [cid(3)]);
    assert_eq!((held[0].next_try_ms, held[0].error.as_str()), (None, "another node"));
    assert_eq!(only(&store, &cid(4)).await.unwrap().ownership, Ownership::Adopted);
    assert_eq!(only(&store, &cid(14)).await.unwrap().ownership, Ownership::Unknown);
    store.close().await;
    drop(store);
    let store = Store::open(folder.path(), policy()).await.unwrap();
    assert_eq!(store.node(), Some(b"node".to_vec()));
}

/// Goal: what a table of a million items costs, for people who change it: run in release with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn million() {
    const ITEMS: u32 = 1_000_000;
    const IN_ERROR: u32 = 1_000;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    let cid = |n: u32| {
        let mut cid = n.wrapping_mul(2_654_435_761).to_be_bytes().to_vec();
        cid.extend([0; 32]);
        cid
    };
    let began = std::time::Instant::now();
    for first in (0..ITEMS).step_by(1000) {
        let changes = (first..first + 1000).map(|n| order(&cid(n), u64::from(n) + 1, OWN)).collect();
        store.follow(changes, Some(cursor(u64::from(first) + 1000)), Source::Log).await.unwrap();
        let cids: Vec<Vec<u8>> = (first..first + 1000).map(cid).collect();
        let items = store.get(&cids).await.unwrap();
        let settled = items.values().map(|item| {
            let fails = item.revision % u64::from(ITEMS / IN_ERROR) == 0;
            let outcome = match fails {
                true => Outcome::Failed { reason: Reason::NoProviders, error: "nobody has it".into() },
                false => Outcome::Pinned,
            };
            Settlement::of(item, operation::after(item, outcome, &store.rules(), 0.5))
        });
        store.settle(settled.collect()).await.unwrap();
    }
    eprintln!("{ITEMS} items followed and pinned in {:?}", began.elapsed());
    store.close().await;
    drop(store);
    let began = std::time::Instant::now();
    let store = Store::open(folder.path(), policy()).await.unwrap();
    eprintln!("ready {:?} after a restart", began.elapsed());
    let began = std::time::Instant::now();
    let pinned = store.counts().of(TrackerStatus::Pinned);
    eprintln!("summary ({pinned} pinned) in {:?}", began.elapsed());
    let began = std::time::Instant::now();
    let failed = store.page(&[], TrackerStatus::PinError.bit(), 2 * IN_ERROR as usize).await.unwrap().len();
    eprintln!("{failed} items in error in {:?}", began.elapsed());
    let (began, mut rows, mut after) = (std::time::Instant::now(), 0, Vec::new());
    loop {
        let page = store.page(&after, 0, 512).await.unwrap();
        let Some(last) = page.last() else { break };
        rows += page.len();
        after.clone_from(&last.cid);
    }
    eprintln!("{rows} rows listed in {:?}", began.elapsed());
}
