//! The wire as clients of the original know it: every recorded request is made again, in the same order, and our
//! answer must have the shape of the recorded one (testdata/original); then the surprises of rest-api.md 11.

mod authentication;
mod differences;
mod router;
mod sample;
mod shape;
mod surprises;

use ctl::local::cluster::Ipfs;
use pinfold_tests::cluster::{TestCluster, eventually};
use pinfold_tests::raw::{Part, Reply, Request};
use serde_json::{Value, json};

use differences::Difference;
use sample::{Sample, documents};

/// The headers that clients rely on; each must be there, with this value, exactly when the original sends it.
const HEADERS: &[&str] = &[
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "allow",
    "cache-control",
    "connection",
    "content-type",
    "location",
    "trailer",
    "vary",
    "www-authenticate",
    "x-chunked-output",
    "x-stream-output",
];

/// The peers of the recorded cluster, in the order p0, p1, p2.
const RECORDED_PEERS: [&str; 3] = [
    "12D3KooWAcpmib1imaGHypvqejGB2HKybydMGdbyM82XcEXtvdDa",
    "12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6",
    "12D3KooWPokSi2GTkSAVJLEv9Ue4M8Aw2t12uTG9QAi43HHZndX4",
];

/// Its content is on no peer and never comes.
const UNKNOWN_CONTENT: &str = "bafkreiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Three peers that pin everywhere by default, as the recorded ones did.
async fn everywhere() -> TestCluster {
    everywhere_with(Ipfs::Embedded { gateways: Vec::new() }).await
}

async fn everywhere_with(ipfs: Ipfs) -> TestCluster {
    let everywhere = vec![("cluster.replication_factor_min", json!(-1)), ("cluster.replication_factor_max", json!(-1))];
    TestCluster::with(3, ipfs, everywhere).await
}

async fn send(cluster: &TestCluster, index: usize, request: &Request) -> Reply {
    let line = format!("{} {}", request.method, request.target);
    let reply = request.send(&cluster.peer(index).api).await.unwrap_or_else(|error| panic!("{line}: {error}"));
    // There are none of these anywhere in this API (rest-api.md 2).
    assert!(![201, 202, 403, 409, 429].contains(&reply.status), "{line}: {} {}", reply.status, reply.text());
    reply
}

/// `"GET /id"` at the first peer.
async fn ask(cluster: &TestCluster, line: &str) -> Reply {
    send(cluster, 0, &Request::line(line)).await
}

/// Status and message of an error.
fn code(reply: &Reply) -> (u16, Value) {
    (reply.status, reply.json()["message"].clone())
}

/// Goal: whoever talks to the original can talk to us: same statuses, headers, trailers, keys, types and texts, in the
/// same places.
#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_shape_of_the_originals() {
    let cluster = everywhere().await;
    replay(&cluster, &[differences::DIFFERENCES, differences::EMBEDDED]).await;
}

/// Goal: the same with a Kubo beside each peer, as the recorded cluster had.
#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_shape_of_the_originals_with_kubo() {
    if !pinfold_tests::kubo::is_here("answers_have_the_shape_of_the_originals_with_kubo") {
        return;
    }
    let cluster = everywhere_with(Ipfs::StartKubo).await;
    replay(&cluster, &[differences::DIFFERENCES]).await;
}

