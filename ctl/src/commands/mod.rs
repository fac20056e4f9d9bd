//! One file per verb. A command connects, calls, prints; what it prints stands in `output`.

mod add;
mod approve;
mod backup;
mod daemon;
mod health;
mod id;
mod init;
mod ipfs;
mod peers;
mod pin;
mod rebalance;
mod recover;
mod repin;
mod state;
mod status;
mod up;
mod version;
mod wait;

use crate::cli::{Backup, Cli, Command, Health, Ipfs, Peers, PinCommand, State};
use crate::client::{Client, Outcome};
use crate::output;

/// Runs one command and tells its failure; the exit code.
pub async fn run(cli: Cli) -> u8 {
    let encoding = cli.global.encoding;
    match dispatch(cli).await {
        Ok(()) => 0,
        Err(failure) => output::tell(encoding, &failure),
    }
}

async fn dispatch(cli: Cli) -> Outcome {
    let global = cli.global;
    let encoding = global.encoding;
    match cli.command {
        Command::Up(arguments) => up::run(arguments).await,
        Command::Daemon(arguments) => daemon::run(&global, arguments).await,
        Command::Init(arguments) => init::run(&global, arguments),
        Command::Id => id::run(&Client::connect(&global).await?, encoding).await,
        Command::Version => version::run(&Client::connect(&global).await?, encoding).await,
        Command::Peers(Peers::Ls) => peers::ls::run(&Client::connect(&global).await?, encoding).await,
        Command::Peers(Peers::Digest) => peers::digest::run(&Client::connect(&global).await?, encoding).await,
        Command::Peers(Peers::Add { peer, address }) => {
            peers::add::run(&Client::connect(&global).await?, encoding, &peer.0, address).await
        }
        Command::Peers(Peers::Rm { peer, force }) => {
            let how = if force { peers::rm::How::AtOnce } else { peers::rm::How::WhenNothingIsLeft };
            peers::rm::run(&Client::connect(&global).await?, encoding, &peer.0, how).await
        }
        Command::Peers(Peers::Drain { peer }) => {
            peers::drain::run(&Client::connect(&global).await?, encoding, &peer.0).await
        }
        Command::Peers(Peers::Undrain { peer }) => {
            peers::undrain::run(&Client::connect(&global).await?, encoding, &peer.0).await
        }
        Command::Peers(Peers::Maintenance { peer, duration, end: _ }) => {
            peers::maintenance::run(&Client::connect(&global).await?, encoding, &peer.0, duration).await
        }
        Command::Rebalance(arguments) => rebalance::run(&Client::connect(&global).await?, encoding, &arguments).await,
        Command::Repin(command) => repin::run(&Client::connect(&global).await?, encoding, command).await,
        Command::Add(arguments) => add::run(&Client::connect(&global).await?, encoding, arguments).await,
        Command::Pin(arguments) => {
            let command = arguments.command.unwrap_or(PinCommand::Add(arguments.add));
            let client = Client::connect(&global).await?;
            match command {
                PinCommand::Add(add) => pin::add::run(&client, encoding, add).await,
                PinCommand::Rm(rm) => pin::rm::run(&client, encoding, rm).await,
                PinCommand::Update(update) => pin::update::run(&client, encoding, update).await,
                PinCommand::Ls(ls) => pin::ls::run(&client, encoding, ls).await,
                PinCommand::Explain(explain) => pin::explain::run(&client, encoding, explain).await,
            }
        }
        Command::Status(arguments) => status::run(&Client::connect(&global).await?, encoding, arguments).await,
        Command::Recover(arguments) => recover::run(&Client::connect(&global).await?, encoding, arguments).await,
        Command::Approve(arguments) => approve::run(&Client::connect(&global).await?, encoding, arguments).await,
        Command::Ipfs(Ipfs::Gc(arguments)) => {
            ipfs::gc::run(&Client::connect(&global).await?, encoding, arguments).await
        }
        Command::Ipfs(Ipfs::Peering) => ipfs::peering::run(&Client::connect(&global).await?).await,
        Command::State(State::Export(arguments)) => state::export(&Client::connect(&global).await?, arguments).await,
        Command::Backup(Backup::Create(arguments)) => {
            backup::create(&Client::connect(&global).await?, encoding, arguments).await
        }
        Command::Backup(Backup::Ls) => backup::ls(&Client::connect(&global).await?, encoding).await,
        Command::Backup(Backup::Restore(arguments)) => backup::restore(&global, &arguments),
        Command::Health(page) => {
            let client = Client::connect(&global).await?;
            let Some(command) = page.command else { return health::summary::run(&client, encoding).await };
            match command {
                Health::Ready => health::ready::run(&client, encoding).await,
                Health::Metrics { name } => health::metrics::run(&client, encoding, name).await,
                Health::Alerts => health::alerts::run(&client, encoding).await,
                Health::Graph(graph) => health::graph::run(&client, graph).await,
            }
        }
    }
}
