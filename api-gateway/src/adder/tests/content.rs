//! The bytes of the golden vectors (tests/testdata/cids/README.md): the numbers of SplitMix64 in little-endian.

/// An endless stream of bytes that a seed determines.
pub struct Content {
    state: u64,
}

impl Content {
    pub fn new(seed: u64) -> Content {
        Content { state: seed }
    }

    /// The next bytes. All pieces but the last have a length that eight divides.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
