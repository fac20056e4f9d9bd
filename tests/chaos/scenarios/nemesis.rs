//! Everything at once (fault:Z1): faults that overlap, drawn from the seed, round after round.

use std::collections::BTreeSet;

use pinfold_tests::needs;

use crate::extent::{extent, seed};
use crate::fault::{Active, Fault};
use crate::house::{Ground, House, NAMESPACES, Wish};
use crate::load::Load;
use crate::report::Report;
use crate::schedule::rounds;

const SELECTED_ROUNDS: usize = 2;
const ALL_ROUNDS: usize = 40;

/// Goal: whatever overlaps, nothing acknowledged is lost, every history is linearizable, and the cluster is whole
/// again after each round.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes longer than every test run has time for: make chaos"]
async fn fault_z1_composed_faults() {
    let has_namespaces = needs::missing(&NAMESPACES).is_none();
    let ground = if has_namespaces { Ground::Namespaces } else { Ground::Loopback };
    let house = House::start(Wish { ground, ..Wish::default() }).await;
    let mut report = Report::new("fault:Z1 composed faults");
    let count = extent().choose(SELECTED_ROUNDS, ALL_ROUNDS);
    for (number, round) in rounds(seed(), count, Fault::is_possible).into_iter().enumerate() {
        eprintln!("round {number}: {round:?}");
        let load = Load::start(&house, seed() + number as u64);
        load.more_writes(10).await;
        let mut active: Vec<Active> = Vec::new();
        for (fault, hold) in round.faults {
            let busy: BTreeSet<usize> = active.iter().flat_map(|active| active.victims.clone()).collect();
            // A fault that finds nobody free is not in this round.
            if let Some(injected) = fault.inject(&house, &busy).await {
                active.push(injected);
            }
            // How long it lasts before the next one, or before the healing.
            tokio::time::sleep(hold).await;
        }
        if !round.first_in_first_out {
            active.reverse();
        }
        for active in active {
            let kind = active.fault.kind();
            active.prove_and_heal(&house).await;
            report.fault(&kind);
        }
        load.finish(&house, &mut report).await;
    }
    house.stop().await;
    report.note(format!("{count} rounds"));
    report.finish();
}
