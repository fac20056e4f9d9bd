use super::*;

const OWN: &[u8] = b"own";

fn pin(revision: u64, allocations: &[&[u8]], leaving: &[&[u8]]) -> types::Pin {
    types::Pin {
        cid: b"cid".to_vec(),
        r#type: types::PinType::Data as i32,
        max_depth: -1,
        options: Some(types::PinOptions { replication_factor_min: 1, replication_factor_max: 2, ..Default::default() }),
        allocations: allocations.iter().map(|peer| peer.to_vec()).collect(),
        leaving: leaving.iter().map(|peer| peer.to_vec()).collect(),
        timestamp: Some(types::Time { seconds: 1_000, nanos: 0 }),
        revision,
        ..Default::default()
    }
}

fn here(revision: u64) -> Order {
    Order::of(&pin(revision, &[OWN], &[]), OWN)
}

fn elsewhere(revision: u64) -> Order {
    Order::of(&pin(revision, &[b"other"], &[]), OWN)
}

fn leaving(revision: u64) -> Order {
    Order::of(&pin(revision, &[b"other"], &[OWN]), OWN)
}

fn rules() -> Rules {
    Rules {
        now_ms: 2_000_000,
        priority_max_age_ms: 10_000_000,
        priority_max_retries: 2,
        first_backoff_ms: 1_000,
        last_backoff_ms: 60_000,
        max_attempts: 0,
        queue_has_room: true,
        comparing: false,
    }
}

fn queued() -> Item {
    put(None, here(1), &rules()).unwrap()
}

fn claimed() -> Item {
    after(&queued(), Outcome::Claim(Ownership::Claimed), &rules(), 0.5)
}

fn pinned() -> Item {
    after(&claimed(), Outcome::Pinned, &rules(), 0.5)
}

/// Goal: the pinset's entry is read as beh:B7.5, B7.6 and protocols.md 7 say.
#[test]
fn classes() {
    let mut everywhere = pin(1, &[], &[]);
    everywhere.options =
        Some(types::PinOptions { replication_factor_min: -1, replication_factor_max: -1, ..Default::default() });
    let mut meta = everywhere.clone();
    meta.r#type = types::PinType::Meta as i32;
    for (pin, class) in [
        (pin(1, &[OWN], &[]), Class::Here),
        (pin(1, &[b"other", OWN], &[]), Class::Here),
        (pin(1, &[b"other"], &[OWN]), Class::Leaving),
        (pin(1, &[b"other"], &[]), Class::Remote),
        (everywhere, Class::Here),
        (meta, Class::Meta),
    ] {
        assert_eq!(Order::of(&pin, OWN).class, class);
    }
}

/// Goal: the ordinary life: queued, claimed, pinned, unpinned, gone.
#[test]
fn ordinary_life() {
    let item = queued();
    assert_eq!((item.status, item.todo, item.ownership), (TrackerStatus::PinQueued, Todo::Pin, Ownership::Unknown));
    assert!(item.priority && item.next_try_ms == Some(2_000_000));
    let item = pinned();
    assert_eq!((item.status, item.todo, item.ownership), (TrackerStatus::Pinned, Todo::Nothing, Ownership::Claimed));
    assert_eq!(item.next_try_ms, None);
    let item = removed(&item, 9, &rules());
    assert_eq!((item.status, item.todo, item.revision), (TrackerStatus::UnpinQueued, Todo::Unpin, 9));
    assert!(!is_over(&item));
    assert!(is_over(&after(&item, Outcome::Unpinned, &rules(), 0.5)));
}

