//! Who is away (protocols.md 6). PURE: the words of the witnesses and the instant are passed in.
//!
//! A member is *doubted* while the leader's own Raft hears nothing of it, no monitor of a witness that matters hears its
//! pings, and two witnesses say so: the leader's monitor and one more voter's, or, while the leader's monitor does not
//! answer, two other voters'. A doubt that lasts for the grace becomes `PeerAway`, once. What is committed is known to
//! the next leader; what is not starts anew with it, with this process, and after a pause of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::types::peer::State;
use pinfold_proto::{monitor, storage, types};

use super::MAINTENANCE;
use crate::pinset::PeerTable;

/// Looks come every second. After a longer gap this process was paused, and knows nothing of the time between.
pub const PAUSE: Duration = Duration::from_secs(5);
/// A member with a Raft message younger than this is there.
pub const CONTACT_FRESH: Duration = Duration::from_secs(10);

/// What one monitor says of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    pub is_alive: bool,
    pub is_suspect: bool,
    /// For how long the monitor has been told that its IPFS node is down; zero: it is not.
    pub ipfs_down_for: Duration,
    /// Its tags, name and value.
    pub tags: BTreeMap<String, String>,
}

/// What one monitor says of everybody, by peer ID.
pub type Testimony = BTreeMap<Vec<u8>, Word>;

/// A monitor's answer as testimony.
pub fn testimony(verdicts: Vec<monitor::Verdict>) -> Testimony {
    let word = |verdict: monitor::Verdict| {
        let is_suspect = match verdict.state() {
            monitor::verdict::State::Suspect => true,
            // Of a peer that is away only its return is asked for.
            monitor::verdict::State::Unspecified | monitor::verdict::State::Healthy | monitor::verdict::State::Away => {
                false
            }
        };
        let tags = verdict.tags.into_iter().map(|tag| (tag.key, tag.value)).collect();
        let ipfs_down_for = Duration::from_millis(verdict.ipfs_down_for_ms);
        (verdict.peer_id, Word { is_alive: verdict.alive, is_suspect, ipfs_down_for, tags })
    };
    verdicts.into_iter().map(word).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub grace: Duration,
    /// Zero: never.
    pub ipfs_down_after: Duration,
}

/// One look.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub now: Instant,
    /// For maintenance, which people give in wall-clock time.
    pub wall_seconds: i64,
    pub term: u64,
    pub own_node: u64,
    pub peers: &'a PeerTable,
    pub settings: &'a BTreeMap<String, String>,
    /// Nodes that the leader's Raft has heard of within `CONTACT_FRESH`.
    pub in_contact: &'a BTreeSet<u64>,
    /// `None`: the leader's own monitor does not answer.
    pub own: Option<&'a Testimony>,
    /// Of other voters that answer.
    pub others: &'a [Testimony],
    pub rules: Rules,
}

/// What follows from one look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// In which it was made.
    pub term: u64,
    pub commands: Vec<Kind>,
    /// Members in doubt, and how long it is until they are away; those in maintenance are not among them.
    pub doubted: BTreeMap<Vec<u8>, Duration>,
    /// Members whose IPFS nodes have been down for too long.
    pub ipfs_down: BTreeSet<Vec<u8>>,
    /// Tags of members as far as they were ever heard, by peer ID.
    pub tags: BTreeMap<Vec<u8>, BTreeMap<String, String>>,
}

/// The timers of one leader. Nodes, not peers: a peer that comes back without its data is another one.
#[derive(Debug, Default)]
pub struct Judge {
    term: u64,
    looked: Option<Instant>,
    doubts: BTreeMap<u64, Instant>,
    ipfs_down: BTreeSet<Vec<u8>>,
    tags: BTreeMap<Vec<u8>, BTreeMap<String, String>>,
}

impl Judge {
    pub fn look(&mut self, scene: &Scene) -> Judgement {
        self.start_over_if_new(scene);
        let members = || scene.peers.members().filter(|row| row.node_id != scene.own_node);
        self.doubts.retain(|node, _| members().any(|row| row.node_id == *node));
        self.learn_tags(scene);
        self.learn_ipfs_down(scene);
        let mut judgement = Judgement { term: scene.term, ..Judgement::default() };
        if let Some(row) = scene.peers.node(scene.own_node).filter(|row| row.state() == State::Away) {
            // Nobody else may notice that the one who leads is here.
            judgement.commands.push(back(row));
        }
        for row in members() {
            let maintained = maintained_until(scene.settings, row.node_id);
            let is_maintained = maintained.is_some_and(|until| scene.wall_seconds < until);
            if maintained.is_some() && !is_maintained {
                let key = maintenance_key(row.node_id);
                judgement.commands.push(Kind::Setting(storage::Setting { key, value: String::new() }));
            }
            self.judge(scene, row, is_maintained, &mut judgement);
        }
        judgement.ipfs_down = self.ipfs_down.clone();
        judgement.tags = self.tags.clone();
        judgement
    }

