//! What a pin or unpin request means for the entry that is there: beh:B8 in its order of checks, with the original's
//! texts (rest-api.md 2). PURE: the time and the defaults come in, an entry to propose or an error comes out.

use std::sync::Arc;

use pinfold_common::pin::{PinMode, PinRequest, PinType};
use pinfold_common::time::Timestamp;
use pinfold_common::{Code, Error, Result};
use pinfold_proto::{monitor, types};

use crate::pinset::PeerTable;

/// Replication factors for requests that leave them at 0; never 0 themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factors {
    pub min: i32,
    pub max: i32,
}

/// What surrounds a decision.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    pub defaults: Factors,
    pub now: Timestamp,
    pub peers: &'a PeerTable,
}

/// An entry on its way to a proposal.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// As it is to be proposed; its allocations are final once `allocate` is answered. The timestamp has nanoseconds,
    /// as the answer to a pin request has in the original; the state keeps whole seconds.
    pub pin: types::Pin,
    pub existing: Option<Arc<types::Pin>>,
    /// What to ask the allocator; `None`: nothing.
    pub allocate: Option<monitor::Item>,
    /// Who may have a copy by the entry that is there.
    holders: Vec<Vec<u8>>,
}

impl Draft {
    pub fn expected_revision(&self) -> u64 {
        self.existing.as_ref().map_or(0, |pin| pin.revision)
    }

    fn new(pin: types::Pin, existing: Option<Arc<types::Pin>>, peers: &PeerTable) -> Draft {
        let holders = match &existing {
            None => Vec::new(),
            Some(existing) if is_everywhere(existing) => peers.members().map(|row| row.peer_id.clone()).collect(),
            Some(existing) => existing.allocations.clone(),
        };
        Draft { pin, existing, allocate: None, holders }
    }

    /// The allocator's answer. Holders that are not among it keep their copy until those really have it (protocols.md 7):
    /// nobody knows here who has one, not even of holders that stay.
    pub fn place(&mut self, allocations: Vec<Vec<u8>>) {
        self.pin.allocations = allocations;
        let Some(existing) = &self.existing else { return };
        if is_everywhere(&self.pin) {
            self.pin.leaving = Vec::new();
            return;
        }
        let old = existing.leaving.iter().chain(&self.holders);
        self.pin.leaving = old.filter(|peer| !self.pin.allocations.contains(peer)).cloned().collect();
    }

    /// The entry that is there, if this one would say the same (beh:B8.12): all but the time.
    pub fn unchanged(&self) -> Option<&Arc<types::Pin>> {
        let existing = self.existing.as_ref()?;
        let mut same = self.pin.clone();
        same.timestamp = existing.timestamp;
        same.revision = existing.revision;
        if same_peers(&same.allocations, &existing.allocations) {
            same.allocations = existing.allocations.clone();
        }
        (same == **existing).then_some(existing)
    }
}

fn same_peers(left: &[Vec<u8>], right: &[Vec<u8>]) -> bool {
    left.len() == right.len() && left.iter().all(|peer| right.contains(peer))
}

fn options_of(pin: &types::Pin) -> &types::PinOptions {
    static NONE: types::PinOptions = types::PinOptions {
        replication_factor_min: 0,
        replication_factor_max: 0,
        name: String::new(),
        shard_size_bytes: 0,
        metadata: Vec::new(),
        pin_update: Vec::new(),
        expire_at_seconds: 0,
        origins: Vec::new(),
    };
    pin.options.as_ref().unwrap_or(&NONE)
}

/// beh:B7.5
pub fn is_everywhere(pin: &types::Pin) -> bool {
    let options = options_of(pin);
    options.replication_factor_min == -1 && options.replication_factor_max == -1
}

/// Fills in the defaults and checks (beh:B8.4).
pub fn factors(min: i32, max: i32, defaults: Factors) -> Result<Factors> {
    let min = if min == 0 { defaults.min } else { min };
    let max = if max == 0 { defaults.max } else { max };
    let wrong = if min == 0 || max == 0 {
        "cluster.replication_factor_min and max must be set"
    } else if min > max {
        "cluster.replication_factor_min is larger than max"
    } else if min < -1 {
        "cluster.replication_factor_min is wrong"
    } else if max < -1 {
        "cluster.replication_factor_max is wrong"
    } else if (min == -1) != (max == -1) {
        "cluster.replication_factor_min and max must be -1 when one of them is"
    } else {
        return Ok(Factors { min, max });
    };
    Err(Error::rejected(wrong))
}

