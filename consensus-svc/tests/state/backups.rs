//! Backups, online exports, and the snapshot of a clean stop.

use std::path::Path;

use pinfold_proto::types;

use crate::harness::{Cluster, until};
use crate::{export, files, list, ok, pin_some};

/// Goal: a backup that was made under writes is the pinset at one index, has no secret unless asked for, and restores to
/// exactly that, as a new cluster; a damaged, cut or foreign one is refused with the reason, and nothing is touched
/// (seed:I10, fault:F24, fault:B1, fault:B2).
#[tokio::test(flavor = "multi_thread")]
async fn seed_i10_i9_backup_and_restore() {
    use pinfold_proto::consensus::{CreateBackupCall, ListBackupsCall};
    let cluster = Cluster::new();
    let mut peer = cluster.peer().await;
    peer.set("backup.interval", "0s".into());
    peer.write_folder();
    peer.start(&[]).await;
    peer.ready().await;
    pin_some(&peer, 0..1000).await;
    let old = peer.status().await.unwrap();
    let writing = pin_some(&peer, 1000..3000);
    let mut state = peer.state();
    let backup =
        async { state.create_backup(CreateBackupCall { with_keys: false }).await.unwrap().into_inner().backup };
    let ((), backup) = tokio::join!(writing, backup);
    let backup = backup.unwrap();
    let with_keys = peer.state().create_backup(CreateBackupCall { with_keys: true }).await.unwrap();
    let with_keys = with_keys.into_inner().backup.unwrap();
    let listed = peer.state().list_backups(ListBackupsCall {}).await.unwrap().into_inner().backups;
    assert_eq!(listed.len(), 2);
    assert!(listed.contains(&backup) && listed.contains(&with_keys));
    let expected: Vec<types::Pin> = list(&peer).await.into_iter().filter(|pin| pin.revision <= backup.index).collect();
    assert_eq!(expected.len() as u64, backup.pins);
    peer.stop().await.unwrap();

    let folder = Path::new(&backup.path);
    assert_eq!(files(folder), ["manifest.json", "service.json", "state.db"]);
    let secret = cluster.secret.to_hex();
    for name in files(folder) {
        let bytes = std::fs::read(folder.join(&name)).unwrap();
        assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "the secret is in {name}");
    }
    assert_eq!(files(Path::new(&with_keys.path)), ["identity.json", "manifest.json", "service.json", "state.db"]);

    let before = files(peer.path());
    let state_file = folder.join("state.db");
    let whole = std::fs::read(&state_file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 1;
    for (bytes, what) in [(&flipped[..], "checksum differs"), (&whole[..whole.len() - 1], "bytes are there")] {
        std::fs::write(&state_file, bytes).unwrap();
        let (code, _, stderr) = peer.run_program(&["state", "restore", "-f", &backup.name], "");
        assert_eq!(code, 78, "{stderr}");
        assert!(stderr.contains("state.db") && stderr.contains(what), "{stderr}");
    }
    std::fs::write(&state_file, &whole).unwrap();
    let (code, _, stderr) = peer.run_program(&["state", "restore", "-f", "logs"], "");
    assert_eq!(code, 78, "{stderr}");
    assert_eq!(files(peer.path()), before, "nothing was touched");

    // Reading a backup leaves it as it is.
    let out = peer.path().join("out.jsonl");
    for _ in 0..2 {
        let text = ok(&peer, &["state", "export", "--from", &backup.path, "-f", out.to_str().unwrap()], "");
        assert!(text.contains(&format!("exported {} pins", backup.pins)), "{text}");
        assert_eq!(std::fs::read(&state_file).unwrap(), whole);
    }
    let told = ok(&peer, &["state", "restore", "-f", &backup.name], "");
    assert!(told.contains(&format!("recovered {} pins", backup.pins)), "{told}");
    peer.start(&[]).await;
    peer.ready().await;
    let new = peer.status().await.unwrap();
    assert_ne!(new.cluster_id, old.cluster_id);
    assert!(new.lineage > old.lineage);
    assert_eq!(list(&peer).await, expected);
    assert_eq!(std::fs::read(&state_file).unwrap(), whole, "it can be restored again");
    peer.stop().await.unwrap();
}

/// Goal: backups are made by themselves, and old ones go, but not those that somebody asked for.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i10_backups_by_themselves() {
    use pinfold_proto::consensus::{CreateBackupCall, ListBackupsCall};
    let cluster = Cluster::new();
    let mut peer = cluster.peer().await;
    peer.set("backup.interval", "1s".into());
    peer.set("backup.keep", 2.into());
    peer.write_folder();
    peer.start(&[]).await;
    peer.ready().await;
    let asked = peer.state().create_backup(CreateBackupCall { with_keys: false }).await;
    let asked = asked.unwrap().into_inner().backup.unwrap();
    let automatic = || async {
        let backups = peer.state().list_backups(ListBackupsCall {}).await.unwrap().into_inner().backups;
        assert!(backups.contains(&asked), "kept for good");
        backups.into_iter().filter(|backup| backup.automatic).collect::<Vec<_>>()
    };
    until("two are there", || async { automatic().await.len() == 2 }).await;
    let first = automatic().await.pop().unwrap();
    until("the oldest is gone, and a newer one is there", || async {
        let now = automatic().await;
        now.len() == 2 && !now.contains(&first)
    })
    .await;
    peer.stop().await.unwrap();
}

/// Goal: an export of a running peer is the pinset at one index, under writes (seed:I10).
#[tokio::test(flavor = "multi_thread")]
async fn seed_i10_online_export() {
    use pinfold_proto::consensus::ExportCall;
    let (_cluster, peers) = Cluster::started(1).await;
    let peer = &peers[0];
    pin_some(peer, 0..1500).await;
    let writing = pin_some(peer, 1500..3500);
    let exporting = async {
        let mut stream = peer.state().export(ExportCall { consistent: true }).await.unwrap().into_inner();
        let (mut pins, mut index, mut total) = (Vec::new(), None, 0);
        while let Some(reply) = stream.message().await.unwrap() {
            assert_eq!(*index.get_or_insert(reply.index), reply.index, "one index");
            total = reply.total;
            pins.extend(reply.pins);
        }
        assert_eq!(pins.len() as u64, total);
        (pins, index.unwrap())
    };
    let ((), (pins, index)) = tokio::join!(writing, exporting);
    let expected: Vec<types::Pin> = list(peer).await.into_iter().filter(|pin| pin.revision <= index).collect();
    assert!(expected.len() >= 1500);
    assert_eq!(pins, expected);
}

/// Goal: a clean stop brings the whole state into its file: the file alone is enough (seed:I4).
#[tokio::test(flavor = "multi_thread")]
async fn seed_i4_a_clean_stop_is_a_snapshot() {
    let cluster = Cluster::new();
    let mut peer = cluster.peer().await;
    peer.write_folder();
    peer.start(&[]).await;
    peer.ready().await;
    pin_some(&peer, 0..500).await;
    peer.stop().await.unwrap();
    let alone = peer.path().join("alone");
    std::fs::create_dir(&alone).unwrap();
    std::fs::copy(peer.path().join("raft/state.db"), alone.join("state.db")).unwrap();
    let (code, stdout, stderr) = peer.run_program(&["state", "export", "--from", alone.to_str().unwrap()], "");
    assert_eq!((code, stdout.lines().count()), (0, 500), "{stderr}");
    assert_eq!(stdout, export(&peer));
}
