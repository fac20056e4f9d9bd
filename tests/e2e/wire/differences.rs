//! Where our answer is meant to differ from the recorded one: the original's faults, each with the reason. What is not
//! in this table must look the same.

use pinfold_tests::raw::Reply;
use serde_json::{Value, json};

use super::sample::Sample;

pub struct Difference {
    /// File names of the samples without their endings.
    pub samples: &'static [&'static str],
    pub why: &'static str,
    /// Turns what the original answered into what it should have answered.
    pub correct: fn(&mut Sample),
    /// Takes out of our answer what is meant to differ from one run to the next.
    pub adapt: fn(&mut Reply),
}

/// As it is.
fn same(_: &mut Reply) {}

pub const DIFFERENCES: &[Difference] = &[
    Difference {
        samples: &["08-pin-direct"],
        why: "POST /pins/{cid} forgets mode=direct and pins recursively (beh:B22.1 NEW)",
        correct: |sample| edit(sample, |pin| pin["max_depth"] = json!(0)),
        adapt: same,
    },
    Difference {
        samples: &["15-pin-bad-expire"],
        why: "an option that does not parse is answered with 400 and the pin is made all the same, a second document in \
              the same body (rest-api.md 2, quirk)",
        correct: |sample| {
            let only = sample.documents().into_iter().take(1).collect::<Vec<_>>();
            sample.set_documents(&only);
        },
        adapt: same,
    },
    Difference {
        samples: &["16-pin-bad-alloc"],
        why: "user allocations that are no peer IDs are dropped in silence (beh:B7.9 NEW)",
        correct: |sample| {
            sample.answer.status = 400;
            sample.set_documents(&[json!({"code": 400, "message": "parameter user-allocations invalid: …"})]);
        },
        adapt: same,
    },
    Difference {
        samples: &[
            "17-status-one",
            "18-status-unknown-content",
            "20-status-local",
            "21-status-all",
            "22-status-filter",
            "25-allocations",
            "26-allocation",
            "28-allocations-filter",
            "31-recover",
            "34-unpin",
        ],
        why: "options leak from one pin into later ones (testdata/original/README.md)",
        correct: |sample| edit(sample, unleak),
        adapt: same,
    },
    Difference {
        samples: &["25-allocations", "28-allocations-filter"],
        why: "the pin of 08 is direct (beh:B22.1 NEW)",
        correct: |sample| {
            edit(sample, |pin| {
                if pin["cid"] == DIRECT {
                    pin["mode"] = json!("direct");
                    pin["max_depth"] = json!(0);
                }
            });
        },
        adapt: same,
    },
    Difference {
        samples: &["39-bandwidth"],
        why: "the original counts bytes per libp2p protocol; there is none here, and null is what a peer without such \
              statistics answers (rest-api.md 8)",
        correct: |sample| sample.set_documents(&[Value::Null]),
        adapt: same,
    },
];

/// What is different because the node is not Kubo.
pub const EMBEDDED: &[Difference] = &[
    Difference {
        samples: &["01-id", "03-peers"],
        why: "the embedded node is reached by its siblings only, and has no addresses of its own",
        correct: |sample| edit(sample, |peer| peer["ipfs"]["addresses"] = Value::Null),
        adapt: same,
    },
    Difference {
        samples: &["18-status-unknown-content", "21-status-all"],
        why: "Kubo searches for two minutes; the embedded node says after a second that nobody has it, and tries again",
        correct: |_| {},
        adapt: |reply| {
            let mut documents = super::sample::documents(reply);
            documents.iter_mut().for_each(still_searched);
            reply.body = documents.iter().flat_map(|document| format!("{document}\n").into_bytes()).collect();
        },
    },
];

/// A failed search becomes the first one, under way. What the failure says is looked at here.
fn still_searched(document: &mut Value) {
    let Some(peers) = document["peer_map"].as_object_mut() else { return };
    for peer in peers.values_mut().filter_map(Value::as_object_mut) {
        if peer["status"] == "pinning" {
            peer.insert("attempt_count".to_owned(), json!(1));
        }
        if peer["status"] != "pin_error" {
            continue;
        }
        assert_eq!(peer["reason"], "no_providers");
        assert!(peer["error"].as_str().is_some_and(|error| !error.is_empty()));
        let searched = [("status", json!("pinning")), ("error", json!("")), ("attempt_count", json!(1))];
        peer.extend(searched.map(|(key, value)| (key.to_owned(), value)));
    }
}

const DIRECT: &str = "bafkqabqaaebagbaf";
/// The only one that was given a name or metadata and not pinned again without.
const UPDATED: &str = "bafkqabyaaebagbafa4";
const NAMED: &str = "bafkqaaa";

fn edit(sample: &mut Sample, change: impl Fn(&mut Value)) {
    let mut documents = sample.documents();
    documents.iter_mut().for_each(change);
    sample.set_documents(&documents);
}

/// What the pin was really given.
fn unleak(document: &mut Value) {
    const UNSET: &str = "0001-01-01T00:00:00Z";
    let cid = document["cid"].as_str().unwrap_or_default().to_owned();
    if cid != UPDATED {
        document["metadata"] = Value::Null;
    }
    match cid.as_str() {
        UPDATED => document["name"] = json!("first"),
        NAMED => document["name"] = json!("exp"),
        _ => document["name"] = json!(""),
    }
    if document.get("expire_at").is_some() {
        if cid != NAMED {
            document["expire_at"] = json!(UNSET);
        }
        if cid != UPDATED {
            document["pin_update"] = Value::Null;
        }
    }
}
