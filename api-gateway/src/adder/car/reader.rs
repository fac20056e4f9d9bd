//! CARv1 from a stream of pieces: a header with the roots, then sections of CID and data, each with its length in front.
//! Pure; the input is hostile: every length has a budget and every error the place in the file.

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
    root: Option<Cid>,
}

impl CarReader {
    pub fn new() -> CarReader {
        CarReader { buffer: BytesMut::new(), offset: 0, root: None }
    }

    pub fn feed(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next block that is whole, and what its CID says.
    pub fn next_block(&mut self) -> Result<Option<Block>> {
        if self.root.is_none() {
            let Some(header) = self.frame(MAX_HEADER_BYTES)? else { return Ok(None) };
            self.root = Some(self.at(parse_header(&header))?);
        }
        let start = self.offset;
        let Some(section) = self.frame(MAX_SECTION_BYTES)? else { return Ok(None) };
        match parse_section(section) {
            Ok(block) => Ok(Some(block)),
            Err(error) => Err(error.context(format!("car: at byte {start}"))),
        }
    }

    pub fn root(&self) -> Option<&Cid> {
        self.root.as_ref()
    }

    /// At the end of the file: its root, if the file is whole.
    pub fn finish(self) -> Result<Cid> {
        let cut = !self.buffer.is_empty();
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
        if self.buffer.len() < prefix + len {
            return Ok(None);
        }
        self.buffer.advance(prefix);
        let frame = self.buffer.split_to(len).freeze();
        self.offset += (prefix + len) as u64;
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

fn parse_header(bytes: &[u8]) -> Result<Cid> {
    let header: Header = serde_ipld_dagcbor::from_slice(bytes)
        .map_err(|error| Error::invalid(format!("the header is not that of a CAR: {error}")))?;
    if header.version != 1 {
        return Err(Error::invalid(format!("CAR version {}, only 1 is supported", header.version)));
    }
    match header.roots.as_slice() {
        [root] => cid_from_bytes(&root.to_bytes()),
        _ => Err(Error::invalid("only CAR files with a single root are supported")),
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
