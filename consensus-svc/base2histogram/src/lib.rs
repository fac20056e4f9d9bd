//! What openraft needs of `base2histogram` to compile, keeping nothing.
//!
//! openraft counts into histograms whether its feature `runtime-stats` is on or off, and only that feature gives them out.
//! Pinfold has it off. The crate itself builds the tables of all its sixteen scales with the first histogram: 26 MB in every
//! consensus-svc, a third of its memory, for figures that nobody can ask for. With `runtime-stats` on openraft displays
//! a chart that cannot be had here: it does not compile, instead of showing zeros. Take the patch out of the
//! workspace's Cargo.toml then, or once the crate builds only the scale that is used.

use std::fmt;
use std::marker::PhantomData;

/// Forgets what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()>(PhantomData<T>);

impl<T> Histogram<T> {
    #[expect(clippy::new_without_default, reason = "openraft asks for no default")]
    pub fn new() -> Self {
        Self(PhantomData)
    }

    pub fn record(&mut self, _value: u64) {}

    pub fn record_n(&mut self, _value: u64, _times: u64) {}

    /// Those of a histogram without samples.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A chart without anything to show.
#[derive(Clone, Debug)]
pub struct AsciiChart;

impl AsciiChart {
    #[expect(clippy::new_without_default, reason = "openraft asks for no default")]
    pub fn new() -> Self {
        Self
    }

    #[must_use]
    pub fn add(self, _name: &str, _histogram: Histogram) -> Self {
        self
    }
}
