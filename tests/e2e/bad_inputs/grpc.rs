//! Bad messages to the public gRPC API: typed ones with wrong fields, bytes that are no message, services that are not
//! there. Each is refused with a status, the name of its code in `pinfold-code`, and a message that names the field.

use bytes::{Buf, BufMut, Bytes};
use pinfold_common::ids::parse_peer_id;
use pinfold_proto::{api, types};
use pinfold_tests::cluster::TestCluster;
use pinfold_tests::content;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::Watch;

/// Sends and takes bytes as they are.
#[derive(Clone, Copy, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// One call with any bytes to any method.
pub async fn call(channel: Channel, path: &str, message: impl Into<Bytes>) -> Result<Response<Bytes>, Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::try_from(path).expect("a path");
    client.unary(Request::new(message.into()), path, Raw).await
}

/// Whether a call was refused as it should be. An empty `named` is not looked at.
pub fn refusal<T>(
    answer: Result<Response<T>, Status>,
    codes: &[Code],
    named: &str,
    message: &str,
) -> Result<(), String> {
    let Err(status) = answer else { return Err("it was answered".to_owned()) };
    let told =
        status.metadata().get("pinfold-code").map(|value| value.to_str().unwrap_or_default()).unwrap_or_default();
    if !codes.contains(&status.code()) || !named.is_empty() && told != named {
        return Err(format!("{:?} {told:?} instead of {codes:?} {named:?}: {}", status.code(), status.message()));
    }
    if !status.message().contains(message)
        || status.message().is_empty()
        || status.message().len() > super::MAX_MESSAGE_BYTES
    {
        return Err(format!("{:?} instead of {message:?}", status.message()));
    }
    Ok(())
}

const INVALID: &[Code] = &[Code::InvalidArgument];
const REJECTED: &[Code] = &[Code::FailedPrecondition];

