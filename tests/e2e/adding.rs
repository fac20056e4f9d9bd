//! `ctl add` and what it was given: files, folders, URLs and standard input, whole or broken off.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use ctl::local::cluster::Ipfs;
use pinfold_common::ids::parse_cid;
use pinfold_common::json::AddedJson;
use pinfold_tests::cluster::{TestCluster, eventually};
use pinfold_tests::content;
use pinfold_tests::needs::{self, Need};
use pinfold_tests::raw::{Part, Request};
use pinfold_tests::small_disk::SmallDisk;
use serde_json::json;
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

/// One peer whose node's blocks lie on a disk of 16 MiB. Dropped in this order.
struct Cramped {
    cluster: TestCluster,
    disk: SmallDisk,
    _folder: tempfile::TempDir,
}

impl Cramped {
    async fn start() -> Cramped {
        let folder = tempfile::Builder::new().prefix("pinfold-full-").tempdir().unwrap();
        let disk = SmallDisk::over(folder.path(), "16m").expect("a small disk");
        let settings = vec![
            ("ipfs.embedded.folder", json!(disk.folder().join("ipfs"))),
            // Not the limit that is configured: the disk itself.
            ("ipfs.embedded.storage_max_bytes", json!(1_u64 << 30)),
            // So that it is soon seen to have room again.
            ("informer.disk.metric_ttl", json!("2s")),
        ];
        let cluster = TestCluster::with(1, Ipfs::Embedded { gateways: Vec::new() }, settings).await;
        Cramped { cluster, disk, _folder: folder }
    }

    async fn has_nothing_pinned(&self) {
        assert_eq!(self.cluster.rest(0).allocations().await.len(), 0);
    }
}

/// Goal: attack:A10, on a file system that is really full. An upload that does not fit is 507, in the trailer when it is
/// streamed, and an error of `ctl`, each without a CID; nothing of it is pinned. So is the next one, whoever notices.
/// With more room the same upload is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_507_and_no_cid() {
    const FULL: &str = "No space left on device";
    if !needs::are_met("a_full_disk_is_507_and_no_cid", &[Need::Root, Need::Tmpfs]) {
        return;
    }
    let data = content::bytes(11, 24 << 20);
    let upload = |query: &str| {
        Request::line(&format!("POST /add?cid-version=1{query}")).multipart(&[Part::file("large.bin", &data)])
    };

    let cramped = Cramped::start().await;
    let streamed = upload("").send(&cramped.cluster.peer(0).api).await.unwrap();
    assert_eq!((streamed.status, streamed.text().as_str()), (200, ""));
    assert!(streamed.trailer("x-stream-error").concat().contains(FULL), "{:?}", streamed.trailers);
    cramped.has_nothing_pinned().await;
    drop(cramped);

    let cramped = Cramped::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, &data).unwrap();
    let (code, printed, errors) = end(add(&cramped.cluster, &["-Q", file.path().to_str().unwrap()]), b"").await;
    assert!(code == 2 && printed.contains("Code: 507") && printed.contains(FULL), "{code} {printed:?} {errors}");
    assert!(printed.split_whitespace().all(|word| parse_cid(word).is_err()), "{printed}");
    cramped.has_nothing_pinned().await;
    drop(cramped);

    let cramped = Cramped::start().await;
    for attempt in 0..2 {
        let whole = upload("&stream-channels=false").send(&cramped.cluster.peer(0).api).await.unwrap();
        assert_eq!((whole.status, &whole.json()["code"]), (507, &json!(507)), "{}", whole.text());
        assert!(attempt > 0 || whole.text().contains(FULL), "{}", whole.text());
    }
    cramped.has_nothing_pinned().await;

    cramped.disk.grow("256m");
    let rest = cramped.cluster.rest(0);
    let answer = eventually("it fits now", || async {
        let answer = rest.add("cid-version=1&stream-channels=false", vec![("large.bin", data.clone())]).await;
        assert!(answer.status == 200 || answer.status == 507, "{} {}", answer.status, answer.body);
        (answer.status == 200).then_some(answer)
    })
    .await;
    let added: Vec<AddedJson> = answer.json();
    let root = parse_cid(added[0].cid.as_ref().unwrap()).unwrap();
    assert!(content::read_file(&mut cramped.cluster.blocks(0), &root).await.unwrap() == data);
    assert_eq!(rest.allocations().await.into_keys().collect::<Vec<_>>(), [root.to_string()]);
}
