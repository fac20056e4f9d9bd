//! What at least two services of Pinfold need: domain types with their JSON and protobuf forms, the closed set of
//! errors, configuration, identity and TLS, channels, the audience check, telemetry, shutdown.
//! Never anything that one service alone needs, and no decision about pins or peers.

pub mod address;
pub mod audience;
pub mod channel;
pub mod config;
pub mod departure;
pub mod error;
pub mod files;
mod gather;
pub mod identity;
pub mod ids;
pub mod json;
pub mod member;
pub mod metric;
pub mod peerset;
pub mod pin;
pub mod runtime;
pub mod server;
pub mod shutdown;
pub mod status;
pub mod telemetry;
pub mod time;
pub mod tls;
pub mod trace;

pub use error::{Code, Error, Result};
pub use ids::{Cid, PeerId};

/// The product's version, for people.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
