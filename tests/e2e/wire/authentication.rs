//! rest-api.md 3: who is let in, and what the others are told. One gateway alone answers for that: nothing behind it
//! is asked before a caller is known.

use std::path::Path;
use std::process::Stdio;

use ctl::local::cluster::addresses;
use ctl::local::ports::Ports;
use pinfold_common::config::write_new;
use pinfold_common::identity::Identity;
use pinfold_common::tls::ClusterSecret;
use pinfold_tests::cluster::{eventually, programs};
use pinfold_tests::raw::{Reply, Request};
use serde_json::json;
use tokio::process::{Child, Command};

/// `Basic` of the pairs below, in base64.
const ANN: &str = "Basic YW5uOnNlY3JldA=="; // ann:secret
const WRONG: &str = "Basic YW5uOndyb25n"; // ann:wrong
const STRANGER: &str = "Basic ZXZlOnNlY3JldA=="; // eve:secret
const EMPTY_PASSWORD: &str = "Basic YW5uOg=="; // ann:
const NO_COLON: &str = "Basic YW5u"; // ann
/// {"alg":"none","typ":"JWT"} . {"iss":"ann"} . nothing
const UNSIGNED: &str = "Bearer eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJpc3MiOiJhbm4ifQ.";

struct Gateway {
    authority: String,
    _process: Child,
    _folder: tempfile::TempDir,
}

impl Gateway {
    async fn start() -> Gateway {
        let folder = tempfile::tempdir().unwrap();
        let ports = Ports::free().unwrap();
        configure(folder.path(), &ports);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(programs().path("api-gateway").unwrap());
        command.arg("--config").arg(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.kill_on_drop(true).spawn().unwrap();
        let authority = format!("127.0.0.1:{}", ports.gateway);
        let gateway = Gateway { authority, _process: process, _folder: folder };
        eventually("the gateway answers", || async {
            Request::line("GET /health").send(&gateway.authority).await.ok().map(drop)
        })
        .await;
        gateway
    }

    async fn ask(&self, line: &str, authorization: Option<&str>) -> Reply {
        let request = Request::line(line);
        let request = match authorization {
            Some(value) => request.header("Authorization", value),
            None => request,
        };
        request.send(&self.authority).await.unwrap_or_else(|error| panic!("{line}: {error}"))
    }
}

fn configure(folder: &Path, ports: &Ports) {
    Identity::generate().save(folder).unwrap();
    let mut keys = vec![
        ("cluster.secret", json!(ClusterSecret::generate().to_hex())),
        ("api.restapi.basic_auth_credentials", json!({"ann": "secret", "bob": "other"})),
        ("ipfs.backend", json!("embedded")),
    ];
    keys.extend(addresses(ports));
    write_new(folder, keys).unwrap();
}

/// Goal: without the right name and password nothing is done, and each kind of failure is told in the original's words.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_in() {
    const BASIC: &str = "Basic realm=\"Restricted IPFS Cluster API\"";
    const BEARER: &str = "Bearer realm=\"Restricted IPFS Cluster API\"";
    const BAD_BEARER: &str = "Bearer realm=\"Restricted IPFS Cluster API\", error=\"invalid_token\"";
    let gateway = Gateway::start().await;
    for (authorization, message, challenges) in [
        (None, "unauthorized: no auth provided", vec![BEARER, BASIC]),
        (Some("Digest x"), "unauthorized: no auth provided", vec![BEARER, BASIC]),
        (Some("Basic !!!"), "unauthorized: no auth provided", vec![BEARER, BASIC]),
        (Some(NO_COLON), "unauthorized: no auth provided", vec![BEARER, BASIC]),
        (Some(WRONG), "unauthorized: access denied", vec![BASIC]),
        (Some(STRANGER), "unauthorized: access denied", vec![BASIC]),
        (Some(EMPTY_PASSWORD), "unauthorized: access denied", vec![BASIC]),
        (Some(UNSIGNED), "unauthorized: invalid token", vec![BAD_BEARER]),
        (Some("Bearer a.b.c"), "unauthorized: invalid token", vec![BAD_BEARER]),
    ] {
        for line in [
            "GET /id",
            "GET /pins",
            "POST /pins/bafkqaaa",
            "POST /add",
            "GET /nope",
            "PUT /id",
            "POST /token",
            "GET /health/",
            "HEAD /id",
        ] {
            let reply = gateway.ask(line, authorization).await;
            assert_eq!(reply.status, 401, "{line} {authorization:?}");
            assert_eq!(reply.header("www-authenticate"), challenges, "{line} {authorization:?}");
            assert_eq!(reply.header("content-type"), ["application/json"], "{line}");
            if !line.starts_with("HEAD") {
                assert_eq!(reply.json(), json!({"code": 401, "message": message}), "{line} {authorization:?}");
            }
        }
    }
    // The check comes before the cross-origin headers.
    let page = Request::line("GET /id").header("Origin", "http://example.com").send(&gateway.authority).await.unwrap();
    assert!(page.status == 401 && page.header("access-control-allow-origin").is_empty(), "{:?}", page.headers);
    // Two headers are one too many, whatever is in them (attack:AU3).
    let twice = Request::line("GET /version").header("Authorization", ANN).header("Authorization", ANN);
    let reply = twice.send(&gateway.authority).await.unwrap();
    assert_eq!((reply.status, reply.header("www-authenticate").len()), (400, 0), "{}", reply.text());
    let in_query = gateway.ask("GET /version?token=YW5uOnNlY3JldA==", None).await;
    assert_eq!(in_query.status, 401);

    for line in ["GET /health", "OPTIONS /id"] {
        let reply = gateway.ask(line, None).await;
        assert!(reply.status != 401 && reply.header("www-authenticate").is_empty(), "{line} {}", reply.status);
    }
    assert_eq!(gateway.ask("GET /version", Some(ANN)).await.status, 200);
}

/// Goal: a token is the original's, the same each time, and opens what its password opens.
#[tokio::test(flavor = "multi_thread")]
async fn tokens() {
    let gateway = Gateway::start().await;
    let reply = gateway.ask("POST /token", Some(ANN)).await;
    assert_eq!(reply.status, 200);
    let token = reply.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(reply.text(), format!("{{\"token\":\"{token}\"}}\n"));
    let parts: Vec<&str> = token.split('.').collect();
    // {"alg":"HS256","typ":"JWT"} and {"iss":"ann"}, and nothing else: no expiry, no time of issue.
    assert_eq!(parts[..2], ["eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "eyJpc3MiOiJhbm4ifQ"]);
    for scheme in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(gateway.ask("GET /version", Some(&format!("{scheme} {token}"))).await.status, 200, "{scheme}");
    }
    let again = gateway.ask("POST /token", Some(&format!("Bearer {token}"))).await;
    assert_eq!(again.json()["token"], json!(token));
    let forged = format!("Bearer {}x", &token[..token.len() - 1]);
    let swapped = format!("Bearer {}.eyJpc3MiOiJib2IifQ.{}", parts[0], parts[2]);
    for bad in [forged, swapped, format!("Bearer {token}.x"), "Bearer ".to_owned()] {
        let reply = gateway.ask("GET /version", Some(&bad)).await;
        assert_eq!(reply.status, 401, "{bad}");
    }
}
