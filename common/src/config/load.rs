//! Reading and checking: the file (or the remote one its `source` names), aliases, the environment.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use super::keys::{IGNORED_SECTIONS, KEYS, Key, Kind, SECTION_ALIASES, SECTIONS, Use, environment_name};
use crate::files::check_private;
use crate::{Error, Result, address, ids, time};

pub const FILE_NAME: &str = "service.json";

/// A remote configuration must come within this time and size.
const SOURCE_DEADLINE: Duration = Duration::from_secs(30);
const SOURCE_MAX_BYTES: usize = 1 << 20;

/// Variables that begin like ours and are no keys (spec/config.md 1, Environment).
const OTHER_VARIABLES: &[&str] = &["CLUSTER_ID", "CLUSTER_PRIVATEKEY", "CLUSTER_CREDENTIALS"];

/// The checked tree of what is written down.
pub fn read(folder: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<Value> {
    let path = folder.join(FILE_NAME);
    let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
        // Refused, not failed: starting again would not make it.
        std::io::ErrorKind::NotFound => Error::invalid(format!(
            "there is no {}: make the peer's folder with `ctl --config {} init`",
            path.display(),
            folder.display()
        )),
        std::io::ErrorKind::InvalidData => Error::invalid(format!("{}: not UTF-8", path.display())),
        std::io::ErrorKind::PermissionDenied => Error::invalid(format!("read {}: {error}", path.display())),
        _ => Error::internal(format!("read {}: {error}", path.display())),
    })?;
    let name = path.display().to_string();
    let mut tree = parse(&name, &text)?;
    if find(&tree, "cluster.secret").and_then(Value::as_str).is_some_and(|secret| !secret.is_empty()) {
        check_private(&path)?;
    }
    if let Some(source) = find(&tree, "source").and_then(Value::as_str).filter(|source| !source.is_empty()) {
        let source = source.to_owned();
        tree = parse(&source, &fetch(&source)?)?;
        if find(&tree, "source").is_some() {
            return Err(Error::invalid(format!(
                "{source}: source: a fetched configuration may not name a source itself"
            )));
        }
    }
    let mut checked = check_tree(&name, tree)?;
    apply_environment(&mut checked, environment)?;
    Ok(checked)
}

fn parse(name: &str, text: &str) -> Result<Value> {
    let tree: Value =
        serde_json::from_str(text).map_err(|error| Error::invalid(format!("{name}: not valid JSON: {error}")))?;
    if tree.is_object() { Ok(tree) } else { Err(Error::invalid(format!("{name}: must be a JSON object"))) }
}

/// Fetches a remote configuration, on a thread of its own: the caller may or may not stand in a runtime.
fn fetch(url: &str) -> Result<String> {
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(Error::invalid(format!("source: {url:?} is not an http or https URL")));
    }
    let get = async {
        let response = reqwest::Client::builder().timeout(SOURCE_DEADLINE).build()?.get(url).send().await?;
        Ok::<_, reqwest::Error>((response.status(), response.bytes().await?))
    };
    let failed = |error: &dyn std::fmt::Display| Error::unavailable(format!("source: fetch {url}: {error}"));
    let (status, body) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| failed(&error))?.block_on(get).map_err(|error| failed(&error))
        });
        worker.join().unwrap_or_else(|_| Err(failed(&"the fetching thread failed")))
    })?;
    if status.as_u16() >= 300 {
        return Err(failed(&format!("answered {status}")));
    }
    if body.len() > SOURCE_MAX_BYTES {
        return Err(failed(&format!("{} bytes, at most {SOURCE_MAX_BYTES}", body.len())));
    }
    String::from_utf8(body.to_vec()).map_err(|_| failed(&"not UTF-8"))
}

/// Turns a parsed file into canonical keys; refuses what nobody knows.
fn check_tree(name: &str, tree: Value) -> Result<Value> {
    let mut checked = Value::Object(Map::new());
    let mut ignored = Vec::new();
    walk(name, "", &tree, &mut checked, &mut ignored)?;
    if find(&tree, "consensus.crdt").is_some() && find(&tree, "consensus.raft").is_none() {
        return Err(Error::invalid(format!(
            "{name}: consensus.crdt: CRDT is not supported; export the pinset with ipfs-cluster-service state export, \
             replace the section by \"raft\": {{}} and import it"
        )));
    }
    if !ignored.is_empty() {
        tracing::warn!(file = name, keys = ignored.join(", "), "keys without a meaning here are ignored");
    }
    Ok(checked)
}

