//! A peer's key pair and the ID that follows from it, in `identity.json` as IPFS Cluster writes it (beh:B1.2).
//! New identities are Ed25519; RSA ones of older installs load and are kept as they are.

use std::fmt;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libp2p_identity::{KeyType, Keypair};
use prost::Message as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::files::{PRIVATE, check_private, read_small, write_once};
use crate::ids::parse_peer_id;
use crate::{Error, PeerId, Result};

pub const IDENTITY_FILE: &str = "identity.json";
/// Environment variables that override the file and are checked just the same.
pub const ID_VARIABLE: &str = "CLUSTER_ID";
pub const PRIVATE_KEY_VARIABLE: &str = "CLUSTER_PRIVATEKEY";
const CONFIGURATION_FILE: &str = "service.json";
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// An Ed25519 private key in PKCS#8 is this and the 32 bytes of its seed (RFC 8410).
const ED25519_PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A key pair whose ID is known to match.
#[derive(Clone)]
pub struct Identity {
    pub peer_id: PeerId,
    keypair: Keypair,
    /// The libp2p protobuf of the private key as it was read: an RSA key cannot be encoded again.
    encoded: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("peer_id", &self.peer_id.to_string()).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    id: String,
    private_key: String,
}

/// The envelope libp2p puts around a private key.
#[derive(prost::Message)]
struct PrivateKeyProto {
    #[prost(int32, required, tag = "1")]
    key_type: i32,
    #[prost(bytes = "vec", required, tag = "2")]
    data: Vec<u8>,
}

impl Identity {
    /// A new Ed25519 identity.
    pub fn generate() -> Identity {
        let keypair = Keypair::generate_ed25519();
        let encoded = match keypair.to_protobuf_encoding() {
            Ok(encoded) => encoded,
            Err(error) => unreachable!("an Ed25519 key has a protobuf form: {error}"),
        };
        Identity { peer_id: keypair.public().to_peer_id(), keypair, encoded }
    }

    /// Reads `<folder>/identity.json`, or what `CLUSTER_ID` and `CLUSTER_PRIVATEKEY` put in its place. Without the
    /// file, the `cluster` section of an old `service.json` is asked (beh:B1.3); it is not rewritten, because `init`
    /// is the only writer of these files (protocols.md 1).
    pub fn load(folder: &Path) -> Result<Identity> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        load(folder, variable(ID_VARIABLE), variable(PRIVATE_KEY_VARIABLE))
    }

    /// The identity of `private_key`, base64 of the libp2p protobuf, which must be that of `id`.
    pub fn parse(id: &str, private_key: &str) -> Result<Identity> {
        let peer_id = parse_peer_id(id).map_err(|error| error.context("identity: id"))?;
        let encoded =
            STANDARD.decode(private_key.trim()).map_err(|_| Error::invalid("identity: private_key: not base64"))?;
        // The library's message may quote what it read, and this is a key.
        let keypair = Keypair::from_protobuf_encoding(&encoded)
            .map_err(|_| Error::invalid("identity: private_key: not an Ed25519 or RSA key as libp2p encodes it"))?;
        let derived = keypair.public().to_peer_id();
        if derived != peer_id {
            return Err(Error::invalid(format!(
                "identity: id {peer_id} does not match its private_key, which is that of {derived}"
            )));
        }
        Ok(Identity { peer_id, keypair, encoded })
    }

    /// Writes `<folder>/identity.json` with mode 0600. Never over an existing one (beh:B1.3).
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(IDENTITY_FILE);
        let file = File { id: self.peer_id.to_string(), private_key: STANDARD.encode(&self.encoded) };
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Error::rejected(format!("write {}: it exists; delete it to get a new identity", path.display()))
            }
            _ => Error::internal(format!("write {}: {error}", path.display())),
        };
        let mut bytes = serde_json::to_vec_pretty(&file).map_err(|error| failed(error.into()))?;
        bytes.push(b'\n');
        write_once(&path, &bytes, PRIVATE).map_err(failed)
    }

    pub fn keypair(&self) -> &Keypair {
        &self.keypair
    }

    /// The private key in the form TLS takes.
    pub(crate) fn private_key_der(&self) -> Result<PrivateKeyDer<'static>> {
        let unusable = || Error::invalid("identity: private_key: neither Ed25519 nor RSA");
        match self.keypair.key_type() {
            KeyType::Ed25519 => {
                let pair = self.keypair.clone().try_into_ed25519().map_err(|_| unusable())?;
                Ok(ed25519_pkcs8(pair.secret().as_ref()))
            }
            KeyType::RSA => {
                let key = PrivateKeyProto::decode(self.encoded.as_slice()).map_err(|_| unusable())?;
                Ok(PrivatePkcs1KeyDer::from(key.data).into())
            }
            KeyType::Secp256k1 | KeyType::Ecdsa => Err(unusable()),
        }
    }
}

/// PKCS#8 of an Ed25519 seed of 32 bytes.
pub(crate) fn ed25519_pkcs8(seed: &[u8]) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from([ED25519_PKCS8_PREFIX.as_slice(), seed].concat()).into()
}

