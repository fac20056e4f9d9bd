//! `consensus-svc state …`: what can be done with the state of a peer that does not run.
//!
//! Every command takes the folder's lock, so a running peer is never touched. What replaces the state builds the new one
//! whole before anything of the old one moves, and keeps the old one as `raft.old.0` ([`Exchange`]). None of them speaks
//! with another peer.

mod export;
mod import;
mod objects;
mod prompt;
mod recover;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use pinfold_common::config::File;
use pinfold_common::{ids, member};

use crate::backup;
use crate::config::{Config, Place};
use crate::error::{Error, Result};
use crate::state_folder::{StateFolder, finish_exchange, set_aside};
pub use prompt::Confirm;

/// Work on the state of this peer while it is stopped.
#[derive(Clone, Debug, Subcommand)]
pub enum StateCommand {
    /// Write the pinset, one JSON object per line, in the format of ipfs-cluster-service
    Export(ExportArgs),
    /// Replace the state by a pinset: this peer becomes a new cluster of one; the old state is kept as raft.old.0
    Import(ImportArgs),
    /// Forget the state and the membership: the next start founds a cluster or joins one; the old state is kept as raft.old.0
    #[command(visible_alias = "cleanup")]
    Clean(CleanArgs),
    /// Go on alone, as a new cluster of one, with what this peer has; for when the majority is lost for good
    Recover(RecoverArgs),
    /// Go on with a backup (ctl backup create), as a new cluster of one; the old state is kept as raft.old.0
    Restore(RestoreArgs),
}

#[derive(Clone, Debug, Default, Args)]
pub struct ExportArgs {
    /// Write to this file instead of standard output; it appears when it is whole
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Read this folder instead: a raft.old.N or a backup
    #[arg(long, value_name = "FOLDER")]
    pub from: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Args)]
pub struct ImportArgs {
    /// A file of JSON objects, as state export writes them; standard input when absent or -
    pub file: Option<PathBuf>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Fewest copies, for every pin, whatever the file says
    #[arg(long, alias = "rmin", default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    pub replication_min: i32,
    /// Most copies, for every pin
    #[arg(long, alias = "rmax", default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    pub replication_max: i32,
    /// Allocations, for every pin
    #[arg(long, visible_alias = "allocs", value_delimiter = ',', value_name = "PEER,…")]
    pub allocations: Vec<String>,
}

#[derive(Clone, Debug, Default, Args)]
pub struct CleanArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Clone, Debug, Default, Args)]
pub struct RecoverArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Take the state of this folder instead of this peer's raft/: a raft.old.N or a backup
    #[arg(long, value_name = "FOLDER")]
    pub from: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// The backup's folder, or its name as ctl backup ls shows it
    pub backup: PathBuf,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// Runs one command on the folder that `file` is of.
pub async fn run(file: &File, command: StateCommand) -> Result<()> {
    let place = Place::of(file)?;
    finish_exchange(&place.raft, &place.folder, place.backups_rotate)?;
    let folder = StateFolder::lock(&place.raft)?;
    match command {
        StateCommand::Export(arguments) => {
            let from = arguments.from.as_deref().unwrap_or(folder.path());
            export::run(from, arguments.file.as_deref()).await
        }
        StateCommand::Import(arguments) => import::run(&Config::from_file(file, &[])?, &folder, &arguments).await,
        StateCommand::Clean(arguments) => clean(&place, folder, &arguments),
        StateCommand::Recover(arguments) => recover::run(&Config::from_file(file, &[])?, &folder, &arguments).await,
        StateCommand::Restore(arguments) => restore(&Config::from_file(file, &[])?, &folder, arguments).await,
    }
}

/// Checked before anything of this peer is touched.
async fn restore(config: &Config, folder: &StateFolder, arguments: RestoreArgs) -> Result<()> {
    let from = backup::find(config, &arguments.backup);
    let manifest = backup::Manifest::load(&from)?;
    manifest.verify(&from)?;
    eprintln!(
        "backup of {} by peer {}: {} pins, entry {}",
        manifest.created, manifest.peer_id, manifest.pins, manifest.index
    );
    recover::run(config, folder, &RecoverArgs { force: arguments.force, from: Some(from) }).await
}

fn clean(place: &Place, folder: StateFolder, arguments: &CleanArgs) -> Result<()> {
    let question = "The peer state will be removed.  Existing pins may be lost. Continue? [y/n]:";
    let mut answers = std::io::stdin().lock();
    if prompt::confirm(Confirm::of(arguments.force), question, &mut answers)? == prompt::Answer::No {
        return Ok(());
    }
    let old = set_aside(&place.raft, &place.folder, place.backups_rotate)?;
    // The lock moved along with the folder.
    drop(folder);
    member::forget(&place.folder)?;
    match old {
        Some(old) => {
            eprintln!("the state was moved to {}; this peer is a member of no cluster any more", old.display())
        }
        None => eprintln!("there was no state; this peer is a member of no cluster"),
    }
    Ok(())
}

fn io_failed(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::Io(format!("{doing} {}: {error}", path.display()))
}

fn parse_peers(texts: &[String]) -> Result<Vec<Vec<u8>>> {
    let parse = |text: &String| ids::parse_peer_id(text.trim()).map(|peer| peer.to_bytes());
    let peers: pinfold_common::Result<_> = texts.iter().map(parse).collect();
    Ok(peers.map_err(|error| error.context("--allocations"))?)
}
