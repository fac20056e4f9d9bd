use std::sync::Arc;

use pinfold_proto::storage::{self, command::Command as Kind};
use pinfold_proto::types;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Row};
use tempfile::TempDir;

use super::*;
use crate::pinset::{Change, ItemOutcome};
use crate::store::record::{Payload, Proposal};

const PEERS: [&[u8]; 3] = [b"peer-a", b"peer-b", b"peer-c"];

async fn open(folder: &TempDir) -> State {
    State::open(folder.path(), Failure::default()).await.unwrap()
}

fn record(index: u64, payload: Payload) -> Record {
    Record { id: LogId { term: 1, node: 1, index }, payload }
}

fn command(index: u64, kind: Kind) -> Record {
    let at = types::Time { seconds: 1_000_000 + index as i64, nanos: 0 };
    let command = storage::Command { at: Some(at), request_key: Vec::new(), command: Some(kind) };
    record(index, Payload::Command(Arc::new(Proposal::new(command))))
}

fn found(index: u64) -> Record {
    let founders = (1..).zip(PEERS).map(|(node_id, peer)| types::Peer {
        peer_id: peer.to_vec(),
        node_id,
        state: types::peer::State::Healthy as i32,
        ..Default::default()
    });
    command(index, Kind::Found(storage::Found { cluster_id: b"cluster".to_vec(), founders: founders.collect() }))
}

fn pin(cid: &[u8], holders: &[usize]) -> types::Pin {
    types::Pin {
        cid: cid.to_vec(),
        r#type: types::PinType::Data as i32,
        allocations: holders.iter().map(|holder| PEERS[*holder].to_vec()).collect(),
        options: Some(types::PinOptions { name: "x".repeat(200), ..Default::default() }),
        ..Default::default()
    }
}

fn put(index: u64, pins: Vec<types::Pin>, expected_revision: u64) -> Record {
    let puts = pins.into_iter().map(|pin| storage::Put { pin: Some(pin), expected_revision, request_key: Vec::new() });
    command(index, Kind::PutMany(storage::PutMany { puts: puts.collect() }))
}

fn unpin(index: u64, cid: &[u8]) -> Record {
    command(index, Kind::Unpin(storage::Unpin { cid: cid.to_vec(), ..Default::default() }))
}

fn cid(number: u32) -> Vec<u8> {
    // Spread, as real ones are.
    number.wrapping_mul(2_654_435_761).to_be_bytes().to_vec()
}

async fn list_all(state: &State, types: &[i32]) -> Vec<types::Pin> {
    let mut pins = Vec::new();
    let mut after = Vec::new();
    loop {
        let chunk = state.list(&after, 7, types).await.unwrap();
        pins.extend(chunk.pins.iter().map(|bytes| rows::decode_pin(bytes).unwrap()));
        match chunk.next {
            Some(next) => after = next,
            None => return pins,
        }
    }
}

async fn allocated(state: &State, holder: usize) -> Vec<Vec<u8>> {
    let mut cids: Vec<Vec<u8>> = Vec::new();
    let mut after = 0;
    loop {
        let found = state.allocated_to(PEERS[holder], after, 3).await.unwrap();
        let Some(last) = found.last() else { break };
        after = last.row;
        cids.extend(found.into_iter().map(|holding| holding.pin.cid));
    }
    assert_eq!(state.count_allocated_to(PEERS[holder]).await.unwrap() as usize, cids.len());
    cids.sort();
    cids
}

/// Goal: pins that were proposed as new are not new because somebody said so: one that is there is told as moved and stays
/// as it was, those beside it are written, and the counters and sums agree with the rows.
#[tokio::test]
async fn rows_taken_for_new_may_be_there() {
    let folder = TempDir::new().unwrap();
    let state = open(&folder).await;
    state.apply(vec![found(1)]).await.unwrap();
    state.apply(vec![put(2, vec![pin(&cid(1), &[0]), pin(&cid(2), &[1])], 0)]).await.unwrap();
    // The holder of the new pin is one that no row names yet.
    let batch = vec![put(3, vec![pin(&cid(3), &[2])], 0), put(4, vec![pin(&cid(2), &[2]), pin(&cid(4), &[2])], 0)];
    let outcomes = state.apply(batch).await.unwrap();
    let moved = ItemOutcome::Stale(crate::pinset::Stale::Moved);
    let Some(Outcome::Items(items)) = &outcomes[1] else { panic!() };
    assert_eq!(*items, [moved.clone(), ItemOutcome::Written(4)]);
    // Twice in one batch: the second one is told what the first one did.
    let batch = vec![put(5, vec![pin(&cid(5), &[0])], 0), put(6, vec![pin(&cid(5), &[1])], 0)];
    let Some(Outcome::Items(items)) = state.apply(batch).await.unwrap().remove(1) else { panic!() };
    assert_eq!(items, [moved]);

    for state in [state.clone(), open(&folder).await] {
        state.verify().await.unwrap();
        assert_eq!((state.applied_index(), state.pin_count()), (6, 5));
        let mut revisions: Vec<u64> = list_all(&state, &[]).await.iter().map(|pin| pin.revision).collect();
        revisions.sort_unstable();
        assert_eq!(revisions, [2, 2, 3, 4, 5]);
        assert_eq!(allocated(&state, 1).await, [cid(2)]);
        assert_eq!(allocated(&state, 2).await, [cid(4), cid(3)]);
    }
}

