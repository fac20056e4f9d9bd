//! Where a file is cut into chunks: at equal sizes, or where its content says (rabin, buzhash). Pure; the cuts are
//! Kubo's, byte for byte, and so are the texts of errors that clients may compare.

mod buzhash;
mod rabin;

use bytes::{Bytes, BytesMut};
use pinfold_common::ids::shorten;
use pinfold_common::{Error, Result};

use self::buzhash::Buzhash;
use self::rabin::Rabin;
use super::dag::MAX_BLOCK_BYTES;

/// Room for the UnixFS frame around a chunk that does not become a raw block.
const FRAME_BYTES: usize = 256;
/// The largest chunk: with its frame it is a block that travels.
pub const MAX_CHUNK_BYTES: usize = MAX_BLOCK_BYTES - FRAME_BYTES;
const DEFAULT_CHUNK_BYTES: usize = 256 * 1024;
const MIN_RABIN_BYTES: usize = 16;

/// What is allocated at once for a long file: its chunks share it. Growing by doubling instead, for each chunk anew, copied
/// every byte three times over.
const SLAB_BYTES: usize = 1024 * 1024;

/// A way to cut, parsed from the `chunker` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunker {
    Size { bytes: usize },
    Rabin { min_bytes: usize, average_bytes: usize, max_bytes: usize },
    Buzhash,
}

impl Default for Chunker {
    fn default() -> Chunker {
        Chunker::Size { bytes: DEFAULT_CHUNK_BYTES }
    }
}

impl Chunker {
    /// `size-N`, `rabin`, `rabin-AVERAGE`, `rabin-MIN-AVERAGE-MAX`, `buzhash`; empty or `default` is 256 KiB.
    pub fn parse(text: &str) -> Result<Chunker> {
        match text {
            "" | "default" => return Ok(Chunker::default()),
            "buzhash" => return Ok(Chunker::Buzhash),
            "rabin" => return rabin_of_average(DEFAULT_CHUNK_BYTES),
            _ => {}
        }
        if let Some(size) = text.strip_prefix("size-") {
            return match parse_size(size)? {
                0 => Err(Error::invalid("chunker size must be greater than 0")),
                bytes if bytes > MAX_CHUNK_BYTES => Err(too_large()),
                bytes => Ok(Chunker::Size { bytes }),
            };
        }
        let Some(sizes) = text.strip_prefix("rabin-") else {
            return Err(Error::invalid(format!("unrecognized chunker option: {}", shorten(text))));
        };
        match sizes.split('-').collect::<Vec<_>>().as_slice() {
            [average] => rabin_of_average(parse_size(average)?),
            [min, average, max] => {
                checked_rabin(parse_labelled("min", min)?, parse_labelled("avg", average)?, parse_labelled("max", max)?)
            }
            _ => Err(Error::invalid("incorrect format (expected 'rabin' 'rabin-[avg]' or 'rabin-[min]-[avg]-[max]'")),
        }
    }
}

fn rabin_of_average(average: usize) -> Result<Chunker> {
    checked_rabin(average / 3, average, average.saturating_add(average / 2))
}

fn checked_rabin(min: usize, average: usize, max: usize) -> Result<Chunker> {
    if min < MIN_RABIN_BYTES {
        return Err(Error::invalid(format!("rabin min must be greater than {MIN_RABIN_BYTES}")));
    }
    if max > MAX_CHUNK_BYTES {
        return Err(too_large());
    }
    if min > average || average > max {
        let message = "incorrect format: rabin-min must be smaller than rabin-avg, and rabin-avg than rabin-max";
        return Err(Error::invalid(message));
    }
    Ok(Chunker::Rabin { min_bytes: min, average_bytes: average, max_bytes: max })
}

fn too_large() -> Error {
    Error::invalid(format!("chunker parameters may not exceed the maximum chunk size of {MAX_CHUNK_BYTES}"))
}

/// `min:1024` or `1024`.
fn parse_labelled(label: &str, text: &str) -> Result<usize> {
    parse_size(text.strip_prefix(label).and_then(|rest| rest.strip_prefix(':')).unwrap_or(text))
}

fn parse_size(text: &str) -> Result<usize> {
    text.parse().map_err(|_| Error::invalid(format!("chunker size {:?} is not a number", shorten(text))))
}

