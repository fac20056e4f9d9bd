//! `ctl add <path or URL>…`: streams what `sources` reads to the gateway and shows how far it is.

mod sources;

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pinfold_common::json::AddedJson;
use pinfold_common::status::TrackerStatus;
use pinfold_common::{Cid, ids};
use pinfold_proto::api::{self, add_reply, add_request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use self::sources::{Keep, Sender, read_all, sources, total_size};
use super::pin::{options, request_key, user_allocations};
use super::wait::{self, Target};
use crate::cli::{Add, Encoding};
use crate::client::{Client, Failure, Outcome};
use crate::output;

/// Messages that wait to be sent.
const QUEUED_MESSAGES: usize = 16;

pub async fn run(client: &Client, encoding: Encoding, arguments: Add) -> Outcome {
    let sources = sources(&arguments)?;
    let total = total_size(&sources, arguments.hidden)?;
    let bar = progress_bar(encoding, &arguments, total);
    let (sender, receiver) = mpsc::channel(QUEUED_MESSAGES);
    let first = api::AddRequest { part: Some(add_request::Part::Options(add_options(&arguments)?)) };
    let reading = read_all(sources, Keep::of(&arguments), first, sender, bar.clone());
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
    // What everybody is to hold names no peer.
    let fetches = done.pin.as_ref().is_some_and(|pin| pin.allocations.is_empty());
    let fate = if fetches { "it will fetch them" } else { "it is left out" };
    for failed in &done.failed {
        let peer = ids::peer_from_bytes(&failed.peer)?;
        eprintln!("warning: {peer} did not take the blocks ({}); {fate}", failed.error);
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
    let mut sent = Sent { bar, file: String::new(), before: 0, bytes: 0 };
    while let Some(reply) = replies.message().await? {
        match reply.reply {
            Some(add_reply::Reply::Added(added)) => {
                sent.whole();
                bar.suspend(|| print_added(encoding, arguments, &added))?;
            }
            Some(add_reply::Reply::Progress(progress)) => sent.now(&progress),
            Some(add_reply::Reply::Done(done)) => return Ok(done),
            None => {}
        }
    }
    Err(Failure::Network("the answer ended early: whether the content was added is unknown".to_owned()))
}

/// How much of what was read here is cut into blocks and on its way to the peers, as the gateway tells it: the length of
/// the bar. What was read runs ahead of it, and is its message.
struct Sent<'a> {
    bar: &'a ProgressBar,
    file: String,
    /// Of the files before.
    before: u64,
    bytes: u64,
}

impl Sent<'_> {
    fn now(&mut self, progress: &api::Progress) {
        if self.file != progress.name || progress.bytes < self.bytes {
            self.whole();
            self.file.clone_from(&progress.name);
        }
        self.bytes = progress.bytes;
        self.bar.set_position(self.before + self.bytes);
    }

    /// The file is over.
    fn whole(&mut self) {
        self.before += std::mem::take(&mut self.bytes);
    }
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
        preserve_mode: arguments.preserve_mode,
        preserve_mtime: arguments.preserve_mtime,
        no_pin: arguments.no_pin,
        local: arguments.local,
        progress: true,
        format: arguments.format.clone(),
        request_key: request_key(),
    })
}
