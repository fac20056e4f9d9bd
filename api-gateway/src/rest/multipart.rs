//! Uploads as `multipart/form-data`, the way Kubo's clients send files and directories (rest-api.md 9.2), into the
//! adder's steps. Names never touch a file system: they become names in a DAG.

use std::time::Duration;

use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName};
use multer::{Field, Multipart};
use pinfold_common::{Error, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::query::{Plus, unescape};
use crate::adder::{Attributes, Input, MAX_NANOSECONDS, Mtime};

/// A client that sends nothing of its upload for this long is gone (`attack:MP2`).
const STALL_DEADLINE: Duration = Duration::from_secs(120);
/// What is left of a failed upload is read for this long, because a client that is still sending does not see the
/// answer when the connection is cut.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// More files than this are not one upload (`attack:MP1`).
const MAX_PARTS: u64 = 1_000_000;
/// As RFC 2046 has it.
const MAX_BOUNDARY_BYTES: usize = 70;
const MAX_NAME_BYTES: usize = 4096;
const MAX_NAME_SEGMENTS: usize = 256;
const MAX_TARGET_BYTES: usize = 4096;

const ABSOLUTE_PATHS: [HeaderName; 2] =
    [HeaderName::from_static("abspath"), HeaderName::from_static("abspath-encoded")];

/// The boundary, when the request is an upload at all.
pub fn boundary(headers: &HeaderMap) -> Result<String> {
    let refused = || Error::invalid("request Content-Type isn't multipart/form-data");
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).ok_or_else(refused)?;
    let kind = text.split(';').next().unwrap_or_default().trim();
    let rest = &text[text.find(';').unwrap_or(text.len())..];
    if !["multipart/form-data", "multipart/mixed"].iter().any(|allowed| kind.eq_ignore_ascii_case(allowed)) {
        return Err(refused());
    }
    // The library knows only the first of the two names; the format is the same.
    let boundary = multer::parse_boundary(format!("multipart/form-data{rest}")).unwrap_or_default();
    if boundary.is_empty() {
        return Err(Error::invalid("no multipart boundary param in Content-Type"));
    }
    if boundary.len() > MAX_BOUNDARY_BYTES {
        return Err(Error::invalid(format!("multipart boundary longer than {MAX_BOUNDARY_BYTES} bytes")));
    }
    Ok(boundary)
}

/// Reads an upload to its end and hands it on step by step; the first error is the last step. `begun` is told when the
/// client has sent something, or never will.
pub async fn feed(body: Body, boundary: String, steps: mpsc::Sender<Result<Input>>, begun: oneshot::Sender<()>) {
    let mut multipart = Multipart::new(body.into_data_stream(), boundary);
    let read = read(&mut multipart, &steps, begun).await;
    if let Err(Ended::Malformed(error)) = &read {
        // Nobody waits for it when the adder has failed by itself.
        let _ = steps.send(Err(error.clone())).await;
    }
    drop(steps);
    if read.is_err() {
        // The client may as well be gone.
        let _ = timeout(DRAIN_DEADLINE, drain(multipart)).await;
    }
}

/// Why reading stopped before the end.
enum Ended {
    Malformed(Error),
    /// The adder takes no more.
    NotWanted,
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Malformed(error)
    }
}

async fn read(
    multipart: &mut Multipart<'static>,
    steps: &mpsc::Sender<Result<Input>>,
    begun: oneshot::Sender<()>,
) -> Result<(), Ended> {
    let mut begun = Some(begun);
    let mut parts = 0;
    loop {
        let field = soon(multipart.next_field()).await;
        if let Some(begun) = begun.take() {
            // Nobody listens when the client has left.
            let _ = begun.send(());
        }
        let Some(mut field) = field? else { return Ok(()) };
        parts += 1;
        if parts > MAX_PARTS {
            return Err(Error::invalid(format!("more than {MAX_PARTS} parts")).into());
        }
        if ABSOLUTE_PATHS.iter().any(|name| field.headers().contains_key(name)) {
            tracing::debug!("ignore the source path of a part: files are never read from this machine");
        }
        let path = name_of(field.file_name().unwrap_or_default())?;
        let attributes = attributes_of(field.name().unwrap_or_default())?;
        let kind = field.content_type().map_or("", |kind| kind.essence_str()).to_owned();
        match kind.as_str() {
            "application/x-directory" => send(steps, Input::Directory { path, attributes }).await?,
            "application/symlink" => {
                let target = read_target(&mut field).await?;
                send(steps, Input::Symlink { path, target, attributes }).await?;
            }
            kind if kind.starts_with("multipart/") => {
                return Err(Error::invalid("a multipart within a multipart is not supported").into());
            }
            _ => {
                send(steps, Input::File { path, attributes }).await?;
                while let Some(data) = soon(field.chunk()).await? {
                    send(steps, Input::Data(data)).await?;
                }
                send(steps, Input::EndOfFile).await?;
            }
        }
    }
}

