//! Kubo as it is when it misbehaves: failures in trailers, answers that break off, silence, nonsense (beh:B13.2,
//! B13.12; attack:KB1; fault:K1). A few lines of HTTP that answer what a test says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use ipfs_connector::node::kubo::{KuboConfig, KuboNode};
use ipfs_connector::node::{IpfsNode, NodeError, PinAdd, PinState};
use pinfold_common::pin::PinMode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};

use crate::dag::*;

/// One answer, piece by piece.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: String,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug)]
enum Piece {
    Data(Vec<u8>),
    Trailer(String),
    /// The connection stays open and nothing comes.
    Silence,
    /// The connection is closed in the middle.
    Cut,
    /// The same data again and again, at an interval, without end.
    Forever(Vec<u8>, Duration),
}

impl Answer {
    pub fn new(status: u16) -> Answer {
        Answer { status, headers: String::new(), pieces: Vec::new() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    pub fn body(mut self, data: &[u8]) -> Answer {
        self.pieces.push(Piece::Data(data.to_vec()));
        self
    }

    pub fn trailer(mut self, text: &str) -> Answer {
        self.pieces.push(Piece::Trailer(text.to_owned()));
        self
    }

    fn then(mut self, piece: Piece) -> Answer {
        self.pieces.push(piece);
        self
    }

    async fn write(&self, out: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        let head = format!(
            "HTTP/1.1 {} Some Reason\r\n{}Trailer: X-Stream-Error\r\nTransfer-Encoding: chunked\r\n\r\n",
            self.status, self.headers
        );
        out.write_all(head.as_bytes()).await?;
        let mut trailer = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Data(data) => chunk(out, data).await?,
                Piece::Trailer(text) => trailer = format!("X-Stream-Error: {text}\r\n"),
                Piece::Silence => std::future::pending().await,
                Piece::Cut => return Err(std::io::ErrorKind::ConnectionAborted.into()),
                Piece::Forever(data, interval) => loop {
                    chunk(out, data).await?;
                    tokio::time::sleep(*interval).await;
                },
            }
        }
        out.write_all(format!("0\r\n{trailer}\r\n").as_bytes()).await
    }
}

async fn chunk(out: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> std::io::Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    out.write_all(format!("{:x}\r\n", data.len()).as_bytes()).await?;
    out.write_all(data).await?;
    out.write_all(b"\r\n").await?;
    out.flush().await
}

/// Serves one connection: reads heads (requests here have no body) and answers each.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: Arc<dyn Fn(&str) -> Answer + Send + Sync>) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        if answer(&head).write(&mut stream).await.is_err() {
            return;
        }
    }
}

/// A server on a free port; its address as a URL.
pub async fn http_server(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer: Arc<dyn Fn(&str) -> Answer + Send + Sync> = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer.clone()));
        }
    });
    format!("http://{address}")
}

fn quick(api: &str) -> KuboNode {
    let config = KuboConfig {
        request_timeout: Duration::from_millis(800),
        pin_timeout: Duration::from_millis(800),
        unpin_timeout: Duration::from_millis(800),
        gc_timeout: Duration::from_millis(800),
        ..KuboConfig::new(pinfold_common::address::parse_multiaddr(api).unwrap())
    };
    KuboNode::new(config).unwrap()
}

/// A Kubo that answers `pin/add` with this, says that nothing is pinned, and knows its version.
async fn kubo_with(command: &'static str, answer: Answer) -> KuboNode {
    let url = http_server(move |head| {
        if head.starts_with(&format!("POST /api/v0/{command}")) {
            answer.clone()
        } else if head.starts_with("POST /api/v0/version") {
            Answer::new(200).body(b"{\"Version\":\"0\"}")
        } else {
            Answer::new(500).body(b"{\"Message\":\"path 'x' is not pinned\",\"Code\":0,\"Type\":\"error\"}")
        }
    })
    .await;
    quick(&format!("/ip4/127.0.0.1/tcp/{}", url.rsplit(':').next().unwrap()))
}

async fn pin_with(answer: Answer) -> Result<ipfs_connector::node::PinProgress, NodeError> {
    let cid = leaf(10).cid;
    let answer = Answer {
        pieces: answer
            .pieces
            .into_iter()
            .map(|piece| match piece {
                Piece::Data(data) => {
                    Piece::Data(String::from_utf8(data).unwrap().replace("CID", &cid.to_string()).into_bytes())
                }
                other => other,
            })
            .collect(),
        ..answer
    };
    let node = kubo_with("pin/add", answer).await;
    pin(&node, cid, PinMode::Recursive).await
}

const PROGRESS: &[u8] = b"{\"Progress\":3,\"Bytes\":300}\n";
const PINNED: &[u8] = b"{\"Pins\":[\"CID\"]}\n";

