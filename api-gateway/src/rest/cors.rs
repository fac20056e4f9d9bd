//! Cross-origin rules as the original's defaults and keys have them (rest-api.md 4). PURE.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};

const PREFLIGHT_VARY: &str = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
/// What an empty list of allowed headers means.
const DEFAULT_HEADERS: [&str; 3] = ["accept", "content-type", "x-requested-with"];

/// `api.restapi.cors_*`
#[derive(Clone, Debug)]
pub struct Cors {
    pub origins: Vec<String>,
    pub methods: Vec<String>,
    pub headers: Vec<String>,
    pub exposed: Vec<String>,
    pub credentials: bool,
    pub max_age: Duration,
}

/// Whether a request only asks if another one would be allowed.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

impl Cors {
    /// The headers of the answer to a preflight, which has no body and status 204 whatever it asks.
    pub fn preflight(&self, request: &HeaderMap) -> HeaderMap {
        let mut answer = HeaderMap::new();
        answer.insert(VARY, HeaderValue::from_static(PREFLIGHT_VARY));
        let method = request.get(ACCESS_CONTROL_REQUEST_METHOD).and_then(|method| method.to_str().ok());
        let wanted = request.get(ACCESS_CONTROL_REQUEST_HEADERS).and_then(|names| names.to_str().ok()).unwrap_or("");
        let (Some(origin), Some(method)) = (self.allowed_origin(request), method) else { return answer };
        let is_method_allowed =
            method == "OPTIONS" || self.methods.iter().any(|allowed| allowed.eq_ignore_ascii_case(method));
        if !is_method_allowed || !self.are_headers_allowed(wanted) {
            return answer;
        }
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        insert(&mut answer, ACCESS_CONTROL_ALLOW_METHODS, &method.to_uppercase());
        if !wanted.is_empty() {
            insert(&mut answer, ACCESS_CONTROL_ALLOW_HEADERS, wanted);
        }
        self.insert_credentials(&mut answer);
        if !self.max_age.is_zero() {
            insert(&mut answer, ACCESS_CONTROL_MAX_AGE, &self.max_age.as_secs().to_string());
        }
        answer
    }

    /// Adds what belongs to every other answer.
    pub fn decorate(&self, method: &Method, request: &HeaderMap, answer: &mut HeaderMap) {
        answer.append(VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = self.allowed_origin(request) else { return };
        if !self.methods.iter().any(|allowed| allowed.eq_ignore_ascii_case(method.as_str())) {
            return;
        }
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if !self.exposed.is_empty() {
            insert(answer, ACCESS_CONTROL_EXPOSE_HEADERS, &self.exposed.join(", "));
        }
        self.insert_credentials(answer);
    }

    fn insert_credentials(&self, answer: &mut HeaderMap) {
        if self.credentials {
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    /// What to answer to the request's origin: the star when everybody may, the origin when it is listed.
    fn allowed_origin(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let origin = request.get(ORIGIN)?;
        if self.origins.iter().any(|allowed| allowed == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        let matches = |allowed: &String| match allowed.to_ascii_lowercase().split_once('*') {
            None => allowed.eq_ignore_ascii_case(&text),
            Some((start, end)) => {
                text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end)
            }
        };
        self.origins.iter().any(matches).then(|| origin.clone())
    }

    fn are_headers_allowed(&self, wanted: &str) -> bool {
        let is_allowed = |name: &str| {
            if self.headers.is_empty() {
                return DEFAULT_HEADERS.iter().chain(&["origin"]).any(|allowed| allowed.eq_ignore_ascii_case(name));
            }
            name.eq_ignore_ascii_case("origin")
                || self.headers.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(name))
        };
        wanted.split(',').map(str::trim).filter(|name| !name.is_empty()).all(is_allowed)
    }
}

/// Values that come from the configuration or the request's own headers; one that no header can hold is left out.
fn insert(answer: &mut HeaderMap, name: http::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Cors {
        Cors {
            origins: vec!["*".into()],
            methods: vec!["GET".into()],
            headers: Vec::new(),
            exposed: vec!["Content-Type".into(), "X-Stream-Output".into()],
            credentials: true,
            max_age: Duration::ZERO,
        }
    }

    fn request(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    /// Goal: the recorded preflight of the original, and what the defaults refuse.
    #[test]
    fn preflights() {
        let cors = defaults();
        let asked = [("origin", "http://example.com"), ("access-control-request-method", "GET")];
        let answer = cors.preflight(&request(&asked));
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_METHODS], "GET");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert_eq!(answer[VARY], PREFLIGHT_VARY);
        assert_eq!(answer.len(), 4);
        for refused in [
            vec![("origin", "http://example.com"), ("access-control-request-method", "POST")],
            vec![asked[0], asked[1], ("access-control-request-headers", "authorization")],
            vec![("access-control-request-method", "GET")],
        ] {
            assert_eq!(cors.preflight(&request(&refused)).len(), 1, "{refused:?}");
        }
        let with_headers = [asked[0], asked[1], ("access-control-request-headers", "Accept, content-type")];
        assert_eq!(cors.preflight(&request(&with_headers))[ACCESS_CONTROL_ALLOW_HEADERS], "Accept, content-type");
    }

    /// Goal: only allowed methods and origins get CORS headers, and everything gets `Vary`.
    #[test]
    fn ordinary_requests() {
        let mut cors = defaults();
        let from = request(&[("origin", "https://a.Example.com")]);
        let decorated = |cors: &Cors, method: Method| {
            let mut answer = HeaderMap::new();
            cors.decorate(&method, &from, &mut answer);
            answer
        };
        assert_eq!(decorated(&cors, Method::GET)[ACCESS_CONTROL_EXPOSE_HEADERS], "Content-Type, X-Stream-Output");
        assert_eq!(decorated(&cors, Method::POST).len(), 1);
        cors.origins = vec!["https://*.example.COM".into()];
        assert_eq!(decorated(&cors, Method::GET)[ACCESS_CONTROL_ALLOW_ORIGIN], "https://a.Example.com");
        cors.origins = vec!["https://example.com".into()];
        assert_eq!(decorated(&cors, Method::GET).len(), 1);
    }
}