/// Cuts one file: bytes go in as they come, chunks come out as soon as their end is sure. Holds less than two of the
/// largest chunks, if what is fed at once is not larger.
#[derive(Debug)]
pub(super) struct Splitter {
    /// What is not in a chunk yet.
    buffer: BytesMut,
    /// Bytes that went in, up to a slab: a small file takes no more room than it needs.
    fed: usize,
    cutter: Cutter,
}

#[derive(Debug)]
enum Cutter {
    Size(usize),
    Rabin(Box<Rabin>),
    Buzhash(Buzhash),
}

impl Splitter {
    pub fn new(chunker: Chunker) -> Splitter {
        let cutter = match chunker {
            Chunker::Size { bytes } => Cutter::Size(bytes),
            Chunker::Rabin { min_bytes, average_bytes, max_bytes } => {
                Cutter::Rabin(Box::new(Rabin::new(min_bytes, average_bytes, max_bytes)))
            }
            Chunker::Buzhash => Cutter::Buzhash(Buzhash::new()),
        };
        Splitter { buffer: BytesMut::new(), fed: 0, cutter }
    }

    pub fn feed(&mut self, data: &[u8]) {
        if self.buffer.capacity() - self.buffer.len() < data.len() {
            self.buffer.reserve(data.len().max(self.fed));
        }
        self.buffer.extend_from_slice(data);
        self.fed = self.fed.saturating_add(data.len()).min(SLAB_BYTES);
    }

    /// The next chunk whose end is sure.
    pub fn next_chunk(&mut self) -> Option<Bytes> {
        let end = match &mut self.cutter {
            Cutter::Size(bytes) => (self.buffer.len() >= *bytes).then_some(*bytes),
            Cutter::Rabin(rabin) => rabin.find_cut(&self.buffer),
            Cutter::Buzhash(buzhash) => buzhash.find_cut(&self.buffer),
        }?;
        Some(self.buffer.split_to(end).freeze())
    }

    /// After the last `next_chunk` at the end of the file: what is left, when anything is.
    pub fn rest(self) -> Option<Bytes> {
        Some(self.buffer.freeze()).filter(|rest| !rest.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what the original takes is taken, and what cannot work is refused (attack:IN9).
    #[test]
    fn parameter_texts() {
        assert_eq!(Chunker::parse("").unwrap(), Chunker::Size { bytes: 262_144 });
        assert_eq!(Chunker::parse("size-1000").unwrap(), Chunker::Size { bytes: 1000 });
        assert_eq!(
            Chunker::parse("rabin").unwrap(),
            Chunker::Rabin { min_bytes: 87_381, average_bytes: 262_144, max_bytes: 393_216 }
        );
        assert_eq!(
            Chunker::parse("rabin-min:20-30-max:40").unwrap(),
            Chunker::Rabin { min_bytes: 20, average_bytes: 30, max_bytes: 40 }
        );
        for text in [
            "size-0",
            "size--1",
            "size-",
            "size-x",
            "size-9999999999",
            "size-18446744073709551616",
            "rabin-1-2-3",
            "rabin-30",
            "rabin-40-30-50",
            "rabin-16-17",
            "rabin-18446744073709551615",
            "reed-solomon",
            "size",
        ] {
            assert!(Chunker::parse(text).is_err(), "{text}");
        }
    }

    /// Goal: the cuts depend on the content only, not on how it arrives.
    #[test]
    fn cuts_do_not_depend_on_the_pieces() {
        let content: Vec<u8> = (0_u32..3_000_000).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for text in ["size-100000", "rabin-20000-32768-100000", "buzhash"] {
            let whole = lengths(Chunker::parse(text).unwrap(), &content, content.len());
            let pieces = lengths(Chunker::parse(text).unwrap(), &content, 7_919);
            assert_eq!(whole, pieces, "{text}");
            assert_eq!(whole.iter().sum::<usize>(), content.len(), "{text}");
        }
    }

    fn lengths(chunker: Chunker, content: &[u8], piece: usize) -> Vec<usize> {
        let mut splitter = Splitter::new(chunker);
        let mut lengths = Vec::new();
        for data in content.chunks(piece) {
            splitter.feed(data);
            while let Some(chunk) = splitter.next_chunk() {
                lengths.push(chunk.len());
            }
        }
        lengths.extend(splitter.rest().map(|rest| rest.len()));
        lengths
    }
}
