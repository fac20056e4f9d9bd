//! The CIDs and sizes of Kubo, for the vectors in tests/testdata/cids.

use serde::Deserialize;

use super::content::Content;
use super::*;

/// Larger vectors are in api-gateway/tests/constant_memory.rs.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Clone, Debug, Deserialize)]
struct Options {
    cid_version: u32,
    raw_leaves: bool,
    hash: String,
    chunker: String,
    layout: String,
    #[serde(default)]
    wrap: bool,
    /// Kept: of files by all vectors with attributes.
    #[serde(default)]
    preserve: bool,
}

impl Options {
    fn params(&self) -> AddParams {
        AddParams {
            layout: Layout::parse(&self.layout).unwrap(),
            chunker: Chunker::parse(&self.chunker).unwrap(),
            raw_leaves: Some(self.raw_leaves).filter(|_| !self.preserve),
            preserve_mode: self.preserve,
            preserve_mtime: self.preserve,
            cid_version: self.cid_version,
            hash: self.hash.clone(),
            wrap_with_directory: self.wrap,
            no_pin: true,
            ..AddParams::default()
        }
    }
}

#[derive(Debug, Deserialize)]
struct FileVector {
    bytes: u64,
    seed: u64,
    #[serde(flatten)]
    options: Options,
    #[serde(flatten)]
    attributes: Kept,
    cid: String,
    size: u64,
}

/// Mode and mtime of an entry, 0 for none.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Kept {
    mode: u32,
    mtime: i64,
    mtime_nsecs: u32,
}

impl Kept {
    fn attributes(self) -> Attributes {
        Attributes {
            mode: Some(self.mode).filter(|mode| *mode > 0),
            mtime: (self.mtime != 0).then_some(Mtime { seconds: self.mtime, nanoseconds: self.mtime_nsecs }),
        }
    }
}

#[derive(Debug, Deserialize)]
struct TreeVector {
    tree: String,
    entries: Vec<TreeEntry>,
    #[serde(flatten)]
    options: Options,
    events: Vec<Told>,
}

