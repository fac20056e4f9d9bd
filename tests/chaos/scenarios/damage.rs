//! Files that were changed while the peer was stopped: flipped bytes (fault:D7), cuts (fault:D8), pages written by half or
//! in the wrong place (fault:D11). The next start refuses with the file's name, or has every acknowledged pin; it never
//! has silently less.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Mutex;
use std::time::Duration;

use pinfold_common::config::keys::KEYS;
use pinfold_common::tls::ClusterSecret;
use pinfold_tests::needs::{self, Need};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::extent::{extent, seed};
use crate::report::Report;
use crate::scenarios::{EXIT_DISK, EXIT_REFUSED};
use crate::solo::{Pinned, Solo, was_killed};
use crate::trace::{Effect, Point, Trace};

const REQUESTS: usize = 40;
const AFTER_BACKUP: usize = 3;
const WAL_HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// With an edited configuration it may serve where nobody asks. It is put back after so long.
const ELSEWHERE: Duration = Duration::from_secs(3);

/// What is damaged, and what a refusal has to name.
const STORES: [(&str, &str); 7] = [
    ("raft/log.db", "raft/log.db"),
    ("raft/log.db-wal", "raft/log.db"),
    ("raft/log.db-shm", "raft/log.db"),
    ("raft/state.db", "raft/state.db"),
    ("raft/state.db-wal", "raft/state.db"),
    ("raft/state.db-shm", "raft/state.db"),
    ("member.json", "member.json"),
];
const SETTINGS: [(&str, &str); 2] = [("identity.json", "identity.json"), ("service.json", "service.json")];
const BACKUP_FILES: [&str; 3] = ["state.db", "service.json", "manifest.json"];

/// What came of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Refused,
    Served,
    /// It runs, and not where it was.
    Elsewhere,
}

/// A founded peer to copy, as a kill -9 left it and as a clean stop did.
struct Templates {
    folder: tempfile::TempDir,
    secret: ClusterSecret,
    killed: Solo,
    closed: Solo,
    pinned: Pinned,
    backup: PathBuf,
    backed_up: Pinned,
}

impl Templates {
    async fn new() -> Templates {
        let folder = tempfile::Builder::new().prefix("pinfold-damage-").tempdir().expect("a temporary folder");
        let secret = ClusterSecret::generate();
        let killed = Solo::prepare(&folder.path().join("killed").join("peer"), &secret);
        let pinned = Mutex::default();
        let running = killed.start(None, None);
        killed.ready().await;
        for number in 0..REQUESTS {
            assert!(killed.pin("before", number, &pinned).await, "{}", killed.words());
        }
        let backup = killed.back_up().await;
        let backup = backup.strip_prefix(&killed.folder).expect("in its folder").to_owned();
        let backed_up = pinned.lock().unwrap().clone();
        for number in 0..AFTER_BACKUP {
            assert!(killed.pin("after", number, &pinned).await, "{}", killed.words());
        }
        running.kill().await;
        let closed = killed.copy_to(&folder.path().join("closed").join("peer"), &secret);
        let running = closed.start(None, None);
        closed.ready().await;
        running.stop().await;
        let pinned = pinned.into_inner().unwrap();
        Templates { folder, secret, killed, closed, pinned, backup, backed_up }
    }

    /// A copy of `from` whose `file` was put through `damage`, and its folder.
    fn victim(&self, from: &Solo, file: &Path, damage: impl FnOnce(Vec<u8>) -> Vec<u8>) -> (Solo, tempfile::TempDir) {
        let own = tempfile::Builder::new().tempdir_in(self.folder.path()).expect("a temporary folder");
        let victim = from.copy_to(&own.path().join("peer"), &self.secret);
        let path = victim.folder.join(file);
        let whole = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let damaged = damage(whole.clone());
        assert!(damaged != whole, "nothing was damaged");
        std::fs::write(&path, damaged).expect("the folder is ours");
        (victim, own)
    }
}

/// Starts the victim. It refuses and names `name`, or has everything.
async fn outcome(victim: &Solo, what: &str, name: &str, pinned: &Pinned) -> Outcome {
    let mut running = victim.start(None, None);
    let patience = if name == "service.json" { ELSEWHERE } else { pinfold_tests::cluster::PATIENCE };
    let outcome = tokio::select! {
        ended = running.ended() => {
            return refused(ended, what, name, &victim.words());
        }
        () = victim.ready() => Outcome::Served,
        () = tokio::time::sleep(patience) => Outcome::Elsewhere,
    };
    if outcome == Outcome::Served {
        victim.verify(what, &Mutex::new(pinned.clone())).await;
    }
    assert!(
        outcome == Outcome::Served || name == "service.json",
        "{what}: neither refused nor ready\n{}",
        victim.words()
    );
    running.kill().await;
    outcome
}

