//! A file's chunks become leaves and the leaves a tree, in the two layouts of Kubo. Pure, and in constant memory: what
//! is kept is the open nodes on the way from the root to the place where the next leaf goes.

use bytes::Bytes;

use super::Attributes;
use super::dag::{Block, Link, Node, UnixFs, UnixFsKind, dag_pb_block, raw_block};
use super::params::{CidFormat, Layout};

/// Children of one node; Kubo's number for files.
pub(super) const MAX_LINKS: usize = 174;
/// Sub-trees of one depth that a trickle node takes before the next are one deeper.
const TRICKLE_REPEAT: usize = 4;

/// Takes chunks in order and gives blocks, children before parents.
#[derive(Debug)]
pub(super) struct FileBuilder {
    format: CidFormat,
    /// Of the root alone.
    attributes: Attributes,
    tree: Tree,
}

#[derive(Debug)]
enum Tree {
    /// The first chunk, for as long as it is the only one: its leaf may be the root.
    BalancedStart { first: Option<Bytes> },
    /// Open nodes, the deepest first: level 0 takes leaves.
    Balanced { levels: Vec<OpenNode> },
    /// Open nodes, the root first; the last one takes leaves.
    Trickle { path: Vec<TrickleNode> },
}

impl FileBuilder {
    pub fn new(format: CidFormat, layout: Layout, attributes: Attributes) -> FileBuilder {
        let tree = match layout {
            Layout::Balanced => Tree::BalancedStart { first: None },
            Layout::Trickle => Tree::Trickle { path: vec![TrickleNode::root()] },
        };
        FileBuilder { format, attributes, tree }
    }

    pub fn push(&mut self, chunk: Bytes, blocks: &mut Vec<Block>) {
        match &mut self.tree {
            Tree::BalancedStart { first } => match first.take() {
                None => *first = Some(chunk),
                Some(earlier) => {
                    let mut levels = vec![OpenNode::default()];
                    for chunk in [earlier, chunk] {
                        push_balanced(self.format, &mut levels, chunk, blocks);
                    }
                    self.tree = Tree::Balanced { levels };
                }
            },
            Tree::Balanced { levels } => push_balanced(self.format, levels, chunk, blocks),
            Tree::Trickle { path } => {
                let leaf = leaf(self.format, UnixFsKind::Raw, chunk, Attributes::default(), blocks);
                open_trickle(self.format, path, blocks);
                let last = path.last_mut().unwrap_or_else(|| unreachable!("a trickle tree has a root"));
                last.node.push(leaf);
                last.leaves += 1;
            }
        }
    }

    /// The root; an empty file is one empty block.
    pub fn finish(self, blocks: &mut Vec<Block>) -> Node {
        let FileBuilder { format, attributes, tree } = self;
        match tree {
            Tree::BalancedStart { first } => {
                leaf(format, UnixFsKind::File, first.unwrap_or_default(), attributes, blocks)
            }
            Tree::Balanced { levels } => finish_balanced(format, levels, attributes, blocks),
            Tree::Trickle { mut path } => {
                while path.len() > 1 {
                    close_trickle(format, &mut path, blocks);
                }
                let mut root = path.pop().unwrap_or_else(|| unreachable!("a trickle tree has a root"));
                root.node.close(format, attributes, blocks)
            }
        }
    }
}

/// A node that still takes children.
#[derive(Debug, Default)]
struct OpenNode {
    children: Vec<Link>,
    content_sizes: Vec<u64>,
}

impl OpenNode {
    fn push(&mut self, child: Node) {
        self.children.push(Link { name: String::new(), cid: child.cid, dag_bytes: child.dag_bytes });
        self.content_sizes.push(child.content_bytes);
    }

    fn close(&mut self, format: CidFormat, attributes: Attributes, blocks: &mut Vec<Block>) -> Node {
        let children = std::mem::take(&mut self.children);
        let block_sizes = std::mem::take(&mut self.content_sizes);
        let content_bytes = block_sizes.iter().sum();
        let unixfs = UnixFs { file_size: Some(content_bytes), block_sizes, ..UnixFs::new(UnixFsKind::File) };
        let block = dag_pb_block(format, &children, &unixfs.with(attributes));
        let dag_bytes = block.data.len() as u64 + children.iter().map(|child| child.dag_bytes).sum::<u64>();
        let node = Node { cid: block.cid, content_bytes, dag_bytes };
        blocks.push(block);
        node
    }
}

