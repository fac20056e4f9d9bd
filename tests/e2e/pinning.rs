//! The main job: content comes in at one peer, lies on the allocated ones, and goes again.

use pinfold_common::json::AddedJson;
use pinfold_common::{Cid, ids};
use pinfold_tests::cluster::{TestCluster, eventually};
use pinfold_tests::content;

/// Peer IDs in `allocations` as indexes of the cluster.
pub fn holders(cluster: &TestCluster, allocations: &[String]) -> Vec<usize> {
    let ids = allocations.iter().map(|id| ids::parse_peer_id(id).unwrap());
    ids.map(|id| cluster.index_of(&id)).collect()
}

/// Waits until `count` peers say that they have pinned it, and the others that it is not theirs.
pub async fn settled(cluster: &TestCluster, at: usize, cid: &str, count: usize) {
    eventually(&format!("{cid} pinned on {count} peers"), || async {
        let status = cluster.rest(at).status(cid).await;
        let with = |name: &str| status.peer_map.values().filter(|peer| peer.status == name).count();
        (with("pinned") == count && with("remote") == status.peer_map.len() - count).then_some(())
    })
    .await;
}

/// Goal: content added with two copies on three peers can be read back byte for byte from each holder, and the third
/// peer has nothing to do with it.
#[tokio::test(flavor = "multi_thread")]
async fn add_and_read_back_from_each_holder() {
    let cluster = TestCluster::start(3).await;
    let data = content::bytes(1, 3 * 1024 * 1024 + 17);
    let answer = cluster.rest(1).add("name=three", vec![("three.bin", data.clone())]).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let added: Vec<AddedJson> = answer.lines();
    let cid = added.last().unwrap().cid.clone().unwrap();
    // `ipfs add` of the same bytes; testdata/cids says how such values were made.
    assert!(cid.starts_with("Qm"), "{cid}");

    settled(&cluster, 0, &cid, 2).await;
    let pin = cluster.rest(2).allocations().await.remove(&cid).unwrap();
    assert_eq!(pin.name, "three");
    let holders = holders(&cluster, &pin.allocations.unwrap());
    assert_eq!(holders.len(), 2);
    let root: Cid = ids::parse_cid(&cid).unwrap();
    for index in 0..cluster.len() {
        let read = content::read_file(&mut cluster.blocks(index), &root).await;
        match holders.contains(&index) {
            true => assert!(read.unwrap() == data, "peer {index} holds other bytes"),
            false => assert!(read.is_err(), "peer {index} is not allocated and yet has it all"),
        }
    }
}

