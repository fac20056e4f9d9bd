//! The public port seen from raw sockets, as clients that are not ours use it.

use std::net::SocketAddr;

use futures::StreamExt;
use http::HeaderMap;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::AsyncWriteExt;

use super::*;

/// Answers with the body it got and, in a trailer, with how long that was.
#[derive(Clone)]
struct Echo;

impl Handler for Echo {
    async fn handle(self, request: Request<Incoming>, _client: SocketAddr) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        if path == "/empty" {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::NO_CONTENT;
            response.headers_mut().insert("trailer", "X-Stream-Error".parse().unwrap());
            return response;
        }
        if path == "/plain" {
            return Response::new(Body::from(body));
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-stream-error", body.len().to_string().parse().unwrap());
        let data = bytes::Bytes::from(format!("{path} {}\n", String::from_utf8_lossy(&body)));
        let frames = futures::stream::iter([Frame::data(data), Frame::trailers(trailers)]);
        let mut response = Response::new(Body::new(StreamBody::new(frames.map(Ok::<_, Infallible>))));
        response.headers_mut().insert("trailer", "X-Stream-Error".parse().unwrap());
        response
    }
}

const LIMITS: Limits =
    Limits { header_bytes: 8192, read_header: Duration::from_millis(300), idle: Duration::from_secs(30) };
const TEST_DEADLINE: Duration = Duration::from_secs(10);

async fn start() -> (SocketAddr, Shutdown, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let server = tokio::spawn(serve(listener, None, LIMITS, Echo, shutdown.clone()));
    (address, shutdown, server)
}

async fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    let work = async {
        while !String::from_utf8_lossy(&read).ends_with(end) {
            assert!(socket.read_buf(&mut read).await.unwrap() > 0, "closed: {:?}", String::from_utf8_lossy(&read));
        }
    };
    if timeout(TEST_DEADLINE, work).await.is_err() {
        panic!("no {end:?} in {:?}", String::from_utf8_lossy(&read));
    }
    String::from_utf8(read).unwrap()
}

async fn read_to_close(socket: &mut TcpStream) -> String {
    let mut read = Vec::new();
    timeout(TEST_DEADLINE, socket.read_to_end(&mut read)).await.expect("the connection is closed").unwrap();
    String::from_utf8(read).unwrap()
}

/// Goal: trailers reach a client that never said it takes them, on one connection for many requests: with and without
/// a body, sized and chunked, one by one and pipelined, in one piece and byte by byte.
#[tokio::test]
async fn trailers_without_being_asked_for() {
    let (address, ..) = start().await;
    let requests = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n\
        POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /\
        \r\nPOST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n\
        GET /d HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n";
    for step in [1, 7, requests.len()] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        for part in requests.as_bytes().chunks(step) {
            socket.write_all(part).await.unwrap();
            socket.flush().await.unwrap();
        }
        let mut answers = String::new();
        while answers.matches("X-Stream-Error: ").count() < 4 {
            answers.push_str(&read_until(&mut socket, "\r\n\r\n").await);
        }
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 4, "{answers}");
        for expected in
            ["/a \n\r\n0\r\nX-Stream-Error: 0\r\n", "/b GET /\n\r\n0\r\nX-Stream-Error: 5\r\n", "X-Stream-Error: 7\r\n"]
        {
            assert!(answers.contains(expected), "{expected:?} in {answers}");
        }
        assert!(answers.contains("\r\nTrailer: X-Stream-Error\r\n"), "title case: {answers}");
    }
}

