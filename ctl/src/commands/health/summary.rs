//! `ctl health`: how the cluster is, on one page.

use std::fmt::Write as _;

use pinfold_common::ids;
use pinfold_common::json::AlertJson;
use pinfold_proto::api::{PeerHealth, SummaryReply, SummaryRequest};

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

pub async fn run(client: &Client, encoding: Encoding) -> Outcome {
    let summary = client.cluster().summary(SummaryRequest {}).await?.into_inner();
    match encoding {
        Encoding::Text => output::print(&text(&summary)?),
        Encoding::Json => output::print_json(&json(&summary)?),
    }
}

fn text(summary: &SummaryReply) -> Outcome<String> {
    let mut text = String::new();
    let least = if summary.at_least { "at least " } else { "" };
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{name:<18}{value}");
    };
    if summary.pins_error.is_empty() {
        line("Pins:", &summary.pins);
        line("Under-replicated:", &format_args!("{least}{}", summary.under_replicated));
        line("Over-replicated:", &format_args!("{least}{}", summary.over_replicated));
        line("Lost:", &format_args!("{least}{}", summary.lost));
    } else {
        line("Pins:", &format_args!("not known: {}", summary.pins_error));
    }
    if !summary.monitor_error.is_empty() {
        line("Peers:", &format_args!("not known: {}", summary.monitor_error));
        return Ok(text);
    }
    let well = summary.peers.iter().filter(|peer| complaints(peer).is_empty()).count();
    line("Peers:", &format_args!("{}, {well} of them well", summary.peers.len()));
    line("Alerts firing:", &summary.firing.len());
    for peer in summary.peers.iter().filter(|peer| !complaints(peer).is_empty()) {
        let _ = writeln!(text, "  > {}: {}", display_name(peer)?, complaints(peer).join(", "));
    }
    for alert in &summary.firing {
        let _ = writeln!(text, "  ! {}", alert.what);
    }
    Ok(text)
}

fn display_name(peer: &PeerHealth) -> Outcome<String> {
    Ok(if peer.peername.is_empty() { ids::peer_from_bytes(&peer.peer_id)?.to_string() } else { peer.peername.clone() })
}

/// What is not as it should be with a peer.
fn complaints(peer: &PeerHealth) -> Vec<String> {
    let mut complaints = Vec::new();
    if peer.state != "healthy" {
        complaints.push(peer.state.clone());
    }
    if peer.ipfs_down {
        complaints.push("its IPFS node is down".to_owned());
    }
    complaints.extend(peer.degraded.iter().map(|room| format!("{room} does not answer")));
    complaints
}

fn json(summary: &SummaryReply) -> Outcome<serde_json::Value> {
    let peers: Vec<serde_json::Value> = summary
        .peers
        .iter()
        .map(|peer| {
            Ok(serde_json::json!({
                "id": ids::peer_from_bytes(&peer.peer_id)?.to_string(),
                "peername": peer.peername,
                "state": peer.state,
                "ipfs_down": peer.ipfs_down,
                "degraded": peer.degraded,
            }))
        })
        .collect::<Outcome<_>>()?;
    let firing: Vec<AlertJson> = summary.firing.iter().map(AlertJson::try_from).collect::<Result<_, _>>()?;
    Ok(serde_json::json!({
        "pins": summary.pins,
        "under_replicated": summary.under_replicated,
        "over_replicated": summary.over_replicated,
        "lost": summary.lost,
        "at_least": summary.at_least,
        "pins_error": summary.pins_error,
        "peers": peers,
        "monitor_error": summary.monitor_error,
        "firing": firing,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_proto::api::Alert;

    /// Goal: seed:H10: the counts are there at one look, peers are named only when something is wrong with them, and what
    /// is not known is not told as zero.
    #[test]
    fn seed_h10_one_page() {
        let well = PeerHealth { peername: "p0".to_owned(), state: "healthy".to_owned(), ..PeerHealth::default() };
        let ill = PeerHealth {
            peername: "p1".to_owned(),
            state: "suspect".to_owned(),
            ipfs_down: true,
            degraded: vec!["api-gateway".to_owned()],
            ..PeerHealth::default()
        };
        let summary = SummaryReply {
            pins: 1000,
            under_replicated: 3,
            lost: 1,
            peers: vec![well, ill],
            firing: vec![Alert { what: "no pings of p1 are heard".to_owned(), ..Alert::default() }],
            ..SummaryReply::default()
        };
        let expected = "Pins:             1000\nUnder-replicated: 3\nOver-replicated:  0\nLost:             1\n\
                        Peers:            2, 1 of them well\nAlerts firing:    1\n  \
                        > p1: suspect, its IPFS node is down, api-gateway does not answer\n  \
                        ! no pings of p1 are heard\n";
        assert_eq!(text(&summary).unwrap(), expected);
        let blind = SummaryReply {
            pins_error: "no answer".to_owned(),
            monitor_error: "no answer".to_owned(),
            ..SummaryReply::default()
        };
        assert_eq!(
            text(&blind).unwrap(),
            "Pins:             not known: no answer\nPeers:            not known: no answer\n"
        );
    }
}
