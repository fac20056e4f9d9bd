//! Closed-loop load: a number of clients, each with its own connection, each sending its next request when the last one
//! is answered; bounded in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What a load run gave: requests answered well, their latencies sorted, and those answered otherwise.
pub struct Outcome {
    pub answered: usize,
    pub failed: usize,
    pub elapsed: Duration,
    latencies: Vec<Duration>,
}

impl Outcome {
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.elapsed.as_secs_f64()
    }

    /// Milliseconds below which this share of the answers came.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let at = ((self.latencies.len() as f64 * share) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
    }
}

/// Runs `clients` loops of `step` for `time`. A step gets the number of its client and a number that is never given twice.
pub async fn closed_loop<S, F>(clients: usize, time: Duration, counter: &Arc<AtomicU64>, step: S) -> Outcome
where
    S: Fn(usize, u64) -> F + Send + Sync + 'static,
    F: Future<Output = bool> + Send,
{
    let step = Arc::new(step);
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (step, counter) = (step.clone(), counter.clone());
            tokio::spawn(async move {
                let (mut latencies, mut failed) = (Vec::new(), 0);
                while started.elapsed() < time {
                    let sent = Instant::now();
                    match step(client, counter.fetch_add(1, Ordering::Relaxed)).await {
                        true => latencies.push(sent.elapsed()),
                        false => failed += 1,
                    }
                }
                (latencies, failed)
            })
        })
        .collect();
    let (mut latencies, mut failed) = (Vec::new(), 0);
    for task in tasks {
        if let Ok((own, own_failed)) = task.await {
            latencies.extend(own);
            failed += own_failed;
        }
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    Outcome { answered: latencies.len(), failed, elapsed, latencies }
}

/// One HTTP/1.1 connection, made again when it breaks.
pub struct Http {
    authority: String,
    sender: tokio::sync::Mutex<Option<SendRequest<Empty<Bytes>>>>,
}

impl Http {
    pub fn new(authority: &str) -> Http {
        Http { authority: authority.to_owned(), sender: tokio::sync::Mutex::new(None) }
    }

    async fn connect(&self) -> Option<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(&self.authority).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        Some(sender)
    }

    /// The status and the size of the answer, and how many lines it has.
    pub async fn send(&self, method: &str, path: &str) -> Option<(u16, u64, u64)> {
        let mut held = self.sender.lock().await;
        if held.as_ref().is_none_or(SendRequest::is_closed) {
            *held = self.connect().await;
        }
        let sender = held.as_mut()?;
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .body(Empty::new())
            .ok()?;
        sender.ready().await.ok()?;
        let mut response = match sender.send_request(request).await {
            Ok(response) => response,
            Err(_) => {
                *held = None;
                return None;
            }
        };
        let status = response.status().as_u16();
        let (mut bytes, mut lines) = (0, 0);
        while let Some(frame) = response.body_mut().frame().await {
            let Ok(frame) = frame else {
                *held = None;
                return None;
            };
            if let Some(data) = frame.data_ref() {
                bytes += data.len() as u64;
                lines += data.iter().filter(|byte| **byte == b'\n').count() as u64;
            }
        }
        Some((status, bytes, lines))
    }
}
