//! A stream whose items come from a task of its own; dropping the stream ends the task. This is what makes a pin
//! cancellable without its work being inside anybody's `poll`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{BoxStream, Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{NodeError, Result};

/// Items waiting for a reader; then the task waits.
const BUFFERED_ITEMS: usize = 64;

struct TaskStream<T> {
    items: mpsc::Receiver<Result<T>>,
    task: Option<JoinHandle<()>>,
}

/// Runs `work` in a task; what it sends comes out of the stream, an error that it returns comes last.
pub fn task_stream<T, F, Work>(work: F) -> BoxStream<'static, Result<T>>
where
    T: Send + 'static,
    F: FnOnce(mpsc::Sender<Result<T>>) -> Work,
    Work: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, items) = mpsc::channel(BUFFERED_ITEMS);
    let last = sender.clone();
    let work = work(sender);
    let task = tokio::spawn(async move {
        if let Err(error) = work.await {
            // Nobody listens any more: then nobody misses it.
            let _ = last.send(Err(error)).await;
        }
    });
    TaskStream { items, task: Some(task) }.boxed()
}

impl<T> Stream for TaskStream<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        if let Some(item) = std::task::ready!(self.items.poll_recv(context)) {
            return Poll::Ready(Some(item));
        }
        let Some(task) = self.task.as_mut() else { return Poll::Ready(None) };
        let ended = std::task::ready!(Pin::new(task).poll(context));
        self.task = None;
        Poll::Ready(ended.err().map(|error| Err(NodeError::Other(format!("ipfs node: a task broke off: {error}")))))
    }
}

impl<T> Drop for TaskStream<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Goal: items, then the error, then the end.
    #[tokio::test]
    async fn an_error_comes_last() {
        let mut stream = task_stream(|sender| async move {
            sender.send(Ok(1)).await.ok();
            Err(NodeError::Other("no more".into()))
        });
        assert_eq!(stream.next().await, Some(Ok(1)));
        assert_eq!(stream.next().await, Some(Err(NodeError::Other("no more".into()))));
        assert_eq!(stream.next().await, None);
    }

    /// Goal: dropping the stream drops what the task holds.
    #[tokio::test]
    async fn dropping_cancels() {
        let held = Arc::new(());
        let weak = Arc::downgrade(&held);
        let stream = task_stream::<(), _, _>(|_sender| async move {
            let _held = held;
            std::future::pending().await
        });
        tokio::task::yield_now().await;
        drop(stream);
        while weak.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    }
}
