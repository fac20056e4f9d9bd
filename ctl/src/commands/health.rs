//! `ctl health ready|metrics`

use pinfold_common::ids;
use pinfold_common::json::MetricJson;
use pinfold_proto::api::{HealthRequest, MetricNamesRequest, MetricsRequest};

use crate::cli::Encoding;
use crate::client::{Client, Failure, Outcome};
use crate::output;

/// Exit code 1 when something is not ready, so that a script can wait for it.
pub async fn ready(client: &Client, encoding: Encoding) -> Outcome {
    let health = client.cluster().health(HealthRequest {}).await?.into_inner();
    match encoding {
        Encoding::Text => {
            for room in &health.rooms {
                let state = if room.ready { "ready".to_owned() } else { format!("not ready: {}", room.reason) };
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

pub async fn metrics(client: &Client, encoding: Encoding, name: Option<String>) -> Outcome {
    let Some(name) = name else {
        let names = client.cluster().metric_names(MetricNamesRequest {}).await?.into_inner().names;
        return match encoding {
            Encoding::Json => output::print_json(&names),
            Encoding::Text => names.iter().try_for_each(|name| output::print(&format!("{name}\n"))),
        };
    };
    let metrics = client.cluster().metrics(MetricsRequest { name }).await?.into_inner().metrics;
    if encoding == Encoding::Json {
        let list: Result<Vec<MetricJson>, _> = metrics.iter().map(MetricJson::try_from).collect();
        return output::print_json(&list?);
    }
    for metric in &metrics {
        let peer = ids::peer_from_bytes(&metric.peer)?;
        let value = match u64::try_from(metric.weight) {
            Ok(bytes) if metric.name == "freespace" && bytes > 0 => output::size_text(bytes),
            _ => metric.value.clone(),
        };
        let seconds = metric.ttl_ms / 1000;
        let expires = if seconds == 0 { "now".to_owned() } else { format!("{seconds} seconds from now") };
        output::print(&format!("{peer} | {}: {value} | Expires in: {expires}\n", metric.name))?;
    }
    Ok(())
}
