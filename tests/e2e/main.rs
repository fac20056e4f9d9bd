//! End to end: real processes, real disks, real TLS on loopback.

mod failover;
mod house_rules;
mod kubo;
mod pinning;
mod restarts;
mod wire;