    fn start_over_if_new(&mut self, scene: &Scene) {
        let was_paused = self.looked.is_none_or(|looked| scene.now.saturating_duration_since(looked) > PAUSE);
        if was_paused || self.term != scene.term {
            self.doubts.clear();
        }
        self.term = scene.term;
        self.looked = Some(scene.now);
    }

    fn judge(&mut self, scene: &Scene, row: &types::Peer, is_maintained: bool, judgement: &mut Judgement) {
        let own_word = scene.own.and_then(|words| words.get(&row.peer_id));
        let is_heard = scene.in_contact.contains(&row.node_id) || own_word.is_some_and(|word| word.is_alive);
        match row.state() {
            State::Away => {
                self.doubts.remove(&row.node_id);
                if is_heard {
                    judgement.commands.push(back(row));
                }
            }
            State::Healthy | State::Draining => {
                if is_heard || !is_doubted(scene, row) {
                    self.doubts.remove(&row.node_id);
                    return;
                }
                let since = *self.doubts.entry(row.node_id).or_insert(scene.now);
                let left = scene.rules.grace.saturating_sub(scene.now.saturating_duration_since(since));
                if is_maintained {
                    return;
                }
                judgement.doubted.insert(row.peer_id.clone(), left);
                if left.is_zero() {
                    let away = storage::PeerAway { peer_id: row.peer_id.clone(), node_id: row.node_id };
                    judgement.commands.push(Kind::PeerAway(away));
                }
            }
            State::Removed => {}
        }
    }

    /// Said by the peer itself, in its pings: one witness is enough for that. Its timer is the monitor's, so that a change
    /// of leader does not begin it anew.
    fn learn_ipfs_down(&mut self, scene: &Scene) {
        let after = scene.rules.ipfs_down_after;
        self.ipfs_down.retain(|peer| scene.peers.member(peer).is_some());
        // Without news, what was known stands.
        for (peer, word) in scene.own.into_iter().flatten() {
            if !after.is_zero() && word.is_alive && word.ipfs_down_for >= after {
                self.ipfs_down.insert(peer.clone());
            } else if word.is_alive {
                self.ipfs_down.remove(peer);
            }
        }
    }

    /// Of a peer that is away, its tags are remembered: its failure domain does not change by its absence.
    fn learn_tags(&mut self, scene: &Scene) {
        for (peer, word) in scene.others.iter().flatten().chain(scene.own.into_iter().flatten()) {
            if !word.tags.is_empty() {
                self.tags.insert(peer.clone(), word.tags.clone());
            }
        }
        self.tags.retain(|peer, _| scene.peers.member(peer).is_some());
    }
}

fn back(row: &types::Peer) -> Kind {
    Kind::PeerBack(storage::PeerBack { peer_id: row.peer_id.clone(), node_id: row.node_id })
}

/// Whether two witnesses miss the member; one, where there is no other voter that could be the second.
fn is_doubted(scene: &Scene, row: &types::Peer) -> bool {
    let suspects = |words: &Testimony| words.get(&row.peer_id).is_some_and(|word| word.is_suspect);
    if scene.own.is_some_and(|words| !suspects(words)) {
        return false;
    }
    let own = usize::from(scene.own.is_some());
    let others = scene.others.iter().filter(|words| suspects(words)).count();
    let is_witness =
        |other: &&types::Peer| other.voter && other.node_id != scene.own_node && other.node_id != row.node_id;
    let needed = if scene.peers.members().any(|other| is_witness(&other)) { 2 } else { 1 };
    own + others >= needed
}

pub fn maintenance_key(node_id: u64) -> String {
    format!("{MAINTENANCE}{node_id:x}")
}

/// In Unix seconds.
pub fn maintained_until(settings: &BTreeMap<String, String>, node_id: u64) -> Option<i64> {
    settings.get(&maintenance_key(node_id)).map(|until| until.parse().unwrap_or(0))
}
