//! GC: marks what pins need, by multihash, then removes the rest in small batches. Pins and adds go on meanwhile;
//! `store` has the agreement that keeps them safe. What cannot be decided stays.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;

use pinfold_common::Cid;
use pinfold_common::pin::PinMode;

use super::Inner;
use super::index::{PinRow, now};
use super::key::Key;
use super::keyset::KeySet;
use super::links::{is_leaf, links};
use crate::node::verify::inline_data;
use crate::node::{GcEvent, NodeError, Result};

/// How long the blocks of a pin that was begun and never finished nor tried again are kept.
const PARTIAL_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
const PINS_AT_ONCE: u32 = 1000;
/// Blocks removed while nobody may look: some ten milliseconds on a disk that is not busy.
const SWEPT_AT_ONCE: u32 = 128;

type Events = mpsc::Sender<Result<GcEvent>>;

/// The right to run the GC; given back when dropped, however it ended.
struct OneCollection<'a>(&'a Inner);

impl OneCollection<'_> {
    async fn begin(inner: &Inner) -> Result<OneCollection<'_>> {
        if inner.collecting.swap(true, Ordering::AcqRel) {
            return Err(NodeError::Refused("embedded node: a gc is running already".into()));
        }
        let one = OneCollection(inner);
        inner.store.begin_gc().await;
        Ok(one)
    }
}

impl Drop for OneCollection<'_> {
    fn drop(&mut self) {
        self.0.store.end_gc();
        self.0.collecting.store(false, Ordering::Release);
    }
}

pub async fn collect(inner: &Inner, events: Events) -> Result<()> {
    let _one = OneCollection::begin(inner).await?;
    let live = mark(inner, &events).await?;
    sweep(inner, live, &events).await
}

/// Tells; whether somebody still listens does not matter, a GC without listeners is a GC.
async fn tell(events: &Events, event: GcEvent) {
    let _ = events.send(Ok(event)).await;
}

/// The keys of everything that a pin needs.
async fn mark(inner: &Inner, events: &Events) -> Result<KeySet> {
    let mut live = KeySet::new(inner.store.scratch());
    let mut after: Option<Cid> = None;
    loop {
        let rows = inner.store.index().pins_after(after.as_ref(), PINS_AT_ONCE).await?;
        let Some(last) = rows.last() else { return Ok(live) };
        after = Some(last.cid);
        for row in rows {
            mark_pin(inner, &mut live, &row, events).await?;
        }
    }
}

async fn mark_pin(inner: &Inner, live: &mut KeySet, row: &PinRow, events: &Events) -> Result<()> {
    let kept_since = now().saturating_sub(i64::try_from(PARTIAL_KEPT.as_secs()).unwrap_or(i64::MAX));
    let is_stale = row.pinning.is_some() && row.touched_at < kept_since && !inner.is_running(&row.cid);
    if is_stale && row.pinned.is_none() {
        tracing::info!(cid = %row.cid, "what there is of a pin that nobody tried for a week is not kept any longer");
        return inner.store.index().pin_removed(&row.cid).await;
    }
    let pinning = row.pinning.filter(|_| !is_stale);
    match (row.pinned, pinning) {
        (Some(PinMode::Recursive), _) => mark_dag(inner, live, &row.cid, Missing::IsTold(events)).await,
        (_, Some(PinMode::Recursive)) => mark_dag(inner, live, &row.cid, Missing::IsExpected).await,
        (Some(PinMode::Direct), _) | (_, Some(PinMode::Direct)) => {
            live.insert(Key::of(&row.cid).as_bytes()).await.map(drop)
        }
        (None, None) => Ok(()),
    }
}

/// What it means when a block of a DAG is not here.
#[derive(Clone, Copy)]
enum Missing<'a> {
    /// It was here when the pin was done: somebody should know.
    IsTold(&'a Events),
    /// The pin is not done yet.
    IsExpected,
}

impl Missing<'_> {
    async fn note(self, text: String) {
        match self {
            Missing::IsTold(events) => {
                tracing::error!(text, "a pinned DAG is not whole");
                tell(events, GcEvent::Failed(text)).await;
            }
            Missing::IsExpected => {}
        }
    }
}

