//! One supervised process: started, watched, started again with back-off when it dies, stopped within a deadline.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pinfold_common::shutdown::Shutdown;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::{LocalError, Result};

/// Between a death and the next start; doubled up to the longest, forgotten after a quiet minute.
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_secs(60);
/// How long a process may take to end after SIGTERM before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// The exit code of a service that refuses its configuration or state: starting it again changes nothing.
const REFUSED: i32 = 78;
/// That of a consensus-svc whose peer is not a member any more: the same, for that reason.
const REMOVED: i32 = 77;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Standard output and error are appended here.
    pub log: PathBuf,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Starting,
    Running {
        pid: u32,
    },
    /// Died; it is started again.
    BackingOff {
        why: String,
    },
    /// Refuses to run: exit code 78. The log says why.
    Refused,
    /// Its peer was removed from the cluster: exit code 77.
    Removed,
    Stopped,
}

enum Order {
    /// Cleanly, within this time.
    Stop(Duration),
    Kill,
    Start,
}

/// The processes that run now, so that a second Ctrl-C can end them all at once.
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// SIGKILL to every process that a supervisor of this program runs.
pub fn kill_all() {
    let running = RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for pid in running.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// A line in `RUNNING` as long as the process is not reaped.
struct Registered(i32);

impl Registered {
    fn new(child: &Child) -> Option<Registered> {
        let pid = i32::try_from(child.id()?).ok()?;
        RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(pid);
        Some(Registered(pid))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&self.0);
    }
}

/// A running supervisor of one process. Dropping it ends the process.
pub struct Service {
    plan: Plan,
    state: watch::Receiver<State>,
    exit_code: watch::Receiver<Option<i32>>,
    orders: mpsc::Sender<Order>,
    shutdown: Shutdown,
}

/// Told of everything that a person should see: name and sentence.
pub type Tell = Arc<dyn Fn(&str, &str) + Send + Sync>;

impl Service {
    pub fn start(plan: Plan, tell: Tell) -> Service {
        let (state_sender, state) = watch::channel(State::Starting);
        let (exit_sender, exit_code) = watch::channel(None);
        let (orders, receiver) = mpsc::channel(4);
        let shutdown = Shutdown::new();
        let supervisor =
            Supervisor { plan: plan.clone(), state: state_sender, exit_code: exit_sender, orders: receiver, tell };
        tokio::spawn(supervisor.run(shutdown.clone()));
        Service { plan, state, exit_code, orders, shutdown }
    }

    pub fn name(&self) -> &str {
        &self.plan.name
    }

    pub fn log(&self) -> &PathBuf {
        &self.plan.log
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    pub fn pid(&self) -> Option<u32> {
        match self.state() {
            State::Running { pid } => Some(pid),
            State::Starting | State::BackingOff { .. } | State::Refused | State::Removed | State::Stopped => None,
        }
    }

    /// Sends a signal to the process, if it runs; the supervisor goes on.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().ok_or_else(|| LocalError::new(format!("{} does not run", self.name())))?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| LocalError::new(format!("{} has no process id", self.name())))?;
        kill_process(pid, signal).map_err(|error| LocalError::new(format!("signal {}: {error}", self.name())))
    }

    /// That of the process that was stopped last; `None`: none was, or a signal ended it.
    pub fn exit_code(&self) -> Option<i32> {
        *self.exit_code.borrow()
    }

    /// Ends the process cleanly and leaves it stopped until `resume`.
    pub async fn stop(&self) {
        self.stop_within(STOP_DEADLINE).await;
    }

    /// The same, for one that needs longer.
    pub async fn stop_within(&self, deadline: Duration) {
        let _ = self.orders.send(Order::Stop(deadline)).await;
        let mut state = self.state.clone();
        let _ = state.wait_for(|state| *state == State::Stopped).await;
    }

    /// Ends the process with SIGKILL and leaves it stopped until `resume`.
    pub async fn kill_and_hold(&self) {
        let _ = self.orders.send(Order::Kill).await;
        let mut state = self.state.clone();
        let _ = state.wait_for(|state| *state == State::Stopped).await;
    }

    /// Starts a stopped process again.
    pub async fn resume(&self) {
        let _ = self.orders.send(Order::Start).await;
        let mut state = self.state.clone();
        let _ = state.wait_for(|state| matches!(state, State::Running { .. } | State::Refused | State::Removed)).await;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown.trigger();
        let _ = self.signal(Signal::KILL);
    }
}

struct Supervisor {
    plan: Plan,
    state: watch::Sender<State>,
    exit_code: watch::Sender<Option<i32>>,
    orders: mpsc::Receiver<Order>,
    tell: Tell,
}

/// Why a run ended.
enum End {
    Died(String),
    Refused,
    Removed,
    Stopped,
    ShutDown,
}

