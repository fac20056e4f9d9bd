//! The rules of `apply`, each against the failure it answers.

use std::collections::BTreeSet;

use pinfold_proto::storage::{Command, command::Command as Kind};
use pinfold_proto::types::peer::State;
use pinfold_proto::{storage, types};

use super::*;

const NOW: i64 = 1_790_000_000;

fn peer_id(number: u8) -> Vec<u8> {
    vec![0, 2, b'p', number]
}

fn founder(number: u8) -> types::Peer {
    types::Peer { peer_id: peer_id(number), node_id: u64::from(number), ..types::Peer::default() }
}

/// A cluster of peers 1 to `peers`, and the index of its last entry.
fn founded(peers: u8) -> View {
    let mut view = View::default();
    let founders = (1..=peers).map(founder).collect();
    let outcome = run(&mut view, 1, Kind::Found(storage::Found { cluster_id: vec![7; 16], founders }));
    assert_eq!(outcome, Outcome::Done);
    view
}

fn command(kind: Kind) -> Command {
    Command { at: Some(types::Time { seconds: NOW, nanos: 5 }), request_key: Vec::new(), command: Some(kind) }
}

/// Loads what the command names as absent where it is not loaded yet, and applies it.
fn run_command(view: &mut View, index: u64, command: &Command) -> Outcome {
    for cid in cids_of(command) {
        view.pins.entry(cid.to_vec()).or_default();
    }
    for key in keys_of(command) {
        view.keys.entry(key.to_vec()).or_default();
    }
    apply(view, index, command).unwrap()
}

fn run(view: &mut View, index: u64, kind: Kind) -> Outcome {
    run_command(view, index, &command(kind))
}

fn pin(cid: u8) -> types::Pin {
    types::Pin {
        cid: vec![cid],
        r#type: types::PinType::Data as i32,
        max_depth: -1,
        options: Some(types::PinOptions {
            replication_factor_min: 1,
            replication_factor_max: 2,
            ..types::PinOptions::default()
        }),
        allocations: vec![peer_id(1)],
        timestamp: Some(types::Time { seconds: NOW, nanos: 123 }),
        ..types::Pin::default()
    }
}

fn put(pin: types::Pin, expected_revision: u64) -> storage::Put {
    storage::Put { pin: Some(pin), expected_revision, request_key: Vec::new() }
}

fn puts(list: Vec<storage::Put>) -> Kind {
    Kind::PutMany(storage::PutMany { puts: list })
}

fn stale(stale: Stale) -> Outcome {
    Outcome::Items(vec![ItemOutcome::Stale(stale)])
}

fn written(revision: u64) -> Outcome {
    Outcome::Items(vec![ItemOutcome::Written(revision)])
}

fn loaded(view: &View, cid: u8) -> types::Pin {
    view.pins[[cid].as_slice()].as_deref().cloned().unwrap()
}

/// Goal: a decision made on an entry that moved since is not carried out, neither a put nor an unpin.
#[test]
fn what_was_decided_on_an_old_revision_is_stale() {
    let mut view = founded(2);
    assert_eq!(run(&mut view, 5, puts(vec![put(pin(1), 0)])), written(5));
    assert_eq!(run(&mut view, 6, puts(vec![put(pin(1), 0)])), stale(Stale::Moved));
    assert_eq!(run(&mut view, 7, puts(vec![put(pin(1), 4)])), stale(Stale::Moved));
    assert_eq!(run(&mut view, 8, puts(vec![put(pin(1), 5)])), written(8));
    let old = storage::Unpin { cid: vec![1], expected_revision: 5, request_key: Vec::new() };
    assert_eq!(run(&mut view, 9, Kind::Unpin(old)), stale(Stale::Moved));
    let any = storage::Unpin { cid: vec![1], expected_revision: 0, request_key: Vec::new() };
    let removed = run(&mut view, 10, Kind::Unpin(any.clone()));
    assert!(
        matches!(&removed, Outcome::Items(items) if matches!(&items[0], ItemOutcome::Removed(pin) if pin.revision == 8))
    );
    assert_eq!(run(&mut view, 11, Kind::Unpin(any)), Outcome::Items(vec![ItemOutcome::Absent]));
    assert_eq!(view.pin_count, 0);
}

