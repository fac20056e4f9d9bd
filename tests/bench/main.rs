//! `make bench`: what the cluster does on this machine, as figures and ratios, with pass or fail where there is a goal.
//! Everything of one run is measured on the same disk in the same minutes, beside what that disk can do at all.

mod add;
mod disk;
mod etcd;
mod failover;
mod large;
mod load;
mod losses;
mod machine;
mod ours;
mod pin;
mod proposals;
mod report;
mod rest;
mod rooms;
mod sqlite;
mod state;
mod status;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use report::Report;

/// Measures a cluster of this build, or any that speaks the same REST API.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Measure this API instead of our own clusters: http://host:port; the pins it makes are removed again
    #[arg(long)]
    api: Option<String>,
    /// Process IDs of what serves that API at one peer: their memory is told, for a later --baseline
    #[arg(long, value_delimiter = ',', requires = "api")]
    pids: Vec<u32>,
    /// Measure one cluster of so many peers instead: joining, voters and learners, what they cost while idle
    #[arg(long, value_name = "PEERS", value_parser = clap::value_parser!(u16).range(2..=50))]
    large: Option<u16>,
    /// Seconds for each figure
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Items in the pinset for lists, status, memory and restart
    #[arg(long, default_value_t = 100_000)]
    items: usize,
    /// MiB of the file that is added
    #[arg(long, default_value_t = 256)]
    add_mib: usize,
    /// MiB of the file that is added beside Kubo
    #[arg(long, default_value_t = 1024)]
    add_kubo_mib: usize,
    /// Small items that are pinned beside Kubo
    #[arg(long, default_value_t = 100_000)]
    pin_kubo_items: u64,
    /// A file that an earlier `--api` run wrote: ratios to it are printed, and are the goals
    #[arg(long)]
    baseline: Option<std::path::PathBuf>,
    /// Kill peers and watch the repair instead, or disturb them and see that nothing moves; all runs when none is named
    #[arg(long, num_args = 0.., value_parser = failover::RUNS)]
    failover: Option<Vec<String>>,
    /// Import pinsets of so many pins instead, and let a peer join each
    #[arg(long, num_args = 1.., value_name = "PINS")]
    state: Vec<u64>,
    /// Pin so many pins on each of three peers instead, and ask for their status
    #[arg(long, value_name = "PINS", value_parser = clap::value_parser!(u64).range(10_000..))]
    status: Option<u64>,
    /// Write the figures here, as JSON
    #[arg(long)]
    save: Option<std::path::PathBuf>,
    /// Only these parts, of our own clusters
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only these numbers of clients
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    clients: Vec<usize>,
    /// Only clusters of so many peers
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3])]
    peers: Vec<u16>,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// What a run consists of. The parts from `Spread` on are of three peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Rest,
    Grpc,
    Batches,
    Spread,
    Lists,
    Add,
    Gap,
    Restart,
    /// Clusters of its own, of consensus-svc alone: one peer and three, disk and memory, etcd beside them
    Proposals,
    /// Clusters of its own: embedded, and of three Kubos
    AddKubo,
    /// A cluster of its own, of one peer with a Kubo
    PinKubo,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let mut report = Report::new(arguments.baseline.as_deref());
    machine::describe();
    let run = async {
        if !arguments.state.is_empty() {
            return state::run(&mut report, &arguments.state).await;
        }
        if let Some(items) = arguments.status {
            return status::run(&mut report, items).await;
        }
        match (&arguments.failover, &arguments.api, arguments.large) {
            (Some(which), _, _) => failover::run(&mut report, which, arguments.items).await,
            (None, Some(api), _) => rest::run(&mut report, api, &arguments).await,
            (None, None, Some(peers)) => large::run(&mut report, peers).await,
            (None, None, None) => ours::run(&mut report, &arguments).await,
        }
    };
    let outcome = tokio::select! {
        outcome = run => outcome,
        signal = stopped() => {
            // Supervised processes would outlive this one.
            ctl::local::service::kill_all();
            Err(format!("ended by {signal}").into())
        }
    };
    if let Some(path) = &arguments.save {
        report.save(path);
    }
    if let Err(error) = outcome {
        eprintln!("bench: {error}");
        return std::process::ExitCode::from(2);
    }
    report.finish()
}

/// Until somebody wants this to end.
async fn stopped() -> &'static str {
    let mut terminate = signal(SignalKind::terminate()).expect("a signal handler");
    let mut interrupt = signal(SignalKind::interrupt()).expect("a signal handler");
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
