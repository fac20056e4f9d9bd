//! An upload that is a CAR already (beh:B19.5): one CAR file with one root, whose blocks are checked and sent as they
//! are. Other than the original, what is accepted is whole: a link that leads out of the file is an error.

mod links;
mod reader;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use futures::Stream;
use pinfold_common::ids::Cid;
use pinfold_common::{Error, Result};

use self::links::{links, unixfs_size};
use self::reader::CarReader;
use super::dag::{Block, is_identity};
use super::importer::next_input;
use super::upload::Upload;
use super::{Event, Input};

/// Blocks in one file, and links that wait for theirs: about 30 and 150 bytes of memory each.
const MAX_CAR_BLOCKS: usize = 1 << 20;

/// Sends the blocks of the first file and answers its root; further entries are read and ignored.
pub(super) async fn import<S>(input: &mut S, upload: &mut Upload<'_>) -> Result<Cid>
where
    S: Stream<Item = Result<Input>> + Unpin,
{
    let name = match next_input(input).await? {
        Some(Input::File { path, .. }) => path,
        Some(Input::Directory { .. } | Input::Symlink { .. } | Input::Data(_) | Input::EndOfFile) => {
            return Err(Error::invalid("expected CAR file is not of type file"));
        }
        None => return Err(Error::invalid("add: nothing to add")),
    };
    let mut reader = CarReader::new();
    let mut contents = Contents::new();
    let (mut bytes, mut size) = (0, 0);
    loop {
        match next_input(input).await? {
            Some(Input::Data(data)) => reader.feed(&data),
            Some(Input::EndOfFile) => break,
            Some(Input::Directory { .. } | Input::File { .. } | Input::Symlink { .. }) | None => {
                return Err(Error::invalid("add: the CAR file has no end"));
            }
        }
        while let Some(block) = reader.next_block()? {
            bytes += block.data.len() as u64;
            if contents.add(&block)? {
                if reader.root() == Some(&block.cid) {
                    size = unixfs_size(&block);
                }
                upload.put(block).await?;
            }
        }
    }
    let root = reader.finish()?;
    contents.check(&root)?;
    while next_input(input).await?.is_some() {}
    upload.emit(Event::Added { name, cid: root, bytes: Some(bytes), size, allocations: upload.allocations() }).await?;
    Ok(root)
}

/// Which blocks were there and which are still missing. Blocks are known by 128 bits of keyed hash, so that a million of
/// them are small and nobody can make two of them the same.
struct Contents {
    keys: [RandomState; 2],
    present: HashSet<u128>,
    missing: HashMap<u128, Cid>,
}

impl Contents {
    fn new() -> Contents {
        Contents { keys: [RandomState::new(), RandomState::new()], present: HashSet::new(), missing: HashMap::new() }
    }

    /// False: it was there already.
    fn add(&mut self, block: &Block) -> Result<bool> {
        let key = self.key(&block.cid);
        if !self.present.insert(key) {
            return Ok(false);
        }
        self.missing.remove(&key);
        for link in links(block)? {
            let key = self.key(&link);
            if !self.present.contains(&key) {
                self.missing.entry(key).or_insert(link);
            }
        }
        if self.present.len() > MAX_CAR_BLOCKS || self.missing.len() > MAX_CAR_BLOCKS {
            return Err(Error::invalid(format!("car: more than {MAX_CAR_BLOCKS} blocks or open links")));
        }
        Ok(true)
    }

    fn check(&self, root: &Cid) -> Result<()> {
        if !self.present.contains(&self.key(root)) || is_identity(root) {
            return Err(Error::invalid(format!("car: the root {root} is not in the file")));
        }
        match self.missing.values().next() {
            None => Ok(()),
            Some(one) => {
                let count = self.missing.len();
                Err(Error::invalid(format!("car: {count} linked blocks are not in the file, {one} among them")))
            }
        }
    }

    /// By codec and hash: version 0 and version 1 of one node are one block here.
    fn key(&self, cid: &Cid) -> u128 {
        let block = (cid.codec(), cid.hash().code(), cid.hash().digest());
        let [high, low] = self.keys.each_ref().map(|key| u128::from(key.hash_one(block)));
        high << 64 | low
    }
}
