//! `state recover`: a new cluster of this peer alone, from what is left (seed:I8, seed:I9).

use std::time::{Duration, Instant};

use pinfold_common::member::Member;

use super::import::new_cluster;
use super::prompt::{Answer, confirm};
use super::{Confirm, RecoverArgs};
use crate::changes;
use crate::config::Config;
use crate::error::Result;
use crate::state_folder::{Exchange, StateFolder, hex};
use crate::store::{Build, LogId, Seed, Survivor};

const TELL_INTERVAL: Duration = Duration::from_secs(5);

pub async fn run(config: &Config, folder: &StateFolder, arguments: &RecoverArgs) -> Result<()> {
    let from = arguments.from.as_deref().unwrap_or(folder.path());
    let survivor = Survivor::open(from).await?;
    let recovered = recover(config, folder, arguments, &survivor).await;
    survivor.close().await;
    let Some(exchange) = recovered? else { return Ok(()) };
    let (exchange, seed, pins) = exchange;
    let member = Member { cluster_id: seed.cluster_id.clone(), node_id: seed.own.node_id, starts: 0 };
    let old = exchange.commit(&config.folder, &member, config.backups_rotate)?;
    let cluster = hex(&seed.cluster_id);
    tracing::warn!(cluster, pins, from = %from.display(), "recovered the state into a new cluster of this peer alone");
    eprintln!("recovered {pins} pins into the new cluster {cluster}, which this peer is alone in");
    if let Some(old) = old {
        eprintln!("the old state is in {}", old.display());
    }
    let address = config.multiaddresses.first().map(String::as_str).unwrap_or_default();
    eprintln!(
        "next: start this peer; on each of the others, consensus-svc state clean, then start it with --bootstrap {address}"
    );
    Ok(())
}

/// Builds the new state; `None` when that was not wanted.
async fn recover(
    config: &Config,
    folder: &StateFolder,
    arguments: &RecoverArgs,
    survivor: &Survivor,
) -> Result<Option<(Exchange, Seed, u64)>> {
    let facts = survivor.facts();
    let last = survivor.last().unwrap_or_default();
    let question = format!(
        "This peer will go on alone, as a new cluster, with {} pins, as entry {} of term {} left them.\n\
         Peers of the old cluster are refused from then on. Continue? [y/n]:",
        survivor.pin_count(),
        last.index,
        last.term
    );
    if confirm(Confirm::of(arguments.force), &question, &mut std::io::stdin().lock())? == Answer::No {
        return Ok(None);
    }
    if survivor.undecided > 0 {
        eprintln!("the last {} entries were not known to be committed; they are kept", survivor.undecided);
    }
    let exchange = Exchange::begin(folder.path())?;
    // Revisions stay, so the new cluster's entries come after all of the old one's.
    let applied = LogId { term: last.term.max(1), node: 0, index: last.index.max(1) };
    let mut seed = new_cluster(config, applied, facts.lineage + 1);
    seed.settings = facts.settings.clone();
    let mut build = Build::begin(exchange.path()).await?;
    let mut after = Vec::new();
    let mut count = 0;
    let mut told = Instant::now();
    loop {
        let chunk = survivor.list(&after).await?;
        let pins = changes::decode(&chunk)?;
        count += pins.len();
        build.put(pins).await?;
        if told.elapsed() >= TELL_INTERVAL {
            told = Instant::now();
            eprintln!("{count} of {} pins", survivor.pin_count());
        }
        match chunk.next {
            Some(next) => after = next,
            None => break,
        }
    }
    let pins = build.finish(&seed).await?;
    Ok(Some((exchange, seed, pins)))
}
