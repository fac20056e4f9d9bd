//! Every configuration key: its type, default, and whether it means something here. `init` writes from this table, the
//! loader checks against it, `CLUSTER_…` variables are named after it. Sources: spec/config.md, protocols.md 1 and 11.

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// One string or a list of them.
    Texts,
    /// Go syntax, `1m30s`.
    Duration,
    Int,
    /// 0 or more.
    Uint,
    Number,
    Bool,
    Multiaddr,
    /// One multiaddress or a list of them.
    Multiaddrs,
    /// Name to text, or null.
    Map,
    /// Name to list of texts.
    Lists,
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Honoured; `init` writes it.
    Shown,
    /// Honoured; absent unless an operator writes it.
    Hidden,
    /// Known to the original and without meaning here: accepted, reported once.
    Ignored,
    /// An older spelling of another key.
    Alias(&'static str),
}

pub struct Key {
    pub path: &'static str,
    pub kind: Kind,
    /// JSON text.
    pub default: &'static str,
    pub usage: Use,
}

const fn key(path: &'static str, kind: Kind, default: &'static str, usage: Use) -> Key {
    Key { path, kind, default, usage }
}

use Kind::{Bool, Duration, Int, Lists, Map, Multiaddr, Multiaddrs, Number, Text, Texts, Uint};
use Use::{Alias, Hidden, Ignored, Shown};

/// Whole sections that only the original gives a meaning.
pub const IGNORED_SECTIONS: &[&str] = &[
    "cluster.connection_manager",
    "cluster.resource_manager",
    "cluster.pubsub",
    "consensus.crdt",
    "datastore",
    "state",
];

/// Objects whose presence switches a component on (spec/config.md 1.4).
pub const SECTIONS: &[&str] = &[
    "cluster",
    "consensus",
    "consensus.raft",
    "services",
    "services.consensus",
    "services.monitor",
    "services.connector",
    "services.gateway",
    "api",
    "api.restapi",
    "api.pinsvcapi",
    "api.ipfsproxy",
    "ipfs",
    "ipfs.embedded",
    "ipfs_connector",
    "ipfs_connector.ipfshttp",
    "pin_tracker",
    "pin_tracker.stateless",
    "monitor",
    "monitor.pubsubmon",
    "allocator",
    "allocator.balanced",
    "informer",
    "informer.disk",
    "informer.tags",
    "informer.pinqueue",
    "informer.numpin",
    "observations",
    "observations.metrics",
    "observations.tracing",
    "repin",
    "backup",
];

/// Older names of whole sections.
pub const SECTION_ALIASES: &[(&str, &str)] =
    &[("monitor.monbasic", "monitor.pubsubmon"), ("pin_tracker.maptracker", "pin_tracker.stateless")];

