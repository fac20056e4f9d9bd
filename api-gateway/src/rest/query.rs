//! Paths and queries as Go's `net/url` and the original's router read them. PURE.

use std::borrow::Cow;

use pinfold_common::{Error, Result};

/// A query string. The first value of a name wins, an empty value counts as absent, and a pair that is not well
/// escaped is as if it were not there. A semicolon is a character like others: Go drops a pair that holds one, and so
/// would answer as if nothing had been asked.
#[derive(Debug, Default)]
pub struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Query<'a> {
    pub fn parse(raw: Option<&'a str>) -> Query<'a> {
        let pairs = raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((unescape(name, Plus::IsSpace)?, unescape(value, Plus::IsSpace)?))
        });
        Query { pairs: pairs.collect() }
    }

    /// The first value of `name`; empty when there is none.
    pub fn get(&self, name: &str) -> &str {
        self.pairs.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// Every name with its first value, in the order sent.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().enumerate().filter_map(|(at, (name, value))| {
            let is_first = self.pairs[..at].iter().all(|(earlier, _)| earlier != name);
            is_first.then_some((name.as_ref(), value.as_ref()))
        })
    }

    /// As Go's `strconv.ParseBool` reads it.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            "" => Ok(default),
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
            _ => Err(Error::invalid(format!("parameter {name} invalid"))),
        }
    }

    /// `local` and `consistent` are compared with the exact word (rest-api.md 8).
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name) == "true"
    }

    pub fn integer(&self, name: &str) -> Result<i32> {
        match self.get(name) {
            "" => Ok(0),
            text => text.parse().map_err(|_| Error::invalid(format!("parameter {name} invalid"))),
        }
    }

    /// A count that the original does not have: `limit`.
    pub fn count(&self, name: &str) -> Result<u64> {
        match self.get(name) {
            "" => Ok(0),
            text => text.parse().map_err(|_| Error::invalid(format!("parameter {name} invalid"))),
        }
    }
}

/// What a plus sign stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Plus {
    IsSpace,
    IsPlus,
}

/// Undoes percent escapes; `None` when one is broken. Bytes that are not UTF-8 become U+FFFD.
pub fn unescape(text: &str, plus: Plus) -> Option<Cow<'_, str>> {
    let is_plain = |byte: u8| byte != b'%' && (byte != b'+' || plus == Plus::IsPlus);
    if text.bytes().all(is_plain) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |byte: &u8| (*byte as char).to_digit(16);
                bytes.push((digit(high)? << 4 | digit(low)?) as u8);
                rest = tail;
            }
            (b'%', _) => return None,
            (b'+', _) if plus == Plus::IsSpace => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    Some(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
}

/// What the router does with a path before it looks at routes.
#[derive(Debug, PartialEq, Eq)]
pub enum Cleaned {
    /// Route it.
    Clean,
    /// 307 to this: the same path without its last slash.
    Trailing(String),
    /// 301 to this: `//`, `.` and `..` resolved.
    Moved(String),
}

/// rest-api.md 1.1, steps 4 and 5, for a path as it was sent and unescaped. `/` itself is clean, and no route. Slashes
/// that were escaped separate nothing new that would have to be cleaned: such a path is merely no route.
pub fn clean(raw: &str, path: &str) -> Cleaned {
    // Nearly all are: nothing is built for them.
    let may_need_cleaning = path.ends_with('/') || raw.contains("//") || path.contains("/.") || !path.starts_with('/');
    if path == "/" || !may_need_cleaning {
        return Cleaned::Clean;
    }
    if let Some(without) = path.strip_suffix('/') {
        // `//` alone would lead to itself for ever, or to the root of another host.
        let target =
            if without.starts_with("//") || without.is_empty() { resolve(without) } else { without.to_owned() };
        return Cleaned::Trailing(target);
    }
    let resolved = resolve(path);
    if resolved == path { Cleaned::Clean } else { Cleaned::Moved(resolved) }
}

/// Absolute, without empty, `.` and `..` segments.
pub fn resolve(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    format!("/{}", segments.join("/"))
}

/// Escapes a path for a `Location` header.
pub fn escape_path(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => escaped.push(byte as char),
            b'/' | b'-' | b'_' | b'.' | b'~' | b'$' | b'&' | b'+' | b',' | b':' | b'=' | b'@' => {
                escaped.push(byte as char)
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: queries read as Go reads them.
    #[test]
    fn queries_as_go_reads_them() {
        let query = Query::parse(Some("name=a+b%2Bc&name=second&empty=&bad=%zz&x=a;y=1&flag&meta-=&%6dode=direct"));
        assert_eq!(query.get("name"), "a b+c");
        assert_eq!(query.get("empty"), "");
        assert_eq!(query.get("bad"), "");
        assert_eq!(query.get("x"), "a;y=1");
        assert_eq!(query.get("mode"), "direct");
        assert_eq!(query.names().filter(|(name, _)| *name == "name").count(), 1);
        assert!(!Query::parse(Some("local=True")).is_true("local"));
        assert!(Query::parse(Some("local=true")).is_true("local"));
        assert!(Query::parse(Some("shard=T")).flag("shard", false).unwrap());
        assert_eq!(
            Query::parse(Some("shard=yes")).flag("shard", false).unwrap_err().message,
            "parameter shard invalid"
        );
        assert_eq!(Query::parse(None).integer("replication-min").unwrap(), 0);
        assert_eq!(Query::parse(Some("n=%2B3")).integer("n").unwrap(), 3);
    }

    /// Goal: paths are cleaned as the original's router does, and nothing redirects to itself or to another host.
    #[test]
    fn paths_are_cleaned() {
        let clean = |raw: &str| super::clean(raw, &unescape(raw, Plus::IsPlus).unwrap());
        assert_eq!(clean("/pins/Qm"), Cleaned::Clean);
        assert_eq!(clean("/%2fid%2fx"), Cleaned::Clean);
        assert_eq!(clean("/pins/%2e%2e/id"), Cleaned::Moved("/id".into()));
        assert_eq!(clean("/%2f%2fexample.com/"), Cleaned::Trailing("/example.com".into()));
        assert_eq!(clean("/"), Cleaned::Clean);
        assert_eq!(clean("/id/"), Cleaned::Trailing("/id".into()));
        assert_eq!(clean("//example.com/"), Cleaned::Trailing("/example.com".into()));
        assert_eq!(clean("//"), Cleaned::Trailing("/".into()));
        assert_eq!(clean("/pins//Qm"), Cleaned::Moved("/pins/Qm".into()));
        assert_eq!(clean("//id"), Cleaned::Moved("/id".into()));
        assert_eq!(clean("/a/./../../id"), Cleaned::Moved("/id".into()));
        assert_eq!(escape_path("/pins/a b\u{e9}?"), "/pins/a%20b%C3%A9%3F");
    }
}
