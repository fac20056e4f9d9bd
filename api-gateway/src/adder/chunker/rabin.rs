//! Cuts where a Rabin fingerprint of the last 16 bytes has zeros in its low bits: polynomial arithmetic over GF(2) modulo
//! Kubo's irreducible polynomial of degree 53. Pure.

/// Of degree 53; the constant of all IPFS implementations.
const POLYNOMIAL: u64 = 17_437_180_132_763_653;
const DEGREE: u32 = 53;
const WINDOW_BYTES: usize = 16;

/// Scans one file. Its state is that of the chunk that is open.
#[derive(Debug)]
pub(super) struct Rabin {
    min_bytes: usize,
    max_bytes: usize,
    /// The fingerprint ends a chunk when these bits are zero.
    mask: u64,
    tables: Tables,
    window: [u8; WINDOW_BYTES],
    window_at: usize,
    fingerprint: u64,
    /// Bytes of the open chunk that were looked at or skipped.
    scanned: usize,
}

impl Rabin {
    /// `min_bytes` is at least the window.
    pub fn new(min_bytes: usize, average_bytes: usize, max_bytes: usize) -> Rabin {
        let mut rabin = Rabin {
            min_bytes,
            max_bytes,
            mask: (1 << average_bytes.ilog2()) - 1,
            tables: Tables::new(),
            window: [0; WINDOW_BYTES],
            window_at: 0,
            fingerprint: 0,
            scanned: 0,
        };
        rabin.begin_chunk();
        rabin
    }

    /// Where the chunk that `buffer` begins with ends, when the bytes are here that say so. The next call must have the
    /// same buffer grown, or without the chunk.
    pub fn find_cut(&mut self, buffer: &[u8]) -> Option<usize> {
        // What precedes the first window that could end a chunk is skipped unseen.
        self.scanned = self.scanned.max(self.min_bytes - WINDOW_BYTES);
        for byte in buffer.get(self.scanned..)? {
            self.slide(*byte);
            self.scanned += 1;
            if self.scanned < self.min_bytes {
                continue;
            }
            if self.fingerprint & self.mask == 0 || self.scanned >= self.max_bytes {
                let end = self.scanned;
                self.begin_chunk();
                return Some(end);
            }
        }
        None
    }

    /// Every chunk starts from the same state: a window of zeros into which a one was slid.
    fn begin_chunk(&mut self) {
        self.window = [0; WINDOW_BYTES];
        self.window_at = 0;
        self.fingerprint = 0;
        self.scanned = 0;
        self.slide(1);
    }

    fn slide(&mut self, byte: u8) {
        let leaving = std::mem::replace(&mut self.window[self.window_at], byte);
        self.window_at = (self.window_at + 1) % WINDOW_BYTES;
        self.fingerprint ^= self.tables.leaving[usize::from(leaving)];
        let top = (self.fingerprint >> (DEGREE - 8)) as usize;
        self.fingerprint = (self.fingerprint << 8 | u64::from(byte)) ^ self.tables.reduction[top];
    }
}

/// What a byte contributes, worked out once for each of its values.
#[derive(Debug)]
struct Tables {
    /// The fingerprint of the byte followed by a window of zeros: taking it away slides the byte out.
    leaving: [u64; 256],
    /// By the eight bits that a shift pushes to the degree and above: those bits, and their remainder.
    reduction: [u64; 256],
}

impl Tables {
    fn new() -> Tables {
        let mut tables = Tables { leaving: [0; 256], reduction: [0; 256] };
        for byte in 0..=255_u8 {
            let at = usize::from(byte);
            let mut fingerprint = remainder(u64::from(byte));
            for _ in 1..WINDOW_BYTES {
                fingerprint = remainder(fingerprint << 8);
            }
            tables.leaving[at] = fingerprint;
            let overflow = u64::from(byte) << DEGREE;
            tables.reduction[at] = remainder(overflow) | overflow;
        }
        tables
    }
}

/// Of the division by the polynomial, in GF(2).
fn remainder(mut value: u64) -> u64 {
    while value != 0 && value.ilog2() >= DEGREE {
        value ^= POLYNOMIAL << (value.ilog2() - DEGREE);
    }
    value
}
