//! Bad configurations and folders, each given to the real program: it must end by itself with exit code 78 and one
//! sentence that names the key, without having served or written anything (attack:CF*).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use ctl::local::cluster::addresses;
use ctl::local::ports::Ports;
use pinfold_common::config::{FILE_NAME, write_new};
use pinfold_common::identity::Identity;
use pinfold_common::tls::{ClusterSecret, Room};
use pinfold_tests::cluster::programs;
use serde_json::{Value, json};
use tokio::process::Command;

/// A program that refuses does so at once; one that still runs after this has accepted.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(20);
/// sysexits' EX_CONFIG.
const REFUSED: i32 = 78;

/// What is done to a good folder before the program starts.
enum Change {
    /// A key of service.json, by its dotted path.
    Set(&'static str, Value),
    /// The whole of service.json.
    Text(&'static str),
    Variable(&'static str, &'static str),
    Flag(&'static [&'static str]),
    Folder(fn(&Path)),
}

use Change::{Flag, Folder, Set, Text, Variable};
use Room::{Connector, Consensus, Gateway, Monitor};

/// Which program, what is wrong, what its message says.
fn rows() -> Vec<(Room, &'static str, Change, &'static str)> {
    let public = json!(["/ip4/127.0.0.1/tcp/0", "/ip4/0.0.0.0/tcp/0"]);
    vec![
        // The file as such: every program reads the same one.
        (Consensus, "not JSON", Text("{\"cluster\": "), "not valid JSON"),
        (Monitor, "an array", Text("[]"), "must be a JSON object"),
        (Connector, "an empty file", Text(""), "not valid JSON"),
        (Gateway, "text after the end", Text("{} {}"), "not valid JSON"),
        (Monitor, "deep nesting", Folder(deep), "not valid JSON"),
        (Consensus, "CRDT", Text(r#"{"consensus":{"crdt":{}}}"#), "consensus.crdt: CRDT is not supported"),
        (Gateway, "a source that is no URL", Text(r#"{"source":"/etc/passwd"}"#), "source: "),
        // Keys.
        (
            Consensus,
            "an unknown key",
            Set("cluster.replication_factr_min", json!(1)),
            "did you mean cluster.replication_factor_min?",
        ),
        (Gateway, "an unknown section", Set("api.resty", json!({})), "api.resty: no such key"),
        (Monitor, "an unknown top-level key", Set("nonsense", json!(1)), "nonsense: no such key"),
        (Consensus, "a section that is a list", Set("cluster", json!([])), "cluster: an object is needed"),
        (
            Monitor,
            "a number for a duration",
            Set("cluster.monitor_ping_interval", json!(5)),
            "cluster.monitor_ping_interval",
        ),
        (
            Monitor,
            "a duration without a unit",
            Set("cluster.monitor_ping_interval", json!("5")),
            "cluster.monitor_ping_interval",
        ),
        (
            Monitor,
            "a negative duration",
            Set("cluster.monitor_ping_interval", json!("-5s")),
            "cluster.monitor_ping_interval",
        ),
        (
            Monitor,
            "a duration of zero",
            Set("cluster.monitor_ping_interval", json!("0s")),
            "cluster.monitor_ping_interval",
        ),
        (
            Monitor,
            "a check interval of zero",
            Set("monitor.pubsubmon.check_interval", json!("0s")),
            "monitor.pubsubmon.check_interval",
        ),
        (
            Monitor,
            "a metric listed twice",
            Set("allocator.balanced.allocate_by", json!(["freespace", "freespace"])),
            "allocator.balanced.allocate_by",
        ),
        (
            Monitor,
            "a metric without a name",
            Set("allocator.balanced.allocate_by", json!([""])),
            "allocator.balanced.allocate_by",
        ),
        (
            Consensus,
            "text for a number",
            Set("cluster.replication_factor_min", json!("two")),
            "cluster.replication_factor_min",
        ),
        (
            Consensus,
            "a fraction for a number",
            Set("cluster.replication_factor_min", json!(1.5)),
            "cluster.replication_factor_min",
        ),
        (Consensus, "text for a switch", Set("cluster.disable_repinning", json!("no")), "cluster.disable_repinning"),
        (Consensus, "a number for a list", Set("cluster.peer_addresses", json!(7)), "cluster.peer_addresses"),
        // The secret.
        (Consensus, "no secret", Set("cluster.secret", json!("")), "cluster.secret"),
        (Monitor, "no secret", Set("cluster.secret", json!("")), "cluster.secret"),
        (Connector, "no secret", Set("cluster.secret", json!("")), "cluster.secret"),
        (Gateway, "no secret", Set("cluster.secret", json!("")), "cluster.secret"),
        (Consensus, "a short secret", Set("cluster.secret", json!("abcd")), "cluster.secret"),
        (Gateway, "a secret that is not hexadecimal", Set("cluster.secret", json!("zz".repeat(32))), "cluster.secret"),
        // Addresses.
        (
            Consensus,
            "an address that is none",
            Set("services.consensus.listen_multiaddress", json!("127.0.0.1:9096")),
            "services.consensus.listen_multiaddress",
        ),
        (
            Monitor,
            "an address without a port",
            Set("services.monitor.listen_multiaddress", json!("/ip4/127.0.0.1")),
            "services.monitor.listen_multiaddress",
        ),
        (
            Connector,
            "an address of another machine",
            Set("services.connector.listen_multiaddress", json!("/ip4/192.0.2.1/tcp/9099")),
            "services.connector.listen_multiaddress",
        ),
        (
            Gateway,
            "a port out of range",
            Set("api.restapi.http_listen_multiaddress", json!("/ip4/127.0.0.1/tcp/99999")),
            "api.restapi.http_listen_multiaddress",
        ),
        (
            Gateway,
            "no address",
            Set("api.restapi.http_listen_multiaddress", json!([])),
            "api.restapi.http_listen_multiaddress",
        ),
        (
            Gateway,
            "the whole world, unprotected",
            Set("api.restapi.http_listen_multiaddress", public),
            "api.restapi.http_listen_multiaddress",
        ),
        (
            Consensus,
            "an address of a peer without its ID",
            Set("cluster.peer_addresses", json!(["/ip4/127.0.0.1/tcp/1"])),
            "cluster.peer_addresses",
        ),
        // Replication.
        (
            Consensus,
            "a minimum above the maximum",
            Set("cluster.replication_factor_min", json!(3)),
            "cluster.replication_factor_min is larger than max",
        ),
        (
            Consensus,
            "a factor of -2",
            Set("cluster.replication_factor_min", json!(-2)),
            "cluster.replication_factor_min",
        ),
        (Consensus, "one of them -1", Set("cluster.replication_factor_max", json!(-1)), "cluster.replication_factor_m"),
        // Raft.
        (
            Consensus,
            "a heartbeat below the scheduler",
            Set("consensus.raft.heartbeat_timeout", json!("1ms")),
            "consensus.raft.heartbeat_timeout",
        ),
        (
            Consensus,
            "an election before the next heartbeat",
            Set("consensus.raft.election_timeout", json!("50ms")),
            "consensus.raft.election_timeout",
        ),
        (
            Consensus,
            "no time for a leader",
            Set("consensus.raft.wait_for_leader_timeout", json!("0s")),
            "consensus.raft.wait_for_leader_timeout",
        ),
        (
            Consensus,
            "a founder that is no peer",
            Set("consensus.raft.init_peerset", json!(["nobody"])),
            "consensus.raft.init_peerset",
        ),
        (Consensus, "no backups", Set("consensus.raft.backups_rotate", json!(0)), "consensus.raft.backups_rotate"),
        (
            Consensus,
            "too many entries at once",
            Set("consensus.raft.max_append_entries", json!(1_000_000)),
            "consensus.raft.max_append_entries",
        ),
        (
            Consensus,
            "a negative retry",
            Set("consensus.raft.commit_retries", json!(-1)),
            "consensus.raft.commit_retries",
        ),
        (Consensus, "nobody votes", Set("consensus.raft.max_voters", json!(0)), "consensus.raft.max_voters"),
        // The gateway.
        (
            Gateway,
            "headers below the minimum",
            Set("api.restapi.max_header_bytes", json!(100)),
            "api.restapi.max_header_bytes",
        ),
        (
            Gateway,
            "nobody may come in",
            Set("api.restapi.basic_auth_credentials", json!({})),
            "api.restapi.basic_auth_credentials",
        ),
        (
            Gateway,
            "an empty password",
            Set("api.restapi.basic_auth_credentials", json!({"ann": ""})),
            "api.restapi.basic_auth_credentials",
        ),
        (
            Gateway,
            "a password that is a number",
            Set("api.restapi.basic_auth_credentials", json!({"ann": 5})),
            "api.restapi.basic_auth_credentials",
        ),
        (
            Gateway,
            "a certificate without its key",
            Set("api.restapi.ssl_cert_file", json!("cert.pem")),
            "api.restapi.ssl_key_file",
        ),
        (Gateway, "a header with a space", Set("api.restapi.headers", json!({"a b": ["c"]})), "api.restapi.headers"),
        (
            Gateway,
            "a header with a line end",
            Set("api.restapi.headers", json!({"X-A": ["c\r\nd"]})),
            "api.restapi.headers",
        ),
        // The connector.
        (Connector, "an unknown backend", Set("ipfs.backend", json!("nonsense")), "ipfs.backend"),
        (
            Connector,
            "no pin at a time",
            Set("pin_tracker.stateless.concurrent_pins", json!(0)),
            "pin_tracker.stateless.concurrent_pins",
        ),
        (Connector, "an unknown metric", Set("informer.disk.metric_type", json!("mood")), "informer.disk.metric_type"),
        // The environment and the flags.
        (
            Consensus,
            "a variable that is no number",
            Variable("CLUSTER_REPLICATIONFACTORMIN", "two"),
            "CLUSTER_REPLICATIONFACTORMIN",
        ),
        (
            Monitor,
            "a variable that is no duration",
            Variable("CLUSTER_MONITORPINGINTERVAL", "soon"),
            "CLUSTER_MONITORPINGINTERVAL",
        ),
        (Gateway, "an empty secret in a variable", Variable("CLUSTER_SECRET", ""), "cluster.secret"),
        (
            Gateway,
            "a variable that is no address",
            Variable("CLUSTER_RESTAPI_HTTPLISTENMULTIADDRESS", "9094"),
            "CLUSTER_RESTAPI_HTTPLISTENMULTIADDRESS",
        ),
        (
            Consensus,
            "bootstrap from an address without an ID",
            Flag(&["--bootstrap", "/ip4/127.0.0.1/tcp/9096"]),
            "--bootstrap",
        ),
        (Consensus, "bootstrap from nonsense", Flag(&["--bootstrap", "nonsense"]), "--bootstrap"),
        // The folder.
        (Gateway, "no configuration", Folder(|folder| std::fs::remove_file(folder.join(FILE_NAME)).unwrap()), "init"),
        (
            Consensus,
            "no identity",
            Folder(|folder| std::fs::remove_file(folder.join("identity.json")).unwrap()),
            "identity.json",
        ),
        (
            Gateway,
            "an identity that is no JSON",
            Folder(|folder| std::fs::write(folder.join("identity.json"), "{").unwrap()),
            "identity.json",
        ),
        (Monitor, "an identity of somebody else", Folder(foreign_identity), "identity.json"),
        (Consensus, "a member without its data", Folder(member_without_data), "raft"),
    ]
}

fn deep(folder: &Path) {
    std::fs::write(folder.join(FILE_NAME), "{\"cluster\":".repeat(100_000)).unwrap();
}

/// The ID of one peer with the key of another.
fn foreign_identity(folder: &Path) {
    let path = folder.join("identity.json");
    let mut identity: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    identity["id"] = json!(Identity::generate().peer_id.to_string());
    std::fs::write(&path, identity.to_string()).unwrap();
}

/// protocols.md 2: founding another cluster in its place would be the worst answer.
fn member_without_data(folder: &Path) {
    let member = json!({"cluster_id": "07".repeat(16), "node_id": 7});
    std::fs::write(folder.join("member.json"), member.to_string()).unwrap();
}

fn good_folder(folder: &Path) {
    Identity::generate().save(folder).unwrap();
    let mut keys = vec![
        ("cluster.secret", json!(ClusterSecret::generate().to_hex())),
        ("cluster.replication_factor_min", json!(1)),
        ("cluster.replication_factor_max", json!(2)),
        ("ipfs.backend", json!("embedded")),
        ("ipfs.embedded.gateways", json!([])),
    ];
    keys.extend(addresses(&Ports::free().unwrap()));
    write_new(folder, keys).unwrap();
}

fn set(folder: &Path, key: &str, value: Value) {
    let path = folder.join(FILE_NAME);
    let mut tree: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let place = key.split('.').fold(&mut tree, |tree, field| &mut tree[field]);
    *place = value;
    std::fs::write(&path, tree.to_string()).unwrap();
}

/// Runs the program until it ends by itself: exit code and what it said on standard error.
async fn run(room: Room, folder: &Path, change: &Change) -> Result<(Option<i32>, String), String> {
    let mut command = Command::new(programs().path(room.name()).unwrap());
    command.arg("--config").arg(folder).stdin(Stdio::null()).kill_on_drop(true);
    match change {
        Set(key, value) => set(folder, key, value.clone()),
        Text(text) => std::fs::write(folder.join(FILE_NAME), text).unwrap(),
        Variable(name, value) => {
            command.env(name, value);
        }
        Flag(flags) => {
            command.args(*flags);
        }
        Folder(change) => change(folder),
    }
    match tokio::time::timeout(REFUSAL_DEADLINE, command.output()).await {
        Err(_) => Err("it runs".to_owned()),
        Ok(output) => {
            let output = output.map_err(|error| error.to_string())?;
            Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
        }
    }
}

/// Goal: a configuration or folder that is wrong is refused at once, by the program concerned, with exit code 78 and
/// one sentence that names what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn programs_refuse_bad_configurations() {
    let rows = rows();
    assert!(rows.len() >= 60);
    let mut wrong = Vec::new();
    for (room, what, change, message) in &rows {
        let folder = tempfile::tempdir().unwrap();
        good_folder(folder.path());
        let found = match run(*room, folder.path(), change).await {
            Err(error) => Err(error),
            Ok((code, told)) => {
                // The last line is the program's own sentence; above it may be its log.
                let sentence = told.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
                match code {
                    Some(REFUSED) if !sentence.contains(message) => Err(format!("{sentence:?} instead of {message:?}")),
                    Some(REFUSED) if told.contains("panicked") => Err(told),
                    Some(REFUSED) => Ok(()),
                    code => Err(format!("exit code {code:?}: {told}")),
                }
            }
        };
        if let Err(found) = found {
            wrong.push(format!("{room}, {what}: {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// Goal: the good folder that the rows above start from is a good one, and secrets are in nothing that a program says.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_folder_without_a_fault_is_accepted() {
    for room in [Consensus, Monitor, Connector, Gateway] {
        let folder = tempfile::tempdir().unwrap();
        good_folder(folder.path());
        let log = folder.path().join("log");
        let mut command = Command::new(programs().path(room.name()).unwrap());
        command.arg("--config").arg(folder.path()).arg("--debug").stdin(Stdio::null());
        let mut process = command
            .stderr(std::fs::File::create(&log).unwrap())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let file = pinfold_common::config::File::load(&pinfold_common::config::Args {
            folder: Some(folder.path().to_owned()),
            loglevel: "info".to_owned(),
            debug: false,
        })
        .unwrap();
        let address = file.announce(room).unwrap();
        pinfold_tests::cluster::eventually(&format!("{room} listens"), || async {
            tokio::net::TcpStream::connect(&address).await.ok().map(drop)
        })
        .await;
        assert_eq!(process.try_wait().unwrap(), None, "{room} ended");
        process.kill().await.unwrap();
        let told = std::fs::read_to_string(&log).unwrap();
        let secret = file.secret().unwrap().to_hex();
        assert!(!told.contains(&secret), "{room} tells the cluster's secret");
    }
}
