//! The gateway as its clients see it, against stand-ins of the other rooms. Shapes are those that the original's
//! recorded answers have (`tests/testdata/original/rest`).

mod siblings;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use pinfold_common::config::File;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::api;
use pinfold_proto::api::cluster_client::ClusterClient;
use pinfold_proto::api::pins_client::PinsClient;
use serde_json::{Value, json};
use siblings::Siblings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic_health::pb::health_client::HealthClient;

use crate::config::Config;
use crate::{cluster::Cluster, listen};

const TEST_DEADLINE: Duration = Duration::from_secs(20);
const CID: &str = "bafkqafgebs2vlb3ssrb2sxp732rutwdw7mnwbpy";

/// A gateway on a free port. Its rooms end with it.
struct Gateway {
    address: String,
    own: String,
    peers: Vec<String>,
    shutdown: Shutdown,
    _folder: tempfile::TempDir,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

struct Answered {
    status: u16,
    headers: BTreeMap<String, Vec<String>>,
    body: String,
    trailers: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |values| values[0].as_str())
    }
}

impl Gateway {
    async fn start() -> Gateway {
        Gateway::start_with(&[]).await
    }

    async fn start_with(keys: &[(&str, Value)]) -> Gateway {
        let shutdown = Shutdown::new();
        let siblings = Siblings::start(&shutdown).await;
        let folder = tempfile::tempdir().unwrap();
        siblings.own.save(folder.path()).unwrap();
        let mut file =
            File::defaults().in_folder(folder.path()).with("cluster.secret", json!(siblings.secret.to_hex()));
        for (key, value) in keys {
            file = file.with(key, value.clone());
        }
        let mut config = Config::from_file(&file).unwrap();
        (config.consensus, config.monitor, config.connector) =
            (siblings.consensus.clone(), siblings.monitor.clone(), siblings.connector.clone());
        let channels = siblings.channels();
        let cluster = Arc::new(Cluster::with_peers(&config, channels.clone(), siblings.peers.clone()));
        let app = crate::app(&config, channels, cluster, None, shutdown.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let limits = listen::Limits {
            header_bytes: config.rest.header_bytes,
            read_header: config.rest.read_header_timeout,
            idle: config.rest.idle_timeout,
        };
        tokio::spawn(listen::serve(listener, None, limits, app, shutdown.clone()));
        let peers = siblings.peers.current().peerset.peers.iter().map(|peer| peer.peer_id.to_string()).collect();
        Gateway { address, own: siblings.own.peer_id.to_string(), peers, shutdown, _folder: folder }
    }

    /// `request` is a request line without the version, and further lines.
    async fn send(&self, request: &str) -> Answered {
        self.send_with_body(request, "").await
    }

    async fn send_with_body(&self, request: &str, body: &str) -> Answered {
        let (line, lines) = request.split_once('\n').unwrap_or((request, ""));
        let lines: String = lines.lines().map(|line| format!("{line}\r\n")).collect();
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\n{length}Connection: close\r\n{lines}\r\n");
        let mut socket = TcpStream::connect(&self.address).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(body.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(TEST_DEADLINE, socket.read_to_end(&mut answer)).await.expect("an answer").unwrap();
        parse(&String::from_utf8(answer).unwrap())
    }
}

fn parse(answer: &str) -> Answered {
    let (head, rest) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        headers.entry(name.to_owned()).or_default().push(value.to_owned());
    }
    let (mut body, mut trailers) = (rest.to_owned(), String::new());
    if headers.contains_key("Transfer-Encoding") {
        (body, trailers) = dechunk(rest);
    }
    Answered { status, headers, body, trailers }
}

fn dechunk(mut rest: &str) -> (String, String) {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, after.trim_end_matches("\r\n").to_owned());
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
}

