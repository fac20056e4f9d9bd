//! What happens to a request before it reaches a handler (rest-api.md 1.1, 4 and 11.12): methods, paths, redirects, and
//! what browsers are told.

use pinfold_tests::cluster::TestCluster;
use pinfold_tests::raw::Request;
use serde_json::json;

use super::{ask, code, send};

/// Goal: checklist 12, and the rest of the router: wrong methods, unknown paths, slashes, and no loops.
#[tokio::test(flavor = "multi_thread")]
async fn routes_and_redirects() {
    let cluster = TestCluster::start(1).await;
    for line in [
        "PUT /id",
        "HEAD /id",
        "PATCH /pins",
        "POST /pins",
        "GET /add",
        "DELETE /peers",
        "GET /token",
        "OPTIONS /pins",
        "POST /health",
    ] {
        let reply = ask(&cluster, line).await;
        assert_eq!((reply.status, reply.text().as_str()), (405, ""), "{line}");
        assert!(
            reply.header("content-type").is_empty() && reply.header("allow").is_empty(),
            "{line}: {:?}",
            reply.headers
        );
        assert_eq!(reply.header("vary"), ["Origin"], "{line}");
    }
    for line in [
        "GET /nope",
        "GET /",
        "POST /pins/bafkqaaa/sync",
        "GET /api/v0/id",
        "GET /id/x",
        "OPTIONS /nope",
        "GET /ID",
        "GET /metrics",
        "GET /debug/pprof",
    ] {
        let reply = ask(&cluster, line).await;
        assert_eq!(code(&reply), (404, json!("not found")), "{line}");
        assert_eq!(reply.text(), "{\"code\":404,\"message\":\"not found\"}\n", "{line}");
    }
    for (line, status, location) in [
        ("GET /id/", 307, "/id"),
        ("POST /pins/bafkqaaa/?name=x", 307, "/pins/bafkqaaa?name=x"),
        ("GET /nope/", 307, "/nope"),
        ("GET //id", 301, "/id"),
        ("GET /pins//bafkqaaa", 301, "/pins/bafkqaaa"),
        ("GET /pins/../id", 301, "/id"),
        ("GET /./id?local=true", 301, "/id?local=true"),
    ] {
        let reply = ask(&cluster, line).await;
        assert_eq!((reply.status, reply.header("location")), (status, vec![location]), "{line}");
        if status == 301 || !line.starts_with("GET") {
            assert!(reply.body.is_empty(), "{line}: {}", reply.text());
        }
    }
    // Nothing leads to another host or in a circle.
    for line in ["GET //", "GET ///", "GET //example.com/", "GET //example.com/..", "GET /%2f%2fexample.com/"] {
        let reply = ask(&cluster, line).await;
        for location in reply.header("location") {
            assert!(location.starts_with('/') && !location.starts_with("//"), "{line} leads to {location}");
            assert_ne!(location, line.split_once(' ').unwrap().1, "{line} leads to itself");
        }
    }
    // What older clients still call (rest-api.md 8).
    assert_eq!(ask(&cluster, "POST /pins/sync").await.status, 400);
    assert_eq!(ask(&cluster, "GET /pins/recover").await.status, 400);
    let reply = send(
        &cluster,
        0,
        &Request::line("GET /id?stream-channels=true&unknown=%zz").header("X-HTTP-Method-Override", "DELETE"),
    )
    .await;
    assert_eq!(reply.status, 200, "what is unknown in a query or a header is ignored");
}

/// Goal: rest-api.md 4: what a browser is told by default.
#[tokio::test(flavor = "multi_thread")]
async fn cross_origin_defaults() {
    let cluster = TestCluster::start(1).await;
    let from_page = |line: &str| Request::line(line).header("Origin", "http://example.com");
    let reply = send(&cluster, 0, &from_page("GET /version")).await;
    assert_eq!(reply.header("access-control-allow-origin"), ["*"]);
    assert_eq!(reply.header("access-control-allow-credentials"), ["true"]);
    let exposed = "Content-Type, X-Stream-Output, X-Chunked-Output, X-Content-Length";
    assert_eq!(reply.header("access-control-expose-headers"), [exposed]);
    assert_eq!(reply.header("vary"), ["Origin"]);
    // Other methods are served without a word to the browser.
    let reply = send(&cluster, 0, &from_page("POST /pins/nope")).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin").len()), (400, 0));
    assert_eq!(reply.header("vary"), ["Origin"]);
    // A preflight is 204 for any path, and says yes to GET only.
    for (path, method, origins) in
        [("/pins", "GET", 1), ("/nope", "GET", 1), ("/pins/x", "POST", 0), ("/pins/x", "DELETE", 0)]
    {
        let request = from_page(&format!("OPTIONS {path}")).header("Access-Control-Request-Method", method);
        let reply = send(&cluster, 0, &request).await;
        assert_eq!((reply.status, reply.text().as_str()), (204, ""), "{path} {method}");
        assert_eq!(reply.header("access-control-allow-origin").len(), origins, "{path} {method}");
        assert_eq!(reply.header("vary"), ["Origin, Access-Control-Request-Method, Access-Control-Request-Headers"]);
        assert!(reply.header("access-control-max-age").is_empty() && reply.header("content-type").is_empty());
    }
    let request = from_page("OPTIONS /pins").header("Access-Control-Request-Method", "GET");
    let reply = send(&cluster, 0, &request.header("Access-Control-Request-Headers", "authorization")).await;
    assert!(reply.header("access-control-allow-origin").is_empty(), "{:?}", reply.headers);
}
