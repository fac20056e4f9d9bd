//! rest-api.md 11: what surprises everybody who meets this API for the first time, each held by a group of assertions.

use ctl::local::cluster::Ipfs;
use pinfold_common::Cid;
use pinfold_common::json::{GlobalPinInfoJson, PinJson};
use pinfold_common::tls::Room;
use pinfold_tests::cluster::{TestCluster, eventually};
use pinfold_tests::content;
use pinfold_tests::raw::{Part, Request};
use serde_json::{Value, json};

use super::sample::documents;
use super::{ask, code, everywhere, everywhere_with, send};

const UNSET: &str = "0001-01-01T00:00:00Z";

async fn pin(cluster: &TestCluster, cid: &Cid, query: &str) -> Value {
    let reply = ask(cluster, &format!("POST /pins/{cid}?{query}")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// Waits until every peer that has to do with it has pinned it.
async fn pinned(cluster: &TestCluster, cid: &Cid) {
    eventually(&format!("{cid} pinned"), || async {
        let status = ask(cluster, &format!("GET /pins/{cid}")).await.json();
        let peers = status["peer_map"].as_object()?.values().map(|peer| peer["status"].clone());
        peers.into_iter().all(|status| status == "pinned" || status == "remote").then_some(())
    })
    .await;
}

/// Goal: checklist 1, 2, 3 and 4: what is not pinned, what an unpin answers, empty streams, and every kind of nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_all_its_forms() {
    let cluster = TestCluster::start(3).await;
    // 3: an empty stream is 204 and still names a type and a trailer.
    for line in
        ["GET /allocations", "GET /pins", "POST /pins/recover", "POST /pins/recover?local=true", "GET /pins?local=true"]
    {
        let reply = ask(&cluster, line).await;
        assert_eq!((reply.status, reply.text().as_str()), (204, ""), "{line}");
        assert_eq!(reply.header("content-type"), ["application/json"], "{line}");
        assert_eq!(reply.header("trailer"), ["X-Stream-Error"], "{line}");
        assert!(reply.header("content-length").is_empty() && !reply.is_chunked, "{line}: {:?}", reply.headers);
    }
    // 1: of something unpinned there is a status, and nothing else.
    let cid = content::identity_cid("nothing");
    let reply = ask(&cluster, &format!("GET /pins/{cid}")).await;
    assert_eq!(reply.status, 200);
    let status = reply.json();
    assert_eq!((&status["name"], &status["allocations"], &status["metadata"]), (&json!(""), &json!([]), &Value::Null));
    assert_ne!(status["created"], json!(UNSET));
    let peers = status["peer_map"].as_object().unwrap();
    assert_eq!(peers.len(), 3);
    assert!(peers.values().all(|peer| peer["status"] == "unpinned"), "{status}");
    let local = ask(&cluster, &format!("GET /pins/{cid}?local=true")).await.json();
    assert_eq!((&local["allocations"], &local["created"]), (&Value::Null, &json!(UNSET)), "{local}");
    assert_eq!(local["peer_map"].as_object().unwrap().len(), 1);
    let missing = (404, json!("pin is not part of the pinset"));
    assert_eq!(code(&ask(&cluster, &format!("GET /allocations/{cid}")).await), missing);
    assert_eq!(code(&ask(&cluster, &format!("DELETE /pins/{cid}")).await), missing);
    assert_eq!(code(&ask(&cluster, &format!("DELETE /pins/ipfs/{cid}")).await), missing);
    assert_eq!(code(&ask(&cluster, &format!("POST /pins/{cid}/recover?local=true")).await), missing);
    assert_eq!(code(&ask(&cluster, &format!("POST /pins/{cid}?pin-update=bafkqaaa")).await), missing);
    assert_eq!(ask(&cluster, &format!("POST /pins/{cid}/recover")).await.status, 200);

    // 4: as submitted, and as kept.
    let submitted = pin(&cluster, &cid, "").await;
    assert_eq!((&submitted["metadata"], &submitted["origins"]), (&json!({}), &Value::Null));
    assert_eq!((&submitted["user_allocations"], &submitted["pin_update"]), (&Value::Null, &Value::Null));
    assert_eq!((&submitted["expire_at"], &submitted["reference"]), (&json!(UNSET), &Value::Null));
    let kept = ask(&cluster, &format!("GET /allocations/{cid}")).await.json();
    assert_eq!((&kept["metadata"], &kept["origins"]), (&Value::Null, &json!([])));
    assert_eq!((&kept["user_allocations"], &kept["pin_update"]), (&Value::Null, &Value::Null));
    assert_eq!(kept["expire_at"], json!(UNSET));
    assert_eq!(kept["allocations"].as_array().unwrap().len(), 2);
    let seconds = kept["timestamp"].as_str().unwrap();
    assert_eq!(seconds.len(), "2026-11-23T11:07:43Z".len(), "whole seconds: {seconds}");
    let own = cluster.peer(0).peer_id;
    let wished =
        pin(&cluster, &content::identity_cid("wished"), &format!("user-allocations={own}&replication=1")).await;
    assert_eq!(
        (&wished["user_allocations"], &wished["allocations"]),
        (&json!([own.to_string()]), &json!([own.to_string()]))
    );
    let broad = pin(&cluster, &content::identity_cid("everywhere"), "replication=-1").await;
    assert_eq!(broad["allocations"], json!([]));

    // 3: a stream that went well ends with an empty trailer, though nobody asked for trailers.
    for line in ["GET /allocations", "GET /pins", "GET /peers"] {
        let reply = ask(&cluster, line).await;
        assert_eq!(reply.status, 200, "{line}");
        assert_eq!(reply.trailer("x-stream-error"), [""], "{line}: {:?}", reply.trailers);
        assert_eq!(documents(&reply).len(), 3, "{line}");
    }

    // 2: an unpin answers with what was there; a removal and the health check with nothing.
    let reply = ask(&cluster, &format!("DELETE /pins/{cid}")).await;
    assert_eq!((reply.status, reply.json()), (200, kept));
    assert_eq!(code(&ask(&cluster, &format!("DELETE /pins/{cid}")).await), missing);
    let reply = ask(&cluster, "GET /health").await;
    assert_eq!((reply.status, reply.text().as_str()), (204, ""));
    assert_eq!(reply.header("content-type"), ["application/json"]);
    let stranger = "DELETE /peers/12D3KooWARqgQvTqiZMKpKkMcx6zgBFbg23atYsE2BsV6GhP8JDX";
    assert_eq!((ask(&cluster, stranger).await.status, ask(&cluster, stranger).await.body), (204, Vec::new()));
}

/// Goal: checklist 5 and 6: what `local`, `filter` and `cids` mean and what they do not.
#[tokio::test(flavor = "multi_thread")]
async fn local_filter_and_cids() {
    let cluster = TestCluster::start(3).await;
    let first = content::identity_cid("first");
    let second = content::identity_cid("second");
    let absent = content::identity_cid("absent");
    pin(&cluster, &first, "").await;
    pin(&cluster, &second, "replication=-1").await;
    pinned(&cluster, &first).await;
    pinned(&cluster, &second).await;

    // 5: `local` is the word `true` and nothing else.
    for (word, peers) in [("true", 1), ("True", 3), ("1", 3), ("yes", 3), ("TRUE", 3), ("", 3)] {
        let status = ask(&cluster, &format!("GET /pins/{second}?local={word}")).await.json();
        assert_eq!(status["peer_map"].as_object().unwrap().len(), peers, "local={word}");
    }
    let invalid = (400, json!("invalid filter value"));
    for filter in ["undefined", "bogus", "bogus,nothing", "PINNED"] {
        assert_eq!(code(&ask(&cluster, &format!("GET /pins?filter={filter}")).await), invalid, "{filter}");
    }
    assert_eq!(code(&ask(&cluster, "GET /allocations?filter=bogus").await), invalid);
    // An unknown name beside a known one is ignored, and spaces are removed from status filters.
    assert_eq!(documents(&ask(&cluster, "GET /pins?filter=bogus,%20pinned").await).len(), 2);
    assert_eq!(documents(&ask(&cluster, "GET /allocations?filter=bogus,pin").await).len(), 2);
    assert_eq!(ask(&cluster, "GET /allocations?filter=meta-pin,shard-pin").await.status, 204);
    // What the Go client always sends means nothing.
    assert_eq!(documents(&ask(&cluster, "GET /pins?local=false&filter=&cids=").await).len(), 2);
    // With `cids` the filter is ignored, and unpinned CIDs are shown.
    let reply = ask(&cluster, &format!("GET /pins?filter=pin_error&cids={first},{absent}")).await;
    let shown: Vec<GlobalPinInfoJson> =
        documents(&reply).into_iter().map(|document| serde_json::from_value(document).unwrap()).collect();
    assert_eq!(shown.len(), 2, "{}", reply.text());
    let of_absent = shown.iter().find(|info| info.cid == absent.to_string()).unwrap();
    assert!(of_absent.peer_map.values().all(|peer| peer.status == "unpinned"));
    assert_eq!(ask(&cluster, &format!("GET /pins?cids={first},nope")).await.status, 400);

    // 6: a filter hides the peers that do not match, not only the items.
    let reply = ask(&cluster, "GET /pins?filter=remote").await;
    let [info] = &documents(&reply)[..] else { panic!("{}", reply.text()) };
    assert_eq!(info["cid"], json!(first.to_string()));
    let peers: Vec<&Value> = info["peer_map"].as_object().unwrap().values().collect();
    assert!(peers.len() == 1 && peers[0]["status"] == "remote", "{info}");
    let reply = ask(&cluster, "GET /pins?filter=pinned").await;
    let mut counts: Vec<usize> =
        documents(&reply).iter().map(|info| info["peer_map"].as_object().unwrap().len()).collect();
    counts.sort();
    assert_eq!(counts, [2, 3]);
    for filter in ["error", "queued", "unpin_error", "error,queued", "pinning"] {
        assert_eq!(ask(&cluster, &format!("GET /pins?filter={filter}")).await.status, 204, "{filter}");
    }
}

/// Goal: the other half of checklist 6: an unpin that has not come through belongs to nothing in the pinset any more,
/// and is shown to those who ask for operations only.
#[tokio::test(flavor = "multi_thread")]
async fn unpins_that_wait() {
    if !pinfold_tests::kubo::is_here("unpins_that_wait") {
        return;
    }
    let cluster = everywhere_with(Ipfs::StartKubo).await;
    let cid = content::identity_cid("not gone yet");
    let stays = content::identity_cid("stays");
    pin(&cluster, &cid, "").await;
    pin(&cluster, &stays, "").await;
    pinned(&cluster, &cid).await;
    pinned(&cluster, &stays).await;
    cluster.cluster.kubos[0].kill_and_hold().await;
    assert_eq!(ask(&cluster, &format!("DELETE /pins/{cid}")).await.status, 200);
    let shows = async |query: &str| {
        let reply = ask(&cluster, &format!("GET /pins{query}")).await;
        documents(&reply).iter().any(|document| document["cid"] == cid.to_string().as_str())
    };
    let waiting = "?filter=unpin_queued,unpin_error,unpinning";
    eventually("only the first peer still has to unpin it", || async {
        let reply = ask(&cluster, &format!("GET /pins{waiting}")).await;
        let [item] = &documents(&reply)[..] else { return None };
        let peers: Vec<&String> = item["peer_map"].as_object()?.keys().collect();
        (peers == [&cluster.peer(0).peer_id.to_string()]).then_some(())
    })
    .await;
    // As of anything that is not pinned, whatever is still going on.
    let status = ask(&cluster, &format!("GET /pins/{cid}")).await.json();
    assert!(status["peer_map"].as_object().unwrap().values().all(|peer| peer["status"] == "unpinned"), "{status}");
    for query in ["?filter=error,queued", waiting] {
        assert!(shows(query).await, "GET /pins{query} hides an unpin that waits");
    }
    cluster.cluster.kubos[0].resume().await;
    eventually("unpinned everywhere", || async {
        let reply = ask(&cluster, "GET /pins?filter=error,queued,unpinning").await;
        (reply.status == 204).then_some(())
    })
    .await;
    assert_eq!(documents(&ask(&cluster, "GET /allocations").await).len(), 1);
}

/// Goal: checklist 7, 9 and 10: modes, options that do not parse, and pins made from other pins.
#[tokio::test(flavor = "multi_thread")]
async fn modes_options_and_updates() {
    let cluster = everywhere().await;
    // 7: the original pins recursively when the CID form asks for direct; both forms keep the word here.
    let by_cid = content::identity_cid("by CID");
    let by_path = content::identity_cid("by path");
    for line in [format!("POST /pins/{by_cid}?mode=direct"), format!("POST /pins/ipfs/{by_path}?mode=direct")] {
        let answered = ask(&cluster, &line).await.json();
        assert_eq!((&answered["mode"], &answered["max_depth"]), (&json!("direct"), &json!(0)), "{line}");
    }
    for cid in [&by_cid, &by_path] {
        let kept = ask(&cluster, &format!("GET /allocations/{cid}")).await.json();
        assert_eq!((&kept["mode"], &kept["max_depth"]), (&json!("direct"), &json!(0)));
        pinned(&cluster, cid).await;
    }
    // The listing must not call a direct pin unexpectedly unpinned (rest-api.md 8, quirk of GET /pins).
    let reply = ask(&cluster, "GET /pins").await;
    for info in documents(&reply) {
        assert!(info["peer_map"].as_object().unwrap().values().all(|peer| peer["status"] == "pinned"), "{info}");
    }
    let recursive = content::identity_cid("recursive");
    pin(&cluster, &recursive, "").await;
    let refused =
        "cannot repin a CID which is already pinned in recursive mode (new pin is pinned as direct). Unpin it first.";
    assert_eq!(code(&ask(&cluster, &format!("POST /pins/{recursive}?mode=direct")).await), (500, json!(refused)));
    assert_eq!(pin(&cluster, &by_path, "").await["mode"], json!("recursive"));

    // 9: one document, and nothing done.
    let bad = content::identity_cid("bad options");
    let options = [
        "replication-min=x",
        "replication-max=1.5",
        "shard-size=-1",
        "expire-at=yesterday",
        "expire-in=soon",
        "origins=x",
        "pin-update=x",
    ];
    for option in options {
        for line in [
            format!("POST /pins/{bad}?{option}"),
            format!("POST /pins/ipfs/{bad}?{option}"),
            format!("GET /pins/{bad}?{option}"),
        ] {
            let reply = ask(&cluster, &line).await;
            assert_eq!((reply.status, documents(&reply).len()), (400, 1), "{line}: {}", reply.text());
        }
        let reply = ask(&cluster, &format!("DELETE /pins/{recursive}?{option}")).await;
        assert_eq!((reply.status, documents(&reply).len()), (400, 1), "{option}");
    }
    assert_eq!(ask(&cluster, &format!("GET /allocations/{bad}")).await.status, 404);
    assert_eq!(ask(&cluster, &format!("GET /allocations/{recursive}")).await.status, 200);

    // 10: an update takes everything from the old pin, but for a name and an expiry.
    let old = content::identity_cid("old");
    pin(&cluster, &old, "name=old&meta-k=v&replication=2").await;
    let new = content::identity_cid("new");
    let answered =
        pin(&cluster, &new, &format!("pin-update={old}&name=new&meta-other=x&replication=1&expire-in=48h&mode=direct"))
            .await;
    let expected = json!({
        "name": "new", "metadata": {"k": "v"}, "replication_factor_min": 2, "replication_factor_max": 2,
        "pin_update": old.to_string(), "mode": "recursive", "origins": [], "user_allocations": null,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&answered[key], value, "{key}");
    }
    assert_ne!(answered["expire_at"], json!(UNSET));
    let unnamed = pin(&cluster, &content::identity_cid("newer"), &format!("pin-update={old}")).await;
    assert_eq!((&unnamed["name"], &unnamed["expire_at"]), (&json!("old"), &json!(UNSET)));
    assert_eq!(ask(&cluster, &format!("GET /allocations/{old}")).await.status, 200, "the old pin stays");
    let itself = pin(&cluster, &old, &format!("pin-update={old}&name=again&replication=3")).await;
    assert_eq!(
        (&itself["name"], &itself["replication_factor_min"]),
        (&json!("again"), &json!(3)),
        "an update from itself is none"
    );
    let short = (400, json!("expire-in duration too short"));
    assert_eq!(code(&ask(&cluster, &format!("POST /pins/{bad}?expire-in=500ms")).await), short);
    let past = (500, json!("pin.ExpireAt set before current time"));
    assert_eq!(code(&ask(&cluster, &format!("POST /pins/{bad}?expire-at=2020-01-01T00:00:00Z")).await), past);
    let update = format!("POST /pins/{bad}?pin-update={old}&expire-at=2020-01-01T00:00:00Z");
    assert_eq!(code(&ask(&cluster, &update).await), past, "the original ignores it");

    // Nothing is merged when an item is pinned again (beh:B8.11).
    let again = pin(&cluster, &new, "").await;
    assert_eq!((&again["name"], &again["metadata"], &again["pin_update"]), (&json!(""), &json!({}), &Value::Null));
}

/// Goal: checklist 8: an upload has said 200 before it begins, tells its failure in the trailer, and pins what came
/// last.
#[tokio::test(flavor = "multi_thread")]
async fn uploads() {
    let cluster = TestCluster::start(3).await;
    let upload = |query: &str| Request::line(&format!("POST /add?{query}"));
    let hello = [Part::file("hello.txt", b"hello\n")];
    for query in [
        "chunker=bogus",
        "cid-version=7",
        "hash=nothing",
        "hash=sha2-512",
        // The server's shard size is 0, which no block fits into.
        "shard=true",
        "format=car&wrap-with-directory=true",
        "replication=9",
    ] {
        let reply = send(&cluster, 0, &upload(query).multipart(&hello)).await;
        assert_eq!(reply.status, 200, "{query}: {}", reply.text());
        assert_eq!(reply.header("x-chunked-output"), ["1"], "{query}");
        let failure: String = reply.trailer("x-stream-error").concat();
        assert!(!failure.is_empty(), "{query}: no failure: {}", reply.text());
        let reply = send(&cluster, 0, &upload(&format!("{query}&stream-channels=false")).multipart(&hello)).await;
        assert!(reply.status == 500 || reply.status == 400, "{query}: {} {}", reply.status, reply.text());
        assert_eq!(reply.json()["code"], json!(reply.status), "{query}");
        assert!(reply.header("x-chunked-output").is_empty() && reply.header("trailer").is_empty(), "{query}");
    }
    assert_eq!(ask(&cluster, "GET /allocations").await.status, 204, "a failed upload pins nothing");

    // Several top-level entries: all are added, the last one is pinned.
    let several = [Part::file("a.txt", b"a"), Part::file("b.txt", b"b")];
    let reply = send(&cluster, 1, &upload("name=several").multipart(&several)).await;
    assert!(
        reply.trailer("x-stream-error").is_empty(),
        "an upload that went well has no trailer: {:?}",
        reply.trailers
    );
    let added = documents(&reply);
    assert_eq!(added.iter().map(|object| object["name"].as_str().unwrap()).collect::<Vec<_>>(), ["a.txt", "b.txt"]);
    let kept = documents(&ask(&cluster, "GET /allocations").await);
    let [kept] = &kept[..] else { panic!("{kept:?}") };
    assert_eq!((&kept["cid"], &kept["name"]), (&added[1]["cid"], &json!("several")));
    assert_eq!(kept["mode"], json!("recursive"));
    assert_eq!(kept["allocations"], added[1]["allocations"]);

    // The npm client takes element 0 of one array, and never sees lines.
    let reply = send(
        &cluster,
        2,
        &upload("stream-channels=false&raw-leaves=true&cid-version=1&wrap=x&no-copy=y").multipart(&hello),
    )
    .await;
    let [array] = &documents(&reply)[..] else { panic!("{}", reply.text()) };
    assert_eq!(array[0]["name"], json!("hello.txt"));
    assert_eq!(reply.header("connection"), ["close"]);
    assert_eq!(reply.header("cache-control"), ["no-cache"]);
    let nothing_pinned =
        send(&cluster, 2, &upload("no-pin=true&mode=direct").multipart(&[Part::file("n", b"no pin")])).await;
    let cid = documents(&nothing_pinned)[0]["cid"].as_str().unwrap().to_owned();
    assert_eq!(ask(&cluster, &format!("GET /allocations/{cid}")).await.status, 404);
    // A literal plus and percent escapes in file names are undone, as Go's clients escape them.
    let reply =
        send(&cluster, 0, &upload("wrap-with-directory=true").multipart(&[Part::file("a+b%20c%26", b"x")])).await;
    let names: Vec<String> =
        documents(&reply).iter().map(|object| object["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["a b c&", ""]);
    assert!(reply.text().contains("a b c\\u0026"), "characters are escaped as Go does: {}", reply.text());
}

/// Goal: checklist 11: a peer that does not answer is shown as such wherever it belongs; nothing is left out in
/// silence, and nothing waits for it longer than its deadline.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_do_not_answer() {
    let cluster = everywhere().await;
    let cid = content::identity_cid("seen by two");
    pin(&cluster, &cid, "").await;
    pinned(&cluster, &cid).await;
    let gone = cluster.peer(2).peer_id.to_string();
    cluster.peer(2).kill().await;

    let reply = ask(&cluster, &format!("GET /pins/{cid}")).await;
    assert_eq!(reply.status, 200);
    let status = reply.json();
    assert_eq!(status["name"], json!(""), "what failed does not overwrite what is known");
    assert_eq!(status["peer_map"].as_object().unwrap().len(), 3);
    let entry = &status["peer_map"][&gone];
    assert_eq!(entry["status"], json!("cluster_error"));
    assert!(!entry["error"].as_str().unwrap().is_empty());
    let listed = documents(&ask(&cluster, "GET /pins").await);
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["peer_map"][&gone]["status"], json!("cluster_error"), "{}", listed[0]);
    // Failed peers are shown whatever the filter says.
    let filtered = documents(&ask(&cluster, "GET /pins?filter=pinned").await);
    assert_eq!(filtered[0]["peer_map"][&gone]["status"], json!("cluster_error"), "{}", filtered[0]);
    assert_eq!(
        ask(&cluster, &format!("POST /pins/{cid}/recover")).await.json()["peer_map"][&gone]["status"],
        json!("cluster_error")
    );

    // rest-api.md 5.4, second form.
    let peers = documents(&ask(&cluster, "GET /peers").await);
    assert_eq!(peers.len(), 3);
    let silent = peers.iter().find(|peer| peer["id"] == gone.as_str()).unwrap();
    assert!(!silent["error"].as_str().unwrap().is_empty());
    for key in ["addresses", "cluster_peers", "cluster_peers_addresses"] {
        assert_eq!(silent[key], Value::Null, "{key}");
    }
    assert_eq!(
        (&silent["version"], &silent["rpc_protocol_version"], &silent["peername"]),
        (&json!(""), &json!(""), &json!(""))
    );
    assert_eq!(silent["ipfs"], json!({"addresses": null, "error": ""}));
    let graph = ask(&cluster, "GET /health/graph").await.json();
    assert_eq!(graph["cluster_links"][&gone], json!([]));
    assert!(graph["cluster_to_ipfs"].get(&gone).is_none() && graph["id_to_peername"].get(&gone).is_none());
    let collected = ask(&cluster, "POST /ipfs/gc").await.json();
    assert!(!collected["peer_map"][&gone]["error"].as_str().unwrap().is_empty(), "{collected}");

    // When nobody can say, it is an error and not an empty list (rest-api.md 8, quirk).
    cluster.peer(1).kill().await;
    cluster.peer(0).service(Room::Connector).unwrap().kill_and_hold().await;
    for line in ["GET /pins", "GET /pins?local=true"] {
        let reply = ask(&cluster, line).await;
        assert_eq!(reply.status, 500, "{line}: {}", reply.text());
        assert_eq!(reply.header("trailer"), ["X-Stream-Error"], "{line}");
    }
    // The pinset is still there to be read.
    let kept: PinJson = serde_json::from_value(ask(&cluster, &format!("GET /allocations/{cid}")).await.json()).unwrap();
    assert_eq!(kept.cid, Some(cid.to_string()));
}
