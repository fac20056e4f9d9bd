//! One signal to stop, cloned to every task. The caller decides when; a service drains and returns.

use std::future::Future;

use tokio_util::sync::CancellationToken;

/// Asked to stop? Clones share one answer; it never goes back to no.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    pub fn new() -> Shutdown {
        Shutdown::default()
    }

    /// Stops everything that holds a clone.
    pub fn trigger(&self) {
        self.0.cancel();
    }

    pub fn is_triggered(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves when the stop was asked for.
    pub fn triggered(&self) -> impl Future<Output = ()> + Send + 'static {
        let token = self.0.clone();
        async move { token.cancelled_owned().await }
    }

    /// A part that can be stopped alone, and stops with the whole.
    pub fn child(&self) -> Shutdown {
        Shutdown(self.0.child_token())
    }

    /// Runs `work` until it ends or the stop comes: `None` then.
    pub fn race<'a, F: Future + 'a>(&'a self, work: F) -> impl Future<Output = Option<F::Output>> + use<'a, F> {
        // In the caller's future it would have its place three times over.
        let work = Box::pin(work);
        async move { self.0.run_until_cancelled(work).await }
    }

    /// SIGINT, SIGTERM or SIGHUP asks to stop; the second one warns, the third ends the process with code 1 (beh:B5.1).
    pub fn on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            for nth in 1.. {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                match nth {
                    1 => shutdown.trigger(),
                    2 => tracing::warn!("still stopping; a third signal ends this process at once"),
                    _ => std::process::exit(1),
                }
            }
        });
        Ok(())
    }
}