/// Goal: a pin is done only when `Pins` came, names the CID, and the trailer is empty.
#[tokio::test]
async fn how_a_pin_ends() {
    let done = pin_with(Answer::new(200).body(PROGRESS).body(PINNED)).await.unwrap();
    assert_eq!((done.blocks, done.bytes), (3, 300));
    pin_with(Answer::new(200).body(PINNED).trailer("")).await.unwrap();

    let error = pin_with(Answer::new(200).body(PROGRESS).trailer("pin: no space left on device")).await.unwrap_err();
    assert!(matches!(&error, NodeError::DiskFull(text) if text.contains("pin/add?arg=")), "{error:?}");
    let error = pin_with(Answer::new(200).body(PINNED).trailer("pin: flush: broken")).await.unwrap_err();
    assert!(matches!(error, NodeError::Other(_)), "{error:?}");
    let error = pin_with(Answer::new(200).body(PROGRESS)).await.unwrap_err();
    assert!(error.to_string().contains("without saying that it is pinned"), "{error:?}");
    let error = pin_with(Answer::new(200).body(b"{\"Pins\":[\"QmWrong\"]}")).await.unwrap_err();
    assert!(error.to_string().contains("says it pinned"), "{error:?}");
    let error = pin_with(Answer::new(200).body(PROGRESS).then(Piece::Cut)).await.unwrap_err();
    assert!(matches!(&error, NodeError::Down(text) if text.contains("broke off")), "{error:?}");
    let error = pin_with(Answer::new(200).body(b"<html>").trailer("")).await.unwrap_err();
    assert!(matches!(error, NodeError::Other(_)), "{error:?}");
    let error = pin_with(Answer::new(200).body(&vec![b'x'; 3_000_000])).await.unwrap_err();
    assert!(error.to_string().contains("a line of more than"), "{error:?}");
}

/// Goal: beh:B13.2. The same numbers again and again, or silence, is a stall after the pin timeout, not twice as late;
/// nothing at all is nobody who has it; and progress in either number keeps it alive.
#[tokio::test]
async fn stalls() {
    let again = |data: &[u8]| Piece::Forever(data.to_vec(), Duration::from_millis(50));
    for stuck in [again(PROGRESS), Piece::Silence, again(b"{\"Progress\":-7,\"Bytes\":-1}\n")] {
        let start = Instant::now();
        let error = pin_with(Answer::new(200).body(PROGRESS).then(stuck)).await.unwrap_err();
        assert!(matches!(&error, NodeError::Stalled(text) if text.contains("3 blocks and 300 bytes")), "{error:?}");
        assert!(start.elapsed() < Duration::from_millis(1400), "{:?}", start.elapsed());
    }
    for nothing in [Piece::Silence, again(b"{}\n")] {
        let error = pin_with(Answer::new(200).then(nothing)).await.unwrap_err();
        assert!(matches!(error, NodeError::NoProviders(_)), "{error:?}");
    }
    let mut alive = Answer::new(200);
    for bytes in 0..20 {
        alive = alive.body(format!("{{\"Progress\":1,\"Bytes\":{bytes}}}\n").as_bytes());
    }
    pin_with(alive.body(PINNED)).await.unwrap();
}

/// Goal: trailers count for listings, GC and single values too, and a listing that fails in the middle says so.
#[tokio::test]
async fn trailers_of_other_calls() {
    let cid = leaf(10).cid;
    let line = format!("{{\"Cid\":\"{cid}\",\"Type\":\"recursive\"}}\n");
    let node = kubo_with("pin/ls", Answer::new(200).body(line.as_bytes()).trailer("pinner: closed")).await;
    let listed: Vec<_> = node.pin_ls(PinMode::Recursive).collect().await;
    assert_eq!(listed[0], Ok((cid, PinMode::Recursive)));
    assert!(matches!(&listed[1], Err(NodeError::Other(text)) if text.contains("pinner: closed")));
    assert!(node.pin_state(&cid).await.is_err());

    let gone = format!("{{\"Key\":{{\"/\":\"{cid}\"}}}}\n{{\"Error\":\"could not delete\"}}\n");
    let answer = Answer::new(200).body(gone.as_bytes());
    let node = kubo_with("repo/gc", answer.clone().trailer("encountered errors during gc run")).await;
    let events: Vec<_> = node.gc().collect().await;
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events.iter().all(Result::is_ok));
    let node = kubo_with("repo/gc", answer.trailer("context canceled")).await;
    let events: Vec<_> = node.gc().collect().await;
    assert!(matches!(events.last(), Some(Err(NodeError::Other(_)))), "{events:?}");

    let node = kubo_with("repo/stat", Answer::new(200).body(b"{\"RepoSize\":1,").trailer("failed")).await;
    assert!(node.repo_stat().await.is_err());
}

/// Goal: a block is what its CID says or an error, never more than a block may be.
#[tokio::test]
async fn blocks_are_checked() {
    let block = leaf(100);
    let node = kubo_with("block/get", Answer::new(200).body(&block.data)).await;
    assert_eq!(node.get_block_local(&block.cid).await.unwrap(), Some(block.data.clone()));
    assert!(matches!(node.get_block_local(&leaf(100).cid).await, Err(NodeError::Refused(_))));
    let node = kubo_with("block/get", Answer::new(200).body(&vec![0; 3_000_000])).await;
    assert!(matches!(node.get_block_local(&block.cid).await, Err(NodeError::Refused(_))));
}

