//! Blocks from trustless HTTP gateways: `GET {gateway}/ipfs/{cid}?format=raw`. Redirects are not followed, so gateways
//! that send clients to subdomains must be given by an address that answers itself.

use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use futures::StreamExt as _;
use http::{StatusCode, header};
use reqwest::{Client, Url, redirect};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{BlockExchange, Want};
use crate::node::verify::Verified;
use crate::node::{MAX_BLOCK_BYTES, NodeError, Result};

/// Requests to one gateway at a time; public ones do not like more.
const PARALLEL_REQUESTS: usize = 8;
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// For one block from one gateway, which may have to find it first.
const BLOCK_DEADLINE: Duration = Duration::from_secs(30);
const RAW_BLOCK: &str = "application/vnd.ipld.raw";

/// The configured gateways, asked in their order.
pub struct Gateways {
    client: Client,
    gateways: Vec<Gateway>,
}

struct Gateway {
    base: Url,
    slots: Semaphore,
}

impl Gateways {
    /// `urls` are `http(s)://host[:port][/path]`.
    pub fn new(urls: &[String]) -> Result<Gateways> {
        let gateways = urls.iter().map(|url| parse(url)).collect::<Result<_>>()?;
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .user_agent(concat!("pinfold/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| NodeError::Refused(format!("gateways: {error}")))?;
        Ok(Gateways { client, gateways })
    }
}

fn parse(text: &str) -> Result<Gateway> {
    let unusable = |why: &dyn std::fmt::Display| NodeError::Refused(format!("gateway {text:?}: {why}"));
    let mut base = Url::parse(text).map_err(|error| unusable(&error))?;
    if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
        return Err(unusable(&"must be http://… or https://…"));
    }
    // So that joining adds to the path and does not replace its last part.
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", base.path()));
    }
    Ok(Gateway { base, slots: Semaphore::new(PARALLEL_REQUESTS) })
}

#[async_trait]
impl BlockExchange for Gateways {
    fn name(&self) -> &'static str {
        "gateways"
    }

    async fn fetch(&self, want: Want) -> Result<Option<Verified>> {
        let mut trouble = None;
        for gateway in &self.gateways {
            let asked = timeout(BLOCK_DEADLINE, self.ask(gateway, want));
            match asked.await {
                Ok(Ok(Some(block))) => return Ok(Some(block)),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => trouble = Some(error),
                Err(_) => {
                    let host = gateway.base.host_str().unwrap_or_default();
                    trouble = Some(NodeError::Timeout(format!("{host}: no answer within {BLOCK_DEADLINE:?}")));
                }
            }
        }
        trouble.map_or(Ok(None), Err)
    }
}

impl Gateways {
    async fn ask(&self, gateway: &Gateway, want: Want) -> Result<Option<Verified>> {
        let host = gateway.base.host_str().unwrap_or_default();
        let failed = |error: &dyn std::fmt::Display| NodeError::Down(format!("{host}: {error}"));
        let _slot = gateway.slots.acquire().await.map_err(|error| failed(&error))?;
        let mut url = gateway.base.join(&format!("ipfs/{}", want.cid)).map_err(|error| failed(&error))?;
        url.set_query(Some("format=raw"));
        let request = self.client.get(url).header(header::ACCEPT, RAW_BLOCK);
        let response = request.send().await.map_err(|error| failed(&error.without_url()))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS => return Ok(None),
            status => return Err(failed(&format!("answered {status}"))),
        }
        let mut data = BytesMut::new();
        let mut body = response.bytes_stream();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| failed(&error.without_url()))?;
            if data.len() + chunk.len() > MAX_BLOCK_BYTES {
                return Err(failed(&format!("sent more than {MAX_BLOCK_BYTES} bytes for {}", want.cid)));
            }
            data.extend_from_slice(&chunk);
        }
        Verified::check(want.cid, data.freeze()).map(Some).map_err(|error| error.context(host))
    }
}
