//! The embedded node after an end that nobody prepared: dropped in the middle, files and rows that do not agree, a
//! damaged file, and a process that is killed while it writes.

use std::path::PathBuf;

use cid::multibase::Base;
use ipfs_connector::node::embedded::EmbeddedNode;
use ipfs_connector::node::{Block, IpfsNode, PinAdd, PinState, RepoStat};
use pinfold_common::pin::PinMode;
use tempfile::TempDir;

use crate::dag::*;
use crate::embedded::{config, open};

/// Where a block's file is: as documented in `files`.
pub fn file_of(folder: &TempDir, block: &Block) -> PathBuf {
    let name = Base::Base32Lower.encode(block.cid.hash().to_bytes());
    let letter = |from_end: usize| &name[name.len() - from_end..=name.len() - from_end];
    folder.path().join("ipfs/blocks").join(letter(3)).join(letter(2)).join(&name)
}

/// Opens the folder again; a node that was dropped gives its folder back when its tasks have ended.
async fn reopen(folder: &TempDir) -> EmbeddedNode {
    loop {
        match EmbeddedNode::open(config(folder), Vec::new()).await {
            Ok(node) => return node,
            Err(error) => assert!(error.to_string().contains("lock"), "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// Goal: what was acknowledged is there after a drop without close: blocks, both pins, counters, identity. What was on
/// its way is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_without_close() {
    let folder = tempfile::tempdir().unwrap();
    let node = open(&folder, Vec::new()).await;
    let (blocks, other) = (tree(2, 5), leaf(10));
    put(&node, &blocks).await;
    put(&node, std::slice::from_ref(&other)).await;
    pin(&node, blocks[0].cid, PinMode::Recursive).await.unwrap();
    pin(&node, other.cid, PinMode::Direct).await.unwrap();
    let unfinished = tree(1, 1);
    drop(node.pin_add(PinAdd::new(unfinished[0].cid, PinMode::Recursive)));
    let (stat, id) = (node.repo_stat().await.unwrap(), node.id().await.unwrap());
    drop(node);
    std::fs::write(folder.path().join("ipfs/incoming/17"), b"half a block").unwrap();

    let node = reopen(&folder).await;
    assert_eq!(std::fs::read_dir(folder.path().join("ipfs/incoming")).unwrap().count(), 0);
    assert_eq!(count_here(&node, &blocks).await, blocks.len());
    assert_eq!(node.pin_state(&blocks[0].cid).await.unwrap(), PinState::Recursive);
    assert_eq!(node.pin_state(&other.cid).await.unwrap(), PinState::Direct);
    assert_eq!(node.pin_state(&unfinished[0].cid).await.unwrap(), PinState::NotPinned);
    // The disk itself is everybody's.
    let stat = RepoStat { disk: None, ..stat };
    assert_eq!(RepoStat { disk: None, ..node.repo_stat().await.unwrap() }, stat);
    assert_eq!(node.id().await.unwrap(), id);
}

/// Goal: a file without a row (killed between the two) and a row without a file are put right after a crash, and the
/// counters with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_and_rows_agree_again() {
    let folder = tempfile::tempdir().unwrap();
    let node = open(&folder, Vec::new()).await;
    let kept = [leaf(100), leaf(200), leaf(300)];
    put(&node, &kept).await;
    drop(node);
    let orphan = leaf(1000);
    let path = file_of(&folder, &orphan);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, &orphan.data).unwrap();
    std::fs::remove_file(file_of(&folder, &kept[0])).unwrap();

    let node = reopen(&folder).await;
    while node.repo_stat().await.unwrap().size_bytes != 1500 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.repo_stat().await.unwrap().blocks, Some(3));
    assert!(has(&node, &orphan).await && !has(&node, &kept[0]).await);
}

/// Goal: a file whose data has changed is never handed out; it is put aside and can be put again.
#[tokio::test]
async fn damaged_files_are_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let node = open(&folder, Vec::new()).await;
    let block = leaf(1000);
    put(&node, std::slice::from_ref(&block)).await;
    std::fs::write(file_of(&folder, &block), b"something else").unwrap();
    assert_eq!(node.get_block_local(&block.cid).await.unwrap(), None);
    assert_eq!(std::fs::read_dir(folder.path().join("ipfs/damaged")).unwrap().count(), 1);
    assert_eq!(node.repo_stat().await.unwrap().blocks, Some(0));
    put(&node, std::slice::from_ref(&block)).await;
    assert!(has(&node, &block).await);
}

/// Goal: a closed node opens without repair, and a second process is kept out while it is open.
#[tokio::test]
async fn closed_and_opened() {
    let folder = tempfile::tempdir().unwrap();
    let node = open(&folder, Vec::new()).await;
    let block = leaf(10);
    put(&node, std::slice::from_ref(&block)).await;
    let error = EmbeddedNode::open(config(&folder), Vec::new()).await.err().unwrap();
    assert!(error.to_string().contains("lock"), "{error}");
    node.close().await.unwrap();
    assert!(node.pin_state(&block.cid).await.is_err());
    drop(node);
    let node = reopen(&folder).await;
    assert!(has(&node, &block).await);
}

const CHILD: &str = "PINFOLD_TEST_CRASH_FOLDER";

/// Not a test of its own: what `killed_while_writing` runs in a process and kills. Prints each CID that is stored.
#[tokio::test]
async fn writes_until_killed() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let config = ipfs_connector::node::embedded::EmbeddedConfig {
        storage_max_bytes: Some(1_000_000_000),
        ..ipfs_connector::node::embedded::EmbeddedConfig::new(folder)
    };
    let node = EmbeddedNode::open(config, Vec::new()).await.unwrap();
    loop {
        let blocks = [leaf(50_000), leaf(10)];
        put(&node, &blocks).await;
        pin(&node, blocks[0].cid, PinMode::Recursive).await.unwrap();
        println!("\nSTORED {} {}", blocks[0].cid, blocks[1].cid);
    }
}

/// Goal: after kill -9 everything that was acknowledged is there and whole, pins too, and the counter is exact.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_writing() {
    use std::io::{BufRead as _, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let mut stored = Vec::new();
    for round in 1..=3 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["crash::writes_until_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, folder.path().join("ipfs"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.map_while(Result::ok).filter(|line| line.starts_with("STORED ")) {
            stored.extend(line.split(' ').skip(1).map(|text| text.parse::<cid::Cid>().unwrap()));
            if stored.len() >= round * 100 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let node = reopen(&folder).await;
    for (at, cid) in stored.iter().enumerate() {
        assert!(node.get_block_local(cid).await.unwrap().is_some(), "{cid} of {}", stored.len());
        if at % 2 == 0 {
            assert_eq!(node.pin_state(cid).await.unwrap(), PinState::Recursive);
        }
    }
    // Closing waits for nothing; what counts is that files and counter agree once the repair is through.
    let on_disk = |folder: &TempDir| -> u64 {
        let mut bytes = 0;
        let mut pending = vec![folder.path().join("ipfs/blocks")];
        while let Some(path) = pending.pop() {
            for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
                match entry.metadata().unwrap() {
                    metadata if metadata.is_dir() => pending.push(entry.path()),
                    metadata => bytes += metadata.len(),
                }
            }
        }
        bytes
    };
    while node.repo_stat().await.unwrap().size_bytes != on_disk(&folder) {
        tokio::task::yield_now().await;
    }
}
