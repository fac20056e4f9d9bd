//! Keeps an eye on whether the IPFS node removes blocks by itself: beside a Kubo that does, an add may lose blocks before
//! its pin (beh:B19.8). Warns once for each change, and lets whoever stores blocks know.

use std::sync::Arc;
use std::time::Duration;

use pinfold_common::shutdown::Shutdown;

use super::health::Health;
use crate::node::{Collection, IpfsNode};

/// Between two looks. A daemon that is started again with other options is away for a moment, and asked at once.
const INTERVAL: Duration = Duration::from_secs(30);

/// Looks until `shutdown`.
pub async fn watch(node: Arc<dyn IpfsNode>, health: Health, shutdown: Shutdown) {
    let mut returns = health.returns();
    let work = async {
        loop {
            health.up().await;
            returns.mark_unchanged();
            // It is perhaps another one: what was known counts no more.
            health.collects(node.collection().await);
            // The sender lives in the health.
            while tokio::time::timeout(INTERVAL, returns.changed()).await.is_err() {
                match node.collection().await {
                    // It is the same as before, only busy.
                    Collection::Unknown => {}
                    now @ (Collection::OnRequest | Collection::ByItself) => health.collects(now),
                }
            }
        }
    };
    shutdown.race(work).await;
}
