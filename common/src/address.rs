//! Multiaddresses, which people write and peers announce, against `host:port`, which sockets take.

use std::net::SocketAddr;

use multiaddr::{Multiaddr, Protocol};

use crate::ids::shorten;
use crate::{Error, PeerId, Result};

/// The longest text taken for a multiaddress.
pub const MAX_MULTIADDRESS_TEXT_BYTES: usize = 1024;

/// `/ip4/1.2.3.4/tcp/9096/p2p/12D3…` is `1.2.3.4:9096`; `/ip6/…` gets its brackets, `/dns/…`, `/dns4/…` and `/dns6/…`
/// keep their name. What follows the port (a peer ID, `/http`, `/https`) does not matter here.
pub fn host_port(address: &Multiaddr) -> Result<String> {
    let mut parts = address.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.to_string(),
        Some(Protocol::Ip6(ip)) => format!("[{ip}]"),
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => name.into_owned(),
        Some(_) | None => {
            return Err(Error::invalid(format!(
                "multiaddress {address}: starts with none of /ip4, /ip6, /dns4, /dns6"
            )));
        }
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) => Ok(format!("{host}:{port}")),
        Some(_) | None => Err(Error::invalid(format!("multiaddress {address}: has no /tcp/<port> after the host"))),
    }
}

/// The peer a multiaddress ends in: `/p2p/<peer ID>`.
pub fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        Some(_) | None => None,
    }
}

/// The multiaddress of a `host:port`.
pub fn multiaddr_of(host_port: &str) -> Result<Multiaddr> {
    if let Ok(socket) = host_port.parse::<SocketAddr>() {
        return Ok(Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port())));
    }
    let refused = || Error::invalid(format!("address {:?}: not host:port", shorten(host_port)));
    let (host, port) = host_port.rsplit_once(':').ok_or_else(refused)?;
    if host.is_empty() || host.contains(['/', ':', '[', ']']) {
        return Err(refused());
    }
    let port = port.parse::<u16>().map_err(|_| refused())?;
    Ok(Multiaddr::empty().with(Protocol::Dns(host.into())).with(Protocol::Tcp(port)))
}

/// A multiaddress from text. `/ipfs/<peer ID>`, the old spelling of `/p2p/<peer ID>`, is taken too. The rest behind
/// `/unix/` is one path, as in Go; the library would take only its first part.
pub fn parse_multiaddr(text: &str) -> Result<Multiaddr> {
    if text.len() > MAX_MULTIADDRESS_TEXT_BYTES {
        return Err(Error::invalid(format!("multiaddress: longer than {MAX_MULTIADDRESS_TEXT_BYTES} characters")));
    }
    if let Some(path) = text.strip_prefix("/unix/").filter(|path| !path.is_empty()) {
        return Ok(Multiaddr::empty().with(Protocol::Unix(path.into())));
    }
    text.parse().map_err(|error| Error::invalid(format!("{:?} is not a multiaddress: {error}", shorten(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6";

    /// Goal: a path of several parts is one socket, and is written as it was read.
    #[test]
    fn unix_sockets() {
        let address = parse_multiaddr("/unix/run/kubo/api.sock").unwrap();
        assert_eq!(address.iter().next(), Some(Protocol::Unix("run/kubo/api.sock".into())));
        assert_eq!(address.to_string(), "/unix/run/kubo/api.sock");
    }

    /// Goal: each kind of host becomes what a socket takes, and comes back.
    #[test]
    fn hosts_go_both_ways() {
        for (text, expected) in [
            ("/ip4/127.0.0.1/tcp/9096", "127.0.0.1:9096"),
            ("/ip6/::1/tcp/9096", "[::1]:9096"),
            ("/dns/consensus.local/tcp/1", "consensus.local:1"),
        ] {
            let address = parse_multiaddr(text).unwrap();
            assert_eq!(host_port(&address).unwrap(), expected);
            assert_eq!(multiaddr_of(expected).unwrap(), address);
        }
        assert_eq!(host_port(&parse_multiaddr("/dns4/kubo/tcp/443/https").unwrap()).unwrap(), "kubo:443");
    }

    /// Goal: the peer is read from both spellings, and only from the end.
    #[test]
    fn the_peer_at_the_end() {
        for spelling in ["p2p", "ipfs"] {
            let address = parse_multiaddr(&format!("/ip4/10.0.0.1/tcp/9096/{spelling}/{PEER}")).unwrap();
            assert_eq!(peer_of(&address).unwrap().to_string(), PEER);
            assert_eq!(host_port(&address).unwrap(), "10.0.0.1:9096");
        }
        assert!(peer_of(&parse_multiaddr("/ip4/10.0.0.1/tcp/9096").unwrap()).is_none());
    }

    /// Goal: what no socket can use is refused with words, not accepted in part.
    #[test]
    fn useless_addresses_are_refused() {
        assert!(host_port(&parse_multiaddr("/ip4/0.0.0.0/udp/9096/quic").unwrap()).is_err());
        assert!(host_port(&parse_multiaddr(&format!("/p2p/{PEER}")).unwrap()).is_err());
        for text in ["", "nonsense", "127.0.0.1:9096", "/ip4/300.0.0.1/tcp/1"] {
            assert!(parse_multiaddr(text).is_err() || host_port(&parse_multiaddr(text).unwrap()).is_err(), "{text}");
        }
        for text in ["", ":1", "host", "host:", "host:70000", "::1:80", "a/b:80"] {
            assert!(multiaddr_of(text).is_err(), "{text}");
        }
    }
}
