//! Lines of `GET /allocations` and `GET /pins`, written straight from protobuf: hundreds of thousands a second, where the
//! general way by `PinJson` and `GlobalPinInfoJson` parses and copies each field. Tests hold the two to the same bytes.
//! PURE.

use std::collections::HashMap;

use multiaddr::Multiaddr;
use pinfold_common::ids::{cid_from_bytes, peer_from_bytes};
use pinfold_common::json::append_go_json;
use pinfold_common::pin::{PinMode, PinType};
use pinfold_common::status::{TrackerStatus, reason_name};
use pinfold_common::time::Timestamp;
use pinfold_common::{Error, Result};
use pinfold_proto::{api, types};

/// Peers whose text is kept; a cluster has fewer, and a pinset full of strangers must not fill the memory.
const MAX_KEPT_PEERS: usize = 1024;

/// Texts that come back on every line.
#[derive(Default)]
struct Texts {
    /// Base58 is the dearest part of a line, and the same few peers are on all of them.
    peers: HashMap<Vec<u8>, String>,
    /// Pins come in batches that were made in the same second.
    last_time: Option<(types::Time, String)>,
}

/// Writes pins as the state has them (rest-api.md 5.2), one line each.
#[derive(Default)]
pub struct PinRows {
    texts: Texts,
}

/// Writes statuses (rest-api.md 5.3), one line each.
#[derive(Default)]
pub struct StatusRows {
    texts: Texts,
}

impl PinRows {
    pub fn append(&mut self, into: &mut Vec<u8>, pin: &types::Pin) -> Result<()> {
        let start = into.len();
        let written = self.write(into, pin);
        if written.is_err() {
            into.truncate(start);
        }
        written
    }

