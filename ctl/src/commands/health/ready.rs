//! `ctl health ready`

use pinfold_proto::api::HealthRequest;

use crate::cli::Encoding;
use crate::client::{Client, Failure, Outcome};
use crate::output;

/// Exit code 1 when something is not ready, so that a script can wait for it.
pub async fn run(client: &Client, encoding: Encoding) -> Outcome {
    let health = client.cluster().health(HealthRequest {}).await?.into_inner();
    match encoding {
        Encoding::Text => {
            for room in &health.rooms {
                let state = match (room.ready, room.reason.as_str()) {
                    (true, "") => "ready".to_owned(),
                    (true, notice) => format!("ready; {notice}"),
                    (false, reason) => format!("not ready: {reason}"),
                };
                output::print(&format!("{:<15} {state}\n", room.name))?;
            }
        }
        Encoding::Json => {
            let rooms: Vec<_> = health
                .rooms
                .iter()
                .map(|room| serde_json::json!({"name": room.name, "ready": room.ready, "reason": room.reason}))
                .collect();
            output::print_json(&serde_json::json!({"ready": health.ready, "rooms": rooms}))?;
        }
    }
    if health.ready { Ok(()) } else { Err(Failure::Exit(1)) }
}
