//! From entries to a DAG: files as they stream in, directories bottom-up when their top entry is over, in Kubo's order of
//! events (rest-api.md 9.3). Keeps one small record for each entry of the open top entry, and never a file.

use std::collections::btree_map;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use pinfold_common::ids::shorten;
use pinfold_common::{Cid, Error, Result};

use super::chunker::Splitter;
use super::dag::{Block, Link, Node};
use super::directory::{directory, symlink};
use super::file::FileBuilder;
use super::params::CidFormat;
use super::tree::{Children, Entry, Tree, parse_path};
use super::upload::Upload;
use super::{AddParams, Attributes, Event, Input};

/// A client that sends nothing for this long has left.
const INPUT_DEADLINE: Duration = Duration::from_secs(300);
const MAX_TARGET_BYTES: usize = 4096;
const PROGRESS_BYTES: u64 = 256 * 1024;

/// The next input, or none at its end.
pub(super) async fn next_input<S>(input: &mut S) -> Result<Option<Input>>
where
    S: Stream<Item = Result<Input>> + Unpin,
{
    match tokio::time::timeout(INPUT_DEADLINE, input.next()).await {
        Ok(next) => next.transpose(),
        Err(_) => {
            let waited = INPUT_DEADLINE.as_secs();
            Err(Error::unavailable(format!("add: the client sent nothing for {waited}s")))
        }
    }
}

/// Reads everything and answers the CID of the last top entry, or of the wrapping directory.
pub(super) async fn import<S>(
    params: &AddParams,
    format: CidFormat,
    input: &mut S,
    upload: &mut Upload<'_>,
) -> Result<Cid>
where
    S: Stream<Item = Result<Input>> + Unpin,
{
    let mut importer =
        Importer { params, format, tree: Tree::default(), file: None, root: None, blocks: Vec::new(), upload };
    while let Some(next) = next_input(input).await? {
        match next {
            Input::Directory { path, attributes } => importer.directory(&path, attributes).await?,
            Input::File { path, attributes } => importer.begin_file(path, attributes).await?,
            Input::Symlink { path, target, attributes } => importer.symlink(path, &target, attributes).await?,
            Input::Data(data) => importer.data(&data).await?,
            Input::EndOfFile => importer.end_file().await?,
        }
    }
    importer.finish().await
}

struct Importer<'a, 'u> {
    params: &'a AddParams,
    format: CidFormat,
    /// The top entry that is open.
    tree: Tree,
    file: Option<OpenFile>,
    /// Of the last top entry that is over.
    root: Option<Cid>,
    /// Made and not yet sent; empty between two calls.
    blocks: Vec<Block>,
    upload: &'a mut Upload<'u>,
}

struct OpenFile {
    path: String,
    names: Vec<String>,
    splitter: Splitter,
    builder: FileBuilder,
    bytes: u64,
}

impl Importer<'_, '_> {
    async fn directory(&mut self, path: &str, attributes: Attributes) -> Result<()> {
        let names = self.entry_names(path)?;
        if path.is_empty() {
            return Err(Error::invalid("add: a directory without a name"));
        }
        if !self.params.wrap_with_directory && !self.tree.takes_directory(&names) {
            self.finish_top().await?;
        }
        self.tree.make_directory(&names, self.params.kept(attributes)).map_err(|error| error.context(shorten(path)))
    }

    async fn begin_file(&mut self, path: String, attributes: Attributes) -> Result<()> {
        let names = self.entry_names(&path)?;
        self.make_room(&names).await?;
        let splitter = Splitter::new(self.params.chunker);
        let builder = FileBuilder::new(self.format, self.params.layout, self.params.kept(attributes));
        self.file = Some(OpenFile { path, names, splitter, builder, bytes: 0 });
        Ok(())
    }

