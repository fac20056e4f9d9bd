//! Where one HTTP/1 request ends and the next begins, read from the bytes alone. PURE: no I/O, no clock.
//! What hyper could read differently from us is refused here, so that both always agree on the boundaries.

/// The line that is added to every request head: hyper sends trailers only to a client that says it takes them, and
/// the original's clients read them without saying so.
pub const TE_TRAILERS: &[u8] = b"TE: trailers\r\n";

/// How long the body after a head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Empty,
    Sized(u64),
    Chunked,
}

/// Why a head is answered with 400 and the connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// More than one way to say where the body ends, or one that cannot be right (`attack:HT1`).
    AmbiguousLength,
    /// A line that ends in a bare line feed, or a NUL.
    BadLine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    Partial,
    /// The first `length` bytes are the head, its empty line included.
    Whole {
        length: usize,
        framing: Framing,
        is_http_11: bool,
    },
    Refused(Refusal),
}

/// Reads a request head at the start of `bytes`.
pub fn read_head(bytes: &[u8]) -> Head {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if has_bare_line_feed(bytes) { Head::Refused(Refusal::BadLine) } else { Head::Partial };
    };
    let head = &bytes[..end + 2];
    if has_bare_line_feed(head) || head.contains(&0) {
        return Head::Refused(Refusal::BadLine);
    }
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let is_http_11 = lines.next().is_some_and(|line| line.ends_with(b" HTTP/1.1"));
    let mut length: Option<u64> = None;
    let mut is_chunked: Option<bool> = None;
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (line[..colon].trim_ascii_end(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            match (length, parse_length(value)) {
                (None, Some(parsed)) => length = Some(parsed),
                (Some(_), _) | (_, None) => return Head::Refused(Refusal::AmbiguousLength),
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if is_chunked.is_some() {
                return Head::Refused(Refusal::AmbiguousLength);
            }
            is_chunked = Some(value.eq_ignore_ascii_case(b"chunked"));
        }
    }
    let framing = match (length, is_chunked) {
        (None, None) | (Some(0), None) => Framing::Empty,
        (Some(length), None) => Framing::Sized(length),
        (None, Some(true)) if is_http_11 => Framing::Chunked,
        (None, Some(_)) | (Some(_), Some(_)) => return Head::Refused(Refusal::AmbiguousLength),
    };
    Head::Whole { length: end + 4, framing, is_http_11 }
}

fn has_bare_line_feed(bytes: &[u8]) -> bool {
    bytes.iter().enumerate().any(|(at, byte)| *byte == b'\n' && (at == 0 || bytes[at - 1] != b'\r'))
}

/// Digits only: no sign, no list, no empty value.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// How many bytes of line ends precede a request; a client may send some between two requests.
pub fn leading_line_ends(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
}

/// Follows a chunked body to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// In the digits of a size; how many were read, and their value.
    Size {
        digits: u8,
        value: u64,
    },
    /// After the size, up to its line end.
    Extension {
        value: u64,
    },
    SizeEnd {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataReturn,
    DataLineFeed,
    /// At the start of a trailer line, or of the empty line that ends the body.
    TrailerStart,
    TrailerLine,
    LastLineFeed,
    Done,
    /// Not a chunked body; hyper refuses it too, and nothing more is looked at.
    Broken,
}

impl Default for Chunks {
    fn default() -> Chunks {
        Chunks::Size { digits: 0, value: 0 }
    }
}

const MAX_SIZE_DIGITS: u8 = 16;

