//! The one task that owns what this monitor knows, and the handle to it. Handlers and loops send it commands through a
//! bounded queue; it answers from memory and waits for nobody, so no cycle of waiting goes through it (protocols.md 5).

use std::sync::Arc;
use std::time::Duration;

use pinfold_common::PeerId;
use pinfold_common::peerset::View;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::monitor::{PingDetail, PullReply, Verdict, VerdictsReply};
use pinfold_proto::types::{IpfsId, Metric};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::alerts::Alert;
use crate::allocator::{Item, Outcome};
use crate::error::MonitorError;
use crate::known::{Known, Now};
use crate::liveness::OBSERVE_INTERVAL;
use crate::ping::{Beat, bounded_ipfs};
use crate::window::Entry;

/// Commands waiting for the task.
const QUEUE: usize = 1024;
/// For a place in the queue; the task answers within milliseconds once a command is in it.
const QUEUE_DEADLINE: Duration = Duration::from_secs(1);

/// Verdicts, and whether everybody was heard of.
pub struct Verdicts {
    pub verdicts: Vec<Verdict>,
    pub warming_up: bool,
    /// 0: nobody has said.
    pub mean_item_bytes: u64,
}

impl From<Verdicts> for VerdictsReply {
    fn from(known: Verdicts) -> VerdictsReply {
        let Verdicts { verdicts, warming_up, mean_item_bytes } = known;
        VerdictsReply { verdicts, warming_up, mean_item_bytes }
    }
}

type Reply<T> = oneshot::Sender<T>;

enum Command {
    Publish { metrics: Vec<Metric>, ipfs: Option<IpfsId>, reply: Reply<Result<(), MonitorError>> },
    OwnPing(Arc<Beat>),
    Push { from: PeerId, metrics: Vec<Metric>, ping: Option<PingDetail>, reply: Reply<Result<(), MonitorError>> },
    Pulled { from: PeerId, reply: PullReply },
    Pull(Reply<PullReply>),
    Contacts { ages: Vec<(PeerId, Duration)>, repin_stopped: String },
    Allocate { items: Vec<Item>, reply: Reply<Result<Vec<Outcome>, MonitorError>> },
    Latest { name: String, reply: Reply<Vec<Metric>> },
    Names(Reply<Vec<String>>),
    Verdicts(Reply<Verdicts>),
    Alerts(Reply<Vec<Alert>>),
}

/// The handle. Clones send to the same task.
#[derive(Clone)]
pub struct Store(mpsc::Sender<Command>);

impl Store {
    pub fn new() -> (Store, Inbox) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Store(sender), Inbox(receiver))
    }

    async fn send(&self, command: Command) -> Result<(), MonitorError> {
        self.0.send_timeout(command, QUEUE_DEADLINE).await.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => MonitorError::Busy,
            mpsc::error::SendTimeoutError::Closed(_) => MonitorError::Stopping,
        })
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, MonitorError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| MonitorError::Stopping)
    }

    /// This peer's connector: what it measured, and how its IPFS node is when that changed.
    pub async fn publish(&self, metrics: Vec<Metric>, ipfs: Option<IpfsId>) -> Result<(), MonitorError> {
        self.ask(|reply| Command::Publish { metrics, ipfs, reply }).await?
    }

    /// This peer's own ping. Not waited for: when the queue is full, the next one comes.
    pub fn offer_own_ping(&self, beat: Arc<Beat>) {
        if self.0.try_send(Command::OwnPing(beat)).is_err() {
            tracing::debug!("own ping: the store is busy or stopping");
        }
    }

    /// What a member says about itself.
    pub async fn push(&self, from: PeerId, metrics: Vec<Metric>, ping: Option<PingDetail>) -> Result<(), MonitorError> {
        self.ask(|reply| Command::Push { from, metrics, ping, reply }).await?
    }

    /// What a member answered about everybody.
    pub async fn pulled(&self, from: PeerId, reply: PullReply) -> Result<(), MonitorError> {
        self.send(Command::Pulled { from, reply }).await
    }

    pub async fn pull(&self) -> Result<PullReply, MonitorError> {
        self.ask(Command::Pull).await
    }

    /// Raft contacts, each with its age; and why this peer, if it leads, has stopped to re-pin.
    pub async fn contacts(&self, ages: Vec<(PeerId, Duration)>, repin_stopped: String) -> Result<(), MonitorError> {
        self.send(Command::Contacts { ages, repin_stopped }).await
    }

    pub async fn allocate(&self, items: Vec<Item>) -> Result<Vec<Outcome>, MonitorError> {
        self.ask(|reply| Command::Allocate { items, reply }).await?
    }

    pub async fn latest(&self, name: String) -> Result<Vec<Metric>, MonitorError> {
        self.ask(|reply| Command::Latest { name, reply }).await
    }

    pub async fn names(&self) -> Result<Vec<String>, MonitorError> {
        self.ask(Command::Names).await
    }

    pub async fn verdicts(&self) -> Result<Verdicts, MonitorError> {
        self.ask(Command::Verdicts).await
    }

    /// Newest first.
    pub async fn alerts(&self) -> Result<Vec<Alert>, MonitorError> {
        self.ask(Command::Alerts).await
    }
}

