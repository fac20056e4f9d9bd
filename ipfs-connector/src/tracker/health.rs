//! Whether the IPFS node is there: one probe for everybody, so that a node that is down costs one call a second and
//! not one per queued pin. Work waits here while it is away; whoever notices first says so.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::types::IpfsId;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::identity::Identity;
use crate::node::{Collection, IpfsNode, NodeError, NodeId};

/// Between probes while the node answers, and while it does not.
const INTERVAL_UP: Duration = Duration::from_secs(5);
const INTERVAL_DOWN: Duration = Duration::from_secs(1);
/// One probe. Longer than a busy node needs, shorter than people want to wait for the truth.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// Probes that must fail in a row: a node that is merely busy must not stop the queue.
const FAILURES_TO_DOWN: u32 = 2;
/// No new pins for so long after the node said that its disk is full, or did not answer one of them.
const PAUSE: Duration = Duration::from_secs(5);

/// What is known of the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// `None`: not asked yet.
    pub up: Option<bool>,
    /// The last good answer.
    pub id: Option<NodeId>,
    /// Of the last failed probe; empty while the node is up.
    pub error: String,
    /// What people should know although the node is up: it is another one, it lost pins. Empty when there is nothing.
    pub notice: String,
    pub collection: Collection,
}

/// What people should know of a node that removes blocks by itself.
const COLLECTS: &str = "the IPFS node's automatic GC is on: what is added may be removed before it is pinned, so adds \
                        wait for their pin here; start it without --enable-gc";

impl State {
    pub fn is_up(&self) -> bool {
        self.up == Some(true)
    }

    /// As other rooms are told.
    pub fn to_proto(&self) -> IpfsId {
        let id = self.id.as_ref();
        IpfsId {
            id: id.map(|id| id.peer_id.to_bytes()).unwrap_or_default(),
            addresses: id.map(|id| id.addresses.clone()).unwrap_or_default(),
            agent: id.map(|id| id.agent.clone()).unwrap_or_default(),
            error: match self.up {
                Some(_) => self.error.clone(),
                None => "the IPFS node was not asked yet".to_owned(),
            },
            notice: self.notices().join("; "),
        }
    }

    fn notices(&self) -> Vec<&str> {
        let collects = match self.collection {
            Collection::ByItself => COLLECTS,
            Collection::Unknown | Collection::OnRequest => "",
        };
        [self.notice.as_str(), collects].into_iter().filter(|notice| !notice.is_empty()).collect()
    }
}

