//! Bad uploads. A streamed answer has said 200 before anything is read, so that its failure is in the trailer; without
//! streaming the same failure is a 500 (rest-api.md 9.3). In both nothing is pinned.

use pinfold_tests::cluster::TestCluster;
use pinfold_tests::raw::{BOUNDARY, Connection, Part, Request};

use super::Watch;

const HELLO: &[Part<'_>] = &[Part { file_name: Some("hello.txt"), content_type: "text/plain", data: b"hello\n" }];
/// `bafkqaaa` as DAG-CBOR links to it.
const LINK: &[u8] = b"\xd8\x2a\x45\x00\x01\x55\x00\x00";

/// Refused before anything is read: query, status, message.
const QUERIES: &[(&str, &str)] = &[
    ("layout=bogus", "layout parameter is invalid"),
    ("format=zip", "format parameter is invalid"),
    ("cid-version=x", "parameter cid-version invalid"),
    ("raw-leaves=yes", "parameter raw-leaves invalid"),
    ("wrap-with-directory=2", "parameter wrap-with-directory invalid"),
    ("stream-channels=no", "parameter stream-channels invalid"),
    ("progress=x", "parameter progress invalid"),
    ("local=x", "parameter local invalid"),
    ("no-pin=x", "parameter no-pin invalid"),
    ("hidden=x", "parameter hidden invalid"),
    ("recursive=x", "parameter recursive invalid"),
    ("shard=x", "parameter shard invalid"),
    ("nocopy=x", "parameter nocopy invalid"),
    ("shard-size=x", "parameter shard_size is invalid"),
    ("replication-min=x", "parameter replication-min invalid"),
    ("expire-in=1ms", "expire-in duration too short"),
    ("user-allocations=abc", "parameter user-allocations invalid: "),
    ("origins=x", "error decoding multiaddress: "),
    // Files of this machine are never read on a client's word, and shards are not made.
    ("nocopy=true", "parameter nocopy invalid"),
    ("shard=true&shard-size=1000000", "parameter shard invalid"),
];

/// Refused while it is being read: query, what the failure says.
const OPTIONS: &[(&str, &str)] = &[
    ("chunker=bogus", "unrecognized chunker option: bogus"),
    ("chunker=size-0", ""),
    ("chunker=size-9999999999", ""),
    ("chunker=size-", ""),
    ("chunker=size--5", ""),
    ("chunker=rabin-1-2-3", ""),
    ("chunker=rabin-9-8-7", ""),
    ("hash=nothing", "hash function name not known"),
    ("hash=identity&cid-version=1", ""),
    ("hash=sha2-512", ""),
    ("cid-version=7", "bad CID Version"),
    ("cid-version=-1", "bad CID Version"),
    ("format=car&wrap-with-directory=true", "cannot wrap a CAR file upload"),
    ("format=car", ""),
    ("replication=9", "not enough peers to allocate CID. "),
    ("replication-min=3&replication-max=2", "cluster.replication_factor_min is larger than max"),
    ("expire-at=2020-01-01T00:00:00Z", "pin.ExpireAt set before current time"),
];

/// File names that lead elsewhere or nowhere (attack:MP3).
const NAMES: &[&str] = &[
    "../x",
    "../../etc/passwd",
    "a/../../b",
    "..",
    "%2e%2e/x",
    "..%2fx",
    "/etc/passwd",
    "%2Fetc%2Fpasswd",
    "a%00b",
    "a/%00/b",
];

/// A length as CARs write it.
fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// The header of a CAR: {"roots": […], "version": …}.
fn car_header(roots: u8, version: u8) -> Vec<u8> {
    let mut header = b"\xa2eroots".to_vec();
    header.push(0x80 | roots);
    header.extend(LINK.repeat(roots.into()));
    header.extend(b"gversion");
    header.push(version);
    [varint(header.len()), header].concat()
}

/// A CAR with one root and one section.
fn car(section: &[u8]) -> Vec<u8> {
    [car_header(1, 1), varint(section.len()), section.to_vec()].concat()
}

fn bad_cars() -> Vec<(&'static str, Vec<u8>)> {
    let mut other = b"\x01\x55\x12\x20".to_vec();
    other.extend([b'A'; 32]);
    other.extend(b"hello");
    let whole = car(&other);
    vec![
        ("an empty CAR", Vec::new()),
        ("a CAR header of 2^62 bytes", b"\xff\xff\xff\xff\xff\xff\xff\xff\x3f".to_vec()),
        ("a CAR header that is no CBOR", b"\x05hello".to_vec()),
        ("a CAR without roots", car_header(0, 1)),
        ("a CAR with two roots", car_header(2, 1)),
        ("a CAR of version 3", car_header(1, 3)),
        ("a CAR cut off in its header", car_header(1, 1)[..9].to_vec()),
        ("a CAR cut off in a block", whole[..whole.len() - 2].to_vec()),
        ("a block that is not what its CID says", whole),
        ("a block of 2^41 bytes", [car_header(1, 1), b"\x80\x80\x80\x80\x80\x40x".to_vec()].concat()),
        ("a section without a CID", car(b"\x01")),
        ("an empty section", [car_header(1, 1), vec![0]].concat()),
    ]
}

fn upload(query: &str) -> Request {
    Request::line(&format!("POST /add?{query}"))
}

fn multipart(body: &[u8]) -> Request {
    upload("").body(&format!("multipart/form-data; boundary={BOUNDARY}"), body)
}

impl Watch<'_> {
    /// The same bad upload twice: streamed, and as one document.
    async fn upload_refused(&mut self, what: &str, request: &Request, message: &str) {
        let authority = self.authority();
        let streamed = match request.send(&authority).await {
            Err(error) => Err(error.to_string()),
            Ok(reply) => {
                let failure = reply.trailer("x-stream-error").concat();
                match (reply.status, failure) {
                    (200, failure) if !failure.is_empty() && failure.starts_with(message) => Ok(()),
                    (status, failure) => Err(format!("{status} {failure:?} {}", reply.text())),
                }
            }
        };
        self.note(what, streamed);
        let separator = if request.target.ends_with('?') { "" } else { "&" };
        let whole =
            Request { target: format!("{}{separator}stream-channels=false", request.target), ..request.clone() };
        self.refused(&format!("{what}, not streamed"), &whole, 500, message).await;
    }
}

