//! Finds the entries that need something, fewest live copies first, by the index of allocations: page by page of each
//! peer that does not count, in bounded memory. A survey counts them; then one pass for each number of live copies that
//! it met, and a last one for entries that only have to let somebody go.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use pinfold_proto::types;

use super::plan::Standings;
use super::plan::moves::{Need, is_lost, need};
use crate::core::Core;
use crate::store;

/// Entries of one page.
const PAGE: usize = 500;
/// Pages of one look, so that the loop sees the world again.
const PAGES_PER_LOOK: usize = 10;
/// A scan that left something over is made again after this, and after so many times what it costs.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_FACTOR: u32 = 20;
/// Nothing is ever known to be complete for longer.
const REFRESH: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Survey,
    Refill { live: usize },
    Vacate,
    Done,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub under_replicated: u64,
    pub lost: u64,
}

#[derive(Debug)]
pub(super) struct Scan {
    pub standings: Standings,
    lineage: u64,
    sources: Vec<Vec<u8>>,
    pass: Pass,
    source: usize,
    after: i64,
    found: VecDeque<types::Pin>,
    /// Numbers of live copies that the survey met.
    classes: BTreeSet<usize>,
    vacates: bool,
    pub counts: Counts,
    started: Instant,
    /// How long the survey took: what a scan costs, without the waiting for the rate.
    cost: Duration,
    ended: Option<Instant>,
    /// Something was found and not moved.
    pub is_incomplete: bool,
}

impl Scan {
    pub async fn begin(core: &Core, standings: Standings, lineage: u64) -> store::Result<Scan> {
        let holders = core.state.holders().await?;
        let sources = holders.into_iter().filter(|peer| !standings.of(peer).counts()).collect();
        Ok(Scan {
            standings,
            lineage,
            sources,
            pass: Pass::Survey,
            source: 0,
            after: 0,
            found: VecDeque::new(),
            classes: BTreeSet::new(),
            vacates: false,
            counts: Counts::default(),
            started: Instant::now(),
            cost: Duration::ZERO,
            ended: None,
            is_incomplete: false,
        })
    }

    /// Whether it says nothing any more about a cluster with these standings, or another look is due.
    pub fn is_over(&self, standings: &Standings, lineage: u64) -> bool {
        if self.standings != *standings || self.lineage != lineage {
            return true;
        }
        let Some(ended) = self.ended else { return false };
        let pause = PAUSE.max(self.cost * PAUSE_FACTOR).min(REFRESH);
        let pause = if self.is_incomplete { pause } else { REFRESH };
        ended.elapsed() >= pause
    }

    pub fn is_surveying(&self) -> bool {
        self.pass == Pass::Survey
    }

    pub fn is_done(&self) -> bool {
        self.pass == Pass::Done && self.found.is_empty()
    }

    /// Reads on until `wanted` entries are found, the survey or the scan ends, or enough was read for now.
    pub async fn look(&mut self, core: &Core, wanted: usize) -> store::Result<()> {
        for _ in 0..PAGES_PER_LOOK {
            let was_surveying = self.is_surveying();
            if self.pass == Pass::Done || self.found.len() >= wanted.max(1) {
                return Ok(());
            }
            let Some(source) = self.sources.get(self.source) else {
                self.next_pass();
                if was_surveying {
                    return Ok(());
                }
                continue;
            };
            let at = self.source;
            let page = core.state.allocated_to(source, self.after, PAGE).await?;
            match page.last() {
                Some(last) if page.len() == PAGE => self.after = last.row,
                Some(_) | None => {
                    self.source += 1;
                    self.after = 0;
                }
            }
            for held in page {
                // An entry is met once for each of its holders that do not count; it is taken at the first.
                if self.sources.iter().position(|source| held.pin.allocations.contains(source)) == Some(at) {
                    self.sort(held.pin);
                }
            }
        }
        Ok(())
    }

    fn sort(&mut self, pin: types::Pin) {
        let needed = need(&pin, &self.standings);
        match (self.pass, needed) {
            (Pass::Survey, Need::Refill { live }) => {
                self.counts.under_replicated += 1;
                self.counts.lost += u64::from(is_lost(&pin, &self.standings));
                self.classes.insert(live);
            }
            (Pass::Survey, Need::Vacate) => self.vacates = true,
            (Pass::Refill { live: wanted }, Need::Refill { live }) if live == wanted => self.found.push_back(pin),
            (Pass::Vacate, Need::Vacate) => self.found.push_back(pin),
            (Pass::Survey | Pass::Refill { .. } | Pass::Vacate | Pass::Done, _) => {}
        }
    }

    fn next_pass(&mut self) {
        if self.pass == Pass::Survey {
            self.cost = self.started.elapsed();
        }
        let live = match self.pass {
            Pass::Survey => self.classes.first().copied(),
            Pass::Refill { live } => self.classes.range(live + 1..).next().copied(),
            Pass::Vacate | Pass::Done => None,
        };
        self.pass = match (live, self.pass) {
            (Some(live), _) => Pass::Refill { live },
            (None, Pass::Survey | Pass::Refill { .. }) if self.vacates => Pass::Vacate,
            (None, _) => Pass::Done,
        };
        self.source = 0;
        self.after = 0;
        if self.pass == Pass::Done {
            self.ended = Some(Instant::now());
        }
    }

    /// At most `most` entries.
    pub fn take(&mut self, most: usize) -> Vec<types::Pin> {
        let count = self.found.len().min(most);
        self.found.drain(..count).collect()
    }

    /// They were not moved, and are to be tried again at once.
    pub fn put_back(&mut self, pins: Vec<types::Pin>) {
        for pin in pins.into_iter().rev() {
            self.found.push_front(pin);
        }
    }
}
