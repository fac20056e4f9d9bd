//! Faults as values: injected, proven, healed. A fault that cannot be proven to have taken effect fails the scenario.

use std::collections::BTreeSet;

use ctl::local::service::State;
use pinfold_proto::consensus::status_reply::Role;
use pinfold_tests::cluster::{PATIENCE, eventually};
use pinfold_tests::needs::{self, Need};
use pinfold_tests::process::is_stopped;
use rustix::process::Signal;
use tokio::task::JoinHandle;

use crate::house::House;
use crate::network::Direction;
use crate::scenarios::EXIT_DISK;
use crate::trace::{Attached, Effect, Point, Trace};

/// Resolved when the fault is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    Leader,
    Follower,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 of consensus-svc, which stays away until it is healed.
    Kill(Whom),
    /// kill -9 of all four processes of two peers, the leader among them.
    KillTwoPeers,
    /// SIGSTOP, later SIGCONT, of consensus-svc.
    Pause(Whom),
    /// From all other peers.
    Isolate(Whom, Direction),
    /// This one and one further follower do not see each other; both see the rest.
    CutPair(Whom),
    /// The next call of this kind fails in each thread of consensus-svc.
    DiskError(Whom, &'static str, Effect),
}

/// A fault that is in effect.
pub struct Active {
    pub fault: Fault,
    /// The peers that it hits.
    pub victims: Vec<usize>,
    effect: InEffect,
}

enum InEffect {
    Killed {
        pids: Vec<u32>,
    },
    Paused {
        pid: u32,
    },
    /// Rules at the first victim.
    Dropping,
    DiskError {
        trace: Trace,
        attached: Box<Attached>,
        died: JoinHandle<String>,
        _log: tempfile::NamedTempFile,
    },
}

impl Fault {
    /// For the report.
    pub fn kind(&self) -> String {
        match self {
            Fault::Kill(whom) => format!("kill -9 of the {}", whom.name()),
            Fault::KillTwoPeers => "kill -9 of two peers".to_owned(),
            Fault::Pause(whom) => format!("SIGSTOP of the {}", whom.name()),
            Fault::Isolate(whom, Direction::Both) => format!("{} isolated", whom.name()),
            Fault::Isolate(whom, Direction::In) => format!("{} hears nobody", whom.name()),
            Fault::Isolate(whom, Direction::Out) => format!("{} heard by nobody", whom.name()),
            Fault::CutPair(whom) => format!("{} cut from one follower", whom.name()),
            Fault::DiskError(whom, call, effect) => format!("{} at the {}'s {call}", effect.name(), whom.name()),
        }
    }

    /// What it needs of the machine.
    pub fn needs(&self) -> &'static [Need] {
        match self {
            Fault::Kill(_) | Fault::KillTwoPeers | Fault::Pause(_) => &[],
            Fault::Isolate(..) | Fault::CutPair(_) => &crate::house::NAMESPACES,
            Fault::DiskError(..) => &[Need::Strace],
        }
    }

    pub fn is_possible(&self) -> bool {
        needs::missing(self.needs()).is_none()
    }

    /// Injects it at a peer that is not `busy` with another fault; `None` when all are.
    pub async fn inject(self, house: &House, busy: &BTreeSet<usize>) -> Option<Active> {
        let active = match self {
            Fault::Kill(whom) => {
                let victim = pick(house, whom, busy).await?;
                let service = house.consensus(victim);
                let pids = service.pid().into_iter().collect();
                service.kill_and_hold().await;
                Active { fault: self, victims: vec![victim], effect: InEffect::Killed { pids } }
            }
            Fault::KillTwoPeers => {
                let leader = pick(house, Whom::Leader, busy).await?;
                let second = house.others(leader).into_iter().find(|peer| !busy.contains(peer))?;
                let victims = vec![leader, second];
                let services = victims.iter().flat_map(|peer| house.peers[*peer].services());
                let pids = services.filter_map(ctl::local::service::Service::pid).collect();
                futures::future::join_all(victims.iter().map(|peer| house.peers[*peer].kill())).await;
                Active { fault: self, victims, effect: InEffect::Killed { pids } }
            }
            Fault::Pause(whom) => {
                let victim = pick(house, whom, busy).await?;
                let service = house.consensus(victim);
                let pid = service.pid().expect("it runs");
                service.signal(Signal::STOP).unwrap_or_else(|error| panic!("{error}"));
                Active { fault: self, victims: vec![victim], effect: InEffect::Paused { pid } }
            }
            Fault::Isolate(whom, direction) => {
                let victim = pick(house, whom, busy).await?;
                network(house).drop_packets(victim, &house.others(victim), direction);
                Active { fault: self, victims: vec![victim], effect: InEffect::Dropping }
            }
            Fault::CutPair(whom) => {
                let victim = pick(house, whom, busy).await?;
                let leader = leading(house).await;
                let other = house.others(victim).into_iter().find(|peer| Some(*peer) != leader)?;
                network(house).drop_packets(victim, &[other], Direction::Both);
                Active { fault: self, victims: vec![victim, other], effect: InEffect::Dropping }
            }
            Fault::DiskError(whom, call, effect) => {
                disk_error(self, house, pick(house, whom, busy).await?, call, effect).await
            }
        };
        Some(active)
    }
}