/// Goal: batches that wait are committed together, each is answered with what is its own, in their order; after an error
/// every one is told it, those behind it too.
#[tokio::test]
async fn batches_that_wait_go_together() {
    const LAST: u64 = 40;
    let folder = TempDir::new().unwrap();
    let state = open(&folder).await;
    state.apply(vec![found(1)]).await.unwrap();
    let answered = Arc::new(Mutex::new(Vec::new()));
    let queue = async |index: u64| {
        let (answered, now) = (answered.clone(), state.clone());
        let done: Applied = Box::new(move |outcomes| answered.lock().push((index, outcomes, now.applied_index())));
        state.queue(vec![put(index, vec![pin(&cid(index as u32), &[0])], 0)], 0, Some(done)).await.unwrap();
    };
    for index in 2..=LAST {
        queue(index).await;
    }
    state.settle().await.unwrap();
    for (place, (index, outcomes, applied)) in answered.lock().drain(..).enumerate() {
        assert_eq!((index, applied), (place as u64 + 2, LAST));
        let [Some(Outcome::Items(items))] = &outcomes.unwrap()[..] else { panic!() };
        assert_eq!(*items, [ItemOutcome::Written(index)]);
    }

    queue(LAST + 1).await;
    queue(LAST).await;
    let error = state.settle().await.unwrap_err();
    assert!(error.to_string().contains("already applied"), "{error}");
    let told: Vec<bool> = answered.lock().drain(..).map(|(_, outcomes, _)| outcomes.is_err()).collect();
    assert_eq!(told, [true, true]);
    assert_eq!(state.applied_index(), LAST);
}

/// Goal: the writer knows that somebody waits for an index, for as long as they do.
#[tokio::test]
async fn who_waits_for_an_index_is_counted() {
    let folder = TempDir::new().unwrap();
    let state = open(&folder).await;
    let mut waiting = state.shared.waiting.subscribe();
    let wait = || {
        let state = state.clone();
        tokio::spawn(async move { state.wait_applied(1).await })
    };
    let (first, second) = (wait(), wait());
    waiting.wait_for(|waiting| *waiting == 2).await.unwrap();
    first.abort();
    waiting.wait_for(|waiting| *waiting == 1).await.unwrap();
    state.apply(vec![found(1)]).await.unwrap();
    second.await.unwrap();
    assert_eq!(*waiting.borrow(), 0);
    state.wait_applied(1).await;
}

