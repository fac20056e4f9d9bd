//! Whether SQLite's write-ahead log of a file that is synced at every commit is whole (fault:F5).
//!
//! SQLite takes the log up to its first frame with a wrong checksum and silently forgets the rest: right for the last
//! transaction, which a power cut may have torn before anybody was answered, and a loss of acknowledged entries
//! anywhere before. A transaction that has another one of the same generation behind it was synced; a broken frame in
//! it is damage.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::error::{Error, Result};
use super::sqlite::wal_of;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;
const BUFFER_BYTES: usize = 1 << 20;

/// Checks `<database>-wal`; none is fine. An error names it.
pub fn check(database: &Path) -> Result<()> {
    let path = wal_of(database);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("open the write-ahead log of the log")(error)),
    };
    match scan(BufReader::with_capacity(BUFFER_BYTES, file)) {
        Ok(None) => Ok(()),
        Ok(Some(what)) => Err(Error::damaged(format!("{}: {what}", path.display()))),
        Err(error) => Err(Error::io("read the write-ahead log of the log")(error)),
    }
}

/// SQLite's running checksum.
#[derive(Clone, Copy, Default)]
struct Checksum(u32, u32);

impl Checksum {
    fn add(&mut self, bytes: &[u8], is_big_endian: bool) {
        let word = |bytes: &[u8]| {
            let bytes = bytes.first_chunk::<4>().copied().unwrap_or_default();
            if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        for pair in bytes.chunks_exact(8) {
            self.0 = self.0.wrapping_add(word(&pair[..4])).wrapping_add(self.1);
            self.1 = self.1.wrapping_add(word(&pair[4..])).wrapping_add(self.0);
        }
    }

    /// As it is written: big-endian always.
    fn is(self, bytes: &[u8]) -> bool {
        (self.0, self.1) == (number(bytes, 0), number(bytes, 4))
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.first_chunk::<4>()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// What is wrong with it; `None`: nothing.
fn scan(mut wal: impl Read) -> io::Result<Option<String>> {
    let mut header = [0; HEADER_BYTES];
    if !fill(&mut wal, &mut header)? {
        return Ok(None);
    }
    let magic = number(&header, 0);
    let is_big_endian = magic & 1 == 1;
    let mut sum = Checksum::default();
    sum.add(&header[..24], is_big_endian);
    let page_bytes = number(&header, 8) as usize;
    if magic & !1 != MAGIC || !sum.is(&header[24..]) || !(512..=65536).contains(&page_bytes) {
        return Ok(Some("its header is damaged".to_owned()));
    }
    let mut frame = vec![0; FRAME_HEADER_BYTES + page_bytes];
    let (mut number_of_frame, mut broken, mut has_commit_after) = (0_u64, None, false);
    while fill(&mut wal, &mut frame)? {
        number_of_frame += 1;
        let is_ours = frame[8..16] == header[16..24];
        if let Some(first) = broken {
            if is_ours && has_commit_after {
                return Ok(Some(format!("frame {first} is damaged, and entries that were synced are behind it")));
            }
            has_commit_after |= is_ours && number(&frame, 4) != 0;
            continue;
        }
        sum.add(&frame[..8], is_big_endian);
        sum.add(&frame[FRAME_HEADER_BYTES..], is_big_endian);
        if !is_ours || !sum.is(&frame[16..24]) {
            broken = Some(number_of_frame);
            has_commit_after = is_ours && number(&frame, 4) != 0;
        }
    }
    Ok(None)
}

/// Whether there was enough for the whole buffer.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Connection as _;

    use super::*;
    use crate::store::sqlite::{self, Purpose};

    /// A log of `commits` transactions, as SQLite writes it.
    async fn written(folder: &Path, commits: usize) -> Vec<u8> {
        let path = folder.join("x.db");
        let mut connection = sqlite::open_writer(&path, Purpose::Log).await.unwrap();
        sqlx::query("CREATE TABLE t (v BLOB)").execute(&mut connection).await.unwrap();
        for number in 1..commits {
            sqlx::query("INSERT INTO t VALUES (?)")
                .bind(vec![number as u8; 3000])
                .execute(&mut connection)
                .await
                .unwrap();
        }
        check(&path).unwrap();
        let bytes = std::fs::read(folder.join("x.db-wal")).unwrap();
        connection.close().await.unwrap();
        bytes
    }

    /// Goal: any flipped bit before the last transaction is seen; a torn last one is what a power cut leaves (seed:I12,
    /// fault:D8).
    #[tokio::test]
    async fn seed_i12_a_damaged_write_ahead_log_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let whole = written(folder.path(), 6).await;
        assert_eq!(scan(whole.as_slice()).unwrap(), None);
        let page_bytes = number(&whole, 8) as usize;
        let frame = FRAME_HEADER_BYTES + page_bytes;
        let frames = (whole.len() - HEADER_BYTES) / frame;
        let commits: Vec<usize> = (0..frames).filter(|at| number(&whole, HEADER_BYTES + at * frame + 4) != 0).collect();
        let last_begins = HEADER_BYTES + (commits[commits.len() - 2] + 1) * frame;
        for at in (0..last_begins).step_by(101).chain(0..80) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            // The sequence number of a checkpoint is in the sum, as the page size is.
            assert!(scan(flipped.as_slice()).unwrap().is_some(), "byte {at} of {last_begins}");
        }
        for torn in [last_begins, last_begins + 10, last_begins + frame - 1, whole.len() - 1] {
            assert_eq!(scan(&whole[..torn]).unwrap(), None);
            let mut flipped = whole.clone();
            flipped[whole.len() - 1] ^= 1;
            assert_eq!(scan(flipped.as_slice()).unwrap(), None);
        }
        assert_eq!(scan([].as_slice()).unwrap(), None);
        assert!(scan([7; 100].as_slice()).unwrap().is_some());
    }
}
