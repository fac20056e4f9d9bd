//! Opens the stores; where the state is damaged and the log is whole, from an earlier state that the log continues: the
//! newest backup of this cluster that is not older than where the log was cut, or nothing, if it never was. The log with
//! its votes is never replaced: a peer without it is a new one.

use std::path::{Path, PathBuf};

use pinfold_common::member::Member;

use crate::backup::{self, Manifest, STATE_FILE};
use crate::config::Config;
use crate::error::Result;
use crate::store::{self, Stores};

/// Opens what is in `raft`. Errors: as of [`Stores::open`], when nothing earlier fits.
pub async fn open(config: &Config, raft: &Path) -> Result<Stores> {
    let error = match Stores::open(raft).await {
        Ok(stores) => return Ok(stores),
        Err(error @ store::Error::Damaged(_)) => error,
        Err(error) => return Err(error.into()),
    };
    let Some(log) = Stores::log_beside_damaged_state(raft).await? else { return Err(error.into()) };
    let earlier = match log.purged {
        None => None,
        Some(purged) => {
            let last = log.last.map_or(purged.index, |id| id.index);
            let Some(found) = newest_backup(config, purged.index..=last)? else { return Err(error.into()) };
            Some(found)
        }
    };
    let kept = Stores::replace_state(raft, earlier.as_deref()).await?;
    tracing::error!(
        %error,
        from = earlier.as_deref().map_or_else(|| "the whole log".to_owned(), |path| path.display().to_string()),
        damaged = %kept.display(),
        "the state is damaged: this peer goes on from an earlier one, which its log continues"
    );
    Ok(Stores::open(raft).await?)
}

/// The state of the newest whole backup of this cluster whose index is in the range.
fn newest_backup(config: &Config, indexes: std::ops::RangeInclusive<u64>) -> Result<Option<PathBuf>> {
    let Some(member) = Member::load(&config.folder)? else { return Ok(None) };
    for backup in backup::list(&config.backup.folder)? {
        let path = PathBuf::from(&backup.path);
        if !backup.damage.is_empty() || backup.cluster_id != member.cluster_id || !indexes.contains(&backup.index) {
            continue;
        }
        match Manifest::load(&path).and_then(|manifest| manifest.verify(&path)) {
            Ok(()) => return Ok(Some(path.join(STATE_FILE))),
            Err(error) => tracing::warn!(%error, "a backup is damaged, too"),
        }
    }
    Ok(None)
}
