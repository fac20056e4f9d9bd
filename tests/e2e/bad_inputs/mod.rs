//! What should not be sent, and what is answered (rest-api.md 2, attack catalogue 8): each input is refused by name,
//! and afterwards nothing has changed: no pin, no peer, no process.
//!
//! Which text wins (protocols.md 11): where the original accepts an input, or rest-api.md 2 names it, its status and
//! text; elsewhere the catalogue's. So a name of any kind is stored, an unknown mode is recursive, bad factors are 500.

mod config;
mod grpc;
mod internal;
mod requests;
mod uploads;

use pinfold_proto::api;
use pinfold_tests::cluster::TestCluster;
use pinfold_tests::raw::{Reply, Request};

/// Of any answer to a bad input. Some ask other peers, whose deadlines are longer than a client's patience.
const ANSWER_DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);
/// No message is longer: it names the field and does not echo the input (attack catalogue 8).
const MAX_MESSAGE_BYTES: usize = 600;

/// How a cluster was before it was ill-treated, and what was found since.
struct Watch<'a> {
    cluster: &'a TestCluster,
    processes: Vec<Vec<Option<u32>>>,
    tried: usize,
    wrong: Vec<String>,
}

fn processes(cluster: &TestCluster) -> Vec<Vec<Option<u32>>> {
    let peers = cluster.cluster.peers.iter();
    peers.map(|peer| peer.services().map(|service| service.pid()).collect()).collect()
}

impl<'a> Watch<'a> {
    fn new(cluster: &'a TestCluster) -> Watch<'a> {
        let processes = processes(cluster);
        assert!(processes.iter().flatten().all(Option::is_some), "{processes:?}");
        Watch { cluster, processes, tried: 0, wrong: Vec::new() }
    }

    fn authority(&self) -> String {
        self.cluster.peer(0).api.clone()
    }

    fn note(&mut self, what: &str, found: Result<(), String>) {
        self.tried += 1;
        if let Err(found) = found {
            self.wrong.push(format!("{what}: {found}"));
        }
    }

    /// Sends a request and expects an error document: a status and a message that begins so.
    async fn refused(&mut self, what: &str, request: &Request, status: u16, message: &str) {
        let authority = self.authority();
        let found = match tokio::time::timeout(ANSWER_DEADLINE, request.send(&authority)).await {
            Err(_) => Err(format!("no answer within {ANSWER_DEADLINE:?}")),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(reply)) => error_document(&reply, status, message),
        };
        self.note(what, found);
    }

    /// Sends bytes that need not be a request; the answer, if there is one, or else the connection is closed.
    async fn bytes(&mut self, bytes: &[u8]) -> Result<Reply, String> {
        let mut connection =
            pinfold_tests::raw::Connection::open(&self.authority()).await.map_err(|error| error.to_string())?;
        connection.write(bytes).await;
        let reply = connection.read_reply("GET").await.map_err(|error| error.to_string())?;
        match connection.read_to_close().await {
            Some(rest) if rest.is_empty() => Ok(reply),
            Some(rest) => Err(format!("a second answer: {}", String::from_utf8_lossy(&rest))),
            None => Err(format!("{}: the connection stays open", reply.status)),
        }
    }

    /// Tells everything that was wrong, and whether the cluster is as it was: no pin, all peers ready, the same
    /// processes.
    async fn nothing_changed(mut self, at_least: usize) {
        let cluster = self.cluster;
        for index in 0..cluster.len() {
            let pins: Vec<String> = cluster.rest(index).allocations().await.into_keys().collect();
            if !pins.is_empty() {
                self.wrong.push(format!("peer {index} has pins: {pins:?}"));
            }
        }
        let tracked = cluster.rest(0).get("/pins").await;
        if self.wrong.is_empty() && tracked.status != 204 {
            self.wrong.push(format!("something is tracked: {}", tracked.body));
        }
        let peers: Vec<serde_json::Value> = cluster.rest(0).get("/peers").await.lines();
        if peers.len() != cluster.len() || peers.iter().any(|peer| peer["error"] != "") {
            self.wrong.push(format!("the peers are {peers:?}"));
        }
        for index in 0..cluster.len() {
            match cluster.api(index).health(api::HealthRequest {}).await {
                Ok(health) if health.get_ref().ready => {}
                other => self.wrong.push(format!("peer {index} is not ready: {other:?}")),
            }
        }
        if processes(cluster) != self.processes {
            self.wrong.push("a process was started again".to_owned());
        }
        assert!(self.wrong.is_empty(), "{} of {}:\n{}", self.wrong.len(), self.tried, self.wrong.join("\n"));
        assert!(self.tried >= at_least, "only {} inputs", self.tried);
    }
}

/// One document of two keys, its code the status, its message beginning as expected and not too long.
fn error_document(reply: &Reply, status: u16, message: &str) -> Result<(), String> {
    let text = reply.text();
    if reply.status != status {
        return Err(format!("{} instead of {status}: {}", reply.status, text.trim()));
    }
    if reply.header("content-type") != ["application/json"] {
        return Err(format!("content type {:?}", reply.header("content-type")));
    }
    let document: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    let told = document["message"].as_str().unwrap_or_default();
    if document["code"] != serde_json::json!(status) || document.as_object().is_none_or(|keys| keys.len() != 2) {
        return Err(format!("not an error document: {text}"));
    }
    if !told.starts_with(message) || told.is_empty() {
        return Err(format!("{told:?} instead of {message:?}"));
    }
    if told.len() > MAX_MESSAGE_BYTES {
        return Err(format!("a message of {} bytes", told.len()));
    }
    Ok(())
}
