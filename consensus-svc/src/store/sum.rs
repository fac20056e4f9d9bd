//! Sums that tell damaged rows from whole ones. SQLite has none for the pages of a file.

use super::error::{Error, Result};

/// The first eight bytes of SHA-256 over the parts, each with its length.
pub fn of(parts: &[&[u8]]) -> i64 {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let digest = context.finish();
    digest.as_ref().first_chunk::<8>().map_or(0, |bytes| i64::from_be_bytes(*bytes))
}

/// Rows of the first format have no sum.
pub fn check(parts: &[&[u8]], sum: Option<i64>, what: &str) -> Result<()> {
    if sum.is_none_or(|sum| sum == of(parts)) {
        return Ok(());
    }
    Err(Error::damaged(format!("{what} is not what was written: its checksum differs")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every flipped bit is seen, and so is a byte that moves from one part to the next.
    #[test]
    fn flipped_bits_are_seen() {
        let row = b"a row of the state".to_vec();
        let sum = of(&[&row]);
        for bit in 0..row.len() * 8 {
            let mut flipped = row.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&[&flipped], Some(sum), "a row").is_err());
        }
        assert!(check(&[&row], Some(sum), "a row").is_ok() && check(&[&row], None, "a row").is_ok());
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
    }
}
