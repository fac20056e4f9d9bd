//! One upload between its first block and its pin: asks where blocks go when there is one, keeps the sink, tells the
//! client, and pins at the end. The two decisions (who gets blocks, who is pinned) are pure functions.

use std::time::Duration;

use futures::future::join_all;
use pinfold_common::pin::{PinOptions, PinRequest};
use pinfold_common::{Cid, Code, Error, PeerId, Result};
use tokio::sync::mpsc;

use super::cluster::Allocation;
use super::dag::{Block, Node, is_identity};
use super::sink::{self, Sink, Stored};
use super::{AddContext, AddParams, Done, Event, confirm};

/// A client that takes no event for this long has left.
const OUTPUT_DEADLINE: Duration = Duration::from_secs(300);

pub(super) struct Upload<'a> {
    context: &'a AddContext,
    params: &'a AddParams,
    output: mpsc::Sender<Event>,
    /// The latest event, not told yet. The last one is what clients take for the root of all, also those that never
    /// look at the error behind it: it is told when everything is stored and pinned, or not at all.
    held: Option<Event>,
    open: Option<(Plan, Sink)>,
}

impl<'a> Upload<'a> {
    pub fn new(context: &'a AddContext, params: &'a AddParams, output: mpsc::Sender<Event>) -> Upload<'a> {
        Upload { context, params, output, held: None, open: None }
    }

    pub async fn put(&mut self, block: Block) -> Result<()> {
        if is_identity(&block.cid) {
            return Ok(());
        }
        match &mut self.open {
            Some((_, sink)) => sink.put(block).await,
            None => {
                let plan = self.allocate().await?;
                let mut sink = Sink::open(&self.context.cluster, &plan.destinations, self.context.stall_deadline);
                let outcome = sink.put(block).await;
                self.open = Some((plan, sink));
                outcome
            }
        }
    }

    pub async fn put_all(&mut self, blocks: &mut Vec<Block>) -> Result<()> {
        for block in blocks.drain(..) {
            self.put(block).await?;
        }
        Ok(())
    }

    async fn allocate(&self) -> Result<Plan> {
        let params = self.params;
        let allocation = self.context.cluster.allocate(&self.options(), &params.user_allocations).await?;
        if allocation.peers.is_empty() {
            return Err(Error::new(Code::NotEnoughPeers, "allocate for an add: no peer can take blocks"));
        }
        let forced = params.local && params.user_allocations.is_empty();
        Ok(match (params.local, forced) {
            (false, _) => Plan::everyone(allocation),
            (true, false) => Plan::local(allocation, self.context.own),
            (true, true) => Plan::local(with_peer(allocation, self.context.own), self.context.own),
        })
    }

    fn options(&self) -> PinOptions {
        PinOptions { pin_update: None, ..self.params.pin.clone() }
    }

    /// A file, symlink or directory is whole.
    pub async fn added(&mut self, name: String, node: &Node) -> Result<()> {
        let allocations = self.allocations();
        self.emit(Event::Added { name, cid: node.cid, bytes: None, size: node.dag_bytes, allocations }).await
    }

    /// Who will hold it, as far as it is known.
    pub fn allocations(&self) -> Vec<PeerId> {
        self.open.as_ref().map(|(plan, _)| plan.holders.clone()).unwrap_or_default()
    }

    /// Tells what was held, and holds this.
    pub async fn emit(&mut self, event: Event) -> Result<()> {
        let Some(earlier) = self.held.replace(event) else { return Ok(()) };
        self.output
            .send_timeout(earlier, OUTPUT_DEADLINE)
            .await
            .map_err(|_| Error::unavailable("add: the client has left"))
    }

    /// Stores and pins, then tells the last event.
    pub async fn finish(mut self, root: Cid) -> Result<Done> {
        let (last, output) = (self.held.take(), self.output.clone());
        let done = self.store_and_pin(root).await?;
        if let Some(last) = last {
            // It is done, whether or not the client has left.
            let _ = output.send_timeout(last, OUTPUT_DEADLINE).await;
        }
        Ok(done)
    }

    /// Waits until the blocks are on the destinations' disks, then pins; and where a node might remove them before that, until
    /// it has pinned them.
    async fn store_and_pin(self, root: Cid) -> Result<Done> {
        let Some((plan, sink)) = self.open else {
            return Err(Error::invalid("add: nothing to store"));
        };
        let options = PinOptions { pin_update: None, ..self.params.pin.clone() };
        let Stored { mut failed, unheld } = sink.finish().await?;
        plan.check_copies(&failed, "failed to put blocks on enough destinations")?;
        let allocations = plan.allocations(&failed.iter().map(|(peer, _)| *peer).collect::<Vec<_>>());
        if self.params.no_pin {
            return Ok(Done { root, pin: None, index: 0, failed: told(failed) });
        }
        let user_allocations = self.params.user_allocations.clone();
        let request = PinRequest { options, user_allocations, allocations, ..PinRequest::new(root) };
        let (pin, index) = self.context.cluster.pin(request, self.params.request_key.clone()).await?;
        let cluster = self.context.cluster.as_ref();
        let confirming = unheld.into_iter().map(|peer| async move {
            confirm::pinned(cluster, peer, &root, index).await.map_err(|error| (peer, error))
        });
        failed.extend(join_all(confirming).await.into_iter().filter_map(Result::err));
        plan.check_copies(&failed, "stored and in the pinset, but perhaps lost again on too many destinations")?;
        Ok(Done { root, pin: Some(pin), index, failed: told(failed) })
    }
}

