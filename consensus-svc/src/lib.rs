//! The pinset and the peerset of a cluster, agreed on by Raft and kept in SQLite.
//!
//! Owns `raft/` and `member.json` of the peer's folder: log, state, settings, request keys. Does what the leader has
//! to do: takes pin requests, follows the peerset, expires, re-pins. Touches the disk and the other peers' consensus-svc,
//! asks monitors where pins go and who is missed, and connectors what they hold. Never asks an IPFS node, and never decides where a pin goes.
//!
//! Bird's-eye view: [`grpc`] decodes and calls; [`coordinator`] decides what a request means and proposes it; [`raft`]
//! brings the proposal onto the disks of a majority; [`pinset`] (pure) applies it in [`store`]'s transaction;
//! [`changes`] tells followers. [`admission`] and [`membership`] are the way in and out of a cluster.

pub mod admission;
pub mod backup;
pub mod changes;
pub mod config;
pub mod contacts;
pub mod coordinator;
pub mod core;
pub mod error;
pub mod expiry;
pub mod grpc;
pub mod membership;
pub mod offline;
pub mod pinset;
pub mod raft;
pub mod repair;
pub mod repin;
pub mod replication;
pub mod scrub;
pub mod state_folder;
pub mod store;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pinfold_common::audience::{Members, Standing};
use pinfold_common::channel::Channels;
use pinfold_common::member::{Member, RemovedMarker};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::{Room, Tls};
use pinfold_common::{PeerId, server, telemetry};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::admission::Plan;
use crate::config::Config;
use crate::coordinator::Coordinator;
use crate::core::{Core, Position};
use crate::error::{Error, Result};
use crate::raft::{Links, Node};
use crate::state_folder::StateFolder;
use crate::store::{State, Stores};

/// What is bound already.
pub struct Listeners {
    pub grpc: TcpListener,
    pub metrics: Option<TcpListener>,
}

/// The server drains within its own deadline; this is the bound on waiting for it.
const SERVER_END_DEADLINE: Duration = Duration::from_secs(7);

/// Runs this room until `shutdown`, the removal of this peer, or an error. Returns with its files closed, but for
/// errors of the disk, after which nothing is touched any more.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> Result<()> {
    let (mut folder, mut stores, mut plan) = open(&config).await?;
    let tls = Tls::speaking(&config.wire_version, &config.secret, &config.identity, Room::Consensus)?;
    let channels = Channels::with_hints(tls.clone(), config.hints());
    let end = shutdown.child();
    if let Some(metrics) = listeners.metrics {
        tokio::spawn(telemetry::serve_metrics(metrics, end.clone()));
    }
    let port = Port::new(listeners.grpc)?;
    loop {
        let member = match plan {
            Plan::Restart(member) => member,
            Plan::Found(member) => {
                member.save(&config.folder).map_err(Error::disk)?;
                member
            }
            Plan::SetAside(member) => {
                stores.close().await;
                drop(folder);
                state_folder::move_aside(&config.raft_folder, config.backups_rotate)?;
                (folder, stores) = open_empty(&config).await?;
                member
            }
            Plan::Join(targets) => {
                let joined = join(&config, &targets, &port, tls.clone(), &channels, &end).await;
                let Some(member) = joined? else {
                    stores.close().await;
                    return Ok(());
                };
                member.save(&config.folder).map_err(Error::disk)?;
                member
            }
        };
        let member = match admission::count_start(&config, member, &stores).await {
            Ok(member) => member,
            Err(error) => {
                stores.close().await;
                return Err(error);
            }
        };
        let ended =
            serve_member(&config, member.clone(), stores.clone(), port.listen()?, tls.clone(), &channels, &shutdown);
        match ended.await? {
            Ended::Stopped => return Ok(()),
            Ended::NotLeft(reason) => return Err(Error::NotLeft(reason)),
            Ended::Left => {
                drop(folder);
                return set_aside(&config, &member, "it left on a clean stop").map(drop);
            }
            Ended::Removed(reason) => {
                drop(folder);
                return Err(state_folder::removed(&set_aside(&config, &member, &reason)?));
            }
            Ended::Joined(next) => {
                next.save(&config.folder).map_err(Error::disk)?;
                plan = Plan::SetAside(next);
            }
        }
    }
}

