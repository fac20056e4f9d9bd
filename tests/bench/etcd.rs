//! A yardstick: etcd, where it is on the PATH, with three members on the same disk in the same run. Its puts and our
//! single proposals are answered after a majority's fsync, and both come over gRPC at the leader. Ours know who speaks to
//! them and encrypt every link; etcd does as it is told, so it is measured both ways.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::process::{Child, Command};
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_prost::ProstCodec;

use crate::load::{Outcome, closed_loop};
use crate::rest::Failed;
use crate::rooms::CONNECTIONS;

const MEMBERS: usize = 3;
const HOST: &str = "127.0.0.1";
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

/// How members speak to each other and to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    Plain,
    /// TLS with certificates on both sides, as all links of ours.
    MutualTls,
}

/// What both sides of a link show, and whom they believe. PEM.
#[derive(Clone)]
struct Papers {
    authority: String,
    certificate: String,
    key: String,
}

impl Papers {
    fn issue() -> Result<Papers, rcgen::Error> {
        let authority_key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key)?.pem();
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let issuer = Issuer::new(params, authority_key);
        let certificate = CertificateParams::new([HOST.to_owned()])?.signed_by(&key, &issuer)?.pem();
        Ok(Papers { authority, certificate, key: key.serialize_pem() })
    }

    /// Written into `folder`, and as etcd's flags.
    fn flags(&self, folder: &Path) -> std::io::Result<Vec<OsString>> {
        let mut flags = Vec::new();
        for (name, text) in [("ca", &self.authority), ("cert", &self.certificate), ("key", &self.key)] {
            let path = folder.join(format!("etcd-{name}.pem"));
            std::fs::write(&path, text)?;
            let flag = if name == "ca" { "trusted-ca" } else { name };
            for side in ["", "peer-"] {
                flags.extend([format!("--{side}{flag}-file").into(), path.clone().into_os_string()]);
            }
        }
        flags.extend(["--client-cert-auth".into(), "--peer-client-cert-auth".into()]);
        Ok(flags)
    }
}

/// Running members. Killed when dropped.
pub struct Etcd {
    leader: Member,
    counter: Arc<AtomicU64>,
    _members: Vec<Child>,
}

impl Etcd {
    /// `None` without etcd.
    pub async fn start(folder: &Path, links: Links) -> Result<Option<Etcd>, Failed> {
        let papers = (links == Links::MutualTls).then(Papers::issue).transpose()?;
        std::fs::create_dir_all(folder)?;
        let Some(members) = start(folder, papers.as_ref())? else {
            println!("etcd is not on the PATH: not measured");
            return Ok(None);
        };
        let leader = leader(&members).await?;
        let members = members.into_iter().map(|(process, _)| process).collect();
        Ok(Some(Etcd { leader, counter: Arc::default(), _members: members }))
    }

    /// Puts of [`VALUE_BYTES`] at the leader, each client its next one when the last one is acknowledged.
    pub async fn puts(&self, clients: usize, time: Duration) -> Result<Outcome, Failed> {
        let channels: Result<Vec<Channel>, _> = (0..clients.min(CONNECTIONS)).map(|_| self.leader.channel()).collect();
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

/// Where one of them is asked.
#[derive(Clone)]
struct Member {
    authority: String,
    papers: Option<Papers>,
}

impl Member {
    fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let Member { authority, papers } = self;
        let endpoint = match papers {
            None => Endpoint::from_shared(format!("http://{authority}"))?,
            Some(papers) => {
                let tls = ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(&papers.authority))
                    .identity(Identity::from_pem(&papers.certificate, &papers.key));
                Endpoint::from_shared(format!("https://{authority}"))?.tls_config(tls)?
            }
        };
        Ok(endpoint.tcp_nodelay(true).connect_lazy())
    }
}

/// `None` without etcd.
fn start(folder: &Path, papers: Option<&Papers>) -> Result<Option<Vec<(Child, Member)>>, Failed> {
    let free = || Ok::<_, std::io::Error>(TcpListener::bind((HOST, 0))?.local_addr()?.to_string());
    let addresses: Vec<(String, String)> =
        (0..MEMBERS).map(|_| Ok((free()?, free()?))).collect::<Result<_, std::io::Error>>()?;
    let scheme = if papers.is_some() { "https" } else { "http" };
    let cluster: Vec<String> =
        addresses.iter().enumerate().map(|(index, (peer, _))| format!("m{index}={scheme}://{peer}")).collect();
    let flags = papers.map(|papers| papers.flags(folder)).transpose()?.unwrap_or_default();
    let mut members = Vec::new();
    for (index, (peer, authority)) in addresses.into_iter().enumerate() {
        let (peer, client) = (format!("{scheme}://{peer}"), format!("{scheme}://{authority}"));
        let process = Command::new("etcd")
            .args(["--name", &format!("m{index}"), "--data-dir"])
            .arg(folder.join(format!("etcd{index}")))
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--initial-cluster", &cluster.join(","), "--log-level", "error"])
            .args(&flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        match process {
            Ok(process) => members.push((process, Member { authority, papers: papers.cloned() })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(members))
}

/// The member that leads.
async fn leader(members: &[(Child, Member)]) -> Result<Member, Failed> {
    let started = Instant::now();
    while started.elapsed() < START_DEADLINE {
        for (_, member) in members {
            let reply: Result<StatusReply, _> =
                ask(member.channel()?, "/etcdserverpb.Maintenance/Status", Nothing {}).await;
            if let Ok(StatusReply { header: Some(header), leader }) = reply
                && leader != 0
                && header.member_id == leader
            {
                return Ok(member.clone());
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("etcd has no leader in time".into())
}
