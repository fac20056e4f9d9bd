//! One write for what several tasks have to say.
//!
//! HTTP/2 writes the head of a request as soon as it has it, and its body, which another task brings, a moment later:
//! two records of TLS, two packets, and a reader that is woken twice. A connection that lets the tasks that are ready go
//! first finds all of it there.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose first write after a flush waits for one turn of the scheduler.
pub(crate) struct Gathering<S> {
    stream: S,
    has_waited: bool,
}

impl<S> Gathering<S> {
    pub(crate) fn new(stream: S) -> Gathering<S> {
        Gathering { stream, has_waited: false }
    }

    fn wait_a_turn(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.has_waited {
            return Poll::Ready(());
        }
        self.has_waited = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.wait_a_turn(context));
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.wait_a_turn(context));
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = std::task::ready!(Pin::new(&mut self.stream).poll_flush(context));
        self.has_waited = false;
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Goal: what a task that is ready writes meanwhile goes out with what was there first.
    #[tokio::test]
    async fn the_first_write_lets_others_go_first() {
        let (near, mut far) = tokio::io::duplex(64);
        let order = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
        let writing = tokio::spawn({
            let order = order.clone();
            async move {
                let mut stream = Gathering::new(near);
                for word in ["head", "body"] {
                    stream.write_all(word.as_bytes()).await.unwrap();
                    order.lock().push(word);
                }
                stream.flush().await.unwrap();
                stream.write_all(b"next").await.unwrap();
                order.lock().push("next");
            }
        });
        let other = tokio::spawn({
            let order = order.clone();
            async move { order.lock().push("other") }
        });
        writing.await.unwrap();
        other.await.unwrap();
        assert_eq!(*order.lock(), ["other", "head", "body", "next"], "only the first write of a flush waits");
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "headbodynext");
    }
}
