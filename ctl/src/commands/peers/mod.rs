//! `ctl peers …`

pub mod ls;
pub mod rm;
