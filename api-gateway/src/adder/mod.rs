//! Adding content (beh:B19): splits an upload into blocks exactly as Kubo does, sends them to the peers that will hold
//! it, and pins the root. Owns nothing beyond one upload; never writes to disk, never decides who gets a copy (consensus
//! does), never talks to an IPFS node (the connectors do). Experimental sharding (beh:B19.6) is left out
//! (docs/adding.md).

mod car;
mod chunker;
mod cluster;
mod confirm;
mod dag;
mod directory;
mod file;
mod importer;
mod murmur3;
mod params;
mod services;
mod sink;
mod tree;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use pinfold_common::pin::Pin;
use pinfold_common::{Cid, Error, PeerId, Result};
use tokio::sync::mpsc;

pub use chunker::{Chunker, MAX_CHUNK_BYTES};
pub use cluster::{Allocation, Cluster};
pub use params::{AddParams, Format, Layout};

use self::upload::Upload;

/// One step of an upload: entries depth first, each file followed by its data and its end. Paths are relative, with
/// `/` between their parts; directories may be left out (`a/b` makes `a`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Directory {
        path: String,
        attributes: Attributes,
    },
    File {
        path: String,
        attributes: Attributes,
    },
    /// Kubo keeps no mode of it.
    Symlink {
        path: String,
        target: String,
        attributes: Attributes,
    },
    /// Of the file that was begun last.
    Data(Bytes),
    EndOfFile,
}

/// What is kept of an entry beside its content, when the upload asks for that (`AddParams::preserve_mode`,
/// `preserve_mtime`). Neither: UnixFS as it was before version 1.5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions as Unix has them, 1 to 0o7777.
    pub mode: Option<u32>,
    pub mtime: Option<Mtime>,
}

/// The largest mode.
pub const MAX_MODE: u32 = 0o7777;
/// Of a second; one more is the next one.
pub const MAX_NANOSECONDS: u32 = 999_999_999;

/// Seconds since 1970, and nanoseconds below 1,000,000,000 after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtime {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What the client is told on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A file, symlink or directory is whole. `size` is the cumulative DAG size; for a CAR the UnixFS size, 0 when
    /// unknown. `bytes` is there for a CAR only: the sum of its blocks.
    Added { name: String, cid: Cid, bytes: Option<u64>, size: u64, allocations: Vec<PeerId> },
    /// `bytes` of one file have been read so far.
    Progress { name: String, bytes: u64 },
}

/// How an upload ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub root: Cid,
    /// As committed; none with `no_pin`.
    pub pin: Option<Pin>,
    /// Log index of the pin, for reading it back; 0 with `no_pin`.
    pub index: u64,
    /// Peers that did not take all blocks, or do not keep them, and why (beh:B19.9).
    pub failed: Vec<(PeerId, String)>,
}

/// What an upload needs of this peer. `AddContext::new(channels, peers, own, own_consensus)` makes the real one.
#[derive(Clone)]
pub struct AddContext {
    pub cluster: Arc<dyn Cluster>,
    /// This peer.
    pub own: PeerId,
    /// A destination that takes no block for this long is given up.
    pub stall_deadline: Duration,
}

/// Runs one upload to its end. The pinset is changed only after the whole input was read and its blocks were taken;
/// an error of the input, or a client that takes no events, leaves nothing in it. Events come one late: the last one, which
/// names the root, only when that is pinned.
pub async fn add<S: Stream<Item = Result<Input>> + Send + Unpin>(
    context: &AddContext,
    params: AddParams,
    mut input: S,
    output: mpsc::Sender<Event>,
) -> Result<Done> {
    let mut upload = Upload::new(context, &params, output);
    let root = match params.format {
        Format::Unixfs => importer::import(&params, params.cid_format()?, &mut input, &mut upload).await?,
        Format::Car if params.wrap_with_directory => return Err(Error::invalid("cannot wrap a CAR file upload")),
        Format::Car => car::import(&mut input, &mut upload).await?,
    };
    upload.finish(root).await
}

#[cfg(test)]
mod tests;
