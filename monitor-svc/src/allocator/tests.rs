//! The rules of `beh:B9`, the examples that stand there, and bursts.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::*;

/// A small cluster whose peers are named by letters.
struct Cluster {
    by: Vec<String>,
    peers: Vec<PeerId>,
    standings: Vec<Standing>,
    metrics: HashMap<(usize, String), (i64, String, bool)>,
    /// Metrics that are not usable.
    broken: HashMap<(usize, String), Measured<'static>>,
    ledger: Ledger,
    now: Instant,
}

const TB: i64 = 1_000_000_000_000;

fn cluster(by: &[&str], count: usize) -> Cluster {
    let now = Instant::now();
    Cluster {
        by: by.iter().map(|name| name.to_string()).collect(),
        // The same in every run, so that a failure can be repeated.
        peers: (0..count as u64).map(peer).collect(),
        standings: vec![Standing::Live; count],
        metrics: HashMap::new(),
        broken: HashMap::new(),
        ledger: Ledger::new(now),
        now,
    }
}

fn peer(number: u64) -> PeerId {
    let mut bytes = vec![0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
    bytes.extend(number.to_be_bytes().repeat(4));
    PeerId::from_bytes(&bytes).unwrap()
}

impl Cluster {
    fn weigh(mut self, name: &str, weights: &[i64]) -> Cluster {
        for (index, weight) in weights.iter().enumerate() {
            self.metrics.insert((index, name.to_owned()), (*weight, weight.to_string(), false));
        }
        self
    }

    fn tag(mut self, name: &str, values: &[&str]) -> Cluster {
        for (index, value) in values.iter().enumerate() {
            self.metrics.insert((index, name.to_owned()), (0, value.to_string(), true));
        }
        self
    }

    fn standing(mut self, index: usize, standing: Standing) -> Cluster {
        self.standings[index] = standing;
        self
    }

    fn broken(mut self, index: usize, name: &str, measured: Measured<'static>) -> Cluster {
        self.metrics.remove(&(index, name.to_owned()));
        self.broken.insert((index, name.to_owned()), measured);
        self
    }

    fn field(&mut self) -> Field {
        self.ledger.settle(self.now);
        let measured = |index: usize, name: &String| {
            if let Some(measured) = self.broken.get(&(index, name.clone())) {
                return *measured;
            }
            self.metrics.get(&(index, name.clone())).map_or(Measured::Absent, |(weight, value, partitionable)| {
                Measured::Usable { weight: *weight, value, partitionable: *partitionable }
            })
        };
        let rows: Vec<Row<'_>> = (0..self.peers.len())
            .map(|index| Row {
                peer: self.peers[index],
                standing: self.standings[index],
                measured: self.by.iter().map(|name| measured(index, name)).collect(),
            })
            .collect();
        Field::new(&self.by, 1, &rows, &self.ledger)
    }

    /// Decides a batch and enters it in the ledger.
    fn allocate(&mut self, items: &[Item]) -> Vec<Outcome> {
        let mut field = self.field();
        let outcomes = allocate(&mut field, items);
        for (peer, bytes) in field.taken {
            self.ledger.reserve(peer, bytes);
        }
        outcomes
    }

    fn one(&mut self, item: Item) -> Outcome {
        self.allocate(&[item]).remove(0)
    }

    /// The letters of the peers that one item goes to, in order.
    fn letters(&mut self, item: Item) -> String {
        match self.one(item) {
            Outcome::Peers(peers) => peers.iter().map(|peer| self.letter(peer)).collect(),
            Outcome::TooFew(few) => panic!("{few:?}"),
        }
    }

    fn letter(&self, peer: &PeerId) -> char {
        let index = self.peers.iter().position(|known| known == peer).unwrap();
        char::from(b'A' + index as u8)
    }

    fn ids(&self, letters: &str) -> Vec<PeerId> {
        letters.bytes().map(|letter| self.peers.get(usize::from(letter - b'A')).copied().unwrap_or(peer(999))).collect()
    }

    fn item(&self, min: i32, max: i32, current: &str) -> Item {
        Item { current: self.ids(current), ..item(0, min, max) }
    }

    fn few(&mut self, item: Item) -> TooFew {
        match self.one(item) {
            Outcome::TooFew(few) => few,
            Outcome::Peers(peers) => panic!("{peers:?}"),
        }
    }
}

fn item(number: u32, min: i32, max: i32) -> Item {
    Item {
        cid: number.to_be_bytes().to_vec(),
        factors: Factors::parse(min, max).unwrap(),
        current: Vec::new(),
        priority: Vec::new(),
        exclude: Vec::new(),
        growth: Growth::ToMax,
        size_bytes: 0,
    }
}

fn if_below_min(item: Item) -> Item {
    Item { growth: Growth::IfBelowMin, ..item }
}

/// Goal: factors are checked as beh:B8.4 says.
#[test]
fn factors() {
    assert_eq!(Factors::parse(-1, -1), Ok(Factors::Everywhere));
    assert_eq!(Factors::parse(2, 3), Ok(Factors::Between { min: 2, max: 3 }));
    for (min, max) in [(0, 0), (0, 1), (2, 1), (-1, 2), (1, -1), (-2, -2)] {
        assert!(Factors::parse(min, max).is_err(), "{min} {max}");
    }
}

/// Goal: the example of beh:B9.7: one peer of each region, the one with most free space, the regions with most first.
#[test]
fn seed_c14_one_of_each_region() {
    let mut c = cluster(&["tag:region", "freespace"], 6)
        .tag("tag:region", &["eu", "eu", "us", "us", "asia", "asia"])
        .weigh("freespace", &[10 * TB, 20 * TB, 50 * TB, 40 * TB, 5 * TB, 6 * TB]);
    assert_eq!(c.letters(item(0, 3, 3)), "CBF");
    // The rounds go on in the same order: all six.
    let mut c = Cluster { ledger: Ledger::new(c.now), ..c };
    assert_eq!(c.letters(item(0, 6, 6)), "CBFDAE");
}

/// Goal: the position of a round persists on lower levels too: the second pick of a region is from its second zone.
#[test]
fn nested_groups() {
    let mut c = cluster(&["tag:region", "tag:zone", "freespace"], 6)
        .tag("tag:region", &["eu", "eu", "eu", "us", "us", "us"])
        .tag("tag:zone", &["e1", "e1", "e2", "u1", "u1", "u2"])
        .weigh("freespace", &[9 * TB, 8 * TB, TB, 3 * TB, 2 * TB, TB]);
    assert_eq!(c.letters(item(0, 4, 4)), "ADCF");
}

/// Goal: a metric that is not partitionable makes one group per peer; the next one only breaks ties.
#[test]
fn ties_are_broken_by_the_next_metric() {
    let mut c = cluster(&["pinqueue", "freespace"], 4)
        .weigh("pinqueue", &[-1, 0, 0, -1])
        .weigh("freespace", &[9 * TB, TB, 2 * TB, 8 * TB]);
    assert_eq!(c.letters(item(0, 4, 4)), "CBAD");
}

/// Goal: among equals the hash of CID and peer decides: always the same for one CID, and not the same for all.
#[test]
fn equal_peers() {
    let mut firsts = BTreeMap::new();
    for number in 0..600 {
        let mut c = cluster(&["freespace"], 5).weigh("freespace", &[TB; 5]);
        let letters = c.letters(item(number, 1, 1));
        c.ledger = Ledger::new(c.now);
        assert_eq!(c.letters(item(number, 1, 1)), letters);
        *firsts.entry(letters).or_insert(0) += 1;
    }
    assert_eq!(firsts.len(), 5);
    assert!(firsts.values().all(|count| (80..=160).contains(count)), "{firsts:?}");
}

/// Goal: beh:B9.4: kept, filled, shrunk; what was neither valid nor kept vanishes.
#[test]
fn seed_h3_h7_growing_and_shrinking() {
    let fresh = || cluster(&["freespace"], 6).weigh("freespace", &[6 * TB, 5 * TB, 4 * TB, 3 * TB, 2 * TB, TB]);
    // A user asks: filled up to max (beh:B8.13 NEW); holders first, in stored order.
    let mut c = fresh();
    assert_eq!(c.letters(c.item(2, 4, "FE")), "FEAB");
    // Nobody asks: only below min.
    let mut c = fresh();
    assert_eq!(c.letters(if_below_min(c.item(2, 4, "FE"))), "FE");
    assert_eq!(c.letters(if_below_min(c.item(3, 4, "FE"))), "FEAB");
    // Too many: the worst go.
    let mut c = fresh();
    assert_eq!(c.letters(c.item(1, 2, "FEBA")), "BA");
    // The same is the same: nothing is reserved.
    let mut c = fresh();
    assert_eq!(c.letters(c.item(2, 2, "FE")), "FE");
    assert_eq!(c.ledger.shares(&c.peers[5]), 0.0);
}

/// Goal: seed:H2: min 2 max 3, three allocations: one away changes nothing, two away are replaced.
#[test]
fn seed_h2_holders_that_are_away() {
    let fresh = || cluster(&["freespace"], 6).weigh("freespace", &[TB; 6]).standing(0, Standing::Away);
    let mut c = fresh();
    assert_eq!(c.letters(if_below_min(c.item(2, 3, "ABC"))), "ABC");
    let mut c = fresh().standing(1, Standing::Away);
    let letters = c.letters(if_below_min(c.item(2, 3, "ABC")));
    assert_eq!(letters.len(), 3);
    assert!(letters.starts_with('C') && !letters.contains(['A', 'B']), "{letters}");
    // A user asks: the one that is away is replaced at once.
    let mut c = fresh();
    let letters = c.letters(c.item(2, 3, "ABC"));
    assert!(letters.starts_with("BC") && letters.len() == 3, "{letters}");
    // Nobody to replace it, and room for it: it stays listed.
    let mut c = cluster(&["freespace"], 3).weigh("freespace", &[TB; 3]).standing(0, Standing::Away);
    assert_eq!(c.letters(c.item(2, 3, "ABC")), "ABC");
    assert_eq!(c.letters(c.item(2, 2, "ABC")), "BC");
    // A peer that is no member any more does not count either.
    let mut c = fresh();
    assert_eq!(c.letters(if_below_min(c.item(1, 1, "Z"))).len(), 1);
}

/// Goal: a full disk keeps what it has and gets nothing new; the same goes for a peer in doubt.
#[test]
fn seed_d6_holding_and_getting_more() {
    let fresh = || {
        cluster(&["freespace"], 4)
            .weigh("freespace", &[9 * TB, 8 * TB, TB, 2 * TB])
            .broken(0, "freespace", Measured::Invalid)
            .standing(1, Standing::Suspect)
    };
    let mut c = fresh();
    assert_eq!(c.letters(item(0, 2, 4)), "DC");
    let mut c = fresh();
    assert_eq!(c.letters(if_below_min(c.item(2, 3, "AB"))), "AB");
    // Shrinking drops those in doubt first, then the full one.
    let mut c = fresh();
    assert_eq!(c.letters(c.item(1, 2, "ABC")), "AC");
    assert_eq!(c.letters(c.item(1, 1, "ABC")), "C");
    // A draining peer does not count as a holder.
    let mut c = fresh().standing(2, Standing::Draining);
    assert_eq!(c.letters(c.item(1, 1, "C")), "D");
    // One whose node or connector is down is asked last.
    let mut c = cluster(&["freespace"], 3).weigh("freespace", &[9 * TB, TB, TB]).standing(0, Standing::Hampered);
    assert!(c.letters(item(0, 3, 3)).ends_with('A'));
}

/// Goal: wishes come before candidates and after holders, and a wish that cannot be met is skipped (beh:B9.6).
#[test]
fn wishes_and_exclusions() {
    let fresh = || {
        cluster(&["freespace"], 5)
            .weigh("freespace", &[5 * TB, 4 * TB, 3 * TB, 2 * TB, TB])
            .standing(3, Standing::Suspect)
    };
    let mut c = fresh();
    let wish = |c: &Cluster, item: Item, letters: &str| Item { priority: c.ids(letters), ..item };
    let asked = wish(&c, c.item(2, 3, "C"), "EDZC");
    assert_eq!(c.letters(asked), "CEA");
    let mut c = fresh();
    let asked = Item { exclude: c.ids("AC"), ..c.item(1, 2, "C") };
    assert_eq!(c.letters(asked), "BE");
    // Excluded holders stay when nobody asks and enough others are there (beh:B9.4.2).
    let mut c = fresh();
    let asked = if_below_min(Item { exclude: c.ids("A"), ..c.item(1, 2, "AB") });
    assert_eq!(c.letters(asked), "AB");
}

/// Goal: too few is said with the numbers of beh:B9.4.3 and a reason for each peer left out.
#[test]
fn too_few() {
    let mut c = cluster(&["tag:group", "freespace"], 6)
        .tag("tag:group", &["default"; 6])
        .weigh("freespace", &[TB; 6])
        .broken(1, "freespace", Measured::Invalid)
        .broken(2, "freespace", Measured::Expired)
        .broken(3, "tag:group", Measured::Absent)
        .standing(4, Standing::Away);
    let asked = Item { exclude: c.ids("F"), ..c.item(3, 4, "A") };
    let few = c.few(asked);
    assert_eq!((few.needed, few.wanted, few.candidates), (2, 3, 0));
    let expected = [
        (1, "its disk is full"),
        (2, "its freespace has expired"),
        (3, "has published no tag:group"),
        (4, "away"),
        (5, "excluded by the request"),
    ];
    let expected: Vec<String> = expected.iter().map(|(index, why)| format!("{}: {why}", c.peers[*index])).collect();
    assert_eq!(few.reasons, expected);
    // The list of reasons is bounded.
    let mut big = cluster(&["freespace"], 300).weigh("freespace", &[TB; 1]);
    let few = big.few(item(0, 2, 2));
    assert_eq!(few.reasons.len(), MAX_REASONS + 1);
    assert_eq!(few.reasons[MAX_REASONS], "and 199 more");
}

/// Goal: a metric that nobody publishes blocks nobody; when nobody publishes any, nobody is chosen blindly; and a disk
/// that is full everywhere is not the same as a metric that does not exist.
#[test]
fn unpublished_metrics() {
    let mut c = cluster(&["tag:nonsense", "freespace"], 3).weigh("freespace", &[TB, 2 * TB, 3 * TB]);
    assert_eq!(c.letters(item(0, 2, 2)), "CB");
    let mut c = cluster(&["tag:nonsense", "freespace"], 2);
    assert!(c.few(item(0, 1, 1)).reasons[0].contains("nobody has published tag:nonsense, freespace"));
    let mut c = cluster(&["tag:group", "freespace"], 2)
        .tag("tag:group", &["default"; 2])
        .broken(0, "freespace", Measured::Invalid)
        .broken(1, "freespace", Measured::Invalid);
    assert!(c.few(item(0, 1, 1)).reasons[0].contains("its disk is full"));
}

/// Goal: everywhere is the empty list; the blocks of an add go to every live peer then (beh:B9.9).
#[test]
fn everywhere() {
    let mut c = cluster(&["freespace"], 4)
        .weigh("freespace", &[TB; 4])
        .broken(0, "freespace", Measured::Invalid)
        .standing(1, Standing::Suspect);
    assert_eq!(c.letters(c.item(-1, -1, "AB")), "");
    let add = Item { growth: Growth::ForBlocks, cid: Vec::new(), ..item(0, -1, -1) };
    assert_eq!(c.letters(add.clone()), "ACD");
    let mut c = cluster(&["freespace"], 1).standing(0, Standing::NotHeard);
    assert!(c.few(add).reasons[0].ends_with("not heard of yet"));
    // An add with factors is like a pin without holders.
    let mut c = cluster(&["freespace"], 3).weigh("freespace", &[TB, 2 * TB, 3 * TB]);
    assert_eq!(c.letters(Item { growth: Growth::ForBlocks, cid: Vec::new(), ..item(0, 1, 2) }), "CB");
}

/// How many copies each peer got.
fn counts(c: &Cluster, outcomes: &[Outcome]) -> Vec<usize> {
    let mut counts = vec![0; c.peers.len()];
    for outcome in outcomes {
        let Outcome::Peers(peers) = outcome else { panic!("{outcome:?}") };
        for peer in peers {
            counts[c.peers.iter().position(|known| known == peer).unwrap()] += 1;
        }
    }
    counts
}

fn burst(range: std::ops::Range<u32>) -> Vec<Item> {
    range.map(|number| item(number, 2, 2)).collect()
}

fn is_even(counts: &[usize]) -> bool {
    counts.iter().all(|count| (216..=264).contains(count))
}

/// Goal: 600 pins of factor 2 on five equal peers in one burst: 240 ± 10 % each (protocols.md 5), whether they come as
/// one batch, one by one, or over a minute; with the group tag of the default configuration or without.
#[test]
fn a_burst_on_equal_peers() {
    for by in [
        vec!["freespace"],
        vec!["tag:group", "freespace"],
        vec!["reposize"],
        vec!["pinqueue"],
        vec!["numpin"],
        vec!["tag:group"],
    ] {
        let fresh = || {
            cluster(&by, 5)
                .tag("tag:group", &["default"; 5])
                .weigh("freespace", &[TB; 5])
                .weigh("reposize", &[-TB; 5])
                .weigh("pinqueue", &[0; 5])
                .weigh("numpin", &[-1000; 5])
        };
        let mut c = fresh();
        let outcomes = c.allocate(&burst(0..600));
        assert!(is_even(&counts(&c, &outcomes)), "{by:?} {:?}", counts(&c, &outcomes));
        for pause in [Duration::ZERO, Duration::from_millis(100)] {
            let mut c = fresh();
            let mut outcomes = Vec::new();
            for single in burst(0..600) {
                c.now += pause;
                outcomes.push(c.one(single));
            }
            assert!(is_even(&counts(&c, &outcomes)), "{by:?} {pause:?} {:?}", counts(&c, &outcomes));
        }
    }
}

/// Goal: peers of one machine report nearly the same free space; that difference does not decide a burst, whatever the
/// items weigh, and not when metrics arrive in its middle.
#[test]
fn a_burst_on_nearly_equal_peers() {
    let spaces = [9_999_973_974, 9_999_972_875, 9_999_973_974, 9_950_000_000, 9_999_000_000];
    for size_bytes in [0, 100, 1_000_000] {
        let mut c = cluster(&["freespace"], 5).weigh("freespace", &spaces);
        let mut outcomes = Vec::new();
        for (number, chunk) in burst(0..600).chunks(50).enumerate() {
            let sized: Vec<Item> = chunk.iter().map(|each| Item { size_bytes, ..each.clone() }).collect();
            outcomes.extend(c.allocate(&sized));
            // One of the five reports in the middle of the burst, and knows nothing of it yet.
            c.ledger.measured(&c.peers[number % 5], Holding::default());
            c.now += Duration::from_millis(300);
        }
        assert!(is_even(&counts(&c, &outcomes)), "{size_bytes}: {:?}", counts(&c, &outcomes));
    }
}

/// Goal: with unequal disks a burst spreads in proportion to free space, by peer and by region.
#[test]
fn a_burst_on_unequal_peers() {
    let mut c = cluster(&["freespace"], 4).weigh("freespace", &[4 * TB, 3 * TB, 2 * TB, TB]);
    let singles: Vec<Item> = (0..1000).map(|number| item(number, 1, 1)).collect();
    let outcomes = c.allocate(&singles);
    for (count, expected) in counts(&c, &outcomes).into_iter().zip([400_usize, 300, 200, 100]) {
        assert!(count.abs_diff(expected) <= 3, "{count} for {expected}");
    }
    let mut c = cluster(&["tag:region", "freespace"], 4)
        .tag("tag:region", &["eu", "eu", "eu", "us"])
        .weigh("freespace", &[TB; 4]);
    let outcomes = c.allocate(&singles);
    for count in counts(&c, &outcomes) {
        assert!(count.abs_diff(250) <= 3, "{count}");
    }
    // A peer with little space left is filled with what is reserved, not beyond its share.
    let mut c = cluster(&["freespace"], 2).weigh("freespace", &[TB, 1000]);
    let outcomes =
        c.allocate(&singles.iter().map(|each| Item { size_bytes: 1000, ..each.clone() }).collect::<Vec<_>>());
    assert!(counts(&c, &outcomes)[1] <= 1);
}

/// Goal: a later pin at leisure goes to the peer with most free space again: a burst is forgotten.
#[test]
fn a_burst_is_forgotten() {
    let mut c = cluster(&["freespace"], 2).weigh("freespace", &[TB, TB - 1]);
    c.allocate(&burst(0..50));
    c.ledger.reserve(c.peers[0], 0.0);
    assert_eq!(c.letters(item(1, 1, 1)), "B");
    c.now += HALF_LIFE * 20;
    assert_eq!(c.letters(item(2, 1, 1)), "A");
}

/// Goal: a batch of 100 among 1,000 peers is decided within 2 ms. Measured with
/// `cargo test --release -p monitor-svc allocator -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, meaningful only in release and on a quiet machine"]
fn speed() {
    let spaces: Vec<i64> = (0..1000).map(|number| TB + number * 1_000_000).collect();
    let zones: Vec<String> = (0..1000).map(|number| format!("z{}", number % 40)).collect();
    let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
    for by in [vec!["freespace"], vec!["tag:group", "freespace"], vec!["tag:zone", "freespace"]] {
        let mut c =
            cluster(&by, 1000).tag("tag:group", &["default"; 1000]).tag("tag:zone", &zones).weigh("freespace", &spaces);
        let items: Vec<Item> = (0..100).map(|number| item(number, 2, 3)).collect();
        let mut field = c.field();
        let started = Instant::now();
        let outcomes = allocate(&mut field, &items);
        let took = started.elapsed();
        assert_eq!(outcomes.len(), 100);
        println!("{by:?}: {took:?}");
        assert!(took < Duration::from_millis(2), "{by:?}: {took:?}");
    }
}