/// Goal: after many batches of mixed commands and a restart without closing, rows, indexes and counters agree with
/// what the commands say.
#[tokio::test]
async fn state_follows_the_log() {
    let folder = TempDir::new().unwrap();
    let state = open(&folder).await;
    let outcomes = state.apply(vec![record(0, Payload::Blank), found(1)]).await.unwrap();
    assert_eq!(outcomes.len(), 2);
    assert!(outcomes[0].is_none() && outcomes[1].is_some());

    let pins = (0..200).map(|number| pin(&cid(number), &[0, 1])).collect();
    let Some(Outcome::Items(items)) = state.apply(vec![put(2, pins, 0)]).await.unwrap().remove(0) else { panic!() };
    assert!(items.iter().all(|item| *item == ItemOutcome::Written(2)));
    // In one batch: overwrite, remove, remove and add again, add and remove again.
    let batch = vec![
        put(3, (0..70).map(|number| pin(&cid(number), &[1, 2])).collect(), 2),
        unpin(4, &cid(100)),
        unpin(5, &cid(101)),
        put(6, vec![pin(&cid(101), &[2])], 0),
        put(7, vec![pin(&cid(999), &[0])], 0),
        unpin(8, &cid(999)),
    ];
    state.apply(batch).await.unwrap();

    for state in [state.clone(), open(&folder).await] {
        assert_eq!((state.applied_index(), state.pin_count()), (8, 199));
        assert_eq!(state.facts().cluster_id, b"cluster");
        assert_eq!(state.facts().peers.rows.len(), 3);
        let pins = list_all(&state, &[]).await;
        let mut cids: Vec<Vec<u8>> = (0..200).filter(|number| *number != 100).map(cid).collect();
        cids.sort();
        assert_eq!(pins.iter().map(|pin| pin.cid.clone()).collect::<Vec<_>>(), cids, "in CID order, whole");
        assert_eq!(state.get(&cid(0)).await.unwrap().unwrap().revision, 3);
        assert_eq!(state.get(&cid(101)).await.unwrap().unwrap().revision, 6);
        assert_eq!(state.get(&cid(999)).await.unwrap(), None);
        assert_eq!(state.get_many(&[cid(0), cid(999), cid(150)]).await.unwrap().len(), 2);
        for (holder, peer) in PEERS.iter().enumerate() {
            let peer = peer.to_vec();
            let expected: Vec<Vec<u8>> =
                pins.iter().filter(|pin| pin.allocations.contains(&peer)).map(|pin| pin.cid.clone()).collect();
            assert_eq!(allocated(&state, holder).await, expected, "holder {holder}");
        }
        assert_eq!(list_all(&state, &[types::PinType::Meta as i32]).await, vec![]);
        assert_eq!(list_all(&state, &[types::PinType::Data as i32]).await.len(), 199);
        let row = sqlx::query("SELECT count(*) FROM allocations")
            .fetch_one(&mut *state.generation().readers.acquire().await.unwrap())
            .await
            .unwrap();
        assert_eq!(row.get::<i64, _>(0), 2 * 198 + 1, "no row of a pin that is gone");
    }
}

/// Goal: a follower gets each change once, from where it was; the ring starts empty.
#[tokio::test]
async fn changes_are_published() {
    let folder = TempDir::new().unwrap();
    let state = open(&folder).await;
    let mut applied = state.applied();
    state.apply(vec![found(1), put(2, vec![pin(b"a", &[0])], 0), unpin(3, b"a")]).await.unwrap();
    assert!(applied.has_changed().unwrap());
    assert_eq!(*applied.borrow_and_update(), 3);
    let (changes, index) = state.recent().since(0, 10).unwrap();
    assert_eq!((changes.iter().map(Change::index).collect::<Vec<_>>(), index), (vec![2, 3], 3));
    drop(state);
    let state = open(&folder).await;
    assert!(state.recent().since(2, 10).is_none(), "older than this process");
    assert_eq!(state.recent().since(3, 10).unwrap(), (vec![], 3));
}

/// Goal: re-pinning and expiry find their pins by an index.
#[tokio::test]
async fn leaving_and_expiring_pins_are_found() {
    let folder = TempDir::new().unwrap();
    let state = open(&folder).await;
    let mut leaving = pin(b"leaving", &[1]);
    leaving.leaving = vec![PEERS[0].to_vec(), PEERS[2].to_vec()];
    let mut expiring = pin(b"expiring", &[0]);
    expiring.options.as_mut().unwrap().expire_at_seconds = 500;
    state.apply(vec![found(1), put(2, vec![leaving, expiring, pin(b"other", &[0])], 0)]).await.unwrap();
    for (peer, expected) in [(0, 1), (1, 0), (2, 1)] {
        let found = state.leaving(PEERS[peer], 0, 10).await.unwrap();
        assert_eq!(found.len(), expected, "{peer}");
        for held in found {
            assert_eq!(held.pin.cid, b"leaving");
            assert!(state.leaving(PEERS[peer], held.row, 10).await.unwrap().is_empty());
        }
    }
    let mut holders = state.holders().await.unwrap();
    holders.sort();
    assert_eq!(holders, PEERS.map(<[u8]>::to_vec), "each once");
    assert_eq!(allocated(&state, 0).await, vec![b"expiring".to_vec(), b"other".to_vec()]);
    assert_eq!(state.next_expiry().await.unwrap(), Some(500));
    assert!(state.expiring(499, 10).await.unwrap().is_empty());
    assert_eq!(state.expiring(500, 10).await.unwrap()[0].cid, b"expiring");
    for sql in [
        "DELETE FROM allocations WHERE (leaving, holder, pin) IN (VALUES (1,2,3),(4,5,6))",
        "SELECT v FROM pins WHERE expire_at <= 5 ORDER BY expire_at LIMIT 5",
        "SELECT pin FROM allocations WHERE leaving = 0 AND holder = 1 AND pin > 3 ORDER BY pin LIMIT 7",
        "SELECT v FROM pins WHERE cid > x'00' ORDER BY cid LIMIT 7",
    ] {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let rows =
            sqlx::query(explain).fetch_all(&mut *state.generation().readers.acquire().await.unwrap()).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        assert!(plan.iter().any(|step| step.starts_with("SEARCH")), "{sql}: {plan:?}");
        assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{sql}: {plan:?}");
    }
}