async fn send(steps: &mpsc::Sender<Result<Input>>, step: Input) -> Result<(), Ended> {
    steps.send(Ok(step)).await.map_err(|_| Ended::NotWanted)
}

/// Waits for more of the upload, but not for ever.
async fn soon<T>(more: impl Future<Output = multer::Result<T>>) -> Result<T, Ended> {
    match timeout(STALL_DEADLINE, more).await {
        Ok(Ok(more)) => Ok(more),
        Ok(Err(error)) => Err(Error::invalid(format!("read the upload: {error}")).into()),
        Err(_) => {
            let seconds = STALL_DEADLINE.as_secs();
            Err(Error::invalid(format!("read the upload: nothing came for {seconds}s")).into())
        }
    }
}

async fn read_target(field: &mut Field<'static>) -> Result<String, Ended> {
    let mut target = Vec::new();
    while let Some(data) = soon(field.chunk()).await? {
        target.extend_from_slice(&data);
        if target.len() > MAX_TARGET_BYTES {
            return Err(Error::invalid(format!("target of a symlink: longer than {MAX_TARGET_BYTES} bytes")).into());
        }
    }
    String::from_utf8(target).map_err(|_| Error::invalid("target of a symlink: not UTF-8").into())
}

async fn drain(mut multipart: Multipart<'static>) {
    while let Ok(Some(mut field)) = multipart.next_field().await {
        while let Ok(Some(_)) = field.chunk().await {}
    }
}

/// A part's file name: percent- or plus-escaped where that makes sense, then cleaned.
fn name_of(file_name: &str) -> Result<String> {
    let name = unescape(file_name, Plus::IsSpace).unwrap_or(file_name.into());
    clean_name(&name)
}

/// `file?mode=0644&mtime=1700000000&mtime-nsecs=5`, as Kubo's clients name a part: what stands behind the question mark.
fn attributes_of(field_name: &str) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    let Some((_, query)) = field_name.split_once('?') else { return Ok(attributes) };
    let (mut seconds, mut nanoseconds) = (None, 0);
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let bad = |_| Error::invalid(format!("{key} of a part: {:?} is not one", pinfold_common::ids::shorten(value)));
        match key {
            "mode" => attributes.mode = Some(unix_mode(u32::from_str_radix(value, 8).map_err(bad)?)),
            "mtime" => seconds = Some(value.parse::<i64>().map_err(bad)?),
            "mtime-nsecs" => nanoseconds = value.parse::<u32>().map_err(bad)?,
            _ => {}
        }
    }
    if nanoseconds > MAX_NANOSECONDS {
        return Err(Error::invalid(format!("mtime-nsecs of a part: {nanoseconds}, at most {MAX_NANOSECONDS}")));
    }
    attributes.mtime = seconds.map(|seconds| Mtime { seconds, nanoseconds });
    Ok(attributes)
}

/// Kubo's clients send the mode as Go has it, whose bits above the permissions are elsewhere than Unix's.
fn unix_mode(go_mode: u32) -> u32 {
    const GO_SETUID_SETGID_STICKY: [(u32, u32); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];
    let above = GO_SETUID_SETGID_STICKY.iter().filter(|(go, _)| go_mode & go != 0).map(|(_, unix)| unix);
    go_mode & 0o777 | above.sum::<u32>()
}

