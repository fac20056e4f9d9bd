//! From what Kubo or the transport said to our few error classes. The texts are those of beh:B13.11.

use std::error::Error as _;
use std::fmt;

use serde::Deserialize;

use crate::node::NodeError;

/// `pin/add?arg=…`: what was asked, as it appears in error texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallName(String);

/// Longest text of a call in a message; a multiaddress or a path may be long.
const MAX_CALL_CHARACTERS: usize = 300;

impl CallName {
    pub fn new(text: &str) -> CallName {
        CallName(text.chars().take(MAX_CALL_CHARACTERS).collect())
    }
}

impl fmt::Display for CallName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What Kubo says in the body of an answer that is not 200.
#[derive(Deserialize)]
struct KuboError {
    #[serde(rename = "Message")]
    message: String,
}

/// An answer with a status other than 200.
pub fn failed(call: &CallName, status: u16, body: &[u8]) -> NodeError {
    match serde_json::from_slice::<KuboError>(body) {
        Ok(error) => {
            classify(&error.message, format!("IPFS error ({call}). Code: {status}. Message: {}", error.message))
        }
        Err(_) => {
            let body: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
            NodeError::Other(format!("IPFS request failed (is it running?) ({call}). Code {status}: {body}"))
        }
    }
}

/// A failure after the answer had begun.
pub fn failed_in_stream(call: &CallName, message: &str) -> NodeError {
    classify(message, format!("IPFS error ({call}). Code: 200. Message: {message}"))
}

/// The request was not answered.
pub fn unreachable(call: &CallName, error: &reqwest::Error) -> NodeError {
    let text = format!("ipfs node: {call}: {}", innermost(error));
    if error.is_timeout() && !error.is_connect() { NodeError::Timeout(text) } else { NodeError::Down(text) }
}

/// The answer stopped in its middle.
pub fn broken_off(call: &CallName, error: &reqwest::Error) -> NodeError {
    NodeError::Down(format!("ipfs node: {call}: the answer broke off: {}", innermost(error)))
}

pub fn timed_out(call: &CallName, after: std::time::Duration) -> NodeError {
    NodeError::Timeout(format!("ipfs node: {call}: no answer within {after:?}"))
}

/// The last cause says what happened ("connection refused"); the ones around it only that something did.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = error_source(cause) {
        cause = next;
    }
    if error.source().is_some() { cause.to_string() } else { error.to_string() }
}

fn error_source<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    error.source()
}

/// Whether this is Kubo saying that there is no such pin (beh:B13.4, B13.14).
pub fn is_not_pinned(error: &NodeError) -> bool {
    let text = error.to_string();
    text.ends_with("not pinned") || text.ends_with("not pinned or pinned indirectly")
}

/// Whether Kubo was told to stay offline and does not have the block.
pub fn is_not_local(error: &NodeError) -> bool {
    matches!(error, NodeError::NoProviders(_))
}

fn classify(message: &str, text: String) -> NodeError {
    let message = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["no space left on device", "storage limit exceeded", "disk quota exceeded"]) {
        NodeError::DiskFull(text)
    } else if says(&["block was not found locally", "could not find"]) {
        NodeError::NoProviders(text)
    } else if says(&["context deadline exceeded"]) {
        NodeError::Timeout(text)
    } else if says(&["no link named", "no link by that name"]) {
        NodeError::NotFound(text)
    } else if says(&[
        "already pinned recursively",
        "content integrity",
        "insecure hash function",
        "no decoder registered",
        "unrecognized codec",
        "produced block is over",
        "digest too",
        "digest must be",
        "invalid path",
        "unknown multihash code",
    ]) {
        NodeError::Refused(text)
    } else {
        NodeError::Other(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: Kubo's words, as 0.44 sends them, land in the class that the tracker acts on.
    #[test]
    fn classes() {
        let call = CallName::new("pin/add?arg=Qm");
        let of = |message: &str| failed(&call, 500, format!("{{\"Message\":{message:?},\"Code\":0}}").as_bytes());
        assert!(matches!(of("pin: write /blocks: no space left on device"), NodeError::DiskFull(_)));
        assert!(matches!(of("maximum storage limit exceeded. Try to unpin some files"), NodeError::DiskFull(_)));
        assert!(matches!(
            of("pin: block was not found locally (offline): ipld: could not find Qm"),
            NodeError::NoProviders(_)
        ));
        assert!(matches!(of("pin: Qm already pinned recursively"), NodeError::Refused(_)));
        assert!(is_not_pinned(&of("not pinned or pinned indirectly")));
        assert!(is_not_pinned(&of("path 'Qm' is not pinned")));
        assert_eq!(of("boom").to_string(), "IPFS error (pin/add?arg=Qm). Code: 500. Message: boom");
        let text = failed(&call, 404, b"404 page not found\n").to_string();
        assert_eq!(text, "IPFS request failed (is it running?) (pin/add?arg=Qm). Code 404: 404 page not found");
    }
}
