//! The harness of everything that needs more than one service: clusters of real processes in temporary folders, run by
//! the same code as `ctl up`, and what tests ask of them.

pub mod alone;
pub mod cluster;
pub mod content;
pub mod house;
pub mod kubo;
pub mod needs;
pub mod pins;
pub mod process;
pub mod raw;
pub mod rest;
pub mod small_disk;
