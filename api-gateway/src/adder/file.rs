//! A file's chunks become leaves and the leaves a tree, in the two layouts of Kubo. Pure, and in constant memory: what
//! is kept is the open nodes on the way from the root to the place where the next leaf goes.

use bytes::Bytes;

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
    tree: Tree,
}

#[derive(Debug)]
enum Tree {
    /// Open nodes, the deepest first: level 0 takes leaves.
    Balanced { levels: Vec<OpenNode> },
    /// Open nodes, the root first; the last one takes leaves.
    Trickle { path: Vec<TrickleNode> },
}

impl FileBuilder {
    pub fn new(format: CidFormat, layout: Layout) -> FileBuilder {
        let tree = match layout {
            Layout::Balanced => Tree::Balanced { levels: vec![OpenNode::default()] },
            Layout::Trickle => Tree::Trickle { path: vec![TrickleNode::root()] },
        };
        FileBuilder { format, tree }
    }

    pub fn push(&mut self, chunk: Bytes, blocks: &mut Vec<Block>) {
        match &mut self.tree {
            Tree::Balanced { levels } => {
                let leaf = leaf(self.format, UnixFsKind::File, chunk, blocks);
                push_balanced(self.format, levels, leaf, blocks);
            }
            Tree::Trickle { path } => {
                let leaf = leaf(self.format, UnixFsKind::Raw, chunk, blocks);
                open_trickle(self.format, path, blocks);
                let last = path.last_mut().unwrap_or_else(|| unreachable!("a trickle tree has a root"));
                last.node.push(leaf);
                last.leaves += 1;
            }
        }
    }

    /// The root; an empty file is one empty block.
    pub fn finish(self, blocks: &mut Vec<Block>) -> Node {
        match self.tree {
            Tree::Balanced { levels } => finish_balanced(self.format, levels, blocks),
            Tree::Trickle { mut path } => loop {
                let root = close_trickle(self.format, &mut path, blocks);
                if let Some(root) = root {
                    return root;
                }
            },
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

    fn close(&mut self, format: CidFormat, blocks: &mut Vec<Block>) -> Node {
        let children = std::mem::take(&mut self.children);
        let block_sizes = std::mem::take(&mut self.content_sizes);
        let content_bytes = block_sizes.iter().sum();
        let unixfs = UnixFs { file_size: Some(content_bytes), block_sizes, ..UnixFs::new(UnixFsKind::File) };
        let block = dag_pb_block(format, &children, &unixfs);
        let dag_bytes = block.data.len() as u64 + children.iter().map(|child| child.dag_bytes).sum::<u64>();
        let node = Node { cid: block.cid, content_bytes, dag_bytes };
        blocks.push(block);
        node
    }
}

/// `kind` is what Kubo writes into leaves that are not raw blocks: File in balanced trees, Raw in trickle trees.
fn leaf(format: CidFormat, kind: UnixFsKind, chunk: Bytes, blocks: &mut Vec<Block>) -> Node {
    let content_bytes = chunk.len() as u64;
    let block = if format.raw_leaves {
        raw_block(format, chunk)
    } else {
        let data = Some(chunk).filter(|data| !data.is_empty());
        dag_pb_block(format, &[], &UnixFs { data, file_size: Some(content_bytes), ..UnixFs::new(kind) })
    };
    let node = Node { cid: block.cid, content_bytes, dag_bytes: block.data.len() as u64 };
    blocks.push(block);
    node
}

/// Adds a node at the bottom; each level that is full becomes one node of the level above.
fn push_balanced(format: CidFormat, levels: &mut Vec<OpenNode>, leaf: Node, blocks: &mut Vec<Block>) {
    let mut rising = leaf;
    for level in levels.iter_mut() {
        level.push(rising);
        if level.children.len() < MAX_LINKS {
            return;
        }
        rising = level.close(format, blocks);
    }
    let mut top = OpenNode::default();
    top.push(rising);
    levels.push(top);
}

fn finish_balanced(format: CidFormat, mut levels: Vec<OpenNode>, blocks: &mut Vec<Block>) -> Node {
    let mut rising: Option<Node> = None;
    let count = levels.len();
    for (depth, level) in levels.iter_mut().enumerate() {
        if let Some(node) = rising.take() {
            level.push(node);
        }
        let is_top = depth + 1 == count;
        match (level.children.len(), is_top) {
            (0, _) => {}
            // A root with a single child is that child.
            (1, true) => rising = Some(only_child(level)),
            (1.., _) => rising = Some(level.close(format, blocks)),
        }
    }
    rising.unwrap_or_else(|| leaf(format, UnixFsKind::File, Bytes::new(), blocks))
}

fn only_child(level: &mut OpenNode) -> Node {
    match (level.children.pop(), level.content_sizes.pop()) {
        (Some(child), Some(content_bytes)) => Node { cid: child.cid, content_bytes, dag_bytes: child.dag_bytes },
        (None, _) | (_, None) => unreachable!("the level has one child"),
    }
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

/// Closes the last open node into its parent; the root is returned instead.
fn close_trickle(format: CidFormat, path: &mut Vec<TrickleNode>, blocks: &mut Vec<Block>) -> Option<Node> {
    let mut closing = path.pop()?;
    let node = closing.node.close(format, blocks);
    match path.last_mut() {
        Some(parent) => {
            parent.node.push(node);
            parent.subtrees += 1;
            None
        }
        None => Some(node),
    }
}
