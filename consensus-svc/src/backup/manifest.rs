//! `manifest.json` of a backup: what it is, and the sums of its files. Its last line is its own sum.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use pinfold_common::files::{PRIVATE, read_small, write_once};
use pinfold_common::time::Timestamp;
use pinfold_proto::types;
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::state_folder::hex;

const NAME: &str = "manifest.json";
const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 64 * 1024;
const BUFFER_BYTES: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub created: Timestamp,
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub cluster_id: Vec<u8>,
    pub lineage: u64,
    pub peer_id: String,
    pub term: u64,
    pub index: u64,
    pub pins: u64,
    pub with_keys: bool,
    pub automatic: bool,
    pub version: String,
    pub files: Vec<Entry>,
}

/// A file of the backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub name: String,
    pub size_bytes: u64,
    pub sha256: String,
}

#[derive(Deserialize)]
struct Envelope {
    format: u32,
}

impl Manifest {
    /// Sums the files up, and writes itself: the backup is whole, and on disk.
    pub fn seal(&mut self, folder: &Path, names: &[&str]) -> io::Result<()> {
        self.files = names.iter().map(|name| entry(folder, name)).collect::<io::Result<_>>()?;
        let mut value = serde_json::to_value(&*self)?;
        value["format"] = FORMAT.into();
        let mut text = serde_json::to_string_pretty(&value)?;
        let sum = hex(digest(&SHA256, text.as_bytes()).as_ref());
        text.push_str(&format!("\n{sum}\n"));
        write_once(&folder.join(NAME), text.as_bytes(), PRIVATE)
    }

    /// Reads it. The files are not looked at.
    pub fn load(folder: &Path) -> Result<Manifest> {
        let path = folder.join(NAME);
        let refuse = |what: String| Error::Refused(format!("{}: {what}", path.display()));
        let bytes = read_small(&path, MAX_BYTES).map_err(|error| refuse(error.to_string()))?;
        let bytes = bytes.ok_or_else(|| refuse("not there: this is no backup, or not a whole one".to_owned()))?;
        let text = String::from_utf8(bytes).map_err(|_| refuse("damaged: not text".to_owned()))?;
        let Some((json, sum)) = text.trim_end().rsplit_once('\n') else {
            return Err(refuse("damaged: it has no checksum".to_owned()));
        };
        if hex(digest(&SHA256, json.as_bytes()).as_ref()) != sum {
            return Err(refuse("damaged: its checksum differs".to_owned()));
        }
        let Envelope { format } = serde_json::from_str(json).map_err(|error| refuse(error.to_string()))?;
        if format > FORMAT {
            return Err(refuse(format!("format {format} was written by a later Pinfold; this one knows {FORMAT}")));
        }
        serde_json::from_str(json).map_err(|error| refuse(error.to_string()))
    }

    /// Compares every file with its sum.
    pub fn verify(&self, folder: &Path) -> Result<()> {
        for file in &self.files {
            let path = folder.join(&file.name);
            let found = entry(folder, &file.name).map_err(|error| Error::Io(format!("{}: {error}", path.display())))?;
            if found != *file {
                return Err(Error::Refused(format!(
                    "{}: damaged: {} bytes are there and {} were written, or their checksum differs",
                    path.display(),
                    found.size_bytes,
                    file.size_bytes
                )));
            }
        }
        Ok(())
    }

    pub fn to_proto(&self, name: &str, path: &Path) -> types::Backup {
        types::Backup {
            name: name.to_owned(),
            path: path.display().to_string(),
            created: Some(self.created.into()),
            cluster_id: self.cluster_id.clone(),
            index: self.index,
            pins: self.pins,
            size_bytes: self.files.iter().map(|file| file.size_bytes).sum(),
            with_keys: self.with_keys,
            automatic: self.automatic,
            damage: String::new(),
        }
    }
}

fn entry(folder: &Path, name: &str) -> io::Result<Entry> {
    let mut file = File::open(folder.join(name))?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut size_bytes = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(Entry { name: name.to_owned(), size_bytes, sha256: hex(context.finish().as_ref()) });
        }
        context.update(&buffer[..count]);
        size_bytes += count as u64;
    }
}

fn to_hex<S: serde::Serializer>(bytes: &[u8], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(bytes))
}

fn from_hex<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let pair = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(pair).collect();
    bytes.ok_or_else(|| serde::de::Error::custom("not a hexadecimal text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            created: Timestamp::from_seconds(1_800_000_000),
            cluster_id: vec![1, 2, 255],
            lineage: 1,
            peer_id: "a peer".into(),
            term: 3,
            index: 17,
            pins: 5,
            with_keys: false,
            automatic: true,
            version: "0.1.0".into(),
            files: Vec::new(),
        }
    }

    /// Goal: every flipped byte of a backup is seen, and so is a cut one and one of a later version (seed:I12, fault:B2).
    #[test]
    fn seed_i12_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let state = folder.join("state.db");
        std::fs::write(&state, vec![7; 5000]).unwrap();
        let mut sealed = manifest();
        sealed.seal(folder, &["state.db"]).unwrap();
        let read = Manifest::load(folder).unwrap();
        assert_eq!(read, sealed);
        read.verify(folder).unwrap();
        let path = folder.join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() - 1 {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            std::fs::write(&path, &flipped).unwrap();
            let Err(Error::Refused(why)) = Manifest::load(folder) else { panic!("byte {at}") };
            assert!(why.contains("manifest.json"), "{why}");
        }
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(Manifest::load(folder).is_err());
        std::fs::remove_file(&path).unwrap();
        let mut value = serde_json::to_value(manifest()).unwrap();
        value["format"] = 2.into();
        let text = serde_json::to_string(&value).unwrap();
        let sum = hex(digest(&SHA256, text.as_bytes()).as_ref());
        std::fs::write(&path, format!("{text}\n{sum}\n")).unwrap();
        assert!(Manifest::load(folder).unwrap_err().to_string().contains("later Pinfold"));
        for bytes in [vec![7; 4999], vec![7; 5001], [vec![7; 2500], vec![8], vec![7; 2499]].concat()] {
            std::fs::write(&state, bytes).unwrap();
            assert!(read.verify(folder).unwrap_err().to_string().contains("state.db"));
        }
        std::fs::remove_file(&state).unwrap();
        assert!(read.verify(folder).is_err());
    }
}
