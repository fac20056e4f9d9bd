//! kill -9 at every write-like system call of consensus-svc (fault:P8): while it founds a cluster, appends, applies,
//! takes snapshots and cuts its log; while it starts again on what a kill left; while it joins. After each kill it is
//! started anew and asked for every acknowledged pin.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use futures::StreamExt as _;
use pinfold_common::tls::ClusterSecret;
use pinfold_tests::needs::{self, Need};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::extent::{extent, seed};
use crate::report::Report;
use crate::solo::{Pinned, Solo, was_killed};
use crate::trace::{Effect, Point, Trace};

/// Requests of the run that is written down; what a crash point may need at most is far more.
const RECORDED_REQUESTS: usize = 30;
const MOST_REQUESTS: usize = 2_000;
/// Two processes for each core of the smallest machine.
const AT_ONCE: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// From an empty folder on.
    Found,
    /// From a folder that a kill left in the middle of its work.
    Restart,
    /// As the second peer of a cluster.
    Join,
}

const PHASES: [(Phase, usize); 3] = [(Phase::Found, 18), (Phase::Restart, 12), (Phase::Join, 10)];

struct Bench {
    folder: tempfile::TempDir,
    secret: ClusterSecret,
    /// What every `Restart` begins with.
    template: Solo,
    template_pins: Pinned,
}

/// What one trial works on.
struct Trial {
    victim: Solo,
    member: Option<Solo>,
    pinned: Mutex<Pinned>,
}

impl Bench {
    async fn new() -> Bench {
        let folder = tempfile::Builder::new().prefix("pinfold-points-").tempdir().expect("a temporary folder");
        let secret = ClusterSecret::generate();
        let template = Solo::prepare(&folder.path().join("template"), &secret);
        let running = template.start(None, None);
        template.ready().await;
        let pinned = Mutex::default();
        for number in 0..RECORDED_REQUESTS {
            assert!(template.pin("template", number, &pinned).await, "{}", template.words());
        }
        running.kill().await;
        let template_pins = pinned.into_inner().unwrap();
        Bench { folder, secret, template, template_pins }
    }

    fn trial(&self, phase: Phase, name: &str) -> Trial {
        let folder = self.folder.path().join(name).join("peer");
        match phase {
            Phase::Found => {
                Trial { victim: Solo::prepare(&folder, &self.secret), member: None, pinned: Mutex::default() }
            }
            Phase::Restart => Trial {
                victim: self.template.copy_to(&folder, &self.secret),
                member: None,
                pinned: Mutex::new(self.template_pins.clone()),
            },
            Phase::Join => Trial {
                victim: Solo::prepare(&folder, &self.secret),
                member: Some(Solo::prepare(&folder.with_file_name("member"), &self.secret)),
                pinned: Mutex::default(),
            },
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.strace"))
    }

    /// Every write-like call of an undisturbed run.
    async fn points(&self, phase: Phase) -> Vec<Point> {
        let name = format!("{phase:?}-record");
        let trial = self.trial(phase, &name);
        let trace = Trace::record(self.log(&name));
        let member = trial.start_member().await;
        let running = trial.victim.start(trial.member.as_ref(), Some(&trace));
        trial.victim.ready().await;
        for number in 0..RECORDED_REQUESTS {
            assert!(trial.asked().pin(&name, number, &trial.pinned).await, "{}", trial.victim.words());
        }
        running.kill().await;
        if let Some(member) = member {
            member.kill().await;
        }
        let points: Vec<Point> = trace.points(&trial.victim.folder).into_iter().collect();
        assert!(points.len() > 20, "{phase:?}: only {} write-like calls: does strace work here?", points.len());
        points
    }

    /// Kills at one point, starts again, asks for everything. How many pins were acknowledged and asked for.
    async fn kill_at(&self, number: usize, phase: Phase, point: &Point) -> (usize, usize) {
        let name = format!("{phase:?}-{number}-{}-{}", point.call, point.nth);
        let trial = self.trial(phase, &name);
        let trace = Trace::inject(point, Effect::Kill, self.log(&name));
        let member = trial.start_member().await;
        let mut running = trial.victim.start(trial.member.as_ref(), Some(&trace));
        let died = running.work(trial.asked(), &name, MOST_REQUESTS, &trial.pinned).await;
        let died = died.unwrap_or_else(|| panic!("{name}: not reached: the fault did not take effect"));
        assert!(was_killed(died), "{name}: {died}, not killed\n{}", trial.victim.words());
        let running = trial.victim.start(trial.member.as_ref(), None);
        trial.victim.verify(&name, &trial.pinned).await;
        running.kill().await;
        if let Some(member) = member {
            member.kill().await;
        }
        let pinned = trial.pinned.into_inner().unwrap();
        clean(trial.victim.folder.parent().expect("the trial's folder"));
        (pinned.acknowledged.len(), pinned.asked.len())
    }
}

impl Trial {
    /// Who is asked for pins while the victim works.
    fn asked(&self) -> &Solo {
        self.member.as_ref().unwrap_or(&self.victim)
    }

    async fn start_member(&self) -> Option<crate::solo::Running> {
        let member = self.member.as_ref()?;
        let running = member.start(None, None);
        member.ready().await;
        for number in 0..RECORDED_REQUESTS / 3 {
            assert!(member.pin("before", number, &self.pinned).await, "{}", member.words());
        }
        Some(running)
    }
}

fn clean(folder: &Path) {
    std::fs::remove_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
}

/// Goal: wherever a kill -9 hits, what was acknowledged is there after the next start, nothing is there twice, and the
/// peer goes on: as a founder, after a restart, and in the middle of joining.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i4_fault_p8_killed_at_every_write() {
    if !needs::are_met("seed_i4_fault_p8_killed_at_every_write", &[Need::Strace]) {
        return;
    }
    let mut report = Report::new("fault:P8 kill -9 at every write");
    let bench = Bench::new().await;
    let mut random = StdRng::seed_from_u64(seed());
    let mut todo = Vec::new();
    let mut known = 0;
    for (phase, sample) in PHASES {
        let mut points = bench.points(phase).await;
        known += points.len();
        points.shuffle(&mut random);
        points.truncate(extent().choose(sample, usize::MAX));
        todo.extend(points.into_iter().map(|point| (phase, point)));
    }
    let total = todo.len();
    // Restarts share one port, the template's: one of them at a time.
    let (restarts, others): (Vec<_>, Vec<_>) = todo.into_iter().partition(|(phase, _)| *phase == Phase::Restart);
    let one_by_one = futures::stream::iter(restarts.into_iter().enumerate())
        .map(|(number, (phase, point))| {
            let bench = &bench;
            async move { bench.kill_at(number, phase, &point).await }
        })
        .buffer_unordered(1)
        .collect::<Vec<_>>();
    let side_by_side = futures::stream::iter(others.into_iter().enumerate())
        .map(|(number, (phase, point))| {
            let bench = &bench;
            async move { bench.kill_at(number, phase, &point).await }
        })
        .buffer_unordered(AT_ONCE - 1)
        .collect::<Vec<_>>();
    let (first, second) = tokio::join!(one_by_one, side_by_side);
    for (acknowledged, asked) in first.into_iter().chain(second) {
        report.fault("killed at a write");
        report.counted(asked, asked - acknowledged);
    }
    report.note(format!("{total} of {known} known points"));
    report.finish();
}