impl Supervisor {
    async fn run(mut self, shutdown: Shutdown) {
        let mut back_off = FIRST_BACK_OFF;
        loop {
            let started = Instant::now();
            let held = match self.run_once(&shutdown).await {
                End::ShutDown => return,
                End::Stopped => true,
                End::Refused => {
                    self.say(&format!("refuses to run; {} says why", self.plan.log.display()));
                    self.state.send_replace(State::Refused);
                    true
                }
                End::Removed => {
                    self.say("has stopped: this peer was removed from the cluster");
                    self.state.send_replace(State::Removed);
                    true
                }
                End::Died(why) => {
                    if started.elapsed() > QUIET {
                        back_off = FIRST_BACK_OFF;
                    }
                    self.say(&format!("{why}; starting it again in {back_off:?}"));
                    self.state.send_replace(State::BackingOff { why });
                    let wait = tokio::time::sleep(back_off);
                    back_off = (back_off * 2).min(LONGEST_BACK_OFF);
                    tokio::select! {
                        () = wait => false,
                        () = shutdown.triggered() => return,
                        order = self.orders.recv() => match order {
                            Some(Order::Start) => false,
                            Some(Order::Stop(_) | Order::Kill) => {
                                self.state.send_replace(State::Stopped);
                                true
                            }
                            None => return,
                        },
                    }
                }
            };
            if held && !self.wait_for_start(&shutdown).await {
                return;
            }
        }
    }

    async fn wait_for_start(&mut self, shutdown: &Shutdown) -> bool {
        loop {
            tokio::select! {
                () = shutdown.triggered() => return false,
                order = self.orders.recv() => match order {
                    Some(Order::Start) => return true,
                    Some(Order::Stop(_) | Order::Kill) => {
                        self.state.send_replace(State::Stopped);
                    }
                    None => return false,
                },
            }
        }
    }

    async fn run_once(&mut self, shutdown: &Shutdown) -> End {
        let mut child = match self.spawn() {
            Ok(child) => child,
            Err(error) => return End::Died(format!("could not be started: {error}")),
        };
        let _registered = Registered::new(&child);
        if let Some(pid) = child.id() {
            self.state.send_replace(State::Running { pid });
        }
        loop {
            tokio::select! {
                status = child.wait() => return ended(status),
                () = shutdown.triggered() => {
                    let _ = child.start_kill();
                    let _ = child.wait().await;
                    self.state.send_replace(State::Stopped);
                    return End::ShutDown;
                }
                order = self.orders.recv() => match order {
                    Some(Order::Start) => {}
                    Some(Order::Kill) => {
                        let _ = child.start_kill();
                        let _ = child.wait().await;
                        self.state.send_replace(State::Stopped);
                        return End::Stopped;
                    }
                    Some(Order::Stop(deadline)) => {
                        self.terminate(&mut child, deadline).await;
                        self.state.send_replace(State::Stopped);
                        return End::Stopped;
                    }
                    None => {
                        let _ = child.start_kill();
                        return End::ShutDown;
                    }
                },
            }
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.plan.log)?;
        Command::new(&self.plan.program)
            .args(&self.plan.arguments)
            .envs(self.plan.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C at the terminal goes to the whole group: the supervisor decides, in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    async fn terminate(&self, child: &mut Child, deadline: Duration) {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = match tokio::time::timeout(deadline, child.wait()).await {
            Ok(ended) => ended,
            Err(_) => {
                self.say(&format!("did not stop within {deadline:?}; killing it"));
                let _ = child.start_kill();
                child.wait().await
            }
        };
        self.exit_code.send_replace(ended.ok().and_then(|status| status.code()));
    }

    fn say(&self, sentence: &str) {
        (self.tell)(&self.plan.name, sentence);
    }
}

fn ended(status: std::io::Result<ExitStatus>) -> End {
    use std::os::unix::process::ExitStatusExt as _;
    match status {
        Err(error) => End::Died(format!("is lost: {error}")),
        Ok(status) if status.code() == Some(REFUSED) => End::Refused,
        Ok(status) if status.code() == Some(REMOVED) => End::Removed,
        Ok(status) => End::Died(match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(folder: &std::path::Path, script: &str) -> Plan {
        Plan {
            name: "test".to_owned(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: Vec::new(),
            log: folder.join("test.log"),
        }
    }

    /// Goal: a process that dies is started again, and one that refuses is not.
    #[tokio::test]
    async fn restarts_what_dies() {
        let folder = tempfile::tempdir().unwrap();
        let counted = folder.path().join("starts");
        let script = format!("echo x >> {}; exit 3", counted.display());
        let service = Service::start(plan(folder.path(), &script), Arc::new(|_, _| {}));
        let mut state = service.subscribe();
        for _ in 0..2 {
            state.wait_for(|state| matches!(state, State::BackingOff { .. })).await.unwrap();
            state.wait_for(|state| matches!(state, State::Running { .. } | State::Starting)).await.unwrap();
        }
        assert!(std::fs::read_to_string(&counted).unwrap().lines().count() >= 2);
        let refusing = Service::start(plan(folder.path(), "exit 78"), Arc::new(|_, _| {}));
        refusing.subscribe().wait_for(|state| *state == State::Refused).await.unwrap();
    }

    /// Goal: stop and resume leave one process, killed ones come back only when asked.
    #[tokio::test]
    async fn stops_and_resumes() {
        let folder = tempfile::tempdir().unwrap();
        let service = Service::start(plan(folder.path(), "exec sleep 600"), Arc::new(|_, _| {}));
        service.subscribe().wait_for(|state| matches!(state, State::Running { .. })).await.unwrap();
        let first = service.pid().unwrap();
        service.kill_and_hold().await;
        assert_eq!(service.state(), State::Stopped);
        service.resume().await;
        assert_ne!(service.pid().unwrap(), first);
        service.stop().await;
        assert_eq!(service.pid(), None);
    }
}