impl Chunks {
    /// Takes what belongs to the body from the front of `bytes` and says how many bytes that was: all of them, unless
    /// the body ended.
    pub fn advance(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            *self = match *self {
                Chunks::Done | Chunks::Broken => return at,
                Chunks::Data { left } => {
                    let step = left.min((bytes.len() - at) as u64);
                    at += step as usize;
                    *self = if step == left { Chunks::DataReturn } else { Chunks::Data { left: left - step } };
                    continue;
                }
                Chunks::Size { digits, value } => match (byte as char).to_digit(16) {
                    Some(digit) if digits < MAX_SIZE_DIGITS => {
                        Chunks::Size { digits: digits + 1, value: value << 4 | u64::from(digit) }
                    }
                    Some(_) => Chunks::Broken,
                    None if digits == 0 => Chunks::Broken,
                    None => match byte {
                        b'\r' => Chunks::SizeEnd { value },
                        b';' | b' ' | b'\t' => Chunks::Extension { value },
                        _ => Chunks::Broken,
                    },
                },
                Chunks::Extension { value } => match byte {
                    b'\r' => Chunks::SizeEnd { value },
                    b'\n' => Chunks::Broken,
                    _ => Chunks::Extension { value },
                },
                Chunks::SizeEnd { value } => match (byte, value) {
                    (b'\n', 0) => Chunks::TrailerStart,
                    (b'\n', left) => Chunks::Data { left },
                    (_, _) => Chunks::Broken,
                },
                Chunks::DataReturn if byte == b'\r' => Chunks::DataLineFeed,
                Chunks::DataLineFeed if byte == b'\n' => Chunks::default(),
                Chunks::TrailerStart if byte == b'\r' => Chunks::LastLineFeed,
                Chunks::TrailerStart => Chunks::TrailerLine,
                Chunks::TrailerLine if byte == b'\n' => Chunks::TrailerStart,
                Chunks::TrailerLine => Chunks::TrailerLine,
                Chunks::LastLineFeed if byte == b'\n' => Chunks::Done,
                Chunks::DataReturn | Chunks::DataLineFeed | Chunks::LastLineFeed => Chunks::Broken,
            };
            at += 1;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: ordinary heads are found with the right body after them.
    #[test]
    fn ordinary_heads() {
        let whole = |text: &str, framing| {
            let head = read_head(text.as_bytes());
            assert_eq!(head, Head::Whole { length: text.len(), framing, is_http_11: true }, "{text:?}");
            for end in 0..text.len() {
                assert_eq!(read_head(&text.as_bytes()[..end]), Head::Partial, "{:?}", &text[..end]);
            }
        };
        whole("GET /id HTTP/1.1\r\n\r\n", Framing::Empty);
        whole("POST /add HTTP/1.1\r\nHost: a\r\nCONTENT-length:  12 \r\n\r\n", Framing::Sized(12));
        whole("POST /add HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n", Framing::Chunked);
        let old = read_head(b"GET / HTTP/1.0\r\n\r\nrest");
        assert_eq!(old, Head::Whole { length: 18, framing: Framing::Empty, is_http_11: false });
    }

    /// Goal: whatever two readers could frame differently is refused (`attack:HT1`).
    #[test]
    fn ambiguous_heads_are_refused() {
        for lines in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length : 5\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let head = format!("POST /add HTTP/1.1\r\n{lines}\r\n");
            assert_eq!(read_head(head.as_bytes()), Head::Refused(Refusal::AmbiguousLength), "{lines:?}");
        }
        for head in
            ["GET / HTTP/1.1\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nA: b\nC: d", "GET / HTTP/1.1\r\nA: \0\r\n\r\n"]
        {
            assert_eq!(read_head(head.as_bytes()), Head::Refused(Refusal::BadLine), "{head:?}");
        }
    }

    /// Goal: the end of a chunked body is found wherever the bytes are cut.
    #[test]
    fn chunked_bodies_however_they_are_cut() {
        let body = b"5\r\nhello\r\n1A;name=\"x\"\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nX-Sum: 1\r\n\r\n";
        let mut both = body.to_vec();
        both.extend_from_slice(b"GET / HTTP/1.1\r\n");
        for cut in 0..both.len() {
            let mut chunks = Chunks::default();
            let first = chunks.advance(&both[..cut]);
            assert_eq!(first, cut.min(body.len()));
            let second = chunks.advance(&both[first..]);
            assert_eq!(first + second, body.len(), "cut at {cut}");
            assert_eq!(chunks, Chunks::Done);
        }
        for broken in [&b"xyz\r\n"[..], b"\r\n", b"5\nhello", b"1\r\nabc", b"11111111111111111\r\n", b"0\r\n\rx"] {
            let mut chunks = Chunks::default();
            chunks.advance(broken);
            assert_eq!(chunks, Chunks::Broken, "{broken:?}");
        }
    }
}
