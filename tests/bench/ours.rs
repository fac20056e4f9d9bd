//! Our own clusters: one and three peers, over REST and gRPC, one by one and in batches; lists, memory, restart, the gap
//! when the leader dies.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ctl::local::Programs;
use ctl::local::cluster::{Cluster, Ipfs, Options, PortPlan};
use ctl::local::service::Tell;
use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::config::Overrides;
use pinfold_common::ids::parse_cid;
use pinfold_common::pin::PinRequest;
use pinfold_proto::{api, types};
use tonic::transport::{Channel, Endpoint};

use crate::load::{Http, Outcome, closed_loop};
use crate::losses::{self, Loss};
use crate::machine::resident_bytes;
use crate::report::Report;
use crate::rest::{self, Failed, fresh_cid};
use crate::{Arguments, Part, add, pin, proposals};

pub const PATIENCE: Duration = Duration::from_secs(300);
const BATCH: u64 = 100;

pub async fn run(report: &mut Report, arguments: &Arguments) -> Result<(), Failed> {
    report.mark_ours();
    let folder = tempfile::Builder::new().prefix("pinfold-bench-").tempdir()?;
    let rate = crate::disk::fdatasync_rate(report, folder.path(), Duration::from_secs(1))?;
    let is_apart = |part: &Part| matches!(part, Part::AddKubo | Part::PinKubo | Part::Proposals);
    let only_apart = arguments.only.iter().all(is_apart) && !arguments.only.is_empty();
    for &peers in arguments.peers.iter().filter(|_| !only_apart) {
        let cluster = start(folder.path().join(format!("peers{peers}")), peers).await?;
        one_size(report, &cluster, peers, rate, arguments).await?;
        cluster.stop().await;
    }
    if arguments.wants(Part::Proposals) {
        proposals::run(report, folder.path(), arguments.seconds).await?;
    }
    if arguments.wants(Part::AddKubo) {
        add::run(report, arguments.add_kubo_mib).await?;
    }
    if arguments.wants(Part::PinKubo) {
        pin::run(report, arguments.pin_kubo_items).await?;
    }
    Ok(())
}

async fn start(folder: PathBuf, peers: u16) -> Result<Cluster, Failed> {
    start_with(folder, peers, Vec::new()).await
}

/// A cluster with further settings, ready.
pub async fn start_with(folder: PathBuf, peers: u16, settings: Overrides) -> Result<Cluster, Failed> {
    start_on(folder, peers, Ipfs::Embedded { gateways: Vec::new() }, settings).await
}

/// The same, on other IPFS nodes.
pub async fn start_on(folder: PathBuf, peers: u16, ipfs: Ipfs, settings: Overrides) -> Result<Cluster, Failed> {
    start_of(pinfold_tests::cluster::programs(), folder, peers, ipfs, settings).await
}

/// The same, of other programs.
pub async fn start_of(
    programs: Programs,
    folder: PathBuf,
    peers: u16,
    ipfs: Ipfs,
    settings: Overrides,
) -> Result<Cluster, Failed> {
    let options = Options { folder, peers, ipfs, replication: None, ports: PortPlan::Free, programs, settings };
    let tell: Tell = Arc::new(|service, sentence| eprintln!("{service}: {sentence}"));
    let cluster = Cluster::start(options, tell).await?;
    cluster.wait_ready(PATIENCE, |_, _| {}).await?;
    Ok(cluster)
}

async fn one_size(
    report: &mut Report,
    cluster: &Cluster,
    peers: u16,
    fdatasync: f64,
    arguments: &Arguments,
) -> Result<(), Failed> {
    let leader = leader(cluster).await;
    let authority = cluster.peers[leader].api.clone();
    memory(report, cluster, &format!("memory.{peers}.empty"), "Memory of the four services, before");
    if arguments.wants(Part::Rest) {
        rest::pins(report, &peers.to_string(), &authority, arguments).await;
    }
    let counter = Arc::new(AtomicU64::new(1 << 50));
    if arguments.wants(Part::Grpc) {
        grpc(report, &authority, peers, &arguments.clients, arguments.seconds, &counter).await?;
    }
    if arguments.wants(Part::Batches) {
        batches(report, &authority, peers, arguments.seconds, &counter).await?;
    }
    if let Some(single) = report.get(&format!("rest.pins.{peers}.1")) {
        report.figure(&format!("ratio.fdatasync.{peers}"), "1 client over fdatasync", single / fdatasync, "x");
    }
    if peers == 1 {
        return Ok(());
    }
    if arguments.wants(Part::Spread) {
        spread_over_gateways(report, cluster, arguments.seconds).await;
    }
    if arguments.wants(Part::Lists) {
        full(report, cluster, &authority, arguments).await?;
    }
    if arguments.wants(Part::Add) {
        rest::add(report, &authority, arguments.add_mib).await?;
    }
    if arguments.wants(Part::Gap) {
        losses::gap(report, cluster, Loss::Killed).await?;
        losses::gap(report, cluster, Loss::Stopped).await?;
        losses::kills(report, cluster).await?;
    }
    if arguments.wants(Part::Restart) {
        losses::restart(report, cluster).await?;
    }
    Ok(())
}

