//! `ctl health …`

pub mod alerts;
pub mod graph;
pub mod metrics;
pub mod ready;
pub mod summary;
