//! `ctl up`: a local cluster in the foreground. Says what it waits for, then where everything is.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::api;

use crate::cli::Up;
use crate::client::{Failure, Outcome};
use crate::local::cluster::{Cluster, Ipfs, Options, PortPlan};
use crate::local::peer::Peer;
use crate::local::service::Tell;
use crate::local::{LocalError, Programs};

/// A cold start takes about a second; a loaded machine may take long.
const READY_DEADLINE: Duration = Duration::from_secs(120);

pub async fn run(arguments: Up) -> Outcome {
    let failed = |error: LocalError| Failure::local("starting the cluster", error);
    let shutdown = Shutdown::new();
    stop_on_signals(&shutdown).map_err(|error| Failure::local("watching signals", error))?;
    let started = Instant::now();
    let folder = std::path::absolute(&arguments.folder).map_err(|error| Failure::local("reading --folder", error))?;
    let ipfs = Ipfs::parse(&arguments.ipfs, arguments.peers, arguments.offline).map_err(failed)?;
    let programs = Programs::find();
    let options = Options {
        folder,
        peers: arguments.peers,
        ipfs,
        replication: arguments.replication,
        ports: PortPlan::Offset(arguments.port_offset),
        programs: programs.clone(),
        settings: Vec::new(),
    };
    let bar = progress();
    bar.set_message(format!("starting {} peers", arguments.peers));
    let tell: Tell = {
        let bar = bar.clone();
        Arc::new(move |service, sentence| bar.suspend(|| eprintln!("{service}: {sentence}")))
    };
    let cluster = Cluster::start(options, tell).await.map_err(failed)?;
    let readiness = cluster.wait_ready(READY_DEADLINE, |index, reason| {
        let message = format!("waiting for peer {index}: {reason}");
        if bar.is_hidden() { eprintln!("{message}") } else { bar.set_message(message) }
    });
    let ready = shutdown.race(readiness).await;
    bar.finish_and_clear();
    let outcome = match ready {
        None => Ok(()),
        Some(Err(error)) => Err(failed(error)),
        Some(Ok(())) => {
            show(&cluster, &programs, started.elapsed()).await;
            shutdown.triggered().await;
            Ok(())
        }
    };
    eprintln!("stopping (again Ctrl-C ends everything at once)");
    cluster.stop().await;
    eprintln!("stopped; `ctl up` with the same folder goes on from here");
    outcome
}

/// The first signal asks for a clean stop, the second ends at once: the processes are ended by their supervisors.
fn stop_on_signals(shutdown: &Shutdown) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            if shutdown.is_triggered() {
                crate::local::service::kill_all();
                std::process::exit(1);
            }
            shutdown.trigger();
        }
    });
    Ok(())
}

fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

async fn show(cluster: &Cluster, programs: &Programs, took: Duration) {
    println!("{} peers are ready after {:.1} s", cluster.peers.len(), took.as_secs_f64());
    println!();
    for (index, peer) in cluster.peers.iter().enumerate() {
        let role = role(peer).await.unwrap_or_else(|| "unknown".to_owned());
        println!("peer {index}   {}", peer.peer_id);
        println!("  role     {role}");
        println!("  REST     http://{}", peer.api);
        println!("  gRPC     {}", peer.api);
        println!("  folder   {}", peer.folder.display());
        println!("  logs     {}/*.log", peer.folder.join("logs").display());
    }
    println!();
    match &cluster.options.ipfs {
        Ipfs::Embedded { gateways } if gateways.is_empty() => {
            println!("IPFS: embedded nodes; offline, content comes from these peers only");
        }
        Ipfs::Embedded { gateways } => {
            println!(
                "IPFS: embedded nodes; what no peer holds is fetched from {} (--offline: not)",
                gateways.join(", ")
            );
        }
        Ipfs::StartKubo => println!("IPFS: a Kubo daemon beside each peer, repository <folder>/kubo"),
        Ipfs::RunningKubo(list) => println!("IPFS: the running Kubo daemons at {}", list.join(", ")),
    }
    if let Some(folder) = programs.folder() {
        println!("For another terminal:  export PATH=\"{}:$PATH\"", folder.display());
    }
    let host = cluster.peers.first().map(|peer| peer.api.clone()).unwrap_or_default();
    if host != "127.0.0.1:9094" {
        println!("                       export PINFOLD_HOST={host}");
    }
    println!("Then:                  ctl add --wait <file>; ctl status <cid>; ctl peers ls");
    println!("Ctrl-C stops all of it.");
}

async fn role(peer: &Peer) -> Option<String> {
    let channel = peer.channel().ok()?;
    let mut client = api::cluster_client::ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let reply = client.id(api::IdRequest {}).await.ok()?;
    Some(reply.into_inner().role)
}
