//! What commands print: text in the original's formats for eyes (spec/ctl.md A.4), JSON for scripts. Data goes to
//! stdout, everything else to stderr.

use std::fmt::Write as _;
use std::io::Write as _;

use pinfold_common::departure::{self, DepartureJson};
use pinfold_common::json::{ErrorJson, GlobalPinInfoJson, IdJson, PinJson, PinSource, to_go_json_pretty};
use pinfold_common::pin::{Pin, PinMode};
use pinfold_common::status::reason_name;
use pinfold_common::time::Timestamp;
use pinfold_common::{PeerId, ids};
use pinfold_proto::{api, types};
use serde::Serialize;

use crate::cli::Encoding;
use crate::client::{Failure, Outcome};

/// Writes to stdout; a reader that went away (`ctl pin ls | head`) ends the command without noise.
pub fn print(text: &str) -> Outcome {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Exit(0)),
        Err(error) => Err(Failure::local("writing output", error)),
        Ok(()) => Ok(()),
    }
}

pub fn print_json(value: &impl Serialize) -> Outcome {
    print(&to_go_json_pretty(value))
}

/// What `drain` and `undrain` came to.
pub fn print_departure(encoding: Encoding, peer: &PeerId, departure: &types::Departure) -> Outcome {
    match encoding {
        Encoding::Json => print_json(&DepartureJson::new(departure)),
        Encoding::Text => print(&format!("{peer} | {}\n", departure::text(departure))),
    }
}

/// The progress of a removal: for eyes on stderr, because the original prints nothing; for scripts an object a change.
pub fn show_removal(encoding: Encoding, peer: &PeerId, departure: &types::Departure) -> Outcome {
    match encoding {
        Encoding::Json => print_json(&DepartureJson::new(departure)),
        Encoding::Text => {
            eprintln!("{peer} | {}", departure::text(departure));
            Ok(())
        }
    }
}

pub fn print_peer(encoding: Encoding, peer: &api::PeerId) -> Outcome {
    let json = IdJson::try_from(peer)?;
    match encoding {
        Encoding::Json => print_json(&json),
        Encoding::Text => print(&peer_text(&json, peer)),
    }
}

fn peer_text(peer: &IdJson, record: &api::PeerId) -> String {
    let departure = match &record.departure {
        None => String::new(),
        Some(departure) if departure.removing => format!("  > Being removed: {}\n", departure::text(departure)),
        Some(departure) => format!("  > Draining: {}\n", departure::text(departure)),
    };
    if !peer.error.is_empty() {
        return format!("{} | ERROR: {}\n{departure}", peer.id, peer.error);
    }
    let others = peer.cluster_peers.as_ref().map_or(0, |peers| peers.len().saturating_sub(1));
    let mut text = format!("{} | {} | Sees {others} other peers\n", peer.id, peer.peername);
    if !record.role.is_empty() {
        let _ = writeln!(text, "  > Role: {}", record.role);
    }
    text.push_str(&departure);
    let _ = writeln!(text, "  > Addresses:");
    for address in sorted(&peer.addresses) {
        let _ = writeln!(text, "    - {address}");
    }
    if peer.ipfs.error.is_empty() {
        let _ = writeln!(text, "  > IPFS: {}", peer.ipfs.id.as_deref().unwrap_or_default());
        for address in sorted(&peer.ipfs.addresses) {
            let _ = writeln!(text, "    - {address}");
        }
    } else {
        let _ = writeln!(text, "  > IPFS ERROR: {}", peer.ipfs.error);
    }
    text
}

fn sorted(list: &Option<Vec<String>>) -> Vec<&String> {
    let mut list: Vec<&String> = list.iter().flatten().collect();
    list.sort();
    list
}

pub fn print_status(encoding: Encoding, info: &api::GlobalPinInfo) -> Outcome {
    let json = GlobalPinInfoJson::try_from(info)?;
    match encoding {
        Encoding::Json => print_json(&json),
        Encoding::Text => print(&status_text(&json, info)),
    }
}

fn status_text(json: &GlobalPinInfoJson, info: &api::GlobalPinInfo) -> String {
    let mut text = json.cid.clone();
    if !json.name.is_empty() {
        let _ = write!(text, " | {}", json.name);
    }
    text.push_str(":\n");
    for peer in &info.peers {
        let id = ids::peer_from_bytes(&peer.peer).map(|id| id.to_string()).unwrap_or_default();
        let Some(status) = json.peer_map.get(&id) else { continue };
        let name = if status.peername.is_empty() { &id } else { &status.peername };
        let _ = write!(text, "    > {name:<20} : {}", status.status.to_uppercase());
        if !status.error.is_empty() {
            let _ = write!(text, ": {}", status.error);
        }
        let _ = write!(
            text,
            " | {} | Attempts: {} | Priority: {}",
            status.timestamp, status.attempt_count, status.priority_pin
        );
        let reason = reason_name(types::Reason::try_from(peer.reason).unwrap_or_default());
        if !reason.is_empty() {
            let _ = write!(text, " | Reason: {reason}");
        }
        if peer.blocks > 0 && status.status == "pinning" {
            let _ = write!(text, " | {} blocks", peer.blocks);
        }
        text.push('\n');
    }
    text
}