fn walk(name: &str, prefix: &str, tree: &Value, checked: &mut Value, ignored: &mut Vec<String>) -> Result<()> {
    let Value::Object(entries) = tree else { return Ok(()) };
    for (field, value) in entries {
        let written = if prefix.is_empty() { field.clone() } else { format!("{prefix}.{field}") };
        let path = canonical(&written);
        if IGNORED_SECTIONS.contains(&path.as_str()) {
            ignored.push(written);
        } else if SECTIONS.contains(&path.as_str()) {
            match value {
                Value::Object(_) => {
                    ensure_object(checked, &path);
                    walk(name, &written, value, checked, ignored)?;
                }
                Value::Null => {}
                _ => return Err(Error::invalid(format!("{name}: {written}: an object is needed"))),
            }
        } else if let Some(key) = KEYS.iter().find(|key| key.path == path) {
            let target = match key.usage {
                Use::Ignored => {
                    ignored.push(written);
                    continue;
                }
                Use::Alias(of) => of,
                Use::Shown | Use::Hidden => key.path,
            };
            check(key, value).map_err(|error| error.context(name))?;
            insert(checked, target, value.clone());
        } else {
            return Err(Error::invalid(format!("{name}: {written}: no such key{}", nearest(&path))));
        }
    }
    Ok(())
}

fn canonical(written: &str) -> String {
    for (old, new) in SECTION_ALIASES {
        if written == *old {
            return (*new).to_owned();
        }
        if let Some(rest) = written.strip_prefix(old).and_then(|rest| rest.strip_prefix('.')) {
            return format!("{new}.{rest}");
        }
    }
    written.to_owned()
}

fn nearest(path: &str) -> String {
    let all = KEYS.iter().map(|key| key.path).chain(SECTIONS.iter().copied());
    match all.map(|known| (strsim::damerau_levenshtein(known, path), known)).min() {
        Some((distance, known)) if distance <= path.len() / 3 + 1 => format!("; did you mean {known}?"),
        _ => String::new(),
    }
}

/// Whether a value is of its key's kind.
pub fn check(key: &Key, value: &Value) -> Result<()> {
    let is_text = |value: &Value| value.is_string();
    let bad = |needed: &str| Err(Error::invalid(format!("{}: {needed} is needed, not {value}", key.path)));
    match key.kind {
        Kind::Text if !is_text(value) => bad("a text"),
        Kind::Texts if !(value.is_null() || is_text(value) || is_list(value)) => bad("a text or a list of texts"),
        Kind::Duration => match value.as_str() {
            None => bad("a duration such as \"1m30s\""),
            Some(text) => time::parse_go_duration(text).map(|_| ()).map_err(|error| error.context(key.path)),
        },
        Kind::Int if value.as_i64().is_none() => bad("a whole number"),
        Kind::Uint if value.as_u64().is_none() => bad("a whole number from 0 on"),
        Kind::Number if value.as_f64().is_none() => bad("a number"),
        Kind::Bool if value.as_bool().is_none() => bad("true or false"),
        Kind::Multiaddr | Kind::Multiaddrs => {
            let single = key.kind == Kind::Multiaddr;
            if !(is_text(value) || !single && (is_list(value) || value.is_null())) {
                return bad(if single { "a multiaddress" } else { "a multiaddress or a list of them" });
            }
            let texts = value.as_array().map_or_else(|| vec![value], |list| list.iter().collect());
            for text in texts.into_iter().filter_map(Value::as_str).filter(|text| !text.is_empty()) {
                address::parse_multiaddr(text).map_err(|error| error.context(key.path))?;
            }
            Ok(())
        }
        Kind::Map if !(value.is_null() || is_object_of(value, is_text)) => bad("an object of texts, or null"),
        Kind::Lists if !(value.is_null() || is_object_of(value, is_list)) => bad("an object of lists of texts"),
        Kind::Text | Kind::Texts | Kind::Int | Kind::Uint | Kind::Number | Kind::Bool | Kind::Map | Kind::Lists => {
            Ok(())
        }
    }
}

