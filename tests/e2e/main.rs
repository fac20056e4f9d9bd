//! End to end: real processes, real disks, real TLS on loopback.

mod adding;
mod bad_inputs;
mod failover;
mod health;
mod house_rules;
mod kubo;
mod peers;
mod pinning;
mod promises;
mod rebalance;
mod repin;
mod restarts;
mod state;
mod stuck_pins;
mod up;
mod wire;
