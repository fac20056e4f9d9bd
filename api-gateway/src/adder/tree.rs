//! The entries of one upload that are not in a finished directory yet, by path. Pure; knows nothing of blocks.

use std::collections::BTreeMap;

use pinfold_common::ids::MAX_PATH_BYTES;
use pinfold_common::{Error, Result};

use super::Attributes;
use super::dag::Node;

const MAX_DEPTH: usize = 1024;
/// Files, symlinks and directories held at once, each about 200 bytes of memory.
const MAX_ENTRIES: usize = 1 << 20;

/// Sorted by the bytes of the name, as directories are.
pub(super) type Children = BTreeMap<String, Entry>;

#[derive(Debug)]
pub(super) enum Entry {
    Done(Node),
    Directory { children: Children, attributes: Attributes },
}

/// What is under the top entry that is open, or under the wrapping directory.
#[derive(Debug, Default)]
pub(super) struct Tree {
    children: Children,
    entries: usize,
}

/// The parts of a relative path. The empty path is one empty name: a file that has none.
pub(super) fn parse_path(path: &str) -> Result<Vec<String>> {
    if path.len() > MAX_PATH_BYTES {
        return Err(Error::invalid(format!("path of {} bytes, at most {MAX_PATH_BYTES}", path.len())));
    }
    let names: Vec<String> = path.split('/').map(str::to_owned).collect();
    if names.len() > MAX_DEPTH {
        return Err(Error::invalid(format!("path of {} parts, at most {MAX_DEPTH}", names.len())));
    }
    let is_bad = |name: &String| matches!(name.as_str(), "" | "." | "..") || name.contains('\0');
    if !path.is_empty() && names.iter().any(is_bad) {
        return Err(Error::invalid(format!("path {path:?}: not a plain relative path")));
    }
    Ok(names)
}

impl Tree {
    /// Whether a file or symlink of this path is under the open top entry, or begins one. A top name that comes again on
    /// its own is a new top entry, as in the original.
    pub fn takes_file(&self, names: &[String]) -> bool {
        names.len() > 1 && self.takes_directory(names) || self.children.is_empty()
    }

    pub fn takes_directory(&self, names: &[String]) -> bool {
        match self.children.get(&names[0]) {
            Some(Entry::Directory { .. }) => true,
            Some(Entry::Done(_)) => false,
            None => self.children.is_empty(),
        }
    }

    /// Adds a finished file or symlink, and the directories above it.
    pub fn insert(&mut self, names: &[String], node: Node) -> Result<()> {
        let Some((name, above)) = names.split_last() else {
            unreachable!("a path has at least one part");
        };
        let parent = self.directory(above)?;
        if parent.contains_key(name) {
            return Err(Error::invalid("add: the upload has this path twice"));
        }
        parent.insert(name.clone(), Entry::Done(node));
        self.count()
    }

    /// Adds a directory and those above it, if they are not there. Those above have no attributes unless they came first.
    pub fn make_directory(&mut self, names: &[String], given: Attributes) -> Result<()> {
        let Some((name, above)) = names.split_last() else { return Ok(()) };
        self.directory(names)?;
        if let Some(Entry::Directory { attributes, .. }) = self.directory(above)?.get_mut(name) {
            *attributes = given;
        }
        Ok(())
    }

    fn directory(&mut self, names: &[String]) -> Result<&mut Children> {
        let mut made = 0;
        let mut here = &mut self.children;
        for name in names {
            let entry = here.entry(name.clone()).or_insert_with(|| {
                made += 1;
                Entry::Directory { children: Children::new(), attributes: Attributes::default() }
            });
            here = match entry {
                Entry::Directory { children, .. } => children,
                Entry::Done(_) => return Err(Error::invalid("add: the upload has a file where it has a directory")),
            };
        }
        self.entries += made;
        Ok(here)
    }

    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(Error::invalid(format!("add: more than {MAX_ENTRIES} entries in one directory tree")));
        }
        Ok(())
    }

    pub fn into_children(self) -> Children {
        self.children
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_common::ids::parse_cid;

    /// Goal: a path never leaves its upload (attack:MP3).
    #[test]
    fn paths() {
        assert_eq!(parse_path("a/b c/ü").unwrap(), ["a", "b c", "ü"]);
        assert_eq!(parse_path("").unwrap(), [""]);
        let long = "x".repeat(4097);
        let deep = vec!["x"; 1025].join("/");
        for bad in ["/a", "a/", "a//b", "../a", "a/..", "./a", "a\0b", "/", &long, &deep] {
            assert!(parse_path(bad).is_err(), "{}", pinfold_common::ids::shorten(bad));
        }
    }

    /// Goal: what belongs to the open top entry and what begins the next one.
    #[test]
    fn top_entries() {
        let node = Node {
            cid: parse_cid("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn").unwrap(),
            content_bytes: 0,
            dag_bytes: 4,
        };
        let names = |path: &str| parse_path(path).unwrap();
        let mut tree = Tree::default();
        assert!(tree.takes_file(&names("a/b")) && tree.takes_directory(&names("a")));
        tree.insert(&names("a/b"), node.clone()).unwrap();
        assert!(tree.takes_file(&names("a/c")) && tree.takes_directory(&names("a")));
        assert!(!tree.takes_file(&names("a")) && !tree.takes_file(&names("c")) && !tree.takes_directory(&names("c")));
        assert!(tree.insert(&names("a/b"), node.clone()).is_err());
        assert!(tree.insert(&names("a/b/c"), node.clone()).is_err());
        let mut file = Tree::default();
        file.insert(&names("a"), node).unwrap();
        assert!(!file.takes_file(&names("a/b")) && !file.takes_directory(&names("a")));
    }
}
