//! Who may use the public API: basic credentials, or a token signed with a user's password (rest-api.md 3).
//! Open to everybody when no credentials are configured.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use ring::hmac;
use ring::rand::SystemRandom;
use serde_json::Value;

/// A header that is longer than this is no credential of ours (`attack:JW9`).
const MAX_AUTHORIZATION_BYTES: usize = 4096;

pub struct Auth {
    /// User to password; `None`: no authentication.
    credentials: Option<BTreeMap<String, String>>,
    /// Compares secrets in constant time: equal tags under a key that nobody else has.
    comparison: hmac::Key,
}

/// Why a request is not let in; each has its own answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    NothingSent,
    BadPassword,
    BadToken,
    /// More than one `Authorization` header (`attack:AU3`).
    Ambiguous,
}

impl Denied {
    pub const fn message(self) -> &'static str {
        match self {
            Denied::NothingSent => "unauthorized: no auth provided",
            Denied::BadPassword => "unauthorized: access denied",
            Denied::BadToken => "unauthorized: invalid token",
            Denied::Ambiguous => "more than one Authorization header",
        }
    }

    /// The lines of `WWW-Authenticate`.
    pub const fn challenges(self) -> &'static [&'static str] {
        const BASIC: &str = "Basic realm=\"Restricted IPFS Cluster API\"";
        match self {
            Denied::NothingSent => &["Bearer realm=\"Restricted IPFS Cluster API\"", BASIC],
            Denied::BadPassword => &[BASIC],
            Denied::BadToken => &["Bearer realm=\"Restricted IPFS Cluster API\", error=\"invalid_token\""],
            Denied::Ambiguous => &[],
        }
    }
}

/// Who is asking: a configured user, or anybody when no credentials are configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    Anybody,
    Named(String),
}

impl Auth {
    pub fn new(credentials: Option<BTreeMap<String, String>>) -> Auth {
        // The system's random numbers do not fail once the process runs; a zero key would only cost timing safety.
        let comparison = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .unwrap_or_else(|_| hmac::Key::new(hmac::HMAC_SHA256, &[0; 32]));
        Auth { credentials, comparison }
    }

    /// Checks the `Authorization` header of a request, or the metadata of a gRPC call. `now` is Unix time.
    pub fn check(&self, headers: &HeaderMap, now: i64) -> Result<User, Denied> {
        let Some(credentials) = &self.credentials else { return Ok(User::Anybody) };
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next().ok_or(Denied::NothingSent)?;
        if values.next().is_some() {
            return Err(Denied::Ambiguous);
        }
        let value = value.to_str().map_err(|_| Denied::NothingSent)?;
        if value.len() > MAX_AUTHORIZATION_BYTES {
            return Err(Denied::NothingSent);
        }
        let (scheme, rest) = value.split_once(' ').ok_or(Denied::NothingSent)?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("basic") {
            self.check_basic(credentials, rest).map(User::Named)
        } else if scheme.eq_ignore_ascii_case("bearer") {
            check_token(credentials, rest, now).map(User::Named).ok_or(Denied::BadToken)
        } else {
            Err(Denied::NothingSent)
        }
    }

    fn check_basic(&self, credentials: &BTreeMap<String, String>, encoded: &str) -> Result<String, Denied> {
        let decoded = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or(Denied::NothingSent)?;
        let (user, password) = decoded.split_once(':').ok_or(Denied::NothingSent)?;
        if user.is_empty() || password.is_empty() {
            return Err(Denied::BadPassword);
        }
        let known = credentials.get(user);
        // An unknown user costs as much as a known one.
        let expected = hmac::sign(&self.comparison, known.map_or("", String::as_str).as_bytes());
        let is_equal = hmac::verify(&self.comparison, password.as_bytes(), expected.as_ref()).is_ok();
        if known.is_some() && is_equal { Ok(user.to_owned()) } else { Err(Denied::BadPassword) }
    }

    /// The token of a user: no expiry, always the same. `None` when authentication is off.
    pub fn token(&self, user: &User) -> Option<String> {
        let (Some(credentials), User::Named(name)) = (&self.credentials, user) else { return None };
        let password = credentials.get(name)?;
        let payload = serde_json::json!({ "iss": name }).to_string();
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#),
            URL_SAFE_NO_PAD.encode(payload)
        );
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, password.as_bytes()), signed.as_bytes());
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)))
    }
}

