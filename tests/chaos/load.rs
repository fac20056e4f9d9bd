//! Clients at work while things break: pins, unpins and consistent reads of a few CIDs, at all peers, by gRPC and REST.
//! Everything is written into the history. When the faults are healed, every operation has to succeed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use pinfold_common::json::PinJson;
use pinfold_common::{Cid, Code, Error};
use pinfold_proto::{api, types};
use pinfold_tests::cluster::eventually;
use pinfold_tests::content::identity_cid;
use pinfold_tests::rest::Rest;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::check;
use crate::history::{Answer, Asked, History};
use crate::house::House;
use crate::report::Report;

const CLIENTS: u64 = 6;
/// Between two operations of one client: the rate of the load, not a wait for anything.
const PACE: Duration = Duration::from_millis(30);
/// CIDs in use at one time, and for how long before others take their place: a history per CID stays short enough to
/// check, and unknown outcomes do not pile up on one.
const KEYS: u64 = 4;
const KEY_LIFE: Duration = Duration::from_millis(1500);
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// After healing nothing is in the way; this is for slow machines.
const LAST_DEADLINE: Duration = Duration::from_secs(20);
/// A run with fewer answers than this has not tested anything.
const FEWEST_ANSWERS: usize = 50;
/// Operations of each kind at each peer at the end.
const LAST_ROUNDS: u64 = 4;
const READS_AT_ONCE: usize = 8;
/// Keys of the last operations, apart from those of the load.
const LAST_KEYS: u64 = 1 << 40;

pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    seed: u64,
    started: Instant,
    history: History,
    stop: AtomicBool,
    names: AtomicU64,
    /// Acknowledged pins and unpins, by the peer that was asked.
    writes: Vec<AtomicU64>,
    targets: Vec<Target>,
    /// The peers that are asked.
    peers: Vec<usize>,
}

/// A peer's API, both ways.
#[derive(Clone)]
struct Target {
    grpc: Channel,
    rest: Rest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Grpc,
    Rest,
}

impl Load {
    pub fn start(house: &House, seed: u64) -> Load {
        Load::start_at(house, seed, house.all())
    }

    /// At these peers only.
    pub fn start_at(house: &House, seed: u64, peers: Vec<usize>) -> Load {
        let targets: Vec<Target> = house.all().into_iter().map(|peer| Target::new(house.api(peer))).collect();
        let shared = Arc::new(Shared {
            seed,
            started: Instant::now(),
            history: History::default(),
            stop: AtomicBool::new(false),
            names: AtomicU64::new(1),
            writes: targets.iter().map(|_| AtomicU64::new(0)).collect(),
            targets,
            peers,
        });
        let clients = (0..CLIENTS).map(|client| tokio::spawn(work(shared.clone(), client))).collect();
        Load { shared, clients }
    }

    /// Waits until so many more writes are acknowledged, wherever.
    pub async fn more_writes(&self, count: u64) {
        self.more_writes_at(&self.shared.peers, count).await;
    }

    /// Waits until so many more writes are acknowledged by these peers. How long that took.
    pub async fn more_writes_at(&self, peers: &[usize], count: u64) -> Duration {
        let started = Instant::now();
        let so_far = || peers.iter().map(|peer| self.shared.writes[*peer].load(Ordering::Relaxed)).sum::<u64>();
        let enough = so_far() + count;
        eventually(&format!("{count} more acknowledged writes at peers {peers:?}"), || async {
            (so_far() >= enough).then_some(())
        })
        .await;
        started.elapsed()
    }

    /// One pin at one peer, apart from the clients' own. Whether it was acknowledged.
    pub async fn try_pin(&self, peer: usize) -> bool {
        let key = LAST_KEYS - 1;
        let name = self.shared.names.fetch_add(1, Ordering::Relaxed);
        self.shared.operate(peer, key, Asked::Pin { name }, Way::Grpc, CALL_DEADLINE).await.is_some()
    }

    /// One consistent read at one peer.
    pub async fn try_get(&self, peer: usize) -> Option<Answer> {
        self.shared.operate(peer, LAST_KEYS - 1, Asked::Get, Way::Grpc, CALL_DEADLINE).await
    }

    /// A read of the peer's own state of what `try_pin` pinned: whether it says that it may be old. `None`: no answer.
    pub async fn is_local_read_stale(&self, peer: usize) -> Option<bool> {
        let mut client = api::pins_client::PinsClient::new(self.shared.targets[peer].grpc.clone());
        let call = api::GetRequest { cid: self.shared.cid(LAST_KEYS - 1).to_bytes(), consistent: false };
        let asked = tokio::time::timeout(CALL_DEADLINE, client.get(call)).await;
        asked.ok()?.ok().map(|reply| reply.into_inner().stale)
    }