/// Which other entry a request copies from (beh:B8.2).
pub fn source_of(request: &PinRequest) -> Option<Vec<u8>> {
    request.options.pin_update.filter(|from| *from != request.cid).map(|from| from.to_bytes())
}

/// A pin request on the entry that is there, if any; `source` is the entry named by `pin_update`.
pub fn pin(
    request: &PinRequest,
    existing: Option<Arc<types::Pin>>,
    source: Option<&types::Pin>,
    around: Surroundings,
) -> Result<Draft> {
    let max_depth = depth(request.kind, request.max_depth)?;
    if source_of(request).is_some() {
        let source = source.ok_or_else(Error::not_in_pinset)?;
        return update(request, existing, source, around);
    }
    let mut options = types::PinOptions::from(request.options.clone());
    options.pin_update = Vec::new();
    let chosen = factors(options.replication_factor_min, options.replication_factor_max, around.defaults)?;
    options.replication_factor_min = chosen.min;
    options.replication_factor_max = chosen.max;
    check_expiry(request, around.now)?;
    let draft = types::Pin {
        cid: request.cid.to_bytes(),
        r#type: request.kind.to_proto() as i32,
        max_depth,
        options: Some(options),
        allocations: Vec::new(),
        leaving: Vec::new(),
        reference: Vec::new(),
        timestamp: Some(around.now.into()),
        revision: 0,
    };
    check_repin(&draft, existing.as_deref())?;
    check_type(&draft)?;

    let mut draft = Draft::new(draft, existing, around.peers);
    if chosen.min == -1 || request.kind == PinType::Meta {
        draft.place(Vec::new());
        return Ok(draft);
    }
    let preset: Vec<Vec<u8>> = request.allocations.iter().map(|peer| peer.to_bytes()).collect();
    if !preset.is_empty() {
        preset_allocations(&mut draft, preset, chosen, around.peers);
        return Ok(draft);
    }
    draft.allocate = Some(monitor::Item {
        cid: draft.pin.cid.clone(),
        replication_factor_min: chosen.min,
        replication_factor_max: chosen.max,
        current: draft.existing.as_ref().map(|pin| pin.allocations.clone()).unwrap_or_default(),
        priority: request.user_allocations.iter().map(|peer| peer.to_bytes()).collect(),
        exclude: cannot_take(around.peers),
        growth: monitor::item::Growth::ToMax as i32,
        size_bytes: 0,
    });
    Ok(draft)
}

/// Allocations that an add made already, or that are copied from another entry: used as they are given (beh:B8.9), but
/// for peers that cannot take anything now.
fn preset_allocations(draft: &mut Draft, preset: Vec<Vec<u8>>, chosen: Factors, peers: &PeerTable) {
    let count = preset.len();
    let able: Vec<Vec<u8>> = preset.into_iter().filter(|peer| peers.can_take(peer)).collect();
    let enough = able.len() == count || able.len() >= usize::try_from(chosen.min).unwrap_or(0);
    if !enough {
        draft.allocate = Some(monitor::Item {
            cid: draft.pin.cid.clone(),
            replication_factor_min: chosen.min,
            replication_factor_max: chosen.max,
            current: able.clone(),
            priority: Vec::new(),
            exclude: cannot_take(peers),
            growth: monitor::item::Growth::IfBelowMin as i32,
            size_bytes: 0,
        });
    }
    draft.place(able);
}

/// Members that must not be chosen: `apply` would answer stale.
fn cannot_take(peers: &PeerTable) -> Vec<Vec<u8>> {
    peers.members().filter(|row| !peers.can_take(&row.peer_id)).map(|row| row.peer_id.clone()).collect()
}