/// The user who signed a token, when it is whole and in time. The algorithm is one of three HMACs, the key the password
/// of the configured user it names; nothing else in the header counts.
fn check_token(credentials: &BTreeMap<String, String>, token: &str, now: i64) -> Option<String> {
    let mut parts = token.split('.');
    let (header, payload, signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let object = |part: &str| -> Option<Value> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok().filter(Value::is_object)
    };
    let algorithm = match object(header)?.get("alg")?.as_str()? {
        "HS256" => hmac::HMAC_SHA256,
        "HS384" => hmac::HMAC_SHA384,
        "HS512" => hmac::HMAC_SHA512,
        _ => return None,
    };
    let claims = object(payload)?;
    let user = claims.get("iss")?.as_str()?;
    // A key that everybody knows signs nothing.
    let password = credentials.get(user).filter(|password| !password.is_empty())?;
    let key = hmac::Key::new(algorithm, password.as_bytes());
    let signed = &token[..header.len() + 1 + payload.len()];
    hmac::verify(&key, signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
    let is_in_time = claim_is(&claims, "exp", |expires| now < expires)
        && claim_is(&claims, "nbf", |from| now >= from)
        && claim_is(&claims, "iat", |issued| now >= issued);
    is_in_time.then(|| user.to_owned())
}

/// A time claim that is absent is fine; one that is no number is not.
fn claim_is(claims: &Value, name: &str, holds: impl Fn(i64) -> bool) -> bool {
    match claims.get(name) {
        None => true,
        Some(value) => value.as_f64().is_some_and(|seconds| holds(seconds as i64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn auth() -> Auth {
        Auth::new(Some(BTreeMap::from([
            ("ann".to_owned(), "secret".to_owned()),
            ("bob".to_owned(), "other".to_owned()),
        ])))
    }

    fn check(auth: &Auth, value: &str) -> Result<User, Denied> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        auth.check(&headers, NOW)
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    fn signed(header: &str, payload: &str, algorithm: hmac::Algorithm, password: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let tag = hmac::sign(&hmac::Key::new(algorithm, password.as_bytes()), signed.as_bytes());
        format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// Goal: right passwords pass, each kind of wrong one has its own answer.
    #[test]
    fn basic_credentials() {
        let auth = auth();
        assert_eq!(check(&auth, &basic("ann:secret")), Ok(User::Named("ann".into())));
        for pair in ["ann:wrong", "ann:", ":secret", "eve:secret", "eve:", "ann:other", "ann:secret2"] {
            assert_eq!(check(&auth, &basic(pair)), Err(Denied::BadPassword), "{pair}");
        }
        for value in ["Basic !!!", "Basic", "Digest x", &basic("nocolon")] {
            assert_eq!(check(&auth, value), Err(Denied::NothingSent), "{value}");
        }
        assert_eq!(auth.check(&HeaderMap::new(), NOW), Err(Denied::NothingSent));
        let mut twice = HeaderMap::new();
        twice.append(AUTHORIZATION, basic("ann:secret").parse().unwrap());
        twice.append(AUTHORIZATION, basic("ann:secret").parse().unwrap());
        assert_eq!(auth.check(&twice, NOW), Err(Denied::Ambiguous));
        assert_eq!(Auth::new(None).check(&HeaderMap::new(), NOW), Ok(User::Anybody));
    }

    /// Goal: our token is the original's, and is taken back.
    #[test]
    fn our_own_token() {
        let auth = auth();
        let user = User::Named("ann".into());
        let token = auth.token(&user).unwrap();
        let expected = signed(r#"{"alg":"HS256","typ":"JWT"}"#, r#"{"iss":"ann"}"#, hmac::HMAC_SHA256, "secret");
        assert_eq!(format!("Bearer {token}"), expected);
        assert_eq!(check(&auth, &format!("bearer {token}")), Ok(user));
        assert_eq!(Auth::new(None).token(&User::Anybody), None);
    }

    /// Goal: tokens that others made pass only when they name a user, are signed with his password by an HMAC and are
    /// in time (`attack:JW1` to `attack:JW9`).
    #[test]
    fn tokens_of_others() {
        let auth = auth();
        let ann = || Ok(User::Named("ann".into()));
        let sha256 = hmac::HMAC_SHA256;
        assert_eq!(check(&auth, &signed(r#"{"alg":"HS384"}"#, r#"{"iss":"ann"}"#, hmac::HMAC_SHA384, "secret")), ann());
        assert_eq!(check(&auth, &signed(r#"{"alg":"HS512"}"#, r#"{"iss":"ann"}"#, hmac::HMAC_SHA512, "secret")), ann());
        let in_time = format!(r#"{{"iss":"ann","exp":{},"nbf":{NOW},"iat":{NOW}}}"#, NOW + 1);
        assert_eq!(check(&auth, &signed(r#"{"alg":"HS256"}"#, &in_time, sha256, "secret")), ann());
        for (header, payload, password) in [
            (r#"{"alg":"none"}"#, r#"{"iss":"ann"}"#, "secret"),
            (r#"{"alg":"RS256"}"#, r#"{"iss":"ann"}"#, "secret"),
            (r#"{"alg":"HS384"}"#, r#"{"iss":"ann"}"#, "secret"),
            (r#"{"alg":"HS256"}"#, r#"{"iss":"ann"}"#, "other"),
            (r#"{"alg":"HS256"}"#, r#"{"iss":"eve"}"#, ""),
            (r#"{"alg":"HS256"}"#, r#"{}"#, "secret"),
            (r#"{"alg":"HS256"}"#, r#"["ann"]"#, "secret"),
            (r#"{"alg":"HS256"}"#, r#"{"iss":"ann","exp":1}"#, "secret"),
            (r#"{"alg":"HS256"}"#, r#"{"iss":"ann","nbf":9999999999}"#, "secret"),
            (r#"{"alg":"HS256"}"#, r#"{"iss":"ann","iat":9999999999}"#, "secret"),
            (r#"{"alg":"HS256"}"#, r#"{"iss":"ann","exp":"never"}"#, "secret"),
        ] {
            assert_eq!(
                check(&auth, &signed(header, payload, sha256, password)),
                Err(Denied::BadToken),
                "{header} {payload}"
            );
        }
        for token in ["", "a", "a.b", "a.b.c", "a.b.c.d", "...."] {
            assert_eq!(check(&auth, &format!("Bearer {token}")), Err(Denied::BadToken), "{token}");
        }
    }
}