/// Goal: only what we claimed is ever owed an unpin (protocols.md 8).
#[test]
fn only_claimed_is_unpinned() {
    for ownership in [Ownership::Unknown, Ownership::Foreign] {
        let item = Item { ownership, ..pinned() };
        assert!(is_over(&removed(&item, 9, &rules())), "{ownership:?}");
        let item = put(Some(&item), elsewhere(9), &rules()).unwrap();
        assert_eq!((item.status, item.todo), (TrackerStatus::Remote, Todo::Nothing), "{ownership:?}");
    }
    let adopted = removed(&Item { ownership: Ownership::Adopted, ..pinned() }, 9, &rules());
    assert_eq!((adopted.hold, adopted.next_try_ms), (Hold::Adopted, None));
    assert!(adopted.error.contains("approval"), "{}", adopted.error);
    assert!(recover(&adopted, &rules()).is_none());
}

/// Goal: an item that moves elsewhere shows `remote` from the first moment, and its claimed pin goes (beh:B11.9, B11.3).
#[test]
fn moved_elsewhere() {
    let item = put(Some(&pinned()), elsewhere(9), &rules()).unwrap();
    assert_eq!((item.status, item.todo), (TrackerStatus::Remote, Todo::Unpin));
    let failed = after(&item, Outcome::Failed { reason: Reason::None, error: "no".into() }, &rules(), 0.5);
    assert_eq!((failed.status, failed.error.as_str()), (TrackerStatus::Remote, "no"));
    let done = after(&item, Outcome::Unpinned, &rules(), 0.5);
    assert_eq!((done.status, done.todo, done.ownership), (TrackerStatus::Remote, Todo::Nothing, Ownership::Unknown));
    assert!(!is_over(&done));
}

/// Goal: a leaving peer keeps what it has, fetches nothing, and lets go when it is told to (protocols.md 7).
#[test]
fn leaving_keeps_its_copy() {
    let kept = put(Some(&pinned()), leaving(9), &rules()).unwrap();
    assert_eq!((kept.status, kept.todo), (TrackerStatus::Pinned, Todo::Nothing));
    let not_fetched = put(Some(&claimed()), leaving(9), &rules()).unwrap();
    assert_eq!((not_fetched.status, not_fetched.todo), (TrackerStatus::Remote, Todo::Nothing));
    assert_eq!(not_fetched.ownership, Ownership::Claimed);
    let let_go = put(Some(&not_fetched), elsewhere(10), &rules()).unwrap();
    assert_eq!(let_go.todo, Todo::Unpin);
    let back = put(Some(&kept), here(10), &rules()).unwrap();
    assert_eq!((back.status, back.todo), (TrackerStatus::Pinned, Todo::Nothing));
    assert_eq!(put(None, leaving(9), &rules()).unwrap().todo, Todo::Nothing);
}

/// Goal: repeating an order changes nothing; a newer one for a pinned item costs no work; another mode does.
#[test]
fn repeated_orders() {
    let item = pinned();
    assert_eq!(put(Some(&item), here(1), &rules()), None);
    let newer = put(Some(&item), here(2), &rules()).unwrap();
    assert_eq!((newer.revision, newer.todo, newer.status), (2, Todo::Nothing, TrackerStatus::Pinned));
    let mut direct = pin(3, &[OWN], &[]);
    direct.max_depth = 0;
    let direct = put(Some(&item), Order::of(&direct, OWN), &rules()).unwrap();
    assert_eq!((direct.todo, direct.ownership), (Todo::Pin, Ownership::Claimed));
}

/// Goal: pin, unpin, pin in a row ends with a pin that is still ours.
#[test]
fn pin_again_before_the_unpin() {
    let item = removed(&pinned(), 5, &rules());
    let item = put(Some(&item), here(6), &rules()).unwrap();
    assert_eq!((item.todo, item.status, item.ownership), (Todo::Pin, TrackerStatus::PinQueued, Ownership::Claimed));
}

