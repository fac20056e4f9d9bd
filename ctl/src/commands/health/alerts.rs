//! `ctl health alerts`

use pinfold_common::ids;
use pinfold_common::json::AlertJson;
use pinfold_common::time::Timestamp;
use pinfold_proto::api::{Alert, AlertsRequest};

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

pub async fn run(client: &Client, encoding: Encoding) -> Outcome {
    let reply = client.cluster().alerts(AlertsRequest {}).await?.into_inner();
    if encoding == Encoding::Json {
        let list: Result<Vec<AlertJson>, _> = reply.alerts.iter().map(AlertJson::try_from).collect();
        return output::print_json(&list?);
    }
    // Their clock, not that of the one who looks.
    let now = reply.now.map_or_else(Timestamp::now, Timestamp::from);
    for alert in &reply.alerts {
        output::print(&line(alert, now)?)?;
    }
    Ok(())
}

/// The original's line (spec/ctl.md A.4), then what it does not say.
fn line(alert: &Alert, now: Timestamp) -> Outcome<String> {
    let peer = ids::peer_from_bytes(&alert.peer_id)?;
    let name = alert.subject.strip_prefix("metric ").unwrap_or(&alert.subject);
    let ago = |time: Timestamp| output::relative_text((time.unix_nanos().saturating_sub(now.unix_nanos())) / 1_000_000);
    let triggered = ago(alert.triggered_at.map(Timestamp::from).unwrap_or_default());
    let state = match alert.resolved_at {
        Some(at) => format!("Resolved at: {}", ago(at.into())),
        None => "Firing".to_owned(),
    };
    let metric = alert.metric.clone().unwrap_or_default();
    // What never came never expired.
    let expired = match metric.received_at_ns {
        0 => "never sent".to_owned(),
        received => {
            let life = i64::try_from(metric.ttl_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
            ago(Timestamp::from_unix_nanos(received.saturating_add(life)))
        }
    };
    Ok(format!("{peer}: {name}. Expired at: {expired}. Triggered at: {triggered}. {state}. {}\n", alert.what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_proto::types::Metric;

    /// Goal: one incident is one line, the original's words first.
    #[test]
    fn seed_g5_alert_lines() {
        let peer = ids::parse_peer_id("12D3KooWHAxxbkpc2zvJip5314vac55wkTwnGf1jU1Xdn9MPh1jU").unwrap();
        let now = Timestamp::from_seconds(10_000);
        let mut alert = Alert {
            peer_id: peer.to_bytes(),
            subject: "metric freespace".to_owned(),
            what: "freespace of p1 is no longer renewed".to_owned(),
            metric: Some(Metric { received_at_ns: 9_910_000_000_000, ttl_ms: 30_000, ..Metric::default() }),
            triggered_at: Some(Timestamp::from_seconds(9_950).into()),
            resolved_at: None,
        };
        let expected = "Expired at: 1 minute ago. Triggered at: 50 seconds ago. Firing. freespace of p1";
        assert!(line(&alert, now).unwrap().starts_with(&format!("{peer}: freespace. {expected}")));
        alert.resolved_at = Some(Timestamp::from_seconds(9_990).into());
        alert.metric = None;
        let text = line(&alert, now).unwrap();
        assert!(text.contains("Expired at: never sent.") && text.contains("Resolved at: 10 seconds ago."), "{text}");
    }
}
