//! A yardstick: etcd, where it is on the PATH, with three members on the same disk in the same run. Its puts and our
//! single proposals are answered after a majority's fsync, and both come over gRPC at the leader.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::load::{Outcome, closed_loop};
use crate::rest::Failed;
use crate::rooms::CONNECTIONS;

const MEMBERS: usize = 3;
/// About what a pin takes.
const VALUE_BYTES: usize = 300;
const START_DEADLINE: Duration = Duration::from_secs(30);

/// etcdserverpb.PutRequest
#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes, tag = "1")]
    key: Vec<u8>,
    #[prost(bytes, tag = "2")]
    value: Vec<u8>,
}

/// An answer or a question of which nothing is read.
#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

/// etcdserverpb.StatusResponse
#[derive(Clone, PartialEq, prost::Message)]
struct StatusReply {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

async fn ask<Q, A>(channel: Channel, path: &'static str, question: Q) -> Result<A, tonic::Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let answer = client.unary(Request::new(question), PathAndQuery::from_static(path), ProstCodec::default()).await?;
    Ok(answer.into_inner())
}

/// Running members. Killed when dropped.
pub struct Etcd {
    leader: String,
    counter: Arc<AtomicU64>,
    _members: Vec<Child>,
}

impl Etcd {
    /// `None` without etcd.
    pub async fn start(folder: &Path) -> Result<Option<Etcd>, Failed> {
        let Some(members) = start(folder)? else {
            println!("etcd is not on the PATH: not measured");
            return Ok(None);
        };
        let leader = leader(&members).await?;
        let members = members.into_iter().map(|(process, _)| process).collect();
        Ok(Some(Etcd { leader, counter: Arc::default(), _members: members }))
    }

    /// Puts of [`VALUE_BYTES`] at the leader, each client its next one when the last one is acknowledged.
    pub async fn puts(&self, clients: usize, time: Duration) -> Result<Outcome, Failed> {
        let channels: Result<Vec<Channel>, _> = (0..clients.min(CONNECTIONS)).map(|_| channel(&self.leader)).collect();
        let channels = channels?;
        let puts = closed_loop(clients, time, &self.counter, move |client, number| {
            let channel = channels[client % channels.len()].clone();
            async move {
                let put = Put { key: format!("key-{number}").into_bytes(), value: vec![7; VALUE_BYTES] };
                ask::<_, Nothing>(channel, "/etcdserverpb.KV/Put", put).await.is_ok()
            }
        });
        Ok(puts.await)
    }
}

/// The members with their client addresses; `None` without etcd.
fn start(folder: &Path) -> Result<Option<Vec<(Child, String)>>, Failed> {
    let free = || Ok::<_, std::io::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string());
    let addresses: Vec<(String, String)> =
        (0..MEMBERS).map(|_| Ok((free()?, free()?))).collect::<Result<_, std::io::Error>>()?;
    let cluster: Vec<String> =
        addresses.iter().enumerate().map(|(index, (peer, _))| format!("m{index}=http://{peer}")).collect();
    let mut members = Vec::new();
    for (index, (peer, client)) in addresses.into_iter().enumerate() {
        let (peer, client_url) = (format!("http://{peer}"), format!("http://{client}"));
        let process = Command::new("etcd")
            .args(["--name", &format!("m{index}"), "--data-dir"])
            .arg(folder.join(format!("etcd{index}")))
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--initial-cluster", &cluster.join(","), "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        match process {
            Ok(process) => members.push((process, client)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(members))
}

fn channel(authority: &str) -> Result<Channel, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{authority}"))?.tcp_nodelay(true).connect_lazy())
}

/// The client address of the member that leads.
async fn leader(members: &[(Child, String)]) -> Result<String, Failed> {
    let started = Instant::now();
    while started.elapsed() < START_DEADLINE {
        for (_, authority) in members {
            let reply: Result<StatusReply, _> =
                ask(channel(authority)?, "/etcdserverpb.Maintenance/Status", Nothing {}).await;
            if let Ok(StatusReply { header: Some(header), leader }) = reply
                && leader != 0
                && header.member_id == leader
            {
                return Ok(authority.clone());
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("etcd has no leader in time".into())
}
