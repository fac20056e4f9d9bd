//! `ctl add <path>…`: walks files and folders depth first, streams them to the gateway, shows how far it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pinfold_common::json::AddedJson;
use pinfold_common::status::TrackerStatus;
use pinfold_common::{Cid, ids};
use pinfold_proto::api::{self, add_reply, add_request, entry};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::pin::{options, request_key, user_allocations};
use super::wait::{self, Target};
use crate::cli::{Add, Encoding};
use crate::client::{Client, Failure, Outcome};
use crate::output;

/// How much of a file travels in one message, and how many messages wait to be sent.
const CHUNK_BYTES: usize = 256 * 1024;
const QUEUED_MESSAGES: usize = 16;
/// Folders nest at most this deep: a loop of mounts must end somewhere.
const MAX_DEPTH: usize = 128;

pub async fn run(client: &Client, encoding: Encoding, arguments: Add) -> Outcome {
    let sources = sources(&arguments)?;
    let total = total_size(&sources, arguments.hidden)?;
    let bar = progress_bar(encoding, &arguments, total);
    let (sender, receiver) = mpsc::channel(QUEUED_MESSAGES);
    let first = api::AddRequest { part: Some(add_request::Part::Options(add_options(&arguments)?)) };
    let reading = read_all(sources, arguments.hidden, first, sender, bar.clone());
    let receiving = receive(client, encoding, &arguments, receiver, &bar);
    let done = match upload(reading, receiving).await {
        Ok(done) => done,
        Err(failure) => {
            bar.finish_and_clear();
            return Err(failure);
        }
    };
    let root = ids::cid_from_bytes(&done.root)?;
    if arguments.wait && !arguments.no_pin {
        wait_for(client, &root, &done, &arguments, &bar).await?;
    }
    bar.finish_and_clear();
    for failed in &done.failed {
        let peer = ids::peer_from_bytes(&failed.peer)?;
        eprintln!("warning: {peer} did not take the blocks ({}); it will fetch them", failed.error);
    }
    if arguments.quieter {
        output::print(&format!("{root}\n"))?;
    }
    Ok(())
}

/// Reads and receives side by side. When something can't be read here, the call is broken off before its stream could
/// end as if all had been sent: nothing that is cut short is ever pinned.
async fn upload(
    reading: impl Future<Output = Result<(), (Failure, Sender)>>,
    receiving: impl Future<Output = Outcome<api::Done>>,
) -> Outcome<api::Done> {
    let mut reading = std::pin::pin!(reading);
    let mut receiving = Box::pin(receiving);
    tokio::select! {
        read = &mut reading => match read {
            Ok(()) => receiving.await,
            // The other side ended the upload: its answer says why.
            Err((Failure::Network(_), _)) => receiving.await,
            Err((failure, sender)) => {
                drop(receiving);
                drop(sender);
                Err(failure)
            }
        },
        done = &mut receiving => done,
    }
}

async fn receive(
    client: &Client,
    encoding: Encoding,
    arguments: &Add,
    requests: mpsc::Receiver<api::AddRequest>,
    bar: &ProgressBar,
) -> Outcome<api::Done> {
    let mut replies = client.add().add(ReceiverStream::new(requests)).await?.into_inner();
    while let Some(reply) = replies.message().await? {
        match reply.reply {
            Some(add_reply::Reply::Added(added)) => {
                bar.suspend(|| print_added(encoding, arguments, &added))?;
            }
            Some(add_reply::Reply::Progress(_)) | None => {}
            Some(add_reply::Reply::Done(done)) => return Ok(done),
        }
    }
    Err(Failure::Network("the answer ended early: whether the content was added is unknown".to_owned()))
}

fn print_added(encoding: Encoding, arguments: &Add, added: &api::Added) -> Outcome {
    let cid = ids::cid_from_bytes(&added.cid)?;
    if arguments.quieter {
        return Ok(());
    }
    if encoding == Encoding::Json {
        let allocations = ids::peers_from_bytes(&added.allocations)?;
        return output::print_json(&AddedJson::added(&added.name, &cid, added.size_bytes, &allocations));
    }
    match arguments.quiet {
        true => output::print(&format!("{cid}\n")),
        false => output::print(&format!("added {cid} {}\n", added.name)),
    }
}

