//! `state import`

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use pinfold_common::member::Member;
use pinfold_common::pin::Pin;
use pinfold_proto::types;
use rand::RngCore as _;

use super::objects::Pins;
use super::prompt::{Answer, confirm};
use super::{Confirm, ImportArgs, io_failed, parse_peers};
use crate::admission::{CLUSTER_ID_BYTES, founder_node_id};
use crate::config::Config;
use crate::coordinator::rules::{self, Factors};
use crate::error::Result;
use crate::state_folder::{Exchange, StateFolder, hex};
use crate::store::{Build, LogId, Membership, Seed};

/// Pins written at once.
const BATCH: usize = 1000;
/// Between two words about the progress.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
const BUFFER_BYTES: usize = 1 << 20;

/// The entries that the new log begins after: its membership, and the pins.
const MEMBERSHIP_INDEX: u64 = 1;
const PINS_INDEX: u64 = 2;
const TERM: u64 = 1;

pub async fn run(config: &Config, folder: &StateFolder, arguments: &ImportArgs) -> Result<()> {
    let changes = Changes::of(config, arguments)?;
    let mut stdin = io::stdin().lock();
    let question = "The pinset (state) of this peer will be replaced. Continue? [y/n]:";
    if confirm(Confirm::of(arguments.force), question, &mut stdin)? == Answer::No {
        return Ok(());
    }
    let exchange = Exchange::begin(folder.path())?;
    let seed = new_cluster(config, LogId { term: TERM, node: 0, index: PINS_INDEX }, 1);
    let pins = match arguments.file.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => {
            let file = File::open(path).map_err(|error| io_failed("open", path, &error))?;
            let reader = BufReader::with_capacity(BUFFER_BYTES, file);
            fill(&exchange, reader, &changes, &seed).await.map_err(|error| error.in_file(path))?
        }
        None => {
            eprintln!("reading from stdin, Ctrl-D to finish");
            fill(&exchange, stdin, &changes, &seed).await.map_err(|error| error.in_file(Path::new("stdin")))?
        }
    };
    let member = Member { cluster_id: seed.cluster_id.clone(), node_id: seed.own.node_id, starts: 0 };
    let old = exchange.commit(&config.folder, &member, config.backups_rotate)?;
    eprintln!("imported {pins} pins into the new cluster {}, which this peer is alone in", hex(&seed.cluster_id));
    if let Some(old) = old {
        eprintln!("the old state is in {}", old.display());
    }
    Ok(())
}

/// A cluster of this peer alone, with an ID of its own. `applied` is the last entry that is not in its log; its node is
/// filled in.
pub fn new_cluster(config: &Config, applied: LogId, lineage: u64) -> Seed {
    let mut cluster_id = vec![0; CLUSTER_ID_BYTES];
    rand::rng().fill_bytes(&mut cluster_id);
    let node_id = founder_node_id(&config.identity.peer_id);
    let applied = LogId { node: node_id, ..applied };
    let mut own = config.own_row();
    own.node_id = node_id;
    own.voter = true;
    own.joined_index = applied.index;
    own.set_state(types::peer::State::Healthy);
    let log_id = LogId { index: MEMBERSHIP_INDEX.min(applied.index), ..applied };
    let node = pinfold_proto::storage::Node {
        id: node_id,
        peer_id: own.peer_id.clone(),
        address: config.addresses.consensus.clone(),
    };
    let membership = pinfold_proto::storage::Membership {
        configs: vec![pinfold_proto::storage::NodeSet { ids: vec![node_id] }],
        nodes: vec![node],
    };
    let membership = Membership { log_id: Some(log_id), membership: membership.into() };
    Seed { cluster_id, lineage, applied, own, membership, settings: Default::default() }
}

/// What the flags change in every pin.
struct Changes {
    defaults: Factors,
    factors: Factors,
    allocations: Vec<Vec<u8>>,
}

impl Changes {
    fn of(config: &Config, arguments: &ImportArgs) -> Result<Changes> {
        Ok(Changes {
            defaults: config.factors,
            factors: Factors { min: arguments.replication_min, max: arguments.replication_max },
            allocations: parse_peers(&arguments.allocations)?,
        })
    }

    /// Errors: factors that contradict each other.
    fn apply(&self, pin: Pin) -> pinfold_common::Result<types::Pin> {
        let mut pin = types::Pin::from(pin);
        let options = pin.options.get_or_insert_default();
        let over = |asked: i32, said: i32| if asked == 0 { said } else { asked };
        let factors = rules::factors(
            over(self.factors.min, options.replication_factor_min),
            over(self.factors.max, options.replication_factor_max),
            self.defaults,
        )?;
        (options.replication_factor_min, options.replication_factor_max) = (factors.min, factors.max);
        if !self.allocations.is_empty() {
            pin.allocations = self.allocations.clone();
        }
        pin.revision = PINS_INDEX;
        Ok(pin)
    }
}

/// Why nothing was changed.
enum Failed {
    Input(pinfold_common::Error),
    Store(crate::error::Error),
}

impl Failed {
    fn in_file(self, path: &Path) -> crate::error::Error {
        match self {
            Failed::Input(error) => error.context(format!("{}, nothing was changed", path.display())).into(),
            Failed::Store(error) => error,
        }
    }
}

impl From<crate::store::Error> for Failed {
    fn from(error: crate::store::Error) -> Failed {
        Failed::Store(error.into())
    }
}

async fn fill(exchange: &Exchange, reader: impl BufRead, changes: &Changes, seed: &Seed) -> Result<u64, Failed> {
    let mut build = Build::begin(exchange.path()).await?;
    let mut pins = Pins::new(reader, changes.defaults);
    let mut batch: Vec<types::Pin> = Vec::with_capacity(BATCH);
    let mut count: u64 = 0;
    let mut told = Instant::now();
    for pin in pins.by_ref() {
        let pin = pin.and_then(|pin| changes.apply(pin)).map_err(Failed::Input)?;
        batch.push(pin);
        count += 1;
        if batch.len() == BATCH {
            build.put(std::mem::take(&mut batch)).await?;
        }
        if told.elapsed() >= TELL_INTERVAL {
            told = Instant::now();
            eprintln!("{count} objects read");
        }
    }
    build.put(batch).await?;
    let kept = build.finish(seed).await?;
    if pins.without_type > 0 {
        eprintln!("{} objects have no valid type; they are taken as pins", pins.without_type);
    }
    if kept < count {
        eprintln!("{} objects have the CID of an earlier one, which they replace", count - kept);
    }
    Ok(kept)
}
