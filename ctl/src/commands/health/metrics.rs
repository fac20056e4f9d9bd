//! `ctl health metrics [name]`

use pinfold_common::ids;
use pinfold_common::json::MetricJson;
use pinfold_common::metric::FREESPACE;
use pinfold_proto::api::{MetricNamesRequest, MetricsRequest};

use crate::cli::Encoding;
use crate::client::{Client, Outcome};
use crate::output;

pub async fn run(client: &Client, encoding: Encoding, name: Option<String>) -> Outcome {
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
            Ok(bytes) if metric.name == FREESPACE && bytes > 0 => output::size_text(bytes),
            _ => metric.value.clone(),
        };
        let left_ms = i64::try_from(metric.ttl_ms).unwrap_or(i64::MAX);
        let expires = output::relative_text(left_ms);
        output::print(&format!("{peer} | {}: {value} | Expires in: {expires}\n", metric.name))?;
    }
    Ok(())
}
