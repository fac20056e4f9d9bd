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
}

impl Options {
    fn params(&self) -> AddParams {
        AddParams {
            layout: Layout::parse(&self.layout).unwrap(),
            chunker: Chunker::parse(&self.chunker).unwrap(),
            raw_leaves: Some(self.raw_leaves),
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
    cid: String,
    size: u64,
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
    assert!(vectors.len() > 100);
    let mut content = (u64::MAX, Vec::new());
    for vector in vectors.iter().filter(|vector| vector.bytes <= MAX_BYTES) {
        // Vectors of one size follow each other and have the same content.
        if (content.0, content.1.len() as u64) != (vector.seed, vector.bytes) {
            content = (vector.seed, Content::new(vector.seed).take(vector.bytes as usize));
        }
        let told = told(&vector.options, file("x", &content.1)).await;
        let expected = Told { name: "x".to_owned(), cid: vector.cid.clone(), size: vector.size };
        assert_eq!(told, [expected], "{vector:?}");
    }
}

/// Goal: whole trees have Kubo's CIDs and sizes, entry by entry, and are told in Kubo's order.
#[tokio::test]
async fn trees() {
    let vectors: Vec<TreeVector> = read(include_str!("../../../../tests/testdata/cids/trees.json"));
    assert!(vectors.len() > 20);
    for vector in &vectors {
        let mut entries: Vec<&TreeEntry> = vector.entries.iter().collect();
        // Kubo walks the disk: each directory in the order of its names.
        entries.sort_by_key(|entry| entry.path.split('/').collect::<Vec<_>>());
        let input = entries.into_iter().flat_map(inputs).collect();
        assert_eq!(told(&vector.options, input).await, vector.events, "{} {:?}", vector.tree, vector.options);
    }
}

fn inputs(entry: &TreeEntry) -> Vec<Result<Input>> {
    let path = entry.path.clone();
    match entry.kind.as_str() {
        "directory" => vec![Ok(Input::Directory { path })],
        "symlink" => vec![Ok(Input::Symlink { path, target: entry.target.clone() })],
        "file" => file(&path, &Content::new(entry.seed).take(entry.bytes)),
        other => panic!("{other}"),
    }
}

/// Goal: big directories are sharded exactly when and as Kubo does.
#[tokio::test]
async fn big_directories() {
    let vectors: Vec<DirectoryVector> = read(include_str!("../../../../tests/testdata/cids/directories.json"));
    assert!(vectors.len() >= 8);
    for vector in &vectors {
        let name = |number: u64| {
            let longer = if number + 1 == vector.count { vector.last_name_longer_by } else { 0 };
            format!("top/{number:0width$}", width = vector.name_bytes + longer)
        };
        let input = (0..vector.count).flat_map(|number| file(&name(number), &Content::new(number).take(10))).collect();
        let told = told(&vector.options, input).await;
        let expected = Told { name: "top".to_owned(), cid: vector.cid.clone(), size: vector.size };
        assert_eq!(told.last(), Some(&expected), "{vector:?}");
    }
}

fn read<T: for<'a> Deserialize<'a>>(text: &str) -> Vec<T> {
    serde_json::from_str(text).unwrap()
}
