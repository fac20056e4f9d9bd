//! What the disk can do at all: overwrites of a preallocated file, each made durable.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::report::Report;

const BLOCK: usize = 4096;
const FILE_BLOCKS: usize = 1024;

/// fdatasyncs per second of one writer.
pub fn fdatasync_rate(report: &mut Report, folder: &Path, time: Duration) -> std::io::Result<f64> {
    let path = folder.join("fdatasync");
    let mut file = std::fs::File::create(&path)?;
    file.write_all(&vec![0; BLOCK * FILE_BLOCKS])?;
    file.sync_all()?;
    let block = [7; BLOCK];
    let (started, mut count) = (Instant::now(), 0u32);
    while started.elapsed() < time {
        let at = (count as usize % FILE_BLOCKS * BLOCK) as u64;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&block)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = f64::from(count) / started.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    report.figure("disk.fdatasync", "fdatasync of one writer, 4 KiB overwrites", rate, "per s");
    Ok(rate)
}