impl Whom {
    const fn name(self) -> &'static str {
        match self {
            Whom::Leader => "leader",
            Whom::Follower => "follower",
        }
    }
}

fn network(house: &House) -> &crate::network::Network {
    house.network.as_ref().expect("a fault of the network needs a house in namespaces")
}

/// Who leads in the newest term that anybody tells of, now.
async fn leading(house: &House) -> Option<usize> {
    let statuses = futures::future::join_all(house.all().into_iter().map(|peer| house.status(peer))).await;
    let leaders = statuses.into_iter().enumerate().filter_map(|(peer, status)| {
        let status = status.filter(|status| status.role() == Role::Leader)?;
        Some((status.term, peer))
    });
    leaders.max().map(|(_, peer)| peer)
}

async fn pick(house: &House, whom: Whom, busy: &BTreeSet<usize>) -> Option<usize> {
    let leader = leading(house).await;
    let free: Vec<usize> = house.all().into_iter().filter(|peer| !busy.contains(peer)).collect();
    match whom {
        Whom::Leader => leader.filter(|leader| free.contains(leader)).or_else(|| free.first().copied()),
        Whom::Follower => free.iter().copied().find(|peer| Some(*peer) != leader),
    }
}

async fn disk_error(fault: Fault, house: &House, victim: usize, call: &str, effect: Effect) -> Active {
    let service = house.consensus(victim);
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let point = Point { call: call.to_owned(), nth: 1 };
    let trace = Trace::inject(&point, effect, log.path().to_owned());
    let mut states = service.subscribe();
    let pid = service.pid().expect("it runs");
    let died = tokio::spawn(async move {
        loop {
            if let State::BackingOff { why } = states.borrow_and_update().clone() {
                return why;
            }
            if states.changed().await.is_err() {
                return "its supervisor is gone".to_owned();
            }
        }
    });
    let attached = trace.attach(pid).await;
    Active {
        fault,
        victims: vec![victim],
        effect: InEffect::DiskError { trace, attached: Box::new(attached), died, _log: log },
    }
}

impl Active {
    /// Ends the fault, after proof that it took effect. The supervisor starts again what ended by itself.
    pub async fn prove_and_heal(self, house: &House) {
        let kind = self.fault.kind();
        match self.effect {
            InEffect::Killed { pids } => {
                assert!(!pids.is_empty(), "{kind}: there was no process to kill");
                for pid in pids {
                    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{kind}: process {pid} lives");
                }
                for victim in &self.victims {
                    house.peers[*victim].resume().await;
                }
            }
            InEffect::Paused { pid } => {
                assert!(is_stopped(pid), "{kind}: process {pid} is not stopped");
                let service = house.consensus(self.victims[0]);
                service.signal(Signal::CONT).unwrap_or_else(|error| panic!("{error}"));
            }
            InEffect::Dropping => {
                let at = self.victims[0];
                // Peers that keep to themselves long enough still ping each other.
                eventually(&format!("{kind}: a dropped packet"), || async {
                    (network(house).dropped(at) > 0).then_some(())
                })
                .await;
                network(house).heal(at);
            }
            InEffect::DiskError { trace, attached, died, _log } => {
                let died = tokio::time::timeout(PATIENCE, died).await;
                let why = died.unwrap_or_else(|_| panic!("{kind}: the process goes on")).expect("a watcher");
                assert!(trace.injected() > 0, "{kind}: strace did nothing");
                assert!(why.contains(&format!("exit code {EXIT_DISK}")), "{kind}: it {why}");
                attached.detach().await;
            }
        }
    }
}
