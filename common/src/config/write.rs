//! Writing: `init` makes `service.json` from the table of keys; nothing else ever writes it.

use std::path::Path;

use serde_json::{Map, Value};

use super::keys::{KEYS, Use};
use super::load::{FILE_NAME, check, insert};
use crate::{Error, Result, files};

/// Keys that shall not have their default.
pub type Overrides = Vec<(&'static str, Value)>;

/// The shown keys with their defaults.
pub fn defaults() -> Value {
    let mut tree = Value::Object(Map::new());
    for key in KEYS.iter().filter(|key| key.usage == Use::Shown) {
        let value = serde_json::from_str(key.default).unwrap_or(Value::Null);
        insert(&mut tree, key.path, value);
    }
    tree
}

/// Writes a new configuration, mode 0600. An existing one is replaced; asking first is the caller's duty.
pub fn write_new(folder: &Path, overrides: Overrides) -> Result<()> {
    let mut tree = defaults();
    for (path, value) in overrides {
        let key = KEYS.iter().find(|key| key.path == path);
        check(key.ok_or_else(|| Error::internal(format!("{path}: no such key")))?, &value)?;
        insert(&mut tree, path, value);
    }
    let text = serde_json::to_string_pretty(&tree).map_err(|error| Error::internal(error.to_string()))?;
    let path = folder.join(FILE_NAME);
    files::write_atomically(&path, format!("{text}\n").as_bytes(), 0o600)
        .map_err(|error| Error::internal(format!("write {}: {error}", path.display())))
}
