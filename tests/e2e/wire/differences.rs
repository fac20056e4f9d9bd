//! Where our answer is meant to differ from the recorded one: the original's faults, each with the reason. What is not
//! in this table must look the same.

use serde_json::{Value, json};

use super::sample::Sample;

pub struct Difference {
    /// File names of the samples without their endings.
    pub samples: &'static [&'static str],
    pub why: &'static str,
    /// Turns what the original answered into what it should have answered.
    pub correct: fn(&mut Sample),
}

pub const DIFFERENCES: &[Difference] = &[
    Difference {
        samples: &["08-pin-direct"],
        why: "POST /pins/{cid} forgets mode=direct and pins recursively (beh:B22.1 NEW)",
        correct: |sample| edit(sample, |pin| pin["max_depth"] = json!(0)),
    },
    Difference {
        samples: &["15-pin-bad-expire"],
        why: "an option that does not parse is answered with 400 and the pin is made all the same, a second document in \
              the same body (rest-api.md 2, quirk)",
        correct: |sample| {
            let only = sample.documents().into_iter().take(1).collect::<Vec<_>>();
            sample.set_documents(&only);
        },
    },
    Difference {
        samples: &["16-pin-bad-alloc"],
        why: "user allocations that are no peer IDs are dropped in silence (beh:B7.9 NEW)",
        correct: |sample| {
            sample.answer.status = 400;
            sample.set_documents(&[json!({"code": 400, "message": "parameter user-allocations invalid: …"})]);
        },
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
    },
    Difference {
        samples: &["39-bandwidth"],
        why: "the original counts bytes per libp2p protocol; there is none here, and null is what a peer without such \
              statistics answers (rest-api.md 8)",
        correct: |sample| sample.set_documents(&[Value::Null]),
    },
];

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
