//! The common cases against real Kubo daemons: `ipfs` on the PATH, started in temporary folders, on loopback, with no
//! bootstrap, no mDNS and no routing. Without it the tests say that they were skipped, and pass.

use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use ipfs_connector::node::kubo::{KuboConfig, KuboNode};
use ipfs_connector::node::{IpfsNode, NodeError, PinAdd, PinEvent, PinState};
use pinfold_common::pin::PinMode;

#[path = "../daemon/mod.rs"]
mod daemon;

use daemon::{Daemon, START_DEADLINE, is_on_path, start};

use crate::cases::{CASES, Fixture, PIN_TIMEOUT};
use crate::dag::*;

fn node(daemon: &Daemon) -> KuboNode {
    let config = KuboConfig {
        request_timeout: Duration::from_secs(20),
        pin_timeout: PIN_TIMEOUT,
        ..KuboConfig::new(daemon.api.parse().unwrap())
    };
    KuboNode::new(config).unwrap()
}

async fn until_ready(node: &KuboNode) {
    let started = Instant::now();
    while node.id().await.is_err() {
        assert!(started.elapsed() < START_DEADLINE, "kubo does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn connect(from: &KuboNode, to: &KuboNode) {
    let addresses = to.id().await.unwrap().addresses;
    let addresses: Vec<_> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    from.swarm_connect(&addresses).await.unwrap();
}

/// Goal: real Kubo daemons pass every common case, and what only Kubo does works: dialling, being killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn common_cases() {
    if !is_on_path() {
        println!("kubo: not on the PATH, {} tests skipped", CASES.len() + 3);
        // `make test` counts these files at its end.
        if let Some(folder) = std::env::var_os("PINFOLD_SKIPPED") {
            let alone = ["origins_are_dialed", "interop", "killed_in_mid_pin"];
            for name in CASES.iter().map(|(name, _)| *name).chain(alone) {
                let _ = std::fs::write(std::path::Path::new(&folder).join(format!("kubo_node_{name}")), "kubo");
            }
        }
        return;
    }
    let (mut first, second) = (start(), start());
    let (node, other) = (node(&first), self::node(&second));
    until_ready(&node).await;
    until_ready(&other).await;
    println!("kubo: {}", node.id().await.unwrap().agent);

    origins_are_dialed(&node, &other).await;
    connect(&node, &other).await;
    let peers = node.swarm_peers().await.unwrap();
    assert_eq!(peers, [other.id().await.unwrap().peer_id]);
    unreachable_peers(&node).await;

    let fixture = Fixture { node: Box::new(node.clone()), other: Box::new(other.clone()) };
    for (name, case) in CASES {
        let started = Instant::now();
        case(&fixture).await;
        println!("kubo: {name} ({:?})", started.elapsed());
    }
    interop(&first, &node).await;
    throughput(&node).await;

    // Killed in the middle of a pin: the pin says that the node is down, and so does everything after it.
    let mut events = node.pin_add(PinAdd::new(tree(1, 1)[0].cid, PinMode::Recursive));
    let _ = tokio::time::timeout(Duration::from_millis(300), events.next()).await;
    first.child.kill().unwrap();
    let last = events.filter(|event| std::future::ready(event.is_err())).next().await;
    assert!(matches!(last, Some(Err(NodeError::Down(_)))), "{last:?}");
    assert!(matches!(node.id().await, Err(NodeError::Down(_))));
}

/// A pin with origins finds its content without any other connection.
async fn origins_are_dialed(node: &KuboNode, other: &KuboNode) {
    assert_eq!(node.swarm_peers().await.unwrap(), []);
    let blocks = tree(1, 2);
    put(other, &blocks).await;
    let origins = other.id().await.unwrap().addresses.iter().map(|address| address.parse().unwrap()).collect();
    let request = PinAdd { origins, ..PinAdd::new(blocks[0].cid, PinMode::Recursive) };
    let events: Vec<_> = node.pin_add(request).collect().await;
    assert!(matches!(events.last(), Some(Ok(PinEvent::Done(_)))), "{events:?}");
}

async fn unreachable_peers(node: &KuboNode) {
    let nobody = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6".parse().unwrap();
    let error = node.swarm_connect(&[nobody]).await.unwrap_err();
    assert!(matches!(error, NodeError::Other(_)), "{error:?}");
}

/// What `ipfs add` made, with its names, is walked the same way by both nodes: same block count, same paths.
async fn interop(daemon: &Daemon, kubo: &KuboNode) {
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir(tree.path().join("sub")).unwrap();
    std::fs::write(tree.path().join("sub/large"), vec![5u8; 3_000_000]).unwrap();
    for n in 0..300 {
        std::fs::write(tree.path().join(format!("file-{n}")), format!("content {n}")).unwrap();
    }
    for arguments in [
        vec!["add", "-rQ"],
        vec!["add", "-rQ", "--cid-version=1"],
        vec!["add", "-rQ", "--cid-version=1", "--hash=blake3", "--max-hamt-fanout=8", "--max-directory-links=50"],
    ] {
        let output = Command::new("ipfs")
            .args(&arguments)
            .arg(tree.path())
            .env("IPFS_PATH", daemon.folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let root: cid::Cid = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        assert_eq!(kubo.pin_state(&root).await.unwrap(), PinState::Recursive);
        let folder = tempfile::tempdir().unwrap();
        let beside = std::sync::Arc::new(FromKubo(kubo.clone()));
        let embedded = crate::embedded::open(&folder, vec![beside]).await;
        let done = pin(&embedded, root, PinMode::Recursive).await.unwrap();
        for name in ["sub/large", "file-0", "file-299"] {
            let path = format!("/ipfs/{root}/{name}");
            assert_eq!(embedded.resolve(&path).await.unwrap(), kubo.resolve(&path).await.unwrap(), "{path}");
        }
        kubo.pin_rm(&root).await.unwrap();
        let mut seen = 0;
        let mut events = kubo.pin_add(PinAdd::new(root, PinMode::Recursive));
        while let Some(event) = events.next().await {
            if let PinEvent::Done(progress) = event.unwrap() {
                seen = progress.blocks;
            }
        }
        println!("kubo: {arguments:?}: {} blocks here, {seen} there", done.blocks);
        assert_eq!(done.blocks, seen);
    }
}

/// A Kubo in the place of a sibling.
struct FromKubo(KuboNode);

#[async_trait::async_trait]
impl ipfs_connector::node::embedded::exchange::BlockExchange for FromKubo {
    fn name(&self) -> &'static str {
        "kubo"
    }

    async fn fetch(
        &self,
        want: ipfs_connector::node::embedded::exchange::Want,
    ) -> ipfs_connector::node::Result<Option<ipfs_connector::node::verify::Verified>> {
        let data = self.0.get_block_local(&want.cid).await?;
        data.map(|data| ipfs_connector::node::verify::Verified::check(want.cid, data)).transpose()
    }
}

/// Not a case: numbers for people.
async fn throughput(node: &KuboNode) {
    let leaves: Vec<_> = (0..400).map(|_| leaf(262_144)).collect();
    let started = Instant::now();
    put(node, &leaves).await;
    println!("kubo: 100 MiB put as one CAR in {:?}", started.elapsed());
    let small: Vec<_> = (0..200).map(|_| leaf(10)).collect();
    put(node, &small).await;
    let started = Instant::now();
    for leaf in &small {
        pin(node, leaf.cid, PinMode::Recursive).await.unwrap();
    }
    println!("kubo: {} pins one after the other in {:?}", small.len(), started.elapsed());
}
