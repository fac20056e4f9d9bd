pub mod allocator;
pub mod error;
pub mod liveness;
pub mod window;
