//! The connection to a gateway's gRPC API: the first address that answers, credentials, deadlines; and the three ways
//! a command can fail, with their exit codes (spec/ctl.md A.2).

use std::time::Duration;

use base64::Engine as _;
use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::{Error, address};
use pinfold_proto::api;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::cli::Global;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A bad argument, an unreadable file: exit code 1, on stderr.
    #[error("error {doing}: {message}")]
    Local { doing: String, message: String },
    /// The API could not be reached: exit code 1, on stdout as an API error with code 0.
    #[error("{0}")]
    Network(String),
    /// The cluster said no: exit code 2, on stdout.
    #[error("{0}")]
    Api(Error),
    /// `--wait` ran out of time: exit code 62.
    #[error("error waiting for pin status: context deadline exceeded")]
    WaitTimedOut,
    /// Something was refused for a reason that is told already; the exit code alone is left.
    #[error("exit code {0}")]
    Exit(u8),
}

pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub fn local(doing: impl Into<String>, message: impl ToString) -> Failure {
        Failure::Local { doing: doing.into(), message: message.to_string() }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Failure {
        // A status that the server did not send has a transport error as its source.
        let transport = std::error::Error::source(&status).is_some_and(|source| !source.is::<tonic::Status>());
        if transport && status.code() == tonic::Code::Unavailable {
            return Failure::Network(status.message().to_owned());
        }
        if status.code() == tonic::Code::Cancelled && status.message().contains("Timeout") {
            return Failure::Network("the request took longer than --timeout".to_owned());
        }
        Failure::Api(status.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Api(error)
    }
}

#[derive(Clone)]
pub struct Credentials(Option<MetadataValue<Ascii>>);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

pub type Authorized = InterceptedService<Channel, Credentials>;

/// A connected API.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    credentials: Credentials,
}

impl Client {
    /// Connects to the first address that answers.
    pub async fn connect(global: &Global) -> Outcome<Client> {
        let credentials = match &global.basic_auth {
            None => Credentials(None),
            Some(pair) => {
                let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
                let value = format!("Basic {encoded}").parse();
                Credentials(Some(value.map_err(|error| Failure::local("reading --basic-auth", error))?))
            }
        };
        let mut last = Failure::local("reading --host", "no address");
        for host in &global.host {
            match Client::connect_to(global, host).await {
                Ok(channel) => return Ok(Client { channel, credentials }),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn connect_to(global: &Global, host: &str) -> Outcome<Channel> {
        let authority = if host.starts_with('/') {
            address::parse_multiaddr(host).and_then(|address| address::host_port(&address))
        } else {
            Ok(host.to_owned())
        };
        let authority = authority.map_err(|error| Failure::local("reading --host", error))?;
        let scheme = if global.https { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{authority}"))
            .map_err(|error| Failure::local("reading --host", error))?
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_nodelay(true);
        if global.timeout > 0 {
            endpoint = endpoint.timeout(Duration::from_secs(global.timeout));
        }
        if global.https {
            let tls = match &global.ca_cert {
                None => ClientTlsConfig::new().with_webpki_roots(),
                Some(path) => {
                    let pem = std::fs::read(path);
                    let pem = pem.map_err(|error| Failure::local(format!("reading {}", path.display()), error))?;
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
                }
            };
            endpoint = endpoint.tls_config(tls).map_err(|error| Failure::local("setting up TLS", error))?;
        }
        endpoint.connect().await.map_err(|error| {
            let mut reason: &dyn std::error::Error = &error;
            while let Some(source) = reason.source() {
                reason = source;
            }
            Failure::Network(format!("connect to {authority}: {reason}; is a peer running there? `ctl up` starts some"))
        })
    }

    pub fn cluster(&self) -> api::cluster_client::ClusterClient<Authorized> {
        api::cluster_client::ClusterClient::with_interceptor(self.channel.clone(), self.credentials.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn pins(&self) -> api::pins_client::PinsClient<Authorized> {
        api::pins_client::PinsClient::with_interceptor(self.channel.clone(), self.credentials.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn repin(&self) -> api::repin_client::RepinClient<Authorized> {
        api::repin_client::RepinClient::with_interceptor(self.channel.clone(), self.credentials.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn state(&self) -> api::state_client::StateClient<Authorized> {
        api::state_client::StateClient::with_interceptor(self.channel.clone(), self.credentials.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn add(&self) -> api::add_client::AddClient<Authorized> {
        api::add_client::AddClient::with_interceptor(self.channel.clone(), self.credentials.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}
