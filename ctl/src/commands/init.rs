//! `ctl init`: a peer's folder. The only writer of service.json and identity.json.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use pinfold_common::address;
use pinfold_common::config::{Args, FILE_NAME, Overrides, keys::KEYS, write_new};
use pinfold_common::identity::Identity;
use pinfold_common::tls::ClusterSecret;
use serde_json::{Value, json};

use crate::cli::{Global, Init};
use crate::client::{Failure, Outcome};
use crate::local::cluster::addresses;
use crate::local::ports::Ports;

pub fn run(global: &Global, arguments: Init) -> Outcome {
    let args = Args { folder: global.config.clone(), ..Args::default() };
    let folder = args.folder().map_err(|error| Failure::local("reading --config", error))?;
    if arguments.consensus != "raft" {
        return Err(Failure::local("reading --consensus", "raft is the only one"));
    }
    if folder.join(FILE_NAME).exists() && !arguments.force && !confirm_overwrite()? {
        return Ok(());
    }
    let keys = overrides(&arguments)?;
    std::fs::create_dir_all(&folder).map_err(|error| Failure::local(format!("making {}", folder.display()), error))?;
    let failed = |error: pinfold_common::Error| Failure::local("initialising", error);
    write_new(&folder, keys).map_err(failed)?;
    eprintln!("configuration written to {}.", folder.join(FILE_NAME).display());
    let identity = folder.join("identity.json");
    if !identity.exists() {
        let new = Identity::generate();
        new.save(&folder).map_err(failed)?;
        eprintln!("new identity written to {} ({})", identity.display(), new.peer_id);
    }
    write_peerstore(&folder, &arguments.peers)
}

fn overrides(arguments: &Init) -> Outcome<Overrides> {
    let secret = match &arguments.secret {
        Some(text) => {
            ClusterSecret::parse(text).map_err(|error| Failure::local("reading the cluster secret", error))?
        }
        None => ClusterSecret::generate(),
    };
    let ports = Ports::of(0, arguments.port_offset).map_err(|error| Failure::local("reading --port-offset", error))?;
    let mut keys: Overrides = addresses(&ports);
    keys.push(("cluster.secret", json!(secret.to_hex())));
    match arguments.ipfs.as_str() {
        "kubo" | "embedded" => keys.push(("ipfs.backend", json!(arguments.ipfs))),
        _ => return Err(Failure::local("reading --ipfs", "must be kubo or embedded")),
    }
    if !arguments.peers.is_empty() {
        let peers: Outcome<Vec<String>> = arguments.peers.iter().map(|text| peer_id_of(text)).collect();
        keys.push(("consensus.raft.init_peerset", json!(peers?)));
    }
    for (name, text) in environment() {
        keys.push((name, text));
    }
    for setting in &arguments.set {
        let (name, text) = setting
            .split_once('=')
            .ok_or_else(|| Failure::local(format!("reading --set {setting}"), "must be key=value"))?;
        let known = KEYS.iter().find(|key| key.path == name);
        let known = known.ok_or_else(|| Failure::local(format!("reading --set {name}"), "no such key"))?;
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        keys.push((known.path, value));
    }
    Ok(keys)
}

/// `CLUSTER_…` variables that hold plain text or JSON are written down too (spec/config.md 1).
fn environment() -> Vec<(&'static str, Value)> {
    KEYS.iter()
        .filter(|key| key.path != "cluster.secret")
        .filter_map(|key| {
            let text = std::env::var(pinfold_common::config::keys::environment_name(key.path)).ok()?;
            pinfold_common::config::from_text(key, &text).ok().map(|value| (key.path, value))
        })
        .collect()
}

fn peer_id_of(text: &str) -> Outcome<String> {
    let doing = || format!("reading --peers {text}");
    let address = address::parse_multiaddr(text).map_err(|error| Failure::local(doing(), error))?;
    let peer = address::peer_of(&address);
    peer.map(|peer| peer.to_string()).ok_or_else(|| Failure::local(doing(), "it does not end in /p2p/<peer ID>"))
}

fn write_peerstore(folder: &Path, peers: &[String]) -> Outcome {
    let path = folder.join("peerstore");
    if peers.is_empty() && path.exists() {
        return Ok(());
    }
    let text: String = peers.iter().map(|peer| format!("{peer}\n")).collect();
    std::fs::write(&path, text).map_err(|error| Failure::local(format!("writing {}", path.display()), error))?;
    match peers.len() {
        0 => eprintln!("new empty peerstore written to {}.", path.display()),
        count => eprintln!("peerstore written to {} with {count} entries.", path.display()),
    }
    Ok(())
}

/// Asks; without a terminal nobody can answer, and no is the answer.
fn confirm_overwrite() -> Outcome<bool> {
    let mut input = std::io::stdin().lock();
    if !std::io::stdin().is_terminal() {
        return Err(Failure::local("initialising", "there is a configuration already: --force overwrites it"));
    }
    for _ in 0..3 {
        print!("The configuration file will be overwritten. Continue? [y/n]:");
        let _ = std::io::stdout().flush();
        let mut line = String::new();
        input.read_line(&mut line).map_err(|error| Failure::local("reading the answer", error))?;
        match line.trim() {
            "y" | "Y" => return Ok(true),
            "n" | "N" | "" => return Ok(false),
            _ => println!("Please press either 'y' or 'n'"),
        }
    }
    Ok(false)
}