/// With all items in the pinset: is every one everywhere, how fast are lists, how large are the services?
async fn full(report: &mut Report, cluster: &Cluster, authority: &str, arguments: &Arguments) -> Result<(), Failed> {
    rest::fill(authority, arguments.items).await?;
    all_have_the_same(report, cluster).await?;
    rest::lists(report, authority).await;
    goals_of_lists(report);
    let total = memory(report, cluster, "memory.3.full", "Memory of the four services, after");
    let (reference, source) = report.reference("memory.original", 320e6);
    let detail = format!("{:.0} MB against {:.0} MB ({source})", total / 1e6, reference / 1e6);
    report.goal("a quarter of the original's memory, per peer", total <= reference / 4.0, &detail);
    Ok(())
}

/// Who leads; the first one while nobody says so.
pub async fn leader(cluster: &Cluster) -> usize {
    current_leader(cluster).await.unwrap_or(0)
}

pub async fn current_leader(cluster: &Cluster) -> Option<usize> {
    for (index, peer) in cluster.peers.iter().enumerate() {
        if let Ok(mut client) = cluster_client(&peer.api)
            && let Ok(reply) = client.id(api::IdRequest {}).await
            && reply.into_inner().role == "leader"
        {
            return Some(index);
        }
    }
    None
}

pub fn channel(authority: &str) -> Result<Channel, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{authority}"))?.tcp_nodelay(true).connect_lazy())
}

