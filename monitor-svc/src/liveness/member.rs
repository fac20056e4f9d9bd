//! What was heard of one member, and how often it came back. PURE.

use std::time::{Duration, Instant};

/// One return is a restart; from the second on a member is unsteady.
const RETURNS_ALLOWED: u32 = 1;
/// How long a member has to stay after its second return; doubled by each further one, up to the last.
const FIRST_STAY: Duration = Duration::from_secs(60);
const LAST_STAY: Duration = Duration::from_secs(3600);
/// After so much time without another return one is forgotten.
const FORGET_RETURN: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug)]
struct Ping {
    heard: Instant,
    ttl: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub known_since: Instant,
    /// How long a Raft message counts.
    contact_fresh: Duration,
    ping: Option<Ping>,
    contact: Option<Instant>,
    was_doubted: bool,
    returns: u32,
    returned: Instant,
}

impl Member {
    pub fn new(now: Instant, contact_fresh: Duration) -> Member {
        Member {
            known_since: now,
            contact_fresh,
            ping: None,
            contact: None,
            was_doubted: false,
            returns: 0,
            returned: now,
        }
    }

    /// An older report does not take the place of a newer one.
    pub fn ping(&mut self, heard: Instant, ttl: Duration) {
        if self.ping.is_none_or(|known| known.heard <= heard) {
            self.ping = Some(Ping { heard, ttl });
        }
    }

    pub fn contact(&mut self, heard: Instant) {
        self.contact = Some(self.contact.map_or(heard, |known| known.max(heard)));
    }

    pub fn ping_until(&self) -> Option<Instant> {
        self.ping.map(|ping| ping.heard + ping.ttl)
    }

    pub fn ping_age(&self, now: Instant) -> Option<Duration> {
        self.ping.map(|ping| now.saturating_duration_since(ping.heard))
    }

    pub fn contact_age(&self, now: Instant) -> Option<Duration> {
        self.contact.map(|heard| now.saturating_duration_since(heard))
    }

    /// Until when it is alive by either sense.
    pub fn heard_until(&self) -> Option<Instant> {
        self.ping_until().max(self.contact.map(|heard| heard + self.contact_fresh))
    }

    /// From when on it is suspect, by an observer that judges since then.
    pub fn doubt_from(&self, judging_since: Instant, default_ttl: Duration) -> Instant {
        let grace_until = judging_since.max(self.known_since) + default_ttl;
        self.heard_until().map_or(grace_until, |until| until.max(grace_until))
    }

    /// A return is a word from a member that was suspect; that an observer begins to judge anew is none.
    pub fn count_returns(&mut self, now: Instant, is_doubted: bool) {
        let is_heard = self.heard_until().is_some_and(|until| now < until);
        match (self.was_doubted, is_doubted, is_heard) {
            (false, true, _) => self.was_doubted = true,
            (true, false, true) => {
                self.was_doubted = false;
                self.returns = self.returns.saturating_add(1);
                self.returned = now;
            }
            (false, false, true) if self.returns > 0 && now >= self.returned + FORGET_RETURN => {
                self.returns -= 1;
                self.returned = now;
            }
            (true, _, _) | (false, false, _) => {}
        }
    }

    /// How often it returned, and how much longer it has to stay.
    pub fn unsteady(&self, now: Instant) -> Option<(u32, Duration)> {
        let beyond = self.returns.checked_sub(RETURNS_ALLOWED + 1)?;
        let stay = FIRST_STAY.saturating_mul(1_u32.checked_shl(beyond).unwrap_or(u32::MAX)).min(LAST_STAY);
        let left = (self.returned + stay).saturating_duration_since(now);
        (left > Duration::ZERO).then_some((self.returns, left))
    }
}
