//! `ctl peers …`

pub mod add;
pub mod digest;
pub mod drain;
pub mod ls;
pub mod maintenance;
pub mod rm;
pub mod undrain;