    fn write(&mut self, into: &mut Vec<u8>, pin: &types::Pin) -> Result<()> {
        let none = types::PinOptions::default();
        let options = pin.options.as_ref().unwrap_or(&none);
        into.extend_from_slice(b"{\"replication_factor_min\":");
        append_number(into, i64::from(options.replication_factor_min));
        into.extend_from_slice(b",\"replication_factor_max\":");
        append_number(into, i64::from(options.replication_factor_max));
        into.extend_from_slice(b",\"name\":");
        append_text(into, &options.name);
        into.extend_from_slice(b",\"mode\":\"");
        into.extend_from_slice(PinMode::of_depth(pin.max_depth).name().as_bytes());
        into.extend_from_slice(b"\",\"shard_size\":");
        into.extend_from_slice(options.shard_size_bytes.to_string().as_bytes());
        into.extend_from_slice(b",\"user_allocations\":null,\"expire_at\":\"");
        let expire_at = match options.expire_at_seconds {
            0 => Timestamp::default(),
            seconds => Timestamp::from_seconds(seconds),
        };
        self.texts.append_time(into, expire_at.into());
        into.extend_from_slice(b"\",\"metadata\":");
        append_metadata(into, &options.metadata);
        into.extend_from_slice(b",\"pin_update\":");
        append_optional_cid(into, &options.pin_update)?;
        into.extend_from_slice(b",\"origins\":");
        append_list(into, &options.origins, |into, origin| append_origin(into, origin))?;
        into.extend_from_slice(b",\"cid\":");
        append_optional_cid(into, &pin.cid)?;
        into.extend_from_slice(b",\"type\":\"");
        into.extend_from_slice(PinType::from_proto(pin.r#type).name().as_bytes());
        into.extend_from_slice(b"\",\"allocations\":");
        append_list(into, &pin.allocations, |into, peer| self.texts.append_peer(into, peer))?;
        into.extend_from_slice(b",\"max_depth\":");
        append_number(into, i64::from(pin.max_depth));
        into.extend_from_slice(b",\"reference\":");
        append_optional_cid(into, &pin.reference)?;
        into.extend_from_slice(b",\"timestamp\":\"");
        self.texts.append_time(into, pin.timestamp.unwrap_or_else(|| Timestamp::default().into()));
        into.extend_from_slice(b"\"}\n");
        Ok(())
    }
}

impl StatusRows {
    pub fn append(&mut self, into: &mut Vec<u8>, item: &api::GlobalPinInfo) -> Result<()> {
        let start = into.len();
        let written = self.write(into, item);
        if written.is_err() {
            into.truncate(start);
        }
        written
    }

    fn write(&mut self, into: &mut Vec<u8>, item: &api::GlobalPinInfo) -> Result<()> {
        let unpinned = TrackerStatus::Unpinned.to_proto() as i32;
        into.extend_from_slice(b"{\"cid\":");
        append_optional_cid(into, &item.cid)?;
        into.extend_from_slice(b",\"name\":");
        append_text(into, &item.name);
        into.extend_from_slice(b",\"allocations\":");
        if item.created.is_none() && item.allocations.is_empty() {
            into.extend_from_slice(b"null");
        } else {
            append_list(into, &item.allocations, |into, peer| self.texts.append_peer(into, peer))?;
        }
        into.extend_from_slice(b",\"origins\":");
        if item.origins.is_empty() && item.peers.iter().all(|peer| peer.status == unpinned) {
            into.extend_from_slice(b"null");
        } else {
            append_list(into, &item.origins, |into, origin| append_origin(into, origin))?;
        }
        into.extend_from_slice(b",\"created\":\"");
        self.texts.append_time(into, item.created.unwrap_or_else(|| Timestamp::default().into()));
        into.extend_from_slice(b"\",\"metadata\":");
        append_metadata(into, &item.metadata);
        into.extend_from_slice(b",\"peer_map\":{");
        for (at, peer) in item.peers.iter().enumerate() {
            if at > 0 {
                into.push(b',');
            }
            self.texts.append_peer(into, &peer.peer)?;
            into.push(b':');
            self.write_peer(into, peer)?;
        }
        into.extend_from_slice(b"}}\n");
        Ok(())
    }

    fn write_peer(&mut self, into: &mut Vec<u8>, peer: &api::PeerStatus) -> Result<()> {
        let status = TrackerStatus::from_proto(peer.status);
        into.extend_from_slice(b"{\"peername\":");
        append_text(into, &peer.peername);
        if !peer.ipfs_id.is_empty() {
            into.extend_from_slice(b",\"ipfs_peer_id\":");
            self.texts.append_peer(into, &peer.ipfs_id)?;
        }
        if !peer.ipfs_addresses.is_empty() {
            into.extend_from_slice(b",\"ipfs_peer_addresses\":");
            append_list(into, &peer.ipfs_addresses, |into, address| {
                append_text(into, address);
                Ok(())
            })?;
        }
        into.extend_from_slice(b",\"status\":\"");
        into.extend_from_slice(status.name().as_bytes());
        into.extend_from_slice(b"\",\"timestamp\":\"");
        self.texts.append_time(into, peer.timestamp.unwrap_or_else(|| Timestamp::default().into()));
        into.extend_from_slice(b"\",\"error\":");
        append_text(into, &peer.error);
        into.extend_from_slice(b",\"attempt_count\":");
        append_number(into, i64::from(peer.attempt_count));
        into.extend_from_slice(if peer.priority { b",\"priority_pin\":true" } else { b",\"priority_pin\":false" });
        let reason = reason_name(types::Reason::try_from(peer.reason).unwrap_or_default());
        if !reason.is_empty() {
            into.extend_from_slice(b",\"reason\":");
            append_text(into, reason);
        }
        match (peer.next_try, status) {
            (Some(time), _) => {
                into.extend_from_slice(b",\"next_try\":\"");
                self.texts.append_time(into, time);
                into.push(b'"');
            }
            (None, TrackerStatus::PinError | TrackerStatus::UnpinError) => {
                into.extend_from_slice(b",\"next_try\":null");
            }
            (None, _) => {}
        }
        into.push(b'}');
        Ok(())
    }
}

impl Texts {
    fn append_peer(&mut self, into: &mut Vec<u8>, peer: &[u8]) -> Result<()> {
        into.push(b'"');
        if let Some(text) = self.peers.get(peer) {
            into.extend_from_slice(text.as_bytes());
        } else {
            let text = peer_from_bytes(peer)?.to_string();
            into.extend_from_slice(text.as_bytes());
            if self.peers.len() < MAX_KEPT_PEERS {
                self.peers.insert(peer.to_vec(), text);
            }
        }
        into.push(b'"');
        Ok(())
    }

    fn append_time(&mut self, into: &mut Vec<u8>, time: types::Time) {
        const UNSET: &[u8] = b"0001-01-01T00:00:00Z";
        if Timestamp::from(time).is_unset() {
            return into.extend_from_slice(UNSET);
        }
        match &self.last_time {
            Some((last, text)) if *last == time => into.extend_from_slice(text.as_bytes()),
            Some(_) | None => {
                let text = Timestamp::from(time).to_string();
                into.extend_from_slice(text.as_bytes());
                self.last_time = Some((time, text));
            }
        }
    }
}

fn append_number(into: &mut Vec<u8>, number: i64) {
    match number {
        -1 => into.extend_from_slice(b"-1"),
        0..10 => into.push(b'0' + number as u8),
        _ => into.extend_from_slice(number.to_string().as_bytes()),
    }
}

fn append_text(into: &mut Vec<u8>, text: &str) {
    let is_plain = |byte: u8| (b' '..0x7f).contains(&byte) && !matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&');
    if text.bytes().all(is_plain) {
        into.push(b'"');
        into.extend_from_slice(text.as_bytes());
        into.push(b'"');
        return;
    }
    append_go_json(into, &text);
    into.pop(); // the newline after a document
}

fn append_optional_cid(into: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        into.extend_from_slice(b"null");
        return Ok(());
    }
    into.push(b'"');
    into.extend_from_slice(cid_from_bytes(bytes)?.to_string().as_bytes());
    into.push(b'"');
    Ok(())
}

/// Already sorted by key, as the state keeps it.
fn append_metadata(into: &mut Vec<u8>, metadata: &[types::KeyValue]) {
    if metadata.is_empty() {
        return into.extend_from_slice(b"null");
    }
    into.push(b'{');
    for (at, entry) in metadata.iter().enumerate() {
        if at > 0 {
            into.push(b',');
        }
        append_text(into, &entry.key);
        into.push(b':');
        append_text(into, &entry.value);
    }
    into.push(b'}');
}

fn append_origin(into: &mut Vec<u8>, origin: &[u8]) -> Result<()> {
    let address = Multiaddr::try_from(origin.to_vec());
    append_text(into, &address.map_err(|error| Error::internal(format!("origins: {error}")))?.to_string());
    Ok(())
}

fn append_list<T>(
    into: &mut Vec<u8>,
    list: &[T],
    mut append: impl FnMut(&mut Vec<u8>, &T) -> Result<()>,
) -> Result<()> {
    into.push(b'[');
    for (at, item) in list.iter().enumerate() {
        if at > 0 {
            into.push(b',');
        }
        append(into, item)?;
    }
    into.push(b']');
    Ok(())
}

#[cfg(test)]
mod tests {
    use pinfold_common::identity::Identity;
    use pinfold_common::ids::parse_cid;
    use pinfold_common::json::{PinJson, PinSource, to_go_json};
    use pinfold_common::pin::{Pin, PinRequest};