/// Goal: nothing new is given to a peer that is away, draining, removed or unknown; what it holds already may keep
/// naming it.
#[test]
fn new_allocations_need_a_peer_that_can_take_them() {
    let mut view = founded(3);
    run(&mut view, 2, puts(vec![put(pin(1), 0)]));
    run(&mut view, 3, Kind::PeerAway(storage::PeerAway { peer_id: peer_id(1), node_id: 1 }));
    assert_eq!(run(&mut view, 4, puts(vec![put(pin(2), 0)])), stale(Stale::Peer));
    assert_eq!(run(&mut view, 5, puts(vec![put(pin(1), 2)])), written(5));
    run(&mut view, 6, Kind::PeerBack(storage::PeerBack { peer_id: peer_id(1), node_id: 1 }));
    run(&mut view, 7, Kind::Drain(storage::Drain { peer_id: peer_id(1), draining: true, removing: false }));
    assert_eq!(run(&mut view, 8, puts(vec![put(pin(2), 0)])), stale(Stale::Peer));
    run(&mut view, 9, Kind::Drain(storage::Drain { peer_id: peer_id(1), draining: false, removing: false }));
    assert_eq!(run(&mut view, 10, puts(vec![put(pin(2), 0)])), written(10));
    run(&mut view, 11, Kind::Remove(storage::Remove { peer_id: peer_id(1), node_id: 1, only_if_removing: false }));
    assert_eq!(run(&mut view, 12, puts(vec![put(pin(3), 0)])), stale(Stale::Peer));
    let mut unknown = pin(3);
    unknown.allocations = vec![peer_id(99)];
    assert_eq!(run(&mut view, 13, puts(vec![put(unknown, 0)])), stale(Stale::Peer));
}

/// Goal: a retry under the same key changes nothing and is told the first result; a stale item may be tried again under
/// it; ten minutes of log time later the key means nothing.
#[test]
fn request_keys_make_a_retry_harmless() {
    let mut view = founded(2);
    let keyed = |revision| storage::Put { request_key: b"key".to_vec(), ..put(pin(1), revision) };
    assert_eq!(run(&mut view, 4, puts(vec![keyed(9)])), stale(Stale::Moved));
    assert_eq!(run(&mut view, 5, puts(vec![keyed(0)])), written(5));
    run(&mut view, 6, Kind::Unpin(storage::Unpin { cid: vec![1], ..storage::Unpin::default() }));
    assert_eq!(run(&mut view, 7, puts(vec![keyed(0)])), written(5));
    assert_eq!(view.pins[[1].as_slice()], None, "the retry must not bring back what was unpinned since");

    let mut batch = command(puts(vec![put(pin(1), 0), put(pin(2), 0)]));
    batch.request_key = b"batch".to_vec();
    let first = run_command(&mut view, 8, &batch);
    assert_eq!(run_command(&mut view, 9, &batch), first);

    let mut later = command(puts(vec![keyed(8)]));
    later.at = Some(types::Time { seconds: NOW + KEY_LIFE_SECONDS + 1, nanos: 0 });
    assert_eq!(run_command(&mut view, 10, &later), written(10));
}

/// Goal: a peer's command under a key is carried out once.
#[test]
fn commands_about_peers_have_keys_too() {
    let mut view = founded(2);
    let mut drain = command(Kind::Drain(storage::Drain { peer_id: peer_id(1), draining: true, removing: false }));
    drain.request_key = b"drain".to_vec();
    let first = run_command(&mut view, 2, &drain);
    run(&mut view, 3, Kind::Drain(storage::Drain { peer_id: peer_id(1), draining: false, removing: false }));
    assert_eq!(run_command(&mut view, 4, &drain), first);
    assert_eq!(view.peers.member(&peer_id(1)).unwrap().state(), State::Healthy);
}