/// Goal: failures count, back off within the cap, lose their priority, and are lifted by recover and by a pin.
#[test]
fn failures_back_off() {
    let mut item = claimed();
    let mut waits = Vec::new();
    for _ in 0..10 {
        item = after(&item, Outcome::Failed { reason: Reason::Stalled, error: "stalled".into() }, &rules(), 0.5);
        waits.push(item.next_try_ms.unwrap() - rules().now_ms);
    }
    assert_eq!(&waits[..4], &[1_000, 2_000, 4_000, 8_000]);
    assert!(waits.iter().all(|wait| *wait <= 60_000));
    assert_eq!((item.status, item.attempts, item.priority), (TrackerStatus::PinError, 10, false));
    assert_eq!(item.reason, Reason::Stalled);
    let again = recover(&item, &rules()).unwrap();
    assert_eq!((again.status, again.attempts, again.next_try_ms), (TrackerStatus::PinQueued, 10, Some(2_000_000)));
    let again = put(Some(&item), here(2), &rules()).unwrap();
    assert_eq!((again.status, again.attempts), (TrackerStatus::PinQueued, 10));
    for jitter in [0.0, 1.0] {
        let wait = rules().backoff_ms(1, Reason::Stalled, jitter);
        assert!((750..=1_250).contains(&wait), "{wait}");
    }
}

fn failed(item: &Item, reason: Reason, rules: &Rules) -> Item {
    after(item, Outcome::Failed { reason, error: "no".into() }, rules, 0.5)
}

/// Goal: one minute, doubled up to six hours, and given up at the limit: the status says so, nothing is planned, and
/// recover and a new pin begin anew (protocols.md 11).
#[test]
fn final_after_the_limit() {
    let rules = Rules { first_backoff_ms: 60_000, last_backoff_ms: 6 * 3_600_000, max_attempts: 12, ..rules() };
    let mut item = claimed();
    let mut minutes = Vec::new();
    for _ in 1..12 {
        item = failed(&item, Reason::NoProviders, &rules);
        minutes.push((item.next_try_ms.unwrap() - rules.now_ms) / 60_000);
    }
    assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360]);
    let last = failed(&item, Reason::NoProviders, &rules);
    assert_eq!((last.status, last.next_try_ms, last.attempts), (TrackerStatus::PinError, None, 12));
    assert!(last.error.contains("given up after 12 attempts"), "{}", last.error);
    assert!(is_final(&last) && !is_final(&item));
    for again in [recover(&last, &rules).unwrap(), put(Some(&last), here(2), &rules).unwrap()] {
        assert_eq!((again.status, again.attempts), (TrackerStatus::PinQueued, 0));
        assert_eq!(again.next_try_ms, Some(rules.now_ms));
    }
}

/// Goal: what fails because of the node is never given up, and never waits for hours once the node is well again.
#[test]
fn trouble_of_the_node_is_not_final() {
    let rules = Rules { first_backoff_ms: 60_000, last_backoff_ms: 6 * 3_600_000, max_attempts: 3, ..rules() };
    let mut item = claimed();
    for _ in 0..20 {
        item = failed(&item, Reason::DiskFull, &rules);
        assert!(item.next_try_ms.unwrap() - rules.now_ms <= MAX_NODE_BACKOFF_MS);
    }
    let mut unpin = removed(&pinned(), 5, &rules);
    for _ in 0..20 {
        unpin = failed(&unpin, Reason::None, &rules);
        assert!(unpin.next_try_ms.is_some(), "unpins are tried for ever");
    }
}

/// Goal: a pin is new as long as it is young and has not failed too often (beh:B11.6).
#[test]
fn seed_c14_priority_ages() {
    let item = claimed();
    assert!(item.priority);
    assert!(failed(&item, Reason::Stalled, &rules()).priority, "one failure of two that are forgiven");
    let mut often = item.clone();
    for _ in 0..3 {
        often = failed(&often, Reason::Stalled, &rules());
    }
    assert!(!often.priority);
    let old = Rules { now_ms: rules().now_ms + rules().priority_max_age_ms, ..rules() };
    assert!(!failed(&item, Reason::Stalled, &old).priority);
    assert!(!put(None, here(1), &old).unwrap().priority);
}

