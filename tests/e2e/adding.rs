//! `ctl add` and what it was given: files, folders, URLs and standard input, whole or broken off.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use pinfold_tests::cluster::TestCluster;
use pinfold_tests::content;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

/// `ctl add` with these arguments; what stands on its standard input follows.
fn add(cluster: &TestCluster, arguments: &[&str]) -> Child {
    Command::new(TestCluster::ctl())
        .args(["--host", &cluster.peer(0).api, "add"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Exit code, standard output, standard error.
async fn end(mut adding: Child, input: &[u8]) -> (i32, String, String) {
    let mut stdin = adding.stdin.take().unwrap();
    let writing = async move {
        stdin.write_all(input).await.unwrap();
        drop(stdin);
    };
    let ((), output) = tokio::join!(writing, adding.wait_with_output());
    let output = output.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// host:port of a server that has `/there/data.bin`, and cuts `/cut` off in the middle.
async fn web(data: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let read = connection.read(&mut request).await.unwrap_or_default();
            let head = |status: &str| {
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", data.len())
            };
            let answer = match String::from_utf8_lossy(&request[..read]).split(' ').nth(1) {
                Some("/there/data.bin?x=1") => [head("200 OK").as_bytes(), &data].concat(),
                Some("/cut") => [head("200 OK").as_bytes(), &data[..data.len() / 2]].concat(),
                _ => [head("404 Not Found").as_bytes(), &data].concat(),
            };
            // A client that has seen enough may be gone.
            let _ = connection.write_all(&answer).await;
        }
    });
    authority
}

/// Goal: files, folders, a URL and standard input in one go become one wrapped folder; the same content has the same CID
/// wherever it comes from; what can't be read to its end ends the add, and nothing is pinned.
#[tokio::test(flavor = "multi_thread")]
async fn ctl_adds_files_folders_urls_and_standard_input() {
    let cluster = TestCluster::start(1).await;
    let data = content::bytes(9, 700_000);
    let web = web(data.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("sub")).unwrap();
    for name in ["one.bin", "sub/two.bin", "sub/.hidden"] {
        std::fs::write(path(name), &data).unwrap();
    }

    let url = format!("http://{web}/there/data.bin?x=1");
    let (code, text, errors) = end(add(&cluster, &["-r", &path("one.bin"), &path("sub"), &url]), b"").await;
    assert_eq!(code, 0, "{text} {errors}");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.splitn(3, ' ').collect()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line[2]).collect();
    assert_eq!(names, ["one.bin", "sub/two.bin", "data.bin", "sub", ""], "{text}");
    assert!([1, 2].iter().all(|at| lines[*at][1] == lines[0][1]), "{text}");
    assert_eq!(cluster.rest(0).allocations().await.into_keys().collect::<Vec<_>>(), [lines[4][1]]);

    let (code, text, errors) = end(add(&cluster, &["--quieter", "-"]), &data).await;
    assert_eq!((code, text.trim()), (0, lines[0][1]), "{errors}");
    assert!(cluster.rest(0).allocations().await.contains_key(text.trim()));

    std::fs::set_permissions(path("one.bin"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let (_, kept, _) = end(add(&cluster, &["-Q", "--preserve-mode", &path("one.bin")]), b"").await;
    assert!(!kept.trim().is_empty() && kept != text, "the mode is part of the file");

    let pinned = cluster.rest(0).allocations().await.len();
    for (url, why) in [(format!("http://{web}/missing"), "404"), (format!("http://{web}/cut"), "fetching")] {
        let (code, _, errors) = end(add(&cluster, &[&url]), b"").await;
        assert!(code == 1 && errors.contains(why), "{url}: {code} {errors}");
    }
    assert_eq!(cluster.rest(0).allocations().await.len(), pinned);
}

/// Goal: a client that is killed in the middle of its upload leaves nothing in the pinset; one that goes on does.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_killed_leaves_nothing() {
    let cluster = TestCluster::start(1).await;
    let mut adding = add(&cluster, &["-"]);
    adding.stdin.as_mut().unwrap().write_all(&content::bytes(10, 20 << 20)).await.unwrap();
    adding.kill().await.unwrap();
    let (code, text, errors) = end(add(&cluster, &["-Q", "-"]), b"whole").await;
    assert_eq!(code, 0, "{errors}");
    assert_eq!(cluster.rest(0).allocations().await.into_keys().collect::<Vec<_>>(), [text.trim()]);
}
