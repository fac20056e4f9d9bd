//! Callers who must not be heard on the ports between services: without TLS, with an old TLS, without a certificate,
//! from another cluster, from this cluster but not a member, and members who ask for what is another peer's own.

use std::sync::Arc;

use bytes::Bytes;
use pinfold_common::channel::{Channels, explain};
use pinfold_common::identity::Identity;
use pinfold_common::tls::{ClusterSecret, Room, Tls};
use pinfold_common::{Code, ids};
use pinfold_proto::{AUDIENCES, Audience, DESCRIPTORS, WIRE_VERSION, consensus, storage, types};
use pinfold_tests::cluster::TestCluster;
use pinfold_tests::content;
use pinfold_tests::raw::Connection;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::transport::Channel;

use super::Watch;
use super::grpc::{call, refusal};

/// Rooms that listen for other services.
const ROOMS: [Room; 3] = [Room::Consensus, Room::Monitor, Room::Connector];

/// Every service between the rooms with its audience and methods, as the descriptors have them.
fn services() -> Vec<(String, Audience, Vec<String>)> {
    let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap().file;
    let mut all = Vec::new();
    for file in &files {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            let audience = AUDIENCES.iter().find(|(known, _)| *known == name).map(|(_, audience)| *audience);
            let methods = service.method.iter().map(|method| method.name().to_owned()).collect();
            match audience {
                Some(Audience::Public) | None => {}
                Some(audience) => all.push((name, audience, methods)),
            }
        }
    }
    all
}

fn room_of(service: &str) -> Room {
    match service.split('.').nth(1) {
        Some("consensus") => Room::Consensus,
        Some("monitor") => Room::Monitor,
        Some("connector") => Room::Connector,
        _ => panic!("{service} is in no room"),
    }
}

fn address(cluster: &TestCluster, room: Room) -> String {
    cluster.config(0).announce(room).unwrap()
}

/// A way from `identity` to the first peer's service.
fn channel(cluster: &TestCluster, secret: &ClusterSecret, identity: &Identity, room: Room) -> Channel {
    let tls: Arc<Tls> = Tls::new(secret, identity, Room::Consensus).unwrap();
    Channels::new(tls).to(room, &cluster.peer(0).peer_id, &address(cluster, room))
}

/// A TLS 1.2 client hello as OpenSSL 1.0 sent it: no supported_versions, hence nothing newer.
fn old_hello() -> Vec<u8> {
    let mut body = vec![0x03, 0x03];
    body.extend([0x5a; 32]); // random
    body.push(0); // no session
    let suites: [u16; 4] = [0xc02b, 0xc02f, 0xc030, 0x009c];
    body.extend(((suites.len() * 2) as u16).to_be_bytes());
    body.extend(suites.iter().flat_map(|suite| suite.to_be_bytes()));
    body.extend([1, 0]); // no compression
    let extensions = [
        &[0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x1d][..], // groups: x25519
        &[0x00, 0x0d, 0x00, 0x08, 0x00, 0x06, 0x04, 0x03, 0x08, 0x04, 0x08, 0x07][..], // signature schemes
    ]
    .concat();
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut handshake = vec![0x01, 0x00];
    handshake.extend((body.len() as u16).to_be_bytes());
    handshake.extend(body);
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend((handshake.len() as u16).to_be_bytes());
    record.extend(handshake);
    record
}

const ALERT_RECORD: u8 = 21;
const FATAL: u8 = 2;
const PROTOCOL_VERSION: u8 = 70;

