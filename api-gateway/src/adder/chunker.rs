//! Where a file is cut into chunks.

use pinfold_common::{Error, Result};

/// A way to cut, parsed from the `chunker` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunker {
    Size { bytes: usize },
}

impl Default for Chunker {
    fn default() -> Chunker {
        Chunker::Size { bytes: 256 * 1024 }
    }
}

impl Chunker {
    pub fn parse(text: &str) -> Result<Chunker> {
        match text {
            "" | "default" => Ok(Chunker::default()),
            _ => Err(Error::invalid(format!("unrecognized chunker option: {text}"))),
        }
    }
}
