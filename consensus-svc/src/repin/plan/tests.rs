//! The decisions one by one. How they play together over thousands of histories: `tests/simulation`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::types;
use pinfold_proto::types::peer::State;

use super::gate::{Gate, Hold, gate};
use super::judge::{Judge, Judgement, Rules, Scene, Testimony, Word, maintenance_key};
use super::moves::{Need, need};
use super::settle::{Copy, Step};
use super::{PAUSED, STOP_LIFTED, Standings, gate as gates, moves, settle};
use crate::pinset::PeerTable;

const GRACE: Duration = Duration::from_secs(10);
const RULES: Rules = Rules { grace: GRACE, ipfs_down_after: Duration::from_secs(60) };

fn peer(number: u64) -> Vec<u8> {
    vec![number as u8; 8]
}

/// Node `n` is peer `n`; all vote.
fn table(states: &[State]) -> PeerTable {
    let mut table = PeerTable::default();
    for (node_id, state) in (1..).zip(states) {
        let mut row = types::Peer { peer_id: peer(node_id), node_id, voter: true, ..types::Peer::default() };
        row.set_state(*state);
        table.rows.insert(node_id, row);
    }
    table
}

/// One leader (node 1) and its world.
struct World {
    judge: Judge,
    start: Instant,
    second: u64,
    term: u64,
    peers: PeerTable,
    settings: BTreeMap<String, String>,
    in_contact: BTreeSet<u64>,
    own: Option<Testimony>,
    others: Vec<Testimony>,
}

fn words(suspects: &[u64]) -> Testimony {
    let word = |node: u64| Word {
        is_alive: !suspects.contains(&node),
        is_suspect: suspects.contains(&node),
        ..Word::default()
    };
    (1..=5).map(|node| (peer(node), word(node))).collect()
}

fn world() -> World {
    World {
        judge: Judge::default(),
        start: Instant::now(),
        second: 0,
        term: 1,
        peers: table(&[State::Healthy; 5]),
        settings: BTreeMap::new(),
        in_contact: BTreeSet::new(),
        own: Some(words(&[])),
        others: vec![words(&[])],
    }
}

impl World {
    fn look(&mut self) -> Judgement {
        self.second += 1;
        self.judge.look(&Scene {
            now: self.start + Duration::from_secs(self.second),
            wall_seconds: self.second as i64,
            term: self.term,
            own_node: 1,
            peers: &self.peers,
            settings: &self.settings,
            in_contact: &self.in_contact,
            own: self.own.as_ref(),
            others: &self.others,
            rules: RULES,
        })
    }

    /// Looks for so long; the seconds at which something was commanded, and what.
    fn pass(&mut self, seconds: u64) -> Vec<(u64, Kind)> {
        let mut commanded = Vec::new();
        for _ in 0..seconds {
            let judgement = self.look();
            commanded.extend(judgement.commands.into_iter().map(|kind| (self.second, kind)));
        }
        commanded
    }

    fn all_miss(&mut self, nodes: &[u64]) {
        self.own = Some(words(nodes));
        self.others = vec![words(nodes)];
    }
}

fn aways(commands: &[(u64, Kind)]) -> Vec<(u64, u64)> {
    let away = |(at, kind): &(u64, Kind)| match kind {
        Kind::PeerAway(away) => Some((*at, away.node_id)),
        _ => None,
    };
    commands.iter().filter_map(away).collect()
}

/// Goal: two witnesses and the whole grace, for several at once; nothing before, and nothing of a peer that came back.
#[test]
fn seed_h9_7_two_witnesses_and_the_grace() {
    let mut world = world();
    world.own = Some(words(&[4, 5]));
    assert_eq!(world.pass(60), vec![], "one witness is none");
    world.own = Some(words(&[]));
    world.others = vec![words(&[4, 5]), words(&[4, 5])];
    assert_eq!(world.pass(60), vec![], "the leader hears them");
    world.all_miss(&[4]);
    assert_eq!(world.pass(9), vec![]);
    world.all_miss(&[]);
    assert_eq!(world.pass(1), vec![], "back within the grace: nothing is written");
    world.all_miss(&[4, 5]);
    let commands = world.pass(11);
    let at = world.second;
    assert_eq!(aways(&commands), vec![(at, 4), (at, 5)]);
    // The log says so now: said once.
    for node in [4, 5] {
        world.peers.rows.get_mut(&node).unwrap().set_state(State::Away);
    }
    assert_eq!(world.pass(20), vec![]);
    world.all_miss(&[5]);
    let back = world.pass(1);
    assert!(matches!(&back[..], [(_, Kind::PeerBack(back))] if back.node_id == 4), "{back:?}");
    world.peers.rows.get_mut(&4).unwrap().set_state(State::Healthy);
    world.peers.rows.get_mut(&1).unwrap().set_state(State::Away);
    let back = world.pass(1);
    assert!(matches!(&back[..], [(_, Kind::PeerBack(back))] if back.node_id == 1), "whoever leads is here: {back:?}");
}

