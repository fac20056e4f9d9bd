//! Faults, one by one and composed, against real processes; docs/faults.md says which, how each is proven, and how to
//! replay one. A short seeded selection runs with all tests, everything with `make chaos`.
//!
//! A scenario lets clients work (`load`), injects a fault (`fault`) on a house of peers (`house`), proves that the fault
//! took effect, heals it, and then asks for everything: every operation succeeds, every acknowledged pin is there, on
//! every peer the same, and what the clients saw (`history`) is linearizable (`check`).

mod check;
mod disk;
mod extent;
mod fault;
mod history;
mod house;
mod load;
mod network;
mod proxy;
mod report;
mod scenarios;
mod schedule;
mod solo;
mod trace;
