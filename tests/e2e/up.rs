//! `ctl up` as a person runs it: the table, a clean stop, the next start with the same pins, and sentences that say what
//! to do.

use std::process::Stdio;

use ctl::local::ports::Ports;
use pinfold_common::json::AddedJson;
use pinfold_tests::cluster::{PATIENCE, TestCluster, eventually};
use pinfold_tests::content;
use pinfold_tests::rest::Rest;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// The offset that puts two peers' usual ports on ones that are free now, above those that other tests are given.
fn free_offset() -> u16 {
    let first = 30_000 - 8_888;
    let last = 32_700 - 9_109;
    // Runs of this test side by side begin at different places.
    let start = (std::process::id() % 70) as u16 * 20;
    (0..70)
        .map(|step| first + (start + step * 20) % (last - first))
        .find(|offset| (0..2).all(|index| Ports::of(index, *offset).is_ok_and(|ports| ports.check_free(index).is_ok())))
        .expect("free ports")
}

fn up(folder: &std::path::Path, offset: u16) -> Command {
    let mut command = Command::new(TestCluster::ctl());
    command.args(["up", "--peers", "2", "--offline", "--folder", folder.to_str().unwrap()]);
    command.args(["--port-offset", &offset.to_string()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Reads the table until its last line; the lines before it.
async fn table(child: &mut Child) -> Vec<String> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let last = line.starts_with("Ctrl-C stops");
            seen.push(line);
            if last {
                return;
            }
        }
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
        panic!("ended early: {seen:?}\n{said}");
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the table");
    seen
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
}

/// Goal: the folder keeps the cluster; a second start finds its pins; Ctrl-C ends everything and says so.
#[tokio::test(flavor = "multi_thread")]
async fn up_stop_and_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let offset = free_offset();
    let rest = Rest::new(&format!("127.0.0.1:{}", 9094 + offset));

    let mut child = up(folder.path(), offset).spawn().unwrap();
    let lines = table(&mut child).await.join("\n");
    for expected in
        ["2 peers are ready", "role     leader", "role     follower", "REST     http://127.0.0.1", "export PATH="]
    {
        assert!(lines.contains(expected), "{expected}: {lines}");
    }
    let answer = rest.add("", vec![("kept.bin", content::bytes(9, 300_000))]).await;
    let cid = answer.lines::<AddedJson>().pop().unwrap().cid.unwrap();
    let second = up(folder.path(), offset).output().await.unwrap();
    let sentence = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.code() == Some(1) && sentence.contains("a cluster runs in"), "{sentence}");
    let elsewhere = tempfile::tempdir().unwrap();
    let taken = up(elsewhere.path(), offset).output().await.unwrap();
    let sentence = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(taken.status.code() == Some(1) && sentence.contains("is in use by another program"), "{sentence}");
    interrupt(&child);
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("a stop").unwrap();
    assert_eq!(ended.code(), Some(0));
    assert!(rest.send("GET", "/id").await.is_err(), "something still answers");

    let mut child = up(folder.path(), offset).spawn().unwrap();
    table(&mut child).await;
    eventually("the pin of the first run", || async {
        let status = rest.status(&cid).await;
        (status.peer_map.values().filter(|peer| peer.status == "pinned").count() == 2).then_some(())
    })
    .await;
    interrupt(&child);
    tokio::time::timeout(PATIENCE, child.wait()).await.expect("a stop").unwrap();
}