/// Goal: a port between services speaks TLS 1.3 with members of this cluster, and to nobody else a single byte of
/// content (attack:TL*, RP*).
#[tokio::test(flavor = "multi_thread")]
async fn links_between_services_refuse_strangers() {
    let cluster = TestCluster::start(3).await;
    let mut watch = Watch::new(&cluster);
    let secret = cluster.config(0).secret().unwrap();
    for room in ROOMS {
        not_tls(&cluster, &mut watch, room).await;
        let other = channel(&cluster, &ClusterSecret::generate(), &Identity::generate(), room);
        let found = match call(other, "/pinfold.monitor.v1.Gossip/Pull", Bytes::new()).await {
            Ok(_) => Err("it was answered".to_owned()),
            Err(status) => match explain(status) {
                error if error.code == Code::Unauthenticated && error.message.contains("another cluster secret") => {
                    Ok(())
                }
                error => Err(format!("{:?} {error}", error.code)),
            },
        };
        watch.note(&format!("another cluster's secret at {room}"), found);
    }

    let member = Identity::load(&cluster.peer(1).folder).unwrap();
    let stranger = Identity::generate();
    let services = services();
    let internal = AUDIENCES.iter().filter(|(_, audience)| *audience != Audience::Public).count();
    assert!(services.len() == internal && internal >= 12, "{internal} audiences of {} services", services.len());
    for (service, audience, methods) in &services {
        let room = room_of(service);
        let by_member = channel(&cluster, &secret, &member, room);
        let by_stranger = channel(&cluster, &secret, &stranger, room);
        for method in methods {
            let path = format!("/{service}/{method}");
            let denied = &[tonic::Code::PermissionDenied][..];
            let unknown = &[tonic::Code::Unavailable][..];
            match audience {
                Audience::Own => {
                    let found =
                        refusal(call(by_member.clone(), &path, Bytes::new()).await, denied, "permission_denied", "");
                    watch.note(&format!("a member calls {path}"), found);
                    let found =
                        refusal(call(by_stranger.clone(), &path, Bytes::new()).await, denied, "permission_denied", "");
                    watch.note(&format!("a stranger calls {path}"), found);
                }
                Audience::Member => {
                    let found =
                        refusal(call(by_stranger.clone(), &path, Bytes::new()).await, unknown, "unknown_member", "");
                    watch.note(&format!("a stranger calls {path}"), found);
                }
                // Heard for what it says: see below.
                Audience::Raft | Audience::Joining => {}
                Audience::Public => unreachable!("not between the rooms"),
            }
        }
        for (public, _) in AUDIENCES.iter().filter(|(_, audience)| *audience == Audience::Public) {
            let path = format!("/{public}/Pin");
            let found = refusal(
                call(by_member.clone(), &path, Bytes::new()).await,
                &[tonic::Code::PermissionDenied],
                "permission_denied",
                "public port",
            );
            watch.note(&format!("{path} on the port of {room}"), found);
        }
    }
    raft(&cluster, &mut watch, &secret, &stranger, &member).await;
    joining(&cluster, &mut watch, &secret, &stranger).await;
    watch.nothing_changed(60).await;
}

