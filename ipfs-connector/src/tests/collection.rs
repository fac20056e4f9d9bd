//! Beside a Kubo whose automatic GC is on: what the connector says of it, and to whom.

use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use pinfold_common::status::TrackerStatus;
use pinfold_proto::connector::{Block, PutBlocks};

use super::kubo_sim::KuboSim;
use super::{Connector, House, cid, daemon, eventually};
use crate::node::kubo::{KuboConfig, KuboNode};
use crate::node::{Collection, IpfsNode as _};

const WARNING: &str = "automatic GC is on";

/// Waits until the node is up and its notice has the warning, or has it not.
async fn told(connector: &Connector, warned: bool) {
    eventually(&format!("warned: {warned}"), async || {
        let node = connector.node().await;
        let is_so = node.error.is_empty() && node.notice.contains(WARNING) == warned;
        if is_so { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
}

/// Stores one block through the service; whether the reply says that only a pin keeps it.
async fn put(connector: &Connector, number: u32) -> bool {
    let block = Block { cid: cid(number).to_bytes(), data: number.to_be_bytes().to_vec().into() };
    let put = PutBlocks { blocks: vec![block] };
    connector.blocks().put(stream::iter([put])).await.unwrap().into_inner().unheld
}

/// Goal: issue 6, seed:D3. A Kubo whose automatic GC is on is warned about where people look, and each put to it says so; when it
/// comes back without, the warning goes; where the page cannot be read nothing is said, and nothing fails.
#[tokio::test(flavor = "multi_thread")]
async fn seed_d3_an_automatic_gc_is_warned_about() {
    let (house, sim) = (House::new().await, KuboSim::start().await);
    sim.set_command_line(Some(vec!["ipfs", "daemon", "--enable-gc"]));
    let connector = house.start(Arc::new(sim.node(Duration::from_secs(2)))).await;
    let asked = || sim.journal("/debug/pprof/cmdline").len();
    let mut number = 0;
    for (command_line, unheld) in [
        (Some(vec!["ipfs", "daemon", "--enable-gc"]), true),
        (Some(vec!["ipfs", "daemon"]), false),
        (Some(vec!["ipfs", "daemon", "--enable-gc=true"]), true),
        (None, false),
    ] {
        let before = asked();
        sim.stop();
        eventually("it is down", async || match connector.node().await.error.as_str() {
            "" => Err("up".to_owned()),
            _ => Ok(()),
        })
        .await;
        sim.set_command_line(command_line.clone());
        sim.start_again().await;
        eventually("it is asked", async || if asked() > before { Ok(()) } else { Err(String::new()) }).await;
        told(&connector, unheld).await;
        number += 1;
        assert_eq!(put(&connector, number).await, unheld, "{command_line:?}");
        house.pinset.put([house.here(&cid(number))]);
        connector.until(&cid(number), TrackerStatus::Pinned).await;
    }
    connector.stop().await;
}

/// Goal: the same of a real Kubo, by the options it was started with.
#[tokio::test(flavor = "multi_thread")]
async fn kubo_seed_d3_an_automatic_gc_is_warned_about() {
    if !daemon::is_here("kubo_seed_d3_an_automatic_gc_is_warned_about") {
        return;
    }
    for (options, expected) in [
        (&[][..], Collection::OnRequest),
        (&["--enable-gc"], Collection::ByItself),
        (&["--enable-gc=false"], Collection::OnRequest),
    ] {
        let daemon = daemon::start_with(&[], options);
        let node = KuboNode::new(KuboConfig::new(daemon.api.parse().unwrap())).unwrap();
        assert_eq!(node.collection().await, expected, "{options:?}");
        let house = House::new().await;
        let connector = house.start(Arc::new(node)).await;
        told(&connector, expected == Collection::ByItself).await;
        assert_eq!(put(&connector, 1).await, expected == Collection::ByItself);
        connector.stop().await;
    }
}
