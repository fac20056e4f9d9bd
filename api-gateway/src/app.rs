//! One handler for everything on the public port: gRPC to its services, the rest to REST.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use metrics::Counter;
use pinfold_common::time::Timestamp;
use pinfold_common::{Code, Error};
use tokio::time::{Instant, timeout_at};
use tonic::service::Routes;
use tower::Service;
use tracing::Instrument;

use crate::access_log::{Access, AccessLog};
use crate::listen::Handler;
use crate::rest::Rest;

/// May be asked without credentials, as `GET /health` may.
const HEALTH_PATH: &str = "/grpc.health.v1.Health/";

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// The name of the code in our closed set (`common::error`).
const CODE: HeaderName = HeaderName::from_static("pinfold-code");

#[derive(Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    rest: Rest,
    grpc: Routes,
    log: Option<AccessLog>,
    timeouts: Timeouts,
    /// Whether requests begin a trace.
    is_traced: bool,
    counters: Counters,
}

/// `read_timeout` and `write_timeout` of `api.restapi`; zero: none.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub read: Duration,
    pub write: Duration,
}

/// Requests by what became of them. Looked up once: a look-up costs as much as a small answer.
struct Counters {
    rest: [Counter; 5],
    grpc: Counter,
}

impl Counters {
    fn new() -> Counters {
        let of = |class: &'static str| metrics::counter!("pinfold_gateway_requests_total", "api" => "rest", "status" => class);
        Counters {
            rest: [of("1xx"), of("2xx"), of("3xx"), of("4xx"), of("5xx")],
            grpc: metrics::counter!("pinfold_gateway_requests_total", "api" => "grpc", "status" => "any"),
        }
    }

    fn count(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(counter) = self.rest.get(class.saturating_sub(1)) {
            counter.increment(1);
        }
    }
}

impl App {
    pub fn new(rest: Rest, grpc: Routes, log: Option<AccessLog>, timeouts: Timeouts, is_traced: bool) -> App {
        App(Arc::new(Shared { rest, grpc, log, timeouts, is_traced, counters: Counters::new() }))
    }

    async fn answer(self, request: Request<Incoming>, client: SocketAddr) -> Response<Body> {
        if is_grpc(&request) {
            return self.0.grpc(request).await;
        }
        if self.0.is_traced {
            let span = tracing::info_span!("request", method = %request.method(), path = request.uri().path());
            return self.0.rest(request, client).instrument(span).await;
        }
        self.0.rest(request, client).await
    }
}

impl Handler for App {
    fn handle(
        self,
        request: Request<Incoming>,
        client: SocketAddr,
    ) -> impl Future<Output = Response<Body>> + Send + 'static {
        self.answer(request, client)
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    request.version() == Version::HTTP_2 && content_type.is_some_and(|value| value.starts_with(b"application/grpc"))
}

impl Shared {
    async fn grpc(&self, request: Request<Incoming>) -> Response<Body> {
        self.counters.grpc.increment(1);
        let user = self.rest.auth.check(request.headers(), Timestamp::now().seconds);
        if let Err(denied) = user
            && !request.uri().path().starts_with(HEALTH_PATH)
        {
            let status = tonic::Status::from(Error::new(Code::Unauthenticated, denied.message()));
            return status.into_http::<Body>();
        }
        // Never fails, and is always ready.
        let mut routes = self.grpc.clone();
        match routes.call(request).await {
            Ok(response) => blame_client_for_bad_messages(response).map(Body::new),
            Err(never) => match never {},
        }
    }

    async fn rest(&self, request: Request<Incoming>, client: SocketAddr) -> Response<Body> {
        let asked = self.log.as_ref().map(|_| (request.method().clone(), request.uri().clone(), request.version()));
        let request = request.map(|body| self.timed_request(body));
        let answer = match self.timeouts.write {
            Duration::ZERO => self.rest.answer(request).await,
            limit => self.timed_answer(request, Instant::now() + limit).await,
        };
        self.counters.count(answer.status());
        if let (Some(log), Some((method, uri, version))) = (&self.log, &asked) {
            let (status, bytes) = (answer.status(), answer.body().size_hint().exact());
            log.record(&Access { client, method, uri, version: *version, status, bytes });
        }
        answer
    }

    /// A body that ends in an error when it takes longer than `read_timeout`.
    fn timed_request(&self, body: Incoming) -> Body {
        if self.timeouts.read.is_zero() { Body::new(body) } else { timed(body, Instant::now() + self.timeouts.read) }
    }

    async fn timed_answer(&self, request: Request<Body>, deadline: Instant) -> Response<Body> {
        match timeout_at(deadline, self.rest.answer(request)).await {
            Ok(answer) => answer.map(|body| timed(body, deadline)),
            Err(_) => {
                let mut answer = Response::new(Body::empty());
                *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                answer
            }
        }
    }
}

/// tonic says INTERNAL of a message that does not decode, as if it were our fault; it is the client's.
fn blame_client_for_bad_messages<B>(mut response: Response<B>) -> Response<B> {
    let is_undecodable = response.headers().get(GRPC_MESSAGE).is_some_and(|message| {
        let message = message.as_bytes();
        message.starts_with(b"failed%20to%20decode%20Protobuf") || message.starts_with(b"failed to decode Protobuf")
    });
    if is_undecodable {
        response.headers_mut().insert(GRPC_STATUS, HeaderValue::from(tonic::Code::InvalidArgument as i32));
        response.headers_mut().insert(CODE, HeaderValue::from_static(Code::InvalidArgument.name()));
    }
    response
}

/// The same frames until `deadline`, then an error, which ends the connection.
fn timed<B>(body: B, deadline: Instant) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    if body.is_end_stream() {
        return Body::empty();
    }
    let frames = futures::stream::unfold(Some(body), move |body| async move {
        let mut body = body?;
        match timeout_at(deadline, body.frame()).await {
            Ok(Some(frame)) => Some((frame.map_err(std::io::Error::other), Some(body))),
            Ok(None) => None,
            Err(_) => Some((Err(std::io::Error::from(std::io::ErrorKind::TimedOut)), None)),
        }
    });
    Body::new(http_body_util::StreamBody::new(frames.boxed()))
}
