//! Power cuts (fault:D1): the disk loses everything that was not synced, under load, and every acknowledged pin is still
//! there. Of one peer, again and again on the same folder; and of a whole cluster at the same instant.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use pinfold_common::tls::ClusterSecret;
use pinfold_tests::cluster::eventually;
use pinfold_tests::needs::{self, Need};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::disk::LoopDisk;
use crate::extent::{extent, seed};
use crate::house::{House, Wish};
use crate::load::Load;
use crate::report::Report;
use crate::solo::Solo;

const NEEDS: [Need; 4] = [Need::Root, Need::LoopDevice, Need::Mkfs, Need::XfsIo];
const DISK_MIB: u64 = 96;
const HOUSE_DISK_MIB: u64 = 512;
const WRITERS: usize = 4;
/// Acknowledged pins before a cut, at least and at most.
const BETWEEN_CUTS: std::ops::Range<usize> = 20..200;

/// Goal: an acknowledged pin survives the loss of power at any moment: an fsync came before the answer.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i4_fault_d1_power_cuts_of_one_peer() {
    if !needs::are_met("seed_i4_fault_d1_power_cuts_of_one_peer", &NEEDS) {
        return;
    }
    let mut report = Report::new("fault:D1 power cuts, one peer");
    let folder = tempfile::Builder::new().prefix("pinfold-power-").tempdir().expect("a temporary folder");
    let disk = LoopDisk::new(folder.path(), DISK_MIB);
    // Beside the disk: its log file must not lie on what loses its power.
    let mut peer = Solo::prepare(&disk.folder.join("peer"), &ClusterSecret::generate());
    peer.log_to(folder.path().join("peer.log"));
    let pinned = Mutex::default();
    let mut random = StdRng::seed_from_u64(seed());
    for round in 0..extent().choose(4, 200) {
        let running = peer.start(None, None);
        peer.verify(&format!("after cut {round}"), &pinned).await;
        let enough = pinned.lock().unwrap().acknowledged.len() + random.random_range(BETWEEN_CUTS);
        let stop = AtomicBool::new(false);
        let writer = |writer: usize| {
            let (peer, pinned, stop) = (&peer, &pinned, &stop);
            async move {
                let label = format!("{round} {writer}");
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) || !peer.pin(&label, number, pinned).await {
                        return;
                    }
                }
            }
        };
        let cut = async {
            eventually("acknowledged pins", || async {
                (pinned.lock().unwrap().acknowledged.len() >= enough).then_some(())
            })
            .await;
            disk.cut_power();
            stop.store(true, Ordering::Relaxed);
            running.kill().await;
        };
        tokio::join!(cut, futures::future::join_all((0..WRITERS).map(writer)));
        disk.power_on();
        report.fault("power cut");
    }
    let running = peer.start(None, None);
    peer.verify("after the last cut", &pinned).await;
    running.kill().await;
    let pinned = pinned.into_inner().unwrap();
    pinned.count(&mut report);
    report.finish();
}

/// Goal: all peers of a cluster lose their power at the same instant, under load, and come back with everything that was
/// acknowledged and with one pinset.
#[tokio::test(flavor = "multi_thread")]
async fn seed_i4_fault_d1_p4_power_cut_of_all_peers() {
    if !needs::are_met("seed_i4_fault_d1_p4_power_cut_of_all_peers", &NEEDS) {
        return;
    }
    let mut report = Report::new("fault:D1 fault:P4 power cut of all peers");
    let folder = tempfile::Builder::new().prefix("pinfold-power-").tempdir().expect("a temporary folder");
    // Declared before the house, so that it is unmounted after the house's processes have ended.
    let disk = LoopDisk::new(folder.path(), HOUSE_DISK_MIB);
    let house = House::start(Wish { folder: Some(disk.folder.join("house")), ..Wish::default() }).await;
    for round in 0..extent().choose(1, 20) {
        let load = Load::start(&house, seed() + round);
        load.more_writes(40).await;
        disk.cut_power();
        house.kill_all().await;
        disk.power_on();
        report.fault("power cut of all");
        house.resume_all().await;
        load.finish(&house, &mut report).await;
    }
    house.stop().await;
    report.finish();
}