fn request() -> types::PinRequest {
    let cid = content::identity_cid("could be pinned").to_bytes();
    types::PinRequest { cid, r#type: types::PinType::Data as i32, max_depth: -1, ..types::PinRequest::default() }
}

fn with_options(change: impl FnOnce(&mut types::PinOptions)) -> types::PinRequest {
    let mut options = types::PinOptions::default();
    change(&mut options);
    types::PinRequest { options: Some(options), ..request() }
}

fn factors(min: i32, max: i32) -> types::PinRequest {
    with_options(|options| (options.replication_factor_min, options.replication_factor_max) = (min, max))
}

fn metadata(entries: usize, bytes: usize) -> Vec<types::KeyValue> {
    (0..entries).map(|at| types::KeyValue { key: at.to_string(), value: "v".repeat(bytes) }).collect()
}

/// Requests to pin, each with one thing wrong: code, its name, what the message says.
fn bad_requests() -> Vec<(&'static str, types::PinRequest, &'static [Code], &'static str, &'static str)> {
    let invalid = |what, request, message| (what, request, INVALID, "invalid_argument", message);
    let rejected = |what, request, message| (what, request, REJECTED, "rejected", message);
    let cid = |cid: Vec<u8>| types::PinRequest { cid, ..request() };
    let good = request().cid;
    let peer = parse_peer_id("12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6").unwrap().to_bytes();
    vec![
        invalid("no CID", cid(Vec::new()), "cid"),
        invalid("a CID of one byte", cid(vec![1]), "cid"),
        invalid("a CID of bytes", cid(vec![0xff; 36]), "cid"),
        invalid("a CID with bytes after its end", cid([good, vec![0]].concat()), "cid"),
        invalid("a CID of 10 KiB", cid(vec![1; 10_240]), "cid"),
        invalid("a type that is none", types::PinRequest { r#type: 77, ..request() }, "type"),
        invalid("a negative type", types::PinRequest { r#type: -1, ..request() }, "type"),
        invalid("a shard", types::PinRequest { r#type: types::PinType::Shard as i32, ..request() }, "type"),
        invalid("a root of shards", types::PinRequest { r#type: types::PinType::Meta as i32, ..request() }, "type"),
        invalid("a depth of 5", types::PinRequest { max_depth: 5, ..request() }, "max_depth"),
        invalid("a depth of -5", types::PinRequest { max_depth: -5, ..request() }, "max_depth"),
        invalid(
            "its own allocations",
            types::PinRequest { allocations: vec![peer.clone()], ..request() },
            "allocations",
        ),
        invalid(
            "a wish that is no peer",
            types::PinRequest { user_allocations: vec![vec![9; 9]], ..request() },
            "user_allocations",
        ),
        invalid(
            "an empty wish",
            types::PinRequest { user_allocations: vec![Vec::new()], ..request() },
            "user_allocations",
        ),
        invalid("300 wishes", types::PinRequest { user_allocations: vec![peer; 300], ..request() }, "user_allocations"),
        invalid("a name of 2,000 bytes", with_options(|options| options.name = "n".repeat(2000)), "name"),
        invalid("1,025 metadata entries", with_options(|options| options.metadata = metadata(1025, 1)), "metadata"),
        invalid("1 MiB of metadata", with_options(|options| options.metadata = metadata(1, 1 << 20)), "metadata"),
        invalid("an origin that is none", with_options(|options| options.origins = vec![vec![0xff; 8]]), "origins"),
        invalid("65 origins", with_options(|options| options.origins = vec![vec![4, 1, 2, 3, 4]; 65]), "origins"),
        invalid(
            "an origin without a peer",
            with_options(|options| options.origins = vec![vec![4, 1, 2, 3, 4]]),
            "peer ID",
        ),
        invalid("an update from nonsense", with_options(|options| options.pin_update = vec![9; 9]), "pin_update"),
        rejected("a minimum above the maximum", factors(3, 2), "cluster.replication_factor_min is larger than max"),
        rejected("a factor of -2", factors(-2, -2), "cluster.replication_factor_min is wrong"),
        rejected(
            "one of them -1",
            factors(-1, 2),
            "cluster.replication_factor_min and max must be -1 when one of them is",
        ),
        rejected(
            "an end in the past",
            with_options(|options| options.expire_at_seconds = 1),
            "pin.ExpireAt set before current time",
        ),
        (
            "more copies than peers",
            factors(9, 9),
            REJECTED,
            "not_enough_peers",
            "not enough peers to allocate CID. Needed at least: 9. ",
        ),
        (
            "an update from what is not pinned",
            with_options(|options| options.pin_update = content::identity_cid("not there").to_bytes()),
            &[Code::NotFound],
            "not_found",
            "pin is not part of the pinset",
        ),
    ]
}

/// Bytes that are no `PinItem`.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    // Field 1, length-delimited, in itself, and so on.
    let nested = (0..2000).fold(Vec::new(), |inner: Vec<u8>, _| {
        let mut outer = vec![0x0a];
        let mut length = inner.len();
        while length >= 0x80 {
            outer.push(length as u8 | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        outer.extend(inner);
        outer
    });
    vec![
        ("bytes", content::bytes(7, 1000)),
        ("a length beyond the message", vec![0x0a, 0x7f, 0x01]),
        ("a length of 2^64", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ("a varint without end", vec![0xff; 20]),
        ("a group that never ends", vec![0x0b]),
        ("the end of no group", vec![0x0c]),
        ("field 0", vec![0x02, 0x00]),
        ("a wire type that is none", vec![0x0f, 0x00]),
        ("a number where a message belongs", vec![0x08, 0x01]),
        ("text that is not UTF-8", vec![0x0a, 0x06, 0x22, 0x04, 0x1a, 0x02, 0xff, 0xfe]),
        ("2,000 messages in each other", nested),
    ]
}

/// Goal: whatever is sent to the public gRPC API, what is wrong is named, and nothing happens (attack:IN14, HT13).
#[tokio::test(flavor = "multi_thread")]
async fn grpc_refuses_by_name() {
    let cluster = TestCluster::start(3).await;
    let mut watch = Watch::new(&cluster);
    let mut pins = cluster.pins(0);
    for (what, request, codes, named, message) in bad_requests() {
        let item = api::PinItem { request: Some(request.clone()), request_key: Vec::new() };
        let found = refusal(pins.pin(item).await, codes, named, message);
        watch.note(&format!("pin {what}"), found);
        if codes == INVALID {
            let requests = vec![self::request(), request];
            let many = api::PinManyRequest { requests, request_key: Vec::new() };
            let found = refusal(pins.pin_many(many).await, codes, named, "");
            watch.note(&format!("pin many, one of them {what}"), found);
        }
    }
    let no_request = api::PinItem { request: None, request_key: Vec::new() };
    watch.note("nothing to pin", refusal(pins.pin(no_request).await, INVALID, "invalid_argument", "request"));
    let long_key = api::PinItem { request: Some(request()), request_key: vec![0; 65] };
    watch.note(
        "a request key of 65 bytes",
        refusal(pins.pin(long_key).await, INVALID, "invalid_argument", "request_key"),
    );
    let many = api::PinManyRequest { requests: vec![request(); 1001], request_key: Vec::new() };
    watch.note("1,001 items", refusal(pins.pin_many(many).await, INVALID, "invalid_argument", "1000"));
    for path in ["", "nope", "/ipfs/", "/ipfs/bafkqaaa/../x", "/etc/passwd", "/ipfs/nope"] {
        let item = api::PinPathRequest { path: path.to_owned(), request: Some(request()), request_key: Vec::new() };
        let found = refusal(pins.pin_path(item).await, INVALID, "invalid_argument", "error parsing path: ");
        watch.note(&format!("pin the path {path:?}"), found);
        let item = api::UnpinPathRequest { path: path.to_owned(), request_key: Vec::new() };
        let found = refusal(pins.unpin_path(item).await, INVALID, "invalid_argument", "error parsing path: ");
        watch.note(&format!("unpin the path {path:?}"), found);
    }
    for cid in [Vec::new(), vec![0x01, 0x55], vec![0xff; 200]] {
        let what = format!("a CID of {} bytes", cid.len());
        let named = "invalid_argument";
        let unpin = api::UnpinRequest { cid: cid.clone(), request_key: Vec::new() };
        watch.note(&format!("unpin {what}"), refusal(pins.unpin(unpin).await, INVALID, named, "cid"));
        let get = api::GetRequest { cid: cid.clone(), consistent: true };
        watch.note(&format!("get {what}"), refusal(pins.get(get).await, INVALID, named, "cid"));
        let status = api::StatusRequest { cid: cid.clone(), local: false };
        watch.note(&format!("status of {what}"), refusal(pins.status(status).await, INVALID, named, "cid"));
        let recover = api::RecoverRequest { cid: cid.clone(), local: false };
        watch.note(&format!("recover {what}"), refusal(pins.recover(recover).await, INVALID, named, "cid"));
        let all = api::StatusAllRequest { cids: vec![cid.clone()], ..api::StatusAllRequest::default() };
        watch
            .note(&format!("status of a list with {what}"), refusal(pins.status_all(all).await, INVALID, named, "cid"));
        if !cid.is_empty() {
            let list = api::ListRequest { after: cid.clone(), ..api::ListRequest::default() };
            watch.note(&format!("list after {what}"), refusal(pins.list(list).await, INVALID, named, "after"));
            let all = api::StatusAllRequest { after: cid, ..api::StatusAllRequest::default() };
            watch.note(&format!("status after {what}"), refusal(pins.status_all(all).await, INVALID, named, "after"));
        }
    }
    let all = api::StatusAllRequest { cids: vec![request().cid; 1001], ..api::StatusAllRequest::default() };
    watch.note("status of 1,001 CIDs", refusal(pins.status_all(all).await, INVALID, "invalid_argument", "1000"));
    let unpin = api::UnpinRequest { cid: request().cid, request_key: Vec::new() };
    let missing = refusal(pins.unpin(unpin).await, &[Code::NotFound], "not_found", "pin is not part of the pinset");
    watch.note("unpin what is not pinned", missing);
    let get = api::GetRequest { cid: request().cid, consistent: true };
    let missing = refusal(pins.get(get).await, &[Code::NotFound], "not_found", "pin is not part of the pinset");
    watch.note("get what is not pinned", missing);

    let mut peers = cluster.api(0);
    let add = api::AddPeerRequest { peer_id: vec![1, 2, 3], address: String::new() };
    watch.note("add a peer that is none", refusal(peers.add_peer(add).await, INVALID, "invalid_argument", "peer ID"));
    let remove = api::RemovePeerRequest::default();
    watch.note("remove nobody", refusal(peers.remove_peer(remove).await, INVALID, "invalid_argument", "peer ID"));

    // Bytes instead of messages, and methods that are not there.
    let channel = || cluster.peer(0).channel().unwrap();
    for (what, bytes) in garbage() {
        for path in ["/pinfold.api.v1.Pins/Pin", "/pinfold.api.v1.Add/Add"] {
            let found = refusal(call(channel(), path, bytes.clone()).await, INVALID, "", "");
            watch.note(&format!("{what} to {path}"), found);
        }
    }
    let too_large = vec![0x0a; 9 << 20];
    let codes = &[Code::ResourceExhausted, Code::OutOfRange, Code::InvalidArgument];
    let found = refusal(call(channel(), "/pinfold.api.v1.Pins/Pin", too_large).await, codes, "", "");
    watch.note("a message of 9 MiB", found);
    for path in [
        "/pinfold.api.v1.Nothing/Pin",
        "/pinfold.api.v1.Pins/Nothing",
        "/pinfold.api.v1.Pins/pin",
        "/pinfold.consensus.v1.Pins/Pin",
        "/pinfold.consensus.v1.Peers/Status",
        "/pinfold.consensus.v1.Raft/Vote",
        "/pinfold.consensus.v1.Membership/Join",
        "/pinfold.monitor.v1.Monitor/Publish",
        "/pinfold.connector.v1.Node/Status",
        "/pinfold.connector.v1.Tracker/Gc",
    ] {
        let answer = call(channel(), path, Bytes::new()).await;
        let found = match &answer {
            Err(status) if status.code() == Code::Unimplemented => Ok(()),
            Err(status) => Err(format!("{status:?}")),
            Ok(_) => Err("it was answered".to_owned()),
        };
        watch.note(&format!("{path} on the public port"), found);
    }
    uploads(&cluster, &mut watch).await;
    watch.nothing_changed(100).await;
}

/// Messages in the wrong order, and names that lead elsewhere.
async fn uploads(cluster: &TestCluster, watch: &mut Watch<'_>) {
    use api::add_request::Part;
    use api::entry::Kind;
    let options = || Part::Options(api::AddOptions::default());
    let named = |path: &str| {
        Part::Entry(api::Entry { path: path.to_owned(), kind: Kind::File as i32, ..api::Entry::default() })
    };
    let data = |bytes: usize| Part::Data(vec![b'x'; bytes].into());
    let bad_options = |change: fn(&mut api::AddOptions)| {
        let mut options = api::AddOptions::default();
        change(&mut options);
        Part::Options(options)
    };
    for (what, parts) in [
        ("nothing", vec![]),
        ("no options", vec![named("a"), data(1)]),
        ("options twice", vec![options(), named("a"), options()]),
        ("data of no file", vec![options(), data(1)]),
        ("data of 2 MiB", vec![options(), named("a"), data(2 << 20)]),
        ("nothing but options", vec![options()]),
        ("a path upwards", vec![options(), named("../a"), data(1)]),
        ("an absolute path", vec![options(), named("/etc/passwd"), data(1)]),
        ("a path with a NUL", vec![options(), named("a\0b"), data(1)]),
        ("a path of 5,000 bytes", vec![options(), named(&"n".repeat(5000)), data(1)]),
        (
            "a kind that is none",
            vec![options(), Part::Entry(api::Entry { path: "a".into(), kind: 9, ..api::Entry::default() })],
        ),
        ("a layout that is none", vec![bad_options(|options| options.layout = "bogus".into()), named("a"), data(1)]),
        ("a chunker that is none", vec![bad_options(|options| options.chunker = "bogus".into()), named("a"), data(1)]),
        ("a hash that is none", vec![bad_options(|options| options.hash = "bogus".into()), named("a"), data(1)]),
        ("a CID version of 7", vec![bad_options(|options| options.cid_version = 7), named("a"), data(1)]),
        ("a format that is none", vec![bad_options(|options| options.format = "zip".into()), named("a"), data(1)]),
        ("a long request key", vec![bad_options(|options| options.request_key = vec![0; 65]), named("a"), data(1)]),
        (
            "a wish that is none",
            vec![bad_options(|options| options.user_allocations = vec![vec![9; 9]]), named("a"), data(1)],
        ),
    ] {
        let mut client = api::add_client::AddClient::new(cluster.peer(0).channel().unwrap());
        let messages = parts.into_iter().map(|part| api::AddRequest { part: Some(part) });
        let answer = client.add(futures::stream::iter(messages.collect::<Vec<_>>())).await;
        // The failure may come after some events.
        let answer = match answer {
            Err(status) => Err(status),
            Ok(replies) => {
                let mut replies = replies.into_inner();
                loop {
                    match replies.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => break Ok(Response::new(())),
                        Err(status) => break Err(status),
                    }
                }
            }
        };
        watch.note(&format!("add {what}"), refusal(answer, INVALID, "invalid_argument", ""));
    }
}
