//! The arguments of every command. Help texts teach; the names are the original's where it has them (spec/ctl.md).

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pinfold_common::ids::{Cid, PeerId, parse_cid, parse_peer_id};
use pinfold_common::time::parse_go_duration;

const AFTER_HELP: &str = "\
Exit codes: 0 success; 1 a local or network problem; 2 the cluster answered with an error; 62 --wait timed out.

First steps:
  ctl up --peers 3              run a local cluster of three peers
  ctl add --wait picture.jpg    add a file, and wait until it is pinned
  ctl status <cid>              what became of it on each peer";

/// Drives a Pinfold cluster: pins content on a set of IPFS nodes and keeps it there.
#[derive(Debug, Parser)]
#[command(name = "ctl", version, after_help = AFTER_HELP, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
pub struct Global {
    /// API addresses, the first that answers is used: a multiaddress or host:port, separated by commas
    #[arg(
        short = 'l',
        long,
        env = "PINFOLD_HOST",
        default_value = "/ip4/127.0.0.1/tcp/9094",
        value_delimiter = ',',
        global = true
    )]
    pub host: Vec<String>,
    /// Output for eyes (text) or for scripts (json)
    #[arg(long = "enc", visible_alias = "encoding", default_value = "text", global = true)]
    pub encoding: Encoding,
    /// Seconds a request may take; 0 for no limit
    #[arg(short = 't', long, default_value_t = 0, global = true)]
    pub timeout: u64,
    /// user:password for an API that asks for it
    #[arg(long, env = "CLUSTER_CREDENTIALS", hide_env_values = true, global = true)]
    pub basic_auth: Option<String>,
    /// Talk TLS to the API
    #[arg(short = 's', long, global = true)]
    pub https: bool,
    /// With --https: trust this certificate authority (PEM) instead of the public ones
    #[arg(long, value_name = "FILE", global = true)]
    pub ca_cert: Option<PathBuf>,
    /// Folder of the peer, for init and daemon
    #[arg(short = 'c', long = "config", env = "IPFS_CLUSTER_PATH", value_name = "FOLDER", global = true)]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a local cluster: some peers of four services each, on loopback
    Up(Up),
    /// Run one peer, its four services supervised, from its folder
    Daemon(Daemon),
    /// Make a peer's folder: service.json and identity.json
    Init(Init),
    /// The contacted peer: ID, addresses, its IPFS node
    Id,
    /// The version of the contacted peer
    Version,
    /// The peers of the cluster
    #[command(subcommand)]
    Peers(Peers),
    /// Add files and folders: split, store on the allocated peers, pin
    Add(Add),
    /// Pin, unpin and list; `ctl pin <cid>` is `ctl pin add <cid>`
    Pin(Pin),
    /// What became of pins on each peer
    Status(Status),
    /// Try again what is in error
    Recover(Recover),
    /// Copies that are made again after a peer went away
    #[command(subcommand)]
    Repin(Repin),
    /// Move items from full peers to empty ones, until each holds an even share
    Rebalance(Rebalance),
    /// Unpins that wait for a person: what is held and why, and let it go ahead
    Approve(Approve),
    /// The IPFS nodes beside the peers
    #[command(subcommand)]
    Ipfs(Ipfs),
    /// How the cluster is: copies, peers, alerts; and readiness, metrics, who reaches whom
    Health(HealthPage),
    /// The whole pinset; for a peer that is stopped: consensus-svc state
    #[command(subcommand)]
    State(State),
    /// Backups of the contacted peer's state
    #[command(subcommand)]
    Backup(Backup),
}

#[derive(Clone, Debug, Subcommand)]
pub enum State {
    /// The pinset as one log entry left it, one JSON object per line; consensus-svc state import takes it
    Export(StateExport),
}

