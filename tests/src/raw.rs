//! HTTP/1.1 by hand over one TCP connection: what a client library hides or refuses to send. It shows trailers as they
//! stand on the wire, sends no `TE` header (Go's client sends none either and reads trailers all the same), and can
//! send bytes that are no request at all.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Everything on one connection: far more than any answer here takes.
const DEADLINE: Duration = Duration::from_secs(60);
/// A connection that is to be closed is closed within this.
const CLOSING: Duration = Duration::from_secs(10);
/// Bounds what a test reads from a server that never ends.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
pub const BOUNDARY: &str = "----pinfold-test-boundary";

/// A request, sent exactly as written here.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<Vec<u8>>,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Request {
        Request { method: method.to_owned(), target: target.to_owned(), headers: Vec::new(), body: None }
    }

    /// `"GET /id"`
    pub fn line(line: &str) -> Request {
        let (method, target) = line.split_once(' ').unwrap_or_else(|| panic!("{line}: no method and target"));
        Request::new(method, target)
    }

    pub fn header(mut self, name: &str, value: &str) -> Request {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Request {
        self.body = Some(body.into());
        self.header("Content-Type", content_type)
    }

    pub fn multipart(self, parts: &[Part<'_>]) -> Request {
        let mut body = Vec::new();
        for part in parts {
            body.extend_from_slice(format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"").as_bytes());
            if let Some(file_name) = part.file_name {
                body.extend_from_slice(format!("; filename=\"{file_name}\"").as_bytes());
            }
            body.extend_from_slice(format!("\r\nContent-Type: {}\r\n\r\n", part.content_type).as_bytes());
            body.extend_from_slice(part.data);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        self.body(&format!("multipart/form-data; boundary={BOUNDARY}"), body)
    }

    pub fn bytes(&self, authority: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {authority}\r\n", self.method, self.target);
        head.push_str("User-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n");
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = &self.body {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }

    /// Sends it on a connection of its own and reads the whole answer.
    pub async fn send(&self, authority: &str) -> io::Result<Reply> {
        let mut connection = Connection::open(authority).await?;
        connection.write(&self.bytes(authority)).await;
        connection.read_reply(&self.method).await
    }
}

/// A part of an upload.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    pub file_name: Option<&'a str>,
    pub content_type: &'a str,
    pub data: &'a [u8],
}

impl<'a> Part<'a> {
    pub fn file(file_name: &'a str, data: &'a [u8]) -> Part<'a> {
        Part { file_name: Some(file_name), content_type: "application/octet-stream", data }
    }
}

/// A whole answer as it stood on the wire.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub is_chunked: bool,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Reply {
    /// All lines of that name, in their order.
    pub fn header(&self, name: &str) -> Vec<&str> {
        named(&self.headers, name)
    }

    pub fn trailer(&self, name: &str) -> Vec<&str> {
        named(&self.trailers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The one JSON document of the body.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }
}

fn named<'a>(lines: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let matching = lines.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
    matching.map(|(_, value)| value.as_str()).collect()
}

pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// Where the next unread byte of `received` is.
    at: usize,
}

