//! From the multiaddress of a Kubo RPC API to the way there.

use std::path::PathBuf;

use multiaddr::{Multiaddr, Protocol};

use crate::node::{NodeError, Result};

/// Where Kubo's RPC is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Api {
    /// `http://host:port` or `https://host:port`.
    Tcp(String),
    UnixSocket(PathBuf),
}

/// `/ip4|ip6|dns|dns4|dns6/…/tcp/<port>[/http|/https|/tls/http]`, or `/unix/<path>`. Names are looked up at each
/// connection, so a node may move.
pub fn parse_api(address: &Multiaddr) -> Result<Api> {
    let unusable = |why: &str| NodeError::Refused(format!("kubo rpc address {address}: {why}"));
    let mut parts = address.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.to_string(),
        Some(Protocol::Ip6(ip)) => format!("[{ip}]"),
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => name.into_owned(),
        Some(Protocol::Unix(path)) => {
            // The library keeps everything behind /unix/ as the path, with or without its first slash.
            let path = if path.starts_with('/') { path.into_owned() } else { format!("/{path}") };
            return Ok(Api::UnixSocket(PathBuf::from(path)));
        }
        Some(_) | None => return Err(unusable("must begin with ip4, ip6, dns, dns4, dns6 or unix")),
    };
    let Some(Protocol::Tcp(port)) = parts.next() else {
        return Err(unusable("must name a tcp port after the host"));
    };
    let mut scheme = "http";
    for part in parts {
        match part {
            Protocol::Http => {}
            Protocol::Https | Protocol::Tls => scheme = "https",
            _ => return Err(unusable("only http, https or tls may follow the port")),
        }
    }
    Ok(Api::Tcp(format!("{scheme}://{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use pinfold_common::address::parse_multiaddr;

    use super::*;

    /// Goal: what the original takes for `node_multiaddress` leads somewhere, the rest is refused by name.
    #[test]
    fn addresses() {
        let api = |text: &str| parse_api(&parse_multiaddr(text).unwrap());
        assert_eq!(api("/ip4/127.0.0.1/tcp/5001"), Ok(Api::Tcp("http://127.0.0.1:5001".into())));
        assert_eq!(api("/ip6/::1/tcp/5001"), Ok(Api::Tcp("http://[::1]:5001".into())));
        assert_eq!(api("/dns4/kubo/tcp/5001/https"), Ok(Api::Tcp("https://kubo:5001".into())));
        assert_eq!(api("/unix/run/kubo.sock"), Ok(Api::UnixSocket("/run/kubo.sock".into())));
        assert!(api("/ip4/127.0.0.1/udp/5001").unwrap_err().to_string().contains("tcp port"));
        assert!(api("/ip4/127.0.0.1/tcp/5001/ws").is_err());
    }
}