async fn wait_for(client: &Client, root: &Cid, done: &api::Done, arguments: &Add, bar: &ProgressBar) -> Outcome {
    let minimum = done.pin.as_ref().and_then(|pin| pin.options.as_ref()).map_or(0, |pin| pin.replication_factor_min);
    bar.set_message("pinning");
    wait::until(client, root, Target::Pinned { minimum }, &arguments.waiting, |info| {
        let pinned = |peer: &&api::PeerStatus| TrackerStatus::from_proto(peer.status) == TrackerStatus::Pinned;
        bar.set_message(format!("pinned on {} peers", info.peers.iter().filter(pinned).count()));
    })
    .await?;
    Ok(())
}

/// A bar on a terminal; nothing elsewhere and nothing beside JSON.
fn progress_bar(encoding: Encoding, arguments: &Add, total: Option<u64>) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    };
    if encoding == Encoding::Json || arguments.quieter {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let template = match total {
        Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}",
        None => "{spinner} {bytes} {bytes_per_sec} {wide_msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn add_options(arguments: &Add) -> Outcome<api::AddOptions> {
    let several = arguments.paths.len() > 1;
    let wraps = arguments.wrap_with_directory || several;
    if wraps && arguments.format == "car" {
        return Err(Failure::local("reading --format", "a CAR file is added alone and without --wrap-with-directory"));
    }
    let cid_version = if arguments.hash == "sha2-256" { arguments.cid_version } else { 1 };
    Ok(api::AddOptions {
        pin: Some(options(&arguments.options)?),
        user_allocations: user_allocations(&arguments.options),
        layout: arguments.layout.clone(),
        chunker: arguments.chunker.clone(),
        raw_leaves: arguments.raw_leaves,
        raw_leaves_set: arguments.raw_leaves,
        cid_version,
        hash: arguments.hash.clone(),
        wrap_with_directory: wraps,
        no_pin: arguments.no_pin,
        local: arguments.local,
        progress: false,
        format: arguments.format.clone(),
        request_key: request_key(),
    })
}

enum Source {
    Stdin,
    Path { path: PathBuf, name: String },
}

fn sources(arguments: &Add) -> Outcome<Vec<Source>> {
    arguments.paths.iter().map(|path| source(path, arguments.recursive)).collect()
}

fn source(path: &Path, recursive: bool) -> Outcome<Source> {
    if path == Path::new("-") {
        return Ok(Source::Stdin);
    }
    let doing = || format!("adding {}", path.display());
    let kind = std::fs::metadata(path).map_err(|error| Failure::local(doing(), error))?;
    if kind.is_dir() && !recursive {
        let message = "is a directory, but Recursive option is not set: give --recursive";
        return Err(Failure::local(doing(), message));
    }
    let whole = path.canonicalize().map_err(|error| Failure::local(doing(), error))?;
    let name = path.file_name().or_else(|| whole.file_name());
    let name = name.ok_or_else(|| Failure::local(doing(), "it has no name"))?.to_string_lossy().into_owned();
    Ok(Source::Path { path: path.to_owned(), name })
}

/// The bytes to read, or `None` when standard input is among them.
fn total_size(sources: &[Source], hidden: bool) -> Outcome<Option<u64>> {
    fn size(path: &Path, hidden: bool, depth: usize) -> std::io::Result<u64> {
        let kind = std::fs::symlink_metadata(path)?;
        if kind.is_file() {
            return Ok(kind.len());
        }
        if !kind.is_dir() || depth > MAX_DEPTH {
            return Ok(0);
        }
        children(path, hidden)?.iter().map(|child| size(child, hidden, depth + 1)).sum()
    }
    let mut total = 0;
    for source in sources {
        match source {
            Source::Stdin => return Ok(None),
            Source::Path { path, .. } => {
                let found = size(path, hidden, 0);
                total += found.map_err(|error| Failure::local(format!("reading {}", path.display()), error))?;
            }
        }
    }
    Ok(Some(total))
}

/// The entries of a folder by name, as the importer wants them.
fn children(path: &Path, hidden: bool) -> std::io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if hidden || !entry.file_name().to_string_lossy().starts_with('.') {
            names.push(entry.path());
        }
    }
    names.sort();
    Ok(names)
}