/// Goal: the steps around the handlers answer as the original does (rest-api.md 1.1).
#[tokio::test]
async fn around_the_handlers() {
    let gateway = Gateway::start().await;
    let wrong = gateway.send("PUT /id").await;
    assert_eq!((wrong.status, wrong.body.as_str(), wrong.header("Content-Type")), (405, "", ""));
    let unknown = gateway.send("GET /nope").await;
    assert_eq!((unknown.status, unknown.body.as_str()), (404, "{\"code\":404,\"message\":\"not found\"}\n"));
    assert_eq!((unknown.header("Content-Type"), unknown.header("Vary")), ("application/json", "Origin"));
    assert_eq!(gateway.send("GET /").await.status, 404);
    let slash = gateway.send("GET /pins/?local=true").await;
    assert_eq!((slash.status, slash.header("Location")), (307, "/pins?local=true"));
    assert_eq!(slash.body, "<a href=\"/pins?local=true\">Temporary Redirect</a>.\n\n");
    let moved = gateway.send("POST /pins//x?name=a%20b").await;
    assert_eq!((moved.status, moved.header("Location"), moved.body.as_str()), (301, "/pins/x?name=a%20b", ""));
    for (line, location) in [("GET //example.com/..", "/"), ("GET //", "/"), ("GET //id", "/id")] {
        assert_eq!(gateway.send(line).await.header("Location"), location, "{line}");
    }
    assert_eq!(gateway.send("GET http://example.com/nope").await.status, 404);
    assert_eq!(gateway.send("GET /%2fid%2fx").await.status, 404);
    assert_eq!(gateway.send("GET /pins/%zz").await.status, 400);
    assert_eq!(gateway.send("TRACE /id").await.status, 405);
    let health = gateway.send("GET /health").await;
    assert_eq!((health.status, health.header("Content-Type")), (204, "application/json"));
    let preflight = gateway.send("OPTIONS /pins\nOrigin: http://example.com\nAccess-Control-Request-Method: GET").await;
    assert_eq!((preflight.status, preflight.header("Access-Control-Allow-Origin")), (204, "*"));
    let cross = gateway.send("GET /version\nOrigin: http://example.com").await;
    assert_eq!(cross.header("Access-Control-Allow-Credentials"), "true");
    assert_eq!(gateway.send("GET /health/bandwidth").await.body, "null\n");
    assert_eq!(gateway.send("GET /monitor/metrics").await.body, "[\"ping\",\"freespace\"]\n");
    assert_eq!(gateway.send("GET /monitor/metrics/none").await.body, "[]\n");
    assert_eq!(gateway.send("POST /token").await.body, "{\"code\":401,\"message\":\"unauthorized\"}\n");
    assert_eq!(gateway.send(&format!("DELETE /peers/{}", gateway.own)).await.status, 204);
}

/// Goal: a pin from its POST to its DELETE, with the recorded nulls and statuses, and with a peer that is away.
#[tokio::test]
async fn the_life_of_a_pin() {
    let gateway = Gateway::start().await;
    let posted = gateway.send(&format!("POST /pins/{CID}?name=first&meta-k=v&user-allocations={}", gateway.own)).await;
    assert_eq!(posted.status, 200, "{}", posted.body);
    let pin = posted.json();
    assert_eq!(pin["metadata"], json!({"k": "v"}));
    assert_eq!((&pin["origins"], &pin["user_allocations"]), (&Value::Null, &json!([gateway.own])));
    assert_eq!((&pin["mode"], &pin["max_depth"], &pin["type"]), (&json!("recursive"), &json!(-1), &json!("pin")));

    let stored = gateway.send(&format!("GET /allocations/{CID}")).await.json();
    assert_eq!((&stored["origins"], &stored["user_allocations"]), (&json!([]), &Value::Null));
    let listed = gateway.send("GET /allocations").await;
    assert_eq!(listed.json(), stored);
    assert_eq!((listed.trailers.as_str(), listed.header("Trailer")), ("X-Stream-Error: ", "X-Stream-Error"));

    let status = gateway.send(&format!("GET /pins/{CID}")).await.json();
    let map = status["peer_map"].as_object().unwrap();
    assert_eq!(map.len(), 3);
    for peer in &gateway.peers {
        let expected = if *peer == gateway.own { "pinned" } else { "remote" };
        assert_eq!(map[peer]["status"], expected);
        assert!(map[peer]["peername"].as_str().unwrap().starts_with('p') && map[peer]["ipfs_peer_id"].is_string());
    }
    assert_eq!(gateway.send("GET /pins").await.json()["peer_map"][&gateway.own]["status"], "pinned");
    assert_eq!(gateway.send("GET /pins?filter=pinned").await.json()["peer_map"].as_object().unwrap().len(), 2);

    // Pinned everywhere, also where nobody answers.
    gateway.send(&format!("POST /pins/{CID}?mode=direct")).await;
    let status = gateway.send(&format!("GET /pins/{CID}")).await.json();
    let statuses = status["peer_map"].as_object().unwrap().values().map(|entry| entry["status"].as_str().unwrap());
    let mut statuses: Vec<&str> = statuses.collect();
    statuses.sort_unstable();
    assert_eq!(statuses, ["cluster_error", "pinned", "pinned"]);

    let removed = gateway.send(&format!("DELETE /pins/{CID}")).await;
    assert_eq!((removed.status, &removed.json()["mode"]), (200, &json!("direct")));
    let again = gateway.send(&format!("DELETE /pins/{CID}")).await;
    assert_eq!(
        (again.status, again.body.as_str()),
        (404, "{\"code\":404,\"message\":\"pin is not part of the pinset\"}\n")
    );
    assert_eq!(gateway.send(&format!("GET /allocations/{CID}")).await.status, 404);
    let unpinned = gateway.send(&format!("GET /pins/{CID}")).await.json();
    assert_eq!((&unpinned["allocations"], &unpinned["origins"]), (&json!([]), &Value::Null));
    assert!(unpinned["peer_map"].as_object().unwrap().values().all(|entry| entry["status"] == "unpinned"));
    let empty = gateway.send("GET /pins").await;
    assert_eq!((empty.status, empty.header("Content-Type")), (204, "application/json"));
    assert_eq!(empty.header("Trailer"), "X-Stream-Error");
    assert_eq!(gateway.send(&format!("POST /pins/{CID}/recover?local=true")).await.status, 404);
    assert_eq!(gateway.send("POST /pins/recover").await.status, 204);
}

