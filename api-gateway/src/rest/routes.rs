//! Which request is for what (rest-api.md 8). PURE. The first route that matches path and method wins, as in the
//! original's router, where `GET /pins/recover` asks for a CID named "recover".

use http::Method;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    Id,
    Version,
    Health,
    Peers,
    AddPeer,
    RemovePeer {
        peer: &'a str,
    },
    Add,
    Allocations,
    Allocation {
        cid: &'a str,
    },
    StatusAll,
    Status {
        cid: &'a str,
    },
    RecoverAll,
    Recover {
        cid: &'a str,
    },
    Pin {
        cid: &'a str,
    },
    Unpin {
        cid: &'a str,
    },
    /// The path with its namespace: `/ipfs/Qm…/a`.
    PinPath {
        path: &'a str,
    },
    UnpinPath {
        path: &'a str,
    },
    Gc,
    Graph,
    Alerts,
    Bandwidth,
    MetricNames,
    Metrics {
        name: &'a str,
    },
    Token,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    NotFound,
    WrongMethod,
}

const MAX_SEGMENTS: usize = 4;

/// Routes a path that is clean and unescaped.
pub fn route<'a>(method: &Method, path: &'a str) -> Result<Route<'a>, Miss> {
    let Some(rest) = path.strip_prefix('/') else { return Err(Miss::NotFound) };
    let mut segments = [""; MAX_SEGMENTS];
    let mut count = 0;
    for (segment, place) in rest.split('/').zip(&mut segments) {
        *place = segment;
        count += 1;
    }
    let is_get = *method == Method::GET;
    let is_post = *method == Method::POST;
    let is_delete = *method == Method::DELETE;
    let only = |is_right: bool, route: Route<'a>| if is_right { Ok(route) } else { Err(Miss::WrongMethod) };
    match segments[..count] {
        ["id"] => only(is_get, Route::Id),
        ["version"] => only(is_get, Route::Version),
        ["health"] => only(is_get, Route::Health),
        ["peers"] if is_post => Ok(Route::AddPeer),
        ["peers"] => only(is_get, Route::Peers),
        ["peers", peer] => only(is_delete, Route::RemovePeer { peer }),
        ["add"] => only(is_post, Route::Add),
        ["allocations"] => only(is_get, Route::Allocations),
        ["allocations", cid] => only(is_get, Route::Allocation { cid }),
        ["pins"] => only(is_get, Route::StatusAll),
        ["pins", "recover"] if is_post => Ok(Route::RecoverAll),
        ["pins", cid] if is_get => Ok(Route::Status { cid }),
        ["pins", cid] if is_post => Ok(Route::Pin { cid }),
        ["pins", cid] => only(is_delete, Route::Unpin { cid }),
        ["pins", cid, "recover"] if is_post => Ok(Route::Recover { cid }),
        ["pins", "ipfs" | "ipns" | "ipld", ..] => match (is_post, is_delete) {
            (true, _) => Ok(Route::PinPath { path: &rest["pins".len()..] }),
            (false, true) => Ok(Route::UnpinPath { path: &rest["pins".len()..] }),
            (false, false) => Err(Miss::WrongMethod),
        },
        ["pins", _, "recover"] => Err(Miss::WrongMethod),
        ["ipfs", "gc"] => only(is_post, Route::Gc),
        ["health", "graph"] => only(is_get, Route::Graph),
        ["health", "alerts"] => only(is_get, Route::Alerts),
        ["health", "bandwidth"] => only(is_get, Route::Bandwidth),
        ["monitor", "metrics"] => only(is_get, Route::MetricNames),
        ["monitor", "metrics", name] => only(is_get, Route::Metrics { name }),
        ["token"] => only(is_post, Route::Token),
        _ => Err(Miss::NotFound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each route of rest-api.md 8 is found, and what is next to it is not.
    #[test]
    fn all_routes() {
        use Miss::{NotFound, WrongMethod};
        for (request, expected) in [
            ("GET /id", Ok(Route::Id)),
            ("HEAD /id", Err(WrongMethod)),
            ("PUT /id", Err(WrongMethod)),
            ("GET /ID", Err(NotFound)),
            ("GET /", Err(NotFound)),
            ("GET /version", Ok(Route::Version)),
            ("GET /peers", Ok(Route::Peers)),
            ("POST /peers", Ok(Route::AddPeer)),
            ("DELETE /peers", Err(WrongMethod)),
            ("DELETE /peers/x", Ok(Route::RemovePeer { peer: "x" })),
            ("GET /peers/x", Err(WrongMethod)),
            ("POST /add", Ok(Route::Add)),
            ("GET /allocations", Ok(Route::Allocations)),
            ("GET /allocations/x", Ok(Route::Allocation { cid: "x" })),
            ("GET /pins", Ok(Route::StatusAll)),
            ("POST /pins", Err(WrongMethod)),
            ("POST /pins/recover", Ok(Route::RecoverAll)),
            ("GET /pins/recover", Ok(Route::Status { cid: "recover" })),
            ("POST /pins/sync", Ok(Route::Pin { cid: "sync" })),
            ("POST /pins/x/sync", Err(NotFound)),
            ("GET /pins/x", Ok(Route::Status { cid: "x" })),
            ("POST /pins/x", Ok(Route::Pin { cid: "x" })),
            ("DELETE /pins/x", Ok(Route::Unpin { cid: "x" })),
            ("POST /pins/x/recover", Ok(Route::Recover { cid: "x" })),
            ("GET /pins/x/recover", Err(WrongMethod)),
            ("POST /pins/ipfs/x", Ok(Route::PinPath { path: "/ipfs/x" })),
            ("POST /pins/ipns/x/a/b/c/d/e", Ok(Route::PinPath { path: "/ipns/x/a/b/c/d/e" })),
            ("DELETE /pins/ipld/x", Ok(Route::UnpinPath { path: "/ipld/x" })),
            ("GET /pins/ipfs/x", Err(WrongMethod)),
            ("POST /pins/other/x", Err(NotFound)),
            ("POST /ipfs/gc", Ok(Route::Gc)),
            ("GET /ipfs/gc", Err(WrongMethod)),
            ("GET /health", Ok(Route::Health)),
            ("GET /health/graph", Ok(Route::Graph)),
            ("GET /health/alerts", Ok(Route::Alerts)),
            ("GET /health/bandwidth", Ok(Route::Bandwidth)),
            ("GET /monitor/metrics", Ok(Route::MetricNames)),
            ("GET /monitor/metrics/ping", Ok(Route::Metrics { name: "ping" })),
            ("GET /monitor", Err(NotFound)),
            ("POST /token", Ok(Route::Token)),
            ("GET /token", Err(WrongMethod)),
            ("GET /nope", Err(NotFound)),
            ("GET /id/x", Err(NotFound)),
            ("GET /allocations/x/y/z/a/b", Err(NotFound)),
        ] {
            let (method, path) = request.split_once(' ').unwrap();
            assert_eq!(route(&method.parse().unwrap(), path), expected, "{request}");
        }
    }
}