/// The same where the damage may lie beside what a start reads: then it serves all of it, and ends as after any damage when
/// it comes to that place.
async fn outcome_in_time(victim: &Solo, what: &str, name: &str, pinned: &Pinned) -> Outcome {
    let mut running = victim.start(None, None);
    let serves = tokio::select! {
        _ = running.ended() => false,
        () = victim.ready() => match victim.try_list().await {
            Ok(listed) => {
                pinned.check(&listed, what);
                victim.pin(what, 0, &Mutex::new(pinned.clone())).await
            }
            Err(_) => false,
        },
    };
    if serves {
        running.kill().await;
        return Outcome::Served;
    }
    let ended = running.ends().await.unwrap_or_else(|| panic!("{what}: it does not end\n{}", victim.words()));
    let words = victim.words();
    refused(ended, what, name, &words)
}

/// It ended as after damage, and names what is damaged.
fn refused(ended: ExitStatus, what: &str, name: &str, words: &str) -> Outcome {
    assert!(matches!(ended.code(), Some(EXIT_REFUSED | EXIT_DISK)), "{what}: {ended}\n{words}");
    // A value that makes no sense is named by its key, which may come from elsewhere.
    let is_key = || name == "service.json" && KEYS.iter().any(|key| words.contains(key.path));
    assert!(words.contains(name) || is_key(), "{what}: it does not name {name}\n{words}");
    Outcome::Refused
}

/// The outcomes of one kind of damage.
#[derive(Default)]
struct Tally(BTreeMap<Outcome, usize>);

impl Tally {
    fn add(&mut self, outcome: Outcome) {
        *self.0.entry(outcome).or_default() += 1;
    }

    fn of(&self, outcome: Outcome) -> usize {
        self.0.get(&outcome).copied().unwrap_or_default()
    }

    fn tell(&self, report: &mut Report) {
        let count = |outcome| self.of(outcome);
        report.note(format!("{} refused, {} with everything", count(Outcome::Refused), count(Outcome::Served)));
        if count(Outcome::Elsewhere) > 0 {
            report.note(format!("{} elsewhere until put back", count(Outcome::Elsewhere)));
        }
    }
}

fn flip(random: &mut StdRng, mut bytes: Vec<u8>, what: &mut String) -> Vec<u8> {
    let at = random.random_range(0..bytes.len());
    bytes[at] ^= 1 << random.random_range(0..8);
    what.push_str(&format!(", byte {at} of {}", bytes.len()));
    bytes
}

/// Goal: whichever bit of whichever file flips while the peer is stopped, the next start refuses with 78 or 74 and names the
/// file, or has every acknowledged pin; a damaged backup is never restored.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_fault_d7_flipped_bytes() {
    let mut report = Report::new("fault:D7 flipped bytes, one peer");
    let templates = Templates::new().await;
    let mut random = StdRng::seed_from_u64(seed());
    let mut tally = Tally::default();
    for round in 0..extent().choose(2, 60) {
        for (file, name) in STORES.into_iter().chain(SETTINGS) {
            // Half of them when everything is in the files themselves; a clean stop leaves no companions.
            let from = if round % 2 == 1 { &templates.closed } else { &templates.killed };
            let from = if from.folder.join(file).exists() { from } else { &templates.killed };
            let mut what = format!("{file}, round {round}");
            let (victim, _folder) =
                templates.victim(from, Path::new(file), |bytes| flip(&mut random, bytes, &mut what));
            let outcome = outcome(&victim, &what, name, &templates.pinned).await;
            tally.add(outcome);
            report.fault(&format!("flip in {file}"));
            if SETTINGS.contains(&(file, name)) && outcome != Outcome::Served {
                std::fs::copy(from.folder.join(file), victim.folder.join(file)).expect("the file is put back");
                let back = self::outcome(&victim, &format!("{what}, put back"), "raft", &templates.pinned).await;
                assert_eq!(back, Outcome::Served, "{what}: put back\n{}", victim.words());
            }
        }
        for file in BACKUP_FILES {
            let mut what = format!("{file} of a backup, round {round}");
            let path = templates.backup.join(file);
            let (victim, _folder) =
                templates.victim(&templates.killed, &path, |bytes| flip(&mut random, bytes, &mut what));
            let backup = victim.folder.join(&templates.backup);
            let (code, said) = victim.command(&["state", "restore", "-f", &backup.display().to_string()]).await;
            let pinned = match code {
                Some(0) => &templates.backed_up,
                _ => {
                    assert!(matches!(code, Some(EXIT_REFUSED | EXIT_DISK)), "{what}: {code:?} {said}");
                    assert!(said.contains(file), "{what}: {said}");
                    tally.add(Outcome::Refused);
                    &templates.pinned
                }
            };
            report.fault(&format!("flip in {file} of a backup"));
            let started = outcome(&victim, &what, "raft", pinned).await;
            assert_eq!(started, Outcome::Served, "{what}: {}", victim.words());
        }
    }
    assert!(tally.of(Outcome::Refused) > 0, "no flip was seen");
    tally.tell(&mut report);
    let pinned = &templates.pinned;
    pinned.count(&mut report);
    report.finish();
}

