//! A peer's consensus-svc alone, which faults happen to: what was asked of it, what it acknowledged, and how it ended.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use ctl::local::ports::Ports;
use pinfold_common::config::keys::environment_name;
use pinfold_common::tls::ClusterSecret;
use pinfold_proto::consensus::state_client::StateClient;
use pinfold_proto::consensus::{Consistency, CreateBackupCall, ListCall, PinCall, PinManyCall, pin_result};
use pinfold_proto::types;
use pinfold_tests::alone::{Alone, request};
use pinfold_tests::cluster::PATIENCE;
use pinfold_tests::content::identity_cid;
use prost::Message as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::report::Report;
use crate::trace::Trace;

const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Every so manieth request is a batch of that many.
const BATCH_EVERY: usize = 5;
const BATCH: usize = 40;
/// How long the end of a process is waited for after a request has failed.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
const SIGKILL: i32 = 9;

pub struct Solo(Alone);

impl Deref for Solo {
    type Target = Alone;

    fn deref(&self) -> &Alone {
        &self.0
    }
}

/// A process of it.
pub struct Running {
    child: Child,
}

/// The CIDs that were asked for and those that were acknowledged.
#[derive(Clone, Default)]
pub struct Pinned {
    pub asked: BTreeSet<Vec<u8>>,
    pub acknowledged: BTreeSet<Vec<u8>>,
}

impl Pinned {
    /// Every acknowledged pin is listed, none twice, none that nobody asked for.
    pub fn check(&self, listed: &[Vec<u8>], context: &str) {
        let here: BTreeSet<Vec<u8>> = listed.iter().cloned().collect();
        assert_eq!(here.len(), listed.len(), "{context}: a pin is listed twice");
        let lost = self.acknowledged.difference(&here).count();
        assert_eq!(lost, 0, "{context}: {lost} of {} acknowledged pins are lost", self.acknowledged.len());
        let strange = here.difference(&self.asked).count();
        assert_eq!(strange, 0, "{context}: {strange} pins that nobody asked for");
    }

    /// As operations of the report.
    pub fn count(&self, report: &mut Report) {
        report.counted(self.asked.len(), self.asked.len() - self.acknowledged.len());
    }
}

impl Solo {
    /// A folder with a configuration that takes snapshots and cuts the log all the time.
    pub fn prepare(folder: &Path, secret: &ClusterSecret) -> Solo {
        let settings = vec![
            ("consensus.raft.snapshot_interval", json!("50ms")),
            ("consensus.raft.snapshot_threshold", json!(10)),
            ("consensus.raft.trailing_logs", json!(5)),
        ];
        Solo(Alone::prepare(folder, secret, settings))
    }

    /// Where its standard output and error go: beside the folder when nothing else is said.
    pub fn log_to(&mut self, log: PathBuf) {
        self.0.log_to(log);
    }

    pub fn start(&self, bootstrap: Option<&Solo>, trace: Option<&Trace>) -> Running {
        let mut command = match trace {
            Some(trace) => trace.command(&Alone::program()),
            None => Command::new(Alone::program()),
        };
        if let Some(member) = bootstrap {
            command.args(["--bootstrap", &member.bootstrap_address]);
        }
        self.run(command)
    }

    /// A second process on the same folder, at a port of its own.
    pub fn start_elsewhere(&self) -> Running {
        let mut command = Command::new(Alone::program());
        let port = Ports::free().expect("free ports").consensus;
        command.env(environment_name("services.consensus.listen_multiaddress"), format!("/ip4/127.0.0.1/tcp/{port}"));
        self.run(command)
    }

    /// This program as another user, who needs to reach it and the folder.
    pub fn start_as(&self, user: u32, program: &Path) -> Running {
        let mut command = Command::new(program);
        command.uid(user).gid(user);
        self.run(command)
    }

    fn run(&self, command: Command) -> Running {
        Running { child: self.spawn(command) }
    }

    /// Pins one or a batch; what came of it goes into `pinned`. Whether all was acknowledged.
    pub async fn pin(&self, label: &str, number: usize, pinned: &Mutex<Pinned>) -> bool {
        let count = if number % BATCH_EVERY == BATCH_EVERY - 1 { BATCH } else { 1 };
        let cids: Vec<Vec<u8>> =
            (0..count).map(|at| identity_cid(&format!("{label} {number} {at}")).to_bytes()).collect();
        pinned.lock().unwrap().asked.extend(cids.iter().cloned());
        let requests: Vec<types::PinRequest> =
            cids.iter().map(|cid| request(cid, types::PinOptions::default())).collect();
        let mut client = self.pins();
        let acknowledged: Vec<Vec<u8>> = match requests.len() {
            1 => {
                let call = PinCall { request: requests.into_iter().next(), request_key: Vec::new() };
                match tokio::time::timeout(CALL_DEADLINE, client.pin(call)).await {
                    Ok(Ok(_)) => cids,
                    Ok(Err(_)) | Err(_) => return false,
                }
            }
            _ => {
                let call = PinManyCall { requests, request_key: Vec::new() };
                match tokio::time::timeout(CALL_DEADLINE, client.pin_many(call)).await {
                    Ok(Ok(reply)) => {
                        let results = reply.into_inner().results;
                        let is_pinned = |result: &pin_result::Result| matches!(result, pin_result::Result::Pin(_));
                        let good = results.into_iter().map(|item| item.result.as_ref().is_some_and(is_pinned));
                        cids.into_iter().zip(good).filter(|(_, good)| *good).map(|(cid, _)| cid).collect()
                    }
                    Ok(Err(_)) | Err(_) => return false,
                }
            }
        };
        let whole = acknowledged.len() == count;
        pinned.lock().unwrap().acknowledged.extend(acknowledged);
        whole
    }

