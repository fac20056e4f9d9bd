//! `ctl repin status`, and what the verbs that change something print.

use std::fmt::Write as _;
use std::time::Duration;

use pinfold_common::ids;
use pinfold_common::time::Timestamp;
use pinfold_proto::types::repin_status_reply::Phase;
use pinfold_proto::types::{PeerRepin, RepinStatusReply, peer_repin};

use crate::cli::Encoding;
use crate::client::Outcome;
use crate::output;

pub fn print(encoding: Encoding, status: &RepinStatusReply) -> Outcome {
    match encoding {
        Encoding::Text => output::print(&text(status)),
        Encoding::Json => output::print_json(&json(status)),
    }
}

/// In one word, as it follows "re-pinning is".
pub fn phase(status: &RepinStatusReply) -> &'static str {
    match status.phase() {
        Phase::Unspecified => "starting",
        Phase::Idle => "idle",
        Phase::Moving => "moving",
        Phase::Waiting => "waiting",
        Phase::Paused => "paused",
        Phase::Stopped => "stopped",
        Phase::Disabled => "disabled",
    }
}

fn state(peer: &PeerRepin) -> &'static str {
    match peer.state() {
        peer_repin::State::Unspecified => "unknown",
        peer_repin::State::Doubted => "doubted",
        peer_repin::State::Away => "away",
        peer_repin::State::IpfsDown => "ipfs_down",
        peer_repin::State::Draining => "draining",
        peer_repin::State::Healthy => "healthy",
    }
}

fn text(status: &RepinStatusReply) -> String {
    let mut text = format!("Re-pinning: {}", phase(status));
    if !status.reason.is_empty() {
        let _ = write!(text, " ({})", status.reason);
    }
    let _ = write!(
        text,
        "\n  > Rate: at most {} items a second, {} on their way to one peer",
        status.pins_per_second, status.most_per_peer
    );
    let _ = match status.mean_item_bytes {
        0 => writeln!(text),
        bytes => writeln!(text, " (about {} each)", output::size_text(bytes)),
    };
    let _ = writeln!(
        text,
        "  > Under-replicated: {}, of them without a live copy: {}",
        status.under_replicated, status.lost
    );
    let _ = writeln!(text, "  > Cannot be satisfied: {}", status.unsatisfied);
    let _ = writeln!(text, "  > Moved: {}, waiting for the new copy: {}", status.moved, status.unconfirmed);
    let rebalance = status.rebalance.unwrap_or_default();
    if rebalance.running {
        let _ = writeln!(text, "  > Rebalancing: {} moved, {} left", rebalance.moved, rebalance.left);
    }
    for peer in &status.peers {
        let id = ids::peer_from_bytes(&peer.peer_id).map(|id| id.to_string()).unwrap_or_default();
        let _ = write!(text, "  > {id} : {}", state(peer).to_uppercase());
        if peer.state() == peer_repin::State::Doubted && peer.maintenance_until_seconds == 0 {
            let _ = write!(text, " | away in {:.0?}", Duration::from_secs(peer.left_ms / 1000));
        }
        if peer.maintenance_until_seconds > 0 {
            let _ = write!(text, " | in maintenance until {}", Timestamp::from_seconds(peer.maintenance_until_seconds));
        }
        text.push('\n');
    }
    text
}

fn json(status: &RepinStatusReply) -> serde_json::Value {
    let peers: Vec<serde_json::Value> = status
        .peers
        .iter()
        .map(|peer| {
            let until = peer.maintenance_until_seconds;
            serde_json::json!({
                "peer": ids::peer_from_bytes(&peer.peer_id).map(|id| id.to_string()).unwrap_or_default(),
                "state": state(peer),
                "away_in_ms": peer.left_ms,
                "maintenance_until": (until > 0).then(|| Timestamp::from_seconds(until).to_string()),
            })
        })
        .collect();
    let rebalance = status.rebalance.unwrap_or_default();
    serde_json::json!({
        "phase": phase(status),
        "reason": status.reason,
        "pins_per_second": status.pins_per_second,
        "most_per_peer": status.most_per_peer,
        "mean_item_bytes": status.mean_item_bytes,
        "under_replicated": status.under_replicated,
        "lost": status.lost,
        "unsatisfied": status.unsatisfied,
        "unconfirmed": status.unconfirmed,
        "moved": status.moved,
        "settled": status.settled,
        "rebalance": { "running": rebalance.running, "moved": rebalance.moved, "left": rebalance.left },
        "peers": peers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a person sees what stops it, what is missing and what to do.
    #[test]
    fn a_stop_is_explained() {
        let status = RepinStatusReply {
            phase: Phase::Stopped as i32,
            reason: "3 of 5 members are away".to_owned(),
            pins_per_second: 50,
            under_replicated: 7,
            lost: 1,
            most_per_peer: 100,
            mean_item_bytes: 1 << 30,
            rebalance: Some(pinfold_proto::types::Rebalance { running: true, moved: 3, left: 4 }),
            ..RepinStatusReply::default()
        };
        let shown = text(&status);
        assert!(shown.starts_with("Re-pinning: stopped (3 of 5 members are away)\n"), "{shown}");
        assert!(shown.contains("Under-replicated: 7, of them without a live copy: 1"), "{shown}");
        assert!(shown.contains("50 items a second, 100 on their way to one peer (about 1.1 GB each)\n"), "{shown}");
        assert!(shown.contains("Rebalancing: 3 moved, 4 left"), "{shown}");
        assert_eq!((&json(&status)["phase"], &json(&status)["rebalance"]["left"]), (&"stopped".into(), &4.into()));
    }
}