fn is_list(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
}

fn is_object_of(value: &Value, of: impl Fn(&Value) -> bool) -> bool {
    value.as_object().is_some_and(|entries| entries.values().all(of))
}

fn apply_environment(tree: &mut Value, environment: impl Iterator<Item = (String, String)>) -> Result<()> {
    for (name, text) in environment {
        if !name.starts_with("CLUSTER_") || OTHER_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        let Some(key) = KEYS.iter().find(|key| environment_name(key.path) == name) else {
            tracing::warn!(variable = name, "no configuration key has this variable; it is ignored");
            continue;
        };
        let target = match key.usage {
            Use::Ignored => continue,
            Use::Alias(of) => of,
            Use::Shown | Use::Hidden => key.path,
        };
        let value = from_text(key, &text).map_err(|error| error.context(&name))?;
        check(key, &value).map_err(|error| error.context(&name))?;
        insert(tree, target, value);
    }
    Ok(())
}

/// A value from the text of a variable or a flag: lists by commas, maps as `key:value,key:value`.
pub fn from_text(key: &Key, text: &str) -> Result<Value> {
    let bad = |needed: &str| Error::invalid(format!("{}: {needed} is needed, not {:?}", key.path, ids::shorten(text)));
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    Ok(match key.kind {
        Kind::Text | Kind::Duration | Kind::Multiaddr => Value::String(text.to_owned()),
        Kind::Texts | Kind::Multiaddrs => parts().map(|part| Value::String(part.to_owned())).collect(),
        Kind::Int => text.parse::<i64>().map_err(|_| bad("a whole number"))?.into(),
        Kind::Uint => text.parse::<u64>().map_err(|_| bad("a whole number from 0 on"))?.into(),
        Kind::Number => text.parse::<f64>().map_err(|_| bad("a number"))?.into(),
        Kind::Bool => match text {
            "true" | "1" => true.into(),
            "false" | "0" => false.into(),
            _ => return Err(bad("true or false")),
        },
        Kind::Map => {
            let pairs = parts().map(|part| part.split_once(':').ok_or_else(|| bad("key:value,key:value")));
            let pairs = pairs.map(|pair| pair.map(|(key, value)| (key.to_owned(), Value::String(value.to_owned()))));
            Value::Object(pairs.collect::<Result<_>>()?)
        }
        Kind::Lists => serde_json::from_str(text).map_err(|_| bad("a JSON object of lists"))?,
    })
}

/// Keys whose values must not leave the folder.
const SECRETS: [&str; 5] = [
    "cluster.secret",
    "cluster.private_key",
    "api.restapi.basic_auth_credentials",
    "api.restapi.private_key",
    "api.pinsvcapi.basic_auth_credentials",
];

/// The text of a `service.json` with its secrets blanked out, for a backup that others may read.
pub fn without_secrets(text: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut tree: Value = serde_json::from_slice(text)?;
    for path in SECRETS {
        if let Some(value) = find(&tree, path) {
            let blank = if value.is_string() { Value::String(String::new()) } else { Value::Null };
            insert(&mut tree, path, blank);
        }
    }
    let mut bytes = serde_json::to_vec_pretty(&tree)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The value at a dotted path.
pub fn find<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(tree, |tree, field| tree.get(field))
}

/// Sets the value at a dotted path, making the objects on the way.
pub fn insert(tree: &mut Value, path: &str, value: Value) {
    *slot(tree, path) = value;
}

fn ensure_object(tree: &mut Value, path: &str) {
    let place = slot(tree, path);
    if !place.is_object() {
        *place = Value::Object(Map::new());
    }
}

