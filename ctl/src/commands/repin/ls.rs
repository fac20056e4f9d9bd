//! `ctl repin ls`

use pinfold_common::ids;
use pinfold_proto::types::UnsatisfiedCall;

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

/// All that the leader has listed, page by page; JSON is one object a line.
pub async fn run(client: &Client, encoding: Encoding) -> Outcome {
    let mut after = Vec::new();
    let mut shown = 0;
    loop {
        let reply = client.repin().unsatisfied(UnsatisfiedCall { after, limit: 0 }).await?.into_inner();
        for item in &reply.items {
            let cid = ids::cid_from_bytes(&item.cid)?.to_string();
            let (live, needed, candidates) = (item.live, item.needed, item.candidates);
            match encoding {
                Encoding::Text => output::print(&format!(
                    "{cid} | Copies: {live} of {needed} | Candidates: {candidates} | {}\n",
                    item.reason
                ))?,
                Encoding::Json => output::print_json(&serde_json::json!({
                    "cid": cid, "live": live, "needed": needed, "candidates": candidates, "reason": item.reason,
                }))?,
            }
        }
        shown += reply.items.len() as u64;
        match reply.items.last() {
            Some(last) if reply.more => after = last.cid.clone(),
            Some(_) | None => {
                if shown < reply.total {
                    eprintln!("{} more are not listed", reply.total - shown);
                }
                return Ok(());
            }
        }
    }
}
