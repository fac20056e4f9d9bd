//! `pinfold.api.v1.Add`

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use pinfold_common::ids::{peers_from_bytes, peers_to_bytes};
use pinfold_common::pin::{MAX_REQUEST_KEY_BYTES, MAX_USER_ALLOCATIONS, PinOptions};
use pinfold_common::{Error, Result};
use pinfold_proto::api::add_reply::Reply;
use pinfold_proto::api::add_request::Part;
use pinfold_proto::api::{self, add_server, entry};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

use crate::adder::{
    self, AddContext, AddParams, Attributes, Chunker, Done, Event, Format, Input, Layout, MAX_MODE, MAX_NANOSECONDS,
    Mtime,
};
use crate::cluster::Cluster;
use crate::rest::clean_name;

const STEPS_AHEAD: usize = 16;
const EVENTS_AHEAD: usize = 64;
/// A client that sends nothing of its upload for this long is gone (`attack:MP2`).
const STALL_DEADLINE: Duration = Duration::from_secs(120);
/// Of one message with data, as the .proto file says.
const MAX_DATA_BYTES: usize = 1024 * 1024;

pub struct AddApi {
    cluster: Arc<Cluster>,
    context: AddContext,
}

impl AddApi {
    pub fn new(cluster: Arc<Cluster>, context: AddContext) -> AddApi {
        AddApi { cluster, context }
    }
}

/// Dropping it cancels the upload, and nothing is pinned.
struct Running {
    events: mpsc::Receiver<Event>,
    work: AbortOnDropHandle<Result<Done>>,
}

#[tonic::async_trait]
impl add_server::Add for AddApi {
    type AddStream = BoxStream<'static, Result<api::AddReply, Status>>;

    async fn add(&self, request: Request<Streaming<api::AddRequest>>) -> Result<Response<Self::AddStream>, Status> {
        let mut parts = request.into_inner();
        let first = next_part(&mut parts).await?;
        let Some(Part::Options(options)) = first else {
            return Err(Error::invalid("the first message must be options").into());
        };
        let params = params(options)?;
        let (events, received) = mpsc::channel(EVENTS_AHEAD);
        let (context, cluster) = (self.context.clone(), self.cluster.clone());
        let work = tokio::spawn(async move {
            let (steps, input) = mpsc::channel(STEPS_AHEAD);
            let adding = adder::add(&context, params, ReceiverStream::new(input), events);
            let (done, ()) = tokio::join!(adding, feed(parts, steps));
            if let Ok(done) = &done {
                cluster.note_index(done.index);
            }
            done
        });
        let running = Running { events: received, work: AbortOnDropHandle::new(work) };
        Ok(Response::new(replies(running)))
    }
}

fn replies(running: Running) -> BoxStream<'static, Result<api::AddReply, Status>> {
    let replies = stream::unfold(Some(running), |running| async move {
        let mut running = running?;
        if let Some(event) = running.events.recv().await {
            return Some((Ok(reply(reply_of_event(event))), Some(running)));
        }
        let done = running.work.await.unwrap_or_else(|error| Err(Error::internal(format!("add: {error}"))));
        Some((done.map(|done| reply(reply_of_done(done))).map_err(Status::from), None))
    });
    replies.boxed()
}

fn reply(reply: Reply) -> api::AddReply {
    api::AddReply { reply: Some(reply) }
}

fn reply_of_event(event: Event) -> Reply {
    match event {
        Event::Added { name, cid, bytes: _, size, allocations } => Reply::Added(api::Added {
            name,
            cid: cid.to_bytes(),
            size_bytes: size,
            allocations: peers_to_bytes(&allocations),
        }),
        Event::Progress { name, bytes } => Reply::Progress(api::Progress { name, bytes }),
    }
}

fn reply_of_done(done: Done) -> Reply {
    let failed = done.failed.into_iter().map(|(peer, error)| api::FailedDestination { peer: peer.to_bytes(), error });
    Reply::Done(api::Done { pin: done.pin.map(Into::into), root: done.root.to_bytes(), failed: failed.collect() })
}

fn params(options: api::AddOptions) -> Result<AddParams> {
    if options.request_key.len() > MAX_REQUEST_KEY_BYTES {
        return Err(Error::invalid(format!("request_key: longer than {MAX_REQUEST_KEY_BYTES} bytes")));
    }
    if options.user_allocations.len() > MAX_USER_ALLOCATIONS {
        return Err(Error::invalid(format!("user_allocations: more than {MAX_USER_ALLOCATIONS}")));
    }
    let pin = PinOptions::try_from(options.pin.unwrap_or_default())?;
    Ok(AddParams {
        layout: Layout::parse(&options.layout)?,
        chunker: Chunker::parse(&options.chunker)?,
        raw_leaves: options.raw_leaves_set.then_some(options.raw_leaves),
        cid_version: options.cid_version,
        hash: options.hash,
        wrap_with_directory: options.wrap_with_directory,
        preserve_mode: options.preserve_mode,
        preserve_mtime: options.preserve_mtime,
        no_pin: options.no_pin,
        local: options.local,
        progress: options.progress,
        format: Format::parse(&options.format)?,
        pin: PinOptions { pin_update: None, ..pin },
        user_allocations: peers_from_bytes(&options.user_allocations)?,
        request_key: options.request_key,
    })
}

