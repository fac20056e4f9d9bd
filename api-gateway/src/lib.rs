//! The public's door to a peer: REST as clients of IPFS Cluster know it, and gRPC, on one port.
//!
//! This room owns nothing that matters: no pin, no peer, no queue; it authenticates, parses, asks the other rooms and
//! encodes. It reaches its own consensus-svc and monitor-svc, and every peer's ipfs-connector. It never decides about
//! pins, never writes to the pinset but through its own consensus-svc, never talks to an IPFS node. On disk it keeps
//! the last peerset it saw, so that it finds the other peers before its consensus-svc answers.
//!
//! It has no error type of its own: what goes wrong here is either a malformed request or another room's word, and
//! both are `pinfold_common::Error`, which knows its HTTP and gRPC statuses.

mod access_log;
pub mod adder;
mod app;
mod auth;
mod cluster;
mod config;
mod fanout;
mod grpc;
mod listen;
mod monitor;
mod rest;

use std::path::Path;
use std::sync::Arc;

use pinfold_common::channel::Channels;
use pinfold_common::config::File;
use pinfold_common::files::lock_folder;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::{Room, Tls};
use pinfold_common::{Error, Result, server, telemetry};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use access_log::AccessLog;
use adder::AddContext;
use app::{App, Timeouts};
use auth::Auth;
use cluster::Cluster;
use listen::Limits;

pub use config::{Config, Rest as RestConfig};

/// The sockets of this room, bound by the caller.
pub struct Listeners {
    /// REST and gRPC; one for each configured address.
    pub public: Vec<TcpListener>,
    pub metrics: Option<TcpListener>,
}

impl Listeners {
    /// Binds what the configuration names.
    pub async fn bind(config: &Config, file: &File) -> Result<Listeners> {
        let mut public = Vec::new();
        for address in &config.rest.listen {
            public.push(server::bind("api.restapi.http_listen_multiaddress", address).await?);
        }
        let metrics = match file.metrics_listen(Room::Gateway)? {
            Some(address) => Some(server::bind("services.gateway.metrics_multiaddress", &address).await?),
            None => None,
        };
        Ok(Listeners { public, metrics })
    }
}

/// Serves until `shutdown`, then lets running requests end.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> Result<()> {
    let _lock = lock_folder(&config.folder)?;
    let tls = Tls::new(&config.secret, &config.identity, Room::Gateway)?;
    let channels = Channels::new(tls);
    let acceptor = acceptor(&config.rest)?;
    let log = match &config.rest.log_file {
        Some(path) => Some(AccessLog::open(path, shutdown.clone()).await?),
        None => None,
    };
    let cluster = Arc::new(Cluster::new(&config, channels.clone(), shutdown.clone()));
    let app = app(&config, channels, cluster, log, shutdown.clone())?;
    let limits = Limits {
        header_bytes: config.rest.header_bytes,
        read_header: config.rest.read_header_timeout,
        idle: config.rest.idle_timeout,
    };
    if let Some(listener) = listeners.metrics {
        tokio::spawn(telemetry::serve_metrics(listener, shutdown.clone()));
    }
    for listener in &listeners.public {
        let address = listener.local_addr().map_err(|error| Error::internal(format!("public port: {error}")))?;
        tracing::info!(%address, peer = %config.identity.peer_id, tls = acceptor.is_some(), "REST and gRPC");
    }
    let ports = listeners
        .public
        .into_iter()
        .map(|listener| listen::serve(listener, acceptor.clone(), limits, app.clone(), shutdown.clone()));
    futures::future::join_all(ports).await;
    Ok(())
}

fn app(
    config: &Config,
    channels: Channels,
    cluster: Arc<Cluster>,
    log: Option<AccessLog>,
    shutdown: Shutdown,
) -> Result<App> {
    let add = AddContext::new(channels, cluster.peers.clone(), cluster.own, config.consensus.clone());
    let grpc = grpc::routes(&cluster, add.clone(), shutdown)?;
    let rest = rest::Rest {
        cluster,
        auth: Arc::new(Auth::new(config.rest.credentials.clone())),
        add,
        cors: config.rest.cors.clone(),
        headers: config.rest.headers.clone(),
    };
    let timeouts = Timeouts { read: config.rest.read_timeout, write: config.rest.write_timeout };
    Ok(App::new(rest, grpc, log, timeouts, config.is_traced))
}

/// TLS of the public port, when certificates are configured. Not the cluster's own: this one is for the public.
fn acceptor(rest: &RestConfig) -> Result<Option<TlsAcceptor>> {
    let Some(files) = &rest.tls else { return Ok(None) };
    let unreadable = |key: &str, path: &Path, error: &dyn std::fmt::Display| {
        Error::invalid(format!("api.restapi.{key}: read {}: {error}", path.display()))
    };
    let certificates = CertificateDer::pem_file_iter(&files.certificates)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| unreadable("ssl_cert_file", &files.certificates, &error))?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unreadable("ssl_key_file", &files.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| Error::internal(format!("TLS of the public port: {error}")))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| Error::invalid(format!("api.restapi.ssl_cert_file: {error}")))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(tls))))
}

#[cfg(test)]
mod tests;