#[derive(Debug, Deserialize)]
struct TreeEntry {
    path: String,
    kind: String,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    bytes: usize,
    #[serde(default)]
    target: String,
    #[serde(flatten)]
    attributes: Kept,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Told {
    name: String,
    cid: String,
    size: u64,
}

#[derive(Debug, Deserialize)]
struct DirectoryVector {
    count: u64,
    name_bytes: usize,
    last_name_longer_by: usize,
    #[serde(flatten)]
    options: Options,
    /// Of the directory.
    #[serde(flatten)]
    attributes: Kept,
    #[serde(default)]
    file_attributes: Kept,
    cid: String,
    size: u64,
}

/// The name, CID and size of each entry, in the order in which they were told.
async fn told(options: &Options, input: Vec<Result<Input>>) -> Vec<Told> {
    let cluster = FakeCluster { keep_blocks: false, ..FakeCluster::new(&peers(1), 1) };
    let (done, events) = run(Arc::new(cluster), PeerId::random(), options.params(), input).await;
    let done = done.unwrap();
    let told: Vec<Told> = events
        .into_iter()
        .map(|event| match event {
            Event::Added { name, cid, size, .. } => Told { name, cid: cid.to_string(), size },
            Event::Progress { .. } => panic!("progress was not asked for"),
        })
        .collect();
    assert_eq!(told.last().unwrap().cid, done.root.to_string(), "the last event is the root");
    told
}

/// Goal: files of every size, layout, chunker and hash have Kubo's CIDs and cumulative sizes.
#[tokio::test(flavor = "multi_thread")]
async fn files() {
    let vectors: Vec<FileVector> = read(include_str!("../../../../tests/testdata/cids/files.json"));
    check_files(&vectors).await;
    let edges: Vec<FileVector> = read(include_str!("../../../../tests/testdata/cids/edges.json"));
    check_files(&edges).await;
    let kept: AttributeVectors = read(include_str!("../../../../tests/testdata/cids/attributes.json"));
    check_files(&kept.files).await;
    assert!(vectors.len() + edges.len() + kept.files.len() >= 300);
}

async fn check_files(vectors: &[FileVector]) {
    let mut content = (u64::MAX, Vec::new());
    for vector in vectors.iter().filter(|vector| vector.bytes <= MAX_BYTES) {
        // Vectors of one size follow each other and have the same content.
        if (content.0, content.1.len() as u64) != (vector.seed, vector.bytes) {
            content = (vector.seed, Content::new(vector.seed).take(vector.bytes as usize));
        }
        let input = file_with("x", vector.attributes.attributes(), &content.1);
        let told = told(&vector.options, input).await;
        let expected = Told { name: "x".to_owned(), cid: vector.cid.clone(), size: vector.size };
        assert_eq!(told, [expected], "{vector:?}");
    }
}

/// Goal: whole trees have Kubo's CIDs and sizes, entry by entry, and are told in Kubo's order.
#[tokio::test]
async fn trees() {
    let mut vectors: Vec<TreeVector> = read(include_str!("../../../../tests/testdata/cids/trees.json"));
    let kept: AttributeVectors = read(include_str!("../../../../tests/testdata/cids/attributes.json"));
    vectors.extend(kept.trees);
    assert!(vectors.len() >= 36);
    for vector in &vectors {
        let mut entries: Vec<&TreeEntry> = vector.entries.iter().collect();
        // Kubo walks the disk: each directory in the order of its names.
        entries.sort_by_key(|entry| entry.path.split('/').collect::<Vec<_>>());
        let input = entries.into_iter().flat_map(inputs).collect();
        assert_eq!(told(&vector.options, input).await, vector.events, "{} {:?}", vector.tree, vector.options);
    }
}

fn inputs(entry: &TreeEntry) -> Vec<Result<Input>> {
    let (path, attributes) = (entry.path.clone(), entry.attributes.attributes());
    match entry.kind.as_str() {
        "directory" => vec![Ok(Input::Directory { path, attributes })],
        "symlink" => vec![Ok(Input::Symlink { path, target: entry.target.clone(), attributes })],
        "file" => file_with(&path, attributes, &Content::new(entry.seed).take(entry.bytes)),
        other => panic!("{other}"),
    }
}

/// Goal: big directories are sharded exactly when and as Kubo does.
#[tokio::test]
async fn big_directories() {
    let mut vectors: Vec<DirectoryVector> = read(include_str!("../../../../tests/testdata/cids/directories.json"));
    let kept: AttributeVectors = read(include_str!("../../../../tests/testdata/cids/attributes.json"));
    vectors.extend(kept.directories);
    assert!(vectors.len() >= 10);
    for vector in &vectors {
        let name = |number: u64| {
            let longer = if number + 1 == vector.count { vector.last_name_longer_by } else { 0 };
            format!("top/{number:0width$}", width = vector.name_bytes + longer)
        };
        let top = Input::Directory { path: "top".to_owned(), attributes: vector.attributes.attributes() };
        let files = (0..vector.count).flat_map(|number| {
            file_with(&name(number), vector.file_attributes.attributes(), &Content::new(number).take(10))
        });
        let input = [Ok(top)].into_iter().chain(files).collect();
        let told = told(&vector.options, input).await;
        let expected = Told { name: "top".to_owned(), cid: vector.cid.clone(), size: vector.size };
        assert_eq!(told.last(), Some(&expected), "{vector:?}");
    }
}

/// What has mode and mtime.
#[derive(Debug, Deserialize)]
struct AttributeVectors {
    files: Vec<FileVector>,
    trees: Vec<TreeVector>,
    directories: Vec<DirectoryVector>,
}

fn read<T: for<'a> Deserialize<'a>>(text: &str) -> T {
    serde_json::from_str(text).unwrap()
}