/// As SQLite writes one.
fn number(bytes: &[u8], at: usize, length: usize) -> usize {
    bytes[at..at + length].iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Where the first page of a database begins, or the first frame of a write-ahead log, and how long each is, as it stands in
/// their headers. Another file is one page.
fn layout(file: &str, bytes: &[u8]) -> (usize, usize) {
    match file {
        _ if file.ends_with(".db-wal") => (WAL_HEADER_BYTES, FRAME_HEADER_BYTES + number(bytes, 8, 4)),
        _ if file.ends_with(".db") => (0, number(bytes, 16, 2)),
        _ => (0, bytes.len()),
    }
}

/// Every boundary of pages, or of frames, and one byte to each side of it.
fn cuts(file: &str, bytes: &[u8]) -> Vec<usize> {
    let (first, step) = layout(file, bytes);
    let boundaries = std::iter::once(0).chain((first..=bytes.len()).step_by(step));
    let around = boundaries.flat_map(|at| [at.saturating_sub(1), at, at + 1]);
    let mut cuts: Vec<usize> = around.filter(|at| *at < bytes.len()).collect();
    cuts.dedup();
    cuts
}

/// Goal: a file of the stores that is cut, wherever, is refused by its name or made good from the rest.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_fault_d8_cut_files() {
    let mut report = Report::new("fault:D8 cut files, one peer");
    let templates = Templates::new().await;
    let mut random = StdRng::seed_from_u64(seed());
    let mut tally = Tally::default();
    let stores = STORES.into_iter().filter(|(file, _)| !file.ends_with("-shm"));
    let closed = ["raft/log.db", "raft/state.db"].map(|file| (&templates.closed, file, file));
    for (from, file, name) in stores.map(|(file, name)| (&templates.killed, file, name)).chain(closed) {
        let whole = std::fs::read(from.folder.join(file)).expect("it is there");
        let length = whole.len();
        let mut cuts = cuts(file, &whole);
        cuts.shuffle(&mut random);
        cuts.truncate(extent().choose(3, 100));
        for cut in cuts {
            let (victim, _folder) = templates.victim(from, Path::new(file), |bytes| bytes[..cut].to_vec());
            let what = format!("{file} of {length} bytes cut to {cut}");
            tally.add(outcome(&victim, &what, name, &templates.pinned).await);
            report.fault(&format!("cut of {file}"));
        }
    }
    assert!(tally.of(Outcome::Refused) > 0, "no cut was seen");
    tally.tell(&mut report);
    let pinned = &templates.pinned;
    pinned.count(&mut report);
    report.finish();
}

/// What a disk does to one page of a file of pages or frames: writes half of it, or writes it where another one is.
#[derive(Clone, Copy, Debug)]
enum Page {
    /// The second half is still what was there before: nothing, or another page's.
    Torn,
    Misdirected,
}

fn damage_page(random: &mut StdRng, kind: Page, mut bytes: Vec<u8>, file: &str, what: &mut String) -> Vec<u8> {
    let (first, step) = layout(file, &bytes);
    let pages: Vec<usize> = (first..bytes.len()).step_by(step).filter(|at| at + step <= bytes.len()).collect();
    let whole = bytes.clone();
    // Pages may be alike, and then nothing is damaged.
    for _ in 0..1000 {
        let (at, other) = (pages[random.random_range(0..pages.len())], pages[random.random_range(0..pages.len())]);
        let half = step / 2;
        match kind {
            Page::Torn if random.random_bool(0.5) => bytes[at + half..at + step].fill(0),
            Page::Torn => bytes[at + half..at + step].copy_from_slice(&whole[other + half..other + step]),
            Page::Misdirected => bytes[at..at + step].copy_from_slice(&whole[other..other + step]),
        }
        if bytes != whole {
            what.push_str(&format!(" {kind:?} {at} from {other}"));
            break;
        }
    }
    bytes
}

