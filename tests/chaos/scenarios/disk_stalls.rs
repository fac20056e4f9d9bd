//! A disk that takes its time (fault:D6): every fsync of the leader is held up, and writes go on.

use std::time::Duration;

use pinfold_tests::needs::{self, Need};

use crate::extent::seed;
use crate::house::{House, Wish};
use crate::load::Load;
use crate::report::Report;
use crate::trace::Trace;

const WRITES_BEFORE: u64 = 20;
const WRITES_DURING: u64 = 20;
/// What of a stall is a hiccup: no election comes of it.
const ABSORBED: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(15);
/// The first write after a stall began, with an election or without.
const FIRST_WRITE: Duration = Duration::from_secs(15);

/// Goal: a second at each fsync of the leader costs time and nothing else; with fifteen of them writes go on, under this
/// leader or another one; nothing that was acknowledged is lost.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes longer than every test run has time for: make chaos"]
async fn seed_f1_fault_d6_slow_fsyncs_of_the_leader() {
    if !needs::are_met("seed_f1_fault_d6_slow_fsyncs_of_the_leader", &[Need::Strace]) {
        return;
    }
    let house = House::start(Wish::default()).await;
    for (round, delay) in [Duration::from_millis(200), ABSORBED, LONG].into_iter().enumerate() {
        let mut report = Report::new("fault:D6 slow fsyncs of the leader");
        let load = Load::start(&house, seed() + round as u64);
        load.more_writes(WRITES_BEFORE).await;
        let leader = house.leader().await;
        let others = house.others(leader);
        let term = house.term().await;
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let trace = Trace::slow_syncs(delay, log.path().to_owned());
        let attached = trace.attach(house.consensus(leader).pid().expect("it runs")).await;
        let first = load.more_writes_at(&others, 1).await;
        let more = load.more_writes_at(&others, WRITES_DURING).await;
        // The fault's own length.
        tokio::time::sleep(delay).await;
        load.more_writes_at(&others, WRITES_DURING).await;
        assert!(first < FIRST_WRITE, "no write for {first:?} with fsyncs of {delay:?}");
        let (moved, grown) = (house.leader().await != leader, house.term().await - term);
        if delay <= ABSORBED {
            assert_eq!((moved, grown), (false, 0), "{delay:?} was not absorbed");
        }
        attached.detach().await;
        let held = trace.injected();
        assert!(held > 0, "no fsync was held up");
        report.fault(&format!("fsyncs of {} ms", delay.as_millis()));
        report.note(format!(
            "{held} held up, next write after {} ms, {WRITES_DURING} more in {} ms; {}",
            first.as_millis(),
            more.as_millis(),
            if moved { "another leader" } else { "the same leader" }
        ));
        load.finish(&house, &mut report).await;
        report.finish();
    }
    house.stop().await;
}