/// Goal: a path is resolved by the own node, exactly as it was sent but unescaped, and what it leads to is pinned, by name
/// and below a name as below a CID, over REST and gRPC; a name that leads nowhere is 500 and pins nothing (beh:B8.21).
#[tokio::test]
async fn names_and_paths_are_resolved() {
    let gateway = Gateway::start().await;
    let channel = tonic::transport::Endpoint::new(format!("http://{}", gateway.address)).unwrap().connect_lazy();
    let mut pins = PinsClient::new(channel);
    for (path, cid) in siblings::PATHS {
        let escaped = path.replace(' ', "%20").replace('\u{e9}', "%C3%A9");
        let posted = gateway.send(&format!("POST /pins{escaped}?name=by-path")).await;
        assert_eq!((posted.status, &posted.json()["cid"]), (200, &json!(cid)), "{path}: {}", posted.body);
        assert_eq!(gateway.send(&format!("GET /allocations/{cid}")).await.json()["name"], "by-path");
        let removed = gateway.send(&format!("DELETE /pins{escaped}")).await;
        assert_eq!((removed.status, &removed.json()["cid"]), (200, &json!(cid)), "{path}: {}", removed.body);
        assert_eq!(gateway.send(&format!("GET /allocations/{cid}")).await.status, 404);

        let bytes = pinfold_common::ids::parse_cid(cid).unwrap().to_bytes();
        let request = Some(pinfold_proto::types::PinRequest { max_depth: -1, ..Default::default() });
        let call = api::PinPathRequest { path: path.to_owned(), request, request_key: Vec::new() };
        assert_eq!(pins.pin_path(call).await.unwrap().into_inner().pin.unwrap().cid, bytes, "{path}");
        let call = api::UnpinPathRequest { path: path.to_owned(), request_key: Vec::new() };
        assert_eq!(pins.unpin_path(call).await.unwrap().into_inner().pin.unwrap().cid, bytes, "{path}");
    }
    let nowhere = gateway.send("POST /pins/ipns/nobody.example").await;
    let message = nowhere.json()["message"].to_string();
    assert!(nowhere.status == 500 && message.contains("no such name"), "{}", nowhere.body);
    assert_eq!(gateway.send("GET /allocations").await.status, 204);
}

