//! The pin options of a query (rest-api.md 6), shared by pins and add. PURE but for the time, which is handed in.

use std::collections::BTreeMap;

use multiaddr::{Multiaddr, Protocol};
use pinfold_common::address::parse_multiaddr;
use pinfold_common::ids::{parse_cid, parse_peer_id, shorten};
use pinfold_common::json::mode_from_name;
use pinfold_common::pin::{MAX_NAME_BYTES, MAX_ORIGINS, MAX_USER_ALLOCATIONS, PinMode, PinOptions, check_metadata};
use pinfold_common::time::{Timestamp, parse_go_duration};
use pinfold_common::{Error, PeerId, Result};

use super::query::Query;

const METADATA_PREFIX: &str = "meta-";
const SHORTEST_EXPIRY_SECONDS: u64 = 1;

/// What a query says about a pin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub pin: PinOptions,
    pub mode: PinMode,
    pub user_allocations: Vec<PeerId>,
}

/// Reads all pin options; the first one that is wrong is the error.
pub fn parse(query: &Query<'_>, now: Timestamp) -> Result<Options> {
    let name = query.get("name");
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!("parameter name invalid: {} bytes, at most {MAX_NAME_BYTES}", name.len())));
    }
    let mode = mode(query)?;
    let (minimum, maximum) = match query.get("replication") {
        "" => (query.integer("replication-min")?, query.integer("replication-max")?),
        text => {
            // The original copies it over both and then complains about the first of them.
            let both = text.parse().map_err(|_| Error::invalid("parameter replication-min invalid"))?;
            (both, both)
        }
    };
    let shard_size_bytes = match query.get("shard-size") {
        "" => 0,
        text if text.starts_with('+') => return Err(Error::invalid("parameter shard_size is invalid")),
        text => text.parse().map_err(|_| Error::invalid("parameter shard_size is invalid"))?,
    };
    let user_allocations = user_allocations(query.get("user-allocations"))?;
    let expire_at = expire_at(query, now)?;
    let metadata = metadata(query)?;
    let pin_update =
        match query.get("pin-update") {
            "" => None,
            text => Some(parse_cid(text).map_err(|error| {
                Error::invalid(format!("error decoding update option parameter: {}", error.message))
            })?),
        };
    let origins = origins(query.get("origins"))?;
    let pin = PinOptions {
        replication_factor_min: minimum,
        replication_factor_max: maximum,
        name: name.to_owned(),
        shard_size_bytes,
        metadata,
        pin_update,
        expire_at,
        origins,
    };
    Ok(Options { pin, mode, user_allocations })
}

/// The original knows no `max-depth` and would pin recursively whatever it says. Here it is the mode in other words, and
/// refused where no IPFS node can pin so (beh:B13.3).
fn mode(query: &Query<'_>) -> Result<PinMode> {
    let mode = mode_from_name(query.get("mode"));
    if query.get("max-depth").is_empty() {
        return Ok(mode);
    }
    let depth = query.integer("max-depth")?;
    if !matches!(depth, -1 | 0) {
        return Err(Error::invalid(format!("parameter max-depth invalid: {depth} is neither -1 nor 0")));
    }
    if !query.get("mode").is_empty() && mode.depth() != depth {
        return Err(Error::invalid(format!("parameter max-depth invalid: {depth} is not mode {}", mode.name())));
    }
    Ok(PinMode::of_depth(depth))
}

/// beh:B7.9 NEW: an entry that is no peer ID is refused; the original dropped it in silence.
fn user_allocations(text: &str) -> Result<Vec<PeerId>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let entries = text.split(',').count();
    if entries > MAX_USER_ALLOCATIONS {
        return Err(Error::invalid(format!(
            "parameter user-allocations invalid: {entries} peers, at most {MAX_USER_ALLOCATIONS}"
        )));
    }
    let parse = |entry| {
        parse_peer_id(entry)
            .map_err(|error| Error::invalid(format!("parameter user-allocations invalid: {}", error.message)))
    };
    text.split(',').map(parse).collect()
}

fn expire_at(query: &Query<'_>, now: Timestamp) -> Result<Timestamp> {
    let at = query.get("expire-at");
    if !at.is_empty() {
        let refused =
            |why: &str| Error::invalid(format!("expire-at cannot be parsed: parsing time {:?}: {why}", shorten(at)));
        // Go knows no leap seconds.
        if at.get(16..19) == Some(":60") {
            return Err(refused("second out of range"));
        }
        return Timestamp::parse(at).map_err(|error| refused(&error));
    }
    let text = query.get("expire-in");
    if text.is_empty() {
        return Ok(Timestamp::default());
    }
    let too_short = || Error::invalid("expire-in duration too short");
    let positive = text.strip_prefix('-').unwrap_or(text);
    let duration = parse_go_duration(positive)
        .map_err(|error| Error::invalid(format!("expire-in cannot be parsed: {}", error.message)))?;
    if positive != text || duration.as_secs() < SHORTEST_EXPIRY_SECONDS {
        return Err(too_short());
    }
    now.checked_add(duration).ok_or_else(|| Error::invalid("expire-in cannot be parsed: too far away"))
}

