//! Local clusters: peers of four supervised service processes each. `ctl daemon` runs one peer, `ctl up` some of them
//! on loopback, and the tests use the same code.

pub mod cluster;
pub mod kubo;
pub mod peer;
pub mod ports;
pub mod service;

use std::path::PathBuf;

/// Why a local cluster could not be run: one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LocalError(pub String);

pub type Result<T, E = LocalError> = std::result::Result<T, E>;

impl LocalError {
    pub fn new(message: impl Into<String>) -> LocalError {
        LocalError(message.into())
    }
}

impl From<pinfold_common::Error> for LocalError {
    fn from(error: pinfold_common::Error) -> LocalError {
        LocalError(error.message)
    }
}

/// Where the service programs stand: beside this one, or in the folder of the tests' parent, or on the PATH.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: Option<PathBuf>,
}

impl Programs {
    pub fn find() -> Programs {
        let own = std::env::current_exe().ok().and_then(|path| path.parent().map(PathBuf::from));
        let candidates = own.iter().flat_map(|folder| [Some(folder.clone()), folder.parent().map(PathBuf::from)]);
        let folder = candidates.flatten().find(|folder| folder.join("consensus-svc").is_file());
        Programs { folder }
    }

    /// The programs of this folder: wrappers that start the real ones somewhere else, such as in a namespace.
    pub fn in_folder(folder: PathBuf) -> Programs {
        Programs { folder: Some(folder) }
    }

    /// The folder to put on the PATH, when the programs are not there already.
    pub fn folder(&self) -> Option<&PathBuf> {
        self.folder.as_ref()
    }

    /// The path of a program; an error says how to get it.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        if let Some(folder) = &self.folder {
            let path = folder.join(name);
            if path.is_file() {
                return Ok(path);
            }
        }
        on_path(name).ok_or_else(|| {
            LocalError::new(format!(
                "the program {name} is neither beside ctl nor on the PATH: build all with `cargo build`"
            ))
        })
    }
}

/// A program on the PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}
