//! A small IPFS node of our own.
