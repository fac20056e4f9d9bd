//! The pinset and the peerset of a cluster, agreed on by Raft and kept in SQLite.

pub mod pinset;
