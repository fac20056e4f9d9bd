//! JSON objects one after the other, as exports have them, read in constant memory. Any white space may stand between
//! them, so lines and indented objects are both fine; an error says on which line it is.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use pinfold_common::json::PinJson;
use pinfold_common::pin::{Pin, PinType};
use pinfold_common::{Error, Result};
use serde_json::de::IoRead;
use serde_json::{Deserializer, StreamDeserializer};

use crate::coordinator::rules::{self, Factors};

/// One object; a pin's own bounds are far below.
const MAX_OBJECT_BYTES: u64 = 1 << 20;

/// Counts what was taken of the input.
struct Counted<R> {
    inner: R,
    place: Rc<Place>,
}

#[derive(Default)]
struct Place {
    lines: Cell<u64>,
    object_bytes: Cell<u64>,
}

impl<R: Read> Read for Counted<R> {
    /// Byte by byte: the reader of JSON takes one at a time, and the count must not run ahead of it.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(first) = buffer.first_mut() else { return Ok(0) };
        let count = self.inner.read(std::slice::from_mut(first))?;
        if count == 1 {
            self.place.lines.set(self.place.lines.get() + u64::from(*first == b'\n'));
            self.place.object_bytes.set(self.place.object_bytes.get() + 1);
            if self.place.object_bytes.get() > MAX_OBJECT_BYTES {
                return Err(io::Error::other(format!("an object of more than {MAX_OBJECT_BYTES} bytes")));
            }
        }
        Ok(count)
    }
}

/// The objects of an export, as pins.
pub struct Pins<R: Read> {
    objects: StreamDeserializer<'static, IoRead<Counted<R>>, PinJson>,
    place: Rc<Place>,
    defaults: Factors,
    /// Objects without a valid type, which the original stores as `bad-type`; taken as pins.
    pub without_type: u64,
}

impl<R: Read> Pins<R> {
    /// `reader` should be buffered. Factors of 0 become `defaults`.
    pub fn new(reader: R, defaults: Factors) -> Pins<R> {
        let place = Rc::<Place>::default();
        let counted = Counted { inner: reader, place: place.clone() };
        Pins { objects: Deserializer::from_reader(counted).into_iter(), place, defaults, without_type: 0 }
    }

    fn pin(&mut self, object: &PinJson) -> Result<Pin> {
        let mut pin = object.to_pin()?;
        if pin.kind == PinType::Bad {
            pin.kind = PinType::Data;
            self.without_type += 1;
        }
        let options = &mut pin.options;
        let factors = rules::factors(options.replication_factor_min, options.replication_factor_max, self.defaults)?;
        (options.replication_factor_min, options.replication_factor_max) = (factors.min, factors.max);
        rules::depth(pin.kind, pin.max_depth)?;
        // The bounds of what the pinset keeps.
        pinfold_common::pin::PinOptions::try_from(pinfold_proto::types::PinOptions::from(pin.options.clone()))?;
        Ok(pin)
    }
}

impl<R: Read> Iterator for Pins<R> {
    type Item = Result<Pin>;

    fn next(&mut self) -> Option<Result<Pin>> {
        self.place.object_bytes.set(0);
        let object = self.objects.next()?;
        // An object ends on the line where its last brace is.
        let line = self.place.lines.get() + 1;
        let pin = match object {
            Ok(object) => self.pin(&object),
            Err(error) => {
                // The library's own line is where it noticed; for an object over several lines that is nearer.
                let text = error.to_string();
                let text = text.split(" at line ").next().unwrap_or_default().to_owned();
                let line = if error.line() == 0 { line } else { error.line() as u64 };
                return Some(Err(Error::invalid(format!("line {line}: {text}"))));
            }
        };
        Some(pin.map_err(|error| error.context(format!("line {line}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTORS: Factors = Factors { min: 2, max: 3 };

    fn object(more: &str) -> String {
        format!(r#"{{"cid":"bafkqaaa","type":"pin","max_depth":-1{more}}}"#)
    }

    fn read(text: &str) -> Result<Vec<Pin>> {
        Pins::new(text.as_bytes(), FACTORS).collect()
    }

    /// Goal: objects may stand as they like, and what is missing is what the original takes it for.
    #[test]
    fn objects_stand_as_they_like() {
        let several = format!("{}\n\n {} {}", object(""), object("").replace(',', ",\n  "), object(""));
        assert_eq!(read(&several).unwrap().len(), 3);
        assert_eq!(read("").unwrap().len(), 0);
        let pin = read(r#"{"cid":"bafkqaaa"}"#).unwrap().remove(0);
        assert_eq!((pin.max_depth, pin.kind), (0, PinType::Data));
        assert_eq!((pin.options.replication_factor_min, pin.options.replication_factor_max), (2, 3));
        let mut pins = Pins::new(r#"{"cid":"bafkqaaa","type":"bad-type"}"#.as_bytes(), FACTORS);
        assert!(pins.next().unwrap().is_ok());
        assert_eq!(pins.without_type, 1);
    }

    /// Goal: issue 6, beh:B7.4. A pin down to a depth, which no IPFS node can do, is refused as everywhere else; the original's
    /// types with depths of their own are not.
    #[test]
    fn depths_that_nobody_can_pin() {
        for depth in [1, 2, 7, -2] {
            let text = format!("{}\n{{\"cid\":\"bafkqaaa\",\"type\":\"pin\",\"max_depth\":{depth}}}", object(""));
            let error = read(&text).unwrap_err();
            assert_eq!(error.message, format!("line 2: max_depth: {depth} is neither -1 nor 0"));
        }
        let shard = r#"{"cid":"bafkqaaa","type":"shard-pin","max_depth":1}"#;
        assert_eq!(read(shard).unwrap()[0].max_depth, 1);
    }

    /// Goal: a mistake is told by its line, whatever kind it is (seed:I6, fault:U5).
    #[test]
    fn seed_i6_mistakes_have_a_line() {
        let good = object("");
        for (bad, says) in [
            ("{", "key must be"),
            ("nonsense", "expected"),
            ("[]", "cid: missing"),
            (r#"{"cid":"bafkq"}"#, "cid"),
            (r#"{"type":"pin"}"#, "cid: missing"),
            (r#"{"cid":{"/":"bafkqaaa"}}"#, "invalid type"),
            (r#"{"cid":"bafkqaaa","allocations":["x"]}"#, "allocations"),
            (r#"{"cid":"bafkqaaa","replication_factor_min":3,"replication_factor_max":2}"#, "replication_factor_min"),
            (r#"{"cid":"bafkqaaa","expire_at":"soon"}"#, "could not be parsed"),
        ] {
            let error = read(&format!("{good}\n{good}\n{bad}\n{good}\n")).unwrap_err();
            let line = if bad == "{" { 4 } else { 3 };
            assert!(error.message.starts_with(&format!("line {line}: ")), "{bad}: {error}");
            assert!(error.message.contains(says), "{bad}: {error}");
        }
        let long = object(&format!(r#","name":"{}""#, "x".repeat(2 << 20)));
        let error = read(&format!("{good}\n{long}")).unwrap_err();
        assert!(error.message.starts_with("line 2: ") && error.message.contains("more than"), "{error}");
        let name = object(&format!(r#","name":"{}""#, "x".repeat(2000)));
        assert!(read(&name).unwrap_err().message.starts_with("line 1: name"));
    }
}