async fn next_part(parts: &mut Streaming<api::AddRequest>) -> Result<Option<Part>> {
    match timeout(STALL_DEADLINE, parts.message()).await {
        Ok(Ok(Some(request))) => match request.part {
            Some(part) => Ok(Some(part)),
            None => Err(Error::invalid("a message without a part")),
        },
        Ok(Ok(None)) => Ok(None),
        // The other end of this stream is the client: what is wrong with it is wrong with the upload.
        Ok(Err(status)) => Err(Error::invalid(format!("read the upload: {}", status.message()))),
        Err(_) => Err(Error::invalid(format!("read the upload: nothing came for {}s", STALL_DEADLINE.as_secs()))),
    }
}

/// Reads an upload to its end and hands it on step by step; the first error is the last step.
async fn feed(mut parts: Streaming<api::AddRequest>, steps: mpsc::Sender<Result<Input>>) {
    let mut file = OpenFile::No;
    // That nobody takes a step means that the adder has failed by itself.
    loop {
        let next = match next_part(&mut parts).await {
            Ok(Some(part)) => steps_of(part, &mut file),
            Ok(None) => {
                if let Some(end) = file.close() {
                    let _ = steps.send(Ok(end)).await;
                }
                return;
            }
            Err(error) => Err(error),
        };
        let next = match next {
            Ok(next) => next,
            Err(error) => {
                let _ = steps.send(Err(error)).await;
                return;
            }
        };
        for step in next {
            if steps.send(Ok(step)).await.is_err() {
                return;
            }
        }
    }
}

/// Whether data may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpenFile {
    No,
    Yes,
}

impl OpenFile {
    fn close(&mut self) -> Option<Input> {
        let was = std::mem::replace(self, OpenFile::No);
        (was == OpenFile::Yes).then_some(Input::EndOfFile)
    }
}

/// The adder's steps of one message.
fn steps_of(part: Part, file: &mut OpenFile) -> Result<Vec<Input>> {
    match part {
        Part::Options(_) => Err(Error::invalid("options: only in the first message")),
        Part::Data(data) if *file == OpenFile::No => {
            Err(Error::invalid(format!("data: {} bytes that belong to no file", data.len())))
        }
        Part::Data(data) if data.len() > MAX_DATA_BYTES => {
            Err(Error::invalid(format!("data: {} bytes, at most {MAX_DATA_BYTES} in a message", data.len())))
        }
        Part::Data(data) => Ok(vec![Input::Data(data)]),
        Part::Entry(entry) => {
            let path = clean_name(&entry.path)?;
            let attributes = attributes(&entry)?;
            let begin = match entry::Kind::try_from(entry.kind) {
                Ok(entry::Kind::File) => Input::File { path, attributes },
                Ok(entry::Kind::Directory) => Input::Directory { path, attributes },
                Ok(entry::Kind::Symlink) => Input::Symlink { path, target: entry.symlink_target, attributes },
                Err(_) => return Err(Error::invalid(format!("kind: {} is not known", entry.kind))),
            };
            let steps = file.close().into_iter().chain([begin]).collect();
            if matches!(entry::Kind::try_from(entry.kind), Ok(entry::Kind::File)) {
                *file = OpenFile::Yes;
            }
            Ok(steps)
        }
    }
}

fn attributes(entry: &api::Entry) -> Result<Attributes> {
    if entry.mode > MAX_MODE {
        return Err(Error::invalid(format!("mode: {:o}, at most {MAX_MODE:o}", entry.mode)));
    }
    let mtime = entry.mtime.map(|time| Mtime { seconds: time.seconds, nanoseconds: time.nanoseconds });
    if let Some(time) = mtime.filter(|time| time.nanoseconds > MAX_NANOSECONDS) {
        return Err(Error::invalid(format!("mtime: {} nanoseconds, at most {MAX_NANOSECONDS}", time.nanoseconds)));
    }
    Ok(Attributes { mode: Some(entry.mode).filter(|mode| *mode > 0), mtime })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: entry::Kind) -> Part {
        Part::Entry(api::Entry { path: path.to_owned(), kind: kind as i32, ..api::Entry::default() })
    }

    /// Goal: each file is ended before what follows it, and data without a file is refused.
    #[test]
    fn files_are_ended() {
        let mut file = OpenFile::No;
        let mut steps = Vec::new();
        for part in [
            entry("d", entry::Kind::Directory),
            entry("d/a", entry::Kind::File),
            Part::Data("x".into()),
            entry("d/b", entry::Kind::File),
            entry("d/l", entry::Kind::Symlink),
        ] {
            steps.extend(steps_of(part, &mut file).unwrap());
        }
        assert_eq!(steps.iter().filter(|step| **step == Input::EndOfFile).count(), 2);
        assert_eq!(steps[3], Input::EndOfFile);
        assert!(steps_of(Part::Data("x".into()), &mut file).is_err());
        assert!(steps_of(entry("../x", entry::Kind::File), &mut file).is_err());
        assert!(file.close().is_none());
    }

    /// Goal: mode and time are within their bounds or refused by name; none is none.
    #[test]
    fn attributes_of_entries() {
        let of = |mode, nanoseconds| {
            let mtime = Some(api::Mtime { seconds: -1, nanoseconds });
            attributes(&api::Entry { mode, mtime, ..api::Entry::default() }).map_err(|error| error.message)
        };
        let told = Attributes { mode: Some(0o640), mtime: Some(Mtime { seconds: -1, nanoseconds: 999_999_999 }) };
        assert_eq!(of(0o640, 999_999_999), Ok(told));
        assert!(of(0o10000, 0).unwrap_err().starts_with("mode: "));
        assert!(of(0, 1_000_000_000).unwrap_err().starts_with("mtime: "));
        assert_eq!(attributes(&api::Entry::default()), Ok(Attributes::default()));
    }
}