/// Goal: one pin's options never show on another, which is what the original does (data/original/README.md): pins with
/// and without name, metadata, expiry, origins and pin-update, applied in that order, in one batch and one by one.
#[test]
fn options_never_leak_into_another_pin() {
    let full = types::PinOptions {
        replication_factor_min: 2,
        replication_factor_max: 2,
        name: "first".into(),
        metadata: vec![types::KeyValue { key: "k".into(), value: "v".into() }],
        expire_at_seconds: NOW + 48 * 3600,
        pin_update: vec![1],
        origins: vec![vec![4, 127, 0, 0, 1]],
        shard_size_bytes: 9,
    };
    let plain = pin(0).options.unwrap();
    let pins: Vec<types::Pin> = (1..=6)
        .map(|cid| types::Pin { options: Some(if cid % 2 == 1 { full.clone() } else { plain.clone() }), ..pin(cid) })
        .collect();
    let mut together = founded(2);
    run(&mut together, 2, puts(pins.iter().map(|pin| put(pin.clone(), 0)).collect()));
    let mut apart = founded(2);
    for (index, pin) in (2..).zip(&pins) {
        run(&mut apart, index, puts(vec![put(pin.clone(), 0)]));
    }
    for cid in 1..=6 {
        let expected = if cid % 2 == 1 { &full } else { &plain };
        assert_eq!(loaded(&together, cid).options.as_ref(), Some(expected));
        assert_eq!(loaded(&apart, cid).options.as_ref(), Some(expected));
    }
    // A repin without options erases them (beh:B8.11).
    run(&mut together, 3, puts(vec![put(pin(1), 2)]));
    assert_eq!(loaded(&together, 1).options, pin(1).options);
}

/// Goal: pins are kept in one form, whoever proposed them (beh:B7.1).
#[test]
fn pins_are_kept_in_one_form() {
    let mut view = founded(2);
    let mut untidy = pin(1);
    let entry = |key: &str, value: &str| types::KeyValue { key: key.into(), value: value.into() };
    untidy.options.as_mut().unwrap().metadata = vec![entry("b", "1"), entry("a", "2"), entry("b", "3")];
    untidy.allocations = vec![peer_id(2), peer_id(1), peer_id(2)];
    untidy.leaving = vec![peer_id(1), peer_id(9)];
    run(&mut view, 3, puts(vec![put(untidy, 0)]));
    let kept = loaded(&view, 1);
    assert_eq!(kept.options.unwrap().metadata, vec![entry("a", "2"), entry("b", "1")]);
    assert_eq!(kept.allocations, vec![peer_id(2), peer_id(1)]);
    assert_eq!(kept.leaving, vec![peer_id(9)]);
    assert_eq!(kept.timestamp, Some(types::Time { seconds: NOW, nanos: 0 }));
    assert_eq!(kept.revision, 3);
}

/// Goal: replacing is both or neither.
#[test]
fn replace_is_one_step() {
    let mut view = founded(2);
    run(&mut view, 2, puts(vec![put(pin(1), 0)]));
    let replace = |expected| {
        Kind::Replace(storage::Replace { old: vec![1], expected_revision: expected, new: Some(put(pin(2), 0)) })
    };
    let both_stale = Outcome::Items(vec![ItemOutcome::Stale(Stale::Moved); 2]);
    assert_eq!(run(&mut view, 3, replace(1)), both_stale);
    assert_eq!(view.pin_count, 1);
    let done = run(&mut view, 4, replace(2));
    assert!(
        matches!(&done, Outcome::Items(items) if matches!(items[0], ItemOutcome::Removed(_)) && items[1] == ItemOutcome::Written(4))
    );
    assert_eq!((view.pin_count, view.pins[[1].as_slice()].is_some()), (1, false));
    assert_eq!(run(&mut view, 5, replace(2)), both_stale);
}

/// Goal: a copy moves by way of `leaving`, and only what is past its time by the log's own clock expires.
#[test]
fn moves_settles_and_expires() {
    let mut view = founded(3);
    let mut dying = pin(1);
    dying.options.as_mut().unwrap().expire_at_seconds = NOW + 10;
    run(&mut view, 2, puts(vec![put(dying, 0)]));
    let step =
        storage::Move { cid: vec![1], expected_revision: 2, allocations: vec![peer_id(2)], leaving: vec![peer_id(1)] };
    let moves = Kind::Reallocate(storage::Reallocate { moves: vec![step] });
    assert_eq!(run(&mut view, 3, moves.clone()), written(3));
    assert_eq!(run(&mut view, 4, moves), stale(Stale::Moved));
    let settle = storage::Settle { cid: vec![1], expected_revision: 3, drop: vec![peer_id(1)] };
    assert_eq!(run(&mut view, 5, Kind::Settle(settle)), written(5));
    assert_eq!(loaded(&view, 1).leaving, Vec::<Vec<u8>>::new());
    let expire = Kind::Expire(storage::Expire { cid: vec![1], expected_revision: 5 });
    assert_eq!(run(&mut view, 6, expire.clone()), stale(Stale::Moved));
    let mut later = command(expire);
    later.at = Some(types::Time { seconds: NOW + 10, nanos: 0 });
    assert!(
        matches!(run_command(&mut view, 7, &later), Outcome::Items(items) if matches!(items[0], ItemOutcome::Removed(_)))
    );
}