/// Goal: the leader's own Raft is a sense of its own, and a monitor that does not answer is replaced by a second voter's.
#[test]
fn raft_contact_and_a_silent_monitor() {
    let mut world = world();
    world.all_miss(&[4]);
    world.in_contact = [4].into();
    assert_eq!(world.pass(30), vec![], "raft hears it: its monitor alone is gone");
    world.in_contact.clear();
    world.own = None;
    assert_eq!(world.pass(30), vec![], "one voter's word is not two");
    world.others = vec![words(&[4]), words(&[4])];
    assert_eq!(aways(&world.pass(11)).len(), 1);
}

/// Goal: a new leader, a start and a pause of this process begin anew; what is committed stays.
#[test]
fn seed_h9_10_timers_that_are_not_committed_start_over() {
    let mut world = world();
    world.all_miss(&[4]);
    assert_eq!(world.pass(9), vec![]);
    world.term = 2;
    assert_eq!(world.pass(9), vec![], "another term, another grace");
    world.second += 300;
    assert_eq!(world.pass(9), vec![], "this process was paused");
    assert_eq!(aways(&world.pass(2)).len(), 1);
    world.judge = Judge::default();
    world.peers.rows.get_mut(&4).unwrap().set_state(State::Away);
    assert_eq!(world.pass(30), vec![], "nothing to say that the log does not say");
}

/// Goal: maintenance holds the verdict back, and ends by itself, with one command that forgets it.
#[test]
fn maintenance_holds_the_verdict_back() {
    let mut world = world();
    world.settings.insert(maintenance_key(4), "100".to_owned());
    world.all_miss(&[4]);
    assert_eq!(world.pass(99), vec![]);
    assert!(world.look().commands.iter().any(|kind| matches!(kind, Kind::PeerAway(_))), "it has been away long enough");
    let commands = world.pass(1);
    assert!(commands.iter().any(|(_, kind)| matches!(kind, Kind::Setting(setting) if setting.value.is_empty())));
}

/// Goal: an IPFS node that is down for its own, longer time makes the copies count as lost; the peer is not away.
#[test]
fn seed_h9_11_ipfs_down_is_not_away() {
    let mut world = world();
    let down_for = |world: &mut World, seconds| {
        world.own.as_mut().unwrap().get_mut(&peer(4)).unwrap().ipfs_down_for = Duration::from_secs(seconds);
    };
    down_for(&mut world, 59);
    assert!(world.look().ipfs_down.is_empty());
    down_for(&mut world, 60);
    let judgement = world.look();
    assert_eq!((judgement.ipfs_down, judgement.commands), ([peer(4)].into(), vec![]));
    world.own = None;
    assert_eq!(world.look().ipfs_down, [peer(4)].into(), "no news is no change");
    world.own = Some(words(&[]));
    assert!(world.look().ipfs_down.is_empty());
}

fn rules() -> gates::Rules {
    gates::Rules { is_disabled: false, grace: GRACE, stop_fraction: 0.5, failure_domain: "group".to_owned() }
}

/// Goal: half of the members away stop everything, until that clears or an operator says so; two of five with the leader
/// among them do not.
#[test]
fn the_stop_rule() {
    let (now, mut settings) = (Instant::now(), BTreeMap::new());
    let at = |peers: &PeerTable, settings: &BTreeMap<String, String>, judgement: &Judgement| {
        gate(&rules(), peers, settings, judgement, &mut Hold::default(), now)
    };
    use State::{Away, Healthy};
    let two_of_five = table(&[Away, Away, Healthy, Healthy, Healthy]);
    assert_eq!(at(&two_of_five, &settings, &Judgement::default()), Gate::Open);
    let two_of_four = table(&[Away, Away, Healthy, Healthy]);
    assert!(matches!(at(&two_of_four, &settings, &Judgement::default()), Gate::Stopped(_)));
    settings.insert(STOP_LIFTED.to_owned(), gates::lift(&two_of_four));
    assert_eq!(at(&two_of_four, &settings, &Judgement::default()), Gate::Open);
    let three_of_four = table(&[Away, Away, Away, Healthy]);
    assert!(matches!(at(&three_of_four, &settings, &Judgement::default()), Gate::Stopped(_)), "that was not lifted");
    // Two whole failure domains of three.
    let groups = ["a", "b", "c", "c", "c"];
    let tags = |group: &str| BTreeMap::from([("group".to_owned(), group.to_owned())]);
    let judgement = Judgement {
        tags: (1..).zip(groups).map(|(node, group)| (peer(node), tags(group))).collect(),
        ..Judgement::default()
    };
    assert!(matches!(at(&two_of_five, &BTreeMap::new(), &judgement), Gate::Stopped(why) if why.contains("group=a, b")));
    let one_domain = table(&[Healthy, Healthy, Away, Away, Healthy]);
    assert_eq!(at(&one_domain, &BTreeMap::new(), &judgement), Gate::Open);
}

