//! The REST API as clients of the original know it (rest-api.md): the way of a request from authentication to its
//! handler, in the original's order. Handlers decode, ask `cluster` or `fanout`, and encode.

mod add;
mod cors;
mod ipfs_path;
mod monitor;
mod multipart;
mod options;
mod peers;
mod pins;
mod query;
mod respond;
mod routes;
mod rows;

use std::sync::Arc;

use axum::body::Body;
use http::header::{CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use pinfold_common::json::{ErrorJson, to_go_json};
use pinfold_common::time::Timestamp;
use pinfold_common::{Error, Result};

use crate::adder::AddContext;
use crate::auth::{Auth, Denied, User};
use crate::cluster::Cluster;
use crate::rest::query::{Cleaned, Plus, Query};
use crate::rest::respond::Answer;
use crate::rest::routes::{Miss, Route, route};

pub use cors::Cors;
pub use ipfs_path::{IpfsPath, parse as parse_ipfs_path};
pub use multipart::clean_name;
pub use peers::{add_peer, drain_peer, remove_peer};
pub use pins::resolve;

/// A retry with the same value is harmless (protocols.md 3).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What handlers work with.
pub struct Rest {
    pub cluster: Arc<Cluster>,
    pub auth: Arc<Auth>,
    pub add: AddContext,
    pub cors: Cors,
    /// `api.restapi.headers`
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// What a handler sees of its request.
struct Call<'a> {
    rest: &'a Rest,
    query: Query<'a>,
    parts: &'a Parts,
    user: User,
}

impl Rest {
    pub async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let is_exempt = parts.method == Method::OPTIONS || parts.method == Method::GET && parts.uri.path() == "/health";
        let user = match self.auth.check(&parts.headers, Timestamp::now().seconds) {
            Ok(user) => user,
            Err(_) if is_exempt => User::Anybody,
            Err(denied) => return self.refuse(denied),
        };
        if cors::is_preflight(&parts.method, &parts.headers) {
            let mut answer = respond::bare(StatusCode::NO_CONTENT);
            *answer.headers_mut() = self.cors.preflight(&parts.headers);
            return answer;
        }
        let mut answer = self.routed(&parts, body, user).await;
        self.cors.decorate(&parts.method, &parts.headers, answer.headers_mut());
        answer
    }

    async fn routed(&self, parts: &Parts, body: Body, user: User) -> Answer {
        let Some(path) = query::unescape(parts.uri.path(), Plus::IsPlus) else {
            return self.finish(respond::error(&Error::invalid("error parsing path: broken percent escape")));
        };
        match query::clean(parts.uri.path(), &path) {
            Cleaned::Clean => {}
            Cleaned::Trailing(target) => return redirect_trailing(parts, &target),
            Cleaned::Moved(target) => return redirect(StatusCode::MOVED_PERMANENTLY, &location(parts, &target)),
        }
        match route(&parts.method, &path) {
            Err(Miss::WrongMethod) => respond::bare(StatusCode::METHOD_NOT_ALLOWED),
            Err(Miss::NotFound) => self.finish(respond::error(&Error::not_found("not found"))),
            Ok(route) => {
                let call = Call { rest: self, query: Query::parse(parts.uri.query()), parts, user };
                let answer = call.handle(route, body).await.unwrap_or_else(|error| {
                    tracing::debug!(method = %parts.method, path = %path, %error, "refused a request");
                    respond::error(&error)
                });
                self.finish(answer)
            }
        }
    }

    /// Adds what the configuration wants on each answer of a handler.
    fn finish(&self, mut answer: Answer) -> Answer {
        for (name, value) in &self.headers {
            answer.headers_mut().append(name.clone(), value.clone());
        }
        answer
    }

    /// Authentication comes before CORS, so that no CORS header is on this answer.
    fn refuse(&self, denied: Denied) -> Answer {
        let code: u16 = match denied {
            Denied::NothingSent | Denied::BadPassword | Denied::BadToken => 401,
            Denied::Ambiguous => 400,
        };
        let body = to_go_json(&ErrorJson { code, message: denied.message().to_owned() });
        let mut answer = respond::document(StatusCode::from_u16(code).unwrap_or(StatusCode::UNAUTHORIZED), body);
        for challenge in denied.challenges() {
            answer.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        self.finish(answer)
    }
}

impl Call<'_> {
    async fn handle(&self, route: Route<'_>, body: Body) -> Result<Answer> {
        match route {
            Route::Id => self.id().await,
            Route::Version => self.version(),
            Route::Health => Ok(respond::no_content()),
            Route::Peers => Ok(self.peers().await),
            Route::AddPeer => self.add_peer(body).await,
            Route::RemovePeer { peer } => self.remove_peer(peer).await,
            Route::Add => self.add(body).await,
            Route::Allocations => self.allocations().await,
            Route::Allocation { cid } => self.allocation(cid).await,
            Route::StatusAll => self.status_all().await,
            Route::Status { cid } => self.status(cid).await,
            Route::RecoverAll => Ok(self.recover_all().await),
            Route::Recover { cid } => self.recover(cid).await,
            Route::Pin { cid } => self.pin(cid).await,
            Route::Unpin { cid } => self.unpin(cid).await,
            Route::PinPath { path } => self.pin_path(path).await,
            Route::UnpinPath { path } => self.unpin_path(path).await,
            Route::Gc => self.gc().await,
            Route::Graph => self.graph().await,
            Route::Alerts => self.alerts().await,
            Route::Bandwidth => Ok(respond::json(&None::<()>)),
            Route::MetricNames => self.metric_names().await,
            Route::Metrics { name } => self.metrics(name).await,
            Route::Token => Ok(self.token()),
        }
    }

    fn token(&self) -> Answer {
        match self.rest.auth.token(&self.user) {
            Some(token) => respond::json(&serde_json::json!({ "token": token })),
            None => {
                let body = to_go_json(&ErrorJson { code: 401, message: "unauthorized".to_owned() });
                respond::document(StatusCode::UNAUTHORIZED, body)
            }
        }
    }

    fn request_key(&self) -> Result<Vec<u8>> {
        use pinfold_common::pin::MAX_REQUEST_KEY_BYTES;
        let key = self.parts.headers.get(IDEMPOTENCY_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
        if key.len() > MAX_REQUEST_KEY_BYTES {
            return Err(Error::invalid(format!("Idempotency-Key: longer than {MAX_REQUEST_KEY_BYTES} bytes")));
        }
        Ok(key.to_vec())
    }
}

/// The cleaned path with the query as it was sent.
fn location(parts: &Parts, path: &str) -> String {
    let path = query::escape_path(path);
    match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    }
}

fn redirect(status: StatusCode, location: &str) -> Answer {
    let mut answer = respond::bare(status);
    if let Ok(location) = HeaderValue::from_str(location) {
        answer.headers_mut().insert(LOCATION, location);
    }
    answer
}

/// On GET the body is a link, as Go's redirects have it.
fn redirect_trailing(parts: &Parts, target: &str) -> Answer {
    let location = location(parts, target);
    let mut answer = redirect(StatusCode::TEMPORARY_REDIRECT, &location);
    if parts.method == Method::GET {
        let escaped = location.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
        let link = format!("<a href=\"{}\">Temporary Redirect</a>.\n\n", escaped.replace('\'', "&#39;"));
        *answer.body_mut() = Body::from(link);
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    }
    answer
}
