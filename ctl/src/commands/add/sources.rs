//! What `ctl add` was given, read piece by piece: standard input, files and folders depth first, URLs. Knows nothing of
//! what becomes of it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt as _;
use indicatif::ProgressBar;
use pinfold_proto::api::{self, add_request, entry};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

use crate::cli::Add;
use crate::client::{Failure, Outcome};

/// How much of a file travels in one message.
const CHUNK_BYTES: usize = 256 * 1024;
/// Folders nest at most this deep: a loop of mounts must end somewhere.
const MAX_DEPTH: usize = 128;
/// A server that does not answer, or sends nothing more, for so long is not waited for.
const URL_DEADLINE: Duration = Duration::from_secs(60);

/// What is kept of files beside their content, and whether those with a dot in front are taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    hidden: bool,
    mode: bool,
    mtime: bool,
}

impl Keep {
    pub fn of(arguments: &Add) -> Keep {
        Keep { hidden: arguments.hidden, mode: arguments.preserve_mode, mtime: arguments.preserve_mtime }
    }
}

#[derive(Debug, PartialEq)]
pub(super) enum Source {
    Stdin,
    Path { path: PathBuf, name: String },
    Url { url: reqwest::Url, name: String },
}

pub(super) fn sources(arguments: &Add) -> Outcome<Vec<Source>> {
    arguments.paths.iter().map(|path| source(path, arguments.recursive)).collect()
}

fn source(path: &Path, recursive: bool) -> Outcome<Source> {
    if path == Path::new("-") {
        return Ok(Source::Stdin);
    }
    if let Some(url) = path.to_str().filter(|text| text.starts_with("http://") || text.starts_with("https://")) {
        return source_of_url(url);
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

/// Its name is the last part of its path, or its host where it has none.
fn source_of_url(text: &str) -> Outcome<Source> {
    let url: reqwest::Url = text.parse().map_err(|error| Failure::local(format!("adding {text}"), error))?;
    let last = url.path_segments().and_then(|mut parts| parts.rfind(|part| !part.is_empty()));
    let name = last.or_else(|| url.host_str()).unwrap_or("url").to_owned();
    Ok(Source::Url { url, name })
}

/// The bytes to read, or `None` when something is among them that does not say: standard input, a URL.
pub(super) fn total_size(sources: &[Source], hidden: bool) -> Outcome<Option<u64>> {
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
            Source::Stdin | Source::Url { .. } => return Ok(None),
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

pub(super) type Sender = mpsc::Sender<api::AddRequest>;

/// Sends everything. A failure comes with the sender, which keeps the stream open until the call is broken off.
pub(super) async fn read_all(
    sources: Vec<Source>,
    keep: Keep,
    first: api::AddRequest,
    sender: Sender,
    bar: ProgressBar,
) -> Result<(), (Failure, Sender)> {
    match read_sources(sources, keep, first, &sender, &bar).await {
        Ok(()) => Ok(()),
        Err(failure) => Err((failure, sender)),
    }
}

async fn read_sources(
    sources: Vec<Source>,
    keep: Keep,
    first: api::AddRequest,
    sender: &Sender,
    bar: &ProgressBar,
) -> Outcome {
    send(sender, first).await?;
    let mut read = Read::of(bar);
    for source in sources {
        match source {
            Source::Stdin => {
                // Without a name, as `ipfs add` does: the event shows the CID.
                send_entry(sender, api::Entry { kind: entry::Kind::File as i32, ..api::Entry::default() }).await?;
                send_data(sender, tokio::io::stdin(), &mut read, "reading standard input").await?;
            }
            Source::Path { path, name } => read_path(path, name, keep, sender, &mut read).await?,
            Source::Url { url, name } => read_url(url, name, sender, &mut read).await?,
        }
    }
    Ok(())
}

/// How much was read, and of what: the message of the bar.
struct Read<'a> {
    bar: &'a ProgressBar,
    bytes: u64,
}

impl Read<'_> {
    fn of(bar: &ProgressBar) -> Read<'_> {
        Read { bar, bytes: 0 }
    }

    fn more(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.bar.set_message(format!("sent, {} read", indicatif::HumanBytes(self.bytes)));
    }
}

async fn read_url(url: reqwest::Url, name: String, sender: &Sender, read: &mut Read<'_>) -> Outcome {
    let doing = format!("fetching {url}");
    let failed = |error: reqwest::Error| Failure::local(&doing, error.without_url());
    let client = reqwest::Client::builder().connect_timeout(URL_DEADLINE).read_timeout(URL_DEADLINE).build();
    let answer = client.map_err(failed)?.get(url).send().await.map_err(failed)?;
    if !answer.status().is_success() {
        return Err(Failure::local(doing, format!("the server answers {}", answer.status())));
    }
    let kind = entry::Kind::File as i32;
    let size_bytes = answer.content_length().unwrap_or_default();
    send_entry(sender, api::Entry { path: name, kind, size_bytes, ..api::Entry::default() }).await?;
    let mut body = answer.bytes_stream();
    while let Some(piece) = body.next().await {
        let mut piece = piece.map_err(failed)?;
        while !piece.is_empty() {
            send_piece(sender, piece.split_to(piece.len().min(CHUNK_BYTES)), read).await?;
        }
    }
    Ok(())
}

