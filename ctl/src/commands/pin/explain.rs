//! `ctl pin explain <cid>`: per peer where a pin is, why it is not further, and what a person can do about it, on one
//! screen. The words are made here, from what the trackers say (protocols.md 11); nothing is decided.

use std::fmt::Write as _;

use pinfold_common::status::{TrackerStatus, reason_name};
use pinfold_common::time::Timestamp;
use pinfold_common::{ids, pin};
use pinfold_proto::types::Reason;
use pinfold_proto::{api, types};
use serde::Serialize;

use crate::cli::{Encoding, PinExplain};
use crate::client::{Client, Outcome};
use crate::output::{self, size_text};

pub async fn run(client: &Client, encoding: Encoding, arguments: PinExplain) -> Outcome {
    let cid = arguments.cid.0.to_bytes();
    let info = client.pins().status(api::StatusRequest { cid: cid.clone(), local: false }).await?.into_inner();
    let entry = match client.pins().get(api::GetRequest { cid, consistent: false }).await {
        Ok(reply) => reply.into_inner().pin,
        Err(status) if status.code() == tonic::Code::NotFound => None,
        Err(status) => return Err(status.into()),
    };
    let explanation = Explanation::new(&info, entry.as_ref())?;
    match encoding {
        Encoding::Json => output::print_json(&explanation),
        Encoding::Text => output::print(&explanation.text(Timestamp::now())),
    }
}

#[derive(Debug, Serialize)]
struct Explanation {
    cid: String,
    name: String,
    in_pinset: bool,
    /// In a sentence.
    summary: String,
    peers: Vec<PeerExplanation>,
    /// Peers that have nothing to do with it.
    remote_peers: usize,
}

#[derive(Debug, Serialize)]
struct PeerExplanation {
    peer: String,
    peername: String,
    status: &'static str,
    reason: &'static str,
    /// Plain words.
    explanation: String,
    /// What to do; empty when there is nothing to.
    advice: String,
    error: String,
    attempts: u32,
    blocks: u64,
    bytes: u64,
    last_block: Option<String>,
    next_try: Option<String>,
    #[serde(skip)]
    times: [Option<Timestamp>; 2],
}

impl Explanation {
    fn new(info: &api::GlobalPinInfo, entry: Option<&types::Pin>) -> Outcome<Explanation> {
        let cid = ids::cid_from_bytes(&info.cid)?;
        let status = |peer: &api::PeerStatus| TrackerStatus::from_proto(peer.status);
        let concerned = |peer: &&api::PeerStatus| status(peer) != TrackerStatus::Remote || !peer.error.is_empty();
        let mut peers = Vec::new();
        for peer in info.peers.iter().filter(concerned) {
            peers.push(PeerExplanation::new(peer)?);
        }
        let pinned = info.peers.iter().filter(|peer| status(peer) == TrackerStatus::Pinned).count();
        Ok(Explanation {
            cid: cid.to_string(),
            name: info.name.clone(),
            in_pinset: entry.is_some(),
            summary: summary(entry, pinned),
            remote_peers: info.peers.len() - peers.len(),
            peers,
        })
    }

    fn text(&self, now: Timestamp) -> String {
        let mut text = self.cid.clone();
        if !self.name.is_empty() {
            let _ = write!(text, " ({})", self.name);
        }
        let _ = writeln!(text, "\n{}", self.summary);
        for peer in &self.peers {
            peer.write(&mut text, now);
        }
        let _ = match self.remote_peers {
            0 => Ok(()),
            1 => writeln!(text, "\n1 more peer has nothing to do with it."),
            peers => writeln!(text, "\n{peers} more peers have nothing to do with it."),
        };
        text
    }
}

fn summary(entry: Option<&types::Pin>, pinned: usize) -> String {
    let Some(entry) = entry else {
        return "Not in the pinset. What is still shown below is being unpinned, or is not the cluster's.".to_owned();
    };
    let options = entry.options.clone().unwrap_or_default();
    let wanted = match (options.replication_factor_min, options.replication_factor_max) {
        (-1, _) => "a copy on every peer".to_owned(),
        (min, max) if min == max => format!("{min} copies"),
        (min, max) => format!("{min} to {max} copies"),
    };
    let leaving = match entry.leaving.len() {
        0 => String::new(),
        count => format!(" {count} peers keep theirs until the new holders have it."),
    };
    let kind = match pin::PinMode::of_depth(entry.max_depth) {
        pin::PinMode::Recursive => "with everything below it",
        pin::PinMode::Direct => "this block alone",
    };
    format!("In the pinset, {kind}: {wanted} wanted, {pinned} pinned.{leaving}")
}

