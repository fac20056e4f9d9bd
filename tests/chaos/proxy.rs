//! A slow link: what comes in at one port goes on to another, each way after the same delay, in order, at any rate.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks on their way in one direction: more than a link of that delay needs.
const MAX_UNDERWAY: usize = 1024;

pub struct SlowLink {
    pub port: u16,
    serving: JoinHandle<()>,
}

impl SlowLink {
    /// Towards a port of this machine. `delay` is that of one way.
    pub async fn to(target: u16, delay: Duration) -> SlowLink {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let serving = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, SocketAddr::from((Ipv4Addr::LOCALHOST, target)), delay));
            }
        });
        SlowLink { port, serving }
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// One connection; it ends on both sides when it ends on one.
async fn carry(near: TcpStream, target: SocketAddr, delay: Duration) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    let is_prompt = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
    if is_prompt.is_err() {
        return;
    }
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    tokio::select! {
        () = one_way(near_in, far_out, delay) => {}
        () = one_way(far_in, near_out, delay) => {}
    }
}

async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (sender, mut underway) = mpsc::channel::<(Instant, Bytes)>(MAX_UNDERWAY);
    let reading = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let chunk = (Instant::now() + delay, Bytes::copy_from_slice(&buffer[..count]));
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, chunk)) = underway.recv().await {
            // The delay is the fault itself.
            sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
