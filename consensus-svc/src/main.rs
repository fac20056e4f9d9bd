//! Arguments, configuration, telemetry, ports, `run`, exit code. Nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use consensus_svc::config::Config;
use consensus_svc::error::{Error, Result};
use consensus_svc::offline::StateCommand;
use consensus_svc::{Listeners, offline, run};
use pinfold_common::config::{Args, File, listen_key_name};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{runtime, server, telemetry};

/// With many clients a tenth more requests are answered than with glibc's allocator (docs/bench.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The pinset and the peerset of a Pinfold peer. Without a command: serves.
#[derive(Parser)]
#[command(name = "consensus-svc", version)]
struct Command {
    #[command(subcommand)]
    command: Option<Offline>,
    #[command(flatten)]
    args: Args,
    /// Multiaddresses, with /p2p/<peer ID>, of members of the cluster to join; separated by commas
    #[arg(short = 'j', long, value_name = "ADDRESSES")]
    bootstrap: Vec<String>,
}

#[derive(Subcommand)]
enum Offline {
    /// Work on the state of this peer while it is stopped
    #[command(subcommand)]
    State(StateCommand),
}

fn main() -> ExitCode {
    match start(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "consensus-svc stops");
            eprintln!("consensus-svc: {error}");
            error.exit_code()
        }
    }
}

fn start(command: Command) -> Result<()> {
    let file = File::load(&command.args)?;
    let _telemetry = telemetry::init(Room::Consensus, &file.telemetry(Room::Consensus)?)?;
    if let Some(Offline::State(command)) = command.command {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::Io(format!("start the runtime: {error}")))?;
        return runtime.block_on(offline::run(&file, command));
    }
    let config = Config::from_file(&file, &command.bootstrap)?;
    runtime::run(serve(file, config))?
}

async fn serve(file: File, config: Config) -> Result<()> {
    let grpc = server::bind(listen_key_name(Room::Consensus), &file.listen(Room::Consensus)?).await?;
    let metrics = match file.metrics_listen(Room::Consensus)? {
        Some(address) => Some(server::bind("services.consensus.metrics_multiaddress", &address).await?),
        None => None,
    };
    let shutdown = Shutdown::new();
    shutdown
        .on_signals()
        .map_err(|error| Error::Common(pinfold_common::Error::internal(format!("listen for signals: {error}"))))?;
    run(config, Listeners { grpc, metrics }, shutdown).await
}