impl PeerExplanation {
    fn new(peer: &api::PeerStatus) -> Outcome<PeerExplanation> {
        let status = TrackerStatus::from_proto(peer.status);
        let reason = Reason::try_from(peer.reason).unwrap_or_default();
        let time = |time: Option<types::Time>| time.map(Timestamp::from);
        let times = [time(peer.last_block), time(peer.next_try)];
        let is_planned = times[1].is_some();
        Ok(PeerExplanation {
            peer: ids::peer_from_bytes(&peer.peer)?.to_string(),
            peername: peer.peername.clone(),
            status: status.name(),
            reason: reason_name(reason),
            explanation: explanation(status, reason, is_planned),
            advice: advice(status, reason, is_planned).to_owned(),
            error: peer.error.clone(),
            attempts: peer.attempt_count,
            blocks: peer.blocks,
            bytes: peer.bytes,
            last_block: times[0].map(|time| time.to_string()),
            next_try: times[1].map(|time| time.to_string()),
            times,
        })
    }

    fn write(&self, text: &mut String, now: Timestamp) {
        let name = if self.peername.is_empty() { &self.peer } else { &self.peername };
        let reason = if self.reason.is_empty() { String::new() } else { format!(" ({})", self.reason) };
        let _ = writeln!(text, "\n{name}: {}{reason}", self.status);
        let _ = writeln!(text, "  {}", self.explanation);
        if self.blocks > 0 {
            let bytes = if self.bytes > 0 { format!(", {}", size_text(self.bytes)) } else { String::new() };
            let last = self.times[0].map(|at| format!("; the last came {}", ago(at, now))).unwrap_or_default();
            let _ = writeln!(text, "  {} blocks{bytes}{last}", self.blocks);
        }
        if self.attempts > 0 {
            let next = match self.times[1] {
                Some(at) => format!(", the next {}", ahead(at, now)),
                None => String::new(),
            };
            let _ = writeln!(text, "  {} attempts{next}", self.attempts);
        }
        if !self.error.is_empty() {
            let _ = writeln!(text, "  it said: {}", self.error);
        }
        if !self.advice.is_empty() {
            let _ = writeln!(text, "  → {}", self.advice);
        }
    }
}

fn explanation(status: TrackerStatus, reason: Reason, is_planned: bool) -> String {
    let state = match status {
        TrackerStatus::Pinned => return "The IPFS node has it pinned.".to_owned(),
        TrackerStatus::Pinning => return "The IPFS node is fetching it now.".to_owned(),
        TrackerStatus::Unpinning => return "The IPFS node is unpinning it now.".to_owned(),
        TrackerStatus::Unpinned => return "Not pinned by the cluster here.".to_owned(),
        TrackerStatus::Sharded => return "A sharded item: its shards are pinned, not the item itself.".to_owned(),
        TrackerStatus::Remote => "Other peers hold it; a copy that was here is still to be unpinned.",
        TrackerStatus::ClusterError => return "This peer did not say: it is down, or cannot be reached.".to_owned(),
        TrackerStatus::Undefined => return "Nothing is known.".to_owned(),
        TrackerStatus::PinQueued => "It waits for its turn.",
        TrackerStatus::UnpinQueued if !is_planned => "The unpin is held until a person approves it.",
        TrackerStatus::UnpinQueued => "The unpin waits for its turn.",
        TrackerStatus::PinError if is_planned => "The last attempt failed; it is tried again.",
        TrackerStatus::PinError => "Given up: nothing is tried until a person asks for it.",
        TrackerStatus::UnpinError => "The last attempt at unpinning failed; it is tried again.",
        TrackerStatus::UnexpectedlyUnpinned => "The IPFS node lost it; it is pinned again.",
    };
    let why = match reason {
        Reason::None => "",
        Reason::NoProviders => " No node that could be asked has its first block.",
        Reason::Stalled => " Blocks stopped coming: whoever has the rest is away, or nobody has all of it.",
        Reason::NodeDown => " The IPFS node of this peer is down.",
        Reason::NodeTimeout => " The IPFS node of this peer was reached and did not answer in time.",
        Reason::DiskFull => " The disk of the IPFS node, or its storage limit, is full.",
        Reason::QueueFull => " More pins are queued than pin_tracker.stateless.max_pin_queue_size allows.",
        Reason::Refused => " The IPFS node will not do this, however often it is asked.",
    };
    format!("{state}{why}")
}

