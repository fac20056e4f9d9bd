//! Export, import, clean, recover, and what becomes of raft.old.N.

use std::path::Path;

use pinfold_common::Error;
use pinfold_common::files::{PRIVATE, write_once};
use pinfold_common::identity::Identity;
use pinfold_common::json::PinJson;
use pinfold_common::member::Member;
use pinfold_proto::consensus::UnpinCall;
use pinfold_proto::types;

use crate::harness::{Cluster, Peer, cid, until};
use crate::{ORIGINAL, Running, copy_folder, export, files, list, ok, pin_some, sorted};

/// Goal: an export after kill -9, without any snapshot, has every acknowledged pin and no other, one line each with the
/// original's fields in its order; a running peer is refused with the reason; the export changes nothing on disk.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i5_i7_export_after_kill() {
    let cluster = Cluster::new();
    let mut peer = cluster.peer().await;
    peer.set("services.consensus.metrics_multiaddress", "".into());
    peer.write_folder();
    let running = Running::start(&peer).await;
    pin_some(&peer, 0..1500).await;
    peer.pins().unpin(UnpinCall { cid: cid(7), ..UnpinCall::default() }).await.unwrap();
    let pins = list(&peer).await;
    for command in [vec!["state", "export"], vec!["state", "import", "-f", "/dev/null"], vec!["state", "clean", "-f"]] {
        let (code, stdout, stderr) = peer.run_program(&command, "");
        assert_eq!((code, stdout.as_str()), (75, ""), "{stderr}");
        assert!(stderr.contains("execution lock") && stderr.contains("another process"), "{stderr}");
    }
    running.kill();

    let text = export(&peer);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1499);
    for (line, pin) in lines.iter().zip(&pins) {
        let pin = pinfold_common::pin::Pin::try_from(pin.clone()).unwrap();
        let expected = pinfold_common::json::to_go_json(&PinJson::new(&pin, pinfold_common::json::PinSource::State));
        assert_eq!(format!("{line}\n").as_bytes(), expected);
    }
    let keys = |line: &str| -> Vec<String> {
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line).unwrap().keys().cloned().collect()
    };
    assert_eq!(keys(lines[0]), keys(ORIGINAL.lines().next().unwrap()), "fields in the original's order");
    let to_file = peer.path().join("export.jsonl");
    ok(&peer, &["state", "export", "-f", to_file.to_str().unwrap()], "");
    assert_eq!(std::fs::read_to_string(&to_file).unwrap(), text);
    let running = Running::start(&peer).await;
    assert_eq!(list(&peer).await, pins, "the export took nothing away");
    running.kill();
}

