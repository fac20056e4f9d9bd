//! Arguments, configuration, telemetry, every port bound, `run`, exit code.

use std::process::ExitCode;

use clap::Parser;
use ipfs_connector::{Config, Listeners, run};
use pinfold_common::config::{Args, File, listen_key_name};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{Code, Error, VERSION, runtime, server, telemetry};

/// The configuration, or the state of the peer's folder, is refused: a restart does not help.
const EXIT_REFUSED: u8 = 78;

/// What this peer's IPFS node holds, and the work towards it: one of the four services of a Pinfold peer.
#[derive(Parser)]
#[command(name = "ipfs-connector", version = VERSION)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(&cli.args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ipfs-connector: {error}");
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

/// Steps behind consensus and gateway when the processor is short: work towards the node can wait, elections can't.
const NICENESS: i32 = 5;

fn start(args: &Args) -> Result<(), Error> {
    // Threads that are started later inherit it. Without the permission everything works as well.
    let _ = rustix::process::nice(NICENESS);
    let file = File::load(args)?;
    let _telemetry = telemetry::init(Room::Connector, &file.telemetry(Room::Connector)?)?;
    let config = Config::from_file(&file)?;
    runtime::run(serve(file, config))?
}

async fn serve(file: File, config: Config) -> Result<(), Error> {
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|error| Error::internal(format!("listen for signals: {error}")))?;
    let grpc = server::bind(listen_key_name(Room::Connector), &file.listen(Room::Connector)?).await?;
    let metrics = match file.metrics_listen(Room::Connector)? {
        Some(address) => Some(server::bind("services.connector.metrics_multiaddress", &address).await?),
        None => None,
    };
    tracing::info!(version = VERSION, peer = %config.tls.own(), "ipfs-connector starts");
    run(config, Listeners { grpc, metrics }, shutdown).await
}
