//! `ctl ipfs …`: the IPFS nodes beside the peers.

pub mod gc;
pub mod peering;