fn advice(status: TrackerStatus, reason: Reason, is_planned: bool) -> &'static str {
    match reason {
        Reason::NoProviders => {
            "make sure that a node that this one can reach has the content; `ctl recover <cid>` tries at once, and \
             `ctl pin rm <cid>` gives it up"
        }
        Reason::Stalled => "bring back a node that has the rest, then `ctl recover <cid>`; what came already is kept",
        Reason::NodeDown => "start the IPFS node of that peer; the queue goes on by itself",
        Reason::NodeTimeout => "look at the load and the log of that IPFS node; pins go on by themselves",
        Reason::DiskFull => {
            "free space there, raise Datastore.StorageMax, or run `ctl ipfs gc`; pins go on by themselves"
        }
        Reason::QueueFull => "wait, or raise pin_tracker.stateless.max_pin_queue_size",
        Reason::Refused => "read what it said: the CID's codec or hash, or the options, are not for this node",
        Reason::None => match status {
            TrackerStatus::ClusterError => "start that peer, or look at `ctl peers ls` and `ctl health ready` there",
            TrackerStatus::UnpinQueued if !is_planned => "`ctl approve` lists what is held, and lets it go ahead",
            TrackerStatus::Remote if !is_planned => "`ctl approve` lists what is held, and lets it go ahead",
            TrackerStatus::PinError | TrackerStatus::UnpinError => "`ctl recover <cid>` tries at once",
            TrackerStatus::Undefined
            | TrackerStatus::Pinned
            | TrackerStatus::Pinning
            | TrackerStatus::Unpinning
            | TrackerStatus::Unpinned
            | TrackerStatus::Remote
            | TrackerStatus::PinQueued
            | TrackerStatus::UnpinQueued
            | TrackerStatus::Sharded
            | TrackerStatus::UnexpectedlyUnpinned => "",
        },
    }
}

fn seconds_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from((to.unix_nanos() - from.unix_nanos()) / 1_000_000_000).unwrap_or(0)
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(seconds_between(at, now)))
}

fn ahead(at: Timestamp, now: Timestamp) -> String {
    match seconds_between(now, at) {
        0 => "now".to_owned(),
        seconds => format!("in {}", span(seconds)),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(status: TrackerStatus, reason: Reason) -> api::PeerStatus {
        let id = pinfold_common::identity::Identity::generate().peer_id;
        api::PeerStatus {
            peer: id.to_bytes(),
            peername: "peer1".to_owned(),
            status: status.to_proto() as i32,
            reason: reason as i32,
            ..api::PeerStatus::default()
        }
    }

    /// Goal: a pin that does not move is explained with how far it is, how often it was tried, when the next time is,
    /// and what to do; peers that have nothing to do with it are only counted.
    #[test]
    fn stuck_pin() {
        let now = Timestamp::parse("2026-01-02T03:04:05Z").unwrap();
        let at = |seconds: i64| Some(types::Time { seconds: now.unix_nanos() / 1_000_000_000 + seconds, nanos: 0 });
        let stalled = api::PeerStatus {
            blocks: 12,
            bytes: 3_100_000,
            last_block: at(-180),
            next_try: at(240),
            attempt_count: 3,
            error: "no progress for 2m".to_owned(),
            ..peer(TrackerStatus::PinError, Reason::Stalled)
        };
        let cid = ids::parse_cid("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG").unwrap();
        let info = api::GlobalPinInfo {
            cid: cid.to_bytes(),
            name: "photos".to_owned(),
            peers: vec![peer(TrackerStatus::Pinned, Reason::None), stalled, peer(TrackerStatus::Remote, Reason::None)],
            ..api::GlobalPinInfo::default()
        };
        let options = types::PinOptions { replication_factor_min: 2, replication_factor_max: 3, ..Default::default() };
        let entry = types::Pin { max_depth: -1, options: Some(options), ..types::Pin::default() };
        let explanation = Explanation::new(&info, Some(&entry)).unwrap();
        let text = explanation.text(now);
        for part in [
            "(photos)",
            "2 to 3 copies wanted, 1 pinned",
            "peer1: pin_error (stalled)",
            "12 blocks, 3.1 MB; the last came 3 min ago",
            "3 attempts, the next in 4 min",
            "it said: no progress for 2m",
            "→ bring back a node",
            "1 more peer has",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().count() < 24, "more than one screen:\n{text}");
        let json = serde_json::to_value(&explanation).unwrap();
        assert_eq!((&json["peers"][1]["reason"], &json["peers"][1]["blocks"]), (&"stalled".into(), &12.into()));
        assert_eq!(json["peers"][1]["next_try"], "2026-01-02T03:08:05Z");
    }

    /// Goal: every status and reason has words, and what a person can do about a trouble is said.
    #[test]
    fn words_for_everything() {
        for status in TrackerStatus::ALL {
            for reason in 0..=Reason::Refused as i32 {
                let reason = Reason::try_from(reason).unwrap();
                for is_planned in [true, false] {
                    assert!(explanation(status, reason, is_planned).ends_with('.'));
                    assert!(reason == Reason::None || !advice(status, reason, is_planned).is_empty());
                }
            }
        }
        assert!(advice(TrackerStatus::UnpinQueued, Reason::None, false).contains("ctl approve"));
    }
}
