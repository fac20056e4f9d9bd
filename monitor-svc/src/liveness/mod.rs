//! Who is alive, as this observer sees it (protocols.md 6). PURE: the instant is passed in.
//!
//! Two senses count: the ping of the peer's monitor and the Raft contact that this peer's consensus reports. A member is
//! *suspect* when both are silent for longer than they may be. A member that was never heard of is judged too, after the
//! same time, counted from when it was first known here (`beh:B14.11`, `seed:G7`). *Away* is not decided here: it is what
//! the log says, and nothing here undoes it.
//!
//! An observer doubts itself first (`fault:F9`): after its start, after a pause of its own, and after a change of leader
//! every silence is counted anew. One that comes and goes (`fault:F13`) has to stay for longer each time before it is
//! treated like the others again.

mod member;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pinfold_common::PeerId;
use pinfold_common::peerset::PeerState;

use member::Member;

/// A member with a Raft message younger than this is alive.
pub const CONTACT_FRESH: Duration = Duration::from_secs(10);
/// The longest TTL believed of a ping, so that no peer can vouch for itself for a day.
pub const MAX_PING_TTL: Duration = Duration::from_secs(3600);
/// A gap between two calls of `observe` that is longer than this was a pause of the observer.
pub const PAUSE: Duration = Duration::from_secs(1);
/// How often `observe` is to be called at least.
pub const OBSERVE_INTERVAL: Duration = Duration::from_millis(250);

/// What is said of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Healthy,
    Suspect,
    Away,
}

/// A member, judged at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub state: State,
    /// Heard of within the time that either sense allows. A member in its first grace is healthy and not yet alive.
    pub is_alive: bool,
    pub ping_age: Option<Duration>,
    pub contact_age: Option<Duration>,
    /// Since this observer began to doubt; zero while it does not.
    pub suspect_for: Duration,
}

/// The two senses of one observer.
#[derive(Debug)]
pub struct Liveness {
    own: PeerId,
    /// How long a member may be silent that never sent a TTL.
    default_ttl: Duration,
    awake_since: Instant,
    /// Silences are counted from here on, or from later.
    judging_since: Instant,
    observed: Instant,
    members: HashMap<PeerId, Member>,
}

impl Liveness {
    pub fn new(own: PeerId, default_ttl: Duration, now: Instant) -> Liveness {
        Liveness { own, default_ttl, awake_since: now, judging_since: now, observed: now, members: HashMap::new() }
    }

    /// To be called every `OBSERVE_INTERVAL` and before anything is judged; finds pauses of this process.
    pub fn observe(&mut self, now: Instant) {
        if now.saturating_duration_since(self.observed) > PAUSE {
            self.awake_since = now;
            self.judging_since = now;
        }
        self.observed = self.observed.max(now);
        let (judging_since, default_ttl) = (self.judging_since, self.default_ttl);
        for member in self.members.values_mut() {
            member.count_returns(now, now >= member.doubt_from(judging_since, default_ttl));
        }
    }

    /// The leader changed: whoever decides now has to see for itself, for the whole time.
    pub fn judge_anew(&mut self, now: Instant) {
        self.judging_since = self.judging_since.max(now);
    }

    /// When this observer started, or came back from a pause.
    pub fn awake_since(&self) -> Instant {
        self.awake_since
    }

    /// The members as the peerset lists them now.
    pub fn set_members(&mut self, members: impl IntoIterator<Item = PeerId>, now: Instant) {
        // Raft speaks many times a second: where pings come often, its silence is noticed as soon as theirs.
        let contact_fresh = CONTACT_FRESH.min(self.default_ttl);
        let mut next = HashMap::new();
        for peer in members {
            let known = self.members.remove(&peer);
            next.insert(peer, known.unwrap_or_else(|| Member::new(now, contact_fresh)));
        }
        self.members = next;
    }

    pub fn is_member(&self, peer: &PeerId) -> bool {
        self.members.contains_key(peer)
    }

    /// When the member was first seen in the peerset by this observer.
    pub fn known_since(&self, peer: &PeerId) -> Option<Instant> {
        self.members.get(peer).map(|member| member.known_since)
    }

    /// A ping that was heard at `heard`, by this observer or by one it asked.
    pub fn ping(&mut self, peer: &PeerId, heard: Instant, ttl: Duration) {
        if let Some(member) = self.members.get_mut(peer) {
            member.ping(heard, ttl.min(MAX_PING_TTL));
        }
    }

    /// A Raft message that was heard at `heard`.
    pub fn contact(&mut self, peer: &PeerId, heard: Instant) {
        if let Some(member) = self.members.get_mut(peer) {
            member.contact(heard);
        }
    }

    pub fn ping_is_fresh(&self, peer: &PeerId, now: Instant) -> bool {
        self.members.get(peer).and_then(Member::ping_until).is_some_and(|until| now < until)
    }

    pub fn was_pinged(&self, peer: &PeerId) -> bool {
        self.members.get(peer).is_some_and(|member| member.ping_until().is_some())
    }

    /// Whether pings are missing for longer than they may, by an observer that was awake for as long.
    pub fn ping_is_missed(&self, peer: &PeerId, now: Instant) -> bool {
        self.members.get(peer).is_some_and(|member| {
            let grace_until = self.awake_since.max(member.known_since) + self.default_ttl;
            now >= member.ping_until().map_or(grace_until, |until| until.max(grace_until))
        })
    }

    /// How often the member came back of late, and for how much longer it is not relied on; `None` when it is.
    pub fn unsteady(&self, peer: &PeerId, now: Instant) -> Option<(u32, Duration)> {
        // This peer is here whenever it looks.
        if *peer == self.own { None } else { self.members.get(peer)?.unsteady(now) }
    }

    /// `None` for a peer that is not a member.
    pub fn verdict(&self, peer: &PeerId, logged: PeerState, now: Instant) -> Option<Verdict> {
        let member = self.members.get(peer)?;
        let doubt_from = member.doubt_from(self.judging_since, self.default_ttl);
        // No peer doubts itself.
        let is_own = *peer == self.own;
        let is_doubted = !is_own && now >= doubt_from;
        let state = match logged {
            PeerState::Away | PeerState::Removed => State::Away,
            PeerState::Healthy | PeerState::Draining if is_doubted => State::Suspect,
            PeerState::Healthy | PeerState::Draining => State::Healthy,
        };
        Some(Verdict {
            state,
            is_alive: is_own || member.heard_until().is_some_and(|until| now < until),
            ping_age: member.ping_age(now).or_else(|| is_own.then_some(Duration::ZERO)),
            contact_age: member.contact_age(now),
            suspect_for: if is_doubted { now.saturating_duration_since(doubt_from) } else { Duration::ZERO },
        })
    }
}