pub const KEYS: &[Key] = &[
    key("source", Text, "\"\"", Hidden),
    key("cluster.peername", Text, "\"\"", Shown),
    key("cluster.secret", Text, "\"\"", Shown),
    key("cluster.leave_on_shutdown", Bool, "false", Shown),
    key("cluster.leave_timeout", Duration, "\"5m0s\"", Hidden),
    key("cluster.listen_multiaddress", Multiaddrs, "[]", Hidden),
    key("cluster.announce_multiaddress", Multiaddrs, "[]", Hidden),
    key("cluster.no_announce_multiaddress", Texts, "[]", Ignored),
    key("cluster.enable_relay_hop", Bool, "true", Ignored),
    key("cluster.dial_peer_timeout", Duration, "\"3s\"", Shown),
    key("cluster.state_sync_interval", Duration, "\"5m0s\"", Shown),
    key("cluster.ipfs_sync_interval", Duration, "\"130s\"", Ignored),
    key("cluster.pin_recover_interval", Duration, "\"12m0s\"", Shown),
    key("cluster.replication_factor_min", Int, "-1", Shown),
    key("cluster.replication_factor_max", Int, "-1", Shown),
    key("cluster.monitor_ping_interval", Duration, "\"15s\"", Shown),
    key("cluster.monitoring_ping_interval", Duration, "\"15s\"", Alias("cluster.monitor_ping_interval")),
    key("cluster.peer_watch_interval", Duration, "\"5s\"", Shown),
    key("cluster.mdns_interval", Duration, "\"10s\"", Ignored),
    key("cluster.pin_only_on_trusted_peers", Bool, "false", Ignored),
    key("cluster.pin_only_on_untrusted_peers", Bool, "false", Ignored),
    key("cluster.disable_repinning", Bool, "false", Shown),
    key("cluster.follower_mode", Bool, "false", Hidden),
    key("cluster.peerstore_file", Text, "\"peerstore\"", Hidden),
    key("cluster.peer_addresses", Multiaddrs, "[]", Shown),
    key("cluster.peers", Texts, "[]", Ignored),
    key("cluster.bootstrap", Texts, "[]", Ignored),
    key("cluster.id", Text, "\"\"", Ignored),
    key("cluster.private_key", Text, "\"\"", Ignored),
    key("consensus.raft.data_folder", Text, "\"\"", Hidden),
    key("consensus.raft.init_peerset", Texts, "[]", Shown),
    key("consensus.raft.wait_for_leader_timeout", Duration, "\"15s\"", Shown),
    key("consensus.raft.network_timeout", Duration, "\"10s\"", Shown),
    key("consensus.raft.commit_retries", Uint, "1", Shown),
    key("consensus.raft.commit_retry_delay", Duration, "\"200ms\"", Shown),
    key("consensus.raft.backups_rotate", Uint, "6", Shown),
    key("consensus.raft.datastore_namespace", Text, "\"/r\"", Ignored),
    // Left out by `init`: absent means 100 ms heartbeats and elections after 300 to 450 ms (protocols.md 11).
    key("consensus.raft.heartbeat_timeout", Duration, "\"100ms\"", Hidden),
    key("consensus.raft.election_timeout", Duration, "\"300ms\"", Hidden),
    key("consensus.raft.commit_timeout", Duration, "\"50ms\"", Ignored),
    key("consensus.raft.max_append_entries", Uint, "512", Hidden),
    key("consensus.raft.trailing_logs", Uint, "100000", Hidden),
    key("consensus.raft.snapshot_interval", Duration, "\"2m0s\"", Shown),
    key("consensus.raft.snapshot_threshold", Uint, "8192", Shown),
    key("consensus.raft.leader_lease_timeout", Duration, "\"500ms\"", Hidden),
    key("consensus.raft.max_voters", Uint, "7", Hidden),
    // Where backups go, how often one is made by itself (0: never), and how many of those are kept.
    key("backup.folder", Text, "\"backups\"", Hidden),
    key("backup.interval", Duration, "\"24h0m0s\"", Shown),
    key("backup.keep", Uint, "7", Shown),
    key("services.consensus.listen_multiaddress", Multiaddr, "\"/ip4/127.0.0.1/tcp/9096\"", Shown),
    key("services.consensus.announce_multiaddress", Multiaddr, "\"\"", Hidden),
    key("services.consensus.metrics_multiaddress", Multiaddr, "\"/ip4/127.0.0.1/tcp/8888\"", Hidden),
    key("services.monitor.listen_multiaddress", Multiaddr, "\"/ip4/127.0.0.1/tcp/9098\"", Shown),
    key("services.monitor.announce_multiaddress", Multiaddr, "\"\"", Hidden),
    key("services.monitor.metrics_multiaddress", Multiaddr, "\"/ip4/127.0.0.1/tcp/8889\"", Hidden),
    key("services.connector.listen_multiaddress", Multiaddr, "\"/ip4/127.0.0.1/tcp/9099\"", Shown),
    key("services.connector.announce_multiaddress", Multiaddr, "\"\"", Hidden),
    key("services.connector.metrics_multiaddress", Multiaddr, "\"/ip4/127.0.0.1/tcp/8890\"", Hidden),
    key("services.gateway.announce_multiaddress", Multiaddr, "\"\"", Hidden),
    key("services.gateway.metrics_multiaddress", Multiaddr, "\"/ip4/127.0.0.1/tcp/8891\"", Hidden),
    key("api.allow_insecure_listen", Bool, "false", Hidden),
    key("api.restapi.http_listen_multiaddress", Multiaddrs, "\"/ip4/127.0.0.1/tcp/9094\"", Shown),
    key("api.restapi.ssl_cert_file", Text, "\"\"", Hidden),
    key("api.restapi.ssl_key_file", Text, "\"\"", Hidden),
    key("api.restapi.read_timeout", Duration, "\"0s\"", Shown),
    key("api.restapi.read_header_timeout", Duration, "\"5s\"", Shown),
    key("api.restapi.write_timeout", Duration, "\"0s\"", Shown),
    key("api.restapi.idle_timeout", Duration, "\"2m0s\"", Shown),
    key("api.restapi.max_header_bytes", Uint, "4096", Shown),
    key("api.restapi.libp2p_listen_multiaddress", Multiaddrs, "[]", Ignored),
    key("api.restapi.id", Text, "\"\"", Ignored),
    key("api.restapi.private_key", Text, "\"\"", Ignored),
    key("api.restapi.basic_auth_credentials", Map, "null", Shown),
    key("api.restapi.http_log_file", Text, "\"\"", Shown),
    key("api.restapi.headers", Lists, "{}", Shown),
    key("api.restapi.cors_allowed_origins", Texts, "[\"*\"]", Shown),
    key("api.restapi.cors_allowed_methods", Texts, "[\"GET\"]", Shown),
    key("api.restapi.cors_allowed_headers", Texts, "[]", Shown),
    key(
        "api.restapi.cors_exposed_headers",
        Texts,
        "[\"Content-Type\",\"X-Stream-Output\",\"X-Chunked-Output\",\"X-Content-Length\"]",
        Shown,
    ),
    key("api.restapi.cors_allow_credentials", Bool, "true", Shown),
    key("api.restapi.cors_max_age", Duration, "\"0s\"", Shown),
    key("api.pinsvcapi.http_listen_multiaddress", Multiaddrs, "\"/ip4/127.0.0.1/tcp/9097\"", Hidden),
    key("api.pinsvcapi.ssl_cert_file", Text, "\"\"", Hidden),
    key("api.pinsvcapi.ssl_key_file", Text, "\"\"", Hidden),
    key("api.pinsvcapi.read_timeout", Duration, "\"0s\"", Hidden),
    key("api.pinsvcapi.read_header_timeout", Duration, "\"5s\"", Hidden),
    key("api.pinsvcapi.write_timeout", Duration, "\"0s\"", Hidden),
    key("api.pinsvcapi.idle_timeout", Duration, "\"2m0s\"", Hidden),
    key("api.pinsvcapi.max_header_bytes", Uint, "4096", Hidden),
    key("api.pinsvcapi.libp2p_listen_multiaddress", Multiaddrs, "[]", Ignored),
    key("api.pinsvcapi.id", Text, "\"\"", Ignored),
    key("api.pinsvcapi.private_key", Text, "\"\"", Ignored),
    key("api.pinsvcapi.basic_auth_credentials", Map, "null", Hidden),
    key("api.pinsvcapi.http_log_file", Text, "\"\"", Hidden),
    key("api.pinsvcapi.headers", Lists, "{}", Hidden),
    key("api.pinsvcapi.cors_allowed_origins", Texts, "[\"*\"]", Hidden),
    key("api.pinsvcapi.cors_allowed_methods", Texts, "[\"GET\"]", Hidden),
    key("api.pinsvcapi.cors_allowed_headers", Texts, "[]", Hidden),
    key(
        "api.pinsvcapi.cors_exposed_headers",
        Texts,
        "[\"Content-Type\",\"X-Stream-Output\",\"X-Chunked-Output\",\"X-Content-Length\"]",
        Hidden,
    ),
    key("api.pinsvcapi.cors_allow_credentials", Bool, "true", Hidden),
    key("api.pinsvcapi.cors_max_age", Duration, "\"0s\"", Hidden),
    key("api.ipfsproxy.listen_multiaddress", Multiaddrs, "\"/ip4/127.0.0.1/tcp/9095\"", Hidden),
    key("api.ipfsproxy.node_multiaddress", Multiaddr, "\"/ip4/127.0.0.1/tcp/5001\"", Ignored),
    key("api.ipfsproxy.node_https", Bool, "false", Ignored),
    key("api.ipfsproxy.log_file", Text, "\"\"", Hidden),
    key("api.ipfsproxy.read_timeout", Duration, "\"0s\"", Hidden),
    key("api.ipfsproxy.read_header_timeout", Duration, "\"5s\"", Hidden),
    key("api.ipfsproxy.write_timeout", Duration, "\"0s\"", Hidden),
    key("api.ipfsproxy.idle_timeout", Duration, "\"1m0s\"", Hidden),
    key("api.ipfsproxy.max_header_bytes", Uint, "4096", Hidden),
    key("api.ipfsproxy.extract_headers_extra", Texts, "[]", Hidden),
    key("api.ipfsproxy.extract_headers_path", Text, "\"/api/v0/version\"", Hidden),
    key("api.ipfsproxy.extract_headers_ttl", Duration, "\"5m0s\"", Hidden),
    // "kubo" or "embedded"; a file made for the original has a Kubo.
    key("ipfs.backend", Text, "\"kubo\"", Shown),
    key("ipfs.embedded.folder", Text, "\"ipfs\"", Hidden),
    key("ipfs.embedded.storage_max_bytes", Uint, "0", Hidden),
    key("ipfs.embedded.gateways", Texts, "[\"https://trustless-gateway.link\"]", Shown),
    key("ipfs.embedded.fetch_parallel", Uint, "24", Hidden),
    key("ipfs_connector.ipfshttp.node_multiaddress", Multiaddr, "\"/ip4/127.0.0.1/tcp/5001\"", Shown),
    key("ipfs_connector.ipfshttp.connect_swarms_delay", Duration, "\"30s\"", Shown),
    key("ipfs_connector.ipfshttp.ipfs_request_timeout", Duration, "\"5m0s\"", Shown),
    key("ipfs_connector.ipfshttp.pin_timeout", Duration, "\"2m0s\"", Shown),
    key("ipfs_connector.ipfshttp.unpin_timeout", Duration, "\"3h0m0s\"", Shown),
    key("ipfs_connector.ipfshttp.repogc_timeout", Duration, "\"24h0m0s\"", Shown),
    key("ipfs_connector.ipfshttp.informer_trigger_interval", Uint, "0", Shown),
    key("ipfs_connector.ipfshttp.unpin_disable", Bool, "false", Hidden),
    key("ipfs_connector.ipfshttp.pin_method", Text, "\"pin\"", Ignored),
    key("ipfs_connector.ipfshttp.proxy_listen_multiaddress", Multiaddrs, "[]", Ignored),
    key("ipfs_connector.ipfshttp.proxy_read_timeout", Duration, "\"0s\"", Ignored),
    key("ipfs_connector.ipfshttp.proxy_read_header_timeout", Duration, "\"5s\"", Ignored),
    key("ipfs_connector.ipfshttp.proxy_write_timeout", Duration, "\"0s\"", Ignored),
    key("ipfs_connector.ipfshttp.proxy_idle_timeout", Duration, "\"1m0s\"", Ignored),
    key("pin_tracker.stateless.max_pin_queue_size", Uint, "0", Hidden),
    key("pin_tracker.stateless.concurrent_pins", Uint, "10", Shown),
    key("pin_tracker.stateless.priority_pin_max_age", Duration, "\"24h0m0s\"", Shown),
    key("pin_tracker.stateless.priority_pin_max_retries", Uint, "5", Shown),
    key("pin_tracker.stateless.max_pin_attempts", Uint, "64", Hidden),
    key("pin_tracker.stateless.first_retry_delay", Duration, "\"1m0s\"", Hidden),
    key("pin_tracker.stateless.last_retry_delay", Duration, "\"6h0m0s\"", Hidden),
    key("monitor.pubsubmon.check_interval", Duration, "\"15s\"", Shown),
    key("monitor.pubsubmon.failure_threshold", Number, "3.0", Ignored),
    key("allocator.balanced.allocate_by", Texts, "[\"tag:group\",\"freespace\"]", Shown),
    key("informer.disk.metric_ttl", Duration, "\"30s\"", Shown),
    key("informer.disk.metric_type", Text, "\"freespace\"", Shown),
    // Used share of the space from which on a peer takes nothing new; 1: only when nothing is left.
    key("informer.disk.watermark", Number, "0.85", Hidden),
    key("informer.tags.metric_ttl", Duration, "\"30s\"", Shown),
    key("informer.tags.tags", Map, "{\"group\":\"default\"}", Shown),
    key("informer.pinqueue.metric_ttl", Duration, "\"30s\"", Shown),
    key("informer.pinqueue.weight_bucket_size", Uint, "100000", Shown),
    key("informer.numpin.metric_ttl", Duration, "\"10s\"", Hidden),
    key("repin.grace", Duration, "\"10m0s\"", Shown),
    key("repin.ipfs_down_after", Duration, "\"1h0m0s\"", Shown),
    key("repin.pins_per_second", Uint, "50", Shown),
    key("repin.max_unconfirmed_per_peer", Uint, "1000", Hidden),
    // 100 GiB.
    key("repin.max_unconfirmed_bytes_per_peer", Uint, "107374182400", Hidden),
    key("repin.stop_fraction", Number, "0.5", Hidden),
    key("repin.failure_domain", Text, "\"group\"", Hidden),
    key("observations.metrics.enable_stats", Bool, "false", Shown),
    key("observations.metrics.prometheus_endpoint", Multiaddr, "\"/ip4/127.0.0.1/tcp/8888\"", Shown),
    key("observations.metrics.reporting_interval", Duration, "\"30s\"", Ignored),
    key("observations.tracing.enable_tracing", Bool, "false", Shown),
    key("observations.tracing.otlp_endpoint", Text, "\"http://127.0.0.1:4317\"", Hidden),
    key("observations.tracing.jaeger_agent_endpoint", Multiaddr, "\"/ip4/0.0.0.0/udp/6831\"", Ignored),
    key("observations.tracing.sampling_prob", Number, "0.3", Shown),
    key("observations.tracing.service_name", Text, "\"cluster-daemon\"", Shown),
];