/// Marks what is here of a DAG. Depth first, so that what waits is a path and its siblings.
async fn mark_dag(inner: &Inner, live: &mut KeySet, root: &Cid, missing: Missing<'_>) -> Result<()> {
    let mut pending = vec![*root];
    while let Some(cid) = pending.pop() {
        // A CID in the set means that its links were followed; its key, that its block stays. No key begins like a CID.
        if !is_leaf(&cid) && !live.insert(&Cid::new_v1(cid.codec(), *cid.hash()).to_bytes()).await? {
            continue;
        }
        let data = match inline_data(&cid) {
            Some(data) => Some(bytes::Bytes::copy_from_slice(data)),
            None => {
                live.insert(Key::of(&cid).as_bytes()).await?;
                if is_leaf(&cid) {
                    continue;
                }
                inner.store.peek(&cid).await?
            }
        };
        let Some(data) = data else {
            missing.note(format!("pin {root}: block {cid} is not on disk")).await;
            continue;
        };
        match links(&cid, &data) {
            Ok(links) => pending.extend(links.into_iter().rev()),
            Err(error) => missing.note(format!("pin {root}: {error}")).await,
        }
    }
    Ok(())
}

async fn sweep(inner: &Inner, mut live: KeySet, events: &Events) -> Result<()> {
    let mut after: Option<Key> = None;
    loop {
        let rows = inner.store.index().blocks_after(after.as_ref(), SWEPT_AT_ONCE).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = Some(last.key.clone());
        let mut candidates = Vec::new();
        for row in rows {
            if row.held_until <= now() && !live.contains(row.key.as_bytes()).await? {
                candidates.push(row.key);
            }
        }
        if candidates.is_empty() {
            continue;
        }
        let (gone, failures) = inner.store.sweep(candidates).await?;
        for cid in gone.iter().filter_map(Key::to_cid) {
            tell(events, GcEvent::Removed(cid)).await;
        }
        for failure in failures {
            tell(events, GcEvent::Failed(failure)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use multihash_codetable::{Code, MultihashDigest as _};
    use sqlx::{ConnectOptions as _, sqlite::SqliteConnectOptions};

    use super::*;
    use crate::node::embedded::{EmbeddedConfig, EmbeddedNode};
    use crate::node::verify::codec;
    use crate::node::{Block, IpfsNode, PinAdd};

    /// Goal: what there is of a pin that was never finished is kept, and goes when nobody tried for a week.
    #[tokio::test]
    async fn partial_pins_age() {
        let folder = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig { hold: Duration::ZERO, ..EmbeddedConfig::new(folder.path()) };
        let node = EmbeddedNode::open(config, Vec::new()).await.unwrap();
        let missing = Cid::new_v1(codec::RAW, Code::Sha2_256.digest(b"missing"));
        let data = serde_ipld_dagcbor::to_vec(&ipld_core::ipld!([missing])).unwrap();
        let cid = Cid::new_v1(codec::DAG_CBOR, Code::Sha2_256.digest(&data));
        let block = Block { cid, data: data.into() };
        node.put_blocks(futures::stream::iter([Ok(block)]).boxed()).await.unwrap();
        let events: Vec<_> = node.pin_add(PinAdd::new(cid, PinMode::Recursive)).collect().await;
        assert!(matches!(events.last(), Some(Err(NodeError::NoProviders(_)))), "{events:?}");
        assert_eq!(node.gc().collect::<Vec<_>>().await, []);

        let mut direct = SqliteConnectOptions::new().filename(folder.path().join("index.db")).connect().await.unwrap();
        let week_ago = now() - i64::try_from(PARTIAL_KEPT.as_secs()).unwrap() - 1;
        sqlx::query("UPDATE pins SET touched_at = ?").bind(week_ago).execute(&mut direct).await.unwrap();
        let removed: Vec<_> = node.gc().map(|event| event.unwrap()).collect().await;
        assert!(matches!(removed.as_slice(), [GcEvent::Removed(gone)] if gone.hash() == cid.hash()), "{removed:?}");
        assert_eq!(node.0.store.index().pin(&cid).await.unwrap(), None);
    }
}
