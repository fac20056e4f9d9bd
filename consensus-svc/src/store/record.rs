//! What the log holds, in our own encoding: `pinfold.storage.v1.Entry` on disk and on the wire.

use std::sync::Arc;

use bytes::Bytes;
use pinfold_proto::storage;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::error::{Error, Result};

/// The place of an entry, and who led when it was proposed. Ordered as Raft orders them: the leader first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogId {
    pub term: u64,
    pub node: u64,
    pub index: u64,
}

impl LogId {
    pub fn to_proto(self) -> storage::LogId {
        storage::LogId { leader: Some(storage::LeaderId { term: self.term, node: self.node }), index: self.index }
    }

    pub fn from_proto(id: &storage::LogId) -> LogId {
        let leader = id.leader.unwrap_or_default();
        LogId { term: leader.term, node: leader.node, index: id.index }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    pub term: u64,
    pub node: u64,
    pub committed: bool,
}

impl Vote {
    pub fn to_proto(self) -> storage::Vote {
        let leader = Some(storage::LeaderId { term: self.term, node: self.node });
        storage::Vote { leader, committed: self.committed }
    }

    pub fn from_proto(vote: &storage::Vote) -> Vote {
        let leader = vote.leader.unwrap_or_default();
        Vote { term: leader.term, node: leader.node, committed: vote.committed }
    }
}

/// The membership that the entry at `log_id` made; none yet: the empty one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Membership {
    pub log_id: Option<LogId>,
    pub membership: Arc<storage::Membership>,
}

/// A command and its encoding, made once: the disk, the wire and apply share it.
#[derive(Debug)]
pub struct Proposal {
    pub command: storage::Command,
    encoded: Bytes,
}

impl Proposal {
    pub fn new(command: storage::Command) -> Proposal {
        let encoded = command.encode_to_vec().into();
        Proposal { command, encoded }
    }

    fn decode(encoded: Bytes) -> Result<Proposal> {
        let command = storage::Command::decode(encoded.clone()).map_err(|error| damaged("command", &error))?;
        Ok(Proposal { command, encoded })
    }

    pub fn size_bytes(&self) -> usize {
        self.encoded.len()
    }
}

#[derive(Clone, Debug)]
pub enum Payload {
    /// A new leader's first entry.
    Blank,
    Command(Arc<Proposal>),
    Membership(Arc<storage::Membership>),
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub struct Record {
    pub id: LogId,
    pub payload: Payload,
}

/// `storage.v1.Entry` with the command left as bytes. The two encode alike, which a test holds them to.
#[derive(Clone, PartialEq, Message)]
struct RawEntry {
    #[prost(message, optional, tag = "1")]
    log_id: Option<storage::LogId>,
    #[prost(oneof = "RawPayload", tags = "2, 3, 4")]
    payload: Option<RawPayload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum RawPayload {
    #[prost(message, tag = "2")]
    Blank(storage::Blank),
    #[prost(bytes = "bytes", tag = "3")]
    Command(Bytes),
    #[prost(message, tag = "4")]
    Membership(storage::Membership),
}

/// `storage.v1.EntryGroup` with the entries left as bytes.
#[derive(Clone, PartialEq, Message)]
struct RawGroup {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    entries: Vec<Bytes>,
}

impl Record {
    /// Of its command.
    pub fn size_bytes(&self) -> usize {
        match &self.payload {
            Payload::Command(proposal) => proposal.size_bytes(),
            Payload::Blank | Payload::Membership(_) => 0,
        }
    }

    /// As `storage.v1.Entry`.
    pub fn encode(&self) -> Bytes {
        let payload = match &self.payload {
            Payload::Blank => RawPayload::Blank(storage::Blank {}),
            Payload::Command(proposal) => RawPayload::Command(proposal.encoded.clone()),
            Payload::Membership(membership) => RawPayload::Membership(membership.as_ref().clone()),
        };
        RawEntry { log_id: Some(self.id.to_proto()), payload: Some(payload) }.encode_to_vec().into()
    }

