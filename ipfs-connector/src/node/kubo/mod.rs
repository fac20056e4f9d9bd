//! A Kubo daemon over its RPC.
