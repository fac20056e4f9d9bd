//! `ctl rebalance`: what each peer holds and what would move; then a run that the cluster carries out by itself, and its
//! progress.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pinfold_common::ids;
use pinfold_common::metric::{FREESPACE, REPOSIZE};
use pinfold_proto::api::MetricsRequest;
use pinfold_proto::types::repin_change_call::Switch;
use pinfold_proto::types::repin_status_reply::Phase;
use pinfold_proto::types::{Metric, PeerLoad, RepinChangeCall, RepinStatusCall, RepinStatusReply};

use super::repin::status::phase;
use crate::cli::{Encoding, Rebalance};
use crate::client::{Client, Outcome};
use crate::output;

const POLL: Duration = Duration::from_millis(500);
/// While no leader answers.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(client: &Client, encoding: Encoding, arguments: &Rebalance) -> Outcome {
    if arguments.what.stop {
        change(client, Switch::StopRebalance).await?;
        return say(encoding, "stopped; what is on its way still arrives");
    }
    let before = status(client).await?;
    let plan = Plan::of(&before.loads, &item_sizes(client).await);
    if arguments.what.dry_run {
        if encoding == Encoding::Text && before.rebalance.unwrap_or_default().running {
            eprintln!("A run is under way; ctl rebalance --stop ends it.");
        }
        return plan.print(encoding);
    }
    let started = change(client, Switch::Rebalance).await?;
    if arguments.no_wait {
        return say(encoding, "begun; ctl rebalance --dry-run shows what is left, --stop ends it");
    }
    if encoding == Encoding::Text && plan.moves() > 0 {
        eprintln!("The cluster goes on without this command; ctl rebalance --stop ends it.");
    }
    follow(client, started, plan.moves()).await?;
    let plan = Plan::of(&status(client).await?.loads, &item_sizes(client).await);
    plan.print(encoding)
}

fn say(encoding: Encoding, sentence: &str) -> Outcome {
    match encoding {
        Encoding::Text => output::print(&format!("{sentence}\n")),
        Encoding::Json => output::print_json(&serde_json::json!({ "message": sentence })),
    }
}

async fn status(client: &Client) -> Outcome<RepinStatusReply> {
    Ok(client.repin().status(RepinStatusCall { loads: true }).await?.into_inner())
}

async fn change(client: &Client, switch: Switch) -> Outcome<RepinStatusReply> {
    let call = RepinChangeCall { switch: switch as i32, ..RepinChangeCall::default() };
    Ok(client.repin().change(call).await?.into_inner())
}

/// What an item takes at each peer, of those that say how large their repository is and how many items it holds. A hint
/// for people only.
async fn item_sizes(client: &Client) -> BTreeMap<Vec<u8>, u64> {
    let mut sizes = BTreeMap::new();
    for name in [FREESPACE, REPOSIZE] {
        let asked = client.cluster().metrics(MetricsRequest { name: name.to_owned() }).await;
        let metrics = asked.map(|reply| reply.into_inner().metrics).unwrap_or_default();
        let size = |metric: Metric| Some((metric.peer, metric.used_bytes.checked_div(metric.pinned_items)?));
        sizes.extend(metrics.into_iter().filter_map(size));
    }
    sizes
}

/// Until the run is over, and its old copies are gone.
async fn follow(client: &Client, mut now: RepinStatusReply, moves: u64) -> Outcome {
    let bar = progress(moves);
    loop {
        let run = now.rebalance.unwrap_or_default();
        if !run.running && now.unconfirmed == 0 {
            bar.finish_and_clear();
            return Ok(());
        }
        // Nothing is counted before the run's first look.
        if run.left > 0 || !run.running {
            bar.set_position(moves.saturating_sub(run.left));
        }
        let is_held = match now.phase() {
            Phase::Moving | Phase::Idle | Phase::Unspecified => false,
            Phase::Waiting | Phase::Paused | Phase::Stopped | Phase::Disabled => run.running,
        };
        bar.set_message(if is_held {
            format!("waits: re-pinning is {} ({})", phase(&now), now.reason)
        } else {
            format!("{} wait for the new copy", now.unconfirmed)
        });
        now = status_in_time(client).await?;
    }
}

/// The next look. A leader that is gone for a moment is no reason to stop looking: the run goes on with the next one.
async fn status_in_time(client: &Client) -> Outcome<RepinStatusReply> {
    let started = Instant::now();
    loop {
        tokio::time::sleep(POLL).await;
        match client.repin().status(RepinStatusCall::default()).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(_) if started.elapsed() < PATIENCE => {}
            Err(status) => return Err(status.into()),
        }
    }
}

