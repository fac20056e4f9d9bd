//! MurmurHash3 x64, the first 64 of its 128 bits with seed 0: the hash of sharded directories. Pure.

const C1: u64 = 0x87c3_7b91_1142_53d5;
const C2: u64 = 0x4cf5_ad43_2745_937f;

pub(super) fn murmur3_x64_64(data: &[u8]) -> u64 {
    let (mut h1, mut h2) = (0_u64, 0_u64);
    let mut blocks = data.chunks_exact(16);
    for block in &mut blocks {
        let (low, high) = block.split_at(8);
        h1 ^= scramble_first(little_endian(low));
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= scramble_second(little_endian(high));
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    // Zero bytes scramble to zero, so that a missing tail changes nothing.
    let tail = blocks.remainder();
    let (low, high) = tail.split_at(tail.len().min(8));
    h2 ^= scramble_second(little_endian(high));
    h1 ^= scramble_first(little_endian(low));

    h1 ^= data.len() as u64;
    h2 ^= data.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    finalize(h1).wrapping_add(finalize(h2))
}

fn scramble_first(word: u64) -> u64 {
    word.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2)
}

fn scramble_second(word: u64) -> u64 {
    word.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1)
}

fn finalize(mut word: u64) -> u64 {
    word ^= word >> 33;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 33;
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

/// At most eight bytes.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the published vectors of MurmurHash3_x64_128 with seed 0, first half.
    #[test]
    fn published_vectors() {
        for (text, hash) in [
            ("", 0),
            ("hello", 0xcbd8_a7b3_41bd_9b02),
            ("hello, world", 0x342f_ac62_3a5e_bc8e),
            ("The quick brown fox jumps over the lazy dog.", 0xcd99_481f_9ee9_02c9),
        ] {
            assert_eq!(murmur3_x64_64(text.as_bytes()), hash, "{text}");
        }
    }
}