    use super::*;

    /// Goal: the quick way and the general way write the same bytes, whatever is in a pin.
    #[test]
    fn as_the_general_way_writes_them() {
        let request = PinRequest::new(parse_cid("bafkqaaa").unwrap());
        let mut pin = Pin {
            cid: request.cid,
            kind: PinType::Data,
            max_depth: -1,
            options: request.options,
            allocations: Vec::new(),
            leaving: Vec::new(),
            reference: None,
            timestamp: Timestamp::from_seconds(1_795_432_063),
            revision: 7,
        };
        let mut pins = vec![pin.clone()];
        pin.cid = parse_cid("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG").unwrap();
        pin.options.name = "<b>\"quoted\" & \u{2028}\n \\ é".to_owned();
        pin.options.metadata = [("b".to_owned(), "2".to_owned()), ("a<".to_owned(), String::new())].into();
        pin.options.replication_factor_min = 2;
        pin.options.replication_factor_max = 12;
        pin.options.shard_size_bytes = u64::MAX;
        pin.options.expire_at = Timestamp::from_seconds(1_900_000_000);
        pin.options.pin_update = Some(parse_cid("bafkqaaa").unwrap());
        let peers = [Identity::generate().peer_id, Identity::generate().peer_id];
        pin.options.origins = vec![format!("/ip4/1.2.3.4/tcp/1/p2p/{}", peers[0]).parse().unwrap()];
        pin.allocations = peers.to_vec();
        pin.reference = pin.options.pin_update;
        pin.kind = PinType::ClusterDag;
        pin.max_depth = 0;
        pins.extend([pin.clone(), pin]);
        let mut rows = PinRows::default();
        for pin in pins {
            let mut line = Vec::new();
            rows.append(&mut line, &pin.clone().into()).unwrap();
            let expected = to_go_json(&PinJson::new(&pin, PinSource::State));
            assert_eq!(String::from_utf8(line).unwrap(), String::from_utf8(expected).unwrap());
        }
    }

