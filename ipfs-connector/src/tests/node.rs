//! An IPFS node that does what a test says.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use multiaddr::Multiaddr;
use parking_lot::Mutex;
use pinfold_common::identity::Identity;
use pinfold_common::pin::PinMode;
use pinfold_common::{Cid, PeerId};

use crate::node::*;

/// What fails takes so long to do so.
const FAILING: Duration = Duration::from_millis(20);

/// What becomes of a `pin/add`.
#[derive(Clone, Debug)]
pub enum Plan {
    /// No block ever comes.
    Hang,
    /// Some blocks come, and then none.
    Stop(PinProgress),
    Fail(NodeError),
}

#[derive(Default)]
struct State {
    pins: HashMap<Cid, PinMode>,
    plans: HashMap<Cid, Plan>,
    down: bool,
    /// `pin/add` and `pin/rm` in the order they came.
    calls: Vec<(&'static str, Cid)>,
    asked: HashSet<Cid>,
}

pub struct TestNode {
    id: PeerId,
    state: Mutex<State>,
}

impl TestNode {
    pub fn new() -> std::sync::Arc<TestNode> {
        std::sync::Arc::new(TestNode { id: Identity::generate().peer_id, state: Mutex::default() })
    }

    /// As if somebody else had pinned it.
    pub fn add_pin(&self, cid: &Cid, mode: PinMode) {
        self.state.lock().pins.insert(*cid, mode);
    }

    pub fn lose(&self, cid: &Cid) {
        self.state.lock().pins.remove(cid);
    }

    pub fn has(&self, cid: &Cid) -> bool {
        self.state.lock().pins.contains_key(cid)
    }

    pub fn plan(&self, cid: &Cid, plan: Plan) {
        self.state.lock().plans.insert(*cid, plan);
    }

    pub fn unplan(&self, cid: &Cid) {
        self.state.lock().plans.remove(cid);
    }

    pub fn set_down(&self, down: bool) {
        self.state.lock().down = down;
    }

    pub fn count(&self, call: &str) -> usize {
        self.state.lock().calls.iter().filter(|(name, _)| *name == call).count()
    }

    /// Of one CID.
    pub fn count_of(&self, call: &str, cid: &Cid) -> usize {
        self.state.lock().calls.iter().filter(|(name, of)| *name == call && of == cid).count()
    }

    fn check(&self) -> Result<()> {
        if self.state.lock().down { Err(NodeError::Down("connection refused".to_owned())) } else { Ok(()) }
    }
}

#[async_trait]
impl IpfsNode for TestNode {
    fn name(&self) -> &'static str {
        "test"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            public_network: false,
            dials_peers: false,
            resolves_ipns: false,
            holds_puts: false,
            answers_at_once: true,
        }
    }

    async fn id(&self) -> Result<NodeId> {
        self.check()?;
        Ok(NodeId { peer_id: self.id, addresses: Vec::new(), agent: "test".to_owned() })
    }

    async fn put_blocks(&self, _: Blocks) -> Result<PutReport> {
        Err(NodeError::Refused("no blocks here".to_owned()))
    }

    async fn get_block_local(&self, _: &Cid) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn get_block(&self, _: &Cid, _: Duration) -> Result<Bytes> {
        Err(NodeError::NoProviders("no blocks here".to_owned()))
    }

    fn pin_add(&self, request: PinAdd) -> PinEvents {
        if let Err(error) = self.check() {
            return stream::iter([Err(error)]).boxed();
        }
        let mut state = self.state.lock();
        state.calls.push(("add", request.cid));
        match state.plans.get(&request.cid).cloned() {
            None => {
                state.pins.insert(request.cid, request.mode);
                stream::iter([Ok(PinEvent::Done(PinProgress { blocks: 1, bytes: 10 }))]).boxed()
            }
            Some(Plan::Hang) => stream::pending().boxed(),
            Some(Plan::Stop(progress)) => {
                stream::iter([Ok(PinEvent::Progress(progress))]).chain(stream::pending()).boxed()
            }
            Some(Plan::Fail(error)) => stream::once(async {
                tokio::time::sleep(FAILING).await;
                Err(error)
            })
            .boxed(),
        }
    }

    async fn pin_rm(&self, cid: &Cid) -> Result<()> {
        self.check()?;
        let mut state = self.state.lock();
        state.calls.push(("rm", *cid));
        state.pins.remove(cid);
        Ok(())
    }

    async fn pin_state(&self, cid: &Cid) -> Result<PinState> {
        self.check()?;
        let mut state = self.state.lock();
        state.asked.insert(*cid);
        Ok(match state.pins.get(cid) {
            None => PinState::NotPinned,
            Some(PinMode::Direct) => PinState::Direct,
            Some(PinMode::Recursive) => PinState::Recursive,
        })
    }

    fn pin_ls(&self, mode: PinMode) -> PinList {
        if let Err(error) = self.check() {
            return stream::iter([Err(error)]).boxed();
        }
        let pins: Vec<_> =
            self.state.lock().pins.iter().filter(|(_, of)| **of == mode).map(|(cid, of)| Ok((*cid, *of))).collect();
        stream::iter(pins).boxed()
    }

    fn gc(&self) -> GcEvents {
        stream::empty().boxed()
    }

    async fn collection(&self) -> Collection {
        Collection::OnRequest
    }

    async fn repo_stat(&self) -> Result<RepoStat> {
        self.check()?;
        Ok(RepoStat { size_bytes: 0, storage_max_bytes: 100, blocks: Some(0), disk: None })
    }

    async fn resolve(&self, path: &str) -> Result<Cid> {
        Err(NodeError::NotFound(format!("resolve {path}")))
    }

    async fn swarm_connect(&self, _: &[Multiaddr]) -> Result<()> {
        Ok(())
    }

    async fn swarm_peers(&self) -> Result<Vec<PeerId>> {
        Ok(Vec::new())
    }
}