/// Bytes that are no TLS 1.3 with a certificate.
async fn not_tls(cluster: &TestCluster, watch: &mut Watch<'_>, room: Room) {
    let at = address(cluster, room);
    for (what, bytes) in [
        ("plain HTTP/1", b"GET /id HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("plain HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("64 KiB of noise", content::bytes(1, 65_536)),
        ("half a client hello", old_hello()[..20].to_vec()),
        ("silence", Vec::new()),
        ("a record of no type", vec![0xff; 100]),
    ] {
        let mut connection = Connection::open(&at).await.unwrap();
        connection.write(&bytes).await;
        let found = match connection.read_to_close().await {
            None => Err("the connection stays open".to_owned()),
            // At most an alert.
            Some(answer) if answer.is_empty() || answer[0] == ALERT_RECORD && answer.len() < 64 => Ok(()),
            Some(answer) => Err(format!("an answer of {} bytes: {:?}", answer.len(), String::from_utf8_lossy(&answer))),
        };
        watch.note(&format!("{what} to {room}"), found);
    }
    let mut connection = Connection::open(&at).await.unwrap();
    connection.write(&old_hello()).await;
    let found = match connection.read_to_close().await {
        Some(answer)
            if answer.len() >= 7 && (answer[0], answer[5], answer[6]) == (ALERT_RECORD, FATAL, PROTOCOL_VERSION) =>
        {
            Ok(())
        }
        other => Err(format!("{other:?}")),
    };
    watch.note(&format!("TLS 1.2 to {room}"), found);
    // TLS 1.3 from somebody who shows no certificate.
    let anonymous = reqwest::Client::builder().danger_accept_invalid_certs(true).build().unwrap();
    let found = match anonymous.get(format!("https://{at}/")).send().await {
        Err(_) => Ok(()),
        Ok(answer) => Err(format!("answered {}", answer.status())),
    };
    watch.note(&format!("no certificate to {room}"), found);
}

/// Raft hears whoever holds the secret, and believes only what is of this cluster, for this node, and from the key that
/// the node is known by.
async fn raft(
    cluster: &TestCluster,
    watch: &mut Watch<'_>,
    secret: &ClusterSecret,
    stranger: &Identity,
    member: &Identity,
) {
    use consensus::raft_client::RaftClient;
    let room = Room::Consensus;
    let own = Identity::load(&cluster.peer(0).folder).unwrap();
    let own = channel(cluster, secret, &own, room);
    let mut status = consensus::peers_client::PeersClient::new(own);
    let before = status.status(consensus::StatusCall {}).await.unwrap().into_inner();
    let row = |index: usize| {
        let peers = &before.peerset.as_ref().unwrap().peers;
        peers.iter().find(|peer| peer.peer_id == cluster.peer(index).peer_id.to_bytes()).unwrap().node_id
    };
    let target = consensus::Target { cluster_id: before.cluster_id.clone(), to: before.node_id, from: row(1) };
    let leader = Some(storage::LeaderId { term: 1 << 40, ..storage::LeaderId::default() });
    let high = storage::Vote { leader, committed: false };
    let vote = |target: Option<consensus::Target>| consensus::VoteRequest {
        target,
        vote: Some(high),
        last_log_id: None,
        leadership_transfer: false,
    };
    for (what, identity, target) in [
        ("another cluster", member, Some(consensus::Target { cluster_id: vec![7; 16], ..target.clone() })),
        ("no cluster", member, Some(consensus::Target { cluster_id: Vec::new(), ..target.clone() })),
        ("another node", member, Some(consensus::Target { to: row(2), ..target.clone() })),
        ("nobody", member, None),
        ("as somebody else", member, Some(consensus::Target { from: row(2), ..target.clone() })),
        ("as a member with a stranger's key", stranger, Some(target.clone())),
    ] {
        let mut raft = RaftClient::new(channel(cluster, secret, identity, room));
        let any = &[
            tonic::Code::InvalidArgument,
            tonic::Code::PermissionDenied,
            tonic::Code::FailedPrecondition,
            tonic::Code::Unavailable,
            tonic::Code::NotFound,
        ];
        watch.note(&format!("a vote to {what}"), refusal(raft.vote(vote(target.clone())).await, any, "", ""));
        watch.note(&format!("a pre-vote to {what}"), refusal(raft.pre_vote(vote(target.clone())).await, any, "", ""));
        let append = consensus::AppendRequest { target, vote: Some(high), ..consensus::AppendRequest::default() };
        let found = match raft.append(futures::stream::iter([append])).await {
            Err(_) => Ok(()),
            Ok(replies) => match replies.into_inner().message().await {
                Ok(Some(reply)) => Err(format!("{reply:?}")),
                Ok(None) | Err(_) => Ok(()),
            },
        };
        watch.note(&format!("entries to {what}"), found);
    }
    let after = status.status(consensus::StatusCall {}).await.unwrap().into_inner();
    assert!(after.term < 1 << 30, "a stranger's term was taken: {}", after.term);
    assert_eq!(after.peerset, before.peerset);
}

/// Joining is for whoever holds the secret; what does not fit is refused before a row is made.
async fn joining(cluster: &TestCluster, watch: &mut Watch<'_>, secret: &ClusterSecret, stranger: &Identity) {
    use consensus::membership_client::MembershipClient;
    let addresses = types::ServiceAddresses {
        consensus: "127.0.0.1:1".into(),
        monitor: "127.0.0.1:2".into(),
        connector: "127.0.0.1:3".into(),
        gateway: "127.0.0.1:4".into(),
    };
    let good = consensus::JoinCall {
        name: "stranger".into(),
        addresses: Some(addresses),
        multiaddresses: vec![format!("/ip4/127.0.0.1/tcp/1/p2p/{}", stranger.peer_id)],
        version: "9.9.9".into(),
        wire_version: WIRE_VERSION.into(),
        ..consensus::JoinCall::default()
    };
    let mut join = MembershipClient::new(channel(cluster, secret, stranger, Room::Consensus));
    let other_wire = consensus::JoinCall { wire_version: "9.9".into(), ..good.clone() };
    let answer = join.join(other_wire).await;
    let named = match &answer {
        Err(status) => status.message().contains("9.9") && status.message().contains(WIRE_VERSION),
        Ok(_) => false,
    };
    let found = refusal(answer, &[tonic::Code::FailedPrecondition], "incompatible", "");
    watch.note(
        "joins with another wire version",
        found.and(if named { Ok(()) } else { Err("both versions must be named".into()) }),
    );
    let other_cluster = consensus::JoinCall { cluster_id: vec![7; 16], node_id: 7, ..good.clone() };
    let codes = &[tonic::Code::FailedPrecondition, tonic::Code::PermissionDenied, tonic::Code::InvalidArgument];
    watch.note("joins as a member of another cluster", refusal(join.join(other_cluster).await, codes, "", ""));
    let somebody = ids::parse_peer_id("12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6").unwrap();
    let for_another = consensus::JoinCall { forwarded: true, on_behalf_of: somebody.to_bytes(), ..good.clone() };
    let codes = &[tonic::Code::PermissionDenied, tonic::Code::Unavailable];
    watch.note("joins for somebody else", refusal(join.join(for_another).await, codes, "", ""));
    let nowhere = consensus::JoinCall { addresses: None, ..good };
    watch.note(
        "joins from nowhere",
        refusal(join.join(nowhere).await, &[tonic::Code::InvalidArgument], "invalid_argument", ""),
    );
}