fn metadata(query: &Query<'_>) -> Result<BTreeMap<String, String>> {
    let entries = query.names().filter_map(|(name, value)| Some((name.strip_prefix(METADATA_PREFIX)?, value)));
    let metadata: BTreeMap<String, String> =
        entries.filter(|(key, _)| !key.is_empty()).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    check_metadata(metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
    Ok(metadata)
}

fn origins(text: &str) -> Result<Vec<Multiaddr>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let entries = text.split(',').count();
    if entries > MAX_ORIGINS {
        return Err(Error::invalid(format!("parameter origins invalid: {entries} addresses, at most {MAX_ORIGINS}")));
    }
    let parse = |entry: &str| {
        let address = parse_multiaddr(entry)
            .map_err(|error| Error::invalid(format!("error decoding multiaddress: {}", error.message)))?;
        if !address.iter().any(|part| matches!(part, Protocol::P2p(_))) {
            return Err(Error::invalid(format!("multiaddress does not contain peer ID: {}", shorten(entry))));
        }
        Ok(address)
    };
    text.split(',').map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6";
    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn read(query: &str) -> Result<Options> {
        parse(&Query::parse(Some(query)), NOW)
    }

    /// Goal: what the Go client always sends is no option at all.
    #[test]
    fn what_the_go_client_sends() {
        let query = "mode=recursive&name=&replication-max=0&replication-min=0&shard-size=0&user-allocations=";
        assert_eq!(read(query).unwrap(), Options::default());
        assert_eq!(read("").unwrap(), Options::default());
    }

    /// Goal: each option is read, with its precedence.
    #[test]
    fn every_option() {
        let query = format!(
            "name=photos&mode=direct&replication=3&replication-min=1&shard-size=9&user-allocations={PEER}&expire-in=1h&\
             meta-kind=jpg&meta-=x&meta-empty=&pin-update=bafkqaaa&origins=/ip4/1.2.3.4/tcp/4001/p2p/{PEER}"
        );
        let options = read(&query).unwrap();
        assert_eq!((options.pin.replication_factor_min, options.pin.replication_factor_max), (3, 3));
        assert_eq!(options.pin.name, "photos");
        assert_eq!(options.mode, PinMode::Direct);
        assert_eq!(options.pin.shard_size_bytes, 9);
        assert_eq!(options.user_allocations[0].to_string(), PEER);
        assert_eq!(options.pin.expire_at.seconds, NOW.seconds + 3600);
        let metadata: Vec<_> = options.pin.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(metadata, [("empty", ""), ("kind", "jpg")]);
        assert_eq!(options.pin.pin_update.unwrap().to_string(), "bafkqaaa");
        assert_eq!(options.pin.origins.len(), 1);
        let both = read("expire-at=2030-01-02T03:04:05Z&expire-in=1h").unwrap();
        assert_eq!(both.pin.expire_at.to_string(), "2030-01-02T03:04:05Z");
        assert_eq!(read("mode=weird").unwrap().mode, PinMode::Recursive);
        assert_eq!(read("max-depth=0").unwrap().mode, PinMode::Direct);
        assert_eq!(read("max-depth=-1&mode=recursive").unwrap().mode, PinMode::Recursive);
        assert_eq!(read("replication-min=-1&replication-max=%2B2").unwrap().pin.replication_factor_max, 2);
    }

    /// Goal: the messages that clients compare (rest-api.md 2).
    #[test]
    fn messages_of_what_is_wrong() {
        for (query, message) in [
            ("max-depth=5", "parameter max-depth invalid: 5 is neither -1 nor 0"),
            ("max-depth=-5", "parameter max-depth invalid: -5 is neither -1 nor 0"),
            ("max-depth=two", "parameter max-depth invalid"),
            ("max-depth=0&mode=recursive", "parameter max-depth invalid: 0 is not mode recursive"),
            ("max-depth=-1&mode=direct", "parameter max-depth invalid: -1 is not mode direct"),
            ("replication-min=x", "parameter replication-min invalid"),
            ("replication-max=1.5", "parameter replication-max invalid"),
            ("replication=many", "parameter replication-min invalid"),
            ("replication-min=2147483648", "parameter replication-min invalid"),
            ("shard-size=-1", "parameter shard_size is invalid"),
            ("expire-at=yesterday", "expire-at cannot be parsed: "),
            ("expire-at=2027-06-30T23:59:60Z", "expire-at cannot be parsed: "),
            ("expire-at=2027-01-01T00:00:00%2B99:99", "expire-at cannot be parsed: "),
            ("expire-in=soon", "expire-in cannot be parsed: "),
            ("expire-in=500ms", "expire-in duration too short"),
            ("expire-in=-1h", "expire-in duration too short"),
            ("pin-update=nope", "error decoding update option parameter: "),
            ("origins=nope", "error decoding multiaddress: "),
            ("origins=/ip4/1.2.3.4/tcp/4001", "multiaddress does not contain peer ID: "),
            ("user-allocations=abc", "parameter user-allocations invalid: "),
        ] {
            let error = read(query).unwrap_err();
            assert!(error.message.starts_with(message), "{query}: {}", error.message);
            assert_eq!(error.code.http(), 400);
        }
    }
}