#[derive(Clone, Debug, Args)]
pub struct StateExport {
    /// Write to this file instead of standard output; it appears when it is whole
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Ask the leader first: everything that is committed by now is in it
    #[arg(long)]
    pub consistent: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Backup {
    /// Make one, on the contacted peer's disk: pinset, peerset, settings, configuration
    Create(BackupCreate),
    /// Those of the contacted peer, newest first
    Ls,
    /// Go on with one, on a stopped peer (--config), as a new cluster of one; the others join it afterwards
    Restore(BackupRestore),
}

#[derive(Clone, Debug, Args)]
pub struct BackupCreate {
    /// The cluster secret, the credentials and this peer's private key too: keep such a backup like a key
    #[arg(long)]
    pub with_keys: bool,
}

#[derive(Clone, Debug, Args)]
pub struct BackupRestore {
    /// The backup's folder, or its name as backup ls shows it
    pub backup: PathBuf,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Up {
    /// How many peers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub peers: u16,
    /// Folder that keeps the cluster between runs
    #[arg(long, default_value = ".pinfold")]
    pub folder: PathBuf,
    /// embedded: a node in each peer; kubo: start a Kubo per peer (`ipfs` on the PATH); kubo=<address>,…: running daemons
    #[arg(long, default_value = "embedded")]
    pub ipfs: String,
    /// Fetch nothing from public gateways
    #[arg(long)]
    pub offline: bool,
    /// Copies of each item when a pin does not say: minimum and maximum
    #[arg(long, value_name = "N")]
    pub replication: Option<u16>,
    /// First port of peer 0 is 9094 plus this; peer i has 10·i more
    #[arg(long, default_value_t = 0, value_name = "OFFSET")]
    pub port_offset: u16,
}

#[derive(Clone, Debug, Args)]
pub struct Daemon {
    /// Join the cluster that one of these addresses belongs to: /ip4/…/tcp/9096/p2p/<peer ID>,…
    #[arg(short = 'j', long, value_delimiter = ',')]
    pub bootstrap: Vec<String>,
    /// Accepted for the original's scripts: what is due is migrated at every start
    #[arg(short = 'u', long)]
    pub upgrade: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Init {
    /// 64 hex characters shared by all peers; made anew when neither this nor CLUSTER_SECRET is given
    #[arg(long, env = "CLUSTER_SECRET", hide_env_values = true)]
    pub secret: Option<String>,
    /// Overwrite service.json without asking; identity.json is always kept
    #[arg(short, long)]
    pub force: bool,
    /// Which IPFS node: kubo or embedded
    #[arg(long, default_value = "kubo")]
    pub ipfs: String,
    /// Multiaddresses of the other peers of a fixed peerset, with /p2p/<id>
    #[arg(long, value_delimiter = ',')]
    pub peers: Vec<String>,
    /// Add this to every port
    #[arg(long, default_value_t = 0)]
    pub port_offset: u16,
    /// Another value for a key of service.json, as key=value (JSON or text); repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Accepted for the original's scripts: raft is the only one
    #[arg(long, default_value = "raft", hide = true)]
    pub consensus: String,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Peers {
    /// Every peer with its addresses and IPFS node
    Ls,
    /// Ask a peer that runs, and has no pins of its own, to join the cluster
    Add {
        peer: PeerIdArg,
        /// Multiaddress of its consensus service (/ip4/…/tcp/9096); not needed when the contacted peer knows it
        address: Option<String>,
    },
    /// Remove a peer from the cluster: nothing new lands there, what it has is copied elsewhere, then it goes. Can be
    /// interrupted (the removal goes on), repeated, and called off with `ctl peers undrain`
    Rm {
        peer: PeerIdArg,
        /// Remove it at once, even when it has the only copy of something
        #[arg(long)]
        force: bool,
    },
    /// A digest of the contacted peer's pinset: peers at the same index have the same one
    Digest,
    /// Let nothing new land on a peer and copy elsewhere what it has, for maintenance; it stays a member
    Drain { peer: PeerIdArg },
    /// End the draining of a peer; calls off a removal that has not happened yet
    Undrain { peer: PeerIdArg },
    /// Announce that a peer will be away: until the time is over, none of its copies is made elsewhere
    Maintenance {
        peer: PeerIdArg,
        /// How long from now: 2h, 30m
        #[arg(long = "for", value_parser = duration, value_name = "DURATION", required_unless_present = "end")]
        duration: Option<Duration>,
        /// The maintenance is over
        #[arg(long, conflicts_with = "duration")]
        end: bool,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum Repin {
    /// What it does now: phase, counts, and the peers that are missed
    Status,
    /// Move nothing until `ctl repin resume`
    Pause,
    /// Go on after a pause, or after it stopped because too much was away
    Resume,
    /// Change how many items are moved in a second, for the whole cluster
    Rate {
        /// 1 and more, or "default" for the configured rate
        pins_per_second: Rate,
    },
    /// Items that have too few copies and cannot get more now, with the reason
    Ls,
}

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Items keep their number of copies; an old copy goes when the new one is there. At most as many items a \
                        second as `ctl repin rate` says, and only while nothing has too few copies. What every \
                        peer pins is left alone."
)]
pub struct Rebalance {
    #[command(flatten)]
    pub what: RebalanceWhat,
    /// With --apply: return at once; the cluster goes on by itself
    #[arg(long, requires = "apply")]
    pub no_wait: bool,
}

#[derive(Clone, Copy, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct RebalanceWhat {
    /// What each peer holds, and what would move; changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Move it, and show the progress; also goes on where an interrupted run was
    #[arg(long)]
    pub apply: bool,
    /// End it; what is on its way still arrives
    #[arg(long)]
    pub stop: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Default,
    PerSecond(u32),
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        match text.parse::<u32>() {
            Ok(rate @ 1..) => Ok(Rate::PerSecond(rate)),
            _ if text == "default" => Ok(Rate::Default),
            Ok(_) | Err(_) => {
                Err("must be a number of items, at least 1, or default; `ctl repin pause` stops it".to_owned())
            }
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct HealthPage {
    /// Without one: pins with too few copies, with too many, without any; peers and alerts
    #[command(subcommand)]
    pub command: Option<Health>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Health {
    /// Whether each service of the contacted peer is ready
    Ready,
    /// Names of metrics, or the latest values of one
    Metrics { name: Option<String> },
    /// What went wrong with the peers, newest first, and whether it still is
    Alerts,
    /// Who reaches whom, as a graph for dot(1)
    Graph(HealthGraph),
}

#[derive(Clone, Debug, Args)]
pub struct HealthGraph {
    /// Write to this file instead of standard output
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    /// Also IPFS nodes that do not belong to the cluster
    #[arg(long)]
    pub all_ipfs_peers: bool,
}

#[derive(Clone, Debug, Args)]
pub struct PinOptions {
    /// Fewest copies; 0 for the configured default, -1 for every peer
    #[arg(long, alias = "rmin", default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    pub replication_min: i32,
    /// Most copies
    #[arg(long, alias = "rmax", default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    pub replication_max: i32,
    /// Peers that shall hold it, if they can
    #[arg(long, visible_alias = "allocs", value_delimiter = ',', value_name = "PEER,…")]
    pub allocations: Vec<PeerIdArg>,
    /// A name for people
    #[arg(short, long, default_value = "")]
    pub name: String,
    /// Unpin after this time: 12h, 1h30m
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub expire_in: Option<Duration>,
    /// IPFS nodes that are said to have it: multiaddresses with /p2p/<id>, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS,…")]
    pub origins: Vec<String>,
    /// key=value, repeatable
    #[arg(long, value_parser = key_value, value_name = "KEY=VALUE")]
    pub metadata: Vec<(String, String)>,
}

#[derive(Clone, Debug, Args)]
pub struct Wait {
    /// How many peers must have got there; default: the pin's minimum of copies
    #[arg(long, visible_alias = "wl", default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    pub wait_limit: i32,
    /// Wait at most this long; 0 for ever
    #[arg(long, visible_alias = "wt", value_parser = duration, default_value = "0s", value_name = "DURATION")]
    pub wait_timeout: Duration,
}

#[derive(Clone, Debug, Args)]
pub struct Add {
    /// Files, folders, and URLs (http, https); - reads from standard input
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Take folders with all that is in them
    #[arg(short, long)]
    pub recursive: bool,
    /// Wait until it is pinned
    #[arg(long)]
    pub wait: bool,
    /// Print CIDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the last CID only
    #[arg(short = 'Q', long)]
    pub quieter: bool,
    /// Put everything into one folder
    #[arg(short, long)]
    pub wrap_with_directory: bool,
    /// Keep the permissions of files and folders; their leaves are not raw then
    #[arg(long)]
    pub preserve_mode: bool,
    /// Keep the times of files, folders and links; leaves are not raw then
    #[arg(long)]
    pub preserve_mtime: bool,
    /// Take files whose names begin with a dot
    #[arg(short = 'H', long)]
    pub hidden: bool,
    /// Store blocks on the contacted peer only; the others fetch them
    #[arg(long)]
    pub local: bool,
    /// Store the blocks and pin nothing
    #[arg(long)]
    pub no_pin: bool,
    /// unixfs, or car for a file that is a CAR with one root
    #[arg(long, default_value = "unixfs")]
    pub format: String,
    /// balanced or trickle
    #[arg(long, default_value = "balanced")]
    pub layout: String,
    /// How files are cut: size-N, rabin, rabin-AVERAGE, rabin-MIN-AVERAGE-MAX, buzhash
    #[arg(long, default_value = "size-262144", value_name = "CHUNKER")]
    pub chunker: String,
    /// Leaves without a UnixFS envelope; the default for CID version 1
    #[arg(long)]
    pub raw_leaves: bool,
    /// 0 or 1
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1))]
    pub cid_version: u32,
    /// Hash function; others than sha2-256 mean CID version 1
    #[arg(long, default_value = "sha2-256")]
    pub hash: String,
    #[command(flatten)]
    pub options: PinOptions,
    #[command(flatten)]
    pub waiting: Wait,
}

#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct Pin {
    #[command(subcommand)]
    pub command: Option<PinCommand>,
    #[command(flatten)]
    pub add: PinAdd,
}

#[derive(Clone, Debug, Subcommand)]
pub enum PinCommand {
    /// Pin a CID, or what a path leads to
    Add(PinAdd),
    /// Unpin a CID, or what a path leads to
    Rm(PinRm),
    /// Pin something with all the options of an entry that is there; only what differs is fetched
    Update(PinUpdate),
    /// The pinset, or one entry of it
    Ls(PinLs),
    /// Why a pin is where it is on each peer, and what to do about it
    Explain(PinExplain),
}

#[derive(Clone, Debug, Args)]
pub struct PinAdd {
    /// A CID, /ipfs/<cid>/a/b or /ipns/<name>
    #[arg(value_name = "CID|PATH")]
    pub target: Option<String>,
    /// Copies: minimum and maximum at once; -1 for every peer
    #[arg(short, long, default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    pub replication: i32,
    /// Wait until it is pinned
    #[arg(short, long)]
    pub wait: bool,
    /// recursive, or direct for the one block
    #[arg(long, default_value = "recursive", value_parser = ["recursive", "direct"])]
    pub mode: String,
    /// Print the pin instead of its status
    #[arg(long, visible_alias = "ns")]
    pub no_status: bool,
    #[command(flatten)]
    pub options: PinOptions,
    #[command(flatten)]
    pub waiting: Wait,
}

#[derive(Clone, Debug, Args)]
pub struct PinRm {
    /// A CID, /ipfs/<cid>/a/b or /ipns/<name>
    pub target: String,
    /// Print the pin instead of its status
    #[arg(long, visible_alias = "ns")]
    pub no_status: bool,
    /// Wait until it is unpinned
    #[arg(short, long)]
    pub wait: bool,
    #[command(flatten)]
    pub waiting: Wait,
}

#[derive(Clone, Debug, Args)]
pub struct PinUpdate {
    /// The entry whose options are taken; it stays
    pub existing: CidArg,
    /// A CID, /ipfs/<cid>/a/b or /ipns/<name>
    #[arg(value_name = "CID|PATH")]
    pub target: String,
    /// Another name
    #[arg(short, long, default_value = "")]
    pub name: String,
    /// Unpin after this time: 12h, 1h30m
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub expire_in: Option<Duration>,
    /// Print the pin instead of its status
    #[arg(long, visible_alias = "ns")]
    pub no_status: bool,
    /// Wait until it is pinned
    #[arg(short, long)]
    pub wait: bool,
    #[command(flatten)]
    pub waiting: Wait,
}

#[derive(Clone, Debug, Args)]
pub struct PinExplain {
    pub cid: CidArg,
}

#[derive(Clone, Debug, Args)]
pub struct Approve {
    /// Let the unpins of these go ahead; without any, and without --all, what is held is listed
    pub cids: Vec<CidArg>,
    /// Let everything that is held go ahead
    #[arg(long, conflicts_with = "cids")]
    pub all: bool,
    /// On this peer only
    #[arg(long)]
    pub peer: Option<PeerIdArg>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Ipfs {
    /// Remove blocks that no pin needs, on all nodes at once
    Gc(IpfsGc),
    /// Print the Peering section for the nodes' Kubo configuration
    Peering,
}

#[derive(Clone, Debug, Args)]
pub struct IpfsGc {
    /// On the contacted peer's node only
    #[arg(long)]
    pub local: bool,
}

#[derive(Clone, Debug, Args)]
pub struct PinLs {
    pub cid: Option<CidArg>,
    /// Only these types: all, pin, meta-pin, clusterdag-pin, shard-pin
    #[arg(long, default_value = "all")]
    pub filter: String,
}

#[derive(Clone, Debug, Args)]
pub struct Status {
    pub cids: Vec<CidArg>,
    /// Ask the contacted peer only
    #[arg(long)]
    pub local: bool,
    /// Only these: pinned, pinning, pin_queued, pin_error, remote, …, error, queued
    #[arg(long, default_value = "")]
    pub filter: String,
}

#[derive(Clone, Debug, Args)]
pub struct Recover {
    pub cid: Option<CidArg>,
    /// On the contacted peer only
    #[arg(long)]
    pub local: bool,
}

#[derive(Clone, Debug)]
pub struct CidArg(pub Cid);

impl std::str::FromStr for CidArg {
    type Err = String;