/// A relative path without empty and `.` parts. `..` and absolute paths are refused: they mean nothing in a DAG
/// (`attack:MP3`).
pub fn clean_name(name: &str) -> Result<String> {
    let bad = |why: &str| Error::invalid(format!("file name {:?}: {why}", pinfold_common::ids::shorten(name)));
    if name.len() > MAX_NAME_BYTES {
        return Err(bad("too long"));
    }
    if name.contains('\0') {
        return Err(bad("holds a NUL"));
    }
    let segments: Vec<&str> = name.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
    if name.starts_with('/') {
        return Err(bad("must not be absolute"));
    }
    if segments.contains(&"..") {
        return Err(bad("must not lead upwards"));
    }
    if segments.len() > MAX_NAME_SEGMENTS {
        return Err(bad("too deep"));
    }
    Ok(segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn steps_of(body: &'static str) -> Vec<Result<Input, String>> {
        let (sender, mut receiver) = mpsc::channel(100);
        let (begun, has_begun) = oneshot::channel();
        feed(Body::from(body.replace('\n', "\r\n")), "B".to_owned(), sender, begun).await;
        has_begun.await.unwrap();
        let mut steps = Vec::new();
        while let Some(step) = receiver.recv().await {
            steps.push(step.map_err(|error| error.message));
        }
        steps
    }

    /// Goal: files, directories and symlinks become steps, with the names that Kubo's clients escape.
    #[tokio::test]
    async fn parts_become_steps() {
        let steps = steps_of(
            "--B\nContent-Disposition: form-data; name=\"file?mode=0644&mtime=-5&mtime-nsecs=7\"; filename=\"a%2Fb+c.txt\"\n\nhello\n\
             --B\nContent-Disposition: form-data; name=\"file\"; filename=\"d/./e/\"\nContent-Type: application/x-directory\n\n\n\
             --B\nContent-Disposition: form-data; name=\"file\"; filename=\"100%\"\nContent-Type: application/symlink\n\n../x\n\
             --B--\n",
        )
        .await;
        let attributes = Attributes::default();
        let told = Attributes { mode: Some(0o644), mtime: Some(Mtime { seconds: -5, nanoseconds: 7 }) };
        let expected = [
            Input::File { path: "a/b c.txt".into(), attributes: told },
            Input::Data("hello".into()),
            Input::EndOfFile,
            Input::Directory { path: "d/e".into(), attributes },
            Input::Symlink { path: "100%".into(), target: "../x".into(), attributes },
        ];
        assert_eq!(steps, expected.map(Ok));
    }

    /// Goal: what must not be imported ends the upload with an error.
    #[tokio::test]
    async fn bad_uploads_end_in_an_error() {
        for body in [
            "--B\nContent-Disposition: form-data; name=\"file\"; filename=\"../../etc/passwd\"\n\nx\n--B--\n",
            "--B\nContent-Disposition: form-data; name=\"file\"; filename=\"a%00b\"\n\nx\n--B--\n",
            "--B\nContent-Disposition: form-data; name=\"file\"; filename=\"%2Fetc%2Fpasswd\"\n\nx\n--B--\n",
            "--B\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\n\nno end",
            "--B\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\nContent-Type: multipart/mixed; boundary=C\n\nx\n--B--\n",
            "--B\nContent-Disposition: form-data; name=\"file?mode=9\"; filename=\"a\"\n\nx\n--B--\n",
            "--B\nContent-Disposition: form-data; name=\"file?mtime=x\"; filename=\"a\"\n\nx\n--B--\n",
            "--B\nContent-Disposition: form-data; name=\"file?mtime=1&mtime-nsecs=1000000000\"; filename=\"a\"\n\nx\n--B--\n",
            "nothing like it",
        ] {
            assert!(steps_of(body).await.pop().is_none_or(|last| last.is_err()), "{body}");
        }
        assert!(clean_name(&"a/".repeat(300)).is_err());
        assert!(clean_name(&"a".repeat(5000)).is_err());
    }

    /// Goal: the permissions of Go's clients are Unix's, whatever kind of file Go says it is.
    #[test]
    fn modes_of_go() {
        assert_eq!(unix_mode(0o644), 0o644);
        assert_eq!(unix_mode(1 << 31 | 1 << 22 | 0o750), 0o2750);
        assert_eq!(unix_mode(1 << 23 | 1 << 20 | 0o711), 0o5711);
        assert_eq!(unix_mode(0o4755), 0o755, "as Kubo reads it");
    }

    /// Goal: only multipart requests are uploads.
    #[test]
    fn content_types() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
            boundary(&headers).map_err(|error| error.message)
        };
        assert_eq!(of("multipart/form-data; boundary=abc"), Ok("abc".into()));
        assert_eq!(of("Multipart/Mixed; boundary=\"a b\""), Ok("a b".into()));
        assert_eq!(of("application/json"), Err("request Content-Type isn't multipart/form-data".into()));
        assert!(of("multipart/form-data").is_err());
        assert!(of("multipart/form-data; boundary=").is_err());
        assert!(
            of(
                "multipart/form-data; boundary=aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggggggggghh"
            )
            .is_err()
        );
        assert!(boundary(&HeaderMap::new()).is_err());
    }
}
