//! Backups of this peer's state: made on demand and once a day, checked before they are used.
//!
//! A backup is a folder: `state.db`, a copy of the pinset, peerset and settings at one index; `service.json`, without
//! secrets; with `--with-keys` the secrets and `identity.json` as well; `manifest.json` with the sums of all of them,
//! written last. It appears under its name when all of it is on disk. Restoring one is offline work (`state restore`)
//! and makes a new cluster.

mod manifest;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pinfold_common::config::without_secrets;
use pinfold_common::files::{PRIVATE, PRIVATE_FOLDER, write_once};
use pinfold_common::shutdown::Shutdown;
use pinfold_common::time::Timestamp;
use pinfold_proto::types;

use crate::config::Config;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::store::State;
pub use manifest::Manifest;

pub const STATE_FILE: &str = "state.db";
const SERVICE_FILE: &str = "service.json";
const IDENTITY_FILE: &str = "identity.json";
const PARTIAL: &str = ".partial-";
/// How often the loop looks whether one is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// After one that failed, the next attempt.
const RETRY_PAUSE: Duration = Duration::from_secs(600);

/// Whether the secrets go along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    Without,
    With,
}

/// Who wanted it: those that were made by themselves are removed in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Person,
    Schedule,
}

/// Copies the state while writes go on. Returns when everything is on disk.
pub async fn create(config: &Config, state: &State, keys: Keys, origin: Origin) -> Result<types::Backup> {
    let copy = state.copy().await?;
    let facts = state.facts();
    let created = Timestamp::now();
    let manifest = Manifest {
        created,
        cluster_id: facts.cluster_id.clone(),
        lineage: facts.lineage,
        peer_id: config.identity.peer_id.to_string(),
        term: copy.meta.applied.map_or(0, |id| id.term),
        index: copy.meta.applied.map_or(0, |id| id.index),
        pins: copy.pin_count,
        with_keys: keys == Keys::With,
        automatic: origin == Origin::Schedule,
        version: pinfold_common::VERSION.to_owned(),
        files: Vec::new(),
    };
    let config = config.clone();
    let written = tokio::task::spawn_blocking(move || {
        let written = write(&config, &copy.path, manifest, keys);
        drop(copy);
        written
    });
    written.await.map_err(|_| Error::Io("make a backup: the work was cut off".to_owned()))?
}

fn write(config: &Config, copy: &Path, mut manifest: Manifest, keys: Keys) -> Result<types::Backup> {
    let folder = &config.backup.folder;
    let failed = |error: io::Error| Error::Io(format!("make a backup in {}: {error}", folder.display()));
    make_folder(folder).map_err(failed)?;
    let stamp = manifest.created.truncated().to_string().replace(':', "-");
    let name = format!("{stamp}-{:04x}", rand::random::<u16>());
    let partial = folder.join(format!("{PARTIAL}{name}"));
    let made = fill(config, copy, &partial, &mut manifest, keys);
    let path = folder.join(&name);
    let made = made.and_then(|()| fs::rename(&partial, &path)).and_then(|()| File::open(folder)?.sync_all());
    if let Err(error) = made {
        let _ = fs::remove_dir_all(&partial); // the first error is the one to report
        return Err(failed(error));
    }
    Ok(manifest.to_proto(&name, &path))
}

fn make_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(folder)
}

fn fill(config: &Config, copy: &Path, folder: &Path, manifest: &mut Manifest, keys: Keys) -> io::Result<()> {
    make_folder(folder)?;
    let state = folder.join(STATE_FILE);
    // Both are below the peer's folder, mostly on the same disk.
    if fs::rename(copy, &state).is_err() {
        fs::copy(copy, &state)?;
    }
    File::open(&state)?.sync_all()?;
    let mut names = vec![STATE_FILE];
    match fs::read(config.folder.join(SERVICE_FILE)) {
        Ok(bytes) => {
            let bytes = match keys {
                Keys::With => bytes,
                Keys::Without => without_secrets(&bytes)?,
            };
            write_once(&folder.join(SERVICE_FILE), &bytes, PRIVATE)?;
            names.push(SERVICE_FILE);
        }
        // All of it may come from the environment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if keys == Keys::With {
        let identity = fs::read(config.folder.join(IDENTITY_FILE))?;
        write_once(&folder.join(IDENTITY_FILE), &identity, PRIVATE)?;
        names.push(IDENTITY_FILE);
    }
    manifest.seal(folder, &names)
}

