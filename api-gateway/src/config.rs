//! `api.restapi` and the little else that the gateway reads of `service.json`, checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use multiaddr::{Multiaddr, Protocol};
use pinfold_common::config::File;
use pinfold_common::identity::Identity;
use pinfold_common::tls::{ClusterSecret, Room};
use pinfold_common::{Error, Result};

use crate::rest::Cors;

/// The smallest `max_header_bytes`, as in the original.
const MIN_HEADER_BYTES: u64 = 4096;
const MAX_HEADER_BYTES: u64 = 1024 * 1024;
/// What Go's server allows on top of `max_header_bytes`.
const HEADER_SLACK_BYTES: usize = 4096;

pub struct Config {
    pub identity: Identity,
    pub secret: ClusterSecret,
    pub peername: String,
    /// Of this room: `gateway/` in the peer's folder.
    pub folder: PathBuf,
    /// Own siblings, as `host:port`.
    pub consensus: String,
    pub monitor: String,
    pub connector: String,
    /// `observations.tracing.enable_tracing`
    pub is_traced: bool,
    pub rest: Rest,
}

/// `api.restapi`
pub struct Rest {
    pub listen: Vec<Multiaddr>,
    pub tls: Option<TlsFiles>,
    /// Of the whole request with its body, and of the whole answer; zero: no limit.
    pub read_timeout: Duration,
    pub write_timeout: Duration,
    pub read_header_timeout: Duration,
    pub idle_timeout: Duration,
    pub header_bytes: usize,
    pub credentials: Option<BTreeMap<String, String>>,
    pub log_file: Option<PathBuf>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub cors: Cors,
}

pub struct TlsFiles {
    pub certificates: PathBuf,
    pub key: PathBuf,
}

impl Config {
    pub fn from_file(file: &File) -> Result<Config> {
        let rest = Rest::from_file(file)?;
        let allow_insecure = file.bool("api.allow_insecure_listen")?;
        if !allow_insecure {
            refuse_insecure_listen(&rest)?;
        }
        Ok(Config {
            identity: Identity::load(file.folder())?,
            secret: file.secret()?,
            peername: file.peername()?,
            folder: file.folder().join("gateway"),
            consensus: file.announce(Room::Consensus)?,
            monitor: file.announce(Room::Monitor)?,
            connector: file.announce(Room::Connector)?,
            is_traced: file.bool("observations.tracing.enable_tracing")?,
            rest,
        })
    }
}

impl Rest {
    fn from_file(file: &File) -> Result<Rest> {
        let key = |name: &str| format!("api.restapi.{name}");
        let listen = file.multiaddrs(&key("http_listen_multiaddress"))?;
        if listen.is_empty() {
            return Err(Error::invalid("api.restapi.http_listen_multiaddress: no address"));
        }
        let header_bytes = file.uint(&key("max_header_bytes"))?;
        if !(MIN_HEADER_BYTES..=MAX_HEADER_BYTES).contains(&header_bytes) {
            return Err(Error::invalid(format!(
                "api.restapi.max_header_bytes: {header_bytes} is not between {MIN_HEADER_BYTES} and {MAX_HEADER_BYTES}"
            )));
        }
        let credentials = file.optional_map(&key("basic_auth_credentials"))?;
        check_credentials(credentials.as_ref())?;
        let log_file = file.string(&key("http_log_file"))?;
        Ok(Rest {
            listen,
            tls: tls_files(file)?,
            read_timeout: file.duration(&key("read_timeout"))?,
            write_timeout: file.duration(&key("write_timeout"))?,
            read_header_timeout: file.duration(&key("read_header_timeout"))?,
            idle_timeout: file.duration(&key("idle_timeout"))?,
            header_bytes: header_bytes as usize + HEADER_SLACK_BYTES,
            credentials,
            log_file: (!log_file.is_empty()).then(|| file.folder().join(log_file)),
            headers: headers(file)?,
            cors: Cors {
                origins: file.strings(&key("cors_allowed_origins"))?,
                methods: file.strings(&key("cors_allowed_methods"))?,
                headers: file.strings(&key("cors_allowed_headers"))?,
                exposed: file.strings(&key("cors_exposed_headers"))?,
                credentials: file.bool(&key("cors_allow_credentials"))?,
                max_age: file.duration(&key("cors_max_age"))?,
            },
        })
    }
}

fn check_credentials(credentials: Option<&BTreeMap<String, String>>) -> Result<()> {
    const KEY: &str = "api.restapi.basic_auth_credentials";
    let Some(credentials) = credentials else { return Ok(()) };
    if credentials.is_empty() {
        return Err(Error::invalid(format!("{KEY}: empty; leave it out, or null, to use no authentication")));
    }
    for (user, password) in credentials {
        if user.is_empty() || user.contains(':') {
            return Err(Error::invalid(format!("{KEY}: user {user:?} is empty or has a colon in it")));
        }
        if password.is_empty() {
            return Err(Error::invalid(format!("{KEY}: the password of {user:?} is empty")));
        }
    }
    Ok(())
}