/// Goal: a page that was written by half, or in the place of another one, is refused by the file's name, at the start or when
/// something comes to it, or made good from the rest; it never passes for what was there.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_fault_d11_torn_and_misdirected_pages() {
    let mut report = Report::new("fault:D11 torn and misdirected pages, one peer");
    let templates = Templates::new().await;
    let mut random = StdRng::seed_from_u64(seed());
    let mut tally = Tally::default();
    let stores = STORES.into_iter().filter(|(file, _)| file.starts_with("raft/") && !file.ends_with("-shm"));
    let closed = ["raft/log.db", "raft/state.db"].map(|file| (&templates.closed, file, file));
    for (from, file, name) in stores.map(|(file, name)| (&templates.killed, file, name)).chain(closed) {
        // What is one page long has nothing in its second half, and no other page to be mistaken for.
        let whole = std::fs::read(from.folder.join(file)).expect("it is there");
        let (first, step) = layout(file, &whole);
        for round in 0..if whole.len() >= first + 2 * step { extent().choose(1, 60) } else { 0 } {
            for kind in [Page::Torn, Page::Misdirected] {
                let mut what = format!("{file} {round}");
                let damage = |bytes| damage_page(&mut random, kind, bytes, file, &mut what);
                let (victim, _folder) = templates.victim(from, Path::new(file), damage);
                tally.add(outcome_in_time(&victim, &what, name, &templates.pinned).await);
                report.fault(&format!("{kind:?} page of {file}"));
            }
        }
    }
    assert!(tally.of(Outcome::Refused) > 0, "no page was missed");
    tally.tell(&mut report);
    let pinned = &templates.pinned;
    pinned.count(&mut report);
    report.finish();
}

/// Where the last transaction of SQLite's write-ahead log begins and ends.
fn last_transaction(wal: &[u8]) -> (usize, usize) {
    let (first, step) = layout("log.db-wal", wal);
    let frames = (first..).step_by(step).take_while(|at| at + step <= wal.len());
    let ours = frames.filter(|at| wal[at + 8..at + 16] == wal[16..24]);
    let commits: Vec<usize> = ours.filter(|at| number(wal, at + 4, 4) != 0).map(|at| at + step).collect();
    let [.., before, last] = commits[..] else { panic!("only {} transactions", commits.len()) };
    (before, last)
}

/// Goal: the end of the log that no fsync confirmed, and so nobody was answered for, may be torn: the start takes what is
/// before it and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i12_fault_d8_unconfirmed_end_of_the_log() {
    if !needs::are_met("seed_i12_fault_d8_unconfirmed_end_of_the_log", &[Need::Strace]) {
        return;
    }
    let mut report = Report::new("fault:D8 the log's unconfirmed end, one peer");
    let folder = tempfile::Builder::new().prefix("pinfold-tail-").tempdir().expect("a temporary folder");
    let secret = ClusterSecret::generate();
    let template = Solo::prepare(&folder.path().join("template").join("peer"), &secret);
    let running = template.start(None, None);
    template.ready().await;
    running.kill().await;
    for nth in extent().choose(vec![12], (8..40).step_by(4).collect()) {
        let name = format!("killed at fdatasync {nth}");
        let killed = template.copy_to(&folder.path().join(format!("{nth}")).join("peer"), &secret);
        let point = Point { call: "fdatasync".to_owned(), nth };
        let trace = Trace::inject(&point, Effect::Kill, folder.path().join(format!("{nth}.strace")));
        let pinned = Mutex::default();
        let mut running = killed.start(None, Some(&trace));
        let ended = running.work(&killed, &name, 500, &pinned).await.unwrap_or_else(|| panic!("{name}: it goes on"));
        assert!(was_killed(ended), "{name}: {ended}");
        let wal = std::fs::read(killed.folder.join("raft/log.db-wal")).expect("a kill leaves one");
        let (begins, ends) = last_transaction(&wal);
        for cut in [begins, begins + 1, begins + 100, ends - 1] {
            let victim = killed.copy_to(&folder.path().join(format!("{nth}-{cut}")).join("peer"), &secret);
            std::fs::write(victim.folder.join("raft/log.db-wal"), &wal[..cut]).expect("the folder is ours");
            let running = victim.start(None, None);
            let so_far = pinned.lock().unwrap().clone();
            victim.verify(&format!("{name}, cut at {cut}"), &Mutex::new(so_far)).await;
            running.kill().await;
            report.fault("cut in the last transaction");
        }
        let pinned = pinned.into_inner().unwrap();
        pinned.count(&mut report);
    }
    report.finish();
}
