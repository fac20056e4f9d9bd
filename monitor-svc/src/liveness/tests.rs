//! Who is doubted and who is not: the senses one by one, then an observer in trouble.

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
fn seed_g7_never_heard_of() {
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

/// Goal: fault:F9: a change of leader counts every silence anew, and says nothing against what the log has decided.
#[test]
fn a_change_of_leader() {
    let mut scene = scene();
    scene.liveness.ping(&scene.other, scene.now, TTL);
    scene.pass(40);
    assert_eq!(scene.verdict().suspect_for, Duration::from_secs(10));
    scene.liveness.judge_anew(scene.now);
    assert_eq!((scene.verdict().state, scene.verdict().is_alive), (State::Healthy, false));
    let logged = scene.liveness.verdict(&scene.other, PeerState::Away, scene.now).unwrap();
    assert_eq!(logged.state, State::Away);
    scene.pass(29);
    assert_eq!(scene.verdict().state, State::Healthy);
    scene.pass(1);
    assert_eq!(scene.verdict().state, State::Suspect);
    // That its pings are missing is a fact meanwhile.
    assert!(scene.liveness.ping_is_missed(&scene.other, scene.now));
}

/// Goal: fault:F13: one return is a restart; from the second on a member has to stay, for twice as long each time and
/// for an hour at most; an hour of peace takes one return back.
#[test]
fn members_that_come_and_go() {
    let mut scene = scene();
    let mut stays = Vec::new();
    for _ in 0..9 {
        scene.liveness.ping(&scene.other, scene.now, TTL);
        scene.pass(1);
        stays.push(scene.liveness.unsteady(&scene.other, scene.now).map(|(_, left)| left.as_secs().div_ceil(60)));
        scene.pass(60);
    }
    let minutes = [None, None, Some(1), Some(2), Some(4), Some(8), Some(16), Some(32), Some(60)];
    assert_eq!(stays, minutes);
    for _ in 0..8 * 3600 / 20 {
        scene.liveness.ping(&scene.other, scene.now, TTL);
        scene.pass(20);
    }
    assert_eq!(scene.liveness.unsteady(&scene.other, scene.now), None);
    // An observer that begins anew has seen nobody return.
    scene.pass(40);
    scene.liveness.judge_anew(scene.now);
    scene.pass(40);
    assert_eq!(scene.liveness.unsteady(&scene.other, scene.now), None);
}

/// The same numbers in every run, so that a failure can be repeated (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }
}

/// A member whose pings leave every `interval` while `is_up` says so, and an observer that takes what arrived only when
/// `next_run` lets it run. The longest doubt that anybody would have been told of.
fn longest_doubt(
    ttl: Duration,
    lasting: Duration,
    is_up: impl Fn(Duration) -> bool,
    mut next_run: impl FnMut() -> Duration,
) -> Duration {
    let (start, own, other) = (Instant::now(), PeerId::random(), PeerId::random());
    let mut liveness = Liveness::new(own, ttl, start);
    liveness.set_members([own, other], start);
    let interval = ttl / 2;
    let (mut sent, mut at, mut longest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    while at < lasting {
        at += next_run();
        liveness.observe(start + at);
        while sent <= at {
            if is_up(sent) {
                liveness.ping(&other, start + sent, ttl);
            }
            sent += interval;
        }
        let verdict = liveness.verdict(&other, PeerState::Healthy, start + at).unwrap();
        longest = longest.max(verdict.suspect_for);
    }
    longest
}

const GRACE: Duration = Duration::from_secs(5);

/// Goal: seed:H9.7, the observer's half: a peer that is up and down for 20 s each is never in doubt for longer than it was
/// really away, which is far below the grace that is configured by default.
#[test]
fn flapping_every_20_seconds() {
    let lasting = Duration::from_secs(600);
    let is_up = |at: Duration| (at.as_secs() / 20).is_multiple_of(2);
    for ttl in [TTL, Duration::from_secs(2)] {
        let doubt = longest_doubt(ttl, lasting, is_up, || OBSERVE_INTERVAL);
        assert!(doubt > Duration::from_secs(10) && doubt <= Duration::from_secs(20), "{doubt:?}");
    }
}

/// Goal: an observer that gets 5 % of a processor, in runs of 50 ms with pauses of any length between them, takes nobody
/// for dead that goes on sending, at a grace of 5 s; and one that is not starved finds a death.
#[test]
fn a_starved_observer() {
    let lasting = Duration::from_secs(3600);
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let starved = || Duration::from_millis(50 + dice.below(1900) + if dice.below(50) == 0 { 30_000 } else { 0 });
        let doubt = longest_doubt(Duration::from_secs(2), lasting, |_| true, starved);
        assert!(doubt < GRACE, "seed {seed}: {doubt:?}");
    }
    let dies = |at: Duration| at < Duration::from_secs(1800);
    assert!(longest_doubt(Duration::from_secs(2), lasting, dies, || OBSERVE_INTERVAL) > GRACE);
}