/// Goal: a further doubt is waited for, one grace and no longer; pause and configuration hold everything.
#[test]
fn seed_c3_h5_what_holds_the_moves() {
    let (now, peers) = (Instant::now(), table(&[State::Healthy; 5]));
    let doubts = Judgement { doubted: [(peer(4), GRACE)].into(), ..Judgement::default() };
    let mut hold = Hold::default();
    let none = BTreeMap::new();
    let at = |hold: &mut Hold, seconds, judgement: &Judgement| {
        gate(&rules(), &peers, &none, judgement, hold, now + Duration::from_secs(seconds))
    };
    assert_eq!(at(&mut hold, 0, &doubts), Gate::Waiting(1));
    assert_eq!(at(&mut hold, 9, &doubts), Gate::Waiting(1));
    assert_eq!(at(&mut hold, 10, &doubts), Gate::Open, "at most one grace");
    assert_eq!(at(&mut hold, 11, &Judgement::default()), Gate::Open);
    assert_eq!(at(&mut hold, 12, &doubts), Gate::Waiting(1), "the next one anew");
    let paused = BTreeMap::from([(PAUSED.to_owned(), "true".to_owned())]);
    let closed = |rules: &gates::Rules| gate(rules, &peers, &paused, &Judgement::default(), &mut Hold::default(), now);
    assert_eq!(closed(&rules()), Gate::Paused);
    assert_eq!(closed(&gates::Rules { is_disabled: true, ..rules() }), Gate::Disabled);
}

fn pin(min: i32, max: i32, allocations: &[u64], leaving: &[u64]) -> types::Pin {
    types::Pin {
        cid: b"cid".to_vec(),
        revision: 7,
        allocations: allocations.iter().map(|node| peer(*node)).collect(),
        leaving: leaving.iter().map(|node| peer(*node)).collect(),
        options: Some(types::PinOptions {
            replication_factor_min: min,
            replication_factor_max: max,
            ..types::PinOptions::default()
        }),
        ..types::Pin::default()
    }
}

fn nodes(peers: &[Vec<u8>]) -> Vec<u64> {
    peers.iter().map(|peer| u64::from(peer[0])).collect()
}

/// Peers 1 to 3 are here, 4 is away, 5 drains, 6 is nobody.
fn standings() -> Standings {
    use State::{Away, Draining, Healthy};
    Standings::new(&table(&[Healthy, Healthy, Healthy, Away, Draining]), &BTreeSet::new())
}

/// Goal: only what is below its minimum moves, pin-everywhere never, and those who leave for good always do.
#[test]
fn seed_h2_h4_what_an_entry_needs() {
    let standings = standings();
    let need = |pin: types::Pin| need(&pin, &standings);
    assert_eq!(need(pin(2, 3, &[1, 2, 4], &[])), Need::Nothing, "one of three away, and the minimum is two");
    assert_eq!(need(pin(2, 3, &[1, 4], &[])), Need::Refill { live: 1 });
    assert_eq!(need(pin(2, 3, &[4, 6], &[])), Need::Refill { live: 0 });
    assert_eq!(need(pin(-1, -1, &[], &[])), Need::Nothing);
    assert_eq!(need(pin(2, 3, &[1, 2, 5], &[])), Need::Vacate);
    assert_eq!(need(pin(1, 2, &[1, 6], &[])), Need::Vacate);
    let down = Standings::new(&table(&[State::Healthy; 3]), &[peer(2)].into());
    assert_eq!(moves::need(&pin(2, 2, &[1, 2], &[]), &down), Need::Refill { live: 1 });
}

