//! What the one who measures and the one who believes have to agree on: the names of metrics (`beh:B14.4`) and their
//! bounds. A measurement outside of the bounds would be refused by every receiver, so a configuration that asks for one
//! is refused at the start.

use std::time::Duration;

pub const PING: &str = "ping";
/// Bytes that the peer may still take.
pub const FREESPACE: &str = "freespace";
/// Bytes that its repository has; the weight is negative.
pub const REPOSIZE: &str = "reposize";
/// Pins that wait for its IPFS node; the weight is negative.
pub const PINQUEUE: &str = "pinqueue";
/// Pins that it holds; the weight is negative.
pub const NUMPIN: &str = "numpin";
/// In front of a tag's key.
pub const TAG_PREFIX: &str = "tag:";

/// Metric names held for one peer.
pub const MAX_NAMES_PER_PEER: usize = 64;
pub const MAX_NAME_BYTES: usize = 128;
pub const MAX_VALUE_BYTES: usize = 4096;
/// What a metric says about why it is not valid.
pub const MAX_NOTE_BYTES: usize = 256;
/// Shorter lifetimes are refused: the metric would be gone before anybody reads it.
pub const MIN_TTL: Duration = Duration::from_millis(100);
/// Longer lifetimes are cut to this.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