/// Goal: malformed requests are one 400 document and change nothing; refusals of the rules are 500.
#[tokio::test]
async fn refusals() {
    let gateway = Gateway::start().await;
    for (request, message) in [
        ("POST /pins/notacid", "error decoding Cid: "),
        ("GET /pins/recover", "error decoding Cid: "),
        ("GET /pins?filter=bogus", "invalid filter value"),
        ("GET /pins?cids=nope", "error decoding Cid: "),
        ("GET /allocations?filter=bogus", "invalid filter value"),
        ("POST /pins/bafkqaaa?expire-at=yesterday", "expire-at cannot be parsed: "),
        ("GET /pins/bafkqaaa?replication-min=x", "parameter replication-min invalid"),
        ("POST /pins/bafkqaaa?max-depth=2", "parameter max-depth invalid: 2 is neither -1 nor 0"),
        ("POST /pins/ipfs/bafkqaaa?max-depth=-5", "parameter max-depth invalid: -5 is neither -1 nor 0"),
        ("POST /pins/ipfs/nope/x", "error parsing path: invalid path \"/ipfs/nope/x\": invalid cid: "),
        ("DELETE /peers/nope", "error decoding Peer ID: "),
        ("POST /peers", "error decoding request body"),
        ("POST /add", "request Content-Type isn't multipart/form-data"),
    ] {
        let answer = gateway.send(request).await;
        assert_eq!(answer.status, 400, "{request}: {}", answer.body);
        assert!(answer.json()["message"].as_str().unwrap().starts_with(message), "{request}: {}", answer.body);
    }
    let bad = gateway.send_with_body("POST /peers", "{\"peer_id\":\"nope\"}").await;
    assert_eq!((bad.status, bad.body.as_str()), (400, "{\"code\":400,\"message\":\"error decoding peer_id\"}\n"));
    let array = gateway.send_with_body("POST /peers", "[\"12D3KooW\"]").await;
    assert_eq!(array.json()["message"], "error decoding request body");
    let rule = gateway.send("POST /pins/bafkqaaa?replication-min=3&replication-max=2").await;
    assert_eq!(
        (rule.status, &rule.json()["message"]),
        (500, &json!("cluster.replication_factor_min is larger than max"))
    );
    assert_eq!(gateway.send("GET /allocations").await.status, 204);
}

/// Goal: who this peer is and who the others are, with an entry for the one that does not answer.
#[tokio::test]
async fn identities() {
    let gateway = Gateway::start().await;
    let id = gateway.send("GET /id").await.json();
    let keys: Vec<&String> = id.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "id",
            "addresses",
            "cluster_peers",
            "cluster_peers_addresses",
            "version",
            "commit",
            "rpc_protocol_version",
            "error",
            "ipfs",
            "peername"
        ]
    );
    assert_eq!((&id["id"], &id["peername"]), (&json!(gateway.own), &json!("p0")));
    assert_eq!(id["cluster_peers"], json!(gateway.peers));
    assert_eq!(id["cluster_peers_addresses"].as_array().unwrap().len(), 2);
    let peers = gateway.send("GET /peers").await;
    let records: Vec<Value> = peers.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 3);
    let away: Vec<&Value> = records.iter().filter(|record| record["error"] != "").collect();
    assert_eq!((away.len(), &away[0]["addresses"], &away[0]["version"]), (1, &Value::Null, &json!("")));
    let graph = gateway.send("GET /health/graph").await.json();
    assert_eq!(graph["cluster_links"][away[0]["id"].as_str().unwrap()], json!([]));
    assert_eq!(graph["cluster_links"][&gateway.own].as_array().unwrap().len(), 1);
    let gc = gateway.send("POST /ipfs/gc?local=true").await.json();
    assert_eq!(gc["peer_map"][&gateway.own]["keys"], json!([{"key": "bafkqaaa"}]));
    assert_eq!(gateway.send("POST /ipfs/gc").await.json()["peer_map"].as_object().unwrap().len(), 3);
}