/// What lies in the folder, locked and opened, and what is to be done with it.
async fn open(config: &Config) -> Result<(StateFolder, Stores, Plan)> {
    state_folder::finish_exchange(&config.raft_folder, &config.folder, config.backups_rotate)?;
    let folder = StateFolder::lock(&config.raft_folder)?;
    let found = folder.examine(&config.folder)?;
    // What cannot even be read is told, or made good, by opening it.
    if matches!(Stores::is_of_older_format(folder.path()).await, Ok(true)) {
        let kept = state_folder::copy_aside(&config.raft_folder, &config.folder, config.backups_rotate)?;
        tracing::warn!(copy = %kept.display(), "the data is of an older format: it is copied, and brought up to date");
    }
    let stores = repair::open(config, folder.path()).await?;
    match admission::plan(config, found, &stores) {
        Ok(plan) => Ok((folder, stores, plan)),
        Err(error) => {
            stores.close().await;
            Err(error)
        }
    }
}

async fn open_empty(config: &Config) -> Result<(StateFolder, Stores)> {
    let folder = StateFolder::lock(&config.raft_folder)?;
    let stores = Stores::open(folder.path()).await?;
    Ok((folder, stores))
}

/// The bound port, which outlives the servers on it: one while this peer asks to be let in, one for each membership.
struct Port(std::net::TcpListener);

impl Port {
    fn new(listener: TcpListener) -> Result<Port> {
        Ok(Port(listener.into_std().map_err(unshared)?))
    }

    fn listen(&self) -> Result<TcpListener> {
        Ok(TcpListener::from_std(self.0.try_clone().map_err(unshared)?).map_err(unshared)?)
    }
}

fn unshared(error: std::io::Error) -> pinfold_common::Error {
    pinfold_common::Error::internal(format!("share the listener: {error}"))
}

/// What a peer does that is not a member any more: its marker first, so that no start comes in between.
fn set_aside(config: &Config, member: &Member, reason: &str) -> Result<RemovedMarker> {
    tracing::warn!(reason, "this peer is not a member any more: its state is moved aside and it stops");
    let marker = admission::mark_removed(config, member, reason)?;
    state_folder::set_aside(&config.raft_folder, &config.folder, config.backups_rotate)?;
    Ok(marker)
}

/// Serves who this peer is while it asks to be let in.
async fn join(
    config: &Config,
    targets: &[config::KnownPeer],
    port: &Port,
    tls: Arc<Tls>,
    channels: &Channels,
    shutdown: &Shutdown,
) -> Result<Option<Member>> {
    let until_joined = shutdown.child();
    let (reason, why) = watch::channel("asking to join a cluster".to_owned());
    // One at a time: the second member that invites is told so.
    let (invitations, mut invited) = mpsc::channel(1);
    let peer_id = config.identity.peer_id.to_bytes();
    let joining = grpc::Joining { peer_id, invitations, reason: why, shutdown: until_joined.clone() };
    let routes = grpc::joining_routes(joining);
    let server = tokio::spawn(server::serve(port.listen()?, tls, Arc::new(Nobody), routes, until_joined.clone()));
    let joined = admission::join(config, channels, targets, &reason, &mut invited, shutdown).await;
    until_joined.trigger();
    let _ = tokio::time::timeout(SERVER_END_DEADLINE, server).await;
    joined
}

/// No peer is a member of no cluster.
struct Nobody;

impl Members for Nobody {
    fn standing(&self, _peer: &PeerId) -> Standing {
        Standing::Unknown
    }
}

/// The peerset as the log left it.
struct Rows(State);