/// Goal: a node that is away is not the item's fault; what the node refuses is final (protocols.md 11).
#[test]
fn node_down_and_refused() {
    let waiting = after(&claimed(), Outcome::NodeDown("connection refused".into()), &rules(), 0.5);
    assert_eq!((waiting.status, waiting.reason, waiting.attempts), (TrackerStatus::PinQueued, Reason::NodeDown, 0));
    assert!(waiting.next_try_ms.is_some());
    let refused = after(&claimed(), Outcome::Refused("unknown codec".into()), &rules(), 0.5);
    assert_eq!((refused.status, refused.reason), (TrackerStatus::PinError, Reason::Refused));
    assert_eq!(refused.next_try_ms, None);
    assert!(recover(&refused, &rules()).unwrap().next_try_ms.is_some());
}

/// Goal: a lost pin is shown as such and planned again; somebody else's lost pin becomes ours to make.
#[test]
fn lost_pins() {
    let lost = after(&pinned(), Outcome::Lost, &rules(), 0.5);
    assert_eq!((lost.status, lost.todo), (TrackerStatus::UnexpectedlyUnpinned, Todo::Pin));
    assert_eq!((lost.ownership, lost.next_try_ms), (Ownership::Claimed, Some(2_000_000)));
    let foreign = Item { ownership: Ownership::Foreign, ..pinned() };
    assert_eq!(after(&foreign, Outcome::Lost, &rules(), 0.5).ownership, Ownership::Unknown);
}

/// Goal: a full queue is an error at once, with a reason and a plan (beh:B11.7).
#[test]
fn seed_c11_full_queue() {
    let full = Rules { queue_has_room: false, ..rules() };
    let item = put(None, here(1), &full).unwrap();
    assert_eq!((item.status, item.reason), (TrackerStatus::PinError, Reason::QueueFull));
    assert!(item.error.contains("max_pin_queue_size") && item.next_try_ms.is_some());
}

/// Goal: unpins of a comparison wait for its end, and a guarded one stays held until the pinset has the item again.
#[test]
fn held_unpins() {
    let comparing = Rules { comparing: true, ..rules() };
    let item = removed(&pinned(), 5, &comparing);
    assert_eq!((item.hold, item.next_try_ms), (Hold::Comparing, None));
    let guarded = Item { hold: Hold::Guarded, ..item };
    let still = removed(&guarded, 6, &rules());
    assert_eq!((still.hold, still.next_try_ms), (Hold::Guarded, None));
    let back = put(Some(&guarded), here(7), &rules()).unwrap();
    assert_eq!((back.hold, back.todo), (Hold::Free, Todo::Pin));
}

/// Goal: an approved unpin is ours and planned; nothing else can be approved.
#[test]
fn approved_unpins() {
    let adopted = removed(&Item { ownership: Ownership::Adopted, ..pinned() }, 9, &rules());
    let guarded = Item { hold: Hold::Guarded, ..removed(&pinned(), 5, &Rules { comparing: true, ..rules() }) };
    for held in [adopted, guarded] {
        let approved = approve(&held, &rules()).unwrap();
        assert_eq!((approved.hold, approved.ownership), (Hold::Free, Ownership::Claimed));
        assert_eq!((approved.todo, approved.next_try_ms), (Todo::Unpin, Some(rules().now_ms)));
    }
    let comparing = removed(&pinned(), 5, &Rules { comparing: true, ..rules() });
    for free in [pinned(), queued(), comparing] {
        assert_eq!(approve(&free, &rules()), None);
    }
}

/// Goal: a long error is cut between characters.
#[test]
fn long_errors_are_cut() {
    let cut = shorten("é".repeat(2 * MAX_ERROR_BYTES));
    assert!(cut.len() <= MAX_ERROR_BYTES && cut.chars().all(|c| c == 'é'));
}
