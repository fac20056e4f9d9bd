//! The public port: accepts connections, speaks TLS when asked to, tells HTTP/1 from HTTP/2 by the first bytes, and
//! hands each request to one handler. Knows nothing of routes; bounds how many clients there are and how long they may
//! dawdle.

mod client_stream;
mod heads;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::BytesMut;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pinfold_common::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use client_stream::{ClientStream, HeadLimits, StandIn};

/// Clients beyond these wait in the kernel's queue (`attack:HT4`).
const MAX_CONNECTIONS: usize = 8192;
/// After a failed `accept`, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TLS_HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long requests may take to end after the stop was asked for.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// A head mostly fits; a buffer that does not suffice grows.
const FIRST_READ_BYTES: usize = 1024;
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HTTP2_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const HTTP2_MAX_STREAMS: u32 = 1024;
const HTTP2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Limits of one listener; zero durations are none.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub header_bytes: usize,
    pub read_header: Duration,
    pub idle: Duration,
}

/// What answers requests.
pub trait Handler: Clone + Send + Sync + 'static {
    fn handle(
        self,
        request: Request<Incoming>,
        client: SocketAddr,
    ) -> impl Future<Output = Response<Body>> + Send + 'static;
}

/// Serves until the stop is asked for, then lets running requests end, at most for `DRAIN_DEADLINE`.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    handler: H,
    shutdown: Shutdown,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    // Ends what has not ended after the drain.
    let cut = Shutdown::new();
    loop {
        let Some(accepted) = shutdown.race(accept(&listener, &places)).await else { break };
        let (socket, client, place) = accepted;
        let (handler, tls, shutdown, cut) = (handler.clone(), tls.clone(), shutdown.clone(), cut.clone());
        connections.spawn(async move {
            cut.race(serve_socket(socket, client, tls, limits, handler, shutdown)).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN_DEADLINE, connections.wait()).await.is_err() {
        tracing::info!(connections = connections.len(), "cut clients that are still at work");
        cut.trigger();
        connections.wait().await;
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<tokio::sync::OwnedSemaphorePermit>) {
    // The semaphore is never closed, so there is always a permit in the end.
    let place = places.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((socket, client)) => return (socket, client, place),
            Err(error) => {
                tracing::warn!(%error, "accept a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_socket<H: Handler>(
    socket: TcpStream,
    client: SocketAddr,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    handler: H,
    shutdown: Shutdown,
) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, %client, "set TCP_NODELAY");
    }
    match tls {
        // Each in a place of its own, or both would be kept for every client.
        None => Box::pin(serve_stream(socket, client, limits, handler, shutdown)).await,
        Some(acceptor) => match timeout(TLS_HANDSHAKE_DEADLINE, acceptor.accept(socket)).await {
            Ok(Ok(stream)) => Box::pin(serve_stream(stream, client, limits, handler, shutdown)).await,
            Ok(Err(error)) => tracing::debug!(%error, %client, "TLS handshake"),
            Err(_) => tracing::debug!(%client, "TLS handshake: no end within its deadline"),
        },
    }
}

async fn serve_stream<S, H>(mut socket: S, client: SocketAddr, limits: Limits, handler: H, shutdown: Shutdown)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Handler,
{
    let patience = if limits.read_header.is_zero() { limits.idle } else { limits.read_header };
    let first = shutdown.race(within(patience, read_preface(&mut socket))).await;
    let Some(Ok(Some((received, is_http2)))) = first else { return };
    let stand_in = StandIn::default();
    let placed = (!is_http2).then(|| stand_in.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        // On the heap while it is answered: hyper's connection has room for one, and a quiet client would pay for it.
        let (answer, placed) = (Box::pin(handler.clone().handle(request, client)), placed.clone());
        async move {
            let mut answer = answer.await;
            if let Some(placed) = placed {
                placed.take_place(&mut answer);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let result = if is_http2 {
        let io = TokioIo::new(ClientStream::opaque(socket, received));
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(HTTP2_KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(HTTP2_KEEP_ALIVE_INTERVAL)
            .max_concurrent_streams(HTTP2_MAX_STREAMS)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
            .max_header_list_size(limits.header_bytes as u32);
        let mut connection = pin!(builder.serve_connection(io, service));
        tokio::select! {
            result = connection.as_mut() => result,
            () = shutdown.triggered() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let head = HeadLimits { bytes: limits.header_bytes, deadline: limits.read_header };
        let io = TokioIo::new(ClientStream::http1(socket, received, head, stand_in));
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .title_case_headers(true)
            // Heads reach hyper whole, so that its limit on reading one is in truth the idle time between two.
            .header_read_timeout((!limits.idle.is_zero()).then_some(limits.idle))
            .max_header_size(limits.header_bytes + heads::TE_TRAILERS.len());
        let mut connection = pin!(builder.serve_connection(io, service));
        tokio::select! {
            result = connection.as_mut() => result,
            () = shutdown.triggered() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, %client, "serve a client");
    }
}

/// Runs `work` for at most `limit`; zero is no limit.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, tokio::time::error::Elapsed> {
    if limit.is_zero() { Ok(work.await) } else { timeout(limit, work).await }
}

/// The first bytes, and whether they are the preface of HTTP/2. `None` when the client left before saying anything.
async fn read_preface<S: AsyncRead + Unpin>(socket: &mut S) -> Option<(BytesMut, bool)> {
    let mut received = BytesMut::with_capacity(FIRST_READ_BYTES);
    loop {
        if socket.read_buf(&mut received).await.ok()? == 0 {
            return None;
        }
        let compared = received.len().min(HTTP2_PREFACE.len());
        if received[..compared] != HTTP2_PREFACE[..compared] {
            return Some((received, false));
        }
        if compared == HTTP2_PREFACE.len() {
            return Some((received, true));
        }
    }
}

#[cfg(test)]
mod tests;
