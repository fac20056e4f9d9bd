//! What can go wrong in this room, and which of the closed set of `common::error` each case is.

use pinfold_common::{Code, Error};

/// A failure of the monitor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MonitorError {
    /// The metrics of other peers are not here yet; retryable, nothing was reserved.
    #[error("allocate: warming up, {0}")]
    WarmingUp(String),
    /// A metric breaks one of the bounds of `window`.
    #[error("metric {name:?} refused: {why}")]
    Metric { name: String, why: &'static str },
    /// An item of an allocation request contradicts itself.
    #[error("allocate: item {index}: {why}")]
    Item { index: usize, why: String },
    /// A message holds more than the bound allows.
    #[error("{what}: {count}, at most {most}")]
    TooMany { what: &'static str, count: usize, most: usize },
    /// The queue of the store stayed full for the whole deadline.
    #[error("monitor store: busy, the queue is full")]
    Busy,
    /// The store has stopped.
    #[error("monitor store: stopping")]
    Stopping,
}

impl From<MonitorError> for Error {
    fn from(error: MonitorError) -> Error {
        let code = match &error {
            MonitorError::WarmingUp(_) | MonitorError::Stopping => Code::Unavailable,
            MonitorError::Metric { .. } | MonitorError::Item { .. } | MonitorError::TooMany { .. } => {
                Code::InvalidArgument
            }
            MonitorError::Busy => Code::Exhausted,
        };
        Error::new(code, error.to_string())
    }
}

impl From<MonitorError> for tonic::Status {
    fn from(error: MonitorError) -> tonic::Status {
        Error::from(error).into()
    }
}
