//! kill -9 at every write-like system call of the commands that replace the state of a stopped peer (fault:P8): `state
//! restore` and `state import`. The peer then has what it had, or what it was to have, or says that the command has to be
//! given again; given again it is done.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;

use pinfold_common::tls::ClusterSecret;
use pinfold_tests::needs::{self, Need};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::extent::{extent, seed};
use crate::report::Report;
use crate::scenarios::EXIT_REFUSED;
use crate::solo::{Pinned, Solo};
use crate::trace::{Effect, Point, Trace};

const REQUESTS: usize = 20;
const SAMPLE: usize = 4;
const KILLED: Option<i32> = None;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replacing {
    Restore,
    Import,
}

const COMMANDS: [Replacing; 2] = [Replacing::Restore, Replacing::Import];

/// A stopped peer, what it has, and what is to take its place.
struct Template {
    folder: tempfile::TempDir,
    secret: ClusterSecret,
    peer: Solo,
    pinned: Pinned,
    earlier: Pinned,
    backup: PathBuf,
    exported: PathBuf,
}

impl Template {
    async fn new() -> Template {
        let folder = tempfile::Builder::new().prefix("pinfold-commands-").tempdir().expect("a temporary folder");
        let secret = ClusterSecret::generate();
        let peer = Solo::prepare(&folder.path().join("template").join("peer"), &secret);
        let pinned = Mutex::default();
        let running = peer.start(None, None);
        peer.ready().await;
        pin(&peer, "earlier", &pinned).await;
        let backup = peer.back_up().await.strip_prefix(&peer.folder).expect("in its folder").to_owned();
        running.stop().await;
        let exported = folder.path().join("exported.json");
        let (code, said) = peer.command(&["state", "export", "-f", &exported.display().to_string()]).await;
        assert_eq!(code, Some(0), "{said}");
        let earlier = pinned.lock().unwrap().clone();
        let running = peer.start(None, None);
        peer.ready().await;
        pin(&peer, "later", &pinned).await;
        running.kill().await;
        Template { folder, secret, peer, pinned: pinned.into_inner().unwrap(), earlier, backup, exported }
    }

    fn copy(&self) -> (Solo, tempfile::TempDir) {
        let own = tempfile::Builder::new().tempdir_in(self.folder.path()).expect("a temporary folder");
        (self.peer.copy_to(&own.path().join("peer"), &self.secret), own)
    }

    /// Its words, for this copy.
    fn words(&self, command: Replacing, victim: &Solo) -> [String; 4] {
        let (verb, file) = match command {
            Replacing::Restore => ("restore", victim.folder.join(&self.backup)),
            Replacing::Import => ("import", self.exported.clone()),
        };
        ["state", verb, "-f", &file.display().to_string()].map(str::to_owned)
    }

    async fn run(&self, command: Replacing, victim: &Solo, trace: Option<&Trace>) -> (Option<i32>, String) {
        let words = self.words(command, victim);
        victim.traced_command(&words.each_ref().map(String::as_str), trace).await
    }

    /// Every write-like call of an undisturbed run.
    async fn points(&self, command: Replacing) -> Vec<Point> {
        let (victim, own) = self.copy();
        let trace = Trace::record(own.path().join("strace"));
        let (code, said) = self.run(command, &victim, Some(&trace)).await;
        assert_eq!(code, Some(0), "{said}");
        let points: Vec<Point> = trace.points(&victim.folder).into_iter().collect();
        assert!(points.len() > 20, "{command:?}: only {} write-like calls: does strace work here?", points.len());
        points
    }

    /// Whether it was killed there.
    async fn kill_at(&self, command: Replacing, point: &Point) -> bool {
        let what = format!("{command:?} killed at {} {}", point.call, point.nth);
        let (victim, own) = self.copy();
        let trace = Trace::inject(point, Effect::Kill, own.path().join("strace"));
        let (code, said) = self.run(command, &victim, Some(&trace)).await;
        assert!(code == KILLED || code == Some(0), "{what}: {code:?} {said}");
        let mut running = victim.start(None, None);
        tokio::select! {
            ended = running.ended() => {
                let told = victim.words();
                assert_eq!(ended.code(), Some(EXIT_REFUSED), "{what}: {ended}\n{told}");
                assert!(told.contains("state restore") || told.contains("state import"), "{what}: what to do?\n{told}");
            }
            () = victim.ready() => {
                let here: BTreeSet<Vec<u8>> = victim.list().await.into_iter().collect();
                let has_all = self.pinned.acknowledged.iter().all(|cid| here.contains(cid));
                let has = if has_all { &self.pinned } else { &self.earlier };
                victim.verify(&what, &Mutex::new(has.clone())).await;
                running.kill().await;
            }
        }
        let (again, said) = self.run(command, &victim, None).await;
        assert_eq!(again, Some(0), "{what}, given again: {said}");
        let running = victim.start(None, None);
        victim.verify(&format!("{what}, given again"), &Mutex::new(self.earlier.clone())).await;
        running.kill().await;
        code == KILLED
    }
}

async fn pin(peer: &Solo, label: &str, pinned: &Mutex<Pinned>) {
    for number in 0..REQUESTS {
        assert!(peer.pin(label, number, pinned).await, "{}", peer.words());
    }
}

/// Goal: wherever a kill -9 hits a restore or an import, nothing is half done that the next start would take for whole, and
/// the same command given again ends it.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i6_i9_fault_p8_killed_while_the_state_is_replaced() {
    if !needs::are_met("seed_i6_i9_fault_p8_killed_while_the_state_is_replaced", &[Need::Strace]) {
        return;
    }
    let mut report = Report::new("fault:P8 kill -9 of a restore and an import");
    let template = Template::new().await;
    let mut random = StdRng::seed_from_u64(seed());
    let (mut known, mut tried, mut killed) = (0, 0, 0);
    for command in COMMANDS {
        let mut points = template.points(command).await;
        known += points.len();
        points.shuffle(&mut random);
        points.truncate(extent().choose(SAMPLE, usize::MAX));
        for point in points {
            tried += 1;
            if template.kill_at(command, &point).await {
                killed += 1;
                report.fault(&format!("{command:?} killed"));
            }
        }
    }
    assert!(killed * 2 > tried, "only {killed} of {tried} faults took effect");
    report.note(format!("{killed} kills at {tried} of {known} known points"));
    template.pinned.count(&mut report);
    report.finish();
}
