//! One node of the cluster's Raft: the library with our stores and network, behind an interface of our own.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use openraft::vote::RaftLeaderId as _;
use openraft::{ChangeMembers, ReadPolicy};
use pinfold_common::{Error, Result};
use pinfold_proto::storage;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::config::RaftConfig;
use super::contact::Contacts;
use super::error::{leader_of, of_change, of_write};
use super::log_store::LogStore;
use super::machine::{Machine, Transfers};
use super::network::{Context, Links, Network};
use super::status::RaftStatus;
use super::types::{Address, LeaderId, Proposal, Raft, Types};
use super::{ChangeError, NodeAndPeer, ProposeError, watching};
use crate::pinset::Outcome;
use crate::store::{self, Stores};

/// Proposals on their way at once; further ones wait, and then fail without having been written.
const MAX_PROPOSALS: usize = 4096;
/// The largest command. One that does not fit into a message to a follower would stop replication for good.
const MAX_PROPOSAL_BYTES: usize = 4 << 20;
/// For a place among them.
const PROPOSAL_QUEUE_DEADLINE: Duration = Duration::from_secs(5);
/// For the library to say what it has loaded.
const FIRST_METRICS_DEADLINE: Duration = Duration::from_secs(10);
/// To confirm with a majority that this node leads.
const READ_INDEX_DEADLINE: Duration = Duration::from_secs(5);
/// For one step of a membership change.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// For another node to win the election it was asked to call.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(1);
/// Who has not answered for so many heartbeats is not asked to.
const HEIR_SILENCE_HEARTBEATS: u32 = 5;
/// For the library to end after it was asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// What a node is started with.
pub struct Start {
    pub config: RaftConfig,
    pub cluster_id: Vec<u8>,
    /// Never used before with other stores than these.
    pub node_id: u64,
    pub stores: Stores,
    pub links: Links,
}

/// Cheap to clone; clones share one node.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    raft: Raft,
    stores: Stores,
    config: RaftConfig,
    cluster_id: Vec<u8>,
    id: u64,
    contacts: Contacts,
    transfers: Transfers,
    status: watch::Receiver<RaftStatus>,
    removed: watch::Receiver<bool>,
    proposals: Semaphore,
    stopping: CancellationToken,
}

impl Node {
    /// Applies what is committed in the log and not in the state yet, then takes part. Errors: configuration, disk.
    pub async fn start(start: Start) -> Result<Node> {
        let Start { config, cluster_id, node_id, stores, links } = start;
        let library = Arc::new(config.library(&cluster_id)?);
        let contacts = Contacts::default();
        let transfers = Transfers::default();
        let removed = watch::Sender::new(false);
        let network = Network(Arc::new(Context {
            links,
            cluster_id: cluster_id.clone(),
            own: node_id,
            contacts: contacts.clone(),
            transfers: transfers.clone(),
            removed: removed.clone(),
            patience: config.network_timeout,
            install_timeout: config.install_snapshot_timeout,
        }));
        let machine = Machine::new(stores.state.clone(), stores.log.clone(), transfers.clone());
        let log = LogStore(stores.log.clone());
        let raft = Raft::new(node_id, library, network, log, machine).await;
        let raft = raft.map_err(|error| Error::internal(format!("start raft: {error}")))?;
        // The library's first metrics say that this node knows nothing; who decides by the status must not see them.
        let is_initialized = raft.is_initialized().await;
        if is_initialized.map_err(|error| Error::internal(format!("start raft: {error}")))? {
            let metrics = raft.wait(Some(FIRST_METRICS_DEADLINE));
            let known = metrics.metrics(watching::knows_something, "first metrics").await;
            known.map_err(|error| Error::internal(format!("start raft: {error}")))?;
        }
        let stopping = CancellationToken::new();
        let status = watching::spawn(&raft, &stores.state, &config, &contacts, &stopping);
        let proposals = Semaphore::new(MAX_PROPOSALS);
        let removed = removed.subscribe();
        Ok(Node(Arc::new(Inner {
            raft,
            stores,
            config,
            cluster_id,
            id: node_id,
            contacts,
            transfers,
            status,
            removed,
            proposals,
            stopping,
        })))
    }