async fn read_path(path: PathBuf, name: String, keep: Keep, sender: &Sender, read: &mut Read<'_>) -> Outcome {
    let mut todo = vec![(path, name, 0)];
    while let Some((path, name, depth)) = todo.pop() {
        let doing = || format!("reading {}", path.display());
        let failed = |error: std::io::Error| Failure::local(doing(), error);
        let kind = tokio::fs::symlink_metadata(&path).await.map_err(failed)?;
        // What was named on the command line is followed, what lies inside is kept as a link.
        let kind = if depth == 0 { tokio::fs::metadata(&path).await.map_err(failed)? } else { kind };
        if kind.is_symlink() {
            let target = tokio::fs::read_link(&path).await.map_err(failed)?;
            let symlink_target = target.to_string_lossy().into_owned();
            send_entry(sender, api::Entry { symlink_target, ..entry_of(&name, entry::Kind::Symlink, &kind, keep) })
                .await?;
        } else if kind.is_dir() {
            if depth > MAX_DEPTH {
                return Err(Failure::local(doing(), format!("folders nest more than {MAX_DEPTH} deep")));
            }
            send_entry(sender, entry_of(&name, entry::Kind::Directory, &kind, keep)).await?;
            for child in children(&path, keep.hidden).map_err(failed)?.into_iter().rev() {
                let own = child.file_name().map(|own| own.to_string_lossy().into_owned()).unwrap_or_default();
                todo.push((child, format!("{name}/{own}"), depth + 1));
            }
        } else if kind.is_file() {
            let file = tokio::fs::File::open(&path).await.map_err(failed)?;
            let size_bytes = kind.len();
            send_entry(sender, api::Entry { size_bytes, ..entry_of(&name, entry::Kind::File, &kind, keep) }).await?;
            send_data(sender, file, read, &doing()).await?;
        } else {
            eprintln!("warning: {} is neither a file, a folder nor a link: left out", path.display());
        }
    }
    Ok(())
}

fn entry_of(path: &str, kind: entry::Kind, metadata: &std::fs::Metadata, keep: Keep) -> api::Entry {
    api::Entry {
        path: path.to_owned(),
        kind: kind as i32,
        mode: if keep.mode { metadata.permissions().mode() & 0o7777 } else { 0 },
        mtime: metadata.modified().ok().filter(|_| keep.mtime).map(mtime),
        ..api::Entry::default()
    }
}

/// Also of times before 1970: the nanoseconds always count forwards.
fn mtime(time: SystemTime) -> api::Mtime {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => api::Mtime { seconds: after.as_secs().cast_signed(), nanoseconds: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let (seconds, nanoseconds) = (before.as_secs().cast_signed(), before.subsec_nanos());
            match nanoseconds {
                0 => api::Mtime { seconds: -seconds, nanoseconds },
                1.. => api::Mtime { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
            }
        }
    }
}

async fn send_entry(sender: &Sender, entry: api::Entry) -> Outcome {
    send(sender, api::AddRequest { part: Some(add_request::Part::Entry(entry)) }).await
}

async fn send_data(sender: &Sender, mut from: impl AsyncRead + Unpin, read: &mut Read<'_>, doing: &str) -> Outcome {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            let room = (CHUNK_BYTES - chunk.len()) as u64;
            let got = (&mut from).take(room).read_buf(&mut chunk).await;
            if got.map_err(|error| Failure::local(doing, error))? == 0 {
                break;
            }
        }
        if chunk.is_empty() {
            return Ok(());
        }
        send_piece(sender, Bytes::from(chunk), read).await?;
    }
}

async fn send_piece(sender: &Sender, piece: Bytes, read: &mut Read<'_>) -> Outcome {
    read.more(piece.len());
    send(sender, api::AddRequest { part: Some(add_request::Part::Data(piece)) }).await
}

async fn send(sender: &Sender, request: api::AddRequest) -> Outcome {
    sender.send(request).await.map_err(|_| Failure::Network("the upload was ended by the other side".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: URLs are named by the last part of their path, without query; what only looks like one is a file.
    #[test]
    fn names_of_urls() {
        let name = |text: &str| match source(Path::new(text), false) {
            Ok(Source::Url { name, .. }) => Some(name),
            Ok(Source::Path { .. } | Source::Stdin) | Err(_) => None,
        };
        assert_eq!(name("https://example.org/a/b.txt?x=1#y").as_deref(), Some("b.txt"));
        assert_eq!(name("http://example.org/a/").as_deref(), Some("a"));
        assert_eq!(name("http://example.org").as_deref(), Some("example.org"));
        assert_eq!(name("http://"), None);
        assert_eq!(name("ftp://example.org/x"), None);
    }

    /// Goal: times on both sides of 1970 are whole seconds and nanoseconds that count forwards.
    #[test]
    fn times() {
        let told = |time| {
            let mtime = mtime(time);
            (mtime.seconds, mtime.nanoseconds)
        };
        assert_eq!(told(UNIX_EPOCH + Duration::new(5, 7)), (5, 7));
        assert_eq!(told(UNIX_EPOCH - Duration::new(5, 0)), (-5, 0));
        assert_eq!(told(UNIX_EPOCH - Duration::new(5, 1)), (-6, 999_999_999));
    }
}