/// beh:B8.18: everything is the source's, but the CID, the time, and a name or an expiry that was given. The original
/// ignores an expiry in the past without a word; here it is refused as that of any pin. What is kept of `pin_update` is
/// a hint for the first pinning attempt, never carried out again (beh:B8.20).
fn update(
    request: &PinRequest,
    existing: Option<Arc<types::Pin>>,
    source: &types::Pin,
    around: Surroundings,
) -> Result<Draft> {
    if PinType::from_proto(source.r#type) != PinType::Data {
        return Err(Error::rejected("this pin type cannot be updated"));
    }
    check_expiry(request, around.now)?;
    let mut draft = source.clone();
    draft.cid = request.cid.to_bytes();
    draft.timestamp = Some(around.now.into());
    draft.revision = 0;
    draft.leaving = Vec::new();
    let options = draft.options.get_or_insert_default();
    options.pin_update = source.cid.clone();
    if !request.options.name.is_empty() {
        options.name = request.options.name.clone();
    }
    if request.options.expire_at >= around.now {
        options.expire_at_seconds = request.options.expire_at.seconds;
    }
    let chosen = Factors { min: options.replication_factor_min, max: options.replication_factor_max };
    check_repin(&draft, existing.as_deref())?;
    check_type(&draft)?;
    let copied = std::mem::take(&mut draft.allocations);
    let mut draft = Draft::new(draft, existing, around.peers);
    if chosen.min == -1 {
        draft.place(Vec::new());
    } else {
        preset_allocations(&mut draft, copied, chosen, around.peers);
    }
    Ok(draft)
}

/// A plain pin is recursive or direct (beh:B7.4): no IPFS node pins down to a depth (beh:B13.3). Those of the other types
/// are looked at with the type.
pub fn depth(kind: PinType, max_depth: i32) -> Result<i32> {
    match (kind, max_depth) {
        (PinType::Data, -1 | 0) | (PinType::Bad | PinType::Meta | PinType::ClusterDag | PinType::Shard, _) => {
            Ok(max_depth)
        }
        (PinType::Data, other) => Err(Error::invalid(format!("max_depth: {other} is neither -1 nor 0"))),
    }
}

/// beh:B8.5
fn check_expiry(request: &PinRequest, now: Timestamp) -> Result<()> {
    if request.options.is_expired(now) {
        return Err(Error::rejected("pin.ExpireAt set before current time"));
    }
    Ok(())
}