    fn from_str(text: &str) -> Result<CidArg, String> {
        parse_cid(text).map(CidArg).map_err(|error| error.message)
    }
}

#[derive(Clone, Debug)]
pub struct PeerIdArg(pub PeerId);

impl std::str::FromStr for PeerIdArg {
    type Err = String;

    fn from_str(text: &str) -> Result<PeerIdArg, String> {
        parse_peer_id(text.trim()).map(PeerIdArg).map_err(|error| error.message)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_go_duration(text).map_err(|error| error.message)
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be key=value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    /// Goal: the tree of commands is sound, and the short form of pin is the long one.
    #[test]
    fn commands_parse() {
        Cli::command().debug_assert();
        let cid = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG";
        for words in [vec!["ctl", "pin", cid], vec!["ctl", "pin", "add", cid], vec!["ctl", "pin", cid, "-r", "-1"]] {
            let cli = Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
            let Command::Pin(pin) = cli.command else { panic!() };
            let add = match pin.command {
                Some(PinCommand::Add(add)) => add,
                Some(other) => panic!("{other:?}"),
                None => pin.add,
            };
            assert_eq!(add.target.as_deref(), Some(cid));
        }
        assert!(Cli::try_parse_from(["ctl", "status", "nonsense"]).is_err());
    }
}
