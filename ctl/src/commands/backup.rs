//! `ctl backup create|ls|restore`

use std::process::Stdio;

use pinfold_common::config::Args;
use pinfold_common::time::Timestamp;
use pinfold_proto::{api, types};
use serde_json::json;

use crate::cli::{BackupCreate, BackupRestore, Encoding, Global};
use crate::client::{Client, Failure, Outcome};
use crate::local::Programs;
use crate::output;

pub async fn create(client: &Client, encoding: Encoding, arguments: BackupCreate) -> Outcome {
    let request = api::CreateBackupRequest { with_keys: arguments.with_keys };
    let backup = client.state().create_backup(request).await?.into_inner();
    show(encoding, &backup)?;
    if backup.with_keys {
        eprintln!(
            "it has the cluster secret, the credentials and this peer's private key: whoever reads it can join the cluster \
             and act as this peer"
        );
    } else {
        eprintln!(
            "it has no secret and no key; to come back as the same peer, keep service.json and identity.json safe"
        );
    }
    Ok(())
}

pub async fn ls(client: &Client, encoding: Encoding) -> Outcome {
    let backups = client.state().list_backups(api::ListBackupsRequest {}).await?.into_inner().backups;
    backups.iter().try_for_each(|backup| show(encoding, backup))
}

/// The store of a peer is consensus-svc's alone, so this is its program's work.
pub fn restore(global: &Global, arguments: &BackupRestore) -> Outcome {
    let args = Args { folder: global.config.clone(), ..Args::default() };
    let folder = args.folder().map_err(|error| Failure::local("reading --config", error))?;
    let program =
        Programs::find().path("consensus-svc").map_err(|error| Failure::local("finding consensus-svc", error))?;
    let mut command = std::process::Command::new(program);
    command.arg("--config").arg(folder).args(["state", "restore"]).arg(&arguments.backup);
    if arguments.force {
        command.arg("--force");
    }
    let status = command.stdin(Stdio::inherit()).status();
    let status = status.map_err(|error| Failure::local("running consensus-svc", error))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Exit(u8::try_from(code).unwrap_or(1))),
        None => Err(Failure::local("running consensus-svc", status)),
    }
}

fn show(encoding: Encoding, backup: &types::Backup) -> Outcome {
    let created = backup.created.map(Timestamp::from).unwrap_or_default();
    if encoding == Encoding::Json {
        return output::print_json(&json!({
            "name": backup.name,
            "path": backup.path,
            "created": created,
            "cluster_id": hex(&backup.cluster_id),
            "index": backup.index,
            "pins": backup.pins,
            "size_bytes": backup.size_bytes,
            "with_keys": backup.with_keys,
            "automatic": backup.automatic,
            "damage": backup.damage,
        }));
    }
    if !backup.damage.is_empty() {
        return output::print(&format!("{} | DAMAGED: {}\n", backup.name, backup.damage));
    }
    let kind = if backup.automatic { "by itself" } else { "asked for" };
    let keys = if backup.with_keys { "with keys" } else { "without keys" };
    output::print(&format!(
        "{} | {} pins | entry {} | {} | {kind} | {keys} | {}\n",
        backup.name,
        backup.pins,
        backup.index,
        output::size_text(backup.size_bytes),
        backup.path
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
