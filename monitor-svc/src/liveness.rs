//! Who is alive, as this observer sees it (protocols.md 6). PURE: the instant is passed in.
//!
//! Two senses count: the ping of the peer's monitor and the Raft contact that this peer's consensus reports. A member is
//! *suspect* when both are silent for longer than they may be. A member that was never heard of is judged too, after the
//! same time, counted from when it was first known here (`beh:B14.11`). *Away* is not decided here: it is what the log
//! says. An observer that was itself paused doubts itself first: every silence is counted from its return.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pinfold_common::PeerId;
use pinfold_common::peerset::PeerState;

/// A member with a Raft message younger than this is alive.
pub const CONTACT_FRESH: Duration = Duration::from_secs(10);
/// The longest TTL believed of a ping, so that no peer can vouch for itself for a day.
pub const MAX_PING_TTL: Duration = Duration::from_secs(3600);
/// `observe` is called every second; a longer gap than this was a pause of the observer.
pub const PAUSE: Duration = Duration::from_secs(5);

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

#[derive(Clone, Copy, Debug)]
struct Ping {
    heard: Instant,
    ttl: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    known_since: Instant,
    ping: Option<Ping>,
    contact: Option<Instant>,
}

/// The two senses of one observer.
#[derive(Debug)]
pub struct Liveness {
    own: PeerId,
    /// How long a member may be silent that never sent a TTL.
    default_ttl: Duration,
    awake_since: Instant,
    observed: Instant,
    members: HashMap<PeerId, Member>,
}

impl Liveness {
    pub fn new(own: PeerId, default_ttl: Duration, now: Instant) -> Liveness {
        Liveness { own, default_ttl, awake_since: now, observed: now, members: HashMap::new() }
    }

    /// To be called at least once a second and before anything is judged; finds pauses of this process.
    pub fn observe(&mut self, now: Instant) {
        if now.saturating_duration_since(self.observed) > PAUSE {
            self.awake_since = now;
            // What was not heard during the pause tells nothing about the others.
            for member in self.members.values_mut() {
                member.ping = member.ping.filter(|ping| now < ping.heard + ping.ttl);
            }
        }
        self.observed = self.observed.max(now);
    }

    /// When this observer started, or came back from a pause.
    pub fn awake_since(&self) -> Instant {
        self.awake_since
    }

