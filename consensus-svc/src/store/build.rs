//! A new state, filled from a stream of pins: for imports, restores and recoveries. In constant memory, in a folder that
//! nobody reads before [`Build::finish`]; until then a crash leaves nothing that counts, so nothing is synced.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pinfold_proto::types;

use super::error::{Error, Result};
use super::log::Log;
use super::record::{LogId, Membership, Vote};
use super::state::Fill;
use super::{LOG_FILE, sqlite};
use crate::pinset::{PeerTable, View};

/// Pins between two commits.
const PINS_PER_TRANSACTION: usize = 50_000;

/// What the new state is but for its pins: a cluster of this peer alone, whose log begins after `applied`.
#[derive(Clone, Debug)]
pub struct Seed {
    pub cluster_id: Vec<u8>,
    pub lineage: u64,
    /// Entries of the new cluster come after it. No pin has a higher revision.
    pub applied: LogId,
    /// Its only member.
    pub own: types::Peer,
    pub membership: Membership,
    pub settings: BTreeMap<String, String>,
}

pub struct Build {
    folder: PathBuf,
    fill: Fill,
    /// The highest CID so far: what comes above it is new for sure.
    highest: Vec<u8>,
    uncommitted: usize,
}

impl Build {
    /// In an empty folder.
    pub async fn begin(folder: &Path) -> Result<Build> {
        sqlite::check_version().await?;
        let fill = Fill::create(folder).await?;
        Ok(Build { folder: folder.to_owned(), fill, highest: Vec::new(), uncommitted: 0 })
    }

    /// Adds pins; of two with the same CID, the later one counts.
    pub async fn put(&mut self, pins: Vec<types::Pin>) -> Result<()> {
        let pins: BTreeMap<Vec<u8>, Arc<types::Pin>> =
            pins.into_iter().map(|pin| (pin.cid.clone(), Arc::new(pin))).collect();
        let Some((last, _)) = pins.last_key_value() else { return Ok(()) };
        let last = last.clone();
        let maybe_known = pins.keys().filter(|cid| **cid <= self.highest).cloned().collect();
        let mut view = View::default();
        let mut loaded = HashMap::new();
        self.fill.rows.load_pins(&mut view, &mut loaded, maybe_known).await?;
        self.uncommitted += pins.len();
        self.fill.put(pins, loaded).await?;
        self.highest = std::mem::take(&mut self.highest).max(last);
        if self.uncommitted >= PINS_PER_TRANSACTION {
            self.fill.commit_and_go_on().await?;
            self.uncommitted = 0;
        }
        Ok(())
    }

    /// Writes the rest, and brings everything onto the disk. Returns how many pins there are.
    pub async fn finish(self, seed: &Seed) -> Result<u64> {
        let mut peers = PeerTable { index: seed.applied.index, ..PeerTable::default() };
        peers.rows.insert(seed.own.node_id, seed.own.clone());
        let view = View {
            cluster_id: seed.cluster_id.clone(),
            lineage: seed.lineage,
            peers,
            settings: seed.settings.clone(),
            ..View::default()
        };
        let pins = self.fill.finish(seed.applied, view, &seed.membership).await?;
        let vote = Vote { term: seed.applied.term, node: seed.own.node_id, committed: false };
        Log::seed(&self.folder, seed.applied, vote).await?;
        for name in [super::state::FIRST_FILE, LOG_FILE] {
            let synced = std::fs::File::open(self.folder.join(name)).and_then(|file| file.sync_all());
            synced.map_err(Error::io("sync the new state"))?;
        }
        let synced = std::fs::File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(Error::io("sync the folder of the new state"))?;
        Ok(pins)
    }
}