async fn replay(cluster: &TestCluster, differences: &[&[Difference]]) {
    let samples = Sample::all();
    assert!(samples.len() >= 55, "only {} samples", samples.len());
    let differences: Vec<&Difference> = differences.iter().flat_map(|table| table.iter()).collect();
    let mut wrong = Vec::new();
    for mut sample in samples {
        let meant: Vec<_> = differences.iter().filter(|one| one.samples.contains(&sample.name.as_str())).collect();
        meant.iter().for_each(|difference| (difference.correct)(&mut sample));
        before(cluster, sample.number()).await;
        let request = adapted(cluster, &sample.request);
        let mut reply = send(cluster, 0, &request).await;
        meant.iter().for_each(|difference| (difference.adapt)(&mut reply));
        let mut found = Vec::new();
        compare(&sample, &reply, &mut found);
        if !found.is_empty() {
            let on_purpose: Vec<&str> = meant.iter().map(|difference| difference.why).collect();
            wrong.push(format!(
                "{}: {} {}\n    {}\n    answer: {} {}\n    corrected beforehand: {on_purpose:?}",
                sample.name,
                request.method,
                request.target,
                found.join("\n    "),
                reply.status,
                reply.text()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} samples differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// What happened between the recorded requests without being recorded.
async fn before(cluster: &TestCluster, number: u32) {
    match number {
        // The first pings and measurements.
        1 => {
            eventually("metrics of all three peers", || async {
                let names: Vec<String> =
                    serde_json::from_slice(&ask(cluster, "GET /monitor/metrics").await.body).ok()?;
                let reply = ask(cluster, "GET /monitor/metrics/freespace").await;
                (names.len() >= 4 && reply.json().as_array()?.len() == 3).then_some(())
            })
            .await;
        }
        // The recorder waited a few seconds for IPFS.
        17 => {
            eventually("all that can be pinned is pinned, and the rest is tried", || async {
                let reply = ask(cluster, "GET /pins").await;
                let settled = documents(&reply).iter().all(|document| {
                    let wanted: &[&str] = match document["cid"] == UNKNOWN_CONTENT {
                        true => &["pinning", "pin_error", "remote"],
                        false => &["pinned", "remote"],
                    };
                    let peers = document["peer_map"].as_object().into_iter().flat_map(|peers| peers.values());
                    peers.map(|peer| &peer["status"]).all(|status| wanted.iter().any(|wanted| status == wanted))
                });
                settled.then_some(())
            })
            .await;
        }
        // The embedded node gives up at once what nobody has, and has something to recover then.
        32 => assert_eq!(ask(cluster, &format!("DELETE /pins/{UNKNOWN_CONTENT}")).await.status, 200),
        // Something for the garbage collection to find.
        50 => {
            let upload = Request::line("POST /add?no-pin=true&local=true").multipart(&[Part::file("waste", b"waste")]);
            assert_eq!(send(cluster, 0, &upload).await.status, 200);
        }
        _ => {}
    }
}

/// The same request for our peers.
fn adapted(cluster: &TestCluster, request: &Request) -> Request {
    let mut request = request.clone();
    for (recorded, index) in RECORDED_PEERS.iter().zip(0..) {
        request.target = request.target.replace(recorded, &cluster.peer(index).peer_id.to_string());
    }
    request
}

fn compare(sample: &Sample, reply: &Reply, wrong: &mut Vec<String>) {
    let expected = &sample.answer;
    if reply.status != expected.status {
        wrong.push(format!("status {} instead of {}", reply.status, expected.status));
    }
    for name in HEADERS {
        if reply.header(name) != expected.header(name) {
            wrong.push(format!("{name}: {:?} instead of {:?}", reply.header(name), expected.header(name)));
        }
    }
    let trailers = |reply: &Reply| -> Vec<(String, String)> {
        reply.trailers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect()
    };
    if trailers(reply) != trailers(expected) {
        wrong.push(format!("trailers {:?} instead of {:?}", reply.trailers, expected.trailers));
    }
    // A stream can't know its length; for a document either is right.
    if expected.is_chunked && !expected.header("trailer").is_empty() && !reply.is_chunked {
        wrong.push("the stream is not chunked".to_owned());
    }
    if !reply.body.is_empty() && !reply.body.ends_with(b"\n") {
        wrong.push("the last document does not end with a line end".to_owned());
    }
    let (expected, actual) = (sample.documents(), documents(reply));
    match sample.name.as_str() {
        // Which of them are on this peer is the allocator's choice.
        "22-status-filter" => {
            let shown = |cid: &Value| actual.iter().any(|document| document["cid"] == *cid);
            let everywhere = expected.iter().filter(|document| document["allocations"] == json!([]));
            wrong.extend(
                everywhere
                    .filter(|document| !shown(&document["cid"]))
                    .map(|document| format!("no {}", document["cid"])),
            );
        }
        "40-metrics-names" => {
            let sorted = |documents: &[Value]| {
                let mut names: Vec<String> = serde_json::from_value(documents[0].clone()).unwrap();
                names.sort();
                names
            };
            if sorted(&expected) != sorted(&actual) {
                wrong.push(format!("{actual:?} instead of {expected:?}"));
            }
            return;
        }
        _ if expected.len() != actual.len() => {
            wrong.push(format!("{} documents instead of {}", actual.len(), expected.len()))
        }
        _ => {}
    }
    for (at, document) in actual.iter().enumerate() {
        // The order of a stream of pins or states is not specified; that of an upload is.
        let is_added = sample.request.target.starts_with("/add");
        let same =
            expected.iter().find(|other| !is_added && other["cid"].is_string() && other["cid"] == document["cid"]);
        let Some(other) = same.or_else(|| expected.get(at)).or_else(|| expected.first()) else {
            wrong.push(format!("a document where the original has none: {document}"));
            continue;
        };
        shape::compare("$", other, document, wrong);
        inner_json(sample, other, document, wrong);
    }
}

/// The value of a ping is JSON inside a string.
fn inner_json(sample: &Sample, expected: &Value, actual: &Value, wrong: &mut Vec<String>) {
    if sample.name != "42-metrics-ping" {
        return;
    }
    for metric in actual.as_array().into_iter().flatten() {
        let parse = |metric: &Value| metric["value"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        match (parse(&expected[0]), parse(metric)) {
            (Some(expected), Some(actual)) => shape::compare("$.value", &expected, &actual, wrong),
            _ => wrong.push(format!("the value of a ping is no JSON: {metric}")),
        }
    }
}
