//! Adding, beside the same work on the same programs without a cluster (`--only add-kubo`): to one and to three real Kubos
//! against `ipfs add`, and to an embedded node against what disk and processor can do at all.
//!
//! Each pair is measured in turn, several times, and the medians are compared: what else the machine does then hits both.
//! Who begins takes turns as well: what is forgotten after a round still costs the file system something in the next.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ctl::local::cluster::{Cluster, Ipfs};
use futures::future::try_join_all;
use multihash_codetable::{Code, MultihashDigest as _};
use pinfold_tests::content;
use tokio::process::Command;
use tokio_util::io::ReaderStream;

use crate::ours::start_on;
use crate::report::Report;
use crate::rest::Failed;

/// How often each pair is measured.
const ROUNDS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(600);
const HASHED_BYTES: usize = 64 << 20;
const WRITTEN_PIECE_BYTES: usize = 1 << 20;
/// Of the upload.
const PIECE_BYTES: usize = 256 << 10;

/// The same file in every round would be there already: each round has its own.
struct Files {
    folder: tempfile::TempDir,
    mib: usize,
}

impl Files {
    fn make(&self) -> std::io::Result<PathBuf> {
        let path = self.folder.path().join("content");
        let mut file = std::fs::File::create(&path)?;
        for _ in 0..self.mib {
            file.write_all(&content::bytes(rand::random(), 1 << 20))?;
        }
        // What the measured programs write must not wait for this.
        file.sync_all()?;
        Ok(path)
    }

    fn rate(&self, took: Duration) -> f64 {
        self.mib as f64 * 1.048_576 / took.as_secs_f64()
    }
}

/// All three comparisons; those with Kubo only where there is one.
pub async fn run(report: &mut Report, mib: usize) -> Result<(), Failed> {
    let files = Files { folder: tempfile::Builder::new().prefix("pinfold-bench-add-").tempdir()?, mib };
    embedded(report, &files).await?;
    if ctl::local::on_path("ipfs").is_none() {
        println!("\nAdding to Kubo: not measured, there is no `ipfs` on the PATH");
        return Ok(());
    }
    let cluster = start_on(files.folder.path().join("kubos"), 3, Ipfs::StartKubo, Vec::new()).await?;
    let measured = beside_kubo(report, &cluster, &files).await;
    cluster.stop().await;
    measured
}

async fn beside_kubo(report: &mut Report, cluster: &Cluster, files: &Files) -> Result<(), Failed> {
    for (copies, goal) in [(1, 0.6), (3, 0.8)] {
        report.section(&format!("Adding {} MiB to {copies} of three Kubos, CIDv1 with raw leaves", files.mib));
        let repositories: Vec<PathBuf> =
            cluster.peers.iter().take(copies).map(|peer| peer.folder.join("kubo")).collect();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (mut added, mut added_directly) = (String::new(), String::new());
            for turn in 0..2 {
                let path = files.make()?;
                if (round + turn) % 2 == 0 {
                    let (took, cid) = through_the_cluster(&cluster.peers[0].api, &path, copies).await?;
                    ours.push(files.rate(took));
                    added = cid;
                } else {
                    let (took, cid) = directly(&repositories, &path).await?;
                    theirs.push(files.rate(took));
                    added_directly = cid;
                }
            }
            forget(&cluster.peers[0].api, &added, &repositories, &added_directly).await?;
        }
        println!("    {}", in_turn(&ours, &theirs));
        let (ours, theirs) = (median(ours), median(theirs));
        let what = if copies == 1 { "`ipfs add` on one of them" } else { "`ipfs add` on each of them at once" };
        report.figure(&format!("add.kubo.{copies}.direct"), what, theirs, "MB/s");
        report.figure(&format!("add.kubo.{copies}"), "through the cluster, blocks on all of them", ours, "MB/s");
        let detail = format!("{:.2} x", ours / theirs);
        report.goal(&format!("{goal} x of `ipfs add`, {copies} copies"), ours >= goal * theirs, &detail);
    }
    Ok(())
}

