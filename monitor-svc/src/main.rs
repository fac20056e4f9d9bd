//! Arguments, configuration, telemetry, every port bound, `run`, exit code.

use std::process::ExitCode;

use clap::Parser;
use monitor_svc::{Config, Listeners, run};
use pinfold_common::config::{Args, File, listen_key_name};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{Code, Error, VERSION, runtime, server, telemetry};

/// The configuration, or the state of the peer's folder, is refused: a restart does not help.
const EXIT_REFUSED: u8 = 78;

/// Metrics, who is alive, and where a pin goes: one of the four services of a Pinfold peer.
#[derive(Parser)]
#[command(name = "monitor-svc", version = VERSION)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(&cli.args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("monitor-svc: {error}");
            match error.code {
                Code::InvalidArgument | Code::Rejected | Code::Incompatible | Code::Removed => {
                    ExitCode::from(EXIT_REFUSED)
                }
                Code::NotFound
                | Code::NotEnoughPeers
                | Code::Unauthenticated
                | Code::PermissionDenied
                | Code::UnknownMember
                | Code::Unavailable
                | Code::OutcomeUnknown
                | Code::Exhausted
                | Code::StorageFull
                | Code::Internal => ExitCode::FAILURE,
            }
        }
    }
}

fn start(args: &Args) -> Result<(), Error> {
    let file = File::load(args)?;
    let _telemetry = telemetry::init(Room::Monitor, &file.telemetry(Room::Monitor)?)?;
    let config = Config::from_file(&file)?;
    runtime::run(serve(file, config))?
}

async fn serve(file: File, config: Config) -> Result<(), Error> {
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|error| Error::internal(format!("listen for signals: {error}")))?;
    let grpc = server::bind(listen_key_name(Room::Monitor), &file.listen(Room::Monitor)?).await?;
    let metrics = match file.metrics_listen(Room::Monitor)? {
        Some(address) => Some(server::bind("services.monitor.metrics_multiaddress", &address).await?),
        None => None,
    };
    tracing::info!(version = VERSION, peer = %config.tls.own(), "monitor-svc starts");
    run(config, Listeners { grpc, metrics }, shutdown).await
}