/// `kind` is what Kubo writes into leaves that are not raw blocks: File in balanced trees, Raw in trickle trees.
fn leaf(format: CidFormat, kind: UnixFsKind, chunk: Bytes, attributes: Attributes, blocks: &mut Vec<Block>) -> Node {
    let content_bytes = chunk.len() as u64;
    let block = if format.raw_leaves {
        raw_block(format, chunk)
    } else {
        let data = Some(chunk).filter(|data| !data.is_empty());
        let unixfs = UnixFs { data, file_size: Some(content_bytes), ..UnixFs::new(kind) };
        dag_pb_block(format, &[], &unixfs.with(attributes))
    };
    let node = Node { cid: block.cid, content_bytes, dag_bytes: block.data.len() as u64 };
    blocks.push(block);
    node
}

/// Adds a leaf at the bottom.
fn push_balanced(format: CidFormat, levels: &mut Vec<OpenNode>, chunk: Bytes, blocks: &mut Vec<Block>) {
    make_room(format, levels, 0, blocks);
    let leaf = leaf(format, UnixFsKind::File, chunk, Attributes::default(), blocks);
    levels[0].push(leaf);
}

/// A level that is full becomes one node of the level above, but not before something is to come after it: until then it
/// may be the root.
fn make_room(format: CidFormat, levels: &mut Vec<OpenNode>, depth: usize, blocks: &mut Vec<Block>) {
    if depth == levels.len() {
        levels.push(OpenNode::default());
    }
    if levels[depth].children.len() < MAX_LINKS {
        return;
    }
    make_room(format, levels, depth + 1, blocks);
    let node = levels[depth].close(format, Attributes::default(), blocks);
    levels[depth + 1].push(node);
}

/// Of at least two leaves: the lowest level has one, and so all above it get a child.
fn finish_balanced(
    format: CidFormat,
    mut levels: Vec<OpenNode>,
    attributes: Attributes,
    blocks: &mut Vec<Block>,
) -> Node {
    let mut depth = 0;
    while depth + 1 < levels.len() {
        make_room(format, &mut levels, depth + 1, blocks);
        let node = levels[depth].close(format, Attributes::default(), blocks);
        levels[depth + 1].push(node);
        depth += 1;
    }
    levels[depth].close(format, attributes, blocks)
}

/// A node first takes leaves, then sub-trees: `TRICKLE_REPEAT` of depth 1, as many of depth 2, and so on.
#[derive(Debug)]
struct TrickleNode {
    node: OpenNode,
    leaves: usize,
    subtrees: usize,
    /// Its sub-trees are less deep than this; the root has no bound.
    max_depth: usize,
}

impl TrickleNode {
    fn root() -> TrickleNode {
        TrickleNode::of_depth(usize::MAX)
    }

    fn of_depth(max_depth: usize) -> TrickleNode {
        TrickleNode { node: OpenNode::default(), leaves: 0, subtrees: 0, max_depth }
    }

    /// How deep the next sub-tree may become.
    fn next_depth(&self) -> usize {
        1 + self.subtrees / TRICKLE_REPEAT
    }
}

/// Makes the last open node one that takes a leaf.
fn open_trickle(format: CidFormat, path: &mut Vec<TrickleNode>, blocks: &mut Vec<Block>) {
    while let Some(last) = path.last() {
        if last.leaves < MAX_LINKS {
            return;
        }
        if last.next_depth() < last.max_depth {
            path.push(TrickleNode::of_depth(last.next_depth()));
            return;
        }
        close_trickle(format, path, blocks);
    }
}

/// Closes the last open node, which is not the root, into its parent.
fn close_trickle(format: CidFormat, path: &mut Vec<TrickleNode>, blocks: &mut Vec<Block>) {
    let (Some(mut closing), Some(parent)) = (path.pop(), path.last_mut()) else {
        unreachable!("the root of a trickle tree has no bound");
    };
    parent.node.push(closing.node.close(format, Attributes::default(), blocks));
    parent.subtrees += 1;
}