fn told(failed: Vec<(PeerId, Error)>) -> Vec<(PeerId, String)> {
    failed.into_iter().map(|(peer, error)| (peer, error.message)).collect()
}

/// Who gets the blocks and who is to hold the pin.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    destinations: Vec<PeerId>,
    holders: Vec<PeerId>,
    everywhere: bool,
    min: usize,
}

impl Plan {
    /// Every holder is sent the blocks.
    fn everyone(allocation: Allocation) -> Plan {
        Plan { destinations: allocation.peers.clone(), ..Plan::of(allocation) }
    }

    /// Only this peer is sent the blocks; the other holders fetch them (beh:B19.4).
    fn local(allocation: Allocation, own: PeerId) -> Plan {
        Plan { destinations: vec![own], ..Plan::of(allocation) }
    }

    fn of(allocation: Allocation) -> Plan {
        Plan {
            destinations: Vec::new(),
            holders: allocation.peers,
            everywhere: allocation.everywhere,
            min: usize::try_from(allocation.replication_factor_min).unwrap_or(0),
        }
    }

    /// An upload succeeds with the minimum of copies or not at all. Where only this peer is sent the blocks, and where
    /// everybody is to hold them, one copy is enough: the others fetch.
    fn check_copies(&self, failed: &[(PeerId, Error)], what: &str) -> Result<()> {
        let needed = if self.everywhere { 1 } else { self.min.min(self.destinations.len()) };
        let stored = self.destinations.len() - failed.len();
        if stored >= needed {
            return Ok(());
        }
        Err(sink::reasons(failed).context(format!("{what}: {stored} have them, {needed} are needed")))
    }

    /// What the pin is preset with: the holders that did not fail (beh:B19.9).
    fn allocations(&self, failed: &[PeerId]) -> Vec<PeerId> {
        if self.everywhere {
            return Vec::new();
        }
        self.holders.iter().filter(|peer| !failed.contains(peer)).copied().collect()
    }
}

/// The allocation with `peer` in it, in place of the last one if need be.
fn with_peer(mut allocation: Allocation, peer: PeerId) -> Allocation {
    if !allocation.peers.contains(&peer) {
        allocation.peers.pop();
        allocation.peers.push(peer);
    }
    allocation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocation(peers: &[PeerId], min: i32) -> Allocation {
        Allocation { peers: peers.to_vec(), everywhere: min < 0, replication_factor_min: min }
    }

    /// Goal: a failed destination leaves the allocations, and the upload fails below the minimum of copies, with the
    /// code that the failures have in common.
    #[test]
    fn failed_destinations_and_the_minimum() {
        let peers: Vec<PeerId> = (0..3).map(|_| PeerId::random()).collect();
        let full = |peer: &PeerId| (*peer, Error::new(Code::StorageFull, "the disk is full"));
        let two = Plan::everyone(allocation(&peers, 2));
        assert_eq!(two.allocations(&[]), peers);
        assert_eq!(two.allocations(&[peers[0]]), [peers[1], peers[2]]);
        assert!(two.check_copies(&[full(&peers[0])], "put").is_ok());
        let error = two.check_copies(&[full(&peers[0]), full(&peers[2])], "put").unwrap_err();
        assert_eq!(error.code, Code::StorageFull);
        assert!(error.message.contains("1 have them, 2 are needed"), "{error}");
        let mixed = [full(&peers[0]), (peers[1], Error::unavailable("away"))];
        assert_eq!(two.check_copies(&mixed, "put").unwrap_err().code, Code::Unavailable);
        let everywhere = Plan::everyone(allocation(&peers, -1));
        assert_eq!(everywhere.destinations, peers);
        assert!(everywhere.allocations(&[peers[0]]).is_empty());
        assert!(everywhere.check_copies(&[full(&peers[0]), full(&peers[1])], "put").is_ok());
        assert!(Plan::local(allocation(&peers, 2), peers[0]).check_copies(&[], "put").is_ok());
    }

    /// Goal: a local add forces this peer into the allocations in place of the last, once (beh:B19.4).
    #[test]
    fn local_adds_keep_this_peer() {
        let peers: Vec<PeerId> = (0..2).map(|_| PeerId::random()).collect();
        let own = PeerId::random();
        let forced = Plan::local(with_peer(allocation(&peers, 1), own), own);
        assert_eq!(forced.destinations, [own]);
        assert_eq!(forced.allocations(&[]), [peers[0], own]);
        assert_eq!(with_peer(allocation(&peers, 1), peers[0]).peers, peers);
    }
}