/// Goal: an import replaces the pinset, keeps the old one as raft.old.0 with what it takes to put it back, and asks
/// first; export, import, export is identical; an export of the original is taken, with what it says.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i6_i9_import_of_the_originals_export() {
    let cluster = Cluster::new();
    let mut peer = cluster.peer().await;
    peer.write_folder();
    peer.start(&[]).await;
    peer.ready().await;
    pin_some(&peer, 0..10).await;
    let before = peer.status().await.unwrap();
    peer.stop().await.unwrap();
    let old = export(&peer);

    let declined = ok(&peer, &["state", "import"], &format!("n\n{ORIGINAL}"));
    assert!(declined.contains("will be replaced. Continue? [y/n]:"), "{declined}");
    assert_eq!(export(&peer), old, "no is no");
    let told = ok(&peer, &["state", "import"], &format!("y\n{ORIGINAL}"));
    assert!(told.contains("imported 9 pins") && told.contains("raft.old.0"), "{told}");
    assert_eq!(sorted(&export(&peer)), sorted(ORIGINAL), "every field as the original wrote it");
    let pretty = ORIGINAL.replace(',', ",\n\t");
    ok(&peer, &["state", "import", "--force"], &pretty);
    assert_eq!(sorted(&export(&peer)), sorted(ORIGINAL));

    peer.start(&[]).await;
    peer.ready().await;
    let after = peer.status().await.unwrap();
    assert_eq!(after.pins, 9);
    assert_ne!(after.cluster_id, before.cluster_id, "a new cluster");
    assert_eq!(after.peerset.unwrap().peers.len(), 1);
    pin_some(&peer, 100..110).await;
    assert_eq!(list(&peer).await.len(), 19);
    peer.stop().await.unwrap();

    // Overrides are for every pin.
    let one = pinfold_common::identity::Identity::generate().peer_id.to_string();
    let file = peer.path().join("in.jsonl");
    std::fs::write(&file, ORIGINAL).unwrap();
    let file = file.to_str().unwrap();
    ok(&peer, &["state", "import", "-f", "--rmin", "2", "--rmax", "4", "--allocs", &one, file], "");
    let text = export(&peer);
    assert_eq!(text.matches(r#""replication_factor_min":2,"replication_factor_max":4"#).count(), 9);
    assert_eq!(text.matches(&format!(r#""allocations":["{one}"]"#)).count(), 9);

    // The first state is three exchanges back, and comes back by renaming.
    ok(&peer, &["state", "clean", "-f"], "");
    std::fs::rename(peer.path().join("raft.old.3"), peer.path().join("raft")).unwrap();
    assert_eq!(export(&peer), old);
    peer.start(&[]).await;
    peer.ready().await;
    let again = peer.status().await.unwrap();
    assert_eq!((again.cluster_id, again.node_id, again.pins), (before.cluster_id, before.node_id, 10));
    peer.stop().await.unwrap();
}

/// Goal: a file with a mistake in it changes nothing at all, and the line is told; neither does one that cannot be read.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i6_a_bad_line_changes_nothing() {
    let cluster = Cluster::new();
    let mut peer = cluster.peer().await;
    peer.write_folder();
    peer.start(&[]).await;
    peer.ready().await;
    pin_some(&peer, 0..10).await;
    peer.stop().await.unwrap();
    let old = export(&peer);
    let names = files(peer.path());
    let mut lines: Vec<String> = ORIGINAL.lines().map(str::to_owned).cycle().take(3000).collect();
    lines[2345] = lines[2345].replace("\"cid\":\"", "\"cid\":\"x");
    let (code, _, stderr) = peer.run_program(&["state", "import", "-f"], &lines.join("\n"));
    assert_ne!(code, 0);
    assert!(stderr.contains("line 2346: cid") && stderr.contains("nothing was changed"), "{stderr}");
    let (code, _, stderr) = peer.run_program(&["state", "import", "-f", "/nowhere"], "");
    assert_ne!(code, 0);
    assert!(stderr.contains("/nowhere"), "{stderr}");
    assert_eq!(files(peer.path()), names);
    assert_eq!(export(&peer), old);
    // Twice the same CID is one pin: the later one counts.
    let told =
        ok(&peer, &["state", "import", "-f"], &format!("{ORIGINAL}{}", ORIGINAL.replace("\"hello\"", "\"later\"")));
    assert!(told.contains("9 objects have the CID of an earlier one"), "{told}");
    let text = export(&peer);
    assert_eq!((text.lines().count(), text.matches("\"hello\"").count()), (9, 0));
}

/// Goal: the peer goes on where a folder is that was cleaned: it may found or join, and several cleans are kept, newest
/// first (seed:F18, seed:I2).
#[tokio::test(flavor = "multi_thread")]
async fn seed_f18_i2_clean_and_join() {
    let (_cluster, mut peers) = Cluster::started(3).await;
    let [first, second, _third] = &mut peers[..] else { panic!() };
    second.write_folder();
    pin_some(first, 0..5).await;
    second.stop().await.unwrap();
    let declined = ok(second, &["state", "cleanup"], "\n");
    assert!(declined.contains("The peer state will be removed.  Existing pins may be lost. Continue? [y/n]:"));
    assert!(Member::load(second.path()).unwrap().is_some());
    let told = ok(second, &["state", "clean"], "y\n");
    assert!(told.contains("raft.old.0"), "{told}");
    assert_eq!(Member::load(second.path()).unwrap(), None);
    let (code, _, stderr) = second.run_program(&["state", "export"], "");
    assert_eq!(code, 78, "no state is an error, not an empty pinset: {stderr}");
    let old = second.path().join("raft.old.0");
    let (code, stdout, _) = second.run_program(&["state", "export", "--from", old.to_str().unwrap()], "");
    assert_eq!((code, stdout.lines().count()), (0, 5));
    assert!(ok(second, &["state", "clean", "-f"], "").contains("there was no state"), "nothing to keep");

    second.start(&[first.multiaddress()]).await;
    second.ready().await;
    let status = second.status().await.unwrap();
    assert_eq!((status.peerset.unwrap().peers.len(), status.pins), (3, 5));
    second.stop().await.unwrap();
    ok(second, &["state", "clean", "-f"], "");
    let node = |number: u32| Member::load(&second.path().join(format!("raft.old.{number}"))).unwrap().unwrap().node_id;
    assert_ne!(node(0), node(1));
    assert_eq!(node(0), status.node_id, "newest first");
}

/// Goal: two of three are lost for good. One command on the survivor, and it serves all that was acknowledged, as a new
/// cluster that the lost ones can't come back to but by joining it; a clean folder of the old cluster is refused
/// (seed:I8, seed:I9, fault:B3, fault:B4).
#[tokio::test(flavor = "multi_thread")]
async fn seed_i8_i9_recover() {
    let (cluster, mut peers) = Cluster::started(3).await;
    pin_some(&peers[0], 0..1200).await;
    let old = peers[0].status().await.unwrap();
    until("the last peer has all", || async { peers[2].status().await.is_some_and(|status| status.pins == 1200) })
        .await;
    let pins = list(&peers[0]).await;
    for peer in &mut peers {
        peer.write_folder();
        peer.stop().await.unwrap();
    }
    let [first, second, survivor] = &mut peers[..] else { panic!() };
    assert!(ok(survivor, &["state", "recover"], "n\n").contains("as a new cluster, with 1200 pins"));
    let told = ok(survivor, &["state", "recover", "--force"], "");
    assert!(told.contains("recovered 1200 pins") && told.contains(&survivor.multiaddress()), "{told}");
    survivor.start(&[]).await;
    survivor.ready().await;
    let status = survivor.status().await.unwrap();
    assert_ne!(status.cluster_id, old.cluster_id);
    assert!(status.lineage > old.lineage && status.peerset.unwrap().peers.len() == 1);
    assert_eq!(list(survivor).await, pins, "with their revisions and allocations");
    *cluster.monitors.peers.lock() = vec![survivor.id()];
    pin_some(survivor, 2000..2100).await;

    // The lost ones are not lost after all: they neither come back nor disturb.
    first.start(&[survivor.multiaddress()]).await;
    second.start(&[]).await;
    until("the old cluster is one of its own", || async {
        first.status().await.is_some_and(|status| status.cluster_id == old.cluster_id && !status.leader.is_empty())
    })
    .await;
    let error = Error::from(
        first.membership_of(survivor).join(join_as_member(first, &old.cluster_id)).await.expect_err("another cluster"),
    );
    assert_eq!(error.code, pinfold_common::Code::Incompatible, "{error}");
    assert_eq!(survivor.status().await.unwrap().peerset.unwrap().peers.len(), 1);
    first.stop().await.unwrap();
    second.stop().await.unwrap();
    ok(first, &["state", "clean", "-f"], "");
    first.start(&[survivor.multiaddress()]).await;
    first.ready().await;
    assert_eq!(list(first).await.len(), 1300);

    // From a folder that was set aside, on another machine's peer.
    let aside = survivor.path().join("raft.old.0");
    ok(second, &["state", "recover", "-f", "--from", aside.to_str().unwrap()], "");
    assert_eq!(export(second).lines().count(), 1200);
}

fn join_as_member(peer: &Peer, cluster_id: &[u8]) -> pinfold_proto::consensus::JoinCall {
    let there = || "127.0.0.1:1".to_owned();
    let addresses =
        types::ServiceAddresses { consensus: there(), monitor: there(), connector: there(), gateway: there() };
    pinfold_proto::consensus::JoinCall {
        name: "old".into(),
        addresses: Some(addresses),
        multiaddresses: vec![peer.multiaddress()],
        version: pinfold_common::VERSION.into(),
        wire_version: pinfold_proto::WIRE_VERSION.into(),
        cluster_id: cluster_id.to_vec(),
        ..Default::default()
    }
}

/// Goal: what we export, the original takes, and gives back as it was (seed:I9). Skipped, and said so, where it is not
/// installed.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i9_handed_back_to_the_original() {
    let theirs = |folder: &Path, arguments: &[&str]| {
        let mut program = std::process::Command::new("ipfs-cluster-service");
        program.arg("-c").arg(folder).args(arguments).output()
    };
    let folder = tempfile::tempdir().unwrap();
    let Ok(made) = theirs(folder.path(), &["init", "--consensus", "raft"]) else {
        eprintln!("SKIPPED: ipfs-cluster-service is not on the PATH");
        return;
    };
    assert!(made.status.success(), "{made:?}");
    let cluster = Cluster::new();
    let peer = cluster.peer().await;
    peer.write_folder();
    ok(&peer, &["state", "import", "-f"], ORIGINAL);
    let ours = folder.path().join("ours.jsonl");
    ok(&peer, &["state", "export", "-f", ours.to_str().unwrap()], "");
    let imported = theirs(folder.path(), &["state", "import", "-f", ours.to_str().unwrap()]).unwrap();
    assert!(imported.status.success(), "{imported:?}");
    let back = theirs(folder.path(), &["state", "export"]).unwrap();
    let back = String::from_utf8(back.stdout).unwrap();
    assert_eq!(sorted(&back), sorted(ORIGINAL));
    // And their folder is not ours to start on.
    std::fs::rename(folder.path().join("raft"), peer.path().join("raft.theirs")).unwrap();
    std::fs::remove_dir_all(peer.path().join("raft")).unwrap();
    std::fs::rename(peer.path().join("raft.theirs"), peer.path().join("raft")).unwrap();
    let before = files(&peer.path().join("raft"));
    for command in [&["state", "export"][..], &["state", "clean", "-f"], &["-l", "error"]] {
        let (code, _, stderr) = peer.run_program(command, "");
        assert_eq!(code, 78, "{stderr}");
        assert!(stderr.contains("ipfs-cluster-service state"), "{stderr}");
    }
    assert_eq!(files(&peer.path().join("raft")), before, "left alone");
}

/// Goal: an older copy of raft/ put back beside its newer membership is refused with the way to rejoin, and a folder that
/// was set aside and put back on purpose is not (seed:I1, seed:I2, fault:D9).
#[tokio::test(flavor = "multi_thread")]
async fn seed_i1_i2_an_older_copy_is_refused() {
    let cluster = Cluster::new();
    let mut peer = cluster.peer().await;
    peer.start(&[]).await;
    peer.ready().await;
    pin_some(&peer, 0..10).await;
    peer.stop().await.unwrap();
    let (raft, copy) = (peer.path().join("raft"), peer.path().join("copy"));
    copy_folder(&raft, &copy);
    // A copy that is not older is the same: it brings the peer back.
    std::fs::remove_dir_all(&raft).unwrap();
    copy_folder(&copy, &raft);
    peer.start(&[]).await;
    peer.ready().await;
    pin_some(&peer, 10..20).await;
    peer.stop().await.unwrap();

    std::fs::rename(&raft, peer.path().join("newer")).unwrap();
    copy_folder(&copy, &raft);
    peer.start(&[]).await;
    let refused = peer.ended().await.unwrap_err();
    assert_eq!(format!("{:?}", refused.exit_code()), format!("{:?}", std::process::ExitCode::from(78)));
    for word in ["older copy", "ctl peers rm", "state clean", "--bootstrap", "state recover"] {
        assert!(refused.to_string().contains(word), "{word}: {refused}");
    }
    std::fs::remove_dir_all(&raft).unwrap();
    std::fs::rename(peer.path().join("newer"), &raft).unwrap();
    peer.start(&[]).await;
    peer.ready().await;
    assert_eq!(list(&peer).await.len(), 20, "the refusal did no harm");
    peer.stop().await.unwrap();

    // Another peer's folder is not taken either.
    let mut other = cluster.peer().await;
    copy_folder(&raft, &other.path().join("raft"));
    std::fs::copy(peer.path().join("member.json"), other.path().join("member.json")).unwrap();
    other.start(&[]).await;
    let refused = other.ended().await.unwrap_err().to_string();
    for peer in [&peer, &other] {
        assert!(refused.contains(&peer.identity.peer_id.to_string()), "{refused}");
    }
}

/// Goal: a folder of the first format, killed in the middle, is copied aside, brought up to date and started; a second
/// start has nothing to do; an export reads it without changing anything (seed:E1, seed:E3).
#[tokio::test(flavor = "multi_thread")]
async fn seed_e1_e3_the_first_format() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/testdata/format1");
    let expected = std::fs::read_to_string(sample.join("export.jsonl")).unwrap();
    let cluster = Cluster::new();
    // Its key is the owner's alone again, which a checkout does not keep.
    let own = tempfile::tempdir().unwrap();
    let identity = std::fs::read(sample.join("identity.json")).unwrap();
    write_once(&own.path().join("identity.json"), &identity, PRIVATE).unwrap();
    let mut peer = cluster.peer_of(Identity::load(own.path()).unwrap()).await;
    peer.set("backup.interval", "0s".into());
    peer.write_folder();
    let raft = peer.path().join("raft");
    copy_folder(&sample.join("raft"), &raft);
    std::fs::copy(sample.join("member.json"), peer.path().join("member.json")).unwrap();
    assert_eq!(sorted(&export(&peer)), sorted(&expected));
    for round in 0..2 {
        let running = Running::start(&peer).await;
        let mut pins: Vec<String> = Vec::new();
        for pin in list(&peer).await {
            let pin = pinfold_common::pin::Pin::try_from(pin).unwrap();
            let json = PinJson::new(&pin, pinfold_common::json::PinSource::State);
            pins.push(String::from_utf8(pinfold_common::json::to_go_json(&json)).unwrap());
        }
        assert_eq!(sorted(&pins.concat()), sorted(&expected), "round {round}");
        running.kill();
        let old = peer.path().join("raft.old.0");
        assert!(!peer.path().join("raft.old.1").exists(), "once");
        assert!(Member::load(&old).unwrap().is_some(), "it can be put back");
        let (code, stdout, stderr) = peer.run_program(&["state", "export", "--from", old.to_str().unwrap()], "");
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(sorted(&stdout), sorted(&expected), "the copy is whole");
    }
}