    pub fn id(&self) -> u64 {
        self.0.id
    }

    pub fn cluster_id(&self) -> &[u8] {
        &self.0.cluster_id
    }

    pub fn stores(&self) -> &Stores {
        &self.0.stores
    }

    pub fn config(&self) -> &RaftConfig {
        &self.0.config
    }

    /// When other nodes were last heard from.
    pub fn contacts(&self) -> &Contacts {
        &self.0.contacts
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.0.raft
    }

    pub(super) fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }

    /// The newest status, and again on every change.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.0.status.clone()
    }

    /// True once another node has said that the log says this one is gone.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.0.removed.clone()
    }

    /// Resolves when the disk or the library has failed: nothing works any more, the process has to end.
    pub fn failed(&self) -> impl Future<Output = Error> + Send + 'static {
        let failure = self.0.stores.failure().clone();
        let mut status = self.0.status.clone();
        let stopping = self.0.stopping.clone();
        async move {
            let library = async {
                let has_stopped = status.wait_for(|status| status.role == super::Role::Stopped).await.is_ok();
                if !has_stopped || stopping.is_cancelled() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                error = failure.happened() => Error::internal(error.to_string()),
                () = library => Error::internal("the consensus library has ended by itself"),
            }
        }
    }

    /// Proposes a command. Answered with its index and what it came to when it is committed, and applied here.
    pub async fn propose(&self, command: storage::Command) -> Result<(u64, Outcome), ProposeError> {
        self.write(command, None).await
    }

    /// As [`Node::propose`], but only while this node leads in `term`: what was decided before a lost and regained
    /// leadership is not written after it.
    pub async fn propose_in_term(&self, command: storage::Command, term: u64) -> Result<(u64, Outcome), ProposeError> {
        self.write(command, Some(LeaderId::new(term, self.0.id))).await
    }

    async fn write(&self, command: storage::Command, leader: Option<LeaderId>) -> Result<(u64, Outcome), ProposeError> {
        self.refuse_without_majority()?;
        let permit = tokio::time::timeout(PROPOSAL_QUEUE_DEADLINE, self.0.proposals.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return Err(ProposeError::Unavailable("too many proposals are on their way".to_owned()));
        };
        let proposal = Proposal(Arc::new(store::Proposal::new(command)));
        if proposal.0.size_bytes() > MAX_PROPOSAL_BYTES {
            return Err(ProposeError::Unavailable(format!("{proposal} is too large for one entry")));
        }
        let (responder, completed) = ProgressResponder::<Types, ClientWriteResult<Types>>::complete_only();
        let mut request = self.0.raft.write(proposal).responder(responder);
        if let Some(leader) = leader {
            request = request.with_leader(leader);
        }
        let timeout = self.0.config.propose_timeout;
        let unknown = || ProposeError::OutcomeUnknown(format!("the proposal has no result within {timeout:?}"));
        let written = tokio::time::timeout(timeout, async {
            request.await.map_err(|error| ProposeError::Fatal(error.to_string()))?;
            completed.await.map_err(|_| ProposeError::OutcomeUnknown("this node stopped meanwhile".to_owned()))
        });
        let response = written.await.map_err(|_| unknown())??.map_err(of_write)?;
        match response.data.0 {
            Some(outcome) => Ok((response.log_id.index(), outcome)),
            None => Err(ProposeError::Fatal("a command was applied without an outcome".to_owned())),
        }
    }

    /// A leader that nobody answers could only let its proposals wait.
    fn refuse_without_majority(&self) -> Result<(), ProposeError> {
        let status = self.0.status.borrow();
        if status.is_ready_to_lead && !status.has_quorum {
            return Err(ProposeError::Unavailable("no majority of the voters answers".to_owned()));
        }
        Ok(())
    }

    /// The index up to which a state must have applied the log to be current at the time of the call, after a majority
    /// has confirmed that this node leads. The caller then waits with [`Node::wait_applied`], here or elsewhere.
    pub async fn read_index(&self) -> Result<u64, ProposeError> {
        let confirmed = self.0.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        match tokio::time::timeout(READ_INDEX_DEADLINE, confirmed).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader(leader_of(&forward)))
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ProposeError::Unavailable("no majority of the voters answers".to_owned()))
            }
            Ok(Err(RaftError::Fatal(error))) => Err(ProposeError::Fatal(error.to_string())),
        }
    }

    /// Waits until the local state has applied `index`.
    pub async fn wait_applied(&self, index: u64, deadline: Duration) -> Result<(), ProposeError> {
        let state = &self.0.stores.state;
        tokio::time::timeout(deadline, state.wait_applied(index)).await.map_err(|_| {
            let applied = state.applied_index();
            ProposeError::Unavailable(format!("this peer has applied entry {applied}, and {index} is asked for"))
        })
    }

    /// Waits until everything that was committed before this node's restart is applied again, as the leader confirms:
    /// after a power cut the state may be some entries behind what it once served.
    pub async fn wait_recovered(&self, deadline: Duration) -> Result<(), ProposeError> {
        let recovered = async {
            let recovered = self.0.raft.wait_for_recovery(Some(deadline)).await;
            recovered.map_err(|error| ProposeError::Unavailable(format!("recover: {error}")))?;
            // The library has given it all to the state.
            self.0.stores.state.settle().await.map_err(|error| ProposeError::Fatal(error.to_string()))
        };
        let late = || ProposeError::Unavailable(format!("recover: not within {deadline:?}"));
        tokio::time::timeout(deadline, recovered).await.map_err(|_| late())?
    }

    /// Founds a cluster. Only on a node that was never in one, and on one of the founders only; the others wait.
    pub async fn initialize(&self, founders: &[NodeAndPeer]) -> Result<(), ChangeError> {
        let members = founders.iter().map(|founder| (founder.node_id, address_of(founder)));
        let members: std::collections::BTreeMap<u64, Address> = members.collect();
        match self.0.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(error)) => Err(ChangeError::Refused(error.to_string())),
            Err(RaftError::Fatal(error)) => Err(ChangeError::Fatal(error.to_string())),
        }
    }

    /// Lets a node hear the log without a vote. Done when that is committed; the node catches up afterwards.
    pub async fn add_learner(&self, node: &NodeAndPeer) -> Result<(), ChangeError> {
        let added = self.0.raft.add_learner(node.node_id, address_of(node), false);
        self.change_in_time(added).await
    }

    /// Gives learners that have caught up (`RaftStatus::lag`) a vote.
    pub async fn promote(&self, ids: BTreeSet<u64>) -> Result<(), ChangeError> {
        self.change(ChangeMembers::AddVoterIds(ids), true).await
    }

    /// Takes votes away; the nodes go on hearing the log.
    pub async fn demote(&self, ids: BTreeSet<u64>) -> Result<(), ChangeError> {
        self.change(ChangeMembers::RemoveVoters(ids), true).await
    }

    /// Removes nodes altogether. Those that are not members are left out. A leader hands over first.
    pub async fn remove_nodes(&self, ids: BTreeSet<u64>) -> Result<(), ChangeError> {
        let (voters, learners) = {
            let status = self.0.status.borrow();
            let voters: BTreeSet<u64> = ids.intersection(&status.voters).copied().collect();
            let learners: BTreeSet<u64> = ids.intersection(&status.learners).copied().collect();
            (voters, learners)
        };
        if !voters.is_empty() {
            self.change(ChangeMembers::RemoveVoters(voters), false).await?;
        }
        if !learners.is_empty() {
            self.change(ChangeMembers::RemoveNodes(learners), false).await?;
        }
        Ok(())
    }

    /// Writes a member's new address into the membership.
    pub async fn set_address(&self, node: &NodeAndPeer) -> Result<(), ChangeError> {
        self.change(ChangeMembers::SetNodes([(node.node_id, address_of(node))].into()), true).await
    }

    /// Ends a change of the voters that was interrupted half way (`RaftStatus::is_joint`). Voters of the old half that
    /// are not in the new one are removed.
    pub async fn finish_joint(&self) -> Result<(), ChangeError> {
        if !self.0.status.borrow().is_joint {
            return Ok(());
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await
    }

    async fn change(&self, change: ChangeMembers<u64, Address>, retain: bool) -> Result<(), ChangeError> {
        self.change_in_time(self.0.raft.change_membership(change, retain)).await
    }

    async fn change_in_time<T>(
        &self,
        change: impl Future<Output = Result<T, RaftError<Types, ClientWriteError<Types>>>>,
    ) -> Result<(), ChangeError> {
        match tokio::time::timeout(CHANGE_DEADLINE, change).await {
            Ok(changed) => changed.map(|_| ()).map_err(of_change),
            Err(_) => {
                Err(ChangeError::OutcomeUnknown(format!("the membership has not changed within {CHANGE_DEADLINE:?}")))
            }
        }
    }

    /// Hands the lead over. Done when another node is seen to lead.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), ChangeError> {
        let mut status = self.status();
        if !status.borrow().is_leader() {
            return Err(ChangeError::NotLeader(status.borrow().leader.clone()));
        }
        if !status.borrow().voters.contains(&to) || to == self.0.id {
            return Err(ChangeError::Refused(format!("node {to:x} is not another voter")));
        }
        let triggered = self.0.raft.trigger().transfer_leader(to).await;
        triggered.map_err(|error| ChangeError::Fatal(error.to_string()))?;
        let own = self.0.id;
        let other_leads = status.wait_for(|status| status.leader.as_ref().is_some_and(|leader| leader.node_id != own));
        match tokio::time::timeout(TRANSFER_DEADLINE, other_leads).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ChangeError::Fatal("this node has stopped".to_owned())),
            Err(_) => Err(ChangeError::OutcomeUnknown(format!("node {to:x} has not taken the lead yet"))),
        }
    }

    /// Puts the state on disk and cuts the log behind it, in the background; not while a snapshot is being sent.
    pub async fn trigger_snapshot(&self) -> Result<(), ChangeError> {
        self.0.raft.trigger().snapshot().await.map_err(|error| ChangeError::Fatal(error.to_string()))
    }

    /// Whether a snapshot is on its way to another node.
    pub fn is_sending_snapshot(&self) -> bool {
        self.0.transfers.is_any()
    }

    /// Hands the lead over, if this node has it and somebody can take it; ends, and closes the stores. Idempotent.
    pub async fn shutdown(&self) {
        if let Some(heir) = self.heir()
            && let Err(error) = self.transfer_leader(heir).await
        {
            tracing::info!(%error, "stopping without having handed over the lead");
        }
        self.stop().await;
        self.0.stores.close().await;
    }

    /// Ends the library at once.
    pub(super) async fn stop(&self) {
        self.0.stopping.cancel();
        match tokio::time::timeout(STOP_DEADLINE, self.0.raft.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the consensus library did not end well"),
            Err(_) => tracing::warn!(deadline = ?STOP_DEADLINE, "the consensus library has not ended"),
        }
    }

    /// The voter that is best fit to lead next: it answers, and has most of the log.
    fn heir(&self) -> Option<u64> {
        let status = self.0.status.borrow();
        if !status.is_leader() {
            return None;
        }
        let recent = HEIR_SILENCE_HEARTBEATS * self.0.config.heartbeat_interval;
        let answers = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < recent);
        let candidates = status.followers.iter().filter(|(id, follower)| {
            status.voters.contains(id) && follower.matched.is_some() && answers(follower.last_contact)
        });
        candidates.max_by_key(|(_, follower)| follower.matched).map(|(id, _)| *id)
    }
}

fn address_of(node: &NodeAndPeer) -> Address {
    Address { peer_id: node.peer_id.to_bytes(), host_port: node.address.clone() }
}