/// Goal: an upload that fails says so in the trailer of a 200, or in a 500 when it is not streamed.
#[tokio::test]
async fn failed_uploads() {
    let gateway = Gateway::start().await;
    let body = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nhello\r\n--B--\r\n";
    let request = |query: &str| format!("POST /add?{query}\nContent-Type: multipart/form-data; boundary=B");
    let answer = gateway.send_with_body(&request(""), body).await;
    assert_eq!((answer.status, answer.body.as_str(), answer.header("X-Chunked-Output")), (200, "", "1"));
    assert_eq!((answer.header("Cache-Control"), answer.header("Connection")), ("no-cache", "close"));
    assert!(answer.trailers.ends_with("nobody to allocate to"), "{}", answer.trailers);
    let chunker = gateway.send_with_body(&request("chunker=bogus"), body).await;
    assert_eq!(
        (chunker.status, chunker.trailers.as_str()),
        (200, "X-Stream-Error: unrecognized chunker option: bogus")
    );
    let whole = gateway.send_with_body(&request("stream-channels=false"), body).await;
    assert_eq!((whole.status, &whole.json()["code"]), (500, &json!(500)));
    assert_eq!(gateway.send_with_body(&request("layout=odd"), body).await.status, 400);
    let escape = body.replace("filename=\"a\"", "filename=\"../a\"");
    assert!(gateway.send_with_body(&request(""), &escape).await.trailers.contains("must not lead upwards"));
}

/// Goal: with credentials nothing but health and preflights is open, on REST and on gRPC.
#[tokio::test]
async fn credentials() {
    let gateway = Gateway::start_with(&[("api.restapi.basic_auth_credentials", json!({"ann": "secret"}))]).await;
    let denied = gateway.send("GET /id").await;
    assert_eq!(denied.status, 401);
    assert_eq!(denied.headers["Www-Authenticate"].len(), 2);
    assert!(!denied.headers.contains_key("Vary"));
    assert_eq!(gateway.send("GET /health").await.status, 204);
    assert_eq!(gateway.send("OPTIONS /id").await.status, 405);
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("ann:secret"));
    let token = gateway.send(&format!("POST /token\nAuthorization: {basic}")).await.json()["token"].clone();
    let bearer = format!("Bearer {}", token.as_str().unwrap());
    assert_eq!(gateway.send(&format!("GET /id\nAuthorization: {bearer}")).await.status, 200);

    let channel = tonic::transport::Endpoint::new(format!("http://{}", gateway.address)).unwrap().connect_lazy();
    let refused = ClusterClient::new(channel.clone()).version(api::VersionRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let mut request = tonic::Request::new(api::VersionRequest {});
    request.metadata_mut().insert("authorization", basic.parse().unwrap());
    assert_eq!(ClusterClient::new(channel.clone()).version(request).await.unwrap().into_inner().wire_version, "1.0");
    HealthClient::new(channel).check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
}

/// Goal: the same pin over gRPC, on the same port, with the other peer's silence told.
#[tokio::test]
async fn grpc_on_the_same_port() {
    let gateway = Gateway::start().await;
    let channel = tonic::transport::Endpoint::new(format!("http://{}", gateway.address)).unwrap().connect_lazy();
    let mut pins = PinsClient::new(channel.clone());
    let cid = pinfold_common::ids::parse_cid(CID).unwrap();
    let request = pinfold_proto::types::PinRequest::from(pinfold_common::pin::PinRequest::new(cid));
    let item = api::PinItem { request: Some(request), request_key: Vec::new() };
    assert_eq!(pins.pin(item).await.unwrap().into_inner().index, 1);
    let status = api::StatusRequest { cid: cid.to_bytes(), local: false };
    assert_eq!(pins.status(status).await.unwrap().into_inner().peers.len(), 3);
    let mut all = pins.status_all(api::StatusAllRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.message().await.unwrap().unwrap().items[0].cid, cid.to_bytes());
    assert!(all.message().await.unwrap().is_none());
    let gone = pins.get(api::GetRequest { cid: vec![1, 0x55, 0, 0], consistent: false }).await.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (tonic::Code::NotFound, "pin is not part of the pinset"));
    let garbage = http::Request::post(format!("http://{}/pinfold.api.v1.Pins/Pin", gateway.address))
        .header("content-type", "application/grpc")
        .body(http_body_util::Full::from(&[0, 0, 0, 0, 3, 0x0a, 0x7f, 0x01][..]))
        .unwrap();
    let socket = hyper_util::rt::TokioIo::new(TcpStream::connect(&gateway.address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, http_body_util::Full<bytes::Bytes>>(
        hyper_util::rt::TokioExecutor::new(),
        socket,
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    assert_eq!(sender.send_request(garbage).await.unwrap().headers()["grpc-status"], "3");
    let health = ClusterClient::new(channel).health(api::HealthRequest {}).await.unwrap().into_inner();
    assert!(health.ready, "{health:?}");
    assert_eq!(health.rooms.len(), 4);
}