    pub fn decode(encoded: Bytes) -> Result<Record> {
        let raw = RawEntry::decode(encoded).map_err(|error| damaged("entry", &error))?;
        let log_id = raw.log_id.ok_or_else(|| Error::damaged("log entry without an ID"))?;
        let payload = match raw.payload {
            Some(RawPayload::Blank(_)) => Payload::Blank,
            Some(RawPayload::Command(command)) => Payload::Command(Arc::new(Proposal::decode(command)?)),
            Some(RawPayload::Membership(membership)) => Payload::Membership(Arc::new(membership)),
            None => return Err(Error::damaged(format!("log entry {} of an unknown kind", log_id.index))),
        };
        Ok(Record { id: LogId::from_proto(&log_id), payload })
    }
}

fn damaged(what: &str, error: &prost::DecodeError) -> Error {
    Error::damaged(format!("decode a log {what}: {error}"))
}

/// Entries as one `storage.v1.EntryGroup`, from their encodings.
#[derive(Debug, Default)]
pub struct GroupBuilder {
    pub first: u64,
    pub last: u64,
    pub bytes: Vec<u8>,
}

impl GroupBuilder {
    pub fn starting_at(first: u64) -> GroupBuilder {
        GroupBuilder { first, last: first, bytes: Vec::new() }
    }

    pub fn push(&mut self, index: u64, entry: &Bytes) {
        let length = entry.len() as u64;
        self.bytes.reserve(1 + encoded_len_varint(length) + entry.len());
        encode_key(1, WireType::LengthDelimited, &mut self.bytes);
        encode_varint(length, &mut self.bytes);
        self.bytes.extend_from_slice(entry);
        self.last = index;
    }
}

/// The encodings of the entries of a group.
pub fn split_group(group: Bytes) -> Result<Vec<Bytes>> {
    Ok(RawGroup::decode(group).map_err(|error| damaged("group", &error))?.entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_proto::storage::{command, entry};

    fn command() -> storage::Command {
        let unpin = storage::Unpin { cid: vec![1, 2, 3], expected_revision: 7, request_key: b"k".to_vec() };
        storage::Command { command: Some(command::Command::Unpin(unpin)), ..Default::default() }
    }

    /// Goal: what lies on disk is `storage.v1`, although we never build those messages.
    #[test]
    fn records_are_storage_v1_entries() {
        let membership = storage::Membership {
            configs: vec![storage::NodeSet { ids: vec![1, 2] }],
            nodes: vec![storage::Node { id: 1, peer_id: vec![9], address: "a:1".into() }],
        };
        let payloads = [
            (Payload::Blank, entry::Payload::Blank(storage::Blank {})),
            (Payload::Command(Arc::new(Proposal::new(command()))), entry::Payload::Command(command())),
            (Payload::Membership(Arc::new(membership.clone())), entry::Payload::Membership(membership)),
        ];
        let mut group = GroupBuilder::starting_at(4);
        let mut expected = storage::EntryGroup::default();
        for (index, (payload, proto)) in (4..).zip(payloads) {
            let id = LogId { term: 3, node: 1 << 63, index };
            let record = Record { id, payload };
            let entry = storage::Entry { log_id: Some(id.to_proto()), payload: Some(proto) };
            assert_eq!(record.encode(), entry.encode_to_vec());
            let back = Record::decode(record.encode()).unwrap();
            assert_eq!((back.id, back.encode()), (id, record.encode()));
            group.push(index, &record.encode());
            expected.entries.push(entry);
        }
        assert_eq!((group.first, group.last), (4, 6));
        assert_eq!(group.bytes, expected.encode_to_vec());
        assert_eq!(split_group(group.bytes.into()).unwrap().len(), 3);
    }

    #[test]
    fn an_entry_of_an_unknown_kind_is_damage() {
        let id = LogId { term: 1, node: 1, index: 1 };
        let entry = storage::Entry { log_id: Some(id.to_proto()), payload: None };
        assert!(Record::decode(entry.encode_to_vec().into()).is_err());
        assert!(Record::decode(Bytes::from_static(&[0xff, 0xff])).is_err());
    }
}
