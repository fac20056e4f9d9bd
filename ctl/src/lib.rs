//! The command line of Pinfold, over the public gRPC API, and the runner of local clusters (`ctl up`, `ctl daemon`),
//! which the tests use too. Never talks to a service behind the gateway, never opens a peer's store.

pub mod cli;
pub mod client;
pub mod commands;
pub mod local;
pub mod output;
