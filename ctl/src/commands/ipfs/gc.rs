//! `ctl ipfs gc`: garbage collection of all IPFS nodes at once, or of the contacted peer's. Text as in spec/ctl.md A.4,
//! peer by peer in the order of their IDs, as soon as all are done; how far they are is told on stderr meanwhile.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use pinfold_common::ids;
use pinfold_common::json::{GcKeyJson, GlobalRepoGcJson, RepoGcJson};
use pinfold_proto::api::{CollectGarbageReply, CollectGarbageRequest};

use crate::cli::{Encoding, IpfsGc};
use crate::client::{Client, Failure, Outcome};
use crate::output;

/// Between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

pub async fn run(client: &Client, encoding: Encoding, arguments: IpfsGc) -> Outcome {
    let request = CollectGarbageRequest { local: arguments.local };
    let mut replies = client.cluster().collect_garbage(request).await?.into_inner();
    let mut parts: BTreeMap<String, RepoGcJson> = BTreeMap::new();
    let mut told = Instant::now();
    while let Some(reply) = replies.message().await? {
        take(&mut parts, reply)?;
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            let removed: usize = parts.values().map(|part| part.keys.len()).sum();
            eprintln!("{removed} blocks removed so far");
        }
    }
    let failed = parts.values().any(|part| !part.error.is_empty());
    match encoding {
        Encoding::Json => output::print_json(&GlobalRepoGcJson { peer_map: parts })?,
        Encoding::Text => output::print(&text(&parts))?,
    }
    if failed { Err(Failure::Exit(2)) } else { Ok(()) }
}

fn take(parts: &mut BTreeMap<String, RepoGcJson>, reply: CollectGarbageReply) -> Outcome {
    let peer = ids::peer_from_bytes(&reply.peer)?.to_string();
    let part = parts.entry(peer.clone()).or_insert_with(|| RepoGcJson {
        peer,
        peername: reply.peername,
        keys: Vec::new(),
        error: String::new(),
    });
    for cid in &reply.removed {
        let key = Some(ids::cid_from_bytes(cid)?.to_string());
        part.keys.push(GcKeyJson { key, error: String::new() });
    }
    part.keys.extend(reply.errors.into_iter().map(|error| GcKeyJson { key: None, error }));
    if !reply.error.is_empty() {
        part.error = reply.error;
    }
    Ok(())
}

fn text(parts: &BTreeMap<String, RepoGcJson>) -> String {
    let mut text = String::new();
    for (peer, part) in parts {
        let name = if part.peername.is_empty() { peer } else { &part.peername };
        if part.error.is_empty() {
            let _ = writeln!(text, "{name:<15}");
        } else {
            let _ = writeln!(text, "{name:<15} | ERROR: {}", part.error);
        }
        text.push_str("  > CIDs:\n");
        for key in &part.keys {
            let line = match &key.key {
                Some(cid) => cid.clone(),
                None => format!("ERROR: {}", key.error),
            };
            let _ = writeln!(text, "    - {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the original's text: names padded, errors of peers and of keys each in their place.
    #[test]
    fn gc_text() {
        let key = |key: Option<&str>, error: &str| GcKeyJson { key: key.map(str::to_owned), error: error.to_owned() };
        let part = |name: &str, keys, error: &str| RepoGcJson {
            peer: "12D3".to_owned(),
            peername: name.to_owned(),
            keys,
            error: error.to_owned(),
        };
        let parts = [
            ("a".to_owned(), part("node0", vec![key(Some("Qm1"), ""), key(None, "busy")], "")),
            ("b".to_owned(), part("", Vec::new(), "down")),
        ]
        .into();
        let expected =
            format!("{:<15}\n  > CIDs:\n    - Qm1\n    - ERROR: busy\n{:<15} | ERROR: down\n  > CIDs:\n", "node0", "b");
        assert_eq!(text(&parts), expected);
    }
}