fn load(folder: &Path, id: Option<String>, private_key: Option<String>) -> Result<Identity> {
    if let (Some(id), Some(private_key)) = (&id, &private_key) {
        return Identity::parse(id, private_key)
            .map_err(|error| error.context(format!("{ID_VARIABLE} and {PRIVATE_KEY_VARIABLE}")));
    }
    let path = folder.join(IDENTITY_FILE);
    if private_key.is_none() {
        check_private(&path)?;
    }
    let named = |error: Error| error.context(path.display());
    let file = match read(&path)? {
        Some(bytes) => serde_json::from_slice::<File>(&bytes)
            // serde_json names the field and the place, and does not quote values of the right type
            .map_err(|error| named(Error::invalid(format!("needs exactly id and private_key: {error}"))))?,
        None => {
            from_old_configuration(folder)?.ok_or_else(|| named(Error::invalid("no identity here; run init first")))?
        }
    };
    Identity::parse(&id.unwrap_or(file.id), &private_key.unwrap_or(file.private_key)).map_err(named)
}

/// `cluster.id` and `cluster.private_key` of a `service.json` from before version 0.11.
fn from_old_configuration(folder: &Path) -> Result<Option<File>> {
    let Some(bytes) = read(&folder.join(CONFIGURATION_FILE))? else { return Ok(None) };
    // A malformed configuration is reported by whoever loads it.
    let Ok(tree) = serde_json::from_slice::<serde_json::Value>(&bytes) else { return Ok(None) };
    let text = |key: &str| tree["cluster"][key].as_str().filter(|value| !value.is_empty()).map(str::to_owned);
    Ok(text("id").zip(text("private_key")).map(|(id, private_key)| File { id, private_key }))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    read_small(path, MAX_FILE_BYTES).map_err(|error| Error::invalid(format!("read {}: {error}", path.display())))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// An identity as `ipfs-cluster-service init` made them before Ed25519; its key is for tests only.
    pub(crate) fn rsa_identity() -> Identity {
        let pkcs1 = STANDARD.decode(include_str!("testdata/rsa-2048.pkcs1.base64").replace('\n', "")).unwrap();
        let encoded = PrivateKeyProto { key_type: 0, data: pkcs1 }.encode_to_vec();
        let keypair = Keypair::from_protobuf_encoding(&encoded).unwrap();
        Identity { peer_id: keypair.public().to_peer_id(), keypair, encoded }
    }

    /// Goal: what init writes is what a start reads, private, and never overwritten.
    #[test]
    fn saved_once_and_loaded() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path(), None, None).unwrap_err().message.contains("run init first"));
        let identity = Identity::generate();
        identity.save(folder.path()).unwrap();
        let path = folder.path().join(IDENTITY_FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(identity.peer_id.to_string().starts_with("12D3KooW"));
        assert_eq!(load(folder.path(), None, None).unwrap().peer_id, identity.peer_id);
        assert!(Identity::generate().save(folder.path()).is_err());
        assert_eq!(load(folder.path(), None, None).unwrap().peer_id, identity.peer_id);
    }

    /// Goal: a key that every user of the machine can read is refused, with what to do; in a folder of one's own it is not
    /// readable, and beside a key from the environment it does not count.
    #[test]
    fn fault_d12_a_key_for_everybody_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        let identity = Identity::generate();
        identity.save(folder.path()).unwrap();
        let path = folder.path().join(IDENTITY_FILE);
        mode(folder.path(), 0o755);
        assert!(load(folder.path(), None, None).is_ok());
        mode(&path, 0o644);
        let error = load(folder.path(), None, None).unwrap_err();
        assert!(error.message.contains(&format!("chmod 600 {}", path.display())), "{error}");
        let (id, key) = (identity.peer_id.to_string(), STANDARD.encode(&identity.encoded));
        assert!(load(folder.path(), Some(id), Some(key)).is_ok());
        mode(folder.path(), 0o700);
        assert!(load(folder.path(), None, None).is_ok());
    }

    /// Goal: an identity with an old RSA key loads, keeps its `Qm…` ID, and is saved unchanged.
    #[test]
    fn rsa_loads() {
        let folder = tempfile::tempdir().unwrap();
        let identity = rsa_identity();
        assert!(identity.peer_id.to_string().starts_with("Qm"));
        identity.save(folder.path()).unwrap();
        let loaded = load(folder.path(), None, None).unwrap();
        assert_eq!(loaded.peer_id, identity.peer_id);
        assert_eq!(loaded.encoded, identity.encoded);
    }

    /// Goal: an ID that is not the key's is refused, wherever it comes from, and no message quotes the key.
    #[test]
    fn id_and_key_must_match() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, other) = (Identity::generate(), Identity::generate());
        ours.save(folder.path()).unwrap();
        let key = STANDARD.encode(&other.encoded);
        let error = load(folder.path(), None, Some(key.clone())).unwrap_err();
        assert!(error.message.contains("does not match"), "{error}");
        assert!(!error.message.contains(&key));
        assert!(load(folder.path(), Some(other.peer_id.to_string()), None).is_err());
        let both = load(folder.path(), Some(other.peer_id.to_string()), Some(key)).unwrap();
        assert_eq!(both.peer_id, other.peer_id);
        for key in ["", "!", "AAAA"] {
            assert!(Identity::parse(&ours.peer_id.to_string(), key).is_err());
        }
    }

    /// Goal: an installation from before 0.11, with the key inside service.json, starts.
    #[test]
    fn old_layout_loads() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::generate();
        let tree = serde_json::json!({"cluster": {
            "id": identity.peer_id.to_string(), "private_key": STANDARD.encode(&identity.encoded)}});
        std::fs::write(folder.path().join(CONFIGURATION_FILE), tree.to_string()).unwrap();
        assert_eq!(load(folder.path(), None, None).unwrap().peer_id, identity.peer_id);
        assert!(!folder.path().join(IDENTITY_FILE).exists());
    }
}
