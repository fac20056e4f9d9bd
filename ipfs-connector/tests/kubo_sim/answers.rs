//! What kubo-sim answers to each call: Kubo's shapes and words (beh:B13), the embedded node's deeds.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use ipfs_connector::node::embedded::EmbeddedNode;
use ipfs_connector::node::{Block, GcEvent, IpfsNode as _, NodeError, PinAdd, PinEvent, PinState};
use pinfold_common::Cid;
use pinfold_common::pin::PinMode;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::http::{Answer, Call, Cut};
use super::{ListFault, PinFault, Shared};

/// Kubo says how far a pin is about twice a second.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Between two looks for blocks that nobody had.
const SEARCH_AGAIN: Duration = Duration::from_millis(50);

pub async fn answer(shared: Arc<Shared>, call: Call) -> Answer {
    let engine = shared.state.lock().engine.node.clone();
    match call.command.as_str() {
        "id" => id(&shared),
        "version" => Answer::json(json!({"Version": "0.0.0-sim"})),
        "pin/add" => pin_add(shared, engine, &call).await,
        "pin/update" => pin_update(engine, &call).await,
        "pin/rm" => pin_rm(engine, &call).await,
        "pin/ls" if call.argument().is_empty() => pin_list(&shared, engine, &call),
        "pin/ls" => pin_one(engine, &call).await,
        "block/get" => block_get(engine, &call).await,
        "dag/import" => import(engine, call).await,
        "repo/stat" => match engine.repo_stat().await {
            Ok(stat) => Answer::json(json!({"RepoSize": stat.size_bytes, "StorageMax": stat.storage_max_bytes})),
            Err(error) => Answer::refusal(&error.to_string()),
        },
        "repo/gc" => gc(shared, engine),
        "resolve" => resolve(&shared, engine, &call).await,
        "swarm/connect" => connect(&shared, &call),
        "swarm/peers" => {
            let peers: Vec<Value> =
                shared.state.lock().connected.iter().map(|peer| json!({"Peer": peer.to_string()})).collect();
            Answer::json(json!({"Peers": peers}))
        }
        // Go's handlers for profilers take GET alone.
        "/debug/pprof/cmdline" if call.method == "GET" => match &shared.state.lock().command_line {
            Some(arguments) => Answer::bytes(arguments.join("\0").into()),
            None => Answer { status: 403, ..Answer::bytes("403 forbidden\n".into()) },
        },
        _ => Answer { status: 404, ..Answer::bytes("404 page not found\n".into()) },
    }
}

fn id(shared: &Shared) -> Answer {
    let id = shared.state.lock().id;
    let addresses = [format!("/ip4/127.0.0.1/tcp/4001/p2p/{id}")];
    Answer::json(json!({"ID": id.to_string(), "Addresses": addresses, "AgentVersion": "kubo/0.0.0-sim/"}))
}

fn cid_of(text: &str) -> Result<Cid, Answer> {
    pinfold_common::ids::parse_cid(text.trim_start_matches("/ipfs/"))
        .map_err(|error| Answer::refusal(&format!("invalid path {text:?}: {error}")))
}

/// Counts a running pin as long as it lives.
struct Running(Arc<Shared>);

impl Running {
    fn begin(shared: Arc<Shared>) -> Running {
        {
            let mut state = shared.state.lock();
            state.running += 1;
            state.most_running = state.most_running.max(state.running);
        }
        Running(shared)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state.lock().running -= 1;
    }
}

type Line = Result<Value, Cut>;

async fn pin_add(shared: Arc<Shared>, engine: EmbeddedNode, call: &Call) -> Answer {
    let cid = match cid_of(call.argument()) {
        Ok(cid) => cid,
        Err(answer) => return answer,
    };
    let mode = if call.option("recursive") == "false" { PinMode::Direct } else { PinMode::Recursive };
    let fault = shared.state.lock().pins.get(&cid).cloned();
    if let Some(PinFault::Fail(message)) = fault {
        return Answer::refusal(message);
    }
    if mode == PinMode::Direct && engine.pin_state(&cid).await == Ok(PinState::Recursive) {
        return Answer::refusal(&format!("pin: {cid} already pinned recursively"));
    }
    let (lines, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let _running = Running::begin(shared.clone());
        let work = async {
            let _pinning = shared.pin_lock.read().await;
            pin(engine, cid, mode, fault, &lines).await
        };
        let last = tokio::select! {
            last = work => last,
            // Who asked is gone: Kubo stops fetching.
            () = lines.closed() => return,
        };
        // Nobody there any more, and nothing to say.
        let _ = lines.send(last).await;
    });
    Answer::lines(tokio_stream::wrappers::ReceiverStream::new(stream).boxed())
}

