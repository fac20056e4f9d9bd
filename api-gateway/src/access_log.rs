//! One line per REST request in Apache's common log format, into `api.restapi.http_log_file`. A disk that is slower
//! than the requests loses lines, and says how many; it never holds up a request.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Method, StatusCode, Uri, Version};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::{Error, Result};
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

/// Lines that wait for the disk.
const MAX_WAITING_LINES: usize = 4096;
const TIME: &[FormatItem<'_>] = format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");

#[derive(Clone)]
pub struct AccessLog {
    lines: mpsc::Sender<String>,
    lost: Arc<AtomicU64>,
}

/// What a line says.
pub struct Access<'a> {
    pub client: SocketAddr,
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub version: Version,
    pub status: StatusCode,
    /// Unknown for streams.
    pub bytes: Option<u64>,
}

impl AccessLog {
    /// Opens the file for appending, readable by everybody as in the original.
    pub async fn open(path: &Path, shutdown: Shutdown) -> Result<AccessLog> {
        let file = OpenOptions::new().create(true).append(true).mode(0o644).open(path).await;
        let file = file
            .map_err(|error| Error::invalid(format!("api.restapi.http_log_file: open {}: {error}", path.display())))?;
        let (lines, waiting) = mpsc::channel(MAX_WAITING_LINES);
        let lost = Arc::new(AtomicU64::new(0));
        tokio::spawn(write(file, waiting, lost.clone(), shutdown));
        Ok(AccessLog { lines, lost })
    }

    pub fn record(&self, access: &Access<'_>) {
        if self.lines.try_send(line(access, OffsetDateTime::now_utc())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn line(access: &Access<'_>, now: OffsetDateTime) -> String {
    let time = now.format(TIME).unwrap_or_default();
    let bytes = access.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
    format!(
        "{} - - [{time}] \"{} {} {:?}\" {} {bytes}\n",
        access.client.ip(),
        access.method,
        // HTTP/2 gives the whole URI; lines look the same for both.
        access.uri.path_and_query().map_or("", |path| path.as_str()),
        access.version,
        access.status.as_u16()
    )
}

async fn write(mut file: File, mut waiting: mpsc::Receiver<String>, lost: Arc<AtomicU64>, shutdown: Shutdown) {
    while let Some(Some(first)) = shutdown.race(waiting.recv()).await {
        let mut lines = first;
        while let Ok(line) = waiting.try_recv() {
            lines.push_str(&line);
        }
        let written = async {
            file.write_all(lines.as_bytes()).await?;
            file.flush().await
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, "write to api.restapi.http_log_file");
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "lines of api.restapi.http_log_file are lost: the disk is too slow");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a line as tools expect it.
    #[test]
    fn common_log_format() {
        let access = Access {
            client: "10.1.2.3:5".parse().unwrap(),
            method: &Method::GET,
            uri: &Uri::from_static("/pins?local=true"),
            version: Version::HTTP_11,
            status: StatusCode::OK,
            bytes: Some(12),
        };
        let now = OffsetDateTime::from_unix_timestamp(1_795_432_062).unwrap();
        let expected = "10.1.2.3 - - [23/Nov/2026:11:07:42 +0000] \"GET /pins?local=true HTTP/1.1\" 200 12\n";
        assert_eq!(line(&access, now), expected);
    }
}
