//! How much runs, and from which seed: `PINFOLD_CHAOS=all` and `PINFOLD_CHAOS_SEED=<number>`.

use std::sync::OnceLock;
use std::time::SystemTime;

/// The selection of every test run is the same every time, so that it fails for its change and not by chance.
const SELECTION_SEED: u64 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What every test run has time for.
    Selection,
    All,
}

pub fn extent() -> Extent {
    match std::env::var("PINFOLD_CHAOS").as_deref() {
        Ok("all") => Extent::All,
        Ok(_) | Err(_) => Extent::Selection,
    }
}

impl Extent {
    pub fn choose<T>(self, selection: T, all: T) -> T {
        match self {
            Extent::Selection => selection,
            Extent::All => all,
        }
    }
}

/// The seed of this run: given, or from the clock when everything runs.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| match std::env::var("PINFOLD_CHAOS_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("PINFOLD_CHAOS_SEED={text}: {error}")),
        Err(_) => extent().choose(SELECTION_SEED, from_clock()),
    })
}

fn from_clock() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970").as_secs()
}
