//! One HTTP request to Kubo: built from typed parts, let through the gate, its failure given a class.
//! `POST /api/v0/…`, but for one page of the daemon's own; redirects are not followed and no proxy is used, because Kubo's RPC is root on its node.

use std::time::Duration;

use reqwest::{Client, Url, multipart, redirect};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use multiaddr::Multiaddr;

use super::address::{Api, parse_api};
use super::classify::{CallName, failed, timed_out, unreachable};
use super::gate::Gate;
use super::lines::{Lines, read_whole};
use crate::node::{NodeError, Result};

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// The largest answer that is not a stream: `swarm/peers` of a well-connected node.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// As much of an error's body as anybody reads.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// For the body of an error, once its status is here.
const ERROR_BODY_DEADLINE: Duration = Duration::from_secs(5);

/// How a request passes the circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    WhenClosed,
    /// The health probe, which is what closes it again.
    Always,
}

/// The name of a call and its query.
#[derive(Clone, Debug)]
pub struct Call {
    command: &'static str,
    passage: Passage,
    query: Vec<(&'static str, String)>,
}

impl Call {
    pub fn new(command: &'static str) -> Call {
        Call { command, passage: Passage::WhenClosed, query: Vec::new() }
    }

    /// A call that also goes out while the node counts as down.
    pub fn probe(command: &'static str) -> Call {
        Call { passage: Passage::Always, ..Call::new(command) }
    }

    pub fn arg(self, value: impl ToString) -> Call {
        self.option("arg", value)
    }

    pub fn option(mut self, key: &'static str, value: impl ToString) -> Call {
        self.query.push((key, value.to_string()));
        self
    }

    fn url(&self, base: &Url) -> Result<(Url, CallName)> {
        let mut url = base
            .join(&format!("/api/v0/{}", self.command))
            .map_err(|error| NodeError::Refused(format!("ipfs node: {}: {error}", self.command)))?;
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        let name = match url.query() {
            Some(query) => CallName::new(&format!("{}?{query}", self.command)),
            None => CallName::new(self.command),
        };
        Ok((url, name))
    }
}

pub struct Rpc {
    client: Client,
    base: Url,
    gate: Gate,
}

impl Rpc {
    pub fn new(address: &Multiaddr) -> Result<Rpc> {
        let builder = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_keepalive(KEEP_ALIVE_INTERVAL)
            .user_agent(concat!("pinfold/", env!("CARGO_PKG_VERSION")));
        let (builder, base) = match parse_api(address)? {
            Api::Tcp(base) => (builder, base),
            // The host is only there to make a URL.
            Api::UnixSocket(path) => (builder.unix_socket(path), "http://kubo".to_owned()),
        };
        let unusable = |why: String| NodeError::Refused(format!("kubo rpc address {address}: {why}"));
        let base = Url::parse(&base).map_err(|error| unusable(error.to_string()))?;
        let client = builder.build().map_err(|error| unusable(error.to_string()))?;
        Ok(Rpc { client, base, gate: Gate::default() })
    }

    /// Asks and waits, at most `deadline` in all, for one JSON value.
    pub async fn ask<T: DeserializeOwned>(&self, call: Call, deadline: Duration) -> Result<T> {
        let (_, name) = call.url(&self.base)?;
        let body = self.ask_bytes(call, MAX_ANSWER_BYTES, deadline).await?;
        serde_json::from_slice(&body).map_err(|error| NodeError::Other(format!("ipfs answer ({name}): {error}")))
    }

    /// Asks and waits, at most `deadline` in all, for an answer of at most `max_bytes`.
    pub async fn ask_bytes(&self, call: Call, max_bytes: usize, deadline: Duration) -> Result<bytes::Bytes> {
        let (_, name) = call.url(&self.base)?;
        let answer = timeout(deadline, async {
            let (name, body) = self.send(call, None).await?;
            read_whole(&name, body, max_bytes).await
        });
        match answer.await {
            Ok(answer) => answer,
            Err(_) => {
                let error = timed_out(&name, deadline);
                self.gate.failed(&error);
                Err(error)
            }
        }
    }

    /// Reads one of the pages beside the RPC, in at most `deadline`. It may be missing or closed to us where the RPC is
    /// not, so nothing of it counts for or against the node.
    pub async fn page(&self, path: &'static str, max_bytes: usize, deadline: Duration) -> Result<bytes::Bytes> {
        let name = CallName::new(path);
        let url = self.base.join(path).map_err(|error| NodeError::Refused(format!("ipfs node: {path}: {error}")))?;
        let answer = timeout(deadline, async {
            let response = self.client.get(url).send().await.map_err(|error| unreachable(&name, &error))?;
            let status = response.status();
            if status != http::StatusCode::OK {
                return Err(failed(&name, status.as_u16(), b""));
            }
            read_whole(&name, http::Response::<reqwest::Body>::from(response).into_body(), max_bytes).await
        });
        answer.await.unwrap_or_else(|_| Err(timed_out(&name, deadline)))
    }

    /// Asks for a stream; returns when its head is here. The caller sets the deadlines.
    pub async fn open(&self, call: Call) -> Result<Lines> {
        let (name, body) = self.send(call, None).await?;
        Ok(Lines::new(name, body))
    }

    /// Sends a form and returns when the head of the answer is here, which is after all of it was taken.
    pub async fn upload(&self, call: Call, form: multipart::Form) -> Result<Lines> {
        let (name, body) = self.send(call, Some(form)).await?;
        Ok(Lines::new(name, body))
    }

    async fn send(&self, call: Call, form: Option<multipart::Form>) -> Result<(CallName, reqwest::Body)> {
        match call.passage {
            Passage::WhenClosed => self.gate.enter()?,
            Passage::Always => {}
        }
        let (url, name) = call.url(&self.base)?;
        let request = self.client.post(url);
        let (request, is_upload) = match form {
            Some(form) => (request.multipart(form), true),
            None => (request, false),
        };
        let response = request.send().await.map_err(|error| {
            let error = unreachable(&name, &error);
            // An upload also fails when what is uploaded breaks off, which says nothing about the node.
            if !is_upload {
                self.gate.failed(&error);
            }
            error
        })?;
        self.gate.answered();
        let status = response.status();
        let body = http::Response::<reqwest::Body>::from(response).into_body();
        if status == http::StatusCode::OK {
            return Ok((name, body));
        }
        let text = timeout(ERROR_BODY_DEADLINE, read_whole(&name, body, MAX_ERROR_BYTES)).await;
        let text = text.ok().and_then(Result::ok).unwrap_or_default();
        Err(failed(&name, status.as_u16(), &text))
    }
}
