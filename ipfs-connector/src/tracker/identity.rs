//! Which IPFS node the table is about. Claims are about one node's pins: when another one answers in its place, all of
//! them are given up before anything is asked of it, so that nothing that somebody else pinned there is ever unpinned;
//! what the pinset wants is compared and pinned again.

use pinfold_common::ids::peer_from_bytes;

use super::board::Halt;
use super::queue::Queue;
use crate::error::Result;
use crate::node::NodeId;
use crate::store::Store;

const WHY_HELD: &str =
    "held: another IPFS node has taken the place of the one that this was pinned on; unpinning it needs approval";

#[derive(Clone)]
pub struct Identity {
    pub store: Store,
    pub queue: Queue,
}

impl Identity {
    /// Called with every answer of the node, before anybody may work with it. Says what changed, if it is another one.
    pub async fn check(&self, node: &NodeId) -> Result<Option<String>> {
        let id = node.peer_id.to_bytes();
        let Some(known) = self.store.node() else {
            self.store.set_node(id).await?;
            return Ok(None);
        };
        if known == id {
            return Ok(None);
        }
        let before = peer_from_bytes(&known).map(|peer| peer.to_string()).unwrap_or_default();
        // What runs was meant for the other node; its end must not meet the rows.
        self.queue.board().halt(Halt::Node).await;
        let disowned = self.store.disown_all(WHY_HELD).await;
        self.queue.board().resume(Halt::Node);
        disowned?;
        self.store.set_node(id).await?;
        let notice = format!(
            "another IPFS node answers: {} in the place of {before}; everything is compared and pinned again, and \
             nothing is unpinned on it without approval",
            node.peer_id
        );
        tracing::error!(node = %node.peer_id, before, "another IPFS node answers: pinning everything again");
        Ok(Some(notice))
    }
}
