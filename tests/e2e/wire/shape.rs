//! Two JSON values with the same shape: the same keys in the same order, the same types, the same choice between
//! `null`, `[]` and `{}`, the same texts where clients compare them. Times, sizes and identifiers may differ.

use pinfold_common::time::Timestamp;
use serde_json::{Map, Value};

/// Strings and numbers under these keys must be equal, not only of one type.
const LITERAL: &[&str] = &[
    "attempt_count",
    "bytes",
    "cid",
    "code",
    "commit",
    "error",
    "max_depth",
    "message",
    "mode",
    "name",
    "partitionable",
    "pin_update",
    "priority_pin",
    "reference",
    "replication_factor_max",
    "replication_factor_min",
    "rpc_protocol_version",
    "shard_size",
    "size",
    "status",
    "type",
    "valid",
];

/// Objects whose keys are identifiers: as many of them, in sorted order.
const MAPS: &[&str] = &[
    "cluster_links",
    "cluster_to_ipfs",
    "cluster_trust_links",
    "id_to_peername",
    "ipfs_links",
    "metadata",
    "peer_map",
];

/// Keys that ours adds at the end of an object, and in which one.
const EXTRA: &[(&str, &[&str])] = &[("peer_map", &["reason", "next_try"])];

/// Lists whose length is the deployment's: how many there are is not compared, nor whether there are any.
const LENGTH_VARIES: &[(&str, &str)] = &[
    ("addresses", "a peer announces as many addresses as it has"),
    ("cluster_peers_addresses", "the same"),
    ("ipfs_links", "which IPFS nodes are connected is not the cluster's to say"),
    ("keys", "what a garbage collection finds"),
];

/// Texts of a Go library behind a prefix that is ours to keep (rest-api.md 2: **[impl]** or an ellipsis).
const PREFIXES: &[&str] = &[
    "error decoding Cid: ",
    "error parsing path: invalid path \"/ipfs/bafkqadtimvwgy3zamnwhk43umvza\": invalid cid: ",
    "error parsing path: invalid path \"/ipfs/nope/x\": invalid cid: ",
    "expire-at cannot be parsed: parsing time \"yesterday\"",
    "parameter user-allocations invalid: ",
];

/// Says what differs, with the path to it.
pub fn compare(path: &str, expected: &Value, actual: &Value, wrong: &mut Vec<String>) {
    let key = path.rsplit('.').next().unwrap_or_default();
    let key = key.split('[').next().unwrap_or_default();
    match (expected, actual) {
        (Value::Null, Value::Null) => {}
        (Value::Bool(_), Value::Bool(_)) | (Value::Number(_), Value::Number(_)) => {
            literal(path, key, expected, actual, wrong)
        }
        (Value::String(expected), Value::String(actual)) => text(path, key, expected, actual, wrong),
        (Value::Array(expected), Value::Array(actual)) => list(path, key, expected, actual, wrong),
        (Value::Object(expected), Value::Object(actual)) if MAPS.contains(&key) => {
            map(path, key, expected, actual, wrong)
        }
        (Value::Object(expected), Value::Object(actual)) => object(path, key, expected, actual, wrong),
        _ => wrong.push(format!("{path}: {actual} instead of {expected}")),
    }
}

fn literal(path: &str, key: &str, expected: &Value, actual: &Value, wrong: &mut Vec<String>) {
    if LITERAL.contains(&key) && expected != actual {
        wrong.push(format!("{path}: {actual} instead of {expected}"));
    }
}

fn text(path: &str, key: &str, expected: &str, actual: &str, wrong: &mut Vec<String>) {
    if let Ok(time) = Timestamp::parse(expected) {
        match Timestamp::parse(actual) {
            Ok(own) if own.is_unset() == time.is_unset() && actual.ends_with('Z') => {}
            _ => wrong.push(format!("{path}: {actual:?} is not a time like {expected:?}")),
        }
        return;
    }
    if !LITERAL.contains(&key) || expected == actual {
        if expected.is_empty() != actual.is_empty() {
            wrong.push(format!("{path}: {actual:?} instead of {expected:?}"));
        }
        return;
    }
    match PREFIXES.iter().find(|prefix| expected.starts_with(**prefix)) {
        Some(prefix) if actual.starts_with(prefix) && actual.len() > prefix.len() => {}
        _ => wrong.push(format!("{path}: {actual:?} instead of {expected:?}")),
    }
}

fn list(path: &str, key: &str, expected: &[Value], actual: &[Value], wrong: &mut Vec<String>) {
    let in_map_of_lists = path.rsplit('.').nth(1).unwrap_or_default();
    let varies = LENGTH_VARIES.iter().any(|(name, _)| *name == key || *name == in_map_of_lists);
    if !varies && expected.len() != actual.len() {
        wrong.push(format!("{path}: {} elements instead of {}", actual.len(), expected.len()));
    }
    let Some(first) = expected.first() else { return };
    for (at, element) in actual.iter().enumerate() {
        compare(&format!("{path}[{at}]"), expected.get(at).unwrap_or(first), element, wrong);
    }
}

fn map(path: &str, key: &str, expected: &Map<String, Value>, actual: &Map<String, Value>, wrong: &mut Vec<String>) {
    if expected.len() != actual.len() {
        wrong.push(format!("{path}: {} entries instead of {}", actual.len(), expected.len()));
    }
    if !actual.keys().is_sorted() {
        wrong.push(format!("{path}: its keys are not sorted"));
    }
    if key == "metadata" {
        return if expected != actual {
            wrong.push(format!("{path}: {actual:?} instead of {expected:?}"))
        };
    }
    let status = |value: &Value| value["status"].as_str().unwrap_or_default().to_owned();
    let statuses = |map: &Map<String, Value>| -> Vec<String> {
        let mut statuses: Vec<String> = map.values().map(status).collect();
        statuses.sort();
        statuses
    };
    // Which peer has which status is the allocator's choice; how many have it is not.
    if statuses(expected) != statuses(actual) {
        return wrong.push(format!("{path}: statuses {:?} instead of {:?}", statuses(actual), statuses(expected)));
    }
    for (name, value) in actual {
        let alike = expected.values().find(|other| status(other) == status(value));
        if let Some(alike) = alike {
            compare(&format!("{path}.{name}"), alike, value, wrong);
        }
    }
}

fn object(path: &str, _key: &str, expected: &Map<String, Value>, actual: &Map<String, Value>, wrong: &mut Vec<String>) {
    let extra = EXTRA.iter().find(|(within, _)| path.contains(&format!(".{within}.")));
    let allowed = extra.map(|(_, keys)| *keys).unwrap_or_default();
    let keys: Vec<&String> = actual.keys().collect();
    let surplus = keys.iter().rev().take_while(|key| allowed.contains(&key.as_str())).count();
    let own = &keys[..keys.len() - surplus];
    if own != expected.keys().collect::<Vec<_>>() {
        return wrong.push(format!("{path}: keys {keys:?} instead of {:?}", expected.keys().collect::<Vec<_>>()));
    }
    for (name, value) in expected {
        compare(&format!("{path}.{name}"), value, &actual[name], wrong);
    }
}
