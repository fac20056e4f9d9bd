//! strace as the hand that breaks things: it kills a process at its n-th call of one kind, or makes that call fail.
//! Counted per thread, which is why the stores write from threads of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Everything by which a process changes what is on disk.
pub const WRITE_LIKE: [&str; 14] = [
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "rename",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "linkat",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// SIGKILL at the entry of the call.
    Kill,
    /// The call fails with this errno and does nothing.
    Fail(&'static str),
    /// The same after a while.
    FailLate(&'static str, Duration),
}

impl Effect {
    pub fn name(self) -> String {
        match self {
            Effect::Kill => "kill -9".to_owned(),
            Effect::Fail(errno) => errno.to_owned(),
            Effect::FailLate(errno, delay) => format!("{errno} after {} ms", delay.as_millis()),
        }
    }
}

/// The n-th call of one kind, from 1, in whichever thread comes to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub call: String,
    pub nth: u32,
}

/// What strace does and where it writes what it did.
#[derive(Clone, Debug)]
pub struct Trace {
    pub log: PathBuf,
    what: Vec<String>,
    filter: Filter,
}

/// Which calls stop the process for strace to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    /// The traced ones only. strace 6.1 does not count for a signal then, and so never sends a later one than the first.
    Traced,
    All,
}

impl Trace {
    pub fn inject(point: &Point, effect: Effect, log: PathBuf) -> Trace {
        let (effect, filter) = match effect {
            Effect::Kill => ("signal=KILL".to_owned(), Filter::All),
            Effect::Fail(errno) => (format!("error={errno}"), Filter::Traced),
            Effect::FailLate(errno, delay) => {
                (format!("error={errno}:delay_enter={}", delay.as_micros()), Filter::Traced)
            }
        };
        let inject = format!("inject={}:{effect}:when={}", point.call, point.nth);
        Trace { log, what: vec!["-e".into(), format!("trace={}", point.call), "-e".into(), inject], filter }
    }

    /// The first call of this kind on that file fails.
    pub fn fail_on(file: &Path, call: &str, errno: &str, log: PathBuf) -> Trace {
        let inject = format!("inject={call}:error={errno}:when=1");
        let what = ["-P", &file.display().to_string(), "-e", &format!("trace={call}"), "-e", &inject];
        Trace { log, what: what.map(str::to_owned).into(), filter: Filter::Traced }
    }

    /// From the n-th on, every read of that file fails.
    pub fn unreadable(file: &Path, nth: u32, log: PathBuf) -> Trace {
        let inject = format!("inject=pread64:error=EIO:when={nth}+");
        let what = ["-P", &file.display().to_string(), "-e", "trace=pread64", "-e", &inject];
        Trace { log, what: what.map(str::to_owned).into(), filter: Filter::Traced }
    }

    /// Every fsync takes that much longer.
    pub fn slow_syncs(delay: Duration, log: PathBuf) -> Trace {
        let syncs = "fsync,fdatasync";
        let inject = format!("inject={syncs}:delay_enter={}", delay.as_micros());
        Trace { log, what: vec!["-e".into(), format!("trace={syncs}"), "-e".into(), inject], filter: Filter::Traced }
    }

    /// Only writes down all write-like calls, with the paths of their files.
    pub fn record(log: PathBuf) -> Trace {
        Trace {
            log,
            what: vec!["-y".into(), "-e".into(), format!("trace={}", WRITE_LIKE.join(","))],
            filter: Filter::Traced,
        }
    }

    /// The program under this trace, as its caller's own child: the tracer is a process beside it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("strace");
        command.args(["-D", "-f"]);
        if self.filter == Filter::Traced {
            command.arg("--seccomp-bpf");
        }
        command.arg("-o").arg(&self.log).args(&self.what).arg(program);
        command
    }

    /// Takes hold of a process that runs already.
    pub async fn attach(&self, pid: u32) -> Attached {
        let mut child = Command::new("strace")
            .args(["-f", "-p", &pid.to_string(), "-o"])
            .arg(&self.log)
            .args(&self.what)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("strace starts");
        // Its first line says that it holds the process, or why not; the rest is read so that it never waits for us.
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let first = lines.next_line().await.expect("strace's words").unwrap_or_default();
        assert!(first.contains("attached"), "strace of process {pid}: {first}");
        let rest = tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Attached { child, rest }
    }

    /// The calls on which it acted.
    pub fn injected(&self) -> usize {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter(|line| line.contains("(INJECTED)") || line.contains("(DELAYED)")).count()
    }

    /// The points of a record that concern files below `folder`.
    pub fn points(&self, folder: &Path) -> BTreeSet<Point> {
        points(&self.text(), &format!("{}/", folder.display()), |_, _| true)
    }

    /// Those of them whose failure is somebody's business. SQLite syncs the folder when it begins a write-ahead log, by
    /// fdatasync, and does not look at how that went; the stores sync it themselves, by fsync, before they answer anybody.
    pub fn points_that_count(&self, folder: &Path) -> BTreeSet<Point> {
        let counts = |call: &str, path: &Path| call != "fdatasync" || !path.is_dir();
        points(&self.text(), &format!("{}/", folder.display()), counts)
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_else(|error| panic!("{}: {error}", self.log.display()))
    }
}

/// strace at work on a process of somebody else. Dropped, it lets go.
pub struct Attached {
    child: Child,
    rest: tokio::task::JoinHandle<()>,
}

impl Attached {
    pub async fn detach(mut self) {
        // SIGTERM would do too; a killed tracer lets its tracees go on in the same way.
        self.child.start_kill().expect("strace is ours");
        self.child.wait().await.expect("strace is ours");
        self.rest.abort();
    }
}

fn points(record: &str, folder: &str, counts: impl Fn(&str, &Path) -> bool) -> BTreeSet<Point> {
    let mut calls: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut points = BTreeSet::new();
    for line in record.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((call, arguments)) = rest.trim_start().split_once('(') else { continue };
        // "<... fsync resumed>" is the second half of a call that was counted.
        if !WRITE_LIKE.contains(&call) {
            continue;
        }
        let nth = calls.entry((thread, call)).or_default();
        *nth += 1;
        let path = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
        if arguments.contains(folder) && counts(call, Path::new(path)) {
            points.insert(Point { call: call.to_owned(), nth: *nth });
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: calls are counted per thread and kind, halves once, and only those on the folder's files are points.
    #[test]
    fn points_of_a_record() {
        let record = "10 fsync(3</f/a>) = 0\n11 fsync(4</f/b> <unfinished ...>\n10 write(2</dev/null>, \"x\", 1) = 1\n\
                      11 <... fsync resumed>) = 0\n10 write(5</f/c>, \"x\", 1) = 1\n10 fsync(3</f/a>) = 0\n10 +++ exited with 0 +++\n";
        let point = |call: &str, nth| Point { call: call.to_owned(), nth };
        let all = BTreeSet::from([point("fsync", 1), point("fsync", 2), point("write", 2)]);
        assert_eq!(points(record, "/f/", |_, _| true), all);
        let without_a = |_: &str, path: &Path| path != Path::new("/f/a");
        assert_eq!(points(record, "/f/", without_a), BTreeSet::from([point("fsync", 1), point("write", 2)]));
    }
}
