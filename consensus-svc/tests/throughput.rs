//! Figures of the consensus room alone, over real mTLS, with its monitor's stand-in: acknowledged pins a second, and the
//! entries they took. Not a test of speed (machines differ); run it by hand, with optimisation:
//! `cargo test --release -p consensus-svc --test throughput -- --ignored --nocapture --test-threads 1`.

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use harness::{Cluster, Peer, request};
use pinfold_proto::consensus::{PinCall, PinManyCall};

const RUN: Duration = Duration::from_secs(3);

/// `clients` in a closed loop, `batch` pins a request, spread over `peers`.
async fn measure(label: &str, peers: &[&Peer], clients: usize, batch: u32, numbers: &Arc<AtomicU32>) {
    let before = peers[0].status().await.unwrap().last_log_index;
    let end = Instant::now() + RUN;
    let loops = (0..clients).map(|client| {
        let (mut pins, numbers) = (peers[client % peers.len()].pins(), numbers.clone());
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let first = numbers.fetch_add(batch, Ordering::Relaxed);
                let started = Instant::now();
                if batch == 1 {
                    let call = PinCall { request: Some(request(first)), request_key: Vec::new() };
                    pins.pin(call).await.unwrap();
                } else {
                    let requests = (first..first + batch).map(request).collect();
                    pins.pin_many(PinManyCall { requests, request_key: Vec::new() }).await.unwrap();
                }
                latencies.push(started.elapsed());
            }
            latencies
        })
    });
    let mut latencies = Vec::new();
    for task in loops.collect::<Vec<_>>() {
        latencies.extend(task.await.unwrap());
    }
    latencies.sort();
    let entries = peers[0].status().await.unwrap().last_log_index - before;
    let pins = latencies.len() as f64 * f64::from(batch);
    println!(
        "{label}: {clients} clients x {batch}: {:.0} pins/s, p50 {:?}, p99 {:?}, {:.1} pins an entry",
        pins / RUN.as_secs_f64(),
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
        pins / entries.max(1) as f64
    );
}

async fn figures(label: &str, peers: &[&Peer]) {
    let numbers = Arc::new(AtomicU32::new(0));
    for clients in [1, 16, 64, 256] {
        measure(label, peers, clients, 1, &numbers).await;
    }
    measure(label, peers, 16, 100, &numbers).await;
    measure(label, peers, 8, 500, &numbers).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while, and says something only when optimised"]
async fn one_peer() {
    let (_cluster, peers) = Cluster::started(1).await;
    figures("one peer", &[&peers[0]]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while, and says something only when optimised"]
async fn three_peers() {
    let (_cluster, peers) = Cluster::started(3).await;
    let leader = peers[0].status().await.unwrap().leader;
    let leading = peers.iter().find(|peer| peer.id() == leader).unwrap();
    figures("three peers, at the leader", &[leading]).await;
    let all: Vec<&Peer> = peers.iter().collect();
    figures("three peers, at all", &all).await;
}