/// One peer with an embedded node, whose blocks are made durable one by one, against the slower one of: writing and syncing
/// as many bytes, and hashing them on one core.
async fn embedded(report: &mut Report, files: &Files) -> Result<(), Failed> {
    report.section(&format!("Adding {} MiB to an embedded node, CIDv1 with raw leaves", files.mib));
    let ipfs = Ipfs::Embedded { gateways: Vec::new() };
    let cluster = start_on(files.folder.path().join("embedded"), 1, ipfs, Vec::new()).await?;
    let (mut added, mut written, mut hashed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let path = files.make()?;
        let (took, _) = through_the_cluster(&cluster.peers[0].api, &path, 1).await?;
        added.push(files.rate(took));
        written.push(files.rate(write_rate(files)?));
        hashed.push(hash_rate());
    }
    cluster.stop().await;
    let (added, written, hashed) = (median(added), median(written), median(hashed));
    report.figure("add.disk", "the disk: one file, written and synced", written, "MB/s");
    report.figure("add.sha256", "SHA-256 on one core", hashed, "MB/s");
    report.figure("add.embedded", "through the cluster, every block durable", added, "MB/s");
    let limit = written.min(hashed);
    let detail = format!("{:.2} x", added / limit);
    report.goal("0.5 x of disk or SHA-256, whichever is slower", added >= 0.5 * limit, &detail);
    Ok(())
}

/// From the first byte to the pin, and its CID.
async fn through_the_cluster(authority: &str, path: &Path, copies: usize) -> Result<(Duration, String), Failed> {
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    // As a client that means to be fast would: the library's own way reads 4 KiB at a time.
    let pieces = ReaderStream::with_capacity(tokio::fs::File::open(path).await?, PIECE_BYTES);
    let part = reqwest::multipart::Part::stream(reqwest::Body::wrap_stream(pieces)).file_name("content");
    let form = reqwest::multipart::Form::new().part("file", part);
    let url = format!("http://{authority}/add?cid-version=1&stream-channels=false&replication={copies}");
    let started = Instant::now();
    let answer = client.post(url).multipart(form).send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    let took = started.elapsed();
    let added: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    match added[0]["cid"].as_str() {
        Some(cid) if status.is_success() => Ok((took, cid.to_owned())),
        Some(_) | None => Err(format!("add: {status} {text}").into()),
    }
}

/// `ipfs add` by each daemon of these repositories at once, until the last is done, and the CID.
async fn directly(repositories: &[PathBuf], path: &Path) -> Result<(Duration, String), Failed> {
    let path = path.to_string_lossy();
    let arguments = ["add", "--quieter", "--progress=false", "--cid-version=1", "--raw-leaves", &path];
    let started = Instant::now();
    let cids = try_join_all(repositories.iter().map(|repository| ipfs(repository, &arguments))).await?;
    let took = started.elapsed();
    Ok((took, cids.into_iter().next().unwrap_or_default()))
}

/// What one call printed.
async fn ipfs(repository: &Path, arguments: &[&str]) -> Result<String, Failed> {
    let running = Command::new("ipfs").args(arguments).env("IPFS_PATH", repository).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, running).await??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("ipfs {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Gives the disk back: a gigabyte in each round on each Kubo.
async fn forget(authority: &str, added: &str, repositories: &[PathBuf], added_directly: &str) -> Result<(), Failed> {
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    client.delete(format!("http://{authority}/pins/{added}")).send().await?.error_for_status()?;
    for repository in repositories {
        ipfs(repository, &["pin", "rm", added_directly]).await?;
    }
    client.post(format!("http://{authority}/ipfs/gc")).send().await?.error_for_status()?;
    Ok(())
}

fn write_rate(files: &Files) -> std::io::Result<Duration> {
    let path = files.folder.path().join("written");
    let piece = content::bytes(1, WRITTEN_PIECE_BYTES);
    let started = Instant::now();
    let mut file = std::fs::File::create(&path)?;
    for _ in 0..files.mib {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    let took = started.elapsed();
    std::fs::remove_file(&path)?;
    Ok(took)
}

/// MB/s of one core.
fn hash_rate() -> f64 {
    let data = content::bytes(1, HASHED_BYTES);
    let started = Instant::now();
    let _digest = std::hint::black_box(Code::Sha2_256.digest(&data));
    HASHED_BYTES as f64 / 1e6 / started.elapsed().as_secs_f64()
}

/// The rounds, for who wonders how far the median can be trusted.
fn in_turn(ours: &[f64], theirs: &[f64]) -> String {
    let rounds = ours.iter().zip(theirs).map(|(ours, theirs)| format!("{ours:.0} and {theirs:.0}"));
    format!("rounds, ours and theirs: {}", rounds.collect::<Vec<_>>().join(", "))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    f64::midpoint(values[middle], values[(values.len() - 1) / 2])
}
