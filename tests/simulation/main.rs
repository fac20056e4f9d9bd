//! Re-pinning over thousands of histories, in virtual time: the pure cores of two rooms (liveness and allocator of
//! monitor-svc; verdicts, moves, settling, rebalancing, the rules of requests and `apply` of consensus-svc) under random
//! failures, returns, changes of the leader, frozen processes, slow gossip, IPFS nodes that are down or full, and the
//! wishes of people meanwhile. What is checked stands in `world::checks`. A peer that flaps and observers that are
//! starved have tests of their own.
//!
//! `PINFOLD_SIMULATION_SEED=<n>` replays one history, telling what happens; `PINFOLD_SIMULATIONS=<n>` runs so many.

mod flapping;
mod observers;
mod random;
mod starved;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

const HISTORIES: u64 = 10_000;

/// Goal: in every history, allocations stay within their factors on peers that can take them, nobody who is there is
/// declared away, nothing moves that has its minimum and no more often than holders were lost, no confirmed copy is
/// given up below the minimum by a move, all entries are what people asked for last with all options, nothing comes
/// back that was unpinned, a rebalance makes no move that is not needed, and after healing everything converges.
#[test]
fn seed_h9_2_h9_3_h9_4_h9_7_h9_8_h9_11_any_history_of_failures_is_repaired() {
    if let Some(seed) = number("PINFOLD_SIMULATION_SEED") {
        world::run(seed, world::Voice::Loud);
        return;
    }
    let histories = number("PINFOLD_SIMULATIONS").unwrap_or(HISTORIES);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let totals = std::thread::scope(|scope| {
        let run = |thread: u64| {
            let mut totals = world::Totals::default();
            for seed in (thread..histories).step_by(threads as usize) {
                match catch_unwind(AssertUnwindSafe(|| world::run(seed, world::Voice::Quiet))) {
                    Ok(one) => totals.add(&one),
                    Err(panic) => {
                        eprintln!("replay with PINFOLD_SIMULATION_SEED={seed}");
                        std::panic::resume_unwind(panic);
                    }
                }
            }
            totals
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        let mut totals = world::Totals::default();
        for thread in running {
            totals.add(&thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        totals
    });
    println!("{histories} histories: {totals:?}");
    totals.check(histories);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: not a number")))
}