/// Goal: a peer that was to leave for good and is away is waited for by nobody: what has its minimum elsewhere leaves it
/// too, it is asked nothing, what only it has is lost, and it goes when the others hold theirs.
#[test]
fn seed_f16_f21_h6_away_while_it_drains() {
    let mut table = table(&[State::Healthy, State::Healthy, State::Away, State::Away]);
    table.rows.get_mut(&4).unwrap().draining = true;
    let standings = Standings::new(&table, &BTreeSet::new());
    assert_eq!(need(&pin(1, 3, &[1, 2, 3], &[]), &standings), Need::Nothing, "it may come back");
    let entry = pin(1, 3, &[1, 2, 4], &[]);
    assert_eq!(need(&entry, &standings), Need::Vacate);
    let vacated = moves::vacated(&entry, &standings).unwrap();
    assert_eq!((nodes(&vacated.allocations), nodes(&vacated.leaving)), (vec![1, 2], vec![4]));
    assert!(moves::is_lost(&pin(1, 1, &[4], &[]), &standings));
    let left = pin(1, 3, &[1, 2], &[4]);
    assert!(settle::to_ask(&left, &standings).eq([&peer(1), &peer(2)]));
    assert_eq!(settle::step(&left, &standings, |_| Copy::Unknown), None);
    let Some(Step::Drop(settle)) = settle::step(&left, &standings, |_| Copy::Held) else { panic!() };
    assert_eq!(nodes(&settle.drop), vec![4]);
}

/// Goal: the old holder keeps its copy until the new one has it, nobody unknown does, and no change is no move.
#[test]
fn seed_h1_h3_what_a_move_says() {
    let standings = standings();
    let entry = pin(2, 3, &[1, 4, 6], &[3]);
    let question = moves::question(&entry, &standings);
    assert_eq!(nodes(&question.current), vec![1, 4, 6]);
    assert_eq!(nodes(&question.priority), vec![3], "it still has a copy");
    assert_eq!(nodes(&question.exclude), vec![4, 5]);
    let moved = moves::to(&entry, vec![peer(1), peer(2), peer(3)], &standings).unwrap();
    assert_eq!((nodes(&moved.allocations), nodes(&moved.leaving)), (vec![1, 2, 3], vec![4]));
    assert_eq!(moved.expected_revision, 7);
    assert_eq!(moves::to(&entry, vec![peer(6), peer(4), peer(1)], &standings), None);
    let vacated = moves::vacated(&pin(1, 3, &[1, 5, 6], &[]), &standings).unwrap();
    assert_eq!((nodes(&vacated.allocations), nodes(&vacated.leaving)), (vec![1], vec![5]));
}

/// Goal: nothing is let go before enough really hold it, whatever is not known.
#[test]
fn seed_h6_let_go_when_enough_hold_it() {
    let standings = standings();
    let entry = pin(2, 3, &[1, 2, 3], &[4, 5]);
    let with = |held: &[u64], other: Copy| {
        settle::step(&entry, &standings, |peer| if held.contains(&u64::from(peer[0])) { Copy::Held } else { other })
    };
    assert_eq!(with(&[1], Copy::No), None);
    assert_eq!(with(&[1, 4, 5], Copy::Unknown), None, "copies that leave do not count");
    let Some(Step::Drop(settle)) = with(&[1, 3], Copy::Unknown) else { panic!() };
    assert_eq!((nodes(&settle.drop), settle.expected_revision), (vec![4, 5], 7));
    assert_eq!(settle::step(&pin(2, 3, &[1, 2], &[]), &standings, |_| Copy::Held), None);
}

/// Goal: a peer that returned with its copy is taken back while there is room, or in place of one that has none yet;
/// otherwise it is surplus. Never above the maximum.
#[test]
fn seed_h6_a_returned_peer_is_taken_back() {
    let mut table = table(&[State::Healthy; 5]);
    table.rows.get_mut(&4).unwrap().back_index = 9;
    let standings = Standings::new(&table, &BTreeSet::new());
    let with = |entry: &types::Pin, held: &[u64], other: Copy| {
        settle::step(entry, &standings, |peer| if held.contains(&u64::from(peer[0])) { Copy::Held } else { other })
    };
    let roomy = pin(2, 3, &[1, 2], &[4]);
    let Some(Step::TakeBack(moved)) = with(&roomy, &[1, 4], Copy::No) else { panic!() };
    assert_eq!((nodes(&moved.allocations), nodes(&moved.leaving)), (vec![1, 2, 4], vec![]));
    assert_eq!(with(&roomy, &[1, 2], Copy::Unknown), None, "its connector will say");
    let full = pin(2, 3, &[1, 2, 3], &[4]);
    let Some(Step::TakeBack(moved)) = with(&full, &[1, 4], Copy::No) else { panic!() };
    assert_eq!(
        (nodes(&moved.allocations), nodes(&moved.leaving)),
        (vec![1, 2, 4], vec![]),
        "instead of a copy to come"
    );
    let Some(Step::Drop(settle)) = with(&full, &[1, 2, 3, 4], Copy::No) else { panic!() };
    assert_eq!(nodes(&settle.drop), vec![4], "surplus");
    let mut newer = full;
    newer.revision = 10;
    assert_eq!(with(&newer, &[1, 4], Copy::No), None, "written since it is back: somebody wants it to go");
}
