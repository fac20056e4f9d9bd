//! The peers as one batch of allocations sees them, and the order in which they are asked (`beh:B9.7`). PURE.
//!
//! The metrics of `allocate_by` are levels. The partitionable ones in front (tags) make nested groups; the first that is
//! not makes one group of each peer, and those behind it only break ties. Groups and peers are ordered by weight, then
//! by the weights of the levels below; picks go round over the groups of each level.
//!
//! Reservations change weights, so that a burst spreads: free space is divided by the shares a peer got (plus one), so
//! that a burst spreads in proportion to free space, and peers whose free space differs by a percent differ by a percent
//! in what they get. Used space and the number of pins are multiplied in the same way; a queue grows by what was given. Among equals, the one
//! with the fewest shares is first, then the hash of CID and peer ID decides (`beh:B9.11`).

use std::cmp::Ordering;
use std::collections::HashMap;

use pinfold_common::PeerId;
use pinfold_common::metric::{FREESPACE, NUMPIN, PINQUEUE, REPOSIZE};

use super::ledger::Ledger;

/// Metrics in `allocate_by`.
pub const MAX_LEVELS: usize = 8;

/// Whether a member counts as a holder, and whether it may get more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Alive; gets more if its metrics allow.
    Live,
    /// Alive, and its connector or IPFS node does not answer it: asked last.
    Hampered,
    /// Counts as a holder, gets nothing new: in doubt for less than the grace.
    Suspect,
    /// In the peerset, and not heard of yet.
    NotHeard,
    /// Does not count as a holder any more.
    Draining,
    Away,
}

/// One metric of one peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measured<'a> {
    Usable {
        weight: i64,
        value: &'a str,
        partitionable: bool,
    },
    /// Never published.
    Absent,
    Expired,
    /// Published as not valid: a full disk says so in this way.
    Invalid,
}

/// One member of the peerset, with its metric of each name of `allocate_by`.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    pub peer: PeerId,
    pub standing: Standing,
    pub measured: Vec<Measured<'a>>,
}

/// Why a peer gets nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Standing(Standing),
    Absent(usize),
    Expired(usize),
    Invalid(usize),
    NoMetric,
}

/// What a reservation does to the weight of a metric.
#[derive(Clone, Copy, Debug)]
enum Effect {
    Space,
    Used,
    Queue { bucket: f64 },
    Count,
    None,
}

impl Effect {
    fn of(name: &str, pinqueue_bucket: u64) -> Effect {
        match name {
            FREESPACE => Effect::Space,
            REPOSIZE => Effect::Used,
            PINQUEUE => Effect::Queue { bucket: pinqueue_bucket.max(1) as f64 },
            NUMPIN => Effect::Count,
            _ => Effect::None,
        }
    }

    /// The weight that counts, of one peer or of a group's sums.
    fn apply(self, weight: f64, bytes: f64, shares: f64) -> f64 {
        match self {
            Effect::Space => (weight - bytes).max(0.0) / (shares + 1.0),
            Effect::Used => (weight - bytes - 1.0) * (shares + 1.0),
            Effect::Queue { bucket } => weight - (shares / bucket).floor(),
            Effect::Count => (weight - 1.0) * (shares + 1.0),
            Effect::None => weight,
        }
    }
}

#[derive(Debug)]
struct Level {
    /// Position in `allocate_by`.
    position: usize,
    effect: Effect,
    /// Values of a partitionable level, by group number.
    groups: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub id: PeerId,
    pub standing: Standing,
    pub block: Option<Block>,
}

/// What peers are compared by, apart from the rest: a thousand of them stay in the processor's first cache.
#[derive(Clone, Copy, Debug)]
struct Rank {
    /// Of the first level that is not partitionable, reservations taken into account.
    key: f64,
    /// The same of the levels behind it, added up.
    rest: f64,
    shares: f64,
    hash: u64,
}