    async fn data(&mut self, data: &Bytes) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Err(Error::invalid("add: data outside a file"));
        };
        file.splitter.feed(data);
        while let Some(chunk) = file.splitter.next_chunk() {
            file.builder.push(chunk, &mut self.blocks);
            self.upload.put_all(&mut self.blocks).await?;
        }
        let steps_before = file.bytes / PROGRESS_BYTES;
        file.bytes += data.len() as u64;
        if self.params.progress {
            for step in steps_before + 1..=file.bytes / PROGRESS_BYTES {
                let name = progress_name(self.params, &file.names);
                self.upload.emit(Event::Progress { name, bytes: step * PROGRESS_BYTES }).await?;
            }
        }
        Ok(())
    }

    async fn end_file(&mut self) -> Result<()> {
        let Some(mut file) = self.file.take() else {
            return Err(Error::invalid("add: the end of a file that was not begun"));
        };
        if let Some(rest) = file.splitter.rest() {
            file.builder.push(rest, &mut self.blocks);
        }
        let node = file.builder.finish(&mut self.blocks);
        self.upload.put_all(&mut self.blocks).await?;
        if self.params.progress {
            let name = progress_name(self.params, &file.names);
            self.upload.emit(Event::Progress { name, bytes: file.bytes }).await?;
        }
        self.place(file.path, &file.names, node).await
    }

    async fn symlink(&mut self, path: String, target: &str, attributes: Attributes) -> Result<()> {
        let names = self.entry_names(&path)?;
        if target.len() > MAX_TARGET_BYTES {
            let message = format!("{}: symlink target over {MAX_TARGET_BYTES} bytes", shorten(&path));
            return Err(Error::invalid(message));
        }
        self.make_room(&names).await?;
        let node = symlink(self.format, target, self.params.kept(attributes), &mut self.blocks);
        self.upload.put_all(&mut self.blocks).await?;
        self.place(path, &names, node).await
    }

    /// Checks a path before anything of its entry is stored.
    fn entry_names(&self, path: &str) -> Result<Vec<String>> {
        if let Some(file) = &self.file {
            return Err(Error::invalid(format!("add: {} has no end", shorten(&file.path))));
        }
        if self.params.wrap_with_directory && path.is_empty() {
            return Err(Error::invalid("add: an entry without a name can't be wrapped"));
        }
        parse_path(path)
    }

    /// A file of another top entry ends the open one.
    async fn make_room(&mut self, names: &[String]) -> Result<()> {
        if self.params.wrap_with_directory || self.tree.takes_file(names) { Ok(()) } else { self.finish_top().await }
    }

    /// Puts a finished file or symlink where it belongs and tells the client.
    async fn place(&mut self, path: String, names: &[String], node: Node) -> Result<()> {
        self.tree.insert(names, node.clone()).map_err(|error| error.context(shorten(&path)))?;
        self.upload.added(path, &node).await
    }

    /// The open top entry is over: its directories are made and told.
    async fn finish_top(&mut self) -> Result<()> {
        let top = std::mem::take(&mut self.tree).into_children().pop_first();
        match top {
            None => {}
            Some((_, Entry::Done(node))) => self.root = Some(node.cid),
            Some((name, Entry::Directory { children, attributes })) => {
                self.root = Some(self.finish_directories(name, children, attributes).await?.cid);
            }
        }
        Ok(())
    }

    /// Makes a directory and all below it, children first.
    async fn finish_directories(&mut self, name: String, children: Children, attributes: Attributes) -> Result<Node> {
        let mut above: Vec<OpenDirectory> = Vec::new();
        let mut here = OpenDirectory::new(name.clone(), name, children, attributes);
        loop {
            match here.pending.next() {
                Some((name, Entry::Done(node))) => here.add(name, &node),
                Some((name, Entry::Directory { children, attributes })) => {
                    let path = join(&here.path, &name);
                    let inner = OpenDirectory::new(path, name, children, attributes);
                    above.push(std::mem::replace(&mut here, inner));
                }
                None => {
                    let node = directory(self.format, here.links, here.attributes, &mut self.blocks)
                        .map_err(|error| error.context(shorten(&here.path)))?;
                    self.upload.put_all(&mut self.blocks).await?;
                    self.upload.added(here.path, &node).await?;
                    let name = here.name;
                    match above.pop() {
                        Some(parent) => here = parent,
                        None => return Ok(node),
                    }
                    here.add(name, &node);
                }
            }
        }
    }

    async fn finish(mut self) -> Result<Cid> {
        if let Some(file) = &self.file {
            return Err(Error::invalid(format!("add: {} has no end", shorten(&file.path))));
        }
        if self.params.wrap_with_directory {
            let children = std::mem::take(&mut self.tree).into_children();
            return Ok(self.finish_directories(String::new(), children, Attributes::default()).await?.cid);
        }
        self.finish_top().await?;
        self.root.ok_or_else(|| Error::invalid("add: nothing to add"))
    }
}

/// A directory whose entries are being turned into links.
struct OpenDirectory {
    path: String,
    name: String,
    pending: btree_map::IntoIter<String, Entry>,
    links: Vec<Link>,
    attributes: Attributes,
}

impl OpenDirectory {
    fn new(path: String, name: String, children: Children, attributes: Attributes) -> OpenDirectory {
        let links = Vec::with_capacity(children.len());
        OpenDirectory { path, name, pending: children.into_iter(), links, attributes }
    }

    fn add(&mut self, name: String, node: &Node) {
        self.links.push(Link { name, cid: node.cid, dag_bytes: node.dag_bytes });
    }
}

fn join(above: &str, name: &str) -> String {
    if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") }
}

/// The path inside the top entry: empty for a single file.
fn progress_name(params: &AddParams, names: &[String]) -> String {
    if params.wrap_with_directory { names.join("/") } else { names[1..].join("/") }
}
