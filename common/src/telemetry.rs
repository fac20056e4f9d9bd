//! What a process tells about itself: log lines to stderr, traces over OTLP when there is a collector, counters for
//! Prometheus. A collector that is away costs traces and nothing else.

use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::net::TcpListener;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::shutdown::Shutdown;
use crate::tls::Room;
use crate::{Error, Result};

/// What traces get at the end of the process.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);
/// One export to the collector.
const EXPORT_DEADLINE: Duration = Duration::from_secs(5);
/// Histograms are folded so often, so that they do not grow between scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Open scrapes get so long when the process stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);
/// Upper bounds of all histograms, in seconds.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// The telemetry options of one process.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// `info`, or a list like `info,raft:debug` (spec/ctl.md); `RUST_LOG`, when set, wins.
    pub level: String,
    pub json: bool,
    /// `http://collector:4317`; none: no traces leave the process.
    pub otlp_endpoint: Option<String>,
    /// Part of the traces that are kept, 0 to 1, decided where a trace starts.
    pub sampling: f64,
    pub service_name: String,
}

impl Default for Telemetry {
    fn default() -> Telemetry {
        Telemetry {
            level: "info".to_owned(),
            json: false,
            otlp_endpoint: None,
            sampling: 1.0,
            service_name: "pinfold".to_owned(),
        }
    }
}

/// Keeps telemetry alive; flushes when dropped.
#[derive(Debug)]
#[must_use = "traces end when the guard is dropped"]
pub struct Guard {
    traces: Option<Traces>,
}

/// The exporter's own runtime: it works in `main` before there is one, and its end waits for no busy one.
#[derive(Debug)]
struct Traces {
    provider: SdkTracerProvider,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(traces) = &mut self.traces {
            // The collector may be away; then the last traces are lost, as all others were.
            let _ = traces.provider.shutdown_with_timeout(FLUSH_DEADLINE);
            if let Some(runtime) = traces.runtime.take() {
                runtime.shutdown_background();
            }
        }
    }
}

/// Sets up logging, traces and counters for this process. Once per process.
pub fn init(room: Room, options: &Telemetry) -> Result<Guard> {
    let spec = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|value| !value.is_empty());
    let directives = match spec {
        Some(directives) => directives,
        None => directives(&options.level)?,
    };
    let filter = EnvFilter::try_new(&directives)
        .map_err(|error| Error::invalid(format!("log level {directives:?}: {error}")))?;
    recorder()?;
    let traces = match &options.otlp_endpoint {
        Some(endpoint) => Some(export_traces(room, options, endpoint)?),
        None => None,
    };

    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(wants_colour());
    let lines = if options.json { lines.json().boxed() } else { lines.boxed() };
    // What is traced does not depend on what is logged.
    let spans = traces.as_ref().map(|traces| {
        tracing_opentelemetry::layer()
            .with_tracer(traces.provider.tracer(room.name()))
            .with_filter(tracing_subscriber::filter::LevelFilter::INFO)
    });
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(spans)
        .try_init()
        .map_err(|error| Error::internal(format!("start logging: {error}")))?;
    Ok(Guard { traces })
}

fn wants_colour() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let plain = set("NO_COLOR") || std::env::var("IPFS_LOGGING_FMT").is_ok_and(|format| format == "nocolor");
    !plain && std::io::stderr().is_terminal()
}

fn export_traces(room: Room, options: &Telemetry, endpoint: &str) -> Result<Traces> {
    let failed = |error: &dyn std::fmt::Display| Error::invalid(format!("tracing: export to {endpoint}: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("traces")
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?;
    let entered = runtime.enter();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_DEADLINE)
        .build()
        .map_err(|error| failed(&error))?;
    let resource = Resource::builder()
        .with_service_name(options.service_name.clone())
        .with_attribute(opentelemetry::KeyValue::new("pinfold.room", room.name()))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(options.sampling))))
        .with_resource(resource)
        .build();
    drop(entered);
    Ok(Traces { provider, runtime: Some(runtime) })
}

/// The filter of a log level specification: `level` or `component:level`, comma-separated. Components of the original
/// lead to the code that does their work here; any other component is taken as a module's path.
fn directives(spec: &str) -> Result<String> {
    let mut out = Vec::new();
    for item in spec.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match item.split_once([':', '=']) {
            None => {
                let level = level(item)?;
                if matches!(level, "debug" | "trace") {
                    // Their detail drowns ours; ask for it by name.
                    out.extend(
                        ["h2=info", "hyper=info", "hyper_util=info", "tower=info", "rustls=info", "sqlx=info"]
                            .map(str::to_owned),
                    );
                }
                out.push(level.to_owned());
            }
            Some((component, at)) => {
                let at = level(at)?;
                let component = component.trim();
                let targets = targets(component);
                if targets.is_empty() {
                    out.push(format!("{}={at}", component.replace('-', "_")));
                }
                out.extend(targets.iter().map(|target| format!("{target}={at}")));
            }
        }
    }
    if out.is_empty() {
        out.push("info".to_owned());
    }
    // Raft's library tells each step of its own at info; that is for `raft:info`.
    let is_named = |out: &[String], target: &str| out.iter().any(|directive| directive.starts_with(target));
    if out.iter().any(|directive| directive == "info" || directive == "debug") && !is_named(&out, "openraft") {
        out.push("openraft=error".to_owned());
    }
    Ok(out.join(","))
}

