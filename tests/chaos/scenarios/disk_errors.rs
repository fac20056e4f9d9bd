//! EIO and ENOSPC on each fsync and write of consensus-svc (fault:D2, fault:D4): the first error ends the process, with
//! the exit code for errors of the disk, and nothing acknowledged is lost.

use std::sync::Mutex;

use pinfold_common::tls::ClusterSecret;
use pinfold_tests::needs::{self, Need};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::extent::{extent, seed};
use crate::report::Report;
use crate::scenarios::EXIT_DISK;
use crate::solo::{Pinned, Solo};
use crate::trace::{Effect, Point, Trace};

const RECORDED_REQUESTS: usize = 30;
const MOST_REQUESTS: usize = 2_000;
const SAMPLE: usize = 6;
/// Of one or two pages in the write-ahead log each, or a few more.
const MOST_TO_A_CHECKPOINT: usize = 10_000;

/// Calls whose failure must end the process, and how they fail.
const FAILURES: [(&str, &str); 6] = [
    ("fsync", "EIO"),
    ("fsync", "ENOSPC"),
    ("fdatasync", "EIO"),
    ("fdatasync", "ENOSPC"),
    ("pwrite64", "EIO"),
    ("pwrite64", "ENOSPC"),
];

/// Goal: an error of the disk is final. The process says so and ends with 74 instead of trying again or going on, at
/// whichever fsync or write it comes; the next start, on a disk that works, has every acknowledged pin.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_fault_d2_d4_first_error_of_the_disk_is_final() {
    if !needs::are_met("seed_i12_fault_d2_d4_first_error_of_the_disk_is_final", &[Need::Strace]) {
        return;
    }
    let mut report = Report::new("fault:D2 fault:D4 EIO and ENOSPC, one peer");
    let folder = tempfile::Builder::new().prefix("pinfold-errors-").tempdir().expect("a temporary folder");
    let secret = ClusterSecret::generate();
    let template = Solo::prepare(&folder.path().join("template"), &secret);
    let recorded = Mutex::default();
    let record = Trace::record(folder.path().join("record.strace"));
    // Founding is over before anything is written down: the victims, which are copies, do not come by its calls.
    let founding = template.start(None, None);
    template.ready().await;
    founding.kill().await;
    let running = template.start(None, Some(&record));
    template.ready().await;
    for number in 0..RECORDED_REQUESTS {
        assert!(template.pin("template", number, &recorded).await, "{}", template.words());
    }
    running.kill().await;
    let recorded = recorded.into_inner().unwrap();
    let mut random = StdRng::seed_from_u64(seed());
    for (call, errno) in FAILURES {
        let points = record.points_that_count(&template.folder);
        let mut points: Vec<Point> = points.into_iter().filter(|point| point.call == call).collect();
        points.shuffle(&mut random);
        points.truncate(extent().choose(SAMPLE, usize::MAX));
        assert!(!points.is_empty(), "no {call} was recorded");
        for point in points {
            let name = format!("{call}-{errno}-{}", point.nth);
            let victim = template.copy_to(&folder.path().join(&name).join("peer"), &secret);
            let trace = Trace::inject(&point, Effect::Fail(errno), folder.path().join(format!("{name}.strace")));
            let pinned = Mutex::new(recorded.clone());
            ends_for_good(&victim, &name, &trace, MOST_REQUESTS, &pinned).await;
            report.fault(&format!("{errno} at {call}"));
            let pinned = pinned.into_inner().unwrap();
            pinned.count(&mut report);
        }
    }
    report.finish();
}

/// The victim works under this trace until the fault ends it, as an error of the disk does; on a disk that works it has
/// every acknowledged pin.
async fn ends_for_good(victim: &Solo, name: &str, trace: &Trace, most: usize, pinned: &Mutex<Pinned>) {
    let mut running = victim.start(None, Some(trace));
    let ended = running.work(victim, name, most, pinned).await;
    let ended = ended.unwrap_or_else(|| panic!("{name}: goes on, injected {}", trace.injected()));
    assert!(trace.injected() > 0, "{name}: the fault did not take effect");
    assert_eq!(ended.code(), Some(EXIT_DISK), "{name}: {ended}\n{}", victim.words());
    let running = victim.start(None, None);
    victim.verify(name, pinned).await;
    running.kill().await;
}

/// Goal: moving the write-ahead log to the file is no exception, although nobody's request waits for it: its first error
/// ends the process too, and the log has everything at the next start. Each pin writes a few pages; at 4,096 they move.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_fault_d2_d4_error_of_a_checkpoint_is_final() {
    if !needs::are_met("seed_i12_fault_d2_d4_error_of_a_checkpoint_is_final", &[Need::Strace]) {
        return;
    }
    let mut report = Report::new("fault:D2 fault:D4 errors of checkpoints, one peer");
    let folder = tempfile::Builder::new().prefix("pinfold-checkpoint-").tempdir().expect("a temporary folder");
    let secret = ClusterSecret::generate();
    let template = Solo::prepare(&folder.path().join("template"), &secret);
    let pinned = Mutex::default();
    let running = template.start(None, None);
    template.ready().await;
    assert!(template.pin("template", 0, &pinned).await, "{}", template.words());
    running.kill().await;
    for (file, call, errno) in [("log.db", "pwrite64", "ENOSPC"), ("state.db", "fdatasync", "EIO")] {
        let name = format!("{file}-{call}");
        let victim = template.copy_to(&folder.path().join(&name).join("peer"), &secret);
        let path = victim.folder.join("raft").join(file);
        assert!(path.is_file(), "{} is there", path.display());
        let trace = Trace::fail_on(&path, call, errno, folder.path().join(format!("{name}.strace")));
        let pinned = Mutex::new(Pinned::clone(&pinned.lock().unwrap()));
        ends_for_good(&victim, &name, &trace, MOST_TO_A_CHECKPOINT, &pinned).await;
        report.fault(&format!("{errno} at {call} of {file}"));
    }
    report.finish();
}
