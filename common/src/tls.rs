//! Who is who between services: a certificate authority that everybody with the cluster secret can derive, and leaf
//! certificates for the peers' identity keys (protocols.md 2). Holding a certificate is identity, not permission;
//! that is `audience`'s. A peer ID is computed from the certificate's key and never read from a name.

use std::fmt;
use std::sync::Arc;

use pinfold_proto::WIRE_VERSION;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use ring::digest::{SHA256, digest};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::{Identity, ed25519_pkcs8};
use crate::ids::peer_id_base36;
use crate::{Error, PeerId, Result};

/// The last labels of every certificate's DNS name.
const DOMAIN: &str = "pinfold.internal";
const ALPN_H2: &[u8] = b"h2";
/// Domain separation of what is derived from the secret. Changing either parts old and new peers.
const CA_SALT: &[u8] = b"pinfold cluster ca v1";
const CA_INFO: &[u8] = b"ed25519 seed";
const SECRET_BYTES: usize = 32;
const OID_ED25519: &str = "1.3.101.112";
const OID_RSA: &str = "1.2.840.113549.1.1.1";

/// The kind of process a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Room {
    Consensus,
    Monitor,
    Connector,
    Gateway,
    Ctl,
}

impl Room {
    pub const ALL: [Room; 5] = [Room::Consensus, Room::Monitor, Room::Connector, Room::Gateway, Room::Ctl];

    /// The name of the process, and the first label of its certificate's DNS name.
    pub const fn name(self) -> &'static str {
        match self {
            Room::Consensus => "consensus-svc",
            Room::Monitor => "monitor-svc",
            Room::Connector => "ipfs-connector",
            Room::Gateway => "api-gateway",
            Room::Ctl => "ctl",
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The 32 bytes that all peers of a cluster share. Its `Debug` shows nothing of them.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret([u8; SECRET_BYTES]);

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(hidden)")
    }
}

impl ClusterSecret {
    /// From 64 hexadecimal digits (beh:B1.5). The original runs unprotected on an empty secret; here it is refused.
    pub fn parse(text: &str) -> Result<ClusterSecret> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Error::invalid("cluster.secret: empty; all peers need the same 64 hexadecimal digits"));
        }
        let bytes = hex::decode(text).map_err(|_| Error::invalid("cluster.secret: not hexadecimal"))?;
        let length = bytes.len();
        let bytes = bytes.try_into().map_err(|_| {
            Error::invalid(format!("cluster.secret: {length} bytes, but 32 are needed (64 hexadecimal digits)"))
        })?;
        Ok(ClusterSecret(bytes))
    }

    pub fn generate() -> ClusterSecret {
        let mut bytes = [0; SECRET_BYTES];
        match SystemRandom::new().fill(&mut bytes) {
            Ok(()) => ClusterSecret(bytes),
            Err(error) => panic!("the operating system has no random numbers: {error}"),
        }
    }

    /// For writing a configuration file; nowhere else.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// One process's side of mTLS: its certificate, and whom it believes.
pub struct Tls {
    own: PeerId,
    room: Room,
    wire_version: String,
    ca: CertificateDer<'static>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("own", &self.own.to_string()).field("room", &self.room).finish_non_exhaustive()
    }
}

impl Tls {
    pub fn new(secret: &ClusterSecret, identity: &Identity, room: Room) -> Result<Arc<Tls>> {
        Tls::speaking(WIRE_VERSION, secret, identity, room)
    }

    /// As a process of another version would be; for tests of what becomes of it (protocols.md 10).
    pub fn speaking(wire_version: &str, secret: &ClusterSecret, identity: &Identity, room: Room) -> Result<Arc<Tls>> {
        let authority = Authority::derive(secret)?;
        let ca = authority.certificate()?;
        let leaf = authority.issue(identity, room)?;
        let key = identity.private_key_der()?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone()).map_err(|error| refused("trust the cluster's authority", error))?;
        let roots = Arc::new(roots);
        Ok(Arc::new(Tls {
            own: identity.peer_id,
            room,
            wire_version: wire_version.to_owned(),
            ca,
            server: server_config(roots.clone(), leaf.clone(), key.clone_key())?,
            client: client_config(roots, leaf, key)?,
        }))
    }

    /// The peer this process belongs to.
    pub fn own(&self) -> PeerId {
        self.own
    }

    pub fn room(&self) -> Room {
        self.room
    }

    /// What this process speaks to others.
    pub fn wire_version(&self) -> &str {
        &self.wire_version
    }

    /// The certificate of the cluster's authority, the same at every peer that has the secret.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}