    /// Goal: the same for statuses, with each thing that may be absent.
    #[test]
    fn statuses_as_the_general_way_writes_them() {
        let peers = [Identity::generate().peer_id, Identity::generate().peer_id];
        let time = |seconds| Some(types::Time { seconds, nanos: 120_000_000 });
        let full = api::PeerStatus {
            peer: peers[0].min(peers[1]).to_bytes(),
            peername: "<a>".to_owned(),
            ipfs_id: peers[0].to_bytes(),
            ipfs_addresses: vec!["/dns4/a/tcp/1".to_owned(), "/ip4/1.2.3.4/tcp/1".to_owned()],
            status: TrackerStatus::PinError.to_proto() as i32,
            error: "no \"luck\"".to_owned(),
            reason: types::Reason::Stalled as i32,
            attempt_count: 12,
            priority: true,
            timestamp: time(1_795_432_063),
            next_try: time(1_795_432_064),
            blocks: 1,
            bytes: 2,
            last_block: None,
        };
        let bare = api::PeerStatus {
            peer: peers[0].max(peers[1]).to_bytes(),
            status: TrackerStatus::UnpinError.to_proto() as i32,
            ..api::PeerStatus::default()
        };
        let item = api::GlobalPinInfo {
            cid: parse_cid("bafkqaaa").unwrap().to_bytes(),
            name: "n".to_owned(),
            allocations: peers.iter().map(|peer| peer.to_bytes()).collect(),
            origins: Vec::new(),
            created: Some(types::Time { seconds: 1_795_432_063, nanos: 0 }),
            metadata: vec![types::KeyValue { key: "k".to_owned(), value: "v".to_owned() }],
            peers: vec![full, bare],
        };
        let empty = api::GlobalPinInfo { cid: item.cid.clone(), ..api::GlobalPinInfo::default() };
        let mut rows = StatusRows::default();
        for item in [item.clone(), empty, item] {
            let mut line = Vec::new();
            rows.append(&mut line, &item).unwrap();
            let expected = to_go_json(&crate::rest::pins::item_json(&item).unwrap());
            assert_eq!(String::from_utf8(line).unwrap(), String::from_utf8(expected).unwrap());
        }
    }

    /// Goal: a damaged entry is an error and leaves no half line.
    #[test]
    fn damaged_entries() {
        let mut line = b"before\n".to_vec();
        assert!(PinRows::default().append(&mut line, &types::Pin { cid: vec![1], ..types::Pin::default() }).is_err());
        assert_eq!(line, b"before\n");
    }
}