fn progress(moves: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(moves);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} {eta} {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// What would move, by peer.
#[derive(Debug, PartialEq, Eq)]
struct Plan(Vec<Row>);

#[derive(Debug, PartialEq, Eq)]
struct Row {
    peer: String,
    pins: u64,
    share: u64,
    takes_part: bool,
    gives: u64,
    takes: u64,
    /// What it gives, at the average size of its items.
    gives_bytes: Option<u64>,
}

impl Plan {
    fn of(loads: &[PeerLoad], sizes: &BTreeMap<Vec<u8>, u64>) -> Plan {
        let row = |load: &PeerLoad| {
            let takes_part = load.takes_part;
            let gives = if takes_part { load.pins.saturating_sub(load.share) } else { 0 };
            let average = sizes.get(&load.peer_id);
            Row {
                peer: ids::peer_from_bytes(&load.peer_id).map(|id| id.to_string()).unwrap_or_default(),
                pins: load.pins,
                share: load.share,
                takes_part,
                gives,
                takes: if takes_part { load.share.saturating_sub(load.pins) } else { 0 },
                gives_bytes: average.map(|average| average.saturating_mul(gives)),
            }
        };
        Plan(loads.iter().map(row).collect())
    }

    fn moves(&self) -> u64 {
        self.0.iter().map(|row| row.gives).sum()
    }

    /// Unknown as soon as one that gives does not say how much it holds.
    fn bytes(&self) -> Option<u64> {
        self.0.iter().filter(|row| row.gives > 0).map(|row| row.gives_bytes).sum()
    }

    fn print(&self, encoding: Encoding) -> Outcome {
        match encoding {
            Encoding::Text => output::print(&self.text()),
            Encoding::Json => output::print_json(&self.json()),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for row in &self.0 {
            let _ = write!(text, "{} | Items: {} | ", row.peer, row.pins);
            let share = row.share;
            let _ = match (row.takes_part, row.gives, row.takes) {
                (false, _, _) => {
                    writeln!(text, "takes no part: away, draining, in maintenance or without its IPFS node")
                }
                (true, 0, 0) => writeln!(text, "Share: {share}"),
                (true, 0, takes) => writeln!(text, "Share: {share} | takes up to {takes}"),
                (true, gives, _) => match row.gives_bytes {
                    Some(bytes) => {
                        writeln!(text, "Share: {share} | gives {gives}, about {}", output::size_text(bytes))
                    }
                    None => writeln!(text, "Share: {share} | gives {gives}"),
                },
            };
        }
        let _ = match (self.moves(), self.bytes()) {
            (0, _) => writeln!(text, "Nothing to move"),
            (moves, Some(bytes)) => writeln!(
                text,
                "{moves} items to move, about {} (repository sizes over items held)",
                output::size_text(bytes)
            ),
            (moves, None) => {
                writeln!(
                    text,
                    "{moves} items to move; how large is not known: a peer that gives does not say how much it holds"
                )
            }
        };
        text
    }

    fn json(&self) -> serde_json::Value {
        let rows: Vec<serde_json::Value> = self
            .0
            .iter()
            .map(|row| {
                serde_json::json!({
                    "peer": row.peer, "items": row.pins, "share": row.share, "takes_part": row.takes_part,
                    "gives": row.gives, "takes": row.takes, "gives_bytes": row.gives_bytes,
                })
            })
            .collect();
        serde_json::json!({ "moves": self.moves(), "bytes": self.bytes(), "peers": rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(peer: u8, pins: u64, share: u64) -> PeerLoad {
        PeerLoad { peer_id: vec![peer], pins, share, takes_part: share > 0 }
    }

    /// Goal: the plan has counts and bytes for each peer, says when bytes are unknown, and who takes no part.
    #[test]
    fn a_plan_in_counts_and_bytes() {
        let loads = [load(1, 90, 40), load(2, 10, 40), load(3, 20, 40), load(4, 7, 0)];
        let sizes = BTreeMap::from([(vec![1], 1_000_000)]);
        let plan = Plan::of(&loads, &sizes);
        assert_eq!((plan.moves(), plan.bytes()), (50, Some(50_000_000)));
        let text = plan.text();
        assert!(text.contains("Share: 40 | gives 50, about 50 MB") && text.contains("takes up to 30"), "{text}");
        assert!(text.contains("takes no part") && text.contains("50 items to move, about"), "{text}");
        assert_eq!(plan.json()["peers"][1]["takes"], 30);

        let plan = Plan::of(&loads, &BTreeMap::new());
        assert_eq!(plan.bytes(), None);
        assert!(plan.text().contains("how large is not known"));
        let even = Plan::of(&[load(1, 4, 4), load(2, 3, 4)], &BTreeMap::new());
        assert!(even.text().contains("Nothing to move"), "{}", even.text());
    }
}
