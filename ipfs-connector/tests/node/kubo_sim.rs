//! kubo-sim passes the cases that real Kubo daemons pass: what is shown against it is shown against a Kubo.

use std::sync::Arc;
use std::time::Instant;

use crate::cases::{CASES, Fixture, PIN_TIMEOUT};

#[path = "../kubo_sim/mod.rs"]
pub mod sim;

use sim::KuboSim;

/// Goal: the same cases that the embedded node and real daemons are held to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn common_cases() {
    let other = Arc::new(KuboSim::start().await);
    let node = KuboSim::beside(other.clone()).await;
    let fixture = Fixture { node: Box::new(node.node(PIN_TIMEOUT)), other: Box::new(other.node(PIN_TIMEOUT)) };
    for (name, case) in CASES {
        let started = Instant::now();
        case(&fixture).await;
        println!("kubo-sim: {name} ({:?})", started.elapsed());
    }
}
