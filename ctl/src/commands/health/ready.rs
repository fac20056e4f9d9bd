//! `ctl health ready`

use pinfold_common::time::Timestamp;
use pinfold_proto::api::HealthRequest;
use pinfold_proto::types::Backup;

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
            let backup = match &health.last_backup {
                Some(backup) => format!("{} ago ({})", age(backup), backup.name),
                None => "none".to_owned(),
            };
            output::print(&format!("{:<15} {backup}\n", "last backup"))?;
        }
        Encoding::Json => {
            let rooms: Vec<_> = health
                .rooms
                .iter()
                .map(|room| serde_json::json!({"name": room.name, "ready": room.ready, "reason": room.reason}))
                .collect();
            let backup = health.last_backup.as_ref().map(|backup| {
                serde_json::json!({"name": backup.name, "age_seconds": age_seconds(backup), "pins": backup.pins})
            });
            output::print_json(&serde_json::json!({"ready": health.ready, "rooms": rooms, "last_backup": backup}))?;
        }
    }
    if health.ready { Ok(()) } else { Err(Failure::Exit(1)) }
}

fn age_seconds(backup: &Backup) -> u64 {
    let created = backup.created.map_or(0, |at| at.seconds);
    u64::try_from(Timestamp::now().seconds.saturating_sub(created)).unwrap_or(0)
}

fn age(backup: &Backup) -> String {
    match age_seconds(backup) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}
