//! Where the embedded node gets blocks that it does not have. Stage 1 of measured.md B: from the siblings' connectors
//! over the peers' own links, and from trustless HTTP gateways. Bitswap would be one more implementation.

mod gateways;
mod siblings;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout_at};

use pinfold_common::Cid;

use crate::node::verify::{Verified, check_hash_known};
use crate::node::{NodeError, Result};

pub use gateways::Gateways;
pub use siblings::Siblings;

/// What is wanted, and for which DAG: who had one block of it probably has the next.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    pub cid: Cid,
    pub root: Cid,
}

/// A way to other nodes' blocks. Safe to cancel by dropping.
#[async_trait]
pub trait BlockExchange: Send + Sync + 'static {
    /// For messages: "siblings", "gateways".
    fn name(&self) -> &'static str;

    /// The block, checked; `None` when everybody who was asked answered that they do not have it. An error when
    /// somebody who may have it could not be asked.
    async fn fetch(&self, want: Want) -> Result<Option<Verified>>;
}

/// How often all exchanges are asked for one block when some could not be reached, and the pauses in between.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];

/// All exchanges of a node, asked one after the other.
#[derive(Clone)]
pub struct Sources(Vec<Arc<dyn BlockExchange>>);

impl Sources {
    pub fn new(exchanges: Vec<Arc<dyn BlockExchange>>) -> Sources {
        Sources(exchanges)
    }

    /// The block from whoever has it. `NoProviders` when nobody does, or nobody who does could be reached in time.
    pub async fn fetch(&self, want: Want, deadline: Duration) -> Result<Verified> {
        check_hash_known(&want.cid)?;
        let end = Instant::now() + deadline;
        let mut said = String::from("nobody to ask");
        for pause in PAUSES.into_iter().map(Some).chain([None]) {
            match timeout_at(end, self.ask_all(want)).await {
                Ok(Answer::Here(block)) => return Ok(block),
                Ok(Answer::Nowhere(text)) => {
                    said = text;
                    break;
                }
                Ok(Answer::Unclear(text)) => said = text,
                Err(_) => {
                    said = format!("no answer within {deadline:?}");
                    break;
                }
            }
            if let Some(pause) = pause {
                sleep(pause).await;
            }
        }
        Err(NodeError::NoProviders(format!("block {}: not on this node's disk, {said}", want.cid)))
    }

    async fn ask_all(&self, want: Want) -> Answer {
        let (mut said, mut is_clear) = (Vec::new(), true);
        for exchange in &self.0 {
            match exchange.fetch(want).await {
                Ok(Some(block)) => return Answer::Here(block),
                Ok(None) => said.push(format!("{}: not there", exchange.name())),
                Err(error) => {
                    is_clear = false;
                    said.push(format!("{}: {error}", exchange.name()));
                }
            }
        }
        let said = if said.is_empty() { "nobody to ask".to_owned() } else { said.join("; ") };
        if is_clear { Answer::Nowhere(said) } else { Answer::Unclear(said) }
    }
}

enum Answer {
    Here(Verified),
    /// Everybody was asked and does not have it: asking again soon is no use.
    Nowhere(String),
    Unclear(String),
}
