//! What people ask for while things fail: pins by the coordinator's own rules, and changes of the peerset.

use std::collections::BTreeMap;
use std::sync::Arc;

use consensus_svc::coordinator::rules::{self, Draft, Surroundings, is_everywhere};
use consensus_svc::repin::plan::factors;
use pinfold_common::pin::{PinRequest, PinType};
use pinfold_common::{Cid, ids};
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{storage, types};

use super::{EPOCH, World};

/// So many entries, and nothing new is pinned.
const MOST_ITEMS: usize = 12;
const DEFAULTS: rules::Factors = rules::Factors { min: 1, max: 2 };

impl World {
    /// A pin of random factors on random peers, which have it already. Some are shards, which only an add makes.
    pub(super) fn put(&mut self) {
        let cid = self.next_cid();
        let mut request = self.request(cid);
        request.options.expire_at.seconds = EPOCH + 1_000_000;
        let options = types::PinOptions::from(request.options);
        let (min, max) = (options.replication_factor_min as u64, options.replication_factor_max as u64);
        let count = self.peers.len() as u64;
        let first = self.random.below(count);
        let held = min + self.random.below(max - min + 1);
        let holders: Vec<usize> = (0..held).map(|step| ((first + step) % count) as usize).collect();
        for holder in &holders {
            self.peers[*holder].copies.insert(cid.to_bytes());
        }
        let is_shard = self.random.one_in(4);
        let pin = types::Pin {
            cid: cid.to_bytes(),
            r#type: if is_shard { PinType::Shard } else { PinType::Data }.to_proto() as i32,
            max_depth: if is_shard { 1 } else { -1 },
            reference: if is_shard { b"the shard before".to_vec() } else { Vec::new() },
            allocations: holders.iter().map(|holder| self.peers[*holder].bytes.clone()).collect(),
            options: Some(options),
            ..types::Pin::default()
        };
        let put = storage::Put { pin: Some(pin), expected_revision: 0, request_key: Vec::new() };
        self.commit(Kind::PutMany(storage::PutMany { puts: vec![put] }));
        self.offered.remove(&cid.to_bytes());
    }

    fn request(&mut self, cid: Cid) -> PinRequest {
        let count = self.staying() as u64;
        let min = 1 + self.random.below(3.min(count.max(2) - 1));
        let max = (min + self.random.below(2)).min(count.max(1));
        let mut request = PinRequest::new(cid);
        request.options.replication_factor_min = min as i32;
        request.options.replication_factor_max = max as i32;
        request.options.name = format!("asked for at {}", self.now);
        request.options.metadata =
            BTreeMap::from([("at".to_owned(), self.now.to_string()), ("of".to_owned(), cid.to_string())]);
        request.options.origins = vec!["/ip4/192.0.2.1/tcp/4001".parse().expect("an address")];
        request
    }

    /// Members that are not on their way out.
    pub(super) fn staying(&self) -> usize {
        self.view.peers.members().filter(|row| !row.draining).count()
    }

    pub(super) fn largest_minimum(&self) -> usize {
        self.pins.iter().filter_map(|pin| factors(pin)).map(|(min, _)| min).max().unwrap_or(1)
    }

    pub(super) fn act_as_people(&mut self, leader: usize) {
        if self.is_healing || self.setup.is_quiet || !self.random.one_in(3) {
            return;
        }
        match self.random.below(14) {
            0..=2 => self.pin_something_new(leader),
            3..=5 => self.pin_again(leader),
            6 => self.update(leader),
            7..=8 => self.unpin(),
            9 => self.drain(),
            10 => self.end_draining(),
            11 => self.order_removal(),
            12 => self.order_rebalance(),
            _ => self.remove_by_force(),
        }
    }

    fn any_pin(&mut self) -> Option<Arc<types::Pin>> {
        let at = self.random.below(self.pins.len() as u64) as usize;
        self.pins.get(at).cloned()
    }

    pub fn pin_something_new(&mut self, leader: usize) {
        if self.pins.len() < MOST_ITEMS || self.setup.is_quiet {
            let cid = self.next_cid();
            let request = self.request(cid);
            self.pin(leader, &request);
        }
    }

    /// The same content with other factors and another name.
    fn pin_again(&mut self, leader: usize) {
        let Some(existing) = self.any_pin() else { return };
        let mut request = self.request(ids::cid_from_bytes(&existing.cid).expect("a CID"));
        if self.random.one_in(8) {
            request.options.replication_factor_min = -1;
            request.options.replication_factor_max = -1;
        }
        if self.random.one_in(3) {
            let wish = self.random.below(self.peers.len() as u64) as usize;
            request.user_allocations = vec![self.peers[wish].id];
        }
        self.pin(leader, &request);
    }