impl Members for Rows {
    fn standing(&self, peer: &PeerId) -> Standing {
        let facts = self.0.facts();
        let bytes = peer.to_bytes();
        if facts.peers.member(&bytes).is_some() {
            Standing::Member
        } else if facts.peers.was_removed(&bytes) {
            Standing::Removed
        } else {
            Standing::Unknown
        }
    }
}

/// How a member's run ended well.
enum Ended {
    Stopped,
    /// It was to leave, and did.
    Left,
    /// It was to leave, and could not.
    NotLeft(String),
    Removed(String),
    /// It gave its own cluster, which had nothing, up for another one.
    Joined(Member),
}

async fn serve_member(
    config: &Config,
    member: Member,
    stores: Stores,
    grpc: TcpListener,
    tls: Arc<Tls>,
    channels: &Channels,
    shutdown: &Shutdown,
) -> Result<Ended> {
    // Asked of the disk: Raft's own status comes some time after its start.
    let is_new = stores.log.status().last.is_none() && stores.log.vote().is_none();
    let founders = if is_new && member.node_id & pinset::JOINER_BIT == 0 { admission::founders(config)? } else { None };
    let raft = Node::start(raft::Start {
        config: config.raft.clone(),
        cluster_id: member.cluster_id.clone(),
        node_id: member.node_id,
        stores: stores.clone(),
        links: Links::new(&tls, &config.hints()),
    })
    .await?;
    let (position, seen) = watch::channel(Position::NOWHERE);
    let own = config.identity.peer_id;
    let core = Arc::new(Core {
        config: config.clone(),
        own,
        own_bytes: own.to_bytes(),
        node_id: member.node_id,
        state: stores.state.clone(),
        raft: raft.clone(),
        channels: channels.clone(),
        position: seen,
        expect_new_items: AtomicBool::new(true),
        stock: Default::default(),
        membership_changed: Notify::new(),
        waiting_removals: parking_lot::Mutex::default(),
        replication: replication::Replication::default(),
        elsewhere: watch::Sender::new(None),
        trouble: watch::Sender::new(None),
        repin: repin::Shared::default(),
    });
    // The parts go on while leadership is handed over, and end afterwards.
    let end = Shutdown::new();
    let coordinator = Coordinator::start(core.clone(), end.clone());
    let routes = grpc::routes(core.clone(), coordinator, end.clone());
    let members = Arc::new(Rows(stores.state.clone()));
    let mut server = tokio::spawn(server::serve(grpc, tls, members, routes, end.clone()));
    let failed = raft.failed();
    if let Some(founders) = founders
        && let Err(error) = raft.initialize(&founders).await
    {
        raft.shutdown().await;
        end.trigger();
        return Err(pinfold_common::Error::from(error).into());
    }
    let tasks = [
        tokio::spawn(core::follow_leader(core.clone(), position, end.clone())),
        tokio::spawn(admission::found(core.clone(), member.cluster_id.clone(), end.clone())),
        tokio::spawn(admission::join_when_possible(core.clone(), end.clone())),
        tokio::spawn(membership::supervise(core.clone(), end.clone())),
        tokio::spawn(membership::finish_removals(core.clone(), end.clone())),
        tokio::spawn(contacts::report(core.clone(), end.clone())),
        tokio::spawn(expiry::run(core.clone(), end.clone())),
        tokio::spawn(replication::run(core.clone(), end.clone())),
        tokio::spawn(repin::run(core.clone(), end.clone())),
        tokio::spawn(backup::run(core.clone(), end.clone())),
        tokio::spawn(scrub::run(core.clone(), end.clone())),
    ];
    let ended = tokio::select! {
        ended = stopped(&core, shutdown) => Ok(ended),
        member = elsewhere(&core) => Ok(Ended::Joined(member)),
        reason = removal(core.clone(), end.clone()) => Ok(match shutdown.is_triggered() {
            true => Ended::Left,
            false => Ended::Removed(reason),
        }),
        error = failed => Err(stores.failure().get().map_or_else(|| Error::Common(error), Error::Store)),
        served = &mut server => Err(match served {
            Ok(Ok(())) => pinfold_common::Error::internal("the server ended by itself").into(),
            Ok(Err(error)) => error.into(),
            Err(error) => pinfold_common::Error::internal(format!("the server failed: {error}")).into(),
        }),
    };
    if let Err(error @ Error::Store(_)) = ended {
        // Fail-stop: nothing is written after an error of the disk (fault:F4).
        end.trigger();
        return Err(error);
    }
    write_peerstore(&core);
    // Hands the lead over first; requests that come meanwhile go on to the next leader.
    raft.shutdown().await;
    end.trigger();
    finish(server, tasks).await;
    ended
}

