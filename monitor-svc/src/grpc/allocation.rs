//! `pinfold.monitor.v1.Allocation`: where pins go, for a leader whose own monitor is away.

use pinfold_common::ids::{MAX_CID_BYTES, peers_from_bytes, peers_to_bytes};
use pinfold_proto::monitor::allocation_server::Allocation;
use pinfold_proto::monitor::result::Result as WireOutcome;
use pinfold_proto::monitor::{self as wire, AllocateReply, AllocateRequest};
use tonic::{Request, Response, Status};

use crate::allocator::{Factors, Growth, Item, MAX_ITEMS, Outcome, TooFew};
use crate::error::MonitorError;
use crate::store::Store;

/// Peers named in one list of an item.
const MAX_PEERS_PER_LIST: usize = 4096;

pub(super) struct AllocationService {
    pub(super) store: Store,
}

#[tonic::async_trait]
impl Allocation for AllocationService {
    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateReply>, Status> {
        allocate(&self.store, request.into_inner()).await
    }
}

/// The same for both audiences.
pub(super) async fn allocate(store: &Store, request: AllocateRequest) -> Result<Response<AllocateReply>, Status> {
    if request.items.len() > MAX_ITEMS {
        let count = request.items.len();
        return Err(MonitorError::TooMany { what: "items in one allocation", count, most: MAX_ITEMS }.into());
    }
    let items = request.items.into_iter().enumerate();
    let items: Vec<Item> = items.map(|(index, item)| decode(index, item)).collect::<Result<_, _>>()?;
    let outcomes = store.allocate(items).await?;
    Ok(Response::new(AllocateReply { results: outcomes.into_iter().map(encode).collect() }))
}

fn decode(index: usize, item: wire::Item) -> Result<Item, MonitorError> {
    let wrong = |why: String| MonitorError::Item { index, why };
    if item.cid.len() > MAX_CID_BYTES {
        return Err(wrong(format!("cid: longer than {MAX_CID_BYTES} bytes")));
    }
    let peers = |name: &str, list: &[Vec<u8>]| {
        if list.len() > MAX_PEERS_PER_LIST {
            return Err(wrong(format!("{name}: {} peers, at most {MAX_PEERS_PER_LIST}", list.len())));
        }
        peers_from_bytes(list).map_err(|error| wrong(format!("{name}: {error}")))
    };
    Ok(Item {
        factors: Factors::parse(item.replication_factor_min, item.replication_factor_max).map_err(wrong)?,
        current: peers("current", &item.current)?,
        priority: peers("priority", &item.priority)?,
        exclude: peers("exclude", &item.exclude)?,
        growth: Growth::try_from(item.growth).map_err(|_| wrong(format!("unknown growth {}", item.growth)))?,
        size_bytes: item.size_bytes,
        cid: item.cid,
    })
}

fn encode(outcome: Outcome) -> wire::Result {
    let result = match outcome {
        Outcome::Peers(peers) => WireOutcome::Peers(wire::Peers { peers: peers_to_bytes(&peers) }),
        Outcome::TooFew(TooFew { needed, wanted, candidates, reasons, full }) => WireOutcome::TooFew(wire::TooFew {
            needed: number(needed),
            wanted: number(wanted),
            candidates: number(candidates),
            reasons,
            full: number(full),
        }),
    };
    wire::Result { result: Some(result) }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