    fn update(&mut self, leader: usize) {
        let Some(source) = self.any_pin() else { return };
        let mut request = PinRequest::new(self.next_cid());
        request.options.pin_update = Some(ids::cid_from_bytes(&source.cid).expect("a CID"));
        self.pin(leader, &request);
    }

    /// As the coordinator decides it (`coordinator::decide`).
    fn pin(&mut self, leader: usize, request: &PinRequest) {
        let existing = self.row(&request.cid.to_bytes());
        let source = rules::source_of(request).and_then(|cid| self.row(&cid));
        let around = Surroundings { defaults: DEFAULTS, now: self.wall(), peers: &self.view.peers };
        let Ok(mut draft) = rules::pin(request, existing, source.as_deref(), around) else {
            self.totals.refused += 1;
            return;
        };
        if let Some(question) = draft.allocate.take() {
            let Some(peers) = self.allocate(leader, &[question]).remove(0) else {
                self.totals.refused += 1;
                return;
            };
            draft.place(peers);
        }
        if draft.unchanged().is_some() {
            return;
        }
        self.check_draft(leader, request, source.as_deref(), &draft);
        let expected_revision = draft.expected_revision();
        let put = storage::Put { pin: Some(draft.pin), expected_revision, request_key: self.key() };
        let many = storage::PutMany { puts: vec![put] };
        self.send(self.command(Kind::PutMany(many)));
    }

    /// A key of each request of people, so that a second try is harmless.
    fn key(&mut self) -> Vec<u8> {
        self.random.next().to_be_bytes().to_vec()
    }

    fn unpin(&mut self) {
        let Some(existing) = self.any_pin() else { return };
        let Ok(cids) = rules::unpin(Some(&existing)) else {
            self.totals.refused += 1;
            return;
        };
        let request_key = self.key();
        let unpin =
            |cid| storage::Unpin { cid, expected_revision: existing.revision, request_key: request_key.clone() };
        let unpins = cids.into_iter().map(unpin).collect();
        self.send(self.command(Kind::UnpinMany(storage::UnpinMany { unpins })));
    }

    fn any_member(&mut self) -> usize {
        let members: Vec<usize> = (0..self.peers.len()).filter(|peer| self.is_member(*peer)).collect();
        members[self.random.below(members.len() as u64) as usize]
    }

    fn drain(&mut self) {
        let peer = self.any_member();
        self.totals.drains += 1;
        self.mark(peer, true, false);
    }

    fn end_draining(&mut self) {
        let peer = self.any_member();
        self.totals.undrains += u64::from(self.view.peers.node(self.peers[peer].node).is_some_and(|row| row.draining));
        self.mark(peer, false, false);
    }

    /// While enough are left for every item.
    fn order_removal(&mut self) {
        let peer = self.any_member();
        if self.has_majority_without(peer) && self.staying() > self.largest_minimum().max(2) {
            self.mark(peer, true, true);
        }
    }

    fn mark(&mut self, peer: usize, draining: bool, removing: bool) {
        self.tell(|| format!("peer {peer}: draining {draining}, removing {removing}"));
        let peer_id = self.peers[peer].bytes.clone();
        self.commit(Kind::Drain(storage::Drain { peer_id, draining, removing }));
    }

    /// Only where nothing is lost by it: somebody else has a copy that is asked to be kept, or could be asked again.
    fn remove_by_force(&mut self) {
        let peer = self.any_member();
        let is_elsewhere = |pin: &types::Pin| {
            let others = (0..self.peers.len()).filter(|other| *other != peer && self.is_member(*other));
            let keeps =
                |bytes: &Vec<u8>| is_everywhere(pin) || pin.allocations.contains(bytes) || pin.leaving.contains(bytes);
            let mut kept = others.filter(|other| keeps(&self.peers[*other].bytes));
            self.offered.contains(&pin.cid) || kept.any(|other| self.peers[other].copies.contains(&pin.cid))
        };
        let may_go = self.has_majority_without(peer)
            && self.staying() > self.largest_minimum().max(2)
            && self.pins.iter().all(|pin| is_elsewhere(pin));
        if may_go {
            self.totals.forced += 1;
            self.remove(peer, false);
        }
    }

    /// What a written entry of people has to say, but for its allocations and its time.
    pub(super) fn expected_options(request: &PinRequest, source: Option<&types::Pin>) -> types::PinOptions {
        match source {
            None => types::PinOptions::from(request.options.clone()),
            Some(source) => {
                types::PinOptions { pin_update: source.cid.clone(), ..source.options.clone().unwrap_or_default() }
            }
        }
    }

    /// Who gets a copy by it and had none.
    pub(super) fn new_holders(draft: &Draft) -> impl Iterator<Item = &Vec<u8>> {
        let had = draft.existing.as_ref().map(|pin| pin.allocations.clone()).unwrap_or_default();
        draft.pin.allocations.iter().filter(move |peer| !had.contains(peer))
    }
}