    /// After healing: stops the clients; every operation at every peer succeeds; all peers show the same pinset, none
    /// twice; and everything that anybody saw is linearizable.
    pub async fn finish(self, house: &House, report: &mut Report) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client does not fail");
        }
        let healed = Instant::now();
        for peer in &self.shared.peers {
            house.peer_ready(*peer).await;
        }
        house.leader_of(&self.shared.peers).await;
        report.note(format!("all ready after {} ms", healed.elapsed().as_millis()));
        let shared = &self.shared;
        futures::future::join_all(shared.peers.iter().map(|peer| shared.last_operations(*peer))).await;
        shared.read_everything().await;
        shared.same_pinset_everywhere().await;
        let operations = shared.history.operations();
        let answers = operations.iter().filter(|operation| operation.answered.is_some()).count();
        assert!(answers >= FEWEST_ANSWERS, "only {answers} of {} operations were answered", operations.len());
        report.history(&operations);
        let checked = tokio::task::spawn_blocking(move || check::linearizable(operations)).await;
        if let Err(failed) = checked {
            std::panic::resume_unwind(failed.into_panic());
        }
    }
}

async fn work(shared: Arc<Shared>, client: u64) {
    let mut random = StdRng::seed_from_u64(shared.seed.wrapping_mul(31).wrapping_add(client));
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let way = if client.is_multiple_of(3) { Way::Rest } else { Way::Grpc };
    while !shared.stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let age = shared.started.elapsed().as_millis() / KEY_LIFE.as_millis();
        let key = age as u64 * KEYS + random.random_range(0..KEYS);
        let peer = shared.peers[random.random_range(0..shared.peers.len())];
        let asked = match random.random_range(0..100) {
            0..40 => Asked::Pin { name: shared.names.fetch_add(1, Ordering::Relaxed) },
            40..60 => Asked::Unpin,
            _ => Asked::Get,
        };
        shared.operate(peer, key, asked, way, CALL_DEADLINE).await;
    }
}

impl Shared {
    fn cid(&self, key: u64) -> Cid {
        identity_cid(&format!("chaos {} {key}", self.seed))
    }

    /// One operation, from the call to its place in the history. `None`: failed, and so of unknown outcome.
    async fn operate(&self, peer: usize, key: u64, asked: Asked, way: Way, deadline: Duration) -> Option<Answer> {
        let (target, cid) = (&self.targets[peer], self.cid(key));
        let open = self.history.call(peer, key, asked);
        let answer = tokio::time::timeout(deadline, async {
            match way {
                Way::Grpc => target.ask_grpc(cid, asked).await,
                Way::Rest => target.ask_rest(cid, asked).await,
            }
        });
        let answer = answer.await.ok().flatten()?;
        self.history.answer(open, answer);
        if matches!(answer, Answer::Pinned { .. } | Answer::Unpinned) {
            self.writes[peer].fetch_add(1, Ordering::Relaxed);
        }
        Some(answer)
    }

    /// Every kind of operation, both ways, on CIDs that only this peer is asked for; each has to succeed at once.
    async fn last_operations(&self, peer: usize) {
        for round in 0..LAST_ROUNDS {
            let key = LAST_KEYS + round * self.targets.len() as u64 + peer as u64;
            let way = if round.is_multiple_of(2) { Way::Grpc } else { Way::Rest };
            let name = self.names.fetch_add(1, Ordering::Relaxed);
            for asked in [Asked::Pin { name }, Asked::Get, Asked::Unpin, Asked::Get] {
                let answer = self.operate(peer, key, asked, way, LAST_DEADLINE).await;
                assert!(answer.is_some(), "after healing: {asked:?} by {way:?} at peer {peer} failed");
            }
        }
    }

    /// A last consistent read of every CID at one peer: an acknowledged pin that is gone is not linearizable.
    async fn read_everything(&self) {
        let keys: BTreeSet<u64> = self.history.operations().iter().map(|operation| operation.key).collect();
        let reads = keys.into_iter().enumerate().map(|(turn, key)| async move {
            let peer = self.peers[turn % self.peers.len()];
            let answer = self.operate(peer, key, Asked::Get, Way::Grpc, LAST_DEADLINE).await;
            assert!(answer.is_some(), "after healing: a consistent read at peer {peer} failed");
        });
        futures::stream::iter(reads).buffer_unordered(READS_AT_ONCE).collect::<()>().await;
    }