/// Kubo never gives up by itself; the last line says that it is pinned, or the connection is cut.
async fn pin(
    engine: EmbeddedNode,
    cid: Cid,
    mode: PinMode,
    fault: Option<PinFault>,
    lines: &mpsc::Sender<Line>,
) -> Line {
    let progress = |blocks: u64, bytes: u64| Ok(json!({"Progress": blocks, "Bytes": bytes}));
    match fault {
        Some(PinFault::Stall { blocks }) => loop {
            if lines.send(progress(blocks, blocks * 1000)).await.is_err() {
                return Err(Cut);
            }
            tokio::time::sleep(PROGRESS_INTERVAL).await;
        },
        Some(PinFault::CutAfterFirstByte) => {
            let _ = lines.send(progress(1, 1000)).await;
            return Err(Cut);
        }
        Some(PinFault::CutBeforeEnd | PinFault::Fail(_)) | None => {}
    }
    loop {
        let mut events = engine.pin_add(PinAdd::new(cid, mode));
        while let Some(event) = events.next().await {
            match event {
                Ok(PinEvent::Progress(seen)) => {
                    if lines.send(progress(seen.blocks, seen.bytes)).await.is_err() {
                        return Err(Cut);
                    }
                }
                Ok(PinEvent::Done(_)) if fault == Some(PinFault::CutBeforeEnd) => return Err(Cut),
                Ok(PinEvent::Done(seen)) => {
                    let _ = lines.send(progress(seen.blocks, seen.bytes)).await;
                    return Ok(json!({"Pins": [cid.to_string()]}));
                }
                Err(NodeError::NoProviders(_) | NodeError::Stalled(_)) => break,
                Err(_) => return Err(Cut),
            }
        }
        tokio::time::sleep(SEARCH_AGAIN).await;
    }
}

async fn pin_update(engine: EmbeddedNode, call: &Call) -> Answer {
    let arguments: Vec<&str> = call.arguments().collect();
    let [from, to] = arguments.as_slice() else { return Answer::refusal("argument \"to-path\" is required") };
    let (from, to) = match (cid_of(from), cid_of(to)) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(answer), _) | (_, Err(answer)) => return answer,
    };
    if engine.pin_state(&from).await != Ok(PinState::Recursive) {
        return Answer::refusal("'from' cid was not recursively pinned already");
    }
    let events: Vec<_> = engine.pin_add(PinAdd::new(to, PinMode::Recursive)).collect().await;
    match events.last() {
        Some(Ok(PinEvent::Done(_))) => Answer::json(json!({"Pins": [from.to_string(), to.to_string()]})),
        other => Answer::refusal(&format!("pin: {other:?}")),
    }
}

async fn pin_rm(engine: EmbeddedNode, call: &Call) -> Answer {
    let cid = match cid_of(call.argument()) {
        Ok(cid) => cid,
        Err(answer) => return answer,
    };
    match engine.pin_state(&cid).await {
        Ok(PinState::NotPinned) => Answer::refusal("not pinned or pinned indirectly"),
        Ok(PinState::Direct | PinState::Recursive) => match engine.pin_rm(&cid).await {
            Ok(()) => Answer::json(json!({"Pins": [cid.to_string()]})),
            Err(error) => Answer::refusal(&error.to_string()),
        },
        Err(error) => Answer::refusal(&error.to_string()),
    }
}

async fn pin_one(engine: EmbeddedNode, call: &Call) -> Answer {
    let cid = match cid_of(call.argument()) {
        Ok(cid) => cid,
        Err(answer) => return answer,
    };
    let mode = if call.option("type") == "direct" { PinMode::Direct } else { PinMode::Recursive };
    match engine.pin_state(&cid).await {
        Ok(state) if state.is(mode) => Answer::json(json!({"Cid": cid.to_string(), "Type": mode.name()})),
        Ok(_) => Answer::refusal(&format!("path '{cid}' is not pinned")),
        Err(error) => Answer::refusal(&error.to_string()),
    }
}

fn pin_list(shared: &Shared, engine: EmbeddedNode, call: &Call) -> Answer {
    let mode = if call.option("type") == "direct" { PinMode::Direct } else { PinMode::Recursive };
    let lines: BoxStream<'static, Line> = match shared.state.lock().list {
        ListFault::None => engine
            .pin_ls(mode)
            .map(|pin| match pin {
                Ok((cid, mode)) => Ok(json!({"Cid": cid.to_string(), "Type": mode.name()})),
                Err(_) => Err(Cut),
            })
            .boxed(),
        ListFault::Empty => stream::empty().boxed(),
        ListFault::Hung => stream::pending().boxed(),
    };
    Answer::lines(lines)
}

