//! CARs from a stream of pieces. Version 1: a header with the roots, then sections of CID and data, each with its length
//! in front. Version 2: a pragma, a header that says where in the file its version 1 is, that, and an index, which is not
//! needed. Pure; the input is hostile: every length has a budget and every error the place in the file.

use bytes::{Buf as _, Bytes, BytesMut};
use multihash_codetable::{Code, MultihashDigest as _};
use pinfold_common::ids::{Cid, MAX_CID_BYTES, cid_from_bytes};
use pinfold_common::{Error, Result};
use serde::Deserialize;

use crate::adder::dag::{Block, MAX_BLOCK_BYTES, is_identity};

const MAX_HEADER_BYTES: usize = 1024 * 1024;
const MAX_SECTION_BYTES: usize = MAX_CID_BYTES + MAX_BLOCK_BYTES;
/// Enough for the largest length above, ten times over; a longer number is refused unread.
const MAX_VARINT_BYTES: usize = 9;
/// The header of version 2 behind its pragma: characteristics, then three numbers of 8 bytes, little-endian.
const V2_HEADER_BYTES: usize = 40;
const V2_CHARACTERISTICS_BYTES: usize = 16;
/// What may be between that header and the version 1 within.
const MAX_PADDING_BYTES: u64 = 1024 * 1024;

#[derive(Deserialize)]
struct Header {
    version: u64,
    #[serde(default)]
    roots: Vec<Cid>,
}

/// Pieces go in, checked blocks come out.
#[derive(Debug)]
pub(super) struct CarReader {
    buffer: BytesMut,
    /// Of the buffer's first byte in the file.
    offset: u64,
    stage: Stage,
    /// Where the version 1 within a version 2 is over; what follows is not read.
    end: Option<u64>,
    root: Option<Cid>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The first frame of the file.
    Start,
    V2Header,
    /// Up to this byte of the file.
    Padding(u64),
    /// The header of the version 1 within a version 2.
    InnerHeader,
    Sections,
}

impl CarReader {
    pub fn new() -> CarReader {
        CarReader { buffer: BytesMut::new(), offset: 0, stage: Stage::Start, end: None, root: None }
    }

    pub fn feed(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next block that is whole, and what its CID says.
    pub fn next_block(&mut self) -> Result<Option<Block>> {
        while self.stage != Stage::Sections {
            if !self.next_stage()? {
                return Ok(None);
            }
        }
        if self.is_over() {
            self.skip(self.buffer.len());
            return Ok(None);
        }
        let start = self.offset;
        let Some(section) = self.frame(MAX_SECTION_BYTES)? else { return Ok(None) };
        match parse_section(section) {
            Ok(block) => Ok(Some(block)),
            Err(error) => Err(error.context(format!("car: at byte {start}"))),
        }
    }

    /// False: more of the file is needed.
    fn next_stage(&mut self) -> Result<bool> {
        self.stage = match self.stage {
            Stage::Start | Stage::InnerHeader => {
                let Some(frame) = self.frame(MAX_HEADER_BYTES)? else { return Ok(false) };
                match (self.at(parse_header(&frame))?, self.stage) {
                    (Version::One { root }, _) => {
                        self.root = Some(root);
                        Stage::Sections
                    }
                    (Version::Two, Stage::Start) => Stage::V2Header,
                    (Version::Two, _) => return self.at(Err(Error::invalid("CAR version 2 within CAR version 2"))),
                }
            }
            Stage::V2Header => {
                if self.buffer.len() < V2_HEADER_BYTES {
                    return Ok(false);
                }
                let from = self.offset + V2_HEADER_BYTES as u64;
                let (begin, end) = self.at(parse_v2_header(&self.buffer[..V2_HEADER_BYTES], from))?;
                self.skip(V2_HEADER_BYTES);
                self.end = Some(end);
                Stage::Padding(begin)
            }
            Stage::Padding(begin) if self.offset == begin => Stage::InnerHeader,
            Stage::Padding(begin) => {
                let left = usize::try_from(begin - self.offset).unwrap_or(usize::MAX);
                self.skip(left.min(self.buffer.len()));
                return Ok(self.offset == begin);
            }
            Stage::Sections => Stage::Sections,
        };
        Ok(true)
    }

    /// Whether the version 1 within a version 2 was read to its end.
    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| self.offset >= end)
    }

    fn skip(&mut self, bytes: usize) {
        self.buffer.advance(bytes);
        self.offset += bytes as u64;
    }

    pub fn root(&self) -> Option<&Cid> {
        self.root.as_ref()
    }

    /// At the end of the file: its root, if the file is whole.
    pub fn finish(self) -> Result<Cid> {
        let cut = !self.buffer.is_empty() || (self.end.is_some() && !self.is_over());
        match self.root {
            Some(root) if !cut => Ok(root),
            Some(_) | None => self.at(Err(Error::invalid("the file is cut off"))),
        }
    }

    /// Takes a length and as many bytes, when they are all there.
    fn frame(&mut self, max_bytes: usize) -> Result<Option<Bytes>> {
        let Some((len, prefix)) = self.at(parse_varint(&self.buffer))? else { return Ok(None) };
        let len = match usize::try_from(len) {
            Ok(0) => return self.at(Err(Error::invalid("a section of length 0"))),
            Ok(len) if len <= max_bytes => len,
            Ok(_) | Err(_) => {
                return self.at(Err(Error::invalid(format!("a section of {len} bytes, at most {max_bytes}"))));
            }
        };
        let over = self.offset + (prefix + len) as u64;
        if self.end.is_some_and(|end| over > end) {
            return self.at(Err(Error::invalid("a section leads out of the version 1 within the file")));
        }
        if self.buffer.len() < prefix + len {
            return Ok(None);
        }
        self.skip(prefix);
        let frame = self.buffer.split_to(len).freeze();
        self.offset = over;
        Ok(Some(frame))
    }

    fn at<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|error| error.context(format!("car: at byte {}", self.offset)))
    }
}