    /// Everything in the pinset, by a linearizable read.
    pub async fn list(&self) -> Vec<Vec<u8>> {
        self.try_list().await.unwrap_or_else(|error| panic!("the whole list: {error}"))
    }

    /// The same, of one that may fail.
    pub async fn try_list(&self) -> Result<Vec<Vec<u8>>, tonic::Status> {
        let call = ListCall { consistency: Consistency::Linearizable as i32, ..ListCall::default() };
        let mut stream = self.pins().list(call).await?.into_inner();
        let mut cids = Vec::new();
        while let Some(reply) = stream.message().await? {
            let pins = reply.pins.into_iter().map(|pin| types::Pin::decode(pin).expect("a pin"));
            cids.extend(pins.map(|pin| pin.cid));
        }
        Ok(cids)
    }

    /// Every acknowledged pin is there, none twice, none that nobody asked for; and it goes on.
    pub async fn verify(&self, context: &str, pinned: &Mutex<Pinned>) {
        self.ready().await;
        let listed = self.list().await;
        pinned.lock().unwrap().check(&listed, context);
        assert!(self.pin(context, 0, pinned).await, "{context}: a pin after it\n{}", self.words());
    }

    /// A backup of it, which runs.
    pub async fn back_up(&self) -> PathBuf {
        let call = CreateBackupCall { with_keys: false };
        let made = StateClient::new(self.channel()).create_backup(call).await.expect("a backup").into_inner();
        PathBuf::from(made.backup.expect("which one").path)
    }

    /// Runs a command on its folder while it is stopped: the exit code, and everything it said.
    pub async fn command(&self, arguments: &[&str]) -> (Option<i32>, String) {
        self.traced_command(arguments, None).await
    }

    /// The same under strace. No exit code: a signal ended it.
    pub async fn traced_command(&self, arguments: &[&str], trace: Option<&Trace>) -> (Option<i32>, String) {
        let program = Alone::program();
        let mut command = trace.map_or_else(|| Command::new(&program), |trace| trace.command(&program));
        let output = command.arg("--config").arg(&self.folder).args(arguments).stdin(Stdio::null()).output().await;
        let output = output.expect("the program starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// The same peer in a copy of its folder, as a power cut or an operator leaves it. Only one of the two may run.
    pub fn copy_to(&self, folder: &Path, secret: &ClusterSecret) -> Solo {
        copy(&self.folder, folder);
        Solo(self.in_copy(folder, secret))
    }
}

/// A folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("a copy");
        }
    }
}

impl Running {
    /// kill -9.
    pub async fn kill(mut self) {
        self.child.start_kill().expect("our own process");
        self.child.wait().await.expect("our own process");
    }

    /// Lets `asked` pin until this process has ended; how it ended, or `None` when it outlives so many requests. It may
    /// be another peer that is asked.
    pub async fn work(&mut self, asked: &Solo, label: &str, most: usize, pinned: &Mutex<Pinned>) -> Option<ExitStatus> {
        tokio::select! {
            status = self.ended() => return Some(status),
            () = asked.ready() => {}
        }
        for number in 0..most {
            let is_whole = tokio::select! {
                status = self.ended() => return Some(status),
                is_whole = asked.pin(label, number, pinned) => is_whole,
            };
            // Most often it has failed because the process has just ended: the next request would only fail too.
            if !is_whole && let Ok(status) = tokio::time::timeout(AFTER_FAILURE, self.ended()).await {
                return Some(status);
            }
        }
        None
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// SIGTERM, and its end.
    pub async fn stop(mut self) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("it runs"), Signal::TERM).expect("our own process");
        self.child.wait().await.expect("our own process");
    }

    pub async fn ended(&mut self) -> ExitStatus {
        self.child.wait().await.expect("our own process")
    }

    /// How it ends, within the patience of all tests; `None` when it does not.
    pub async fn ends(&mut self) -> Option<ExitStatus> {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.ok().map(|ended| ended.expect("our own process"))
    }
}

pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(SIGKILL)
}