    /// The members as the peerset lists them now.
    pub fn set_members(&mut self, members: impl IntoIterator<Item = PeerId>, now: Instant) {
        let mut next = HashMap::new();
        for peer in members {
            let known = self.members.remove(&peer);
            next.insert(peer, known.unwrap_or(Member { known_since: now, ping: None, contact: None }));
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
        let Some(member) = self.members.get_mut(peer) else { return };
        if member.ping.is_none_or(|known| known.heard <= heard) {
            member.ping = Some(Ping { heard, ttl: ttl.min(MAX_PING_TTL) });
        }
    }

    /// A Raft message that was heard at `heard`.
    pub fn contact(&mut self, peer: &PeerId, heard: Instant) {
        let Some(member) = self.members.get_mut(peer) else { return };
        member.contact = Some(member.contact.map_or(heard, |known| known.max(heard)));
    }

    pub fn ping_is_fresh(&self, peer: &PeerId, now: Instant) -> bool {
        let ping = self.members.get(peer).and_then(|member| member.ping);
        ping.is_some_and(|ping| now < ping.heard + ping.ttl)
    }

    pub fn was_pinged(&self, peer: &PeerId) -> bool {
        self.members.get(peer).is_some_and(|member| member.ping.is_some())
    }

    /// `None` for a peer that is not a member.
    pub fn verdict(&self, peer: &PeerId, logged: PeerState, now: Instant) -> Option<Verdict> {
        let member = self.members.get(peer)?;
        let ping_until = member.ping.map(|ping| ping.heard + ping.ttl);
        let contact_until = member.contact.map(|heard| heard + CONTACT_FRESH);
        let heard_until = ping_until.max(contact_until);
        let grace_until = self.awake_since.max(member.known_since) + self.default_ttl;
        let doubt_from = heard_until.map_or(grace_until, |until| until.max(grace_until));
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
            is_alive: is_own || heard_until.is_some_and(|until| now < until),
            ping_age: match member.ping {
                Some(ping) => Some(now.saturating_duration_since(ping.heard)),
                None => is_own.then_some(Duration::ZERO),
            },
            contact_age: member.contact.map(|heard| now.saturating_duration_since(heard)),
            suspect_for: if is_doubted { now.saturating_duration_since(doubt_from) } else { Duration::ZERO },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    struct Scene {
        liveness: Liveness,
        now: Instant,
        other: PeerId,
    }

    fn scene() -> Scene {
        let (now, own, other) = (Instant::now(), PeerId::random(), PeerId::random());
        let mut liveness = Liveness::new(own, TTL, now);
        liveness.set_members([own, other], now);
        Scene { liveness, now, other }
    }

    impl Scene {
        /// Time passes while the observer watches.
        fn pass(&mut self, seconds: u64) {
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                self.liveness.observe(self.now);
            }
        }

        fn verdict(&self) -> Verdict {
            self.liveness.verdict(&self.other, PeerState::Healthy, self.now).unwrap()
        }
    }

    /// Goal: a peer is doubted only when both senses are silent, and for how long is counted from the later one.
    #[test]
    fn two_senses() {
        let mut scene = scene();
        scene.liveness.ping(&scene.other, scene.now, TTL);
        scene.pass(29);
        assert_eq!(scene.verdict().state, State::Healthy);
        scene.liveness.contact(&scene.other, scene.now);
        scene.pass(9);
        // The ping has expired, its monitor crashed perhaps; Raft still hears it.
        assert_eq!(scene.verdict().state, State::Healthy);
        assert!(scene.verdict().is_alive);
        scene.pass(4);
        let verdict = scene.verdict();
        assert_eq!((verdict.state, verdict.is_alive), (State::Suspect, false));
        assert_eq!(verdict.suspect_for, Duration::from_secs(3));
        assert_eq!(verdict.ping_age, Some(Duration::from_secs(42)));
        scene.liveness.ping(&scene.other, scene.now, TTL);
        assert_eq!(scene.verdict().state, State::Healthy);
        assert_eq!(scene.verdict().suspect_for, Duration::ZERO);
    }

    /// Goal: a member that never sent anything is found as well, after the grace (`beh:B14.11`, `seed:G7`).
    #[test]
    fn never_heard_of() {
        let mut scene = scene();
        assert_eq!(scene.verdict().state, State::Healthy);
        assert!(!scene.verdict().is_alive);
        scene.pass(30);
        assert_eq!(scene.verdict().state, State::Suspect);
        // One that joins later has its grace from then on.
        let (late, own) = (PeerId::random(), scene.liveness.own);
        scene.liveness.set_members([own, scene.other, late], scene.now);
        scene.pass(29);
        assert_eq!(scene.liveness.verdict(&late, PeerState::Healthy, scene.now).unwrap().state, State::Healthy);
        scene.pass(1);
        assert_eq!(scene.liveness.verdict(&late, PeerState::Healthy, scene.now).unwrap().state, State::Suspect);
    }

    /// Goal: an observer that was stopped blames itself first.
    #[test]
    fn own_pause() {
        let mut scene = scene();
        scene.liveness.ping(&scene.other, scene.now, TTL);
        scene.pass(10);
        scene.now += Duration::from_secs(600);
        scene.liveness.observe(scene.now);
        assert_eq!(scene.verdict().state, State::Healthy);
        scene.pass(29);
        assert_eq!(scene.verdict().state, State::Healthy);
        scene.pass(1);
        assert_eq!(scene.verdict().state, State::Suspect);
        assert_eq!(scene.verdict().suspect_for, Duration::ZERO);
    }

    /// Goal: away is what the log says, this peer never doubts itself, and strangers have no verdict.
    #[test]
    fn away_own_and_strangers() {
        let mut scene = scene();
        scene.liveness.ping(&scene.other, scene.now, TTL);
        let logged = |state| scene.liveness.verdict(&scene.other, state, scene.now).unwrap().state;
        assert_eq!(logged(PeerState::Away), State::Away);
        assert_eq!(logged(PeerState::Draining), State::Healthy);
        assert_eq!(scene.liveness.verdict(&PeerId::random(), PeerState::Healthy, scene.now), None);
        scene.pass(600);
        let own = scene.liveness.own;
        assert_eq!(scene.liveness.verdict(&own, PeerState::Healthy, scene.now).unwrap().state, State::Healthy);
    }

    /// Goal: no peer can vouch for itself for years, and an older report does not take the place of a newer one.
    #[test]
    fn ttl_is_capped_and_reports_are_ordered() {
        let mut scene = scene();
        scene.liveness.ping(&scene.other, scene.now, Duration::from_secs(10 * 365 * 86_400));
        scene.liveness.ping(&scene.other, scene.now - Duration::from_secs(60), TTL);
        assert!(scene.liveness.ping_is_fresh(&scene.other, scene.now + MAX_PING_TTL - Duration::from_secs(1)));
        assert!(!scene.liveness.ping_is_fresh(&scene.other, scene.now + MAX_PING_TTL));
    }
}