/// What the certificate of that process of that peer is issued to.
pub(crate) fn dns_name(room: Room, peer: &PeerId) -> String {
    format!("{}.{}.{DOMAIN}", room.name(), peer_id_base36(peer))
}

pub(crate) fn server_name(room: Room, peer: &PeerId) -> Result<ServerName<'static>> {
    ServerName::try_from(dns_name(room, peer)).map_err(|error| refused("name a peer", error))
}

/// The peer that a verified certificate's key belongs to.
pub(crate) fn peer_of_certificate(certificate: &CertificateDer<'_>) -> Result<PeerId> {
    let unusable = |what: &str| Error::new(crate::Code::Unauthenticated, format!("certificate: {what}"));
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unusable("not X.509"))?;
    let key = parsed.public_key();
    let public: libp2p_identity::PublicKey = match key.algorithm.algorithm.to_id_string().as_str() {
        OID_ED25519 => libp2p_identity::ed25519::PublicKey::try_from_bytes(&key.subject_public_key.data)
            .map_err(|_| unusable("damaged Ed25519 key"))?
            .into(),
        OID_RSA => {
            libp2p_identity::rsa::PublicKey::try_decode_x509(key.raw).map_err(|_| unusable("damaged RSA key"))?.into()
        }
        _ => return Err(unusable("its key is neither Ed25519 nor RSA")),
    };
    Ok(public.to_peer_id())
}

/// The certificate authority of one cluster: the same key, and the same certificate, from the same secret.
struct Authority {
    key: KeyPair,
    params: CertificateParams,
}

impl Authority {
    fn derive(secret: &ClusterSecret) -> Result<Authority> {
        let mut seed = [0; SECRET_BYTES];
        Salt::new(HKDF_SHA256, CA_SALT)
            .extract(&secret.0)
            .expand(&[CA_INFO], HKDF_SHA256)
            .and_then(|derived| derived.fill(&mut seed))
            .map_err(|error| refused("derive the cluster's authority", error))?;
        let pkcs8 = ed25519_pkcs8(&seed);
        let key =
            KeyPair::try_from(pkcs8.secret_der()).map_err(|error| refused("derive the cluster's authority", error))?;

        // With the fingerprint in the name, the wrong secret is an unknown issuer and not a bad signature.
        let fingerprint = hex::encode(&digest(&SHA256, key.public_key_raw()).as_ref()[..16]);
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, format!("pinfold cluster {fingerprint}"));
        let mut params = valid_for_ever();
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.serial_number = Some(SerialNumber::from(1));
        Ok(Authority { key, params })
    }

    fn certificate(&self) -> Result<CertificateDer<'static>> {
        let certificate = self.params.self_signed(&self.key);
        Ok(certificate.map_err(|error| refused("sign the authority's certificate", error))?.der().clone())
    }

    fn issue(&self, identity: &Identity, room: Room) -> Result<CertificateDer<'static>> {
        let failed = |error: rcgen::Error| refused("sign this process's certificate", error);
        let key = LeafKey::of(identity)?;
        let name = dns_name(room, &identity.peer_id);
        let mut params = valid_for_ever();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, room.name());
        params.subject_alt_names = vec![SanType::DnsName(name.as_str().try_into().map_err(failed)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let mut serial = digest(&SHA256, name.as_bytes()).as_ref()[..16].to_vec();
        serial[0] = serial[0] & 0x7f | 0x40; // positive, and always 16 bytes long
        params.serial_number = Some(SerialNumber::from(serial));
        let issuer = Issuer::from_params(&self.params, &self.key);
        Ok(params.signed_by(&key, &issuer).map_err(failed)?.der().clone())
    }
}