/// Clones share what is known.
#[derive(Clone)]
pub struct Health {
    state: Arc<watch::Sender<State>>,
    doubt: Arc<Notify>,
    paused_until: Arc<Mutex<Option<Instant>>>,
    /// How long the last good probe took.
    probe: Arc<watch::Sender<Duration>>,
    /// Counts how often the node came back, or changed: what it holds may be something else than before.
    returns: Arc<watch::Sender<u64>>,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            state: Arc::new(watch::Sender::new(State::default())),
            doubt: Arc::default(),
            paused_until: Arc::default(),
            probe: Arc::new(watch::Sender::new(Duration::ZERO)),
            returns: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Health {
    pub fn current(&self) -> State {
        self.state.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Says when what the node holds may be something else than before.
    pub fn returns(&self) -> watch::Receiver<u64> {
        self.returns.subscribe()
    }

    /// Something that people should know; empty: nothing any more.
    pub fn notice(&self, text: String) {
        self.state.send_if_modified(|state| {
            let changed = state.notice != text;
            state.notice = text;
            changed
        });
    }

    /// What is known of the node's GC now. Told once for each change.
    pub fn collects(&self, now: Collection) {
        self.state.send_if_modified(|state| {
            let before = state.collection;
            if now == before {
                return false;
            }
            match now {
                Collection::ByItself => tracing::warn!("{COLLECTS}"),
                Collection::OnRequest if before == Collection::ByItself => {
                    tracing::info!("the IPFS node's automatic GC is off again");
                }
                Collection::OnRequest | Collection::Unknown => {}
            }
            state.collection = now;
            true
        });
    }

    /// How long each good probe took.
    pub fn probes(&self) -> watch::Receiver<Duration> {
        self.probe.subscribe()
    }

    /// Somebody's call failed as if the node were away: it is asked at once.
    pub fn doubt(&self, error: &NodeError) {
        if matches!(error, NodeError::Down(_)) {
            self.doubt.notify_one();
        } else if error.is_node_trouble() {
            *self.paused_until.lock() = Some(Instant::now() + PAUSE);
        }
    }

    /// The node answers, and nonsense: it is asked at once, and no new pins come before that is known.
    pub fn suspect(&self) {
        *self.paused_until.lock() = Some(Instant::now() + PAUSE);
        self.doubt.notify_one();
    }

    /// Waits until the node is there.
    pub async fn up(&self) {
        // The sender lives in self, so this ends only with the condition.
        let _ = self.state.subscribe().wait_for(State::is_up).await;
    }

    /// Waits until the node is there and nothing speaks against new pins.
    pub async fn up_and_willing(&self) {
        loop {
            self.up().await;
            let until = *self.paused_until.lock();
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                Some(_) | None => return,
            }
        }
    }

    /// Probes until `shutdown`.
    pub async fn run(self, node: Arc<dyn IpfsNode>, identity: Identity, shutdown: Shutdown) {
        let mut failures = 0;
        loop {
            let asked_at = Instant::now();
            let Some(answer) = shutdown.race(tokio::time::timeout(PROBE_DEADLINE, node.id())).await else { return };
            let answer =
                answer.unwrap_or_else(|_| Err(NodeError::Timeout(format!("id: no answer within {PROBE_DEADLINE:?}"))));
            let answer = match answer {
                Ok(id) => {
                    self.probe.send_replace(asked_at.elapsed());
                    self.recognise(id, &identity).await
                }
                Err(error) => Err(error),
            };
            failures = if answer.is_ok() { 0 } else { failures + 1 };
            self.record(answer, failures);
            let settled = self.state.borrow().is_up() && failures == 0;
            let interval = if settled { INTERVAL_UP } else { INTERVAL_DOWN.mul_f64(0.5 + rand::random::<f64>()) };
            let pause = async {
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = self.doubt.notified(), if settled => {}
                }
            };
            if shutdown.race(pause).await.is_none() {
                return;
            }
        }
    }

    /// Nobody works with a node before it is known whose pins the table claims.
    async fn recognise(&self, id: NodeId, identity: &Identity) -> Result<NodeId, NodeError> {
        match identity.check(&id).await {
            Ok(None) => Ok(id),
            Ok(Some(notice)) => {
                self.notice(notice);
                self.returns.send_modify(|returns| *returns += 1);
                Ok(id)
            }
            Err(error) => Err(NodeError::Other(format!("note which IPFS node answers: {error}"))),
        }
    }

    fn record(&self, answer: Result<NodeId, NodeError>, failures: u32) {
        self.state.send_if_modified(|state| {
            let before = state.clone();
            match answer {
                Ok(id) => {
                    if !state.is_up() {
                        *self.paused_until.lock() = None;
                        self.returns.send_modify(|returns| *returns += 1);
                        tracing::info!(node = %id.peer_id, agent = id.agent, "the IPFS node answers");
                    }
                    let notice = std::mem::take(&mut state.notice);
                    let collection = state.collection;
                    *state = State { up: Some(true), id: Some(id), error: String::new(), notice, collection };
                }
                Err(error) => {
                    let refused = matches!(error, NodeError::Down(_));
                    if refused || failures >= FAILURES_TO_DOWN {
                        if state.up != Some(false) {
                            tracing::warn!(%error, "the IPFS node does not answer; the queue waits");
                        }
                        state.up = Some(false);
                        state.error = error.to_string();
                    }
                }
            }
            metrics::gauge!("pinfold_ipfs_up").set(if state.is_up() { 1.0 } else { 0.0 });
            *state != before
        });
    }
}
