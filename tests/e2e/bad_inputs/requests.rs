//! Bad CIDs, paths, options, bodies, and HTTP that is none.

use pinfold_tests::cluster::TestCluster;
use pinfold_tests::content;
use pinfold_tests::raw::Request;

use super::Watch;

const PEER: &str = "12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6";
const FORM: &str = "application/x-www-form-urlencoded";

/// Lower-case base32 without padding, for bytes that no library would encode.
fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let digit = |bits: &[u8]| bits.iter().fold(0, |value, bit| value << 1 | bit) << (5 - bits.len());
    format!("b{}", bits.chunks(5).map(|bits| char::from(DIGITS[usize::from(digit(bits))])).collect::<String>())
}

/// CIDs that are none, escaped for a URL.
fn bad_cids() -> Vec<(&'static str, String)> {
    let identity = |length: usize| {
        let mut bytes = vec![0x01, 0x55, 0x00];
        let (low, high) = ((length & 0x7f) as u8, (length >> 7) as u8);
        bytes.extend(if high == 0 { vec![low] } else { vec![low | 0x80, high] });
        bytes.extend(vec![b'x'; length]);
        bytes
    };
    let mut trailing = identity(3);
    trailing.push(0);
    let mut short = vec![0x01, 0x55, 0x12, 0x20];
    short.extend([7; 16]);
    let mut truncated_digest = vec![0x01, 0x55, 0x12, 0x10];
    truncated_digest.extend([7; 16]);
    vec![
        ("a word", "notacid".to_owned()),
        ("one character", "Q".to_owned()),
        ("600 characters", "b".repeat(600)),
        ("an encoding that nobody knows", "9bafkqaaa".to_owned()),
        ("a character that is not in its alphabet", "bafkqaa1".to_owned()),
        ("v0 with a zero in it", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbd0".to_owned()),
        ("v0 that is too short", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbd".to_owned()),
        ("a digest shorter than it says", base32(&short)),
        ("SHA-256 cut to 16 bytes", base32(&truncated_digest)),
        ("an identity of 129 bytes", base32(&identity(129))),
        ("bytes after its end", base32(&trailing)),
        ("version 2", base32(&[0x02, 0x55, 0x00, 0x00])),
        ("a varint without end", base32(&[0xff; 12])),
        ("a version that is not minimal", base32(&[0x81, 0x00, 0x55, 0x00, 0x00])),
        ("no multihash", base32(&[0x01, 0x55])),
        ("a Cyrillic letter", "bafkq%D0%B0aa".to_owned()),
        ("a space before it", "%20bafkqaaa".to_owned()),
        ("a NUL after it", "bafkqaaa%00".to_owned()),
        ("a line end in it", "bafkq%0Aaaa".to_owned()),
        ("bytes that are not UTF-8", "bafkq%FFaaa".to_owned()),
        ("a peer ID", PEER.to_owned()),
    ]
}

/// Request line, status, how the message begins. `{cid}` is one that could be pinned.
const ROWS: &[(&str, u16, &str)] = &[
    // Routes with a CID, all of them.
    ("GET /pins/nope", 400, "error decoding Cid: "),
    ("GET /allocations/nope", 400, "error decoding Cid: "),
    ("DELETE /pins/nope", 400, "error decoding Cid: "),
    ("POST /pins/nope/recover", 400, "error decoding Cid: "),
    ("POST /pins/sync", 400, "error decoding Cid: "),
    ("GET /pins/recover", 400, "error decoding Cid: "),
    ("GET /pins?cids=nope", 400, "error decoding Cid: "),
    ("GET /pins?cids={cid},nope", 400, "error decoding Cid: "),
    ("GET /pins?cids={cid},,{cid}", 400, "error decoding Cid: "),
    // Paths.
    ("POST /pins/ipfs", 400, "error decoding Cid: "),
    ("POST /pins/ipfs/nope", 400, "error parsing path: "),
    ("POST /pins/ipfs/nope/x", 400, "error parsing path: "),
    ("POST /pins/ipld/nope", 400, "error parsing path: "),
    ("DELETE /pins/ipfs/nope", 400, "error parsing path: "),
    ("POST /pins/ipfs/{cid}/a%00b", 400, "error parsing path: "),
    ("POST /pins/ipfs/{cid}/no/such/link", 500, ""),
    ("POST /pins/ipns/no-such-name.invalid", 500, ""),
    // Factors: what does not parse is the request's fault, what breaks a rule is told as the original tells it.
    ("POST /pins/{cid}?replication-min=x", 400, "parameter replication-min invalid"),
    ("POST /pins/{cid}?replication-max=1.5", 400, "parameter replication-max invalid"),
    ("POST /pins/{cid}?replication-min=2147483648", 400, "parameter replication-min invalid"),
    ("POST /pins/{cid}?replication-max=%223%22", 400, "parameter replication-max invalid"),
    ("POST /pins/{cid}?replication-min=null", 400, "parameter replication-min invalid"),
    ("POST /pins/{cid}?replication=many", 400, "parameter replication-min invalid"),
    ("POST /pins/{cid}?replication-min=3&replication-max=2", 500, "cluster.replication_factor_min is larger than max"),
    ("POST /pins/{cid}?replication=-2", 500, "cluster.replication_factor_min is wrong"),
    ("POST /pins/{cid}?replication-min=-3&replication-max=-2", 500, "cluster.replication_factor_min is wrong"),
    (
        "POST /pins/{cid}?replication-min=-1&replication-max=2",
        500,
        "cluster.replication_factor_min and max must be -1 when one of them is",
    ),
    ("POST /pins/{cid}?replication-min=1&replication-max=-1", 500, "cluster.replication_factor_min is larger than max"),
    (
        "POST /pins/{cid}?replication=9",
        500,
        "not enough peers to allocate CID. Needed at least: 9. Wanted at most: 9. Available candidates: 3. See logs for \
         more info.",
    ),
    ("POST /pins/{cid}?replication=2147483647", 500, "not enough peers to allocate CID. "),
    ("POST /pins/ipfs/{cid}?replication-min=x", 400, "parameter replication-min invalid"),
    ("DELETE /pins/{cid}?replication-min=x", 400, "parameter replication-min invalid"),
    ("GET /allocations/{cid}?replication-min=x", 400, "parameter replication-min invalid"),
    // Depths that no IPFS node can pin to.
    ("POST /pins/{cid}?max-depth=5", 400, "parameter max-depth invalid: 5 is neither -1 nor 0"),
    ("POST /pins/ipfs/{cid}?max-depth=1", 400, "parameter max-depth invalid: 1 is neither -1 nor 0"),
    ("POST /pins/{cid}?max-depth=-5", 400, "parameter max-depth invalid: -5 is neither -1 nor 0"),
    ("POST /pins/{cid}?max-depth=all", 400, "parameter max-depth invalid"),
    ("POST /pins/{cid}?max-depth=0&mode=recursive", 400, "parameter max-depth invalid: 0 is not mode recursive"),
    // Sizes, names, metadata.
    ("POST /pins/{cid}?shard-size=x", 400, "parameter shard_size is invalid"),
    ("POST /pins/{cid}?shard-size=-1", 400, "parameter shard_size is invalid"),
    ("POST /pins/{cid}?shard-size=18446744073709551616", 400, "parameter shard_size is invalid"),
    ("POST /pins/{cid}?name={2000}", 400, "parameter name invalid"),
    // Times.
    ("POST /pins/{cid}?expire-at=yesterday", 400, "expire-at cannot be parsed: "),
    ("POST /pins/{cid}?expire-at=1700000000", 400, "expire-at cannot be parsed: "),
    ("POST /pins/{cid}?expire-at=9999999-01-01T00:00:00Z", 400, "expire-at cannot be parsed: "),
    ("POST /pins/{cid}?expire-at=2027-02-30T00:00:00Z", 400, "expire-at cannot be parsed: "),
    ("POST /pins/{cid}?expire-at=2027-06-30T23:59:60Z", 400, "expire-at cannot be parsed: "),
    ("POST /pins/{cid}?expire-at=2027-01-01T00:00:00%2B99:99", 400, "expire-at cannot be parsed: "),
    ("POST /pins/{cid}?expire-at=2027-01-01", 400, "expire-at cannot be parsed: "),
    ("POST /pins/{cid}?expire-at=-2027-01-01T00:00:00Z", 400, "expire-at cannot be parsed: "),
    ("POST /pins/{cid}?expire-at=2020-01-01T00:00:00Z", 500, "pin.ExpireAt set before current time"),
    ("POST /pins/{cid}?expire-in=soon", 400, "expire-in cannot be parsed: "),
    ("POST /pins/{cid}?expire-in=5", 400, "expire-in cannot be parsed: "),
    ("POST /pins/{cid}?expire-in=500ms", 400, "expire-in duration too short"),
    ("POST /pins/{cid}?expire-in=-48h", 400, "expire-in duration too short"),
    ("POST /pins/{cid}?expire-in=99999999999999h", 400, "expire-in cannot be parsed: "),
    // Origins and wishes.
    ("POST /pins/{cid}?origins=nope", 400, "error decoding multiaddress: "),
    ("POST /pins/{cid}?origins=/ip4/300.1.1.1/tcp/4001/p2p/{peer}", 400, "error decoding multiaddress: "),
    ("POST /pins/{cid}?origins=/ip4/1.2.3.4/tcp/99999/p2p/{peer}", 400, "error decoding multiaddress: "),
    ("POST /pins/{cid}?origins=/ip4/1.2.3.4/tcp/4001", 400, "multiaddress does not contain peer ID: "),
    ("POST /pins/{cid}?origins=/ip4/1.2.3.4/tcp/4001/p2p/{peer},x", 400, "error decoding multiaddress: "),
    ("POST /pins/{cid}?user-allocations=abc", 400, "parameter user-allocations invalid: "),
    ("POST /pins/{cid}?user-allocations={peer},abc", 400, "parameter user-allocations invalid: "),
    ("POST /pins/{cid}?user-allocations={cid}", 400, "parameter user-allocations invalid: "),
    ("POST /pins/{cid}?pin-update=nope", 400, "error decoding update option parameter: "),
    ("POST /pins/{cid}?pin-update=bafkqaaa", 404, "pin is not part of the pinset"),
    // What is not there.
    ("DELETE /pins/{cid}", 404, "pin is not part of the pinset"),
    ("DELETE /pins/ipfs/{cid}", 404, "pin is not part of the pinset"),
    ("GET /allocations/{cid}", 404, "pin is not part of the pinset"),
    ("POST /pins/{cid}/recover?local=true", 404, "pin is not part of the pinset"),
    // Lists.
    ("GET /pins?filter=bogus", 400, "invalid filter value"),
    ("GET /pins?filter=undefined", 400, "invalid filter value"),
    ("GET /pins?filter=PINNED", 400, "invalid filter value"),
    ("GET /pins?filter=%27%3BDROP%20TABLE%20pins", 400, "invalid filter value"),
    ("GET /allocations?filter=bogus", 400, "invalid filter value"),
    ("GET /allocations?filter=pin%20,x", 400, "invalid filter value"),
    ("GET /allocations?limit=-1", 400, "parameter limit invalid"),
    ("GET /allocations?limit=x", 400, "parameter limit invalid"),
    ("GET /allocations?after=nope", 400, "error decoding Cid: "),
    ("GET /pins?after=nope", 400, "error decoding Cid: "),
    ("GET /pins?limit=1e3", 400, "parameter limit invalid"),
    // Peers.
    ("DELETE /peers/nope", 400, "error decoding Peer ID: "),
    ("DELETE /peers/{cid}", 400, "error decoding Peer ID: "),
    // Routes that are none.
    ("GET /", 404, "not found"),
    ("GET /nope", 404, "not found"),
    ("POST /pins/{cid}/sync", 404, "not found"),
    ("POST /pins/{cid}/recover/x", 404, "not found"),
    ("GET /api/v0/version", 404, "not found"),
    ("GET /metrics", 404, "not found"),
    ("GET /debug/pprof/heap", 404, "not found"),
    ("GET /ID", 404, "not found"),
    ("GET /monitor/metrics/a/b", 404, "not found"),
    ("POST /token", 401, "unauthorized"),
];

/// Bodies of `POST /peers`.
fn bad_bodies() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let undecodable = "error decoding request body";
    vec![
        ("no body", Vec::new(), undecodable),
        ("no JSON", b"peer_id=x".to_vec(), undecodable),
        ("cut off", br#"{"peer_id":"#.to_vec(), undecodable),
        ("an array", br#"["12D3KooW"]"#.to_vec(), undecodable),
        ("null", b"null".to_vec(), undecodable),
        ("a number", br#"{"peer_id":5}"#.to_vec(), undecodable),
        ("a number too large for any type", br#"{"peer_id":1e999}"#.to_vec(), undecodable),
        ("half a surrogate", br#"{"peer_id":"\ud800"}"#.to_vec(), undecodable),
        ("bytes that are not UTF-8", b"{\"peer_id\":\"\xff\"}".to_vec(), undecodable),
        ("100,000 levels", b"[".repeat(100_000), undecodable),
        ("2 MiB", format!("{{\"peer_id\":\"{}\"}}", "x".repeat(2 << 20)).into_bytes(), undecodable),
        ("no peer ID", br#"{"peer_id":"nope"}"#.to_vec(), "error decoding peer_id"),
        ("an empty peer ID", br#"{"peer_id":""}"#.to_vec(), "error decoding peer_id"),
    ]
}

fn filled(line: &str, cid: &str) -> String {
    line.replace("{cid}", cid).replace("{peer}", PEER).replace("{2000}", &"n".repeat(2000))
}

/// Goal: every bad CID, option, filter, path and body is refused with the status and the words of rest-api.md 2, as one
/// document, and nothing happens.
#[tokio::test(flavor = "multi_thread")]
async fn rest_refuses_by_name() {
    let cluster = TestCluster::start(3).await;
    let mut watch = Watch::new(&cluster);
    let cid = content::identity_cid("could be pinned").to_string();
    for (what, bad) in bad_cids() {
        let request = Request::new("POST", &format!("/pins/{bad}"));
        watch.refused(&format!("a CID: {what}"), &request, 400, "error decoding Cid: ").await;
        let request = Request::new("POST", &format!("/pins/ipfs/{bad}"));
        watch.refused(&format!("a path: {what}"), &request, 400, "error parsing path: ").await;
    }
    for (line, status, message) in ROWS {
        watch.refused(line, &Request::line(&filled(line, &cid)), *status, message).await;
    }
    for (what, body, message) in bad_bodies() {
        let request = Request::line("POST /peers").body("application/json", body);
        watch.refused(&format!("POST /peers: {what}"), &request, 400, message).await;
    }
    let stranger = format!("{{\"peer_id\":\"{PEER}\"}}");
    watch.refused("a peer that is nowhere", &Request::line("POST /peers").body(FORM, stranger), 500, "").await;
    let nowhere = format!("{{\"peer_id\":\"{PEER}\",\"address\":\"/ip4/127.0.0.1/tcp/1\"}}");
    watch.refused("a peer where nobody listens", &Request::line("POST /peers").body(FORM, nowhere), 500, "").await;
    let segments = format!("POST /pins/ipfs/{cid}{}", "/a".repeat(1000));
    watch.refused("1,000 segments", &Request::line(&segments), 400, "error parsing path: ").await;
    let wishes = format!("POST /pins/{cid}?user-allocations={}", "a,".repeat(300));
    watch.refused("301 wishes", &Request::line(&wishes), 400, "parameter user-allocations invalid: ").await;
    let origins = vec![format!("/ip4/1.2.3.4/tcp/1/p2p/{PEER}"); 65].join(",");
    watch.refused("65 origins", &Request::line(&format!("POST /pins/{cid}?origins={origins}")), 400, "").await;
    let key = Request::line(&format!("POST /pins/{cid}")).header("Idempotency-Key", &"k".repeat(65));
    watch.refused("a request key of 65 bytes", &key, 400, "Idempotency-Key: ").await;
    watch.nothing_changed(140).await;
}

/// Goal: HTTP that is wrong, ambiguous or too large is refused and its connection ended, so that nobody reads one
/// request as two (attack catalogue HT*).
#[tokio::test(flavor = "multi_thread")]
async fn http_refuses_what_is_no_request() {
    let cluster = TestCluster::start(3).await;
    let mut watch = Watch::new(&cluster);
    let smuggled = "POST /pins/bafkqaaa HTTP/1.1\r\nHost: x\r\n\r\n";
    let with =
        |headers: &str, body: &str| format!("POST /peers HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}").into_bytes();
    for (what, bytes) in [
        (
            "two ways to say the length",
            with("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{smuggled}")),
        ),
        ("two lengths", with("Content-Length: 4\r\nContent-Length: 5\r\n", smuggled)),
        ("a list of lengths", with("Content-Length: 4, 4\r\n", smuggled)),
        ("a length with a sign", with("Content-Length: +4\r\n", smuggled)),
        ("a length beyond 64 bits", with("Content-Length: 99999999999999999999\r\n", smuggled)),
        ("an encoding nobody asked for", with("Transfer-Encoding: gzip, chunked\r\n", smuggled)),
        ("chunked twice", with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", smuggled)),
        ("a space before the colon", with("Content-Length : 4\r\nTransfer-Encoding: chunked\r\n", smuggled)),
        ("bare line feeds", format!("GET /id HTTP/1.1\nHost: x\n\n{smuggled}").into_bytes()),
        ("a NUL in a header", b"GET /id HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n".to_vec()),
        ("a folded header", b"GET /id HTTP/1.1\r\nHost: x\r\nX: a\r\n b: c\r\n\r\n".to_vec()),
        ("a header without a colon", b"GET /id HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n".to_vec()),
        ("no such version", b"GET /id HTTP/9.9\r\nHost: x\r\n\r\n".to_vec()),
        ("no request line", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        ("a space in the target", b"GET /id x HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
    ] {
        let found = match watch.bytes(&bytes).await {
            Ok(reply) if reply.status == 400 => Ok(()),
            Ok(reply) => Err(format!("{} {}", reply.status, reply.text())),
            Err(error) => Err(error),
        };
        watch.note(what, found);
    }
    for (what, bytes) in [
        ("a header of 9 KiB", format!("GET /id HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(9 * 1024))),
        ("1,000 headers", format!("GET /id HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-Header: value\r\n".repeat(1000))),
        ("a target of 100 KiB", format!("GET /pins/{} HTTP/1.1\r\nHost: x\r\n\r\n", "b".repeat(100 * 1024))),
        ("a header that never ends", format!("GET /id HTTP/1.1\r\nHost: x\r\nX: {}", "a".repeat(64 * 1024))),
    ] {
        let found = match watch.bytes(bytes.as_bytes()).await {
            Ok(reply) if matches!(reply.status, 431 | 414) => Ok(()),
            Ok(reply) => Err(format!("{} {}", reply.status, reply.text())),
            Err(error) => Err(error),
        };
        watch.note(what, found);
    }
    // One that fits: 4096 and the slack of Go's server.
    let large = Request::line("GET /version").header("X-Large", &"a".repeat(7 * 1024));
    let found = large.send(&watch.authority()).await.map_err(|error| error.to_string());
    watch.note(
        "a header of 7 KiB",
        found.and_then(|reply| if reply.status == 200 { Ok(()) } else { Err(reply.text()) }),
    );

    for line in [
        "PUT /pins/bafkqaaa",
        "PATCH /pins/bafkqaaa",
        "HEAD /pins/bafkqaaa",
        "POST /pins",
        "GET /pins/bafkqaaa/recover",
        "GET /ipfs/gc",
        "DELETE /id",
        "TRACE /id",
        "BREW /id",
        "GET /pins/ipfs/bafkqaaa",
    ] {
        let found = match Request::line(line).send(&watch.authority()).await {
            Ok(reply) if (reply.status, reply.body.len()) == (405, 0) => Ok(()),
            Ok(reply) => Err(format!("{} {}", reply.status, reply.text())),
            Err(error) => Err(error.to_string()),
        };
        watch.note(line, found);
    }
    let overridden = Request::line("GET /pins/bafkqaaa").header("X-HTTP-Method-Override", "POST");
    let found = overridden.send(&watch.authority()).await.map_err(|error| error.to_string());
    watch.note(
        "a method in a header",
        found.and_then(|reply| if reply.status == 200 { Ok(()) } else { Err(reply.text()) }),
    );
    for (line, location) in [
        ("POST /x/../pins/bafkqaaa", "/pins/bafkqaaa"),
        ("POST //pins/bafkqaaa", "/pins/bafkqaaa"),
        ("POST /./pins/bafkqaaa", "/pins/bafkqaaa"),
        ("POST /pins/%2e%2e/pins/bafkqaaa", "/pins/bafkqaaa"),
        ("POST /pins/ipfs/bafkqaaa/../../bafkqaaa", "/pins/bafkqaaa"),
    ] {
        let found = match Request::line(line).send(&watch.authority()).await {
            Ok(reply) if reply.status == 301 && reply.header("location") == [location] => Ok(()),
            Ok(reply) => Err(format!("{} {:?} {}", reply.status, reply.header("location"), reply.text())),
            Err(error) => Err(error.to_string()),
        };
        watch.note(line, found);
    }
    watch.refused("a broken escape", &Request::line("GET /pins/%zz"), 400, "").await;
    watch.refused("an escaped slash separates nothing", &Request::line("GET /%2fid%2fx"), 404, "not found").await;
    let other_host = Request::new("GET", "http://example.com/nope");
    watch.refused("a target with a host", &other_host, 404, "not found").await;
    watch.nothing_changed(35).await;
}

/// Goal: strange texts are stored as they are, have no effect, and come back escaped as Go escapes them (IN4, IN15).
#[tokio::test(flavor = "multi_thread")]
async fn strange_texts_are_only_texts() {
    let cluster = TestCluster::start(3).await;
    for (at, (escaped, text)) in [
        ("%27%3B%20DROP%20TABLE%20pins%3B--", "'; DROP TABLE pins;--"),
        ("%3Cscript%3Ealert(1)%3C/script%3E%26", "<script>alert(1)</script>&"),
        ("%24(reboot)%60reboot%60%25n%25s", "$(reboot)`reboot`%n%s"),
        ("a%0Ab%0Dc%1B%5B2Jd%00e", "a\nb\rc\u{1b}[2Jd\0e"),
        ("%E2%80%AEgpj.exe%E2%80%A8", "\u{202e}gpj.exe\u{2028}"),
        ("%3Dcmd()%7C%7B%7B7*7%7D%7D", "=cmd()|{{7*7}}"),
        ("a%FFb", "a\u{fffd}b"),
        ("%22%5C%22", "\"\\\""),
        ("__proto__", "__proto__"),
    ]
    .into_iter()
    .enumerate()
    {
        let cid = content::identity_cid(&format!("strange {at}"));
        let line = format!("POST /pins/{cid}?name={escaped}&meta-{escaped}={escaped}");
        let reply = Request::line(&line).send(&cluster.peer(0).api).await.unwrap();
        assert_eq!(reply.status, 200, "{text:?}: {}", reply.text());
        for reply in
            [reply, Request::line(&format!("GET /allocations/{cid}")).send(&cluster.peer(0).api).await.unwrap()]
        {
            let pin = reply.json();
            assert_eq!(pin["name"], text);
            assert_eq!(pin["metadata"][text], text, "{pin}");
            assert!(!reply.text().contains(['<', '>', '&', '\u{2028}', '\0', '\u{1b}']), "{}", reply.text());
        }
        assert_eq!(cluster.rest(1).delete(&format!("/pins/{cid}")).await.status, 200);
    }
    assert!(cluster.rest(2).allocations().await.is_empty());
}
