//! A service's listening side: binds with an error a person can act on, takes mTLS connections, lets each request
//! through the audience check, and drains when it is asked to stop.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use multiaddr::Multiaddr;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::address::host_port;
use crate::audience::{AudienceLayer, ConnectedPeer, Members};
use crate::channel::{CONNECTION_WINDOW_BYTES, KEEP_ALIVE_DEADLINE, KEEP_ALIVE_INTERVAL, STREAM_WINDOW_BYTES};
use crate::shutdown::Shutdown;
use crate::tls::{Tls, peer_of_certificate};
use crate::trace::TraceLayer;
use crate::{Error, Result};

/// Requests in flight get so long to end after a stop was asked for; then their connections are cut.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// From the first byte to a verified certificate.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Connections open at once, those in their handshake included; further ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 1024;
/// Requests in flight on one connection.
pub const MAX_CONCURRENT_STREAMS: u32 = 1024;
/// Verified connections that the HTTP/2 side has not taken yet.
const ACCEPTED_QUEUE: usize = 64;
/// After a failed accept (no file descriptors left, as a rule).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// One line about failed handshakes in so long; strangers must not fill the log.
const HANDSHAKE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Listens at `address`, which the configuration has under `key`. The error is one sentence for the operator.
pub async fn bind(key: &str, address: &Multiaddr) -> Result<TcpListener> {
    let host_port = host_port(address).map_err(|error| error.context(key))?;
    TcpListener::bind(&host_port).await.map_err(|error| refused_to_bind(key, &host_port, &error))
}

fn refused_to_bind(key: &str, host_port: &str, error: &io::Error) -> Error {
    let (host, port) = host_port.rsplit_once(':').unwrap_or((host_port, ""));
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::unavailable(format!(
            "{key}: port {port} on {host} is in use by another program; stop it or choose another port"
        )),
        io::ErrorKind::AddrNotAvailable => {
            Error::invalid(format!("{key}: {host} is not an address of this machine; choose one that is"))
        }
        io::ErrorKind::PermissionDenied => Error::invalid(format!(
            "{key}: this user may not listen on port {port} of {host}; choose a port above 1023"
        )),
        _ => Error::internal(format!("{key}: listen on {host_port}: {error}")),
    }
}

/// Serves `routes` until `shutdown`, then drains. Every request went through mTLS and the audience check, and runs in
/// a span below its caller's. Long-lived response streams must end themselves on `shutdown`, or the drain takes its
/// whole deadline.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<Tls>,
    members: Arc<dyn Members>,
    routes: tonic::service::Routes,
    shutdown: Shutdown,
) -> Result<()> {
    let cut = CancellationToken::new();
    let _cut_on_return = cut.clone().drop_guard();
    let (accepted, incoming) = mpsc::channel(ACCEPTED_QUEUE);
    tokio::spawn(accept(listener, tls.clone(), accepted, cut.clone(), shutdown.clone()));

    let serving = tonic::transport::Server::builder()
        .layer(TraceLayer)
        .layer(AudienceLayer::new(&tls, members))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_DEADLINE))
        .serve_with_incoming_shutdown(
            routes,
            ReceiverStream::new(incoming).map(Ok::<_, io::Error>),
            shutdown.triggered(),
        );
    let overdue = async {
        shutdown.triggered().await;
        tokio::time::sleep(DRAIN_DEADLINE).await;
    };
    tokio::select! {
        served = serving => served.map_err(|error| Error::internal(format!("serve: {error}"))),
        () = overdue => {
            tracing::info!(deadline = ?DRAIN_DEADLINE, "cut the connections that still had requests");
            Ok(())
        }
    }
}

/// Takes connections and verifies each in a task of its own, so that a slow one holds up nobody.
async fn accept(
    listener: TcpListener,
    tls: Arc<Tls>,
    accepted: mpsc::Sender<Connection>,
    cut: CancellationToken,
    shutdown: Shutdown,
) {
    let acceptor = TlsAcceptor::from(tls.server());
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let failures = Arc::new(HandshakeLog::default());
    let next = async || {
        let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (tcp, remote) = listener.accept().await?;
        Ok::<_, io::Error>((permit, tcp, remote))
    };
    loop {
        let (permit, tcp, remote) = match cut.run_until_cancelled(shutdown.race(next())).await.flatten() {
            None => return,
            Some(Ok(connection)) => connection,
            Some(Err(error)) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, accepted, failures, cut) = (acceptor.clone(), accepted.clone(), failures.clone(), cut.clone());
        tokio::spawn(async move {
            let verified = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake(acceptor, tcp));
            match verified.await {
                Ok(Ok((stream, peer))) => {
                    let cut = Box::pin(cut.cancelled_owned());
                    // Refused only when the server is gone.
                    let _ = accepted.send(Connection { stream, peer, cut, _permit: permit }).await;
                }
                Ok(Err(error)) => failures.record(remote, &explain_handshake(&error)),
                Err(_) => failures.record(remote, &format!("no handshake within {HANDSHAKE_DEADLINE:?}")),
            }
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, tcp: TcpStream) -> io::Result<(TlsStream<TcpStream>, ConnectedPeer)> {
    tcp.set_nodelay(true)?;
    let stream = acceptor.accept(tcp).await?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = certificates.first().ok_or_else(|| io::Error::other("the caller shows no certificate"))?;
    let peer = peer_of_certificate(certificate).map_err(io::Error::other)?;
    Ok((stream, ConnectedPeer(peer)))
}

/// The same failure as the caller sees, in words (beh:B1.7).
fn explain_handshake(error: &io::Error) -> String {
    use rustls::{AlertDescription, CertificateError, Error as TlsError};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(
            TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
            | TlsError::AlertReceived(AlertDescription::UnknownCA),
        ) => "the other side has another cluster secret".to_owned(),
        Some(TlsError::InvalidMessage(_)) => "the other side does not speak TLS".to_owned(),
        Some(other) => other.to_string(),
        None => error.to_string(),
    }
}

#[derive(Default)]
struct HandshakeLog(Mutex<Option<Instant>>);

impl HandshakeLog {
    fn record(&self, remote: SocketAddr, reason: &str) {
        metrics::counter!("pinfold_failed_handshakes_total").increment(1);
        let mut last = self.0.lock();
        if last.is_none_or(|at| at.elapsed() >= HANDSHAKE_LOG_INTERVAL) {
            *last = Some(Instant::now());
            tracing::warn!(%remote, reason, "refused a connection");
        }
    }
}

/// A verified connection. It knows whose it is, counts against `MAX_CONNECTIONS`, and breaks when the server is gone.
struct Connection {
    stream: TlsStream<TcpStream>,
    peer: ConnectedPeer,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ConnectedPeer;

    fn connect_info(&self) -> ConnectedPeer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