/// Goal: a large body, in which heads of requests are written, arrives unchanged.
#[tokio::test]
async fn bodies_arrive_unchanged() {
    let (address, ..) = start().await;
    let body = "GET /x HTTP/1.1\r\nContent-Length: 3\r\n\r\n".repeat(20_000);
    let mut socket = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = socket.split();
    let send = async {
        writer
            .write_all(format!("POST /plain HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())
            .await
            .unwrap();
        writer.write_all(body.as_bytes()).await.unwrap();
        writer
            .write_all(b"POST /plain HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await
            .unwrap();
        for chunk in body.as_bytes().chunks(10_007) {
            writer.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await.unwrap();
            writer.write_all(chunk).await.unwrap();
            writer.write_all(b"\r\n").await.unwrap();
        }
        writer.write_all(b"0\r\n\r\n").await.unwrap();
    };
    let mut answers = Vec::new();
    let read = reader.read_to_end(&mut answers);
    let (_, read) = timeout(TEST_DEADLINE, async { tokio::join!(send, read) }).await.unwrap();
    read.unwrap();
    let answers = String::from_utf8(answers).unwrap();
    assert_eq!(answers.matches(&body).count(), 2);
}

/// Goal: a client that waits for `100 Continue` gets it before it sends, and its trailers.
#[tokio::test]
async fn expect_continue() {
    let (address, ..) = start().await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        socket.write_all(b"POST /e HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await.unwrap();
        assert_eq!(read_until(&mut socket, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        socket.write_all(b"body").await.unwrap();
        let answer = read_until(&mut socket, "X-Stream-Error: 4\r\n\r\n").await;
        assert!(answer.contains("/e body\n"), "{answer}");
    }
}

/// Goal: what two readers could frame differently is refused and the connection closed (`attack:HT1`, `attack:HT5`).
#[tokio::test]
async fn bad_heads() {
    let (address, ..) = start().await;
    for (head, status) in [
        (
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "400 Bad Request",
        ),
        ("GET / HTTP/1.1\nHost: x\r\n\r\n".to_owned(), "400 Bad Request"),
        ("GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n".to_owned(), "400 Bad Request"),
        (format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(8200)), "431 Request Header Fields Too Large"),
        (format!("GET /{}", "x".repeat(20_000)), "431 Request Header Fields Too Large"),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        let answer = read_to_close(&mut socket).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head:.60}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
}

/// Goal: a head that does not come to its end is cut off, also the second one of a connection (`attack:HT3`).
#[tokio::test]
async fn slow_heads_are_cut() {
    let (address, ..) = start().await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET /a HTTP/1.1\r\nHost: ").await.unwrap();
    assert_eq!(read_to_close(&mut socket).await, "");
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    read_until(&mut socket, "X-Stream-Error: 0\r\n\r\n").await;
    socket.write_all(b"G").await.unwrap();
    assert_eq!(read_to_close(&mut socket).await, "");
}

/// Goal: an answer without a body names its trailer too, alone and between others.
#[tokio::test]
async fn trailer_header_without_a_body() {
    let (address, ..) = start().await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let empty = "GET /empty HTTP/1.1\r\n\r\n";
    let full = "GET /Trailed: HTTP/1.1\r\n\r\n";
    let last = "GET /empty HTTP/1.1\r\nConnection: close\r\n\r\n";
    socket.write_all([empty, full, empty, empty, full, last].concat().as_bytes()).await.unwrap();
    let answers = read_to_close(&mut socket).await;
    assert_eq!(answers.matches("HTTP/1.1 204 No Content\r\n").count(), 4, "{answers}");
    assert_eq!(answers.matches("\r\nTrailer: X-Stream-Error\r\n").count(), 6, "{answers}");
    assert!(!answers.contains("\r\nTrailed: "), "{answers}");
}

/// Goal: a client that is still sending when it is refused reads why.
#[tokio::test]
async fn refusals_reach_clients_that_send_on() {
    let (address, ..) = start().await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = socket.split();
    let endless = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(1024 * 1024));
    let mut answer = Vec::new();
    let (sent, read) = tokio::join!(writer.write_all(endless.as_bytes()), reader.read_to_end(&mut answer));
    sent.unwrap();
    read.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&answer));
}

/// Goal: HTTP/2 with prior knowledge works on the same port, and a stop lets clients go.
#[tokio::test]
async fn http2_on_the_same_port_and_a_clean_stop() {
    let (address, shutdown, server) = start().await;
    let socket = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, http_body_util::Full<bytes::Bytes>>(
        TokioExecutor::new(),
        TokioIo::new(socket),
    )
    .await
    .unwrap();
    let connection = tokio::spawn(connection);
    let request =
        Request::post(format!("http://{address}/h2")).body(http_body_util::Full::from("PRI * HTTP/2.0")).unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["x-stream-error"], "14");
    let idle = TcpStream::connect(address).await.unwrap();
    shutdown.trigger();
    timeout(TEST_DEADLINE, server).await.expect("the server ends").unwrap();
    timeout(TEST_DEADLINE, connection).await.expect("the client was told").unwrap().unwrap();
    drop(idle);
}