/// The number and its length, when its end is there.
fn parse_varint(bytes: &[u8]) -> Result<Option<(u64, usize)>> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(MAX_VARINT_BYTES).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((value, at + 1)));
        }
    }
    if bytes.len() >= MAX_VARINT_BYTES { Err(Error::invalid("a length of more than 63 bits")) } else { Ok(None) }
}

enum Version {
    One { root: Cid },
    Two,
}

fn parse_header(bytes: &[u8]) -> Result<Version> {
    let header: Header = serde_ipld_dagcbor::from_slice(bytes)
        .map_err(|error| Error::invalid(format!("the header is not that of a CAR: {error}")))?;
    match (header.version, header.roots.as_slice()) {
        (1, [root]) => Ok(Version::One { root: cid_from_bytes(&root.to_bytes())? }),
        (1, _) => Err(Error::invalid("only CAR files with a single root are supported")),
        (2, []) => Ok(Version::Two),
        (2, _) => Err(Error::invalid("CAR version 2 with roots in its pragma")),
        (other, _) => Err(Error::invalid(format!("CAR version {other}, only 1 and 2 are supported"))),
    }
}

/// Where the version 1 begins and ends in the file, of which `from` bytes are before it at least.
fn parse_v2_header(bytes: &[u8], from: u64) -> Result<(u64, u64)> {
    let mut numbers = &bytes[V2_CHARACTERISTICS_BYTES..];
    let (begin, len) = (numbers.get_u64_le(), numbers.get_u64_le());
    if begin < from || begin - from > MAX_PADDING_BYTES {
        return Err(Error::invalid(format!("data offset {begin}, {from} to {} expected", from + MAX_PADDING_BYTES)));
    }
    match begin.checked_add(len) {
        Some(end) if len > 0 => Ok((begin, end)),
        Some(_) | None => Err(Error::invalid(format!("data size {len}"))),
    }
}

fn parse_section(section: Bytes) -> Result<Block> {
    let mut rest = section.as_ref();
    let cid = Cid::read_bytes(&mut rest).map_err(|error| Error::invalid(format!("cid: {error}")))?;
    let cid_len = section.len() - rest.len();
    cid_from_bytes(&section[..cid_len])?;
    let data = section.slice(cid_len..);
    if data.len() > MAX_BLOCK_BYTES {
        return Err(Error::invalid(format!("block {cid} of {} bytes, at most {MAX_BLOCK_BYTES}", data.len())));
    }
    let matches = if is_identity(&cid) {
        cid.hash().digest() == data
    } else {
        let hash = Code::try_from(cid.hash().code())
            .map_err(|_| Error::invalid(format!("block {cid}: hash function {:#x} not known", cid.hash().code())))?;
        hash.digest(&data) == *cid.hash()
    };
    if matches {
        Ok(Block { cid, data })
    } else {
        Err(Error::invalid(format!("block {cid}: its data have another hash")))
    }
}