impl Connection {
    pub async fn open(authority: &str) -> io::Result<Connection> {
        let stream = timeout(DEADLINE, TcpStream::connect(authority)).await??;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, received: Vec::new(), at: 0 })
    }

    /// Sends bytes. A server may answer and close before it has read everything, so a failure to send is none: the
    /// answer tells.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = timeout(DEADLINE, self.stream.write_all(bytes)).await;
    }

    /// Says that nothing more will come.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Reads one answer to a request of `method`, skipping `100 Continue`.
    pub async fn read_reply(&mut self, method: &str) -> io::Result<Reply> {
        timeout(DEADLINE, self.read_within(method)).await?
    }

    async fn read_within(&mut self, method: &str) -> io::Result<Reply> {
        loop {
            let mut reply = self.read_head().await?;
            if (100..200).contains(&reply.status) {
                continue;
            }
            if method == "HEAD" || matches!(reply.status, 204 | 304) {
                return Ok(reply);
            }
            reply.is_chunked = reply.header("transfer-encoding").iter().any(|value| value.contains("chunked"));
            if reply.is_chunked {
                self.read_chunks(&mut reply).await?;
            } else if let Some(length) = reply.header("content-length").first() {
                let length: usize = length.parse().map_err(|_| bad("a content length that is no number"))?;
                reply.body = self.take(length).await?;
            } else {
                while self.more().await? {}
                reply.body = self.received[self.at..].to_vec();
                self.at = self.received.len();
            }
            return Ok(reply);
        }
    }

    async fn read_head(&mut self) -> io::Result<Reply> {
        let line = self.line().await?;
        let mut words = line.splitn(3, ' ');
        let version = words.next().unwrap_or_default();
        let status = words.next().and_then(|status| status.parse().ok());
        let status = status.filter(|_| version.starts_with("HTTP/1."));
        let status = status.ok_or_else(|| bad(&format!("no status line: {line:?}")))?;
        Ok(Reply { status, headers: self.fields().await?, ..Reply::default() })
    }

    /// Header or trailer lines up to the empty one.
    async fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad(&format!("no header line: {line:?}")))?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    async fn read_chunks(&mut self, reply: &mut Reply) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| bad(&format!("no chunk size: {line:?}")))?;
            if size == 0 {
                reply.trailers = self.fields().await?;
                return Ok(());
            }
            let chunk = self.take(size).await?;
            reply.body.extend_from_slice(&chunk);
            if !self.line().await?.is_empty() {
                return Err(bad("a chunk without its line end"));
            }
        }
    }

    /// One line without its CRLF.
    async fn line(&mut self) -> io::Result<String> {
        loop {
            let rest = &self.received[self.at..];
            if let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                self.at += end + 2;
                return Ok(line);
            }
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.received.len() - self.at < length {
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let taken = self.received[self.at..self.at + length].to_vec();
        self.at += length;
        Ok(taken)
    }

    /// Reads what is there; false at the end.
    async fn more(&mut self) -> io::Result<bool> {
        if self.received.len() > MAX_ANSWER_BYTES {
            return Err(bad("an answer without end"));
        }
        Ok(self.stream.read_buf(&mut self.received).await? > 0)
    }

    /// Everything that comes until the other side closes; `None` when it does not close in time.
    pub async fn read_to_close(&mut self) -> Option<Vec<u8>> {
        let until_closed = async {
            // A reset closes too.
            while let Ok(true) = self.more().await {}
        };
        timeout(CLOSING, until_closed).await.ok()?;
        let rest = self.received[self.at..].to_vec();
        self.at = self.received.len();
        Some(rest)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Goal: chunks, trailers and a second answer on the same connection are read as they were sent.
    #[tokio::test]
    async fn reads_what_was_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answers = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTrailer: X-A\r\nTransfer-Encoding: chunked\r\n\r\n\
                3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-A: \r\nx-a: b\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}";
            stream.write_all(answers).await.unwrap();
        });
        let mut connection = Connection::open(&authority).await.unwrap();
        let reply = connection.read_reply("GET").await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, "abcde"));
        assert_eq!(reply.trailer("X-A"), ["", "b"]);
        let reply = connection.read_reply("GET").await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (404, "{}"));
        assert_eq!(connection.read_to_close().await.unwrap(), b"");
    }

    /// Goal: a multipart body stands on the wire as curl writes it.
    #[test]
    fn multipart_as_curl_writes_it() {
        let request = Request::line("POST /add").multipart(&[Part::file("a/b", b"x")]);
        let text = String::from_utf8(request.bytes("h:1")).unwrap();
        assert!(text.contains("filename=\"a/b\"\r\nContent-Type: application/octet-stream\r\n\r\nx\r\n--"), "{text}");
        assert!(text.ends_with("--\r\n") && !text.contains("TE:"));
    }
}
