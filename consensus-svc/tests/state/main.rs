//! `consensus-svc state …` on a stopped peer, backups, and what happens to damaged files.

mod backups;
mod damage;
#[path = "../harness/mod.rs"]
mod harness;
mod offline;

use std::path::Path;

use harness::{Peer, request};
use pinfold_proto::consensus::{ListCall, PinManyCall, pin_result};
use pinfold_proto::types;
use prost::Message as _;

pub const ORIGINAL: &str = include_str!("../../../tests/testdata/original/export.jsonl");

pub async fn pin_some(peer: &Peer, numbers: std::ops::Range<u32>) {
    for chunk in numbers.collect::<Vec<_>>().chunks(500) {
        let requests = chunk.iter().map(|number| request(*number)).collect();
        let reply = peer.pins().pin_many(PinManyCall { requests, request_key: Vec::new() }).await.unwrap();
        for result in reply.into_inner().results {
            assert!(matches!(result.result, Some(pin_result::Result::Pin(_))), "{result:?}");
        }
    }
}

pub async fn list(peer: &Peer) -> Vec<types::Pin> {
    let mut stream = peer.pins().list(ListCall::default()).await.unwrap().into_inner();
    let mut pins = Vec::new();
    while let Some(reply) = stream.message().await.unwrap() {
        pins.extend(reply.pins.into_iter().map(|pin| types::Pin::decode(pin).unwrap()));
    }
    pins
}

pub fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

pub fn export(peer: &Peer) -> String {
    let (code, stdout, stderr) = peer.run_program(&["state", "export"], "");
    assert_eq!(code, 0, "{stderr}");
    stdout
}

pub fn ok(peer: &Peer, arguments: &[&str], input: &str) -> String {
    let (code, stdout, stderr) = peer.run_program(arguments, input);
    assert_eq!(code, 0, "{arguments:?}: {stdout}{stderr}");
    format!("{stdout}{stderr}")
}

pub fn files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A process of its own, which dies with it.
pub struct Running(pub std::process::Child);

impl Running {
    pub async fn start(peer: &Peer) -> Running {
        let running = Running(peer.program(&["-l", "warn"]).spawn().unwrap());
        peer.ready().await;
        running
    }

    /// SIGKILL
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for name in files(from) {
        if from.join(&name).is_file() {
            std::fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
}
