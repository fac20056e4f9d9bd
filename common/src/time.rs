//! Wall-clock times as the API writes them, and durations in Go's syntax as the configuration writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::time::{OffsetDateTime, format_description::well_known::Rfc3339};
use pinfold_proto::types;

use crate::{Error, Result};

/// A wall-clock time. The default is the unset time, `0001-01-01T00:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanos: u32,
}

const UNSET_SECONDS: i64 = -62_135_596_800;

impl Default for Timestamp {
    fn default() -> Timestamp {
        Timestamp { seconds: UNSET_SECONDS, nanos: 0 }
    }
}

impl Timestamp {
    pub fn now() -> Timestamp {
        Timestamp::from(SystemTime::now())
    }

    pub const fn from_seconds(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    pub fn is_unset(self) -> bool {
        self.seconds == UNSET_SECONDS && self.nanos == 0
    }

    /// Whole seconds: how the state keeps times (beh:B7.1).
    pub const fn truncated(self) -> Timestamp {
        Timestamp { seconds: self.seconds, nanos: 0 }
    }

    /// Nanoseconds since the Unix epoch, as metrics carry them.
    pub const fn unix_nanos(self) -> i64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(self.nanos as i64)
    }

    pub fn from_unix_nanos(nanos: i64) -> Timestamp {
        Timestamp { seconds: nanos.div_euclid(1_000_000_000), nanos: nanos.rem_euclid(1_000_000_000) as u32 }
    }

    pub fn checked_add(self, duration: Duration) -> Option<Timestamp> {
        let nanos = self.nanos + duration.subsec_nanos();
        let seconds = i64::try_from(duration.as_secs()).ok()?.checked_add(i64::from(nanos / 1_000_000_000))?;
        Some(Timestamp { seconds: self.seconds.checked_add(seconds)?, nanos: nanos % 1_000_000_000 })
    }

    /// RFC 3339 as Go parses it.
    pub fn parse(text: &str) -> Result<Timestamp, String> {
        let parsed = OffsetDateTime::parse(text, &Rfc3339).map_err(|error| error.to_string())?;
        Ok(Timestamp { seconds: parsed.unix_timestamp(), nanos: parsed.nanosecond() })
    }
}

/// RFC 3339 in UTC with up to nine fractional digits, trailing zeros trimmed (rest-api.md 1.3).
impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = OffsetDateTime::from_unix_timestamp(self.seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            whole.year(),
            u8::from(whole.month()),
            whole.day(),
            whole.hour(),
            whole.minute(),
            whole.second()
        )?;
        if self.nanos > 0 {
            let digits = format!("{:09}", self.nanos);
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
            Err(_) => Timestamp::from_seconds(0),
        }
    }
}

impl From<types::Time> for Timestamp {
    fn from(time: types::Time) -> Timestamp {
        Timestamp { seconds: time.seconds, nanos: time.nanos.min(999_999_999) }
    }
}

impl From<Timestamp> for types::Time {
    fn from(time: Timestamp) -> types::Time {
        types::Time { seconds: time.seconds, nanos: time.nanos }
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A duration in Go's syntax: `300ms`, `1.5h`, `2h45m`; `0` needs no unit. Negative ones are refused.
pub fn parse_go_duration(text: &str) -> Result<Duration> {
    let bad = || Error::invalid(format!("invalid duration {:?}", crate::ids::shorten(text)));
    let rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() || rest.len() > 64 {
        return Err(bad());
    }
    let mut total_ns: f64 = 0.0;
    let mut exact_ns: u128 = 0;
    let mut rest = rest;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_ns: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(bad()),
        };
        match number.parse::<u64>() {
            Ok(whole) => exact_ns += u128::from(whole) * unit_ns,
            Err(_) => total_ns += number.parse::<f64>().map_err(|_| bad())? * unit_ns as f64,
        }
        rest = tail;
    }
    let nanos = exact_ns + total_ns.round() as u128;
    if nanos > i64::MAX as u128 {
        return Err(bad());
    }
    Ok(Duration::from_nanos(nanos as u64))
}

/// A duration as Go prints it: `2m0s`, `1.5s`, `300ms`.
pub fn format_go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let fraction = |value: f64, unit: &str| {
        let mut text = format!("{value:.9}");
        while text.ends_with('0') {
            text.pop();
        }
        format!("{}{unit}", text.trim_end_matches('.'))
    };
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => fraction(nanos as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => fraction(nanos as f64 / 1e6, "ms"),
        _ => {
            let seconds = duration.as_secs();
            let (hours, minutes) = (seconds / 3600, seconds % 3600 / 60);
            let rest = fraction((seconds % 60) as f64 + f64::from(duration.subsec_nanos()) / 1e9, "s");
            match (hours, minutes) {
                (0, 0) => rest,
                (0, _) => format!("{minutes}m{rest}"),
                _ => format!("{hours}h{minutes}m{rest}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: times read and print as the original's clients expect.
    #[test]
    fn timestamps_as_go_writes_them() {
        assert_eq!(Timestamp::default().to_string(), "0001-01-01T00:00:00Z");
        assert!(Timestamp::parse("0001-01-01T00:00:00Z").unwrap().is_unset());
        let fine = Timestamp::parse("2026-01-02T03:04:05.678901234+01:00").unwrap();
        assert_eq!(fine.to_string(), "2026-01-02T02:04:05.678901234Z");
        assert_eq!(Timestamp { seconds: 0, nanos: 500_000_000 }.to_string(), "1970-01-01T00:00:00.5Z");
    }

    /// Goal: Go's durations go both ways.
    #[test]
    fn go_durations() {
        for (text, canonical) in [
            ("300ms", "300ms"),
            ("1.5h", "1h30m0s"),
            ("2h45m", "2h45m0s"),
            ("90s", "1m30s"),
            ("0", "0s"),
            ("0s", "0s"),
            ("1.5s", "1.5s"),
            ("10us", "10µs"),
        ] {
            assert_eq!(format_go_duration(parse_go_duration(text).unwrap()), canonical);
        }
        for bad in ["", "5", "-1s", "1x", "s", "1h2", "1..5s", "99999999999h"] {
            assert!(parse_go_duration(bad).is_err(), "{bad}");
        }
    }
}