/// Goal: a joiner's node ID comes from the log, a member that joins again keeps its row, a removed node stays removed
/// and its peer comes back as another node; the last peer cannot be removed.
#[test]
fn peers_join_leave_and_come_back() {
    let mut view = founded(1);
    let join = |node_id| {
        let peer = types::Peer { peer_id: peer_id(5), node_id, name: "five".into(), ..types::Peer::default() };
        Kind::PeerJoin(storage::PeerJoin { peer: Some(peer) })
    };
    let remove =
        |number, node_id| Kind::Remove(storage::Remove { peer_id: peer_id(number), node_id, only_if_removing: false });
    assert_eq!(run(&mut view, 2, remove(1, 0)), Outcome::Refused(Refusal::LastPeer));
    let Outcome::Peer(row) = run(&mut view, 3, join(0)) else { panic!("not a row") };
    assert_eq!((row.node_id, row.joined_index, row.voter), (3 | JOINER_BIT, 3, false));
    apply_membership(&mut view, 4, &BTreeSet::from([1, 3 | JOINER_BIT]));
    assert!(view.peers.member(&peer_id(5)).unwrap().voter);
    let Outcome::Peer(again) = run(&mut view, 5, join(0)) else { panic!("not a row") };
    assert_eq!((again.node_id, again.voter), (row.node_id, true));
    run(&mut view, 6, remove(5, row.node_id));
    assert!(view.peers.was_removed(&peer_id(5)) && view.peers.is_removed(row.node_id));
    assert_eq!(run(&mut view, 7, join(row.node_id)), Outcome::Refused(Refusal::NodeRemoved));
    let Outcome::Peer(new) = run(&mut view, 8, join(0)) else { panic!("not a row") };
    assert_eq!(new.node_id, 8 | JOINER_BIT);
    assert!(!view.peers.was_removed(&peer_id(5)));
    assert_eq!(run(&mut view, 9, Kind::Found(storage::Found::default())), Outcome::Refused(Refusal::AlreadyFounded));
}

/// Goal: draining goes on after an absence.
#[test]
fn draining_outlives_an_absence() {
    let mut view = founded(2);
    let peer = peer_id(2);
    run(&mut view, 2, Kind::Drain(storage::Drain { peer_id: peer.clone(), draining: true, removing: false }));
    run(&mut view, 3, Kind::PeerAway(storage::PeerAway { peer_id: peer.clone(), node_id: 2 }));
    assert_eq!(view.peers.member(&peer).unwrap().state(), State::Away);
    run(&mut view, 4, Kind::PeerBack(storage::PeerBack { peer_id: peer.clone(), node_id: 2 }));
    assert_eq!(view.peers.member(&peer).unwrap().state(), State::Draining);
}

/// Goal: whoever is ordered away, somebody stays; an order is called off by the end of the draining, and a removal that
/// was called off is not carried out; a removed peer's addresses are forgotten.
#[test]
fn seed_f22_f23_somebody_stays() {
    let mut view = founded(3);
    let order = |number, removing| Kind::Drain(storage::Drain { peer_id: peer_id(number), draining: true, removing });
    let carry_out =
        |number| Kind::Remove(storage::Remove { peer_id: peer_id(number), node_id: 0, only_if_removing: true });
    run(&mut view, 2, order(1, true));
    run(&mut view, 3, order(2, true));
    assert_eq!(run(&mut view, 4, order(3, true)), Outcome::Refused(Refusal::LastPeer));
    // Draining alone does not call the removal off.
    run(&mut view, 5, order(2, false));
    assert!(view.peers.member(&peer_id(2)).unwrap().removing);
    let undrain = storage::Drain { peer_id: peer_id(2), draining: false, removing: false };
    run(&mut view, 6, Kind::Drain(undrain));
    assert_eq!(run(&mut view, 7, carry_out(2)), Outcome::Refused(Refusal::NotRemoving));
    assert_eq!(view.peers.member(&peer_id(2)).unwrap().state(), State::Healthy);
    let Outcome::Peer(gone) = run(&mut view, 8, carry_out(1)) else { panic!("not a row") };
    assert!(gone.addresses.is_none() && gone.multiaddresses.is_empty() && !gone.removing);
    run(&mut view, 9, order(3, true));
    run(&mut view, 10, carry_out(3));
    assert_eq!(run(&mut view, 11, order(2, true)), Outcome::Refused(Refusal::LastPeer));
}

