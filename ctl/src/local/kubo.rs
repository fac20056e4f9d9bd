//! A Kubo daemon for a local peer (`--ipfs kubo`): on loopback, without bootstrap peers, mDNS or DHT. The cluster
//! connects the daemons with each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::service::Plan;
use super::{LocalError, Result, on_path};

const INIT_DEADLINE: Duration = Duration::from_secs(60);

/// The `ipfs` program; an error says what to do without it.
pub fn program() -> Result<PathBuf> {
    on_path("ipfs").ok_or_else(|| {
        LocalError::new("--ipfs kubo: there is no `ipfs` on the PATH: install Kubo, or use --ipfs embedded")
    })
}

/// Makes the repository, if there is none yet, and sets its addresses.
pub async fn init(program: &Path, repo: &Path, rpc_port: u16, swarm_port: u16) -> Result<()> {
    if !repo.join("config").is_file() {
        run(program, repo, &["init", "--profile=test"]).await?;
    }
    let swarm = format!(r#"["/ip4/127.0.0.1/tcp/{swarm_port}"]"#);
    let settings: [(&str, &str, bool); 9] = [
        ("Addresses.API", &format!("/ip4/127.0.0.1/tcp/{rpc_port}"), false),
        ("Addresses.Gateway", "[]", true),
        ("Addresses.Swarm", &swarm, true),
        ("Bootstrap", "[]", true),
        ("Discovery.MDNS.Enabled", "false", true),
        ("Routing.Type", "none", false),
        ("AutoTLS.Enabled", "false", true),
        ("AutoConf.Enabled", "false", true),
        ("Swarm.DisableNatPortMap", "true", true),
    ];
    for (key, value, is_json) in settings {
        let mut arguments = vec!["config"];
        if is_json {
            arguments.push("--json");
        }
        arguments.extend([key, value]);
        run(program, repo, &arguments).await?;
    }
    // Without AutoConf nothing may refer to it.
    for key in ["DNS.Resolvers", "Routing.DelegatedRouters", "Ipns.DelegatedPublishers"] {
        let empty = if key == "DNS.Resolvers" { "{}" } else { "[]" };
        run(program, repo, &["config", "--json", key, empty]).await?;
    }
    Ok(())
}

async fn run(program: &Path, repo: &Path, arguments: &[&str]) -> Result<()> {
    let command = Command::new(program).args(arguments).env("IPFS_PATH", repo).kill_on_drop(true).output();
    let what = || format!("ipfs {}", arguments.join(" "));
    let output = tokio::time::timeout(INIT_DEADLINE, command)
        .await
        .map_err(|_| LocalError::new(format!("{} did not end within {INIT_DEADLINE:?}", what())))?
        .map_err(|error| LocalError::new(format!("{} could not be run: {error}", what())))?;
    if output.status.success() {
        return Ok(());
    }
    Err(LocalError::new(format!("{} failed: {}", what(), String::from_utf8_lossy(&output.stderr).trim())))
}

/// How the daemon is run.
pub fn plan(name: &str, program: &Path, repo: &Path, log: PathBuf) -> Plan {
    Plan {
        name: name.to_owned(),
        program: program.to_owned(),
        arguments: vec!["daemon".to_owned(), "--migrate=true".to_owned()],
        environment: vec![("IPFS_PATH".to_owned(), repo.display().to_string())],
        log,
    }
}