async fn elsewhere(core: &Core) -> Member {
    let mut elsewhere = core.elsewhere.subscribe();
    let joined = elsewhere.wait_for(Option::is_some).await.ok().and_then(|member| member.clone());
    match joined {
        Some(member) => member,
        None => std::future::pending().await,
    }
}

/// A clean stop; where `leave_on_shutdown` asks for it, once this peer has left. Nothing of it stops before (seed:F20).
/// Not where it was never ready (beh:B4.9).
async fn stopped(core: &Core, shutdown: &Shutdown) -> Ended {
    let mut position = core.position.clone();
    let ready = position.wait_for(|position| position.is_ready());
    let was_ready = shutdown.race(ready).await.is_some_and(|position| position.is_ok());
    shutdown.triggered().await;
    match core.config.leave_on_shutdown {
        Some(patience) if was_ready => match membership::leave(core, patience).await {
            // The removal has its own way to its end.
            Ok(()) => std::future::pending().await,
            Err(error) => {
                tracing::error!(%error, "this peer could not leave the cluster: it stops as a member, with its data");
                Ended::NotLeft(format!("leave the cluster: {error}; this peer is still a member, and its data is kept"))
            }
        },
        Some(_) | None => Ended::Stopped,
    }
}

/// How this peer learns that it was removed: by the log, by a member that it asks, or by another node's Raft; whichever
/// comes first, it goes on voting until it is not needed any more. Never resolves otherwise.
async fn removal(core: Arc<Core>, end: Shutdown) -> String {
    let mut told = core.raft.removed();
    let told = async {
        if told.wait_for(|removed| *removed).await.is_err() {
            std::future::pending::<()>().await;
        }
        "another peer's consensus said so".to_owned()
    };
    let asked = async {
        match membership::announce(core.clone(), end).await {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    };
    let reason = tokio::select! {
        reason = membership::removed(&core) => reason,
        reason = asked => reason,
        reason = told => reason,
    };
    tracing::warn!(reason, "this peer was removed from its cluster");
    membership::linger(&core).await;
    reason
}

async fn finish<const N: usize>(server: JoinHandle<pinfold_common::Result<()>>, tasks: [JoinHandle<()>; N]) {
    let server_ended = async {
        // It has ended before when that is why we are here.
        if !server.is_finished() {
            let _ = server.await;
        }
    };
    if tokio::time::timeout(SERVER_END_DEADLINE, server_ended).await.is_err() {
        tracing::warn!("requests were still running when the server was cut");
    }
    for task in tasks {
        let _ = task.await;
    }
}

/// Where the others are, for a start without their rows: one multiaddress a line (beh:B21.3). Hints, so a failure is
/// only told.
fn write_peerstore(core: &Core) {
    let facts = core.state.facts();
    let others = facts.peers.members().filter(|row| row.node_id != core.node_id);
    let lines: String = others.flat_map(|row| &row.multiaddresses).map(|address| format!("{address}\n")).collect();
    let path = &core.config.peerstore;
    if let Err(error) = pinfold_common::files::write_atomically(path, lines.as_bytes(), pinfold_common::files::PRIVATE)
    {
        tracing::warn!(%error, path = %path.display(), "write the peerstore");
    }
}
