//! The wire of Pinfold: the messages and services of `pinfold.*`, generated from the `.proto` files beside this
//! crate, and who may call each service. No hand-written logic.

/// `major.minor` of the packages; what two peers compare (protocols.md 10).
pub const WIRE_VERSION: &str = "1.0";

/// Who may call a service (protocols.md 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    Own,
    Member,
    Raft,
    Joining,
    Public,
}

/// Every service of `pinfold.*` by full name, with its audience, as the `.proto` files declare it.
pub const AUDIENCES: &[(&str, Audience)] = include!(concat!(env!("OUT_DIR"), "/audiences.rs"));

/// All descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

mod generated {
    #![allow(clippy::all, clippy::pedantic)]
    include!(concat!(env!("OUT_DIR"), "/pinfold.rs"));
}

pub use generated::pinfold::api::v1 as api;
pub use generated::pinfold::connector::v1 as connector;
pub use generated::pinfold::consensus::v1 as consensus;
pub use generated::pinfold::monitor::v1 as monitor;
pub use generated::pinfold::storage::v1 as storage;
pub use generated::pinfold::types::v1 as types;
