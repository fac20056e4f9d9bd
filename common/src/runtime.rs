//! The threads that a service's tasks run on.

use std::future::Future;

use tokio::runtime::Builder;

use crate::{Error, Result};

/// Four services share the processors of a peer, and what a request costs most is being handed from thread to thread.
fn workers(processors: usize) -> usize {
    (processors / 2).max(1)
}

/// Runs `work`, and what it spawns, until it ends.
pub fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder = match workers(processors) {
        1 => Builder::new_current_thread(),
        workers => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(workers);
            builder
        }
    };
    let failed = |error: &dyn std::fmt::Display| Error::internal(format!("run: {error}"));
    let runtime = builder.enable_all().build().map_err(|error| failed(&error))?;
    // On a worker, as it is woken often: this thread would have to be woken for it.
    runtime.block_on(runtime.spawn(work)).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_processors() {
        assert_eq!([1, 2, 3, 4, 16].map(workers), [1, 1, 1, 2, 8]);
    }
}
