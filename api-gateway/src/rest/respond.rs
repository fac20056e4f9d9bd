//! Answers as the original shapes them: JSON documents, errors, and streams of lines that end in a trailer
//! (rest-api.md 1.2, 2 and 7).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, TRAILER};
use http::{HeaderMap, Response, StatusCode};
use http_body::Frame;
use pinfold_common::json::{ErrorJson, to_go_json};
use pinfold_common::{Error, Result};
use serde::Serialize;

pub const STREAM_ERROR: HeaderName = HeaderName::from_static("x-stream-error");
const STREAM_ERROR_LINE: HeaderValue = HeaderValue::from_static("X-Stream-Error");
/// Something that is committed may be missing in this answer (protocols.md 4).
const STALE: HeaderName = HeaderName::from_static("x-pinfold-stale");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub type Answer = Response<Body>;

/// A status and nothing else, not even a content type.
pub fn bare(status: StatusCode) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

pub fn document(status: StatusCode, body: impl Into<Body>) -> Answer {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer
}

pub fn json(value: &impl Serialize) -> Answer {
    document(StatusCode::OK, to_go_json(value))
}

/// Says that the answer may lack what is committed, where that is so.
pub fn marked(mut answer: Answer, stale: bool) -> Answer {
    if stale {
        answer.headers_mut().insert(STALE, HeaderValue::from_static("true"));
    }
    answer
}

/// Success without a body, which still names a content type.
pub fn no_content() -> Answer {
    document(StatusCode::NO_CONTENT, Body::empty())
}

pub fn error(error: &Error) -> Answer {
    let status = StatusCode::from_u16(error.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    document(status, to_go_json(&ErrorJson::from(error)))
}

/// Lines as they come, each chunk one or more whole lines. No line at all is 204; a failure before the first one is an
/// ordinary error, after it a trailer.
pub async fn stream(mut lines: BoxStream<'static, Result<Bytes>>) -> Answer {
    let mut answer = match lines.next().await {
        None => no_content(),
        Some(Err(failure)) => error(&failure),
        Some(Ok(first)) => document(StatusCode::OK, lines_body(first, lines, SuccessTrailer::Empty)),
    };
    answer.headers_mut().insert(TRAILER, STREAM_ERROR_LINE);
    answer
}

/// Whether the trailer is there, and empty, when all went well.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SuccessTrailer {
    Empty,
    Absent,
}

/// A body of lines that ends in `X-Stream-Error`.
pub fn lines_body(first: Bytes, rest: BoxStream<'static, Result<Bytes>>, on_success: SuccessTrailer) -> Body {
    Body::new(Lines { first: Some(first).filter(|first| !first.is_empty()), rest: Some(rest), on_success })
}

struct Lines {
    first: Option<Bytes>,
    /// Gone when it has ended.
    rest: Option<BoxStream<'static, Result<Bytes>>>,
    on_success: SuccessTrailer,
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let next = ready!(Pin::new(rest).poll_next(context));
        if let Some(Ok(lines)) = next {
            return Poll::Ready(Some(Ok(Frame::data(lines))));
        }
        self.rest = None;
        let value = match next.and_then(Result::err) {
            Some(failure) => trailer_value(&failure.message),
            None if self.on_success == SuccessTrailer::Absent => return Poll::Ready(None),
            None => HeaderValue::from_static(""),
        };
        let trailers: HeaderMap = [(STREAM_ERROR, value)].into_iter().collect();
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// The message on one line.
fn trailer_value(message: &str) -> HeaderValue {
    let line: String = message.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
    HeaderValue::from_bytes(line.as_bytes()).unwrap_or(HeaderValue::from_static("failed"))
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::BodyExt;

    use super::*;

    async fn read(items: Vec<Result<&'static str>>) -> (u16, String, Option<String>) {
        let lines = stream::iter(items).map(|item| item.map(Bytes::from)).boxed();
        let answer = super::stream(lines).await;
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(answer.headers()[TRAILER], "X-Stream-Error");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap();
        let trailer = body.trailers().map(|trailers| trailers[STREAM_ERROR].to_str().unwrap().to_owned());
        (status, String::from_utf8(body.to_bytes().to_vec()).unwrap(), trailer)
    }

    /// Goal: the four cases of rest-api.md 7.
    #[tokio::test]
    async fn four_ways_a_stream_ends() {
        let failure = || Err(Error::internal("disk\nbroke"));
        assert_eq!(read(vec![Ok("1\n"), Ok("2\n")]).await, (200, "1\n2\n".into(), Some(String::new())));
        assert_eq!(read(vec![Ok("1\n"), failure()]).await, (200, "1\n".into(), Some("disk broke".into())));
        assert_eq!(read(vec![]).await, (204, String::new(), None));
        let body = "{\"code\":500,\"message\":\"disk\\nbroke\"}\n".to_owned();
        assert_eq!(read(vec![failure()]).await, (500, body, None));
    }
}