/// The `CLUSTER_…` variable of a key (spec/config.md 1, Environment).
pub fn environment_name(path: &str) -> String {
    const SECTIONS: &[(&str, &str)] = &[
        ("consensus.raft.", "RAFT_"),
        ("api.restapi.", "RESTAPI_"),
        ("api.pinsvcapi.", "PINSVCAPI_"),
        ("api.ipfsproxy.", "IPFSPROXY_"),
        ("ipfs_connector.ipfshttp.", "IPFSHTTP_"),
        ("pin_tracker.stateless.", "STATELESS_"),
        ("monitor.pubsubmon.", "PUBSUBMON_"),
        ("allocator.balanced.", "BALANCED_"),
        ("informer.disk.", "DISK_"),
        ("informer.tags.", "TAGS_"),
        ("informer.pinqueue.", "PINQUEUE_"),
        ("informer.numpin.", "NUMPIN_"),
        ("observations.metrics.", "METRICS_"),
        ("observations.tracing.", "TRACING_"),
        ("ipfs.embedded.", "EMBEDDED_"),
        ("cluster.", ""),
    ];
    let (section, rest) = SECTIONS
        .iter()
        .find_map(|(prefix, name)| path.strip_prefix(prefix).map(|rest| (*name, rest)))
        .unwrap_or(("", path));
    format!("CLUSTER_{section}{}", rest.replace('_', "").replace('.', "_").to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the table is well formed: each default is JSON, each path and variable is there once, aliases lead somewhere.
    #[test]
    fn table_is_well_formed() {
        let mut paths = std::collections::BTreeSet::new();
        let mut variables = std::collections::BTreeSet::new();
        for key in KEYS {
            serde_json::from_str::<serde_json::Value>(key.default).unwrap_or_else(|_| panic!("{}", key.path));
            assert!(paths.insert(key.path), "{} twice", key.path);
            assert!(variables.insert(environment_name(key.path)), "{} shares its variable", key.path);
            if let Use::Alias(of) = key.usage {
                assert!(KEYS.iter().any(|other| other.path == of), "{of}");
            }
            if let Some((section, _)) = key.path.rsplit_once('.') {
                assert!(SECTIONS.contains(&section), "{section}");
            }
        }
        assert_eq!(environment_name("api.restapi.http_listen_multiaddress"), "CLUSTER_RESTAPI_HTTPLISTENMULTIADDRESS");
        assert_eq!(environment_name("cluster.secret"), "CLUSTER_SECRET");
        assert_eq!(environment_name("api.allow_insecure_listen"), "CLUSTER_API_ALLOWINSECURELISTEN");
    }
}