/// All backups, newest first. One that cannot be read says why.
pub fn list(folder: &Path) -> Result<Vec<types::Backup>> {
    let failed = |error: io::Error| Error::Io(format!("list the backups in {}: {error}", folder.display()));
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut backups = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with('.') || !path.is_dir() {
            continue;
        }
        backups.push(match Manifest::load(&path) {
            Ok(manifest) => manifest.to_proto(&name, &path),
            Err(error) => types::Backup {
                name,
                path: path.display().to_string(),
                damage: error.to_string(),
                ..types::Backup::default()
            },
        });
    }
    backups.sort_by(|left, right| (created(right), &right.name).cmp(&(created(left), &left.name)));
    Ok(backups)
}

fn created(backup: &types::Backup) -> (i64, u32) {
    backup.created.map_or((0, 0), |at| (at.seconds, at.nanos))
}

/// Makes one when the last one that was made by itself is older than the interval, and removes those beyond the number
/// to keep.
pub async fn run(core: Arc<Core>, shutdown: Shutdown) {
    if core.config.backup.interval.is_zero() {
        return;
    }
    remove_partial(&core.config.backup.folder);
    let work = async {
        // A start has more urgent things to do.
        tokio::time::sleep(LOOK_INTERVAL.min(core.config.backup.interval)).await;
        loop {
            let pause = match round(&core).await {
                Ok(()) => LOOK_INTERVAL.min(core.config.backup.interval),
                Err(error) => {
                    tracing::error!(%error, "the backup that is due could not be made");
                    RETRY_PAUSE.min(core.config.backup.interval)
                }
            };
            tokio::time::sleep(pause).await;
        }
    };
    shutdown.race(work).await;
}

async fn round(core: &Core) -> Result<()> {
    let config = &core.config.backup;
    if core.state.facts().cluster_id.is_empty() {
        return Ok(());
    }
    let newest = list(&config.folder)?.into_iter().find(|backup| backup.damage.is_empty());
    if let Some(created) = newest.as_ref().and_then(|backup| backup.created) {
        metrics::gauge!("pinfold_last_backup_timestamp_seconds").set(created.seconds as f64);
    }
    if newest.as_ref().and_then(age).is_some_and(|age| age < config.interval) {
        return Ok(());
    }
    let made = create(&core.config, &core.state, Keys::Without, Origin::Schedule).await?;
    tracing::info!(name = made.name, pins = made.pins, index = made.index, "made a backup");
    let old = list(&config.folder)?.into_iter().filter(|backup| backup.automatic).skip(config.keep);
    for backup in old {
        let removed = fs::remove_dir_all(&backup.path);
        removed.map_err(|error| Error::Io(format!("remove the old backup {}: {error}", backup.path)))?;
    }
    Ok(())
}

/// `None`: it is from the future, so the clock was set back.
fn age(backup: &types::Backup) -> Option<Duration> {
    let seconds = Timestamp::now().seconds.checked_sub(backup.created?.seconds)?;
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

/// What a crash left of one.
fn remove_partial(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, path = %entry.path().display(), "an unfinished backup could not be removed");
        }
    }
}

/// Where the backup is: a path, or a name in the folder of backups.
pub fn find(config: &Config, name: &Path) -> PathBuf {
    if name.is_dir() { name.to_owned() } else { config.backup.folder.join(name) }
}