/// beh:B8.6
fn check_repin(new: &types::Pin, existing: Option<&types::Pin>) -> Result<()> {
    let Some(existing) = existing else { return Ok(()) };
    let (new_type, old_type) = (PinType::from_proto(new.r#type), PinType::from_proto(existing.r#type));
    if new_type != old_type {
        return Err(Error::rejected(format!(
            "cannot repin CID with different tracking method, clear state with pin rm to proceed. New: {}. Was: {}",
            new_type.name(),
            old_type.name()
        )));
    }
    let (new_mode, old_mode) = (PinMode::of_depth(new.max_depth), PinMode::of_depth(existing.max_depth));
    if old_mode == PinMode::Recursive && new_mode != PinMode::Recursive {
        return Err(Error::rejected(format!(
            "cannot repin a CID which is already pinned in recursive mode (new pin is pinned as {}). Unpin it first.",
            new_mode.name()
        )));
    }
    Ok(())
}

/// beh:B8.6, for new entries too. What a request can't carry (a reference) makes some types impossible to ask for.
fn check_type(pin: &types::Pin) -> Result<()> {
    let referenced = !pin.reference.is_empty();
    let wrong = match PinType::from_proto(pin.r#type) {
        PinType::Data if referenced => "data pins should not reference other pins",
        PinType::Shard if !(1..=2).contains(&pin.max_depth) => "must pin shards go depth 1",
        PinType::ClusterDag if pin.max_depth != 0 => "must pin roots directly",
        PinType::ClusterDag if !referenced => "clusterDAG pins should reference a Meta pin",
        PinType::Meta if !pin.allocations.is_empty() => "meta pin should not specify allocations",
        PinType::Meta if !referenced => "metaPins should reference a ClusterDAG",
        PinType::Bad => "unrecognized pin type",
        PinType::Data | PinType::Shard | PinType::ClusterDag | PinType::Meta => return Ok(()),
    };
    Err(Error::rejected(wrong))
}

/// The CIDs that go when `existing` is unpinned (beh:B8.14): itself, and the cluster DAG of a sharded item.
pub fn unpin(existing: Option<&types::Pin>) -> Result<Vec<Vec<u8>>> {
    let existing = existing.ok_or_else(Error::not_in_pinset)?;
    match PinType::from_proto(existing.r#type) {
        PinType::Data => Ok(vec![existing.cid.clone()]),
        PinType::Meta if existing.reference.is_empty() => Ok(vec![existing.cid.clone()]),
        PinType::Meta => Ok(vec![existing.cid.clone(), existing.reference.clone()]),
        PinType::Shard => Err(Error::rejected("cannot unpin a shard directly. Unpin content root CID instead")),
        PinType::ClusterDag => {
            Err(Error::rejected("cannot unpin a Cluster DAG directly. Unpin content root CID instead"))
        }
        PinType::Bad => Err(Error::rejected("unrecognized pin type")),
    }
}

/// The original's words, which clients compare (rest-api.md 2). Where space is all that is missing it is another error (attack:A10), for which
/// the original has no status.
pub fn too_few(told: &monitor::TooFew) -> Error {
    let words = format!(
        "not enough peers to allocate CID. Needed at least: {}. Wanted at most: {}. Available candidates: {}. \
         See logs for more info.",
        told.needed, told.wanted, told.candidates
    );
    if told.full > 0 && told.candidates.saturating_add(told.full) >= told.needed {
        return Error::new(Code::StorageFull, format!("{words} Peers without space: {}.", told.full));
    }
    Error::new(Code::NotEnoughPeers, words)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use pinfold_common::{Cid, PeerId};
    use pinfold_proto::types::peer::State;

    use super::*;

    const A: &str = "bafkqabiaaebagba";
    const B: &str = "bafkqabyaaebagbafa4";
    const NOW: Timestamp = Timestamp { seconds: 1_790_000_000, nanos: 7 };
    const DEFAULTS: Factors = Factors { min: -1, max: -1 };

    fn cid(text: &str) -> Cid {
        Cid::from_str(text).unwrap()
    }

    fn peer(number: u8) -> PeerId {
        let key = [number; 32];
        libp2p_key(&key)
    }

    /// A peer ID from an identity multihash; the key need not be on a curve.
    fn libp2p_key(key: &[u8; 32]) -> PeerId {
        let mut bytes = vec![0, 36, 8, 1, 18, 32];
        bytes.extend_from_slice(key);
        PeerId::from_bytes(&bytes).unwrap()
    }

    fn peers(states: &[State]) -> PeerTable {
        let mut table = PeerTable::default();
        for (number, state) in (1..).zip(states) {
            let mut row =
                types::Peer { peer_id: peer(number).to_bytes(), node_id: u64::from(number), ..types::Peer::default() };
            row.set_state(*state);
            table.rows.insert(row.node_id, row);
        }
        table
    }

    fn decide(request: &PinRequest, existing: Option<&types::Pin>, source: Option<&types::Pin>) -> Result<Draft> {
        let table = peers(&[State::Healthy, State::Healthy, State::Away]);
        let around = Surroundings { defaults: DEFAULTS, now: NOW, peers: &table };
        pin(request, existing.cloned().map(Arc::new), source, around)
    }

    fn request(change: impl FnOnce(&mut PinRequest)) -> PinRequest {
        let mut request = PinRequest::new(cid(A));
        change(&mut request);
        request
    }

    fn with_factors(min: i32, max: i32) -> PinRequest {
        request(|request| {
            request.options.replication_factor_min = min;
            request.options.replication_factor_max = max;
        })
    }

    fn stored(request: &PinRequest, allocations: &[PeerId]) -> types::Pin {
        let mut pin = decide(request, None, None).unwrap().pin;
        pin.allocations = allocations.iter().map(|peer| peer.to_bytes()).collect();
        pin.revision = 11;
        pin.timestamp = Some(types::Time { seconds: NOW.seconds - 100, nanos: 0 });
        pin
    }

    fn message(result: Result<Draft>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.code.http(), 500, "{error}");
        error.message
    }

    /// Goal: bad factors are told in the original's words and order, after 0 became the default.
    #[test]
    fn factors_as_in_the_original() {
        for (min, max, text) in [
            (3, 2, "cluster.replication_factor_min is larger than max"),
            (3, -1, "cluster.replication_factor_min is larger than max"),
            (-2, 2, "cluster.replication_factor_min is wrong"),
            (-3, -2, "cluster.replication_factor_min is wrong"),
            (-1, 2, "cluster.replication_factor_min and max must be -1 when one of them is"),
            (0, 3, "cluster.replication_factor_min and max must be -1 when one of them is"),
        ] {
            assert_eq!(message(decide(&with_factors(min, max), None, None)), text, "{min} {max}");
        }
        assert_eq!(factors(0, 0, Factors { min: 2, max: 3 }).unwrap(), Factors { min: 2, max: 3 });
        let unset = factors(0, 0, Factors { min: 0, max: 0 }).unwrap_err();
        assert_eq!(unset.message, "cluster.replication_factor_min and max must be set");
    }

    /// Goal: the first failing check of beh:B8 decides the text.
    #[test]
    fn checks_come_in_the_original_order() {
        let direct_and_expired = request(|request| {
            request.max_depth = 0;
            request.options.expire_at = Timestamp::from_seconds(NOW.seconds - 1);
        });
        let there = stored(&request(|_| {}), &[]);
        assert_eq!(message(decide(&direct_and_expired, Some(&there), None)), "pin.ExpireAt set before current time");
        let both_wrong = request(|request| {
            request.options.replication_factor_min = -2;
            request.options.expire_at = Timestamp::from_seconds(NOW.seconds - 1);
        });
        assert_eq!(message(decide(&both_wrong, None, None)), "cluster.replication_factor_min is wrong");
        let direct = request(|request| request.max_depth = 0);
        assert_eq!(
            message(decide(&direct, Some(&there), None)),
            "cannot repin a CID which is already pinned in recursive mode (new pin is pinned as direct). Unpin it first."
        );
        let shard = request(|request| {
            request.kind = PinType::Shard;
            request.max_depth = 1;
        });
        assert_eq!(
            message(decide(&shard, Some(&there), None)),
            "cannot repin CID with different tracking method, clear state with pin rm to proceed. \
             New: shard-pin. Was: pin"
        );
        let direct_there = stored(&direct, &[]);
        assert!(decide(&request(|_| {}), Some(&direct_there), None).is_ok());
        // The Unix epoch means never, as in the original.
        assert!(decide(&request(|request| request.options.expire_at = Timestamp::from_seconds(0)), None, None).is_ok());
    }

    /// Goal: types are checked for new entries too.
    #[test]
    fn types_are_checked() {
        for (kind, depth, text) in [
            (PinType::Shard, 0, "must pin shards go depth 1"),
            (PinType::ClusterDag, -1, "must pin roots directly"),
            (PinType::ClusterDag, 0, "clusterDAG pins should reference a Meta pin"),
            (PinType::Meta, -1, "metaPins should reference a ClusterDAG"),
            (PinType::Bad, -1, "unrecognized pin type"),
        ] {
            let asked = request(|request| {
                request.kind = kind;
                request.max_depth = depth;
            });
            assert_eq!(message(decide(&asked, None, None)), text);
        }
    }

    /// Goal: everywhere needs no allocation; factors do, with what holds it now and what the user prefers.
    #[test]
    fn allocation_is_asked_for_where_needed() {
        let everywhere = decide(&request(|request| request.allocations = vec![peer(1)]), None, None).unwrap();
        assert_eq!((everywhere.allocate, everywhere.pin.allocations.len()), (None, 0));

        let mut asked = with_factors(1, 2);
        asked.user_allocations = vec![peer(2)];
        let there = stored(&with_factors(1, 2), &[peer(1)]);
        let item = decide(&asked, Some(&there), None).unwrap().allocate.unwrap();
        assert_eq!(item.current, vec![peer(1).to_bytes()]);
        assert_eq!(item.priority, vec![peer(2).to_bytes()]);
        assert_eq!(item.exclude, vec![peer(3).to_bytes()], "a peer that is away is never new");
        assert_eq!(item.growth, monitor::item::Growth::ToMax as i32);
    }

    /// Goal: an add's destinations are used as given, but for a peer that went away meanwhile.
    #[test]
    fn preset_allocations_are_used_as_given() {
        let mut asked = with_factors(2, 3);
        asked.allocations = vec![peer(1)];
        let draft = decide(&asked, None, None).unwrap();
        assert_eq!((draft.pin.allocations, draft.allocate), (vec![peer(1).to_bytes()], None));
        asked.allocations = vec![peer(1), peer(3)];
        let draft = decide(&asked, None, None).unwrap();
        assert_eq!(draft.allocate.unwrap().current, vec![peer(1).to_bytes()]);
    }

    /// Goal: a repin that changes nothing is recognised, whatever the order of its allocations; any option that changes,
    /// also by being left out, is a change (beh:B8.11, B8.12).
    #[test]
    fn identical_repins_are_recognised() {
        let asked = request(|request| {
            request.options.replication_factor_min = 1;
            request.options.replication_factor_max = 2;
            request.options.name = "name".into();
            request.options.metadata = [("b".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())].into();
        });
        let there = stored(&asked, &[peer(1), peer(2)]);
        let mut draft = decide(&asked, Some(&there), None).unwrap();
        draft.place(vec![peer(2).to_bytes(), peer(1).to_bytes()]);
        assert!(draft.unchanged().is_some());
        draft.place(vec![peer(2).to_bytes()]);
        assert!(draft.unchanged().is_none(), "allocations are looked at again");
        let mut nameless = decide(&with_factors(1, 2), Some(&there), None).unwrap();
        nameless.place(there.allocations.clone());
        assert!(nameless.unchanged().is_none());
        assert_eq!(nameless.pin.options.unwrap().metadata, vec![], "what is left out is erased");
    }

    /// Goal: a holder that is replaced, or too many, keeps its copy until those that stay have it; so does every member
    /// when an item is not pinned everywhere any more.
    #[test]
    fn replaced_holders_are_leaving() {
        let there = stored(&with_factors(1, 2), &[peer(1), peer(3)]);
        let mut draft = decide(&with_factors(1, 2), Some(&there), None).unwrap();
        draft.place(vec![peer(1).to_bytes(), peer(2).to_bytes()]);
        assert_eq!(draft.pin.leaving, vec![peer(3).to_bytes()]);
        draft.place(vec![peer(1).to_bytes()]);
        assert_eq!(draft.pin.leaving, vec![peer(3).to_bytes()]);
        let there = stored(&with_factors(-1, -1), &[]);
        let mut draft = decide(&with_factors(1, 1), Some(&there), None).unwrap();
        draft.place(vec![peer(2).to_bytes()]);
        assert_eq!(draft.pin.leaving, vec![peer(1).to_bytes(), peer(3).to_bytes()]);
        let mut draft = decide(&with_factors(-1, -1), Some(&draft.pin), None).unwrap();
        draft.place(Vec::new());
        assert_eq!(draft.pin.leaving, Vec::<Vec<u8>>::new());
    }

    /// Goal: an update copies the source's options, and only a name and a future expiry are taken from the request
    /// (beh:B8.18); updating from what is not pinned is not found.
    #[test]
    fn update_copies_the_source() {
        let mut asked = request(|request| {
            request.options.pin_update = Some(cid(B));
            request.options.replication_factor_min = 9;
        });
        assert_eq!(decide(&asked, None, None).unwrap_err(), Error::not_in_pinset());
        let mut source = stored(&with_factors(1, 2), &[peer(1), peer(2)]);
        source.cid = cid(B).to_bytes();
        source.options.as_mut().unwrap().name = "old".into();
        let draft = decide(&asked, None, Some(&source)).unwrap();
        let options = draft.pin.options.clone().unwrap();
        assert_eq!((options.name.as_str(), options.expire_at_seconds, options.replication_factor_min), ("old", 0, 1));
        assert_eq!((options.pin_update, draft.pin.cid), (cid(B).to_bytes(), cid(A).to_bytes()));
        assert_eq!((draft.pin.allocations, draft.allocate), (source.allocations.clone(), None));
        asked.options.name = "new".into();
        asked.options.expire_at = Timestamp::from_seconds(NOW.seconds + 5);
        let options = decide(&asked, None, Some(&source)).unwrap().pin.options.unwrap();
        assert_eq!((options.name.as_str(), options.expire_at_seconds), ("new", NOW.seconds + 5));
        source.r#type = types::PinType::Shard as i32;
        assert_eq!(message(decide(&asked, None, Some(&source))), "this pin type cannot be updated");
    }

    /// Goal: an expiry in the past is refused in an update as in a pin (beh:B8.5), with the same words; none at all, and
    /// the epoch, which means never, leave the source's.
    #[test]
    fn update_refuses_a_past_expiry() {
        let mut source = stored(&with_factors(1, 2), &[peer(1)]);
        source.cid = cid(B).to_bytes();
        let later = NOW.seconds + 100;
        source.options.as_mut().unwrap().expire_at_seconds = later;
        let expiring = |at: Timestamp| {
            let asked = request(|request| {
                request.options.pin_update = Some(cid(B));
                request.options.expire_at = at;
            });
            decide(&asked, None, Some(&source))
        };
        for past in [NOW.seconds - 1, NOW.seconds, 1] {
            assert_eq!(message(expiring(Timestamp::from_seconds(past))), "pin.ExpireAt set before current time");
        }
        for unset in [Timestamp::default(), Timestamp::from_seconds(0)] {
            assert_eq!(expiring(unset).unwrap().pin.options.unwrap().expire_at_seconds, later);
        }
    }

    /// Goal: a depth that no IPFS node can pin to is refused by name, in a pin and in an update, rather than pinned
    /// recursively (beh:B13.3).
    #[test]
    fn depths_that_nobody_can_pin() {
        let mut source = stored(&with_factors(1, 2), &[peer(1)]);
        source.cid = cid(B).to_bytes();
        for depth in [1, 5, -2, i32::MAX, i32::MIN] {
            for from in [None, Some(cid(B))] {
                let asked = request(|request| {
                    request.max_depth = depth;
                    request.options.pin_update = from;
                });
                let error = decide(&asked, None, Some(&source)).unwrap_err();
                assert_eq!(
                    (error.code.http(), error.message),
                    (400, format!("max_depth: {depth} is neither -1 nor 0"))
                );
            }
        }
        for depth in [-1, 0] {
            assert_eq!(decide(&request(|request| request.max_depth = depth), None, None).unwrap().pin.max_depth, depth);
        }
    }

    /// Goal: beh:B8.6. An entry keeps its type, and becomes recursive but never direct again, by a pin as by an update;
    /// what a type must have is looked at for entries that are there too.
    #[test]
    fn b8_6_type_and_mode_of_an_entry() {
        let (recursive, direct) = (request(|_| {}), request(|request| request.max_depth = 0));
        let there = |asked: &PinRequest| stored(asked, &[]);
        assert_eq!(decide(&recursive, Some(&there(&direct)), None).unwrap().pin.max_depth, -1);
        assert_eq!(decide(&direct, Some(&there(&direct)), None).unwrap().pin.max_depth, 0);
        let narrower = "cannot repin a CID which is already pinned in recursive mode (new pin is pinned as direct). Unpin it first.";
        assert_eq!(message(decide(&direct, Some(&there(&recursive)), None)), narrower);

        let from_b = request(|request| request.options.pin_update = Some(cid(B)));
        let source = |asked: &PinRequest| types::Pin { cid: cid(B).to_bytes(), ..there(asked) };
        assert_eq!(message(decide(&from_b, Some(&there(&recursive)), Some(&source(&direct)))), narrower);
        assert_eq!(decide(&from_b, Some(&there(&direct)), Some(&source(&recursive))).unwrap().pin.max_depth, -1);

        for kind in [types::PinType::Meta, types::PinType::ClusterDag, types::PinType::Shard] {
            let other = types::Pin { r#type: kind as i32, ..there(&recursive) };
            for asked in [&recursive, &from_b] {
                let text = message(decide(asked, Some(&other), Some(&source(&recursive))));
                assert!(text.starts_with("cannot repin CID with different tracking method, clear state"), "{text}");
            }
        }
        let shard = request(|request| (request.kind, request.max_depth) = (PinType::Shard, 1));
        let deep = request(|request| (request.kind, request.max_depth) = (PinType::Shard, 3));
        let a_shard = there(&shard);
        assert!(decide(&shard, Some(&a_shard), None).is_ok());
        assert_eq!(message(decide(&deep, Some(&a_shard), None)), "must pin shards go depth 1");
    }

    /// Goal: beh:B8.13. What a user asks for is filled up to its maximum; what only has to be replaced, because a peer
    /// went away during an add or an update, is filled when it is below its minimum.
    #[test]
    fn b8_13_only_a_users_pin_grows_to_its_maximum() {
        let growth = |draft: Draft| draft.allocate.map(|item| (item.growth, item.current.len()));
        let there = stored(&with_factors(1, 3), &[peer(1), peer(2)]);
        let (to_max, if_below) = (monitor::item::Growth::ToMax as i32, monitor::item::Growth::IfBelowMin as i32);
        assert_eq!(growth(decide(&with_factors(1, 3), None, None).unwrap()), Some((to_max, 0)));
        assert_eq!(growth(decide(&with_factors(1, 3), Some(&there), None).unwrap()), Some((to_max, 2)));
        let added = PinRequest { allocations: vec![peer(1), peer(3)], ..with_factors(2, 3) };
        assert_eq!(growth(decide(&added, None, None).unwrap()), Some((if_below, 1)), "peer 3 is away");
        let enough = PinRequest { allocations: vec![peer(1), peer(3)], ..with_factors(1, 3) };
        assert_eq!(growth(decide(&enough, None, None).unwrap()), None);
        let from_b = request(|request| request.options.pin_update = Some(cid(B)));
        let source = types::Pin { cid: cid(B).to_bytes(), ..stored(&with_factors(2, 3), &[peer(1), peer(3)]) };
        assert_eq!(growth(decide(&from_b, None, Some(&source)).unwrap()), Some((if_below, 1)));
    }

    /// Goal: beh:B8.20. The hint of an update is not carried out when the entry is pinned again, whether what it came from
    /// is still there or not; the entry is allocated like any other, and loses the hint.
    #[test]
    fn b8_20_update_is_a_hint_only() {
        let from_b = request(|request| request.options.pin_update = Some(cid(B)));
        let source = types::Pin { cid: cid(B).to_bytes(), ..stored(&with_factors(1, 2), &[peer(1)]) };
        let updated = decide(&from_b, None, Some(&source)).unwrap().pin;
        assert_eq!(updated.options.as_ref().unwrap().pin_update, source.cid);
        let there = types::Pin { revision: 12, ..updated };
        for source in [Some(&source), None] {
            let draft = decide(&with_factors(1, 2), Some(&there), source).unwrap();
            assert!(draft.allocate.is_some() && draft.pin.options.unwrap().pin_update.is_empty());
        }
        let itself = request(|request| request.options.pin_update = Some(cid(A)));
        assert!(decide(&itself, Some(&there), None).unwrap().pin.options.unwrap().pin_update.is_empty());
    }

    /// Goal: unpin answers with the original's texts.
    #[test]
    fn unpin_as_in_the_original() {
        assert_eq!(unpin(None).unwrap_err(), Error::not_in_pinset());
        let mut pin = stored(&request(|_| {}), &[]);
        assert_eq!(unpin(Some(&pin)).unwrap(), vec![pin.cid.clone()]);
        for (kind, text) in [
            (types::PinType::Shard, "cannot unpin a shard directly. Unpin content root CID instead"),
            (types::PinType::ClusterDag, "cannot unpin a Cluster DAG directly. Unpin content root CID instead"),
            (types::PinType::Bad, "unrecognized pin type"),
        ] {
            pin.r#type = kind as i32;
            assert_eq!(unpin(Some(&pin)).unwrap_err(), Error::rejected(text));
        }
        pin.r#type = types::PinType::Meta as i32;
        pin.reference = cid(B).to_bytes();
        assert_eq!(unpin(Some(&pin)).unwrap().len(), 2);
    }

    #[test]
    fn too_few_in_the_original_words() {
        let told = monitor::TooFew { needed: 7, wanted: 7, candidates: 1, reasons: Vec::new(), full: 2 };
        assert_eq!(too_few(&told).code, Code::NotEnoughPeers);
        assert_eq!(
            too_few(&told).message,
            "not enough peers to allocate CID. Needed at least: 7. Wanted at most: 7. Available candidates: 1. \
             See logs for more info."
        );
    }

    /// Goal: attack:A10: disks that are full everywhere are told as that, with a status of its own.
    #[test]
    fn seed_d6_all_disks_are_full() {
        let told = monitor::TooFew { needed: 2, wanted: 3, candidates: 0, reasons: Vec::new(), full: 3 };
        assert_eq!(too_few(&told).code, Code::StorageFull);
        assert!(too_few(&told).message.ends_with("Peers without space: 3."));
    }
}
