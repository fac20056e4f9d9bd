//! Kubo's streamed answers: one JSON value a line, and failures after the first line in the HTTP trailer
//! `X-Stream-Error` under status 200 (beh:B13.12). A stream that ends with that trailer has failed.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::classify::{CallName, broken_off, failed_in_stream};
use crate::node::{NodeError, Result};

/// A line of Kubo's is some hundred bytes; more than this is not Kubo's.
const MAX_LINE_BYTES: usize = 1024 * 1024;
const STREAM_ERROR: &str = "x-stream-error";

/// The body of one answer.
pub struct Lines {
    call: CallName,
    body: reqwest::Body,
    buffer: BytesMut,
    ended: bool,
}

impl Lines {
    pub fn new(call: CallName, body: reqwest::Body) -> Lines {
        Lines { call, body, buffer: BytesMut::new(), ended: false }
    }

    /// The next value; `None` only after a good end.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            let Some(line) = self.next_line().await? else { return Ok(None) };
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return serde_json::from_slice(&line)
                .map(Some)
                .map_err(|error| NodeError::Other(format!("ipfs answer ({}): {error}", self.call)));
        }
    }

    async fn next_line(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.buffer.split_to(end + 1).freeze()));
            }
            if self.ended {
                let rest = self.buffer.split().freeze();
                return Ok((!rest.is_empty()).then_some(rest));
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(NodeError::Other(format!(
                    "ipfs answer ({}): a line of more than {MAX_LINE_BYTES} bytes",
                    self.call
                )));
            }
            self.read_more().await?;
        }
    }

    /// Takes one frame: data, the trailers, or the end.
    async fn read_more(&mut self) -> Result<()> {
        match self.body.frame().await {
            None => self.ended = true,
            Some(Err(error)) => return Err(broken_off(&self.call, &error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => {
                    let text = frame
                        .trailers_ref()
                        .and_then(|trailers| trailers.get(STREAM_ERROR))
                        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                        .filter(|text| !text.is_empty());
                    if let Some(text) = text {
                        return Err(failed_in_stream(&self.call, &text));
                    }
                }
            },
        }
        Ok(())
    }
}

/// A whole answer of at most `max_bytes`, with its trailer checked.
pub async fn read_whole(call: &CallName, mut body: reqwest::Body, max_bytes: usize) -> Result<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken_off(call, &error))?;
        match frame.into_data() {
            Ok(data) if whole.len() + data.len() > max_bytes => {
                return Err(NodeError::Refused(format!("ipfs answer ({call}): more than {max_bytes} bytes")));
            }
            Ok(data) => whole.extend_from_slice(&data),
            Err(frame) => {
                if let Some(text) = frame.trailers_ref().and_then(|trailers| trailers.get(STREAM_ERROR))
                    && !text.is_empty()
                {
                    return Err(failed_in_stream(call, &String::from_utf8_lossy(text.as_bytes())));
                }
            }
        }
    }
    Ok(whole.freeze())
}
