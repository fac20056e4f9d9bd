//! Reads the whole state in the background and compares it with its sums: soon after it came into use without that,
//! because the file is large, and then daily. Damage ends the process, which then refuses to start and names the file: no
//! query would notice a row that is not found any more.

use std::sync::Arc;
use std::time::Duration;

use pinfold_common::shutdown::Shutdown;

use crate::core::Core;
use crate::store::Error;

const INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// After a start, which others wait for, or a state that was received.
const FIRST_PAUSE: Duration = Duration::from_secs(30);

pub async fn run(core: Arc<Core>, shutdown: Shutdown) {
    let work = async {
        let mut unverified = core.state.unverified();
        loop {
            let pause = if *unverified.borrow_and_update() { FIRST_PAUSE } else { INTERVAL };
            let another = tokio::time::timeout(pause, unverified.changed()).await;
            // The sender lives as long as the state.
            if let Ok(Ok(())) = another {
                continue;
            }
            match core.state.verify().await {
                Ok(()) => tracing::debug!("the state is as it was written"),
                Err(error @ Error::Damaged(_)) => {
                    core.state.failure().set(&error);
                    return;
                }
                // Its file was replaced meanwhile, or cannot be read now; whoever needs it finds out.
                Err(error) => tracing::warn!(%error, "verify the state"),
            }
        }
    };
    shutdown.race(work).await;
}