/// Revocation is membership, and no clock may lock a peer out: 1970 to 9999.
fn valid_for_ever() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    params
}

/// The public half of an identity, as rcgen asks for it.
struct LeafKey {
    bytes: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl LeafKey {
    fn of(identity: &Identity) -> Result<LeafKey> {
        let public = identity.keypair().public();
        if let Ok(key) = public.clone().try_into_ed25519() {
            return Ok(LeafKey { bytes: key.to_bytes().to_vec(), algorithm: &rcgen::PKCS_ED25519 });
        }
        let key = public.try_into_rsa().map_err(|error| refused("issue a certificate", error))?;
        Ok(LeafKey { bytes: key.encode_pkcs1(), algorithm: &rcgen::PKCS_RSA_SHA256 })
    }
}

impl PublicKeyData for LeafKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn server_config(
    roots: Arc<RootCertStore>,
    leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| refused("verify clients", error))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| refused("configure TLS 1.3", error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf], key)
        .map_err(|error| refused("use this process's certificate", error))?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // Each connection is verified from scratch: they are few and live long.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn client_config(
    roots: Arc<RootCertStore>,
    leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| refused("configure TLS 1.3", error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![leaf], key)
        .map_err(|error| refused("use this process's certificate", error))?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn refused(doing: &str, error: impl fmt::Display) -> Error {
    Error::internal(format!("tls: {doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::rsa_identity;

    /// Goal: two processes that never met make the same authority from one secret, and different ones from two.
    #[test]
    fn the_authority_follows_from_the_secret() {
        let secret = ClusterSecret::generate();
        let copy = ClusterSecret::parse(&secret.to_hex()).unwrap();
        let first = Tls::new(&secret, &Identity::generate(), Room::Consensus).unwrap();
        let second = Tls::new(&copy, &Identity::generate(), Room::Monitor).unwrap();
        assert_eq!(first.authority(), second.authority());
        let stranger = Tls::new(&ClusterSecret::generate(), &Identity::generate(), Room::Monitor).unwrap();
        assert_ne!(first.authority(), stranger.authority());
    }

    /// Goal: the derivation never changes unnoticed; a new version would not talk to an old one.
    #[test]
    fn the_authority_of_a_known_secret() {
        let authority = Authority::derive(&ClusterSecret([7; 32])).unwrap();
        assert_eq!(
            hex::encode(authority.key.public_key_raw()),
            "6d42abdb2f9db17a398149ee0ba240eee678250e1a2376b1115b89d6c72ff83f"
        );
    }

    /// Goal: the peer ID comes from the key, for both kinds of identity, and the name says room and peer.
    #[test]
    fn the_peer_is_in_the_key() {
        let authority = Authority::derive(&ClusterSecret::generate()).unwrap();
        for identity in [Identity::generate(), rsa_identity()] {
            let certificate = authority.issue(&identity, Room::Connector).unwrap();
            assert_eq!(peer_of_certificate(&certificate).unwrap(), identity.peer_id);
            let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
            let name = dns_name(Room::Connector, &identity.peer_id);
            let names = parsed.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names.len(), 1);
            assert!(name.split('.').all(|label| label.len() <= 63), "{name}");
            assert!(format!("{:?}", names.value.general_names[0]).contains(&name));
        }
    }

    /// Goal: only 32 bytes of hexadecimal are a secret, no message repeats what was written, nor does Debug.
    #[test]
    fn secrets_are_checked_and_hidden() {
        assert!(ClusterSecret::parse("").unwrap_err().message.contains("empty"));
        for text in ["abcd", "zz", &"ab".repeat(33)] {
            let error = ClusterSecret::parse(text).unwrap_err();
            assert!(error.message.starts_with("cluster.secret: ") && !error.message.contains(text), "{error}");
        }
        let secret = ClusterSecret::generate();
        assert!(!format!("{secret:?}").contains(&secret.to_hex()));
    }
}
