//! What the disk can do at all: overwrites of a preallocated file, each made durable.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::report::Report;

const BLOCK: usize = 4096;
const FILE_BLOCKS: usize = 1024;

/// Of one writer.
pub struct Syncs {
    /// Per second.
    pub rate: f64,
    /// Half of them took no longer.
    pub p50_ms: f64,
}

/// fdatasyncs of one writer, one after the other.
pub fn fdatasync(folder: &Path, time: Duration) -> std::io::Result<Syncs> {
    let path = folder.join("fdatasync");
    let mut file = std::fs::File::create(&path)?;
    file.write_all(&vec![0; BLOCK * FILE_BLOCKS])?;
    file.sync_all()?;
    let block = [7; BLOCK];
    let started = Instant::now();
    let mut times: Vec<Duration> = Vec::new();
    while started.elapsed() < time {
        let at = (times.len() % FILE_BLOCKS * BLOCK) as u64;
        let begun = Instant::now();
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(Syncs { rate, p50_ms: times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1000.0) })
}

/// fdatasyncs per second of one writer, as a figure.
pub fn fdatasync_rate(report: &mut Report, folder: &Path, time: Duration) -> std::io::Result<f64> {
    let Syncs { rate, .. } = fdatasync(folder, time)?;
    report.figure("disk.fdatasync", "fdatasync of one writer, 4 KiB overwrites", rate, "per s");
    Ok(rate)
}
