//! `ctl peers maintenance <id> --for 2h`

use std::time::Duration;

use pinfold_common::PeerId;
use pinfold_common::time::Timestamp;
use pinfold_proto::types::MaintainCall;

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

/// Without a duration the maintenance is over.
pub async fn run(client: &Client, encoding: Encoding, peer: &PeerId, duration: Option<Duration>) -> Outcome {
    let seconds = duration.map_or(0, |duration| duration.as_secs().max(1));
    let call = MaintainCall { peer_id: peer.to_bytes(), seconds };
    let until = client.repin().maintain(call).await?.into_inner().until_seconds;
    let time = Timestamp::from_seconds(until).to_string();
    match encoding {
        Encoding::Json => {
            let shown = if until == 0 { None } else { Some(time) };
            output::print_json(&serde_json::json!({"peer": peer.to_string(), "maintenance_until": shown}))
        }
        Encoding::Text if until == 0 => output::print(&format!("{peer} | not in maintenance\n")),
        Encoding::Text => output::print(&format!("{peer} | in maintenance until {time}\n")),
    }
}