/// Goal: fault:K1. A Kubo that takes connections and never answers is a timeout of the node, for every call, and a
/// pin on it does not blame the content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = quick(&format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port()));
    let cid = leaf(10).cid;
    assert!(matches!(node.id().await, Err(NodeError::Timeout(_))));
    assert!(matches!(node.repo_stat().await, Err(NodeError::Timeout(_))));
    assert!(matches!(node.pin_state(&cid).await, Err(NodeError::Timeout(_))));
    assert!(matches!(node.pin_rm(&cid).await, Err(NodeError::Timeout(_))));
    assert!(matches!(node.get_block_local(&cid).await, Err(NodeError::Timeout(_))));
    assert!(matches!(node.put_blocks(stream(&[leaf(10)])).await, Err(NodeError::Timeout(_))));
    assert!(matches!(pin(&node, cid, PinMode::Recursive).await, Err(NodeError::Timeout(_))));
    let listed: Vec<_> = node.pin_ls(PinMode::Direct).collect().await;
    assert!(matches!(listed.as_slice(), [Err(NodeError::Timeout(_))]), "{listed:?}");
    let events: Vec<_> = node.gc().collect().await;
    assert!(matches!(events.as_slice(), [Err(NodeError::Timeout(_))]), "{events:?}");
}

/// Goal: no Kubo is `Down`, at once, with a text that says where it was looked for; and after a while nobody knocks
/// more than once a second.
#[tokio::test]
async fn down() {
    let node = quick("/ip4/127.0.0.1/tcp/1");
    let cid = leaf(10).cid;
    let error = node.id().await.unwrap_err();
    assert!(matches!(&error, NodeError::Down(text) if text.contains("refused")), "{error:?}");
    assert!(matches!(pin(&node, cid, PinMode::Recursive).await, Err(NodeError::Down(_))));
    assert!(matches!(node.put_blocks(stream(&[leaf(10)])).await, Err(NodeError::Down(_))));
    for _ in 0..15 {
        assert!(matches!(node.repo_stat().await, Err(NodeError::Down(_))));
    }
    let error = node.repo_stat().await.unwrap_err();
    assert!(error.to_string().contains("requests in a row failed"), "{error}");
    let error = node.id().await.unwrap_err();
    assert!(error.to_string().contains("refused"), "the health probe knocks: {error}");
}

/// Goal: beh:B13.11, B13.1, B13.4: the texts that users know, the call that is saved, the unpin that was none.
#[tokio::test]
async fn texts_and_idempotence() {
    let cid = leaf(10).cid;
    let refused = br#"{"Message":"pin: boom","Code":0,"Type":"error"}"#;
    let error = pin_with(Answer::new(500).body(refused)).await.unwrap_err().to_string();
    assert!(error.starts_with("IPFS error (pin/add?arg=bafk"), "{error}");
    assert!(error.ends_with("&recursive=true&progress=true). Code: 500. Message: pin: boom"), "{error}");
    let none = br#"{"Message":"not pinned or pinned indirectly","Code":0,"Type":"error"}"#;
    kubo_with("pin/rm", Answer::new(500).body(none)).await.pin_rm(&cid).await.unwrap();
    assert!(kubo_with("pin/rm", Answer::new(500).body(refused)).await.pin_rm(&cid).await.is_err());

    let line = format!("{{\"Cid\":\"{cid}\",\"Type\":\"recursive\"}}\n");
    let node = kubo_with("pin/ls", Answer::new(200).body(line.as_bytes())).await;
    assert_eq!(node.pin_state(&cid).await.unwrap(), PinState::Recursive);
    let events: Vec<_> = node.pin_add(PinAdd::new(cid, PinMode::Recursive)).collect().await;
    assert_eq!(events.len(), 1, "pin/add would have failed: {events:?}");
    let recursively = br#"{"Message":"pin: bafk already pinned recursively","Code":0,"Type":"error"}"#;
    let error = pin_with(Answer::new(500).body(recursively)).await.unwrap_err();
    assert!(matches!(error, NodeError::Refused(_)));
}

/// Goal: redirects are not followed.
#[tokio::test]
async fn redirects() {
    let elsewhere = http_server(|_| Answer::new(200).body(b"{\"RepoSize\":1,\"StorageMax\":2}")).await;
    let node = kubo_with("repo/stat", Answer::new(307).header("Location", &elsewhere)).await;
    assert!(node.repo_stat().await.is_err());
}

/// Goal: an API on a Unix socket works.
#[tokio::test]
async fn unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = |_: &str| Answer::new(200).body(b"{\"RepoSize\":1,\"StorageMax\":2}");
            tokio::spawn(serve(stream, Arc::new(answer)));
        }
    });
    let node = quick(&format!("/unix{}", path.display()));
    assert_eq!(node.repo_stat().await.unwrap().size_bytes, 1);
}