/// Goal: a peer that has to hold content which only another peer has fetches it from there.
#[tokio::test(flavor = "multi_thread")]
async fn content_travels_between_siblings() {
    let cluster = TestCluster::start(3).await;
    let data = content::bytes(2, 1_500_000);
    let answer = cluster.rest(0).add("replication=1&cid-version=1", vec![("one.bin", data.clone())]).await;
    let cid = answer.lines::<AddedJson>().pop().unwrap().cid.unwrap();
    settled(&cluster, 0, &cid, 1).await;
    let answer = cluster.rest(2).post(&format!("/pins/{cid}?replication=-1")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    settled(&cluster, 1, &cid, 3).await;
    let root = ids::parse_cid(&cid).unwrap();
    for index in 0..3 {
        assert!(content::read_file(&mut cluster.blocks(index), &root).await.unwrap() == data);
    }
}

/// Goal: any peer takes pins and unpins, whoever leads, and all peers see the same pinset at once.
#[tokio::test(flavor = "multi_thread")]
async fn pin_and_unpin_from_every_peer() {
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    for index in 0..3 {
        let cid = content::identity_cid(&format!("from {index}, led by {leader}")).to_string();
        let answer = cluster.rest(index).post(&format!("/pins/{cid}?replication=-1&name=n{index}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        // Read your own write.
        assert_eq!(cluster.rest(index).get(&format!("/allocations/{cid}")).await.status, 200);
        settled(&cluster, (index + 1) % 3, &cid, 3).await;

        let answer = cluster.rest((index + 1) % 3).delete(&format!("/pins/{cid}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        eventually("unpinned everywhere", || async {
            let status = cluster.rest(index).status(&cid).await;
            status.peer_map.values().all(|peer| peer.status == "unpinned").then_some(())
        })
        .await;
        assert_eq!(cluster.rest(index).delete(&format!("/pins/{cid}")).await.status, 404);
    }
    for index in 0..3 {
        assert!(cluster.rest(index).allocations().await.is_empty());
    }
}

/// Goal: the options of one pin never show on another (in the original they do: data/original/README.md).
#[tokio::test(flavor = "multi_thread")]
async fn options_stay_with_their_pin() {
    let cluster = TestCluster::start(3).await;
    let rich = content::identity_cid("rich");
    let options = "name=rich&meta-kind=jpg&expire-in=1000h&replication-min=1&replication-max=3\
                   &origins=/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWR6QWBXs5eLoors348Mv6ky8GgupjGV6X8XbbE6hLRoP6";
    let update = content::identity_cid("update");
    assert_eq!(cluster.rest(0).post(&format!("/pins/{rich}?{options}")).await.status, 200);
    assert_eq!(cluster.rest(0).post(&format!("/pins/{update}?pin-update={rich}")).await.status, 200);
    let plain: Vec<Cid> = (0..20).map(|n| content::identity_cid(&format!("plain {n}"))).collect();
    for (index, cid) in plain.iter().enumerate() {
        assert_eq!(cluster.rest(index % 3).post(&format!("/pins/{cid}")).await.status, 200);
    }
    for index in 0..3 {
        let pins = eventually("all pins on this peer", || async {
            let pins = cluster.rest(index).allocations().await;
            (pins.len() == plain.len() + 2).then_some(pins)
        })
        .await;
        for cid in &plain {
            let pin = &pins[&cid.to_string()];
            assert_eq!(pin.name, "");
            assert!(pin.expire_at.is_unset());
            assert_eq!(pin.metadata, None);
            assert_eq!(pin.origins, Some(Vec::new()));
            assert_eq!(pin.pin_update, None);
            assert_eq!((pin.replication_factor_min, pin.replication_factor_max), (2, 2));
        }
        assert_eq!(pins[&update.to_string()].pin_update, Some(rich.to_string()));
        assert_eq!(pins[&rich.to_string()].metadata.as_ref().unwrap()["kind"], "jpg");
    }
}

/// Goal: a burst of pins spreads evenly over equal peers (protocols.md 5): within 10 % of even.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_spreads() {
    let cluster = TestCluster::start(5).await;
    let requests = (0..600).map(|n| {
        let request = pinfold_common::pin::PinRequest::new(content::identity_cid(&format!("burst {n}")));
        pinfold_proto::types::PinRequest::from(request)
    });
    let call = pinfold_proto::api::PinManyRequest { requests: requests.collect(), request_key: Vec::new() };
    let reply = cluster.pins(0).pin_many(call).await.unwrap().into_inner();
    assert_eq!(reply.results.len(), 600);
    let mut counts = vec![0; 5];
    for pin in cluster.rest(0).allocations().await.into_values() {
        for index in holders(&cluster, &pin.allocations.unwrap()) {
            counts[index] += 1;
        }
    }
    assert_eq!(counts.iter().sum::<i32>(), 1200);
    assert!(counts.iter().all(|count| (216..=264).contains(count)), "{counts:?}");
}

/// Goal: `ctl` does what the first page of the README says, with the exit codes of scripts.
#[tokio::test(flavor = "multi_thread")]
async fn ctl_from_first_steps_to_the_end() {
    let cluster = TestCluster::start(3).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("big.bin");
    std::fs::write(&file, content::bytes(3, 5_000_000)).unwrap();
    let host = cluster.peer(2).api.clone();
    let ctl_at = |host: &str, arguments: &[&str]| {
        let mut command = tokio::process::Command::new(TestCluster::ctl());
        command.args(["--host", host]).args(arguments);
        async move {
            let output = command.output().await.unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            (output.status.code().unwrap(), text, String::from_utf8_lossy(&output.stderr).into_owned())
        }
    };
    let ctl = |arguments: &[&str]| ctl_at(&host, arguments);
    let (code, text, errors) = ctl(&["add", "--wait", "-Q", "-n", "big", file.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{text} {errors}");
    let cid = text.trim().to_owned();
    let (code, text, _) = ctl(&["status", &cid]).await;
    assert_eq!(code, 0);
    assert_eq!(text.matches(": PINNED").count(), 2, "{text}");
    assert_eq!(text.matches(": REMOTE").count(), 1, "{text}");
    let (code, text, _) = ctl(&["pin", "ls"]).await;
    assert!(code == 0 && text.contains(&cid) && text.contains("| big | PIN |"), "{text}");
    let (code, text, _) = ctl(&["--enc", "json", "peers", "ls"]).await;
    assert!(code == 0 && text.matches("\"cluster_peers_addresses\"").count() == 3, "{text}");
    let (code, text, _) = ctl(&["id"]).await;
    assert!(code == 0 && text.contains("Sees 2 other peers"), "{text}");
    let (code, text, errors) = ctl(&["pin", "rm", "--wait", &cid]).await;
    assert!(code == 0 && text.matches(": UNPINNED").count() == 3, "{text} {errors}");
    let (code, text, _) = ctl(&["pin", "rm", &cid]).await;
    assert!(code == 2 && text.contains("Code: 404") && text.contains("pin is not part of the pinset"), "{text}");
    let (code, text, _) = ctl_at("/ip4/127.0.0.1/tcp/1", &["id"]).await;
    assert!(code == 1 && text.contains("Code: 0"), "{text}");
    let (code, _, errors) = ctl(&["add", "/nonexistent"]).await;
    assert!(code == 1 && errors.contains("/nonexistent"), "{errors}");
    let (code, _, errors) = ctl(&["add", folder.path().to_str().unwrap()]).await;
    assert!(code == 1 && errors.contains("is a directory, but Recursive option is not set"), "{errors}");
}
