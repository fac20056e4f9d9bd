//! What the simulated peers have in common: names, the log's first entry, and what one monitor says of another peer.

use std::time::Instant;

use monitor_svc::liveness::{Liveness, State as Seen};
use pinfold_common::PeerId;
use pinfold_common::peerset::PeerState;
use pinfold_proto::storage::command::Command as Kind;
use pinfold_proto::{storage, types};

use consensus_svc::repin::plan::judge::Word;

/// The same for the same number; the key need not be on a curve.
pub fn peer_id(number: u64) -> PeerId {
    let mut bytes = vec![0, 36, 8, 1, 18, 32];
    bytes.extend([number as u8; 32]);
    PeerId::from_bytes(&bytes).expect("a peer ID")
}

/// A cluster of these peers, all of them voters, whose nodes are 1, 2, 3 …
pub fn found(peers: &[PeerId]) -> Kind {
    let founder = |(node_id, peer): (u64, &PeerId)| types::Peer {
        peer_id: peer.to_bytes(),
        node_id,
        voter: true,
        ..types::Peer::default()
    };
    Kind::Found(storage::Found { cluster_id: b"c".to_vec(), founders: (1..).zip(peers).map(founder).collect() })
}

/// `None`: the monitor knows no such member.
pub fn word(liveness: &Liveness, peer: &PeerId, logged: types::peer::State, now: Instant) -> Option<Word> {
    let logged = match logged {
        types::peer::State::Away => PeerState::Away,
        types::peer::State::Healthy => PeerState::Healthy,
        types::peer::State::Draining => PeerState::Draining,
        types::peer::State::Removed => PeerState::Removed,
    };
    let verdict = liveness.verdict(peer, logged, now)?;
    Some(Word { is_alive: verdict.is_alive, is_suspect: verdict.state == Seen::Suspect, ..Word::default() })
}
