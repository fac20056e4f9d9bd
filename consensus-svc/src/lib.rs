//! The pinset and the peerset of a cluster, agreed on by Raft and kept in SQLite.
//!
//! Owns `raft/` and `member.json` of the peer's folder: log, state, settings, request keys. Does what the leader has
//! to do: takes pin requests, follows the peerset, expires. Touches the disk and the other peers' consensus-svc, and
//! asks monitors where pins go. Never asks an IPFS node, and never decides where a pin goes.
//!
//! Bird's-eye view: [`grpc`] decodes and calls; [`coordinator`] decides what a request means and proposes it; [`raft`]
//! brings the proposal onto the disks of a majority; [`pinset`] (pure) applies it in [`store`]'s transaction;
//! [`changes`] tells followers. [`admission`] and [`membership`] are the way in and out of a cluster.

pub mod admission;
pub mod changes;
pub mod config;
pub mod contacts;
pub mod coordinator;
pub mod core;
pub mod error;
pub mod expiry;
pub mod grpc;
pub mod membership;
pub mod pinset;
pub mod raft;
pub mod replication;
pub mod state_folder;
pub mod store;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pinfold_common::audience::{Members, Standing};
use pinfold_common::channel::Channels;
use pinfold_common::member::Member;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::{Room, Tls};
use pinfold_common::{PeerId, server, telemetry};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
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
    let folder = StateFolder::lock(&config.raft_folder)?;
    let found = folder.examine(&config.folder)?;
    let stores = Stores::open(folder.path()).await?;
    let plan = match admission::plan(&config, found, &stores) {
        Ok(plan) => plan,
        Err(error) => {
            stores.close().await;
            return Err(error);
        }
    };
    let tls = Tls::new(&config.secret, &config.identity, Room::Consensus)?;
    let channels = Channels::new(tls.clone());
    let end = shutdown.child();
    if let Some(metrics) = listeners.metrics {
        tokio::spawn(telemetry::serve_metrics(metrics, end.clone()));
    }
    let (grpc, member) = match plan {
        Plan::Restart(member) => (listeners.grpc, member),
        Plan::Found(member) => {
            member.save(&config.folder)?;
            (listeners.grpc, member)
        }
        Plan::Join(targets) => {
            let joined = join(&config, &targets, listeners.grpc, tls.clone(), &channels, &end).await;
            let Some((grpc, member)) = joined? else {
                stores.close().await;
                return Ok(());
            };
            member.save(&config.folder)?;
            (grpc, member)
        }
    };
    let ended = serve_member(&config, member.clone(), stores, grpc, tls, channels, &shutdown).await?;
    drop(folder);
    if let Ended::Removed(reason) = ended {
        tracing::warn!(reason, "this peer is not a member any more: its state is moved aside and it stops");
        admission::mark_removed(&config, &member, &reason)?;
        state_folder::move_aside(&config.raft_folder, config.backups_rotate)?;
    }
    Ok(())
}

/// Serves who this peer is while it asks to be let in. The listener comes back for the member's services.
async fn join(
    config: &Config,
    targets: &[config::KnownPeer],
    grpc: TcpListener,
    tls: Arc<Tls>,
    channels: &Channels,
    shutdown: &Shutdown,
) -> Result<Option<(TcpListener, Member)>> {
    let duplicate = |error: std::io::Error| pinfold_common::Error::internal(format!("share the listener: {error}"));
    let kept = grpc.into_std().map_err(duplicate)?;
    let shared = TcpListener::from_std(kept.try_clone().map_err(duplicate)?).map_err(duplicate)?;
    let until_joined = shutdown.child();
    let (reason, why) = watch::channel("asking to join a cluster".to_owned());
    let joining =
        grpc::Joining { peer_id: config.identity.peer_id.to_bytes(), reason: why, shutdown: until_joined.clone() };
    let routes = grpc::joining_routes(joining);
    let server = tokio::spawn(server::serve(shared, tls, Arc::new(Nobody), routes, until_joined.clone()));
    let joined = admission::join(config, channels, targets, &reason, shutdown).await;
    until_joined.trigger();
    let _ = tokio::time::timeout(SERVER_END_DEADLINE, server).await;
    let Some(member) = joined? else { return Ok(None) };
    Ok(Some((TcpListener::from_std(kept).map_err(duplicate)?, member)))
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
    Removed(String),
}

async fn serve_member(
    config: &Config,
    member: Member,
    stores: Stores,
    grpc: TcpListener,
    tls: Arc<Tls>,
    channels: Channels,
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
        links: Links::new(&tls),
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
        channels,
        position: seen,
        expect_new_items: AtomicBool::new(true),
        membership_changed: Notify::new(),
        replication: replication::Replication::default(),
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
        tokio::spawn(membership::supervise(core.clone(), end.clone())),
        tokio::spawn(contacts::report(core.clone(), end.clone())),
        tokio::spawn(expiry::run(core.clone(), end.clone())),
        tokio::spawn(replication::run(core.clone(), end.clone())),
    ];
    let ended = tokio::select! {
        () = shutdown.triggered() => Ok(Ended::Stopped),
        reason = removal(core.clone(), end.clone()) => Ok(Ended::Removed(reason)),
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