type Sender = mpsc::Sender<api::AddRequest>;

/// Sends everything. A failure comes with the sender, which keeps the stream open until the call is broken off.
async fn read_all(
    sources: Vec<Source>,
    hidden: bool,
    first: api::AddRequest,
    sender: Sender,
    bar: ProgressBar,
) -> Result<(), (Failure, Sender)> {
    match read_sources(sources, hidden, first, &sender, &bar).await {
        Ok(()) => Ok(()),
        Err(failure) => Err((failure, sender)),
    }
}

async fn read_sources(
    sources: Vec<Source>,
    hidden: bool,
    first: api::AddRequest,
    sender: &Sender,
    bar: &ProgressBar,
) -> Outcome {
    send(sender, first).await?;
    for source in sources {
        match source {
            Source::Stdin => {
                // Without a name, as `ipfs add` does: the event shows the CID.
                send_entry(sender, "", entry::Kind::File, "", 0).await?;
                send_data(sender, tokio::io::stdin(), bar, "reading standard input").await?;
            }
            Source::Path { path, name } => read_path(path, name, hidden, sender, bar).await?,
        }
    }
    Ok(())
}

async fn read_path(path: PathBuf, name: String, hidden: bool, sender: &Sender, bar: &ProgressBar) -> Outcome {
    let mut todo = vec![(path, name, 0)];
    while let Some((path, name, depth)) = todo.pop() {
        let doing = || format!("reading {}", path.display());
        let failed = |error: std::io::Error| Failure::local(doing(), error);
        let kind = tokio::fs::symlink_metadata(&path).await.map_err(failed)?;
        // What was named on the command line is followed, what lies inside is kept as a link.
        let kind = if depth == 0 { tokio::fs::metadata(&path).await.map_err(failed)? } else { kind };
        if kind.is_symlink() {
            let target = tokio::fs::read_link(&path).await.map_err(failed)?;
            send_entry(sender, &name, entry::Kind::Symlink, &target.to_string_lossy(), 0).await?;
        } else if kind.is_dir() {
            if depth > MAX_DEPTH {
                return Err(Failure::local(doing(), format!("folders nest more than {MAX_DEPTH} deep")));
            }
            send_entry(sender, &name, entry::Kind::Directory, "", 0).await?;
            for child in children(&path, hidden).map_err(failed)?.into_iter().rev() {
                let own = child.file_name().map(|own| own.to_string_lossy().into_owned()).unwrap_or_default();
                todo.push((child, format!("{name}/{own}"), depth + 1));
            }
        } else if kind.is_file() {
            let file = tokio::fs::File::open(&path).await.map_err(failed)?;
            bar.set_message(name.clone());
            send_entry(sender, &name, entry::Kind::File, "", kind.len()).await?;
            send_data(sender, file, bar, &doing()).await?;
        } else {
            eprintln!("warning: {} is neither a file, a folder nor a link: left out", path.display());
        }
    }
    Ok(())
}

async fn send_entry(sender: &Sender, path: &str, kind: entry::Kind, target: &str, size: u64) -> Outcome {
    let entry =
        api::Entry { path: path.to_owned(), kind: kind as i32, symlink_target: target.to_owned(), size_bytes: size };
    send(sender, api::AddRequest { part: Some(add_request::Part::Entry(entry)) }).await
}

async fn send_data(sender: &Sender, mut from: impl AsyncRead + Unpin, bar: &ProgressBar, doing: &str) -> Outcome {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            let room = (CHUNK_BYTES - chunk.len()) as u64;
            let read = (&mut from).take(room).read_buf(&mut chunk).await;
            if read.map_err(|error| Failure::local(doing, error))? == 0 {
                break;
            }
        }
        if chunk.is_empty() {
            return Ok(());
        }
        bar.inc(chunk.len() as u64);
        let part = Some(add_request::Part::Data(Bytes::from(chunk)));
        send(sender, api::AddRequest { part }).await?;
    }
}

async fn send(sender: &Sender, request: api::AddRequest) -> Outcome {
    sender.send(request).await.map_err(|_| Failure::Network("the upload was ended by the other side".to_owned()))
}