    /// What is still on its way of unknown outcome may come between two lists, so this waits for equal ones.
    async fn same_pinset_everywhere(&self) {
        eventually("one pinset, the same at all peers", || async {
            let mut first: Option<BTreeMap<Vec<u8>, types::Pin>> = None;
            for peer in &self.peers {
                let listed = self.targets[*peer].list().await;
                let listed = listed.unwrap_or_else(|error| panic!("list at peer {peer}: {error}"));
                let count = listed.len();
                let here: BTreeMap<Vec<u8>, types::Pin> =
                    listed.into_iter().map(|pin| (pin.cid.clone(), pin)).collect();
                assert_eq!(here.len(), count, "peer {peer} lists a pin twice");
                match &first {
                    None => first = Some(here),
                    Some(first) => (*first == here).then_some(())?,
                }
            }
            Some(())
        })
        .await;
    }
}

fn name_text(name: u64) -> String {
    format!("n{name}")
}

fn name_of(text: &str) -> u64 {
    text.strip_prefix('n')
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{text:?} is not a name of this test"))
}

/// Every other pin goes everywhere, the others where the monitors say.
fn factors(name: u64) -> (i32, i32) {
    if name.is_multiple_of(2) { (-1, -1) } else { (1, 2) }
}

impl Target {
    fn new(api: &str) -> Target {
        let endpoint = Endpoint::from_shared(format!("http://{api}")).expect("an address");
        Target { grpc: endpoint.connect_timeout(CALL_DEADLINE).connect_lazy(), rest: Rest::new(api) }
    }

    async fn ask_grpc(&self, cid: Cid, asked: Asked) -> Option<Answer> {
        let mut client = api::pins_client::PinsClient::new(self.grpc.clone());
        let answered = match asked {
            Asked::Pin { name } => {
                let (replication_factor_min, replication_factor_max) = factors(name);
                let options = types::PinOptions {
                    name: name_text(name),
                    replication_factor_min,
                    replication_factor_max,
                    ..types::PinOptions::default()
                };
                let request = types::PinRequest {
                    cid: cid.to_bytes(),
                    r#type: types::PinType::Data as i32,
                    max_depth: -1,
                    options: Some(options),
                    ..types::PinRequest::default()
                };
                let item = api::PinItem { request: Some(request), request_key: Vec::new() };
                client.pin(item).await.map(|reply| {
                    let revision = reply.into_inner().pin.map(|pin| pin.revision);
                    Answer::Pinned { revision }
                })
            }
            Asked::Unpin => {
                let call = api::UnpinRequest { cid: cid.to_bytes(), request_key: Vec::new() };
                client.unpin(call).await.map(|_| Answer::Unpinned)
            }
            Asked::Get => {
                let call = api::GetRequest { cid: cid.to_bytes(), consistent: true };
                client.get(call).await.map(|reply| {
                    let pin = reply.into_inner().pin.expect("a pin that was found");
                    let name = name_of(&pin.options.map(|options| options.name).unwrap_or_default());
                    Answer::Found { name, revision: Some(pin.revision) }
                })
            }
        };
        match answered {
            Ok(answer) => Some(answer),
            Err(status) => {
                let is_absent = Error::from(status).code == Code::NotFound && !matches!(asked, Asked::Pin { .. });
                is_absent.then_some(Answer::NotThere)
            }
        }
    }

    async fn ask_rest(&self, cid: Cid, asked: Asked) -> Option<Answer> {
        let (method, path) = match asked {
            Asked::Pin { name } => {
                let (min, max) = factors(name);
                let query = format!("name={}&replication-min={min}&replication-max={max}", name_text(name));
                ("POST", format!("/pins/{cid}?{query}"))
            }
            Asked::Unpin => ("DELETE", format!("/pins/{cid}")),
            Asked::Get => ("GET", format!("/allocations/{cid}?consistent=true")),
        };
        let answer = self.rest.send(method, &path).await.ok()?;
        match (asked, answer.status) {
            (Asked::Pin { .. }, 200) => Some(Answer::Pinned { revision: None }),
            (Asked::Unpin, 200) => Some(Answer::Unpinned),
            (Asked::Get, 200) => Some(Answer::Found { name: name_of(&answer.json::<PinJson>().name), revision: None }),
            (Asked::Unpin | Asked::Get, 404) => Some(Answer::NotThere),
            (Asked::Pin { .. } | Asked::Unpin | Asked::Get, _) => None,
        }
    }

    async fn list(&self) -> Result<Vec<types::Pin>, tonic::Status> {
        let mut client = api::pins_client::PinsClient::new(self.grpc.clone())
            .max_decoding_message_size(pinfold_common::channel::MAX_MESSAGE_BYTES);
        let call = api::ListRequest { consistent: true, ..api::ListRequest::default() };
        let mut stream = client.list(call).await?.into_inner();
        let mut pins = Vec::new();
        while let Some(reply) = stream.message().await? {
            pins.extend(reply.pins);
        }
        Ok(pins)
    }
}
