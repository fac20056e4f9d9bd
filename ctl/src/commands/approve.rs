//! `ctl approve`: unpins that wait for a person (protocols.md 8). Without arguments it lists what is held on each peer
//! and why; with CIDs, or `--all`, it lets that go ahead.

use std::collections::BTreeMap;

use pinfold_common::ids;
use pinfold_proto::api;
use pinfold_proto::types::HeldUnpin;
use pinfold_proto::types::held_unpin::Cause;
use serde_json::json;

use crate::cli::{Approve, Encoding};
use crate::client::{Client, Failure, Outcome};
use crate::output;

/// CIDs that are listed of each peer, for eyes; JSON has all.
const SHOWN: usize = 10;
/// CIDs of one request.
const CHUNK: usize = 1000;

pub async fn run(client: &Client, encoding: Encoding, arguments: Approve) -> Outcome {
    let peer = arguments.peer.map(|peer| peer.0.to_bytes()).unwrap_or_default();
    if !arguments.all && arguments.cids.is_empty() {
        return list(client, encoding, peer).await;
    }
    let cids: Vec<Vec<u8>> = arguments.cids.iter().map(|cid| cid.0.to_bytes()).collect();
    let chunks: Vec<&[Vec<u8>]> = if arguments.all { vec![&[]] } else { cids.chunks(CHUNK).collect() };
    let mut totals: BTreeMap<(String, String), (u64, String)> = BTreeMap::new();
    for cids in chunks {
        let request = api::ApproveRequest { peer: peer.clone(), cids: cids.to_vec(), all: arguments.all };
        let mut answers = client.pins().approve(request).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            let total = totals.entry((answer.peername, ids::peer_from_bytes(&answer.peer)?.to_string())).or_default();
            total.0 += answer.approved;
            if !answer.error.is_empty() {
                total.1 = answer.error;
            }
        }
    }
    let is_whole = totals.values().all(|(_, error)| error.is_empty());
    match encoding {
        Encoding::Json => {
            let peers: Vec<_> = totals
                .iter()
                .map(|((name, id), (approved, error))| {
                    json!({"peer": id, "peername": name, "approved": approved, "error": error})
                })
                .collect();
            output::print_json(&peers)?;
        }
        Encoding::Text => {
            for ((name, id), (approved, error)) in &totals {
                let name = if name.is_empty() { id } else { name };
                let end = if error.is_empty() { String::new() } else { format!(" | ERROR: {error}") };
                output::print(&format!("{name}: {approved} unpins go ahead{end}\n"))?;
            }
        }
    }
    if is_whole { Ok(()) } else { Err(Failure::Exit(2)) }
}

/// What is held on one peer.
#[derive(Default)]
struct Held {
    peername: String,
    count: usize,
    by_cause: BTreeMap<String, usize>,
    /// All for JSON, the first few for eyes.
    items: Vec<HeldUnpin>,
    error: String,
}

async fn list(client: &Client, encoding: Encoding, peer: Vec<u8>) -> Outcome {
    let mut replies = client.pins().held(api::HeldRequest { peer }).await?.into_inner();
    let mut peers: BTreeMap<String, Held> = BTreeMap::new();
    while let Some(reply) = replies.message().await? {
        let held = peers.entry(ids::peer_from_bytes(&reply.peer)?.to_string()).or_default();
        held.peername = reply.peername;
        if !reply.error.is_empty() {
            held.error = reply.error;
        }
        held.count += reply.items.len();
        for item in reply.items {
            *held.by_cause.entry(item.why.clone()).or_default() += 1;
            if encoding == Encoding::Json || held.items.len() < SHOWN {
                held.items.push(item);
            }
        }
    }
    let is_whole = peers.values().all(|held| held.error.is_empty());
    match encoding {
        Encoding::Json => {
            let list: Result<Vec<_>, Failure> = peers.iter().map(|(id, held)| json_of(id, held)).collect();
            output::print_json(&list?)?;
        }
        Encoding::Text => output::print(&text_of(&peers)?)?,
    }
    if is_whole { Ok(()) } else { Err(Failure::Exit(2)) }
}

fn json_of(id: &str, held: &Held) -> Outcome<serde_json::Value> {
    let mut items = Vec::with_capacity(held.items.len());
    for item in &held.items {
        let cause = match Cause::try_from(item.cause) {
            Ok(Cause::Guard) => "guard",
            Ok(Cause::Adopted) => "adopted",
            Ok(Cause::Unspecified) | Err(_) => "",
        };
        let cid = ids::cid_from_bytes(&item.cid)?.to_string();
        items.push(json!({"cid": cid, "name": item.name, "cause": cause, "why": item.why}));
    }
    Ok(json!({"peer": id, "peername": held.peername, "held": items, "error": held.error}))
}

fn text_of(peers: &BTreeMap<String, Held>) -> Outcome<String> {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (id, held) in peers {
        let name = if held.peername.is_empty() { id } else { &held.peername };
        if !held.error.is_empty() {
            let _ = writeln!(text, "{name} | ERROR: {}", held.error);
        }
        if held.count == 0 {
            continue;
        }
        let _ = writeln!(text, "{name}: {} unpins are held", held.count);
        for (why, count) in &held.by_cause {
            let _ = writeln!(text, "  {count}: {why}");
        }
        for item in &held.items {
            let cid = ids::cid_from_bytes(&item.cid)?;
            let name = if item.name.is_empty() { String::new() } else { format!(" | {}", item.name) };
            let _ = writeln!(text, "    - {cid}{name}");
        }
        if held.count > held.items.len() {
            let _ = writeln!(text, "    … and {} more: --enc json lists all", held.count - held.items.len());
        }
    }
    if peers.values().all(|held| held.count == 0) {
        text.push_str("Nothing is held.\n");
    } else {
        text.push_str(
            "These pins are no longer wanted by the pinset. If that is right, `ctl approve <cid>…` or `ctl approve \
             --all` lets their unpins go ahead; until then they stay.\n",
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the list names each peer with what is held and why, cuts long lists for eyes, and says what to do.
    #[test]
    fn held_list() {
        let cid = ids::parse_cid("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG").unwrap().to_bytes();
        let item = HeldUnpin { cid, name: "n".to_owned(), cause: Cause::Guard as i32, why: "too many".to_owned() };
        let held = Held {
            peername: "peer0".to_owned(),
            count: 2000,
            by_cause: [("too many".to_owned(), 2000)].into(),
            items: vec![item; SHOWN],
            error: String::new(),
        };
        let peers = [("12D3".to_owned(), held), ("12D4".to_owned(), Held::default())].into();
        let text = text_of(&peers).unwrap();
        assert!(text.starts_with("peer0: 2000 unpins are held\n  2000: too many\n    - QmYw"), "{text}");
        assert!(text.contains("1990 more") && text.contains("ctl approve --all"), "{text}");
        assert!(!text.contains("12D4"), "{text}");
        assert_eq!(text_of(&BTreeMap::new()).unwrap(), "Nothing is held.\n");
    }
}
