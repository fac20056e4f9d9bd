//! Tells this peer's monitor when each other member was last heard from over Raft: one of the two senses by which a
//! peer is found to be away (protocols.md 6). And that this peer, which leads, has stopped to re-pin: that is an alert.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use pinfold_common::channel::explain;
use pinfold_common::shutdown::Shutdown;
use pinfold_proto::monitor::monitor_client::MonitorClient;
use pinfold_proto::monitor::{Contact, ContactReport};
use tokio_stream::wrappers::IntervalStream;

use crate::core::Core;

/// Well below the second that is promised.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// Between attempts to reach the monitor.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

pub async fn report(core: Arc<Core>, shutdown: Shutdown) {
    let work = async {
        loop {
            let reporter = core.clone();
            let reports =
                IntervalStream::new(tokio::time::interval(REPORT_INTERVAL)).map(move |_| report_now(&reporter));
            let mut monitor = MonitorClient::new(core.own_monitor());
            if let Err(status) = monitor.contacts(reports).await {
                tracing::debug!(error = %explain(status), "report contacts to the monitor");
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    };
    shutdown.race(work).await;
}

/// Members that were not heard from since this process started are left out.
fn report_now(core: &Core) -> ContactReport {
    let facts = core.state.facts();
    let last = core.raft.contacts().all();
    let contacts = facts
        .peers
        .members()
        .filter(|row| row.node_id != core.node_id)
        .filter_map(|row| {
            let age_ms = last.get(&row.node_id)?.elapsed().as_millis();
            Some(Contact { peer_id: row.peer_id.clone(), age_ms: u64::try_from(age_ms).unwrap_or(u64::MAX) })
        })
        .collect();
    ContactReport { contacts, repin_stopped: core.repin.stopped().unwrap_or_default() }
}