fn level(text: &str) -> Result<&'static str> {
    match text.trim().to_ascii_lowercase().as_str() {
        "trace" => Ok("trace"),
        "debug" => Ok("debug"),
        "info" => Ok("info"),
        "warn" | "warning" => Ok("warn"),
        // The original's levels above error end its process; there is none above error here.
        "error" | "critical" | "dpanic" | "panic" | "fatal" => Ok("error"),
        "off" => Ok("off"),
        _ => Err(Error::invalid(format!(
            "log level {:?}: not one of debug, info, warn, error, or a list of component:level",
            crate::ids::shorten(text)
        ))),
    }
}

fn targets(component: &str) -> &'static [&'static str] {
    match component {
        "service" | "cluster" => &["consensus_svc", "monitor_svc", "ipfs_connector", "api_gateway", "pinfold_common"],
        "restapi" | "restapilog" => &["api_gateway::rest"],
        "pinsvcapi" | "pinsvcapilog" => &["api_gateway::pinsvc"],
        "ipfsproxy" | "ipfsproxylog" => &["api_gateway::proxy"],
        "adder" => &["api_gateway::adder"],
        "ipfshttp" => &["ipfs_connector::node"],
        "pintracker" | "optracker" => &["ipfs_connector::tracker"],
        "diskinfo" | "tags" | "numpin" | "pinqueue" => &["ipfs_connector::informer"],
        "monitor" => &["monitor_svc"],
        "allocator" => &["monitor_svc::allocator"],
        "raft" => &["consensus_svc::raft", "openraft"],
        "dsstate" => &["consensus_svc::store", "consensus_svc::pinset"],
        "config" => &["pinfold_common::config"],
        _ => &[],
    }
}

/// The process's recorder, installed by whoever asks first.
fn recorder() -> Result<&'static PrometheusHandle> {
    static RECORDER: OnceLock<std::result::Result<PrometheusHandle, String>> = OnceLock::new();
    let installed = RECORDER.get_or_init(|| {
        PrometheusBuilder::new()
            .set_buckets(&BUCKETS)
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|error| error.to_string())
    });
    installed.as_ref().map_err(|error| Error::internal(format!("start metrics: {error}")))
}

/// What `GET /metrics` answers, in the text format of Prometheus.
pub fn render_metrics() -> Result<String> {
    Ok(recorder()?.render())
}

/// Serves `GET /metrics` until `shutdown`.
pub async fn serve_metrics(listener: TcpListener, shutdown: Shutdown) -> Result<()> {
    let handle = recorder()?;
    let page = async || ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], handle.render());
    let app = axum::Router::new().route("/metrics", get(page));
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            handle.run_upkeep();
        }
    };
    let overdue = async {
        shutdown.triggered().await;
        tokio::time::sleep(DRAIN_DEADLINE).await;
    };
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(shutdown.triggered()).into_future() => {
            served.map_err(|error| Error::internal(format!("serve metrics: {error}")))
        }
        () = upkeep => Ok(()),
        () = overdue => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the original's level specifications become filters, and nonsense is refused with what would be right.
    #[test]
    fn levels_of_the_original() {
        assert_eq!(directives("info").unwrap(), "info,openraft=error");
        assert_eq!(directives("").unwrap(), "info,openraft=error");
        assert_eq!(directives("WARNING, pintracker:debug").unwrap(), "warn,ipfs_connector::tracker=debug");
        assert_eq!(
            directives("error,raft:info,api-gateway:debug").unwrap(),
            "error,consensus_svc::raft=info,openraft=info,api_gateway=debug"
        );
        for spec in ["info", "debug", "error,cluster:debug,crdt:fatal"] {
            EnvFilter::try_new(directives(spec).unwrap()).unwrap();
        }
        assert!(directives("loud").unwrap_err().message.contains("loud"));
        assert!(directives("raft:loud").is_err());
    }

    /// Goal: a collector that is away neither fails the start nor holds up the end.
    #[test]
    fn no_collector_needed() {
        let options = Telemetry { otlp_endpoint: Some("http://127.0.0.1:1".into()), ..Telemetry::default() };
        let guard = init(Room::Monitor, &options).unwrap();
        tracing::info_span!("lost").in_scope(|| tracing::info!("nobody listens"));
        let started = std::time::Instant::now();
        drop(guard);
        assert!(started.elapsed() < FLUSH_DEADLINE + Duration::from_secs(3));
    }

    /// Goal: a span that ended goes to the collector over gRPC, at the latest when the guard is dropped.
    #[test]
    fn the_last_span_is_sent() {
        use opentelemetry::trace::Tracer as _;
        use std::io::Read as _;
        let collector = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        let heard = std::thread::spawn(move || {
            let mut preface = [0; 24];
            collector.accept().unwrap().0.read_exact(&mut preface).unwrap();
            preface
        });
        let traces = export_traces(Room::Monitor, &Telemetry::default(), &endpoint).unwrap();
        traces.provider.tracer("test").in_span("kept", |_| ());
        drop(Guard { traces: Some(traces) });
        assert_eq!(&heard.join().unwrap(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    }

    /// Goal: counters of this process are on the page, and the page ends with the process.
    #[tokio::test]
    async fn counters_are_served() {
        let shutdown = Shutdown::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap());
        let server = tokio::spawn(serve_metrics(listener, shutdown.clone()));
        recorder().unwrap();
        metrics::counter!("pinfold_test_total").increment(3);
        let page = reqwest::get(&url).await.unwrap().text().await.unwrap();
        assert!(page.contains("pinfold_test_total 3"), "{page}");
        shutdown.trigger();
        server.await.unwrap().unwrap();
    }
}
