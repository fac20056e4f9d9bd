//! `POST /add` (rest-api.md 9).

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::header::{CACHE_CONTROL, CONNECTION, HeaderName, HeaderValue, TRAILER};
use http::{StatusCode, Version};
use pinfold_common::json::{AddedJson, ErrorJson, append_go_json, to_go_json};
use pinfold_common::time::Timestamp;
use pinfold_common::{Code, Error, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::respond::{self, Answer, SuccessTrailer};
use super::{Call, multipart, options};
use crate::adder::{self, AddParams, Chunker, Done, Event, Format, Input, Layout};

/// Steps of the upload that wait for the adder: its memory, with chunks of up to some 64 KiB.
const STEPS_AHEAD: usize = 16;
/// Events that wait for the client.
const EVENTS_AHEAD: usize = 64;
const CHUNKED_OUTPUT: HeaderName = HeaderName::from_static("x-chunked-output");

/// An upload at work. Dropping it cancels it, and nothing is pinned.
struct Running {
    events: mpsc::Receiver<Event>,
    work: AbortOnDropHandle<Result<Done>>,
}

impl Call<'_> {
    pub(super) async fn add(&self, body: Body) -> Result<Answer> {
        let boundary = multipart::boundary(&self.parts.headers)?;
        let params = self.add_params()?;
        // The original looks at these only after it has answered.
        let chunker = if self.query.flag("shard", false)? {
            Err(Error::invalid("block doesn't fit in empty shard: shard size too small?"))
        } else {
            Chunker::parse(self.query.get("chunker"))
        };
        let is_streamed = self.query.flag("stream-channels", true)?;

        let (begun, has_begun) = oneshot::channel();
        let (events, received) = mpsc::channel(EVENTS_AHEAD);
        let work: JoinHandle<Result<Done>> = tokio::spawn({
            let context = self.rest.add.clone();
            let cluster = self.rest.cluster.clone();
            async move {
                let (steps, input) = mpsc::channel::<Result<Input>>(STEPS_AHEAD);
                let adding = async {
                    let params = AddParams { chunker: chunker?, ..params };
                    adder::add(&context, params, ReceiverStream::new(input), events).await
                };
                let (done, ()) = tokio::join!(adding, multipart::feed(body, boundary, steps, begun));
                if let Ok(done) = &done {
                    cluster.note_index(done.index);
                }
                done
            }
        });
        let running = Running { events: received, work: AbortOnDropHandle::new(work) };
        // A client that waits for `100 Continue` gets it when its body is read, which must be before the answer.
        let _ = has_begun.await;

        let mut answer = if is_streamed { streamed(running) } else { collected(running).await? };
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if self.parts.version < Version::HTTP_2 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(answer)
    }

    fn add_params(&self) -> Result<AddParams> {
        let query = &self.query;
        let layout = Layout::parse(query.get("layout"))?;
        let format = Format::parse(query.get("format"))?;
        let cid_version = query.integer("cid-version")?;
        if query.flag("nocopy", false)? {
            return Err(Error::invalid("parameter nocopy invalid: files of this machine are not read"));
        }
        for name in ["recursive", "hidden"] {
            query.flag(name, false)?;
        }
        let raw_leaves = match query.get("raw-leaves") {
            "" => None,
            _ => Some(query.flag("raw-leaves", false)?),
        };
        let options = options::parse(query, Timestamp::now())?;
        // Without a size it fails in the original too, and in the same words (see `add`).
        if query.flag("shard", false)? && options.pin.shard_size_bytes > 0 {
            return Err(Error::invalid(
                "parameter shard invalid: shards are not made: no pin of an IPFS node keeps a part of a DAG",
            ));
        }
        Ok(AddParams {
            layout,
            chunker: Chunker::default(),
            raw_leaves,
            // A version that no u32 can hold is as unknown as any other.
            cid_version: u32::try_from(cid_version).unwrap_or(u32::MAX),
            hash: query.get("hash").to_owned(),
            wrap_with_directory: query.flag("wrap-with-directory", false)?,
            preserve_mode: query.flag("preserve-mode", false)?,
            preserve_mtime: query.flag("preserve-mtime", false)?,
            no_pin: query.flag("no-pin", false)?,
            local: query.flag("local", false)?,
            progress: query.flag("progress", false)?,
            format,
            pin: pinfold_common::pin::PinOptions { pin_update: None, ..options.pin },
            user_allocations: options.user_allocations,
            request_key: self.request_key()?,
        })
    }
}

/// 200 before anything is known to work; failures are in the trailer.
fn streamed(running: Running) -> Answer {
    let lines = respond::lines_body(Bytes::new(), lines(running), SuccessTrailer::Absent);
    let mut answer = respond::document(StatusCode::OK, lines);
    answer.headers_mut().insert(CHUNKED_OUTPUT, HeaderValue::from_static("1"));
    answer.headers_mut().insert(TRAILER, HeaderValue::from_static("X-Stream-Error"));
    answer
}

fn lines(running: Running) -> BoxStream<'static, Result<Bytes>> {
    let lines = stream::unfold(Some(running), |running| async move {
        let mut running = running?;
        match running.events.recv().await {
            Some(event) => {
                let mut chunk = Vec::new();
                append_go_json(&mut chunk, &added_json(event));
                while let Ok(event) = running.events.try_recv() {
                    append_go_json(&mut chunk, &added_json(event));
                }
                Some((Ok(Bytes::from(chunk)), Some(running)))
            }
            None => match outcome(running.work).await {
                Ok(_) => None,
                Err(error) => Some((Err(error), None)),
            },
        }
    });
    lines.boxed()
}

/// One array at the end, `null` when nothing was added; any failure is a 500, as in the original.
async fn collected(mut running: Running) -> Result<Answer> {
    let mut array = Vec::new();
    while let Some(event) = running.events.recv().await {
        array.push(if array.is_empty() { b'[' } else { b',' });
        append_go_json(&mut array, &added_json(event));
        array.pop(); // the newline after a document
    }
    match outcome(running.work).await {
        Ok(_) => {
            array.extend_from_slice(if array.is_empty() { b"null\n" } else { b"]\n" });
            Ok(respond::document(StatusCode::OK, array))
        }
        Err(error) => {
            let code = if error.code == Code::StorageFull { Code::StorageFull.http() } else { 500 };
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(respond::document(status, to_go_json(&ErrorJson { code, message: error.message })))
        }
    }
}

async fn outcome(work: AbortOnDropHandle<Result<Done>>) -> Result<Done> {
    work.await.unwrap_or_else(|error| Err(Error::internal(format!("add: {error}"))))
}

fn added_json(event: Event) -> AddedJson {
    match event {
        Event::Added { name, cid, bytes, size, allocations } => {
            AddedJson { bytes: bytes.unwrap_or_default(), ..AddedJson::added(&name, &cid, size, &allocations) }
        }
        Event::Progress { name, bytes } => AddedJson::progress(&name, bytes),
    }
}