/// All members, at the moment of one batch. Peers are numbers in it.
#[derive(Debug)]
pub struct Field {
    names: Vec<String>,
    levels: Vec<Level>,
    /// Levels in front that are partitionable.
    leading: usize,
    pub(super) peers: Vec<Peer>,
    ranks: Vec<Rank>,
    bytes: Vec<f64>,
    /// One for each level of each peer.
    weights: Vec<f64>,
    /// One for each leading level of each peer.
    groups: Vec<u32>,
    by_id: HashMap<PeerId, u32>,
    /// Those that may get more, and those of them that are asked last.
    pub(super) live: Vec<u32>,
    pub(super) hampered: Vec<u32>,
    pub(super) mean_item_bytes: f64,
    /// What this batch gave away: to be entered in the ledger if the answer is given.
    pub taken: Vec<(PeerId, f64)>,
}

impl Field {
    /// `rows` have one measurement for each name of `allocate_by`, of which there are at most `MAX_LEVELS`.
    /// A name that nobody ever published is left out: it can tell nobody apart.
    pub fn new(allocate_by: &[String], pinqueue_bucket: u64, rows: &[Row<'_>], ledger: &Ledger) -> Field {
        assert!(allocate_by.len() <= MAX_LEVELS, "allocate_by is checked by the configuration");
        let mut levels: Vec<Level> = Vec::new();
        let mut leading = 0;
        for (position, name) in allocate_by.iter().enumerate() {
            let column = || rows.iter().map(|row| row.measured[position]);
            if column().all(|measured| measured == Measured::Absent) {
                continue;
            }
            let usable = column().filter(|measured| matches!(measured, Measured::Usable { .. })).count();
            // By majority, so that one peer cannot change the meaning of a metric for all.
            let flagged = column().filter(|m| matches!(m, Measured::Usable { partitionable: true, .. })).count();
            if flagged * 2 > usable && leading == levels.len() {
                leading += 1;
            }
            levels.push(Level { position, effect: Effect::of(name, pinqueue_bucket), groups: Vec::new() });
        }
        let mut field = Field {
            names: allocate_by.to_vec(),
            peers: Vec::with_capacity(rows.len()),
            ranks: Vec::with_capacity(rows.len()),
            bytes: Vec::with_capacity(rows.len()),
            weights: Vec::with_capacity(rows.len() * levels.len()),
            groups: Vec::with_capacity(rows.len() * leading),
            by_id: HashMap::with_capacity(rows.len()),
            live: Vec::new(),
            hampered: Vec::new(),
            mean_item_bytes: ledger.mean_item_bytes(),
            taken: Vec::new(),
            levels,
            leading,
        };
        let mut group_numbers: Vec<HashMap<&str, u32>> = vec![HashMap::new(); leading];
        for (index, row) in (0..).zip(rows) {
            field.add(index, row, &mut group_numbers, ledger);
        }
        field
    }

    fn add<'a>(&mut self, index: u32, row: &Row<'a>, group_numbers: &mut [HashMap<&'a str, u32>], ledger: &Ledger) {
        let mut missing = self.levels.is_empty().then_some(Block::NoMetric);
        for (number, level) in self.levels.iter_mut().enumerate() {
            let (weight, value) = match row.measured[level.position] {
                Measured::Usable { weight, value, .. } => (weight as f64, Some(value)),
                Measured::Absent | Measured::Expired | Measured::Invalid => (0.0, None),
            };
            missing = missing.or(match row.measured[level.position] {
                Measured::Usable { .. } => None,
                Measured::Absent => Some(Block::Absent(level.position)),
                Measured::Expired => Some(Block::Expired(level.position)),
                Measured::Invalid => Some(Block::Invalid(level.position)),
            });
            self.weights.push(weight);
            if number < self.leading {
                // A peer without a value is in some group or other: it is only ordered among holders.
                let group = value.map(|value| {
                    *group_numbers[number].entry(value).or_insert_with(|| {
                        level.groups.push(value.to_owned());
                        level.groups.len() as u32 - 1
                    })
                });
                self.groups.push(group.unwrap_or(0));
            }
        }
        let block = match row.standing {
            Standing::Live | Standing::Hampered => missing,
            Standing::Suspect | Standing::NotHeard | Standing::Draining | Standing::Away => {
                Some(Block::Standing(row.standing))
            }
        };
        match (row.standing, block) {
            (Standing::Live, None) => self.live.push(index),
            (Standing::Hampered, None) => self.hampered.push(index),
            (_, Some(_)) => {}
            (Standing::Suspect | Standing::NotHeard | Standing::Draining | Standing::Away, None) => {}
        }
        self.peers.push(Peer { id: row.peer, standing: row.standing, block });
        let hash = hash_bytes(&row.peer.to_bytes());
        self.ranks.push(Rank { key: 0.0, rest: 0.0, shares: ledger.shares(&row.peer), hash });
        self.bytes.push(ledger.bytes(&row.peer));
        self.by_id.insert(row.peer, index);
        self.rank(index);
    }

    pub(super) fn find(&self, peer: &PeerId) -> Option<u32> {
        self.by_id.get(peer).copied()
    }

    pub(super) fn peer(&self, index: u32) -> &Peer {
        &self.peers[index as usize]
    }

    /// One more item goes to this peer.
    pub(super) fn take(&mut self, index: u32, bytes: f64) {
        self.ranks[index as usize].shares += 1.0;
        self.bytes[index as usize] += bytes;
        self.taken.push((self.peer(index).id, bytes));
        self.rank(index);
    }

    fn weights_of(&self, index: u32) -> &[f64] {
        &self.weights[index as usize * self.levels.len()..][..self.levels.len()]
    }

    fn rank(&mut self, index: u32) {
        let Rank { shares, hash, .. } = self.ranks[index as usize];
        let bytes = self.bytes[index as usize];
        let weighed = self.levels.iter().zip(self.weights_of(index)).skip(self.leading);
        let mut weighed = weighed.map(|(level, weight)| level.effect.apply(*weight, bytes, shares));
        let key = weighed.next().unwrap_or(0.0);
        let rest = weighed.sum();
        self.ranks[index as usize] = Rank { key, rest, shares, hash };
    }

    /// A disk that is full says so by a metric that is not valid.
    pub(super) fn is_want_of_space(&self, block: Block) -> bool {
        match block {
            Block::Invalid(position) => [FREESPACE, REPOSIZE].contains(&self.names[position].as_str()),
            Block::Standing(_) | Block::Absent(_) | Block::Expired(_) | Block::NoMetric => false,
        }
    }

    /// Why this peer gets nothing new, for people.
    pub(super) fn explain(&self, block: Block) -> String {
        let name = |position: usize| &self.names[position];
        match block {
            Block::Standing(Standing::Suspect) => "neither its pings nor raft are heard".to_owned(),
            Block::Standing(Standing::NotHeard) => "not heard of yet".to_owned(),
            Block::Standing(Standing::Draining) => "draining".to_owned(),
            Block::Standing(Standing::Away) => "away".to_owned(),
            Block::Standing(Standing::Live | Standing::Hampered) => "live".to_owned(),
            Block::Absent(position) => format!("has published no {}", name(position)),
            Block::Expired(position) => format!("its {} has expired", name(position)),
            Block::Invalid(_) if self.is_want_of_space(block) => "its disk is full".to_owned(),
            Block::Invalid(position) => format!("its {} is not valid", name(position)),
            Block::NoMetric => format!("nobody has published {}", self.names.join(", ")),
        }
    }

    /// The first `count` of these peers, best first.
    pub(super) fn order(&self, members: &[u32], count: usize, cid_hash: u64) -> Vec<u32> {
        self.order_level(0, members, count, cid_hash)
    }

    fn order_level(&self, number: usize, members: &[u32], count: usize, cid_hash: u64) -> Vec<u32> {
        if number == self.leading {
            return first(members.iter().copied(), count, |a, b| self.compare_peers(*a, *b, cid_hash));
        }
        if self.levels[number].groups.len() <= 1 {
            return self.order_level(number + 1, members, count, cid_hash);
        }
        let groups = self.sum_groups(number, members);
        let best = first(0..groups.len(), count, |a, b| self.compare_groups(number, &groups[*a], &groups[*b]));
        let lists = best.into_iter().map(|at| {
            let is_in = |index: &u32| self.group_of(number, *index) == groups[at].name;
            let inside: Vec<u32> = members.iter().copied().filter(is_in).collect();
            self.order_level(number + 1, &inside, count, cid_hash)
        });
        round_robin(lists.collect(), count)
    }

    fn group_of(&self, number: usize, index: u32) -> u32 {
        self.groups[index as usize * self.leading + number]
    }

    /// The groups of a level that have members among these.
    fn sum_groups(&self, number: usize, members: &[u32]) -> Vec<Group> {
        let names = 0..self.levels[number].groups.len() as u32;
        let mut groups: Vec<Group> = names.map(|name| Group { name, ..Group::default() }).collect();
        for &index in members {
            let group = &mut groups[self.group_of(number, index) as usize];
            group.members += 1.0;
            group.bytes += self.bytes[index as usize];
            group.shares += self.ranks[index as usize].shares;
            for (sum, weight) in group.weights.iter_mut().zip(self.weights_of(index)) {
                *sum += weight;
            }
        }
        groups.retain(|group| group.members > 0.0);
        for group in &mut groups {
            let sums = self.levels.iter().zip(group.weights).skip(number);
            let mut weighed = sums.map(|(level, sum)| level.effect.apply(sum, group.bytes, group.shares));
            group.key = weighed.next().unwrap_or(0.0);
            group.rest = weighed.sum();
        }
        groups
    }

    fn compare_groups(&self, number: usize, a: &Group, b: &Group) -> Ordering {
        let names = &self.levels[number].groups;
        b.key
            .total_cmp(&a.key)
            .then_with(|| b.rest.total_cmp(&a.rest))
            .then_with(|| (a.shares / a.members).total_cmp(&(b.shares / b.members)))
            .then_with(|| names[a.name as usize].cmp(&names[b.name as usize]))
    }

    fn compare_peers(&self, first: u32, second: u32, cid_hash: u64) -> Ordering {
        let (a, b) = (&self.ranks[first as usize], &self.ranks[second as usize]);
        b.key
            .total_cmp(&a.key)
            .then_with(|| b.rest.total_cmp(&a.rest))
            .then_with(|| a.shares.total_cmp(&b.shares))
            .then_with(|| mix(cid_hash, a.hash).cmp(&mix(cid_hash, b.hash)))
            .then_with(|| self.peer(first).id.cmp(&self.peer(second).id))
    }
}

/// The members of one group among those that are ordered, added up.
#[derive(Debug, Default)]
struct Group {
    name: u32,
    members: f64,
    weights: [f64; MAX_LEVELS],
    bytes: f64,
    shares: f64,
    key: f64,
    rest: f64,
}

/// The first `count` in order. Few of many are wanted as a rule, so this keeps them sorted while it looks at all once.
fn first<T>(items: impl Iterator<Item = T>, count: usize, compare: impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    let mut best: Vec<T> = Vec::new();
    for item in items {
        if best.len() == count {
            if best.last().is_none_or(|worst| compare(&item, worst) != Ordering::Less) {
                continue;
            }
            best.pop();
        }
        let at = best.partition_point(|known| compare(known, &item) == Ordering::Less);
        best.insert(at, item);
    }
    best
}

/// One from each list in turn, until `count` or all are taken (`beh:B9.7`).
fn round_robin(lists: Vec<Vec<u32>>, count: usize) -> Vec<u32> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    let turns = (0..longest).flat_map(|turn| lists.iter().filter_map(move |list| list.get(turn).copied()));
    turns.take(count).collect()
}

/// FNV-1a: the same on every machine and in every release, unlike the standard library's hasher.
pub(super) fn hash_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A hash of a pair (the finisher of SplitMix64).
fn mix(cid_hash: u64, peer_hash: u64) -> u64 {
    let mut x = cid_hash.rotate_left(32) ^ peer_hash;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