pub fn print_pin(encoding: Encoding, pin: types::Pin, source: PinSource) -> Outcome {
    let pin = Pin::try_from(pin)?;
    match encoding {
        Encoding::Json => print_json(&PinJson::new(&pin, source)),
        Encoding::Text => print(&pin_text(&pin)),
    }
}

/// One line of `pin ls`.
pub fn pin_text(pin: &Pin) -> String {
    let options = &pin.options;
    let direct = if pin.mode() == PinMode::Direct { "-DIRECT" } else { "" };
    let mut text = format!("{} | {} | {}{direct} | ", pin.cid, options.name, pin.kind.name().to_uppercase());
    if options.is_everywhere() {
        text.push_str("Repl. Factor: -1 | Allocations: [everywhere] | ");
    } else {
        let mut peers: Vec<String> = pin.allocations.iter().map(ToString::to_string).collect();
        peers.sort();
        let (min, max) = (options.replication_factor_min, options.replication_factor_max);
        let _ = write!(text, "Repl. Factor: {min}--{max} | Allocations: [{}] | ", peers.join(" "));
    }
    match pin.max_depth {
        -1 => text.push_str("Recursive"),
        0 => text.push_str("Direct"),
        depth => {
            let _ = write!(text, "Recursive-{depth}");
        }
    }
    let metadata = if options.metadata.is_empty() { "no" } else { "yes" };
    let date = |time: Timestamp, unset: &str| match time.is_unset() {
        true => unset.to_owned(),
        false => time.truncated().to_string().replace('T', " ").replace('Z', ""),
    };
    let (expires, added) = (date(options.expire_at, "∞"), date(pin.timestamp, "unknown"));
    let _ = writeln!(text, " | Metadata: {metadata} | Exp: {expires} | Added: {added}");
    text
}

/// Tells a failure where it belongs, and gives the exit code (spec/ctl.md A.2).
pub fn tell(encoding: Encoding, failure: &Failure) -> u8 {
    let api = |code: u16, message: &str| {
        let text = match encoding {
            Encoding::Text => format!("An error occurred:\n  Code: {code}\n  Message: {message}\n"),
            Encoding::Json => to_go_json_pretty(&ErrorJson { code, message: message.to_owned() }),
        };
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
    };
    match failure {
        Failure::Local { .. } => {
            eprintln!("{failure}");
            1
        }
        Failure::Network(message) => {
            api(0, message);
            1
        }
        Failure::Api(error) => {
            api(error.code.http(), &error.message);
            2
        }
        Failure::WaitTimedOut => {
            eprintln!("{failure}");
            62
        }
        Failure::Exit(code) => *code,
    }
}

/// A moment for eyes, in milliseconds from now: "29 seconds from now", "1 minute ago" (spec/ctl.md A.4).
pub fn relative_text(offset_ms: i64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const UNITS: [(u64, &str); 7] = [
        (365 * DAY, "year"),
        (30 * DAY, "month"),
        (7 * DAY, "week"),
        (DAY, "day"),
        (HOUR, "hour"),
        (MINUTE, "minute"),
        (1, "second"),
    ];
    let seconds = offset_ms.unsigned_abs() / 1000;
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| seconds >= *unit) else { return "now".to_owned() };
    let count = seconds / unit;
    let plural = if count == 1 { "" } else { "s" };
    let side = if offset_ms < 0 { "ago" } else { "from now" };
    format!("{count} {name}{plural} {side}")
}

/// Bytes for eyes: 1.2 GB.
pub fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_common::pin::{PinOptions, PinType};

    /// Goal: `pin ls` prints the original's line.
    #[test]
    fn pin_line() {
        let pin = Pin {
            cid: ids::parse_cid("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG").unwrap(),
            kind: PinType::Data,
            max_depth: -1,
            options: PinOptions {
                replication_factor_min: -1,
                replication_factor_max: -1,
                name: "n".to_owned(),
                ..PinOptions::default()
            },
            allocations: Vec::new(),
            leaving: Vec::new(),
            reference: None,
            timestamp: Timestamp::parse("2026-01-02T03:04:05Z").unwrap(),
            revision: 1,
        };
        assert_eq!(
            pin_text(&pin),
            "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG | n | PIN | Repl. Factor: -1 | Allocations: [everywhere] | \
             Recursive | Metadata: no | Exp: ∞ | Added: 2026-01-02 03:04:05\n"
        );
        assert_eq!(size_text(83_000_000), "83 MB");
        assert_eq!(size_text(1_240_000_000), "1.2 GB");
        assert_eq!(size_text(12), "12 B");
    }

    /// Goal: moments read as the original's.
    #[test]
    fn moments() {
        for (offset_ms, expected) in [
            (0, "now"),
            (-999, "now"),
            (29_500, "29 seconds from now"),
            (-60_000, "1 minute ago"),
            (-3 * 3_600_000, "3 hours ago"),
            (-2 * 86_400_000, "2 days ago"),
            (-8 * 86_400_000, "1 week ago"),
        ] {
            assert_eq!(relative_text(offset_ms), expected);
        }
    }
}