/// Goal: a command of a later version halts this peer instead of making it differ from the others.
#[test]
fn unknown_commands_halt() {
    let mut view = founded(1);
    let unknown = Command { command: None, ..Command::default() };
    assert_eq!(apply(&mut view, 2, &unknown), Err(Halt::UnknownCommand { index: 2 }));
    assert_eq!(apply(&mut view, 2, &command(puts(vec![put(pin(1), 0)]))), Err(Halt::NotLoaded { index: 2 }));
}

/// Goal: the same log gives the same rows, however it is cut into batches with rows loaded afresh for each.
#[test]
fn batches_do_not_matter() {
    let mut log: Vec<(u64, Command)> = Vec::new();
    let mut state: u64 = 42;
    for index in 2..400 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let cid = (state >> 33) as u8 % 16;
        let key = vec![(state >> 41) as u8 % 8];
        let mut command = command(match (state >> 50) % 4 {
            0 => Kind::Unpin(storage::Unpin { cid: vec![cid], expected_revision: 0, request_key: key }),
            1 => puts(vec![put(pin(cid), 0), put(pin(cid.wrapping_add(1)), index - 1)]),
            2 => puts(vec![storage::Put { request_key: key, ..put(pin(cid), 0) }]),
            _ => Kind::Setting(storage::Setting { key: format!("k{cid}"), value: "x".repeat(usize::from(cid % 3)) }),
        });
        command.at = Some(types::Time { seconds: NOW + index as i64 * 7, nanos: 0 });
        log.push((index, command));
    }
    let mut results = Vec::new();
    for batch_size in [1, 7, 1000] {
        let mut view = founded(2);
        let (mut pins, mut keys) = (HashMap::new(), HashMap::new());
        let mut outcomes = Vec::new();
        for batch in log.chunks(batch_size) {
            view.take_dirty();
            view.forget_rows();
            for (_, command) in batch {
                for cid in cids_of(command) {
                    view.pins.insert(cid.to_vec(), pins.get(cid).cloned());
                }
                for key in keys_of(command) {
                    view.keys.insert(key.to_vec(), keys.get(key).cloned());
                }
            }
            for (index, command) in batch {
                outcomes.push(apply(&mut view, *index, command).unwrap());
            }
            let dirty = view.dirty.clone();
            keys.retain(|_, stored: &mut storage::StoredOutcome| {
                dirty.prune_keys.iter().all(|range| range.contains(stored.at_seconds))
            });
            for cid in dirty.pins {
                match view.pins[&cid].clone() {
                    Some(pin) => pins.insert(cid, pin),
                    None => pins.remove(&cid),
                };
            }
            for key in dirty.keys {
                match view.keys[&key].clone() {
                    Some(stored) => keys.insert(key, stored),
                    None => keys.remove(&key),
                };
            }
        }
        assert_eq!(view.pin_count as usize, pins.len());
        let pins: BTreeMap<_, _> = pins.into_iter().collect();
        let keys: BTreeMap<_, _> = keys.into_iter().collect();
        results.push((outcomes, pins, keys, view.settings.clone(), view.peers.clone()));
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

/// Goal: an outcome survives its stored form.
#[test]
fn outcomes_are_stored_whole() {
    for outcome in [
        Outcome::Items(vec![
            ItemOutcome::Written(4),
            ItemOutcome::Removed(Arc::new(pin(1))),
            ItemOutcome::Absent,
            ItemOutcome::Stale(Stale::Moved),
            ItemOutcome::Stale(Stale::Peer),
        ]),
        Outcome::Peer(Box::new(founder(1))),
        Outcome::Done,
        Outcome::Refused(Refusal::LastPeer),
    ] {
        assert_eq!(Outcome::from_stored(&outcome.to_stored(NOW)), Some(outcome));
    }
}
