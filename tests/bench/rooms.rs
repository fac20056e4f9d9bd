//! Clusters of consensus-svc alone, asked without a gateway before it: what its own targets speak about. Every pin is of
//! about 300 bytes and goes everywhere, so that a proposal is one call, the log, a majority and the state.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use pinfold_common::config::Overrides;
use pinfold_common::tls::ClusterSecret;
use pinfold_proto::consensus::peers_client::PeersClient;
use pinfold_proto::consensus::{DigestCall, PinCall, PinManyCall, pin_result};
use pinfold_proto::types;
use pinfold_tests::alone::{Alone, pins_over, request};
use pinfold_tests::content;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::Child;
use tokio::time::timeout;

use crate::load::{Outcome, closed_loop};
use crate::ours::PATIENCE;
use crate::rest::Failed;

/// Pins in one request of a batch.
pub const BATCH: u64 = 100;
/// Clients share so many connections at most.
pub const CONNECTIONS: usize = 8;
/// So that a pin takes about 300 bytes.
const NAME_BYTES: usize = 200;
const CID_BYTES: usize = 36;
/// CIDv1, raw, SHA-256 of 32 bytes.
const CID_HEAD: [u8; 4] = [1, 0x55, 0x12, 32];

/// Running processes, one for each peer. Killed when dropped.
pub struct Rooms {
    pub peers: Vec<Alone>,
    pub processes: Vec<Child>,
}

impl Rooms {
    /// A new cluster, ready. The first peer leads.
    pub async fn start(folder: &Path, count: usize) -> Rooms {
        let secret = ClusterSecret::generate();
        let prepare = |index: usize| Alone::prepare(&folder.join(format!("peer{index}")), &secret, settings());
        let mut rooms = Rooms { peers: (0..count).map(prepare).collect(), processes: Vec::new() };
        for peer in &rooms.peers {
            rooms.processes.push(peer.start(rooms.peers.first().filter(|_| !rooms.processes.is_empty())));
            peer.ready().await;
        }
        rooms
    }

    pub fn leader(&self) -> &Alone {
        &self.peers[0]
    }

    /// Asks all to end, and waits until they have.
    pub async fn stop(self) -> Result<Vec<Alone>, Failed> {
        for process in self.processes {
            end(process, Signal::TERM).await?;
        }
        Ok(self.peers)
    }
}

pub fn settings() -> Overrides {
    vec![("cluster.disable_repinning", json!(true)), ("backup.interval", json!("0s"))]
}

/// Sends `signal` and waits for the end.
pub async fn end(mut process: Child, signal: Signal) -> Result<(), Failed> {
    let pid = process.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or("a process has ended by itself")?;
    kill_process(pid, signal)?;
    timeout(PATIENCE, process.wait()).await??;
    Ok(())
}

/// A CID that looks like the hash that CIDs are, another one for each number and run.
pub fn cid(number: u64) -> Vec<u8> {
    static RUN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let run = RUN.get_or_init(rand::random);
    let mut cid = Vec::with_capacity(CID_BYTES);
    cid.extend(CID_HEAD);
    cid.extend(content::bytes(
        run.wrapping_add(number.wrapping_mul(0x1234_5678_9abc_def1)),
        CID_BYTES - CID_HEAD.len(),
    ));
    cid
}

pub fn pin(number: u64) -> types::PinRequest {
    let name = format!("{number:0NAME_BYTES$}");
    request(&cid(number), types::PinOptions { name, ..types::PinOptions::default() })
}

/// Pins one by one, each client its next one when the last one is acknowledged.
pub async fn singles(peer: &Alone, clients: usize, time: Duration, counter: &Arc<AtomicU64>) -> Outcome {
    let stubs: Vec<_> = (0..clients.min(CONNECTIONS)).map(|_| pins_over(peer.new_channel())).collect();
    closed_loop(clients, time, counter, move |client, number| {
        let mut stub = stubs[client % stubs.len()].clone();
        async move {
            let call = PinCall { request: Some(pin(number)), request_key: Vec::new() };
            stub.pin(call).await.is_ok()
        }
    })
    .await
}

/// The same in batches of [`BATCH`]; what counts is requests.
pub async fn batches(peer: &Alone, clients: usize, time: Duration, counter: &Arc<AtomicU64>) -> Outcome {
    let stubs: Vec<_> = (0..clients.min(CONNECTIONS)).map(|_| pins_over(peer.new_channel())).collect();
    closed_loop(clients, time, counter, move |client, number| {
        let mut stub = stubs[client % stubs.len()].clone();
        async move {
            let first = (1 << 51) + number * BATCH;
            let requests = (first..first + BATCH).map(pin).collect();
            let reply = stub.pin_many(PinManyCall { requests, request_key: Vec::new() }).await;
            let is_pinned = |result: &pin_result::Result| matches!(result, pin_result::Result::Pin(_));
            reply.is_ok_and(|reply| {
                reply.into_inner().results.iter().all(|item| item.result.as_ref().is_some_and(is_pinned))
            })
        }
    })
    .await
}

/// How many pins a peer holds, and the hash of all.
pub async fn digest(peer: &Alone) -> Result<(u64, Vec<u8>), Failed> {
    let reply = PeersClient::new(peer.channel()).digest(DigestCall {}).await?.into_inner();
    Ok((reply.pins, reply.sha256))
}
