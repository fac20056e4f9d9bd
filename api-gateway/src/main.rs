//! `api-gateway`: arguments, configuration, telemetry, sockets, `run`, exit code.

use std::process::ExitCode;

use api_gateway::{Config, Listeners, run};
use clap::Parser;
use pinfold_common::config::{Args, File};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Room;
use pinfold_common::{Code, Error, Result, VERSION, runtime, telemetry};

/// REST and gRPC of one Pinfold peer.
#[derive(Parser)]
#[command(name = "api-gateway", version = VERSION)]
struct Flags {
    #[command(flatten)]
    args: Args,
}

/// sysexits' EX_CONFIG: starting again does not help.
const EXIT_CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    let flags = Flags::parse();
    match start(&flags.args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("api-gateway: {error}");
            if error.code == Code::InvalidArgument { ExitCode::from(EXIT_CONFIGURATION) } else { ExitCode::FAILURE }
        }
    }
}

fn start(args: &Args) -> Result<()> {
    let file = File::load(args)?;
    let config = Config::from_file(&file)?;
    runtime::run(serve(file, config))?
}

async fn serve(file: File, config: Config) -> Result<()> {
    let _telemetry = telemetry::init(Room::Gateway, &file.telemetry(Room::Gateway)?)?;
    let listeners = Listeners::bind(&config, &file).await?;
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|error| Error::internal(format!("listen for signals: {error}")))?;
    run(config, listeners, shutdown).await
}
