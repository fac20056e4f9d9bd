//! Whether a daemon's automatic GC is on. No call of its RPC says so; its command line does, which Kubo serves for
//! profilers beside the RPC (`/debug/pprof/cmdline`, cmd/ipfs/kubo/daemon.go). A proxy in between may keep that page to
//! itself, and then nothing is known.

use std::time::Duration;

use super::rpc::Rpc;
use crate::node::Collection;

/// `GET`: the arguments, with a NUL between them.
const COMMAND_LINE: &str = "/debug/pprof/cmdline";
const DEADLINE: Duration = Duration::from_secs(2);
/// A longer command line is nobody's.
const MAX_BYTES: usize = 64 * 1024;
/// The option of `ipfs daemon`, a boolean: alone, or with `=` and a value that Go's `strconv.ParseBool` takes.
const OPTION: &str = "--enable-gc";

pub async fn ask(rpc: &Rpc) -> Collection {
    match rpc.page(COMMAND_LINE, MAX_BYTES, DEADLINE).await {
        Ok(page) => of_command_line(&page),
        Err(error) => {
            tracing::debug!(%error, "ask the IPFS node for its command line");
            Collection::Unknown
        }
    }
}

/// Arguments are secrets perhaps: nothing of them is told.
fn of_command_line(page: &[u8]) -> Collection {
    let Ok(page) = std::str::from_utf8(page) else { return Collection::Unknown };
    let arguments: Vec<&str> = page.split('\0').skip(1).take_while(|argument| *argument != "--").collect();
    // Another program, or a page of a proxy's.
    if !arguments.contains(&"daemon") {
        return Collection::Unknown;
    }
    let mut values = arguments.iter().filter_map(|argument| match argument.strip_prefix(OPTION)? {
        "" => Some(Some(true)),
        value => value.strip_prefix('=').map(parse_bool),
    });
    match values.next_back() {
        None | Some(Some(false)) => Collection::OnRequest,
        Some(Some(true)) => Collection::ByItself,
        Some(None) => Collection::Unknown,
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the command lines that Kubo takes, as it takes them; what is no daemon's says nothing.
    #[test]
    fn command_lines() {
        for (arguments, expected) in [
            (&["ipfs", "daemon"][..], Collection::OnRequest),
            (&["/usr/bin/ipfs", "daemon", "--migrate=true", "--agent-version-suffix=x"], Collection::OnRequest),
            (&["ipfs", "daemon", "--enable-gc"], Collection::ByItself),
            (&["ipfs", "daemon", "--enable-gc=true", "--routing", "none"], Collection::ByItself),
            (&["ipfs", "--enable-gc", "daemon"], Collection::ByItself),
            (&["ipfs", "daemon", "--enable-gc=0"], Collection::OnRequest),
            (&["ipfs", "daemon", "--enable-gc=perhaps"], Collection::Unknown),
            (&["ipfs", "daemon", "--enable-gc-later"], Collection::OnRequest),
            (&["ipfs", "daemon", "--", "--enable-gc"], Collection::OnRequest),
            (&["other", "--enable-gc"], Collection::Unknown),
            (&["<html>daemon --enable-gc</html>"], Collection::Unknown),
            (&[""], Collection::Unknown),
        ] {
            assert_eq!(of_command_line(arguments.join("\0").as_bytes()), expected, "{arguments:?}");
        }
        assert_eq!(of_command_line(b"ipfs\0daemon\0\xff"), Collection::Unknown);
    }
}