/// The task's end of the queue.
pub struct Inbox(mpsc::Receiver<Command>);

/// What the task reads and writes beside its queue.
pub struct Owner {
    pub known: Known,
    pub inbox: Inbox,
    pub view: watch::Receiver<Arc<View>>,
    pub check_interval: Duration,
    /// This peer's own measurements, for the lanes of `gossip`.
    pub measurements: watch::Sender<Arc<Vec<Entry>>>,
    /// How this peer's IPFS node is, for the next ping.
    pub ipfs: watch::Sender<IpfsId>,
}

impl Owner {
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(OBSERVE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut checks = tokio::time::interval(self.check_interval);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let view = self.view.borrow_and_update().clone();
        self.known.follow(view, Now::read());
        let stop = shutdown.triggered();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                Ok(()) = self.view.changed() => {
                    let view = self.view.borrow_and_update().clone();
                    let now = self.now();
                    self.known.follow(view, now);
                }
                _ = ticks.tick() => {
                    self.now();
                }
                _ = checks.tick() => {
                    let now = self.now();
                    self.known.check(now);
                }
                command = self.inbox.0.recv() => match command {
                    Some(command) => self.handle(command),
                    None => return,
                },
            }
        }
    }

    fn now(&mut self) -> Now {
        let now = Now::read();
        self.known.observe(now);
        now
    }

    /// A caller that no longer waits for its answer is not an error here.
    fn handle(&mut self, command: Command) {
        let now = self.now();
        match command {
            Command::Publish { metrics, ipfs, reply } => {
                let outcome = self.known.publish(metrics, now);
                self.measurements.send_replace(Arc::new(self.known.own_measurements(now)));
                if let Some(ipfs) = ipfs.map(bounded_ipfs) {
                    self.ipfs.send_if_modified(|known| {
                        let is_new = *known != ipfs;
                        *known = ipfs;
                        is_new
                    });
                }
                let _ = reply.send(outcome);
            }
            Command::OwnPing(beat) => self.known.own_ping(&beat, now),
            Command::Push { from, metrics, ping, reply } => {
                let _ = reply.send(self.known.push(from, metrics, ping, now));
            }
            Command::Pulled { from, reply } => self.known.pulled(from, reply, now),
            Command::Pull(reply) => {
                let _ = reply.send(self.known.pull(now));
            }
            Command::Contacts { ages, repin_stopped } => self.known.contacts(&ages, repin_stopped, now),
            Command::Allocate { items, reply } => {
                let _ = reply.send(self.known.allocate(&items, now));
            }
            Command::Latest { name, reply } => {
                let _ = reply.send(self.known.latest(&name, now));
            }
            Command::Names(reply) => {
                let _ = reply.send(self.known.names());
            }
            Command::Verdicts(reply) => {
                let warming_up = self.known.is_warming_up();
                let mean_item_bytes = self.known.mean_item_bytes();
                let _ = reply.send(Verdicts { verdicts: self.known.verdicts(now), warming_up, mean_item_bytes });
            }
            Command::Alerts(reply) => {
                let _ = reply.send(self.known.alerts().newest_first().cloned().collect());
            }
        }
    }
}