fn slot<'a>(tree: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(tree, |tree, field| {
        if !tree.is_object() {
            *tree = Value::Object(Map::new());
        }
        match tree {
            Value::Object(entries) => entries.entry(field).or_insert(Value::Null),
            _ => unreachable!("made an object just above"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{PRIVATE, write_atomically};

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Value> {
        let folder = tempfile::tempdir().unwrap();
        write_atomically(&folder.path().join(FILE_NAME), text.as_bytes(), PRIVATE).unwrap();
        read(folder.path(), environment.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    /// Goal: the original's own file is taken, with what it knows and we do not reported, not refused.
    #[test]
    fn takes_the_originals_file() {
        let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/testdata/original/service.json");
        let tree = load(&std::fs::read_to_string(sample).unwrap(), &[]).unwrap();
        assert_eq!(find(&tree, "cluster.peername").unwrap(), "p0");
        assert!(find(&tree, "cluster.connection_manager").is_none());
    }

    /// Goal: a mistake is named by file, full key and the nearest right one.
    #[test]
    fn names_what_is_wrong() {
        for (text, expected) in [
            (r#"{"cluster":{"replication_factr_min":1}}"#, "did you mean cluster.replication_factor_min?"),
            (r#"{"cluster":{"monitor_ping_interval":"5"}}"#, "cluster.monitor_ping_interval: invalid duration"),
            (r#"{"cluster":{"monitor_ping_interval":5}}"#, "cluster.monitor_ping_interval: a duration"),
            (r#"{"cluster":{"replication_factor_min":"x"}}"#, "cluster.replication_factor_min: a whole number"),
            (r#"{"cluster":{"peer_addresses":["/ip4/x"]}}"#, "cluster.peer_addresses"),
            (r#"{"cluster":[]}"#, "cluster: an object is needed"),
            (r#"{"consensus":{"crdt":{}}}"#, "consensus.crdt: CRDT is not supported"),
            (r#"{"cluster":"#, "not valid JSON"),
            (r#"[]"#, "must be a JSON object"),
        ] {
            let error = load(text, &[]).unwrap_err();
            assert!(error.message.contains(expected), "{text}: {error}");
        }
    }

    /// Goal: bytes that are no text are a mistake in the file, not a failure to read it (fault:D7).
    #[test]
    fn names_a_file_that_is_not_text() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), b"{\"cluster\":{\"peername\":\"\xff\"}}").unwrap();
        let error = read(folder.path(), std::iter::empty()).unwrap_err();
        assert_eq!(error.code, crate::Code::InvalidArgument);
        assert!(error.message.contains(FILE_NAME), "{error}");
    }

    /// Goal: a configuration for others to read has no secret in it, and is else as it was.
    #[test]
    fn secrets_are_blanked() {
        let text =
            r#"{"cluster":{"secret":"abc","peername":"p"},"api":{"restapi":{"basic_auth_credentials":{"u":"pw"}}}}"#;
        let blanked = String::from_utf8(without_secrets(text.as_bytes()).unwrap()).unwrap();
        assert!(!blanked.contains("abc") && !blanked.contains("pw") && blanked.contains("\"p\""), "{blanked}");
        assert!(without_secrets(b"{").is_err());
    }

    /// Goal: the environment goes over the file, and old names lead to the new ones.
    #[test]
    fn environment_and_aliases() {
        let tree = load(
            r#"{"cluster":{"monitoring_ping_interval":"7s"},"monitor":{"monbasic":{"check_interval":"3s"}}}"#,
            &[
                ("CLUSTER_REPLICATIONFACTORMIN", "2"),
                ("CLUSTER_RESTAPI_BASICAUTHCREDENTIALS", "user:pass"),
                ("CLUSTER_RESTAPI_HTTPLISTENMULTIADDRESS", "/ip4/127.0.0.1/tcp/1,/ip4/127.0.0.1/tcp/2"),
            ],
        )
        .unwrap();
        assert_eq!(find(&tree, "cluster.monitor_ping_interval").unwrap(), "7s");
        assert_eq!(find(&tree, "monitor.pubsubmon.check_interval").unwrap(), "3s");
        assert_eq!(find(&tree, "cluster.replication_factor_min").unwrap(), 2);
        assert_eq!(find(&tree, "api.restapi.basic_auth_credentials.user").unwrap(), "pass");
        assert_eq!(find(&tree, "api.restapi.http_listen_multiaddress").unwrap().as_array().unwrap().len(), 2);
        let error = load("{}", &[("CLUSTER_REPLICATIONFACTORMIN", "two")]).unwrap_err();
        assert!(error.message.contains("CLUSTER_REPLICATIONFACTORMIN: cluster.replication_factor_min"), "{error}");
    }
}