/// Goal: a request key answers a retry after a restart, too.
#[tokio::test]
async fn request_keys_are_kept() {
    let folder = TempDir::new().unwrap();
    let state = open(&folder).await;
    let mut first = put(2, vec![pin(b"a", &[0])], 0);
    let Payload::Command(proposal) = &first.payload else { panic!() };
    let mut keyed = proposal.command.clone();
    keyed.request_key = b"key".to_vec();
    first.payload = Payload::Command(Arc::new(Proposal::new(keyed.clone())));
    state.apply(vec![found(1), first]).await.unwrap();
    drop(state);
    let state = open(&folder).await;
    assert!(state.outcome_of(b"key").await.unwrap().is_some());
    assert!(state.outcome_of(b"other").await.unwrap().is_none());
    let again = record(3, Payload::Command(Arc::new(Proposal::new(keyed))));
    let outcome = state.apply(vec![again]).await.unwrap().remove(0);
    assert_eq!(outcome, Some(Outcome::Items(vec![ItemOutcome::Written(2)])), "the first result");
}

/// Goal: a copy that was made under writes is the state at the index it says, on another peer too, and readers survive
/// the exchange.
#[tokio::test]
async fn a_copy_replaces_a_state() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let source = open(&from).await;
    let members = Arc::new(storage::Membership { configs: vec![storage::NodeSet { ids: vec![1] }], nodes: vec![] });
    source.apply(vec![record(0, Payload::Membership(members)), found(1)]).await.unwrap();
    for index in 2..20 {
        let pins = (0..50).map(|number| pin(&cid(index as u32 * 100 + number), &[0, 1])).collect();
        source.apply(vec![put(index, pins, 0)]).await.unwrap();
    }
    let copy = source.copy().await.unwrap();
    source.apply(vec![unpin(20, &cid(200))]).await.unwrap();
    assert_eq!(copy.meta.applied.unwrap().index, 19);

    let target = open(&to).await;
    target.apply(vec![found(1), put(2, vec![pin(b"old", &[0])], 0)]).await.unwrap();
    let mut incoming = target.receive().await.unwrap();
    for chunk in std::fs::read(&copy.path).unwrap().chunks(10_000) {
        incoming.write(bytes::Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(incoming.size_bytes(), copy.size_bytes);
    let outgoing = copy.path.clone();
    let meta = copy.meta.clone();
    drop(copy);
    assert!(!outgoing.exists(), "copies do not stay");
    let received = incoming.end().await.unwrap().check(Keeps::Pins).await.unwrap();
    assert_eq!(received.meta, meta);
    target.install(received).await.unwrap();
    assert_eq!((target.applied_index(), target.pin_count()), (19, 900));
    assert_eq!(target.get(b"old").await.unwrap(), None);
    assert_eq!(target.meta(), meta);
    assert!(target.recent().since(2, 10).is_none());
    target.apply(vec![unpin(20, &cid(200))]).await.unwrap();
    let same = list_all(&source, &[]).await;
    assert_eq!(list_all(&target, &[]).await, same);
    drop(target);
    let target = open(&to).await;
    assert_eq!(list_all(&target, &[]).await, same);
    assert_eq!(target.checkpoint().await.unwrap().applied.unwrap().index, 20);
}

/// Goal: a state keeps the size of its pages, which is another one where it was created by an older version; a copy of it
/// has ours.
#[tokio::test]
async fn copies_have_pages_of_our_size() {
    async fn page_bytes(path: &Path) -> i64 {
        let mut connection = sqlite::open_reader(path).await.unwrap();
        sqlx::query_scalar("PRAGMA page_size").fetch_one(&mut connection).await.unwrap()
    }
    let ours = i64::from(sqlite::STATE_PAGE_BYTES);
    for created_with in [ours, 4096] {
        let (folder, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let path = folder.path().join(FIRST_FILE);
        if created_with != ours {
            let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true).page_size(4096);
            let mut connection = options.connect().await.unwrap();
            sqlx::raw_sql(rows::SCHEMA).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        }
        let state = open(&folder).await;
        state.apply(vec![found(1), put(2, (0..500).map(|number| pin(&cid(number), &[0])).collect(), 0)]).await.unwrap();
        state.checkpoint().await.unwrap();
        assert_eq!(page_bytes(&path).await, created_with);

        let copy = state.copy().await.unwrap();
        assert_eq!(page_bytes(&copy.path).await, ours);
        let target = open(&to).await;
        let mut incoming = target.receive().await.unwrap();
        incoming.write(std::fs::read(&copy.path).unwrap().into()).await.unwrap();
        target.install(incoming.end().await.unwrap().check(Keeps::Pins).await.unwrap()).await.unwrap();
        target.verify().await.unwrap();
        assert_eq!(list_all(&target, &[]).await, list_all(&state, &[]).await);
    }
}

/// Goal: a damaged copy is refused, and the state stays.
#[tokio::test]
async fn a_damaged_copy_is_refused() {
    let folder = TempDir::new().unwrap();
    let state = open(&folder).await;
    state.apply(vec![found(1), put(2, (0..500).map(|number| pin(&cid(number), &[0])).collect(), 0)]).await.unwrap();
    let copy = state.copy().await.unwrap();
    let mut bytes = std::fs::read(&copy.path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 3000].fill(0xff);
    let mut incoming = state.receive().await.unwrap();
    incoming.write(bytes.into()).await.unwrap();
    assert!(incoming.end().await.unwrap().check(Keeps::Pins).await.is_err());
    let incoming = state.receive().await.unwrap();
    assert!(incoming.end().await.unwrap().check(Keeps::Pins).await.is_err(), "empty");
    assert_eq!(std::fs::read_dir(folder.path().join("snapshots")).unwrap().count(), 1, "only the outgoing one");
    assert_eq!(state.pin_count(), 500);
}

/// Goal: a large copy that replaces nothing is taken as it is and verified afterwards; one that replaces pins is
/// verified first.
#[tokio::test]
async fn a_large_copy_is_verified_later_where_nothing_is_lost() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let source = open(&from).await;
    source.apply(vec![found(1)]).await.unwrap();
    for index in 2..40 {
        let large = |number: u32| types::Pin {
            options: Some(types::PinOptions { name: "n".repeat(4000), ..Default::default() }),
            ..pin(&cid(index as u32 * 1000 + number), &[0])
        };
        source.apply(vec![put(index, (0..250).map(large).collect(), 0)]).await.unwrap();
    }
    let copy = source.copy().await.unwrap();
    let mut bytes = std::fs::read(&copy.path).unwrap();
    assert!(crate::store::sqlite::is_large(&copy.path), "{} bytes", bytes.len());
    // One letter of one name.
    let place = bytes.windows(8).rposition(|window| window == b"nnnnnnnn").unwrap();
    bytes[place] = b'm';

    let target = open(&to).await;
    assert!(!*target.unverified().borrow());
    let receive = async |keeps: Keeps| {
        let mut incoming = target.receive().await.unwrap();
        incoming.write(bytes.clone().into()).await.unwrap();
        incoming.end().await.unwrap().check(keeps).await
    };
    assert!(matches!(receive(Keeps::Pins).await, Err(Error::Damaged(_))));
    let received = receive(Keeps::Nothing).await.unwrap();
    assert!(!received.is_verified);
    target.install(received).await.unwrap();
    assert_eq!(target.pin_count(), 38 * 250);
    assert!(*target.unverified().borrow());
    assert!(matches!(target.verify().await, Err(Error::Damaged(_))));
    assert!(*target.unverified().borrow(), "it is not what was verified");

    assert!(matches!(receive(Keeps::Pins).await, Err(Error::Damaged(_))));
    target.install(source.copy().await.unwrap()).await.unwrap();
    target.verify().await.unwrap();
    assert!(!*target.unverified().borrow());
}

/// Goal: what can't be applied stops this peer, instead of making it differ from the others.
#[tokio::test]
async fn an_unknown_command_halts() {
    let folder = TempDir::new().unwrap();
    let state = open(&folder).await;
    let unknown = record(1, Payload::Command(Arc::new(Proposal::new(storage::Command::default()))));
    assert!(matches!(state.apply(vec![unknown]).await, Err(Error::Halt(_))));
    assert!(state.failure().get().is_some());
    assert!(state.apply(vec![found(1)]).await.is_err(), "nothing is written any more");
    drop(state);
    assert_eq!(open(&folder).await.applied_index(), 0);
}
