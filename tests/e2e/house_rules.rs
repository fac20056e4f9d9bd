//! Directions between the rooms, held by reading manifests and sources.

use pinfold_tests::house::{code, root, sources};

const SERVICES: [&str; 4] = ["consensus-svc", "monitor-svc", "ipfs-connector", "api-gateway"];

fn dependencies(room: &str) -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap();
    let lines = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines
        .filter_map(|line| line.split(['.', ' ', '=']).next().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .collect()
}

/// Goal: proto ← common ← services, ctl ← tests; services never depend on each other.
#[test]
fn crates_depend_in_one_direction() {
    let ours =
        ["pinfold-proto", "pinfold-common", "consensus-svc", "monitor-svc", "ipfs-connector", "api-gateway", "ctl"];
    let allowed = |room: &str| -> &[&str] {
        match room {
            "proto" => &[],
            "common" => &["pinfold-proto"],
            "tests" => &["pinfold-proto", "pinfold-common", "ctl"],
            _ => &["pinfold-proto", "pinfold-common"],
        }
    };
    for room in ["proto", "common", "ctl", "tests"].into_iter().chain(SERVICES) {
        for name in dependencies(room).iter().filter(|name| ours.contains(&name.as_str())) {
            assert!(allowed(room).contains(&name.as_str()), "{room} depends on {name}");
        }
    }
}

/// Goal: a library that shapes a room is named in one place only.
#[test]
fn libraries_stay_in_their_rooms() {
    let rules: [(&str, &[&str]); 4] = [
        ("openraft", &["consensus-svc/src/raft/"]),
        ("sqlx", &["consensus-svc/src/store/", "ipfs-connector/src/store", "ipfs-connector/src/node/embedded/"]),
        (
            "reqwest",
            &[
                "ipfs-connector/src/node/kubo/",
                "ipfs-connector/src/node/embedded/",
                "common/src/config/",
                "ctl/src/commands/add",
            ],
        ),
        ("axum", &["api-gateway/src/", "common/src/telemetry"]),
    ];
    for room in ["common", "ctl"].into_iter().chain(SERVICES) {
        for (file, text) in sources(&format!("{room}/src")) {
            let code = code(&text);
            for (library, places) in rules {
                let named = code.contains(&format!("{library}::")) || code.contains(&format!("use {library}"));
                assert!(!named || places.iter().any(|place| file.starts_with(place)), "{file} names {library}");
            }
        }
    }
}

/// Goal: the files that decide are pure: no async, clock, random number or input and output.
#[test]
fn pure_files_are_pure() {
    let pure = [
        "consensus-svc/src/pinset",
        "consensus-svc/src/repin/plan",
        "consensus-svc/src/expiry/plan",
        "monitor-svc/src/window",
        "monitor-svc/src/liveness",
        "monitor-svc/src/alerts",
        "monitor-svc/src/allocator",
        "ipfs-connector/src/tracker/reconcile",
    ];
    let forbidden = [
        "async ",
        ".await",
        "Instant::now",
        "SystemTime::now",
        "Timestamp::now",
        "rand::",
        "std::fs",
        "tokio::",
        "std::net",
    ];
    let mut seen = 0;
    for room in SERVICES {
        for (file, text) in sources(&format!("{room}/src")) {
            if !pure.iter().any(|prefix| file.starts_with(prefix)) || file.contains("tests") {
                continue;
            }
            seen += 1;
            for word in forbidden {
                assert!(!code(&text).contains(word), "{file} is pure and uses {word}");
            }
        }
    }
    assert!(seen >= 5, "only {seen} pure files found: were they renamed?");
}

/// Goal: statements stay prepared. SQLite looks at a parameter that is all of a LIMIT when it plans, and so plans anew each
/// time such a statement is used; of `+?` it knows nothing beforehand.
#[test]
fn limits_do_not_prepare_again() {
    let mut seen = 0;
    for room in SERVICES {
        for (file, text) in sources(&format!("{room}/src")) {
            let code = code(&text);
            assert!(!code.contains("LIMIT ?"), "{file}: a bound LIMIT is written +?");
            seen += code.matches("LIMIT +?").count();
        }
    }
    assert!(seen > 0, "no bound LIMIT found: is it written in another way?");
}