pub fn cluster_client(authority: &str) -> Result<api::cluster_client::ClusterClient<Channel>, tonic::transport::Error> {
    Ok(api::cluster_client::ClusterClient::new(channel(authority)?).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

pub fn pins_client(authority: &str) -> Result<api::pins_client::PinsClient<Channel>, tonic::transport::Error> {
    Ok(api::pins_client::PinsClient::new(channel(authority)?).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

pub fn request(number: u64) -> types::PinRequest {
    let cid = parse_cid(&fresh_cid(number)).expect("a CID made here");
    PinRequest::new(cid).into()
}

/// Pins all of them in one call; each must be accepted.
pub async fn pin_all(
    client: &mut api::pins_client::PinsClient<Channel>,
    requests: Vec<types::PinRequest>,
) -> Result<(), Failed> {
    let reply = client.pin_many(api::PinManyRequest { requests, request_key: Vec::new() }).await?.into_inner();
    let is_pin = |result: &api::pin_many_reply::Result| {
        matches!(result.result, Some(api::pin_many_reply::result::Result::Pin(_)))
    };
    match reply.results.iter().find(|result| !is_pin(result)) {
        Some(refused) => Err(format!("a pin was not accepted: {refused:?}").into()),
        None => Ok(()),
    }
}

pub async fn grpc(
    report: &mut Report,
    authority: &str,
    peers: u16,
    clients: &[usize],
    seconds: u64,
    counter: &Arc<AtomicU64>,
) -> Result<(), Failed> {
    report.section(&format!("gRPC Pins.Pin, {peers} peers"));
    for &clients in clients {
        let outcome = single_pins(authority, clients, seconds, counter).await?;
        report.figure(&format!("grpc.pins.{peers}.{clients}"), &format!("{clients} clients"), outcome.rate(), "pins/s");
        println!(
            "    p50 {:.1} ms, p99 {:.1} ms, {} not accepted",
            outcome.quantile_ms(0.5),
            outcome.quantile_ms(0.99),
            outcome.failed
        );
    }
    Ok(())
}

/// Clients that share eight connections.
pub async fn single_pins(
    authority: &str,
    clients: usize,
    seconds: u64,
    counter: &Arc<AtomicU64>,
) -> Result<Outcome, Failed> {
    let stubs: Result<Vec<_>, _> = (0..clients.min(8)).map(|_| pins_client(authority)).collect();
    let stubs = Arc::new(stubs?);
    let step = move |client: usize, number| {
        let mut stub = stubs[client % stubs.len()].clone();
        async move {
            let item = api::PinItem { request: Some(request(number)), request_key: Vec::new() };
            stub.pin(item).await.is_ok()
        }
    };
    Ok(closed_loop(clients, Duration::from_secs(seconds), counter, step).await)
}

pub async fn batches(
    report: &mut Report,
    authority: &str,
    peers: u16,
    seconds: u64,
    counter: &Arc<AtomicU64>,
) -> Result<(), Failed> {
    report.section(&format!("gRPC Pins.PinMany, batches of {BATCH}, {peers} peers"));
    for clients in [1, 16] {
        let stubs: Result<Vec<_>, _> = (0..clients).map(|_| pins_client(authority)).collect();
        let stubs = Arc::new(stubs?);
        let outcome = closed_loop(clients, Duration::from_secs(seconds), counter, move |client, number| {
            let mut stub = stubs[client].clone();
            async move {
                let first = (1 << 51) + number * BATCH;
                let requests = (first..first + BATCH).map(request).collect();
                let reply = stub.pin_many(api::PinManyRequest { requests, request_key: Vec::new() }).await;
                reply.is_ok_and(|reply| {
                    let pinned = |result: &api::pin_many_reply::Result| {
                        matches!(result.result, Some(api::pin_many_reply::result::Result::Pin(_)))
                    };
                    reply.into_inner().results.iter().all(pinned)
                })
            }
        })
        .await;
        let name = format!("grpc.batch.{peers}.{clients}");
        report.figure(&name, &format!("{clients} clients"), outcome.rate() * BATCH as f64, "pins/s");
        println!(
            "    p50 {:.1} ms, p99 {:.1} ms, {} failed",
            outcome.quantile_ms(0.5),
            outcome.quantile_ms(0.99),
            outcome.failed
        );
    }
    let figures = (report.get("grpc.batch.1.16"), report.get("grpc.batch.3.16"));
    if let (Some(one), Some(three)) = figures {
        report.figure("ratio.batch", "batches on three peers over one", three / one, "x");
    }
    Ok(())
}

async fn spread_over_gateways(report: &mut Report, cluster: &Cluster, seconds: u64) {
    report.section("REST POST /pins/{cid}, 3 peers, 64 clients over all three gateways");
    let counter = Arc::new(AtomicU64::new(1 << 45));
    let connections: Vec<Http> =
        (0..64).map(|client| Http::new(&cluster.peers[client % cluster.peers.len()].api)).collect();
    let connections = Arc::new(connections);
    let outcome = closed_loop(64, Duration::from_secs(seconds), &counter, move |client, number| {
        let connections = connections.clone();
        async move {
            let path = format!("/pins/{}", fresh_cid(number));
            connections[client].send("POST", &path).await.is_some_and(|(status, _, _)| status == 200)
        }
    })
    .await;
    report.figure("rest.pins.spread.64", "64 clients", outcome.rate(), "pins/s");
    println!("    p50 {:.1} ms, p99 {:.1} ms", outcome.quantile_ms(0.5), outcome.quantile_ms(0.99));
}

/// Acknowledged means there: every peer lists as many pins as the leader.
async fn all_have_the_same(report: &mut Report, cluster: &Cluster) -> Result<(), Failed> {
    let mut counts = Vec::new();
    for peer in &cluster.peers {
        let answer = Http::new(&peer.api).send("GET", "/allocations").await;
        counts.push(answer.ok_or("no answer to GET /allocations")?.2);
    }
    let same = counts.windows(2).all(|pair| pair[0] == pair[1]);
    report.goal("every peer holds every accepted pin", same, &format!("{counts:?}"));
    Ok(())
}

fn goals_of_lists(report: &mut Report) {
    let (reference, source) = report.reference("rest.list", 38_000.0);
    let rows = report.get("rest.list").unwrap_or(0.0);
    report.goal(
        "lists 10 x the original",
        rows >= 10.0 * reference,
        &format!("{rows:.0} against {reference:.0} rows/s ({source})"),
    );
    let (reference, source) = report.reference("rest.status_all", 8_000.0);
    let rows = report.get("rest.status_all").unwrap_or(0.0);
    report.goal(
        "status of all 10 x the original",
        rows >= 10.0 * reference,
        &format!("{rows:.0} against {reference:.0} rows/s ({source})"),
    );
}

/// Resident bytes of one peer's four services, the largest peer.
fn memory(report: &mut Report, cluster: &Cluster, name: &str, title: &str) -> f64 {
    report.section(title);
    let mut largest = 0.0;
    for (index, peer) in cluster.peers.iter().enumerate() {
        let mut total = 0.0;
        let mut parts = Vec::new();
        for service in peer.services() {
            let bytes = service.pid().map_or(0, resident_bytes) as f64;
            total += bytes;
            parts.push(format!("{} {:.0}", service.name(), bytes / 1e6));
        }
        println!("  peer {index}: {:.0} MB ({} MB)", total / 1e6, parts.join(", "));
        if total > largest {
            largest = total;
        }
    }
    report.figure(name, "largest peer", largest, "bytes");
    largest
}