fn tls_files(file: &File) -> Result<Option<TlsFiles>> {
    let certificates = file.string("api.restapi.ssl_cert_file")?;
    let key = file.string("api.restapi.ssl_key_file")?;
    match (certificates.is_empty(), key.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(TlsFiles {
            certificates: in_folder(file.folder(), &certificates),
            key: in_folder(file.folder(), &key),
        })),
        (true, false) => Err(Error::invalid("api.restapi.ssl_cert_file: missing beside api.restapi.ssl_key_file")),
        (false, true) => Err(Error::invalid("api.restapi.ssl_key_file: missing beside api.restapi.ssl_cert_file")),
    }
}

/// Absolute paths stay what they are.
fn in_folder(folder: &Path, path: &str) -> PathBuf {
    folder.join(path)
}

fn headers(file: &File) -> Result<Vec<(HeaderName, HeaderValue)>> {
    let bad = |name: &str, what: &str| Error::invalid(format!("api.restapi.headers: {name:?}: {what}"));
    let mut headers = Vec::new();
    for (name, values) in file.lists("api.restapi.headers")? {
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(&name, "not a header's name"))?;
        for value in values {
            let value = HeaderValue::from_str(&value).map_err(|_| bad(&name, "a value that no header can hold"))?;
            headers.push((parsed.clone(), value));
        }
    }
    Ok(headers)
}

/// The public may reach this port only when it has to prove who it is, over a link that nobody else reads.
fn refuse_insecure_listen(rest: &Rest) -> Result<()> {
    if rest.credentials.is_some() && rest.tls.is_some() {
        return Ok(());
    }
    let public = rest.listen.iter().find(|address| !is_loopback(address));
    let Some(address) = public else { return Ok(()) };
    Err(Error::invalid(format!(
        "api.restapi.http_listen_multiaddress: {address} can be reached from other machines, and the API has no \
         credentials or no TLS; set api.restapi.basic_auth_credentials, api.restapi.ssl_cert_file and \
         api.restapi.ssl_key_file, or set api.allow_insecure_listen to true if something else protects it"
    )))
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => name == "localhost",
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rest(changes: &[(&str, serde_json::Value)]) -> Result<Rest> {
        let mut file = File::defaults();
        for (name, value) in changes {
            file = file.with(&format!("api.restapi.{name}"), value.clone());
        }
        Rest::from_file(&file)
    }

    fn refusal(changes: &[(&str, serde_json::Value)]) -> String {
        rest(changes).map(drop).unwrap_err().message
    }

    /// Goal: defaults are those of the original, and each wrong value is refused by its full name.
    #[test]
    fn defaults_and_refusals() {
        let defaults = rest(&[]).unwrap();
        assert_eq!(defaults.header_bytes, 8192);
        assert_eq!(defaults.read_header_timeout, Duration::from_secs(5));
        assert!(defaults.credentials.is_none() && defaults.tls.is_none() && defaults.log_file.is_none());
        assert!(refusal(&[("max_header_bytes", json!(4095))]).contains("api.restapi.max_header_bytes"));
        assert!(refusal(&[("basic_auth_credentials", json!({}))]).contains("api.restapi.basic_auth_credentials"));
        assert!(refusal(&[("basic_auth_credentials", json!({"a": ""}))]).contains("\"a\""));
        assert!(refusal(&[("ssl_cert_file", json!("a.pem"))]).contains("api.restapi.ssl_key_file"));
        assert!(refusal(&[("headers", json!({"a b": ["c"]}))]).contains("api.restapi.headers"));
    }

    /// Goal: nobody serves the world by accident.
    #[test]
    fn insecure_listening_is_refused() {
        let everywhere = ("http_listen_multiaddress", json!(["/ip4/127.0.0.1/tcp/9094", "/ip4/0.0.0.0/tcp/9094"]));
        let credentials = ("basic_auth_credentials", json!({"a": "b"}));
        let tls = [("ssl_cert_file", json!("c")), ("ssl_key_file", json!("k"))];
        let check = |changes: &[(&str, serde_json::Value)]| refuse_insecure_listen(&rest(changes).unwrap());
        assert!(check(&[]).is_ok());
        assert!(check(std::slice::from_ref(&everywhere)).unwrap_err().message.contains("/ip4/0.0.0.0/tcp/9094"));
        assert!(check(&[everywhere.clone(), credentials.clone()]).is_err());
        assert!(check(&[everywhere.clone(), tls[0].clone(), tls[1].clone()]).is_err());
        assert!(check(&[everywhere, credentials, tls[0].clone(), tls[1].clone()]).is_ok());
    }
}