/// Goal: no upload that is malformed, cut off, or leads out of its directory is pinned, and each says what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn bad_uploads_pin_nothing() {
    let cluster = TestCluster::start(3).await;
    let mut watch = Watch::new(&cluster);
    for (query, message) in QUERIES {
        watch.refused(query, &upload(query).multipart(HELLO), 400, message).await;
    }
    for (query, message) in OPTIONS {
        watch.upload_refused(query, &upload(query).multipart(HELLO), message).await;
    }
    let no_upload = "request Content-Type isn't multipart/form-data";
    watch.refused("no content type", &upload(""), 400, no_upload).await;
    watch.refused("a form", &upload("").body("application/x-www-form-urlencoded", "x=y"), 400, no_upload).await;
    watch.refused("JSON", &upload("").body("application/json", "{}"), 400, no_upload).await;
    watch.refused("no boundary", &upload("").body("multipart/form-data", "x"), 400, "").await;
    watch.refused("an empty boundary", &upload("").body("multipart/form-data; boundary=", "x"), 400, "").await;

    for name in NAMES {
        let parts = [Part::file(name, b"x")];
        watch.upload_refused(&format!("a file {name}"), &upload("").multipart(&parts), "").await;
    }
    let directory = [Part { file_name: Some("../d"), content_type: "application/x-directory", data: b"" }];
    watch.upload_refused("a directory that leads upwards", &upload("").multipart(&directory), "").await;
    let late = [Part::file("good.txt", b"good"), Part::file("../bad.txt", b"bad")];
    watch.upload_refused("the second file leads upwards", &upload("").multipart(&late), "").await;
    let long = "n".repeat(5000);
    watch.upload_refused("a name of 5,000 bytes", &upload("").multipart(&[Part::file(&long, b"x")]), "").await;
    let deep = "d/".repeat(300) + "f";
    watch.upload_refused("300 directories deep", &upload("").multipart(&[Part::file(&deep, b"x")]), "").await;

    let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n");
    let cut = format!("{head}some of it");
    watch.upload_refused("no final boundary", &multipart(cut.as_bytes()), "").await;
    watch.upload_refused("no body", &multipart(b""), "").await;
    watch.upload_refused("no boundary in the body", &multipart(b"nothing like it"), "").await;
    watch.upload_refused("no part", &multipart(format!("--{BOUNDARY}--\r\n").as_bytes()), "").await;
    watch.upload_refused("a header cut off", &multipart(&head.as_bytes()[..head.len() - 3]), "").await;
    let many = format!("--{BOUNDARY}\r\n{}\r\nx\r\n--{BOUNDARY}--\r\n", "X-Part: value\r\n".repeat(5000));
    watch.upload_refused("a part with 5,000 headers", &multipart(many.as_bytes()), "").await;

    for (what, data) in bad_cars() {
        let part = Part { file_name: Some("x.car"), content_type: "application/octet-stream", data: &data };
        watch.upload_refused(what, &upload("format=car").multipart(&[part]), "").await;
    }

    // A client that goes away in the middle, once with a length that promises more and once between two chunks.
    for promise in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let mut connection = Connection::open(&watch.authority()).await.unwrap();
        let begun = format!(
            "POST /add?name=gone HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n{promise}\r\n\r\n"
        );
        connection.write(begun.as_bytes()).await;
        let part = format!("{head}{}", "x".repeat(1000));
        let part = if promise.starts_with('T') { format!("{:x}\r\n{part}\r\n", part.len()) } else { part };
        connection.write(part.as_bytes()).await;
        connection.finish().await;
        let ended = connection.read_to_close().await.map(drop).ok_or_else(|| "the connection stays open".to_owned());
        watch.note(&format!("a client that goes away ({promise})"), ended);
    }
    watch.nothing_changed(100).await;
}
