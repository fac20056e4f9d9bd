//! What a peer must remember outside `raft/`: which cluster it is in and as which node. Without it, a peer whose
//! `raft/` was lost would found a cluster of its own (protocols.md 2). Beside it, the marker of a removed peer.

use std::io;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::files::{PRIVATE, read_small, write_atomically};
use crate::{Error, Result};

pub const MEMBER_FILE: &str = "member.json";
pub const REMOVED_FILE: &str = "removed.json";
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// `<folder>/member.json`: this peer belongs to that cluster as that Raft node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub cluster_id: Vec<u8>,
    pub node_id: u64,
    /// How often this node was started on its data. The data counts too: if it counts less, it is an older copy.
    #[serde(default)]
    pub starts: u64,
}

/// `<folder>/removed.json`: this peer was taken out of that cluster. Only `state clean` lifts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedMarker {
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub cluster_id: Vec<u8>,
    pub node_id: u64,
    /// For people: how this peer learned it.
    pub reason: String,
}

impl Member {
    pub fn load(folder: &Path) -> Result<Option<Member>> {
        load(folder, MEMBER_FILE)
    }

    pub fn save(&self, folder: &Path) -> Result<()> {
        save(folder, MEMBER_FILE, self)
    }
}

impl RemovedMarker {
    pub fn load(folder: &Path) -> Result<Option<RemovedMarker>> {
        load(folder, REMOVED_FILE)
    }

    pub fn save(&self, folder: &Path) -> Result<()> {
        save(folder, REMOVED_FILE, self)
    }
}

/// Forgets the membership and the marker: the next start founds or joins. For `state clean` and `peers rm`.
pub fn forget(folder: &Path) -> Result<()> {
    for name in [MEMBER_FILE, REMOVED_FILE] {
        match std::fs::remove_file(folder.join(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::internal(format!("remove {}: {error}", folder.join(name).display()))),
        }
    }
    Ok(())
}

fn to_hex<S: Serializer>(bytes: &[u8], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    hex::decode(text).map_err(serde::de::Error::custom)
}

fn load<T: for<'de> Deserialize<'de>>(folder: &Path, name: &str) -> Result<Option<T>> {
    let path = folder.join(name);
    let read = read_small(&path, MAX_FILE_BYTES);
    let Some(bytes) = read.map_err(|error| Error::internal(format!("read {}: {error}", path.display())))? else {
        return Ok(None);
    };
    let invalid = |what: &dyn std::fmt::Display| Error::invalid(format!("read {}: {what}", path.display()));
    let Summed { value, sum } = serde_json::from_slice(&bytes).map_err(|error| invalid(&error))?;
    // Files of the first format have none.
    if sum.is_some_and(|sum| sum != sum_of(&value)) {
        return Err(invalid(&"its checksum differs: it was changed or is damaged"));
    }
    serde_json::from_value(value).map(Some).map_err(|error| invalid(&error))
}

/// A value with the sum of its text, so that a flipped bit is not another node ID.
#[derive(Serialize, Deserialize)]
struct Summed {
    #[serde(flatten)]
    value: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sum: Option<String>,
}

fn sum_of(value: &serde_json::Value) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, value.to_string().as_bytes());
    hex::encode(&digest.as_ref()[..8])
}

fn save<T: Serialize>(folder: &Path, name: &str, value: &T) -> Result<()> {
    let path = folder.join(name);
    let failed = |error: io::Error| Error::internal(format!("write {}: {error}", path.display()));
    let value = serde_json::to_value(value).map_err(|error| failed(error.into()))?;
    let summed = Summed { sum: Some(sum_of(&value)), value };
    let mut bytes = serde_json::to_vec_pretty(&summed).map_err(|error| failed(error.into()))?;
    bytes.push(b'\n');
    write_atomically(&path, &bytes, PRIVATE).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what was saved is loaded, absent is not an error, damaged is one that names the file.
    #[test]
    fn remembers_and_forgets() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Member::load(folder.path()).unwrap(), None);
        let member = Member { cluster_id: vec![1, 2, 255], node_id: u64::MAX, starts: 3 };
        member.save(folder.path()).unwrap();
        assert_eq!(Member::load(folder.path()).unwrap(), Some(member));
        let marker = RemovedMarker { cluster_id: vec![1], node_id: 7, reason: "the leader said so".into() };
        marker.save(folder.path()).unwrap();
        assert_eq!(RemovedMarker::load(folder.path()).unwrap(), Some(marker));

        // The first format had no sum; one that is there must be right.
        let text = std::fs::read_to_string(folder.path().join(MEMBER_FILE)).unwrap();
        std::fs::write(folder.path().join(MEMBER_FILE), text.replace("0102ff", "0102fe")).unwrap();
        assert!(Member::load(folder.path()).unwrap_err().message.contains("checksum"));
        std::fs::write(folder.path().join(MEMBER_FILE), r#"{"cluster_id":"01","node_id":7}"#).unwrap();
        assert_eq!(Member::load(folder.path()).unwrap().unwrap().node_id, 7);
        std::fs::write(folder.path().join(MEMBER_FILE), "{").unwrap();
        assert!(Member::load(folder.path()).unwrap_err().message.contains(MEMBER_FILE));
        forget(folder.path()).unwrap();
        forget(folder.path()).unwrap();
        assert_eq!(Member::load(folder.path()).unwrap(), None);
        assert_eq!(RemovedMarker::load(folder.path()).unwrap(), None);
    }
}
