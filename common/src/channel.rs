//! Ways to other processes: one lazy, kept channel per room, peer and address, over mTLS, and `call`, which gives each
//! request a deadline and each failure its meaning.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::gather::Gathering;
use crate::ids::shorten;
use crate::tls::{Room, Tls, server_name};
use crate::{Code, Error, PeerId, Result};

pub use crate::trace::traced;

/// The largest message taken by any client or server of ours.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// For TCP and TLS together.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// A connection on which nothing came for so long is asked, and dropped without an answer.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
pub const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(5);
/// What may be on the way on one stream and on one connection: a megabyte is full speed at 100 Mbit/s and 80 ms.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// How a request says its sender's wire version, in the header `user-agent`; `audience` compares it.
pub(crate) const AGENT_PREFIX: &str = "pinfold/";
/// Channels kept. When addresses changed so often that there are more, all are forgotten and made again when needed.
const MAX_CHANNELS: usize = 4096;

type Key = (Room, PeerId, String);

/// Where else the consensus service of a peer may listen (host:port), as an operator wrote it down. Who answers there
/// must show that peer's key like anywhere.
pub type Hints = Arc<HashMap<PeerId, Vec<String>>>;

/// All channels of a process. Clones share them.
#[derive(Clone)]
pub struct Channels {
    tls: Arc<Tls>,
    hints: Hints,
    kept: Arc<Mutex<HashMap<Key, Channel>>>,
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels").field("tls", &self.tls).field("kept", &self.kept.lock().len()).finish()
    }
}

impl Channels {
    pub fn new(tls: Arc<Tls>) -> Channels {
        Channels::with_hints(tls, Hints::default())
    }

    /// Channels that look for a peer's consensus service elsewhere when it is not where it should be (seed:C16).
    pub fn with_hints(tls: Arc<Tls>, hints: Hints) -> Channels {
        Channels { tls, hints, kept: Arc::default() }
    }

    /// The peer this process belongs to.
    pub fn own(&self) -> PeerId {
        self.tls.own()
    }

    /// A channel to that process of that peer. Nothing is connected before the first request, a broken connection is
    /// made anew by the next one, and an address that makes no sense is that request's error. Within a tokio runtime.
    pub fn to(&self, room: Room, peer: &PeerId, host_port: &str) -> Channel {
        let key = (room, *peer, host_port.to_owned());
        let mut kept = self.kept.lock();
        if let Some(channel) = kept.get(&key) {
            return channel.clone();
        }
        if kept.len() >= MAX_CHANNELS {
            kept.clear();
        }
        let channel = self.make(room, peer, host_port);
        kept.insert(key, channel.clone());
        channel
    }

    fn make(&self, room: Room, peer: &PeerId, host_port: &str) -> Channel {
        let hints = self.hints.get(peer).filter(|_| room == Room::Consensus).cloned().unwrap_or_default();
        let target = Arc::new(Target { room, peer: *peer, host_port: host_port.to_owned(), hints });
        let tls = self.tls.clone();
        // The connector knows where to go; the URI only fills HTTP/2's :authority.
        let endpoint = Endpoint::from(Uri::from_static("http://pinfold.internal"));
        let agent = format!("{AGENT_PREFIX}{}", self.tls.wire_version());
        // A version that is no header is no version: it is left out, and refused by the other side.
        let endpoint = endpoint.clone().user_agent(agent).unwrap_or(endpoint);
        endpoint
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_DEADLINE)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let (target, tls) = (target.clone(), tls.clone());
                async move { target.connect(&tls).await.map(|stream| TokioIo::new(Gathering::new(stream))) }
            }))
    }
}

/// Where a channel leads, and who must be there.
struct Target {
    room: Room,
    peer: PeerId,
    host_port: String,
    /// Tried in turn when nobody is there.
    hints: Vec<String>,
}

/// Why there is no connection: nothing was sent, so nothing happened at the other side.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
struct NotConnected(Error);

impl Target {
    async fn connect(&self, tls: &Tls) -> Result<TlsStream<TcpStream>, NotConnected> {
        let failed = match self.connect_at(&self.host_port, tls).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        for hint in self.hints.iter().filter(|hint| **hint != self.host_port) {
            if let Ok(stream) = self.connect_at(hint, tls).await {
                return Ok(stream);
            }
        }
        // Of the address that should be right.
        Err(NotConnected(failed))
    }

    async fn connect_at(&self, host_port: &str, tls: &Tls) -> Result<TlsStream<TcpStream>> {
        let name = server_name(self.room, &self.peer)?;
        match tokio::time::timeout(CONNECT_DEADLINE, connect_and_verify(host_port, tls, name)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(self.explain(&error)),
            Err(_) => Err(self.unavailable(format!("no connection within {CONNECT_DEADLINE:?}"))),
        }
    }

    fn unavailable(&self, why: impl fmt::Display) -> Error {
        Error::unavailable(format!("connect to {} at {}: {why}", self.room, shorten(&self.host_port)))
    }

    /// A failed connection in words (beh:B1.7: another secret must not look like a garbled handshake).
    fn explain(&self, error: &io::Error) -> Error {
        use rustls::{AlertDescription, CertificateError, Error as TlsError};
        match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
            Some(
                TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
                | TlsError::AlertReceived(AlertDescription::UnknownCA),
            ) => Error::new(
                Code::Unauthenticated,
                format!(
                    "connect to {} at {}: the other side has another cluster secret",
                    self.room,
                    shorten(&self.host_port)
                ),
            ),
            Some(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => self.unavailable(format!("the process there is not the {} of peer {}", self.room, self.peer)),
            Some(TlsError::InvalidMessage(_)) => self.unavailable("the program there does not speak TLS"),
            Some(error) => self.unavailable(error),
            None => self.unavailable(error),
        }
    }
}

async fn connect_and_verify(host_port: &str, tls: &Tls, name: ServerName<'static>) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(host_port).await?;
    tcp.set_nodelay(true)?;
    TlsConnector::from(tls.client()).connect(name, tcp).await
}

/// Awaits one request. No answer by the deadline: the request may or may not have taken effect. A failure carries
/// `what` in front, and the code it had at the other side; one of the transport is `Unavailable` when there was no
/// connection, and otherwise of unknown outcome too.
pub async fn call<T>(
    what: &str,
    deadline: Duration,
    future: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    match tokio::time::timeout(deadline, future).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(explain(status).context(what)),
        Err(_) => Err(Error::outcome_unknown(format!("{what}: no answer within {deadline:?}, the outcome is unknown"))),
    }
}

/// The error of a failed request or stream. Use it instead of `Error::from` where `call` does not fit: it tells a
/// connection that was never made from one that broke.
pub fn explain(status: tonic::Status) -> Error {
    // A status with a source was made on this side, by the transport; one that came as an answer has none.
    let mut cause = std::error::Error::source(&status);
    if cause.is_none() {
        return Error::from(status);
    }
    while let Some(error) = cause {
        if let Some(NotConnected(error)) = error.downcast_ref::<NotConnected>() {
            return error.clone();
        }
        cause = error.source();
    }
    Error::outcome_unknown(format!("the connection broke, the outcome is unknown: {}", status.message()))
}