async fn block_get(engine: EmbeddedNode, call: &Call) -> Answer {
    let cid = match cid_of(call.argument()) {
        Ok(cid) => cid,
        Err(answer) => return answer,
    };
    if call.option("offline") == "true" {
        return match engine.get_block_local(&cid).await {
            Ok(Some(data)) => Answer::bytes(data),
            Ok(None) => Answer::refusal(&format!("block was not found locally (offline): ipld: could not find {cid}")),
            Err(error) => Answer::refusal(&error.to_string()),
        };
    }
    let deadline = call.option("timeout").trim_end_matches("ms").parse().map_or(Duration::MAX, Duration::from_millis);
    let search = async {
        loop {
            if let Ok(data) = engine.get_block(&cid, Duration::from_secs(1)).await {
                return data;
            }
            tokio::time::sleep(SEARCH_AGAIN).await;
        }
    };
    match tokio::time::timeout(deadline, search).await {
        Ok(data) => Answer::bytes(data),
        Err(_) => Answer::refusal("context deadline exceeded"),
    }
}

async fn import(engine: EmbeddedNode, call: Call) -> Answer {
    let Ok(boundary) = multer::parse_boundary(&call.content_type) else { return Answer::refusal("not multipart") };
    let body = http_body_util::BodyStream::new(call.body)
        .filter_map(|frame| std::future::ready(frame.map(|frame| frame.into_data().ok()).transpose()));
    let mut form = multer::Multipart::new(body, boundary);
    let car = match form.next_field().await {
        Ok(Some(field)) => field.bytes().await,
        Ok(None) => return Answer::refusal("no file"),
        Err(error) => Err(error),
    };
    let car = match car {
        Ok(car) => car,
        // The upload broke off.
        Err(_) => return Answer { status: 500, body: stream::iter([Err(Cut)]).boxed() },
    };
    let blocks = blocks_of_car(&car);
    let count = blocks.len();
    match engine.put_blocks(stream::iter(blocks.into_iter().map(Ok)).boxed()).await {
        Ok(_) => Answer::json(json!({"Stats": {"BlockCount": count}})),
        Err(NodeError::Refused(why)) => {
            Answer::refusal(&format!("import failed: mismatch in content integrity, {why}"))
        }
        Err(error) => Answer::refusal(&error.to_string()),
    }
}

fn blocks_of_car(car: &bytes::Bytes) -> Vec<Block> {
    let mut at = 0;
    let mut section = || {
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = *car.get(at)?;
            at += 1;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let range = at..at + length;
        at += length;
        Some(range)
    };
    section();
    let mut blocks = Vec::new();
    while let Some(range) = section() {
        let section = car.slice(range);
        let mut rest: &[u8] = &section;
        let cid = Cid::read_bytes(&mut rest).unwrap();
        let data = section.slice(section.len() - rest.len()..);
        blocks.push(Block { cid, data });
    }
    blocks
}

fn gc(shared: Arc<Shared>, engine: EmbeddedNode) -> Answer {
    let lines = async move {
        let time = shared.state.lock().gc;
        let _alone = shared.pin_lock.write().await;
        tokio::time::sleep(time).await;
        let events: Vec<_> = engine.gc().collect().await;
        stream::iter(events).map(|event| match event {
            Ok(GcEvent::Removed(cid)) => Ok(json!({"Key": {"/": cid.to_string()}})),
            Ok(GcEvent::Failed(error)) => Ok(json!({"Error": error})),
            Err(_) => Err(Cut),
        })
    };
    Answer::lines(stream::once(lines).flatten().boxed())
}

/// One name at most: what leads to a further one is answered as it is, as Kubo does with `recursive=false`.
async fn resolve(shared: &Shared, engine: EmbeddedNode, call: &Call) -> Answer {
    let mut path = call.argument().to_owned();
    if let Some(named) = path.strip_prefix("/ipns/") {
        let (name, rest) = named.split_once('/').unwrap_or((named, ""));
        let Some(leads_to) = shared.state.lock().names.get(name).cloned() else {
            return Answer::refusal("could not resolve name");
        };
        path = if rest.is_empty() { leads_to } else { format!("{leads_to}/{rest}") };
    }
    if path.starts_with("/ipns/") {
        return Answer::json(json!({"Path": path}));
    }
    match engine.resolve(&path).await {
        Ok(cid) => Answer::json(json!({"Path": format!("/ipfs/{cid}")})),
        Err(NodeError::NotFound(text)) => Answer::refusal(&format!("no link named \"x\": {text}")),
        Err(error) => Answer::refusal(&error.to_string()),
    }
}

fn connect(shared: &Shared, call: &Call) -> Answer {
    let address = call.argument();
    let mut state = shared.state.lock();
    if !state.reachable.contains(address) {
        return Answer::refusal(&format!("connect {address} failure: failed to dial: all dials failed"));
    }
    if let Some(peer) = address.rsplit("/p2p/").next().and_then(|id| pinfold_common::ids::parse_peer_id(id).ok()) {
        state.connected.push(peer);
    }
    Answer::json(json!({"Strings": [format!("connect {address} success")]}))
}
