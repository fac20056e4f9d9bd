//! The wire of kubo-sim: HTTP/1.1 with streamed answers, and connections that can be cut.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http_body_util::{StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Mood, Shared, answers};

/// Cuts the connection when it comes.
#[derive(Debug)]
pub struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut")
    }
}

impl std::error::Error for Cut {}

pub type Chunks = BoxStream<'static, Result<Bytes, Cut>>;

/// An answer on its way.
pub struct Answer {
    pub status: u16,
    pub body: Chunks,
}

impl Answer {
    pub fn json(value: serde_json::Value) -> Answer {
        Answer { status: 200, body: futures::stream::iter([Ok(line(&value))]).boxed() }
    }

    pub fn bytes(data: Bytes) -> Answer {
        Answer { status: 200, body: futures::stream::iter([Ok(data)]).boxed() }
    }

    pub fn lines(lines: BoxStream<'static, Result<serde_json::Value, Cut>>) -> Answer {
        Answer { status: 200, body: lines.map(|value| value.map(|value| line(&value))).boxed() }
    }

    /// As Kubo says no.
    pub fn refusal(message: &str) -> Answer {
        let value = serde_json::json!({"Message": message, "Code": 0, "Type": "error"});
        Answer { status: 500, ..Answer::json(value) }
    }
}

fn line(value: &serde_json::Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}

/// What was asked.
pub struct Call {
    pub method: String,
    pub command: String,
    pub query: Vec<(String, String)>,
    pub content_type: String,
    pub body: Incoming,
}

impl Call {
    pub fn arguments(&self) -> impl Iterator<Item = &str> {
        self.query.iter().filter(|(key, _)| key == "arg").map(|(_, value)| value.as_str())
    }

    pub fn argument(&self) -> &str {
        self.arguments().next().unwrap_or_default()
    }

    pub fn option(&self, name: &str) -> &str {
        self.query.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
    }
}

pub async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
        let (shared, stop) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| handle(shared.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // How a connection ends is the client's to judge.
            let _ = stop.run_until_cancelled(connection).await;
        });
    }
}

type Body = BoxBody<Bytes, Cut>;

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let url = reqwest::Url::parse(&format!("http://sim{}", head.uri)).unwrap();
    let content_type = head.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let call = Call {
        method: head.method.to_string(),
        command: url.path().trim_start_matches("/api/v0/").to_owned(),
        query: url.query_pairs().map(|(key, value)| (key.into_owned(), value.into_owned())).collect(),
        content_type: content_type.to_owned(),
        body,
    };
    let mood = {
        let mut state = shared.state.lock();
        let argument = call.argument().to_owned();
        state.journal.push((call.command.clone(), argument));
        state.mood.clone()
    };
    let answer = match mood {
        Mood::Well => answers::answer(shared, call).await,
        Mood::Slow(time) => {
            tokio::time::sleep(time).await;
            answers::answer(shared, call).await
        }
        Mood::Hung => std::future::pending().await,
        Mood::Broken(status, body) => {
            Answer { status, body: futures::stream::iter([Ok(Bytes::from_static(body.as_bytes()))]).boxed() }
        }
    };
    let frames = answer.body.map(|chunk| chunk.map(Frame::data));
    let mut response = Response::new(http_body_util::BodyExt::boxed(StreamBody::new(sync(frames))));
    *response.status_mut() = hyper::StatusCode::from_u16(answer.status).unwrap();
    Ok(response)
}

/// A body must be `Sync`; the pieces of a stream come through a channel then.
fn sync(
    mut frames: impl futures::Stream<Item = Result<Frame<Bytes>, Cut>> + Send + Unpin + 'static,
) -> impl futures::Stream<Item = Result<Frame<Bytes>, Cut>> + Send + Sync + 'static {
    let (send, receive) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let frame = tokio::select! {
                frame = frames.next() => frame,
                // Nobody reads any more: what was being done for it ends.
                () = send.closed() => return,
            };
            let Some(frame) = frame else { return };
            if send.send(frame).await.is_err() {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receive)
}
