//! `state export`

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use pinfold_common::json::{PinJson, PinSource, append_go_json};
use pinfold_common::pin::Pin;

use super::io_failed;
use crate::changes;
use crate::error::Result;
use crate::store::Survivor;

/// Bytes that are put together for one write.
const BUFFER_BYTES: usize = 1 << 20;

pub async fn run(from: &Path, file: Option<&Path>) -> Result<()> {
    let survivor = Survivor::open(from).await?;
    let written = match file {
        None => match write(&survivor, &mut BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock())).await {
            // `state export | head`
            Err(Failed::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(failed) => Err(failed.of(Path::new("standard output"))),
            Ok(()) => Ok(()),
        },
        Some(path) => to_file(&survivor, path).await,
    };
    if written.is_ok() {
        tell(&survivor);
    }
    survivor.close().await;
    written
}

enum Failed {
    Read(crate::error::Error),
    Write(io::Error),
}

impl Failed {
    fn of(self, path: &Path) -> crate::error::Error {
        match self {
            Failed::Read(error) => error,
            Failed::Write(error) => io_failed("write", path, &error),
        }
    }
}

/// Beside it first: a file of that name is a whole export, or an older one.
async fn to_file(survivor: &Survivor, path: &Path) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let failed = |error: io::Error| io_failed("write", &partial, &error);
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, File::create(&partial).map_err(failed)?);
    let written = write(survivor, &mut out).await.map_err(|failed| failed.of(&partial));
    let synced = written.and_then(|()| out.into_inner().map_err(|error| failed(error.into_error())));
    let finished = synced.and_then(|file| file.sync_all().map_err(failed));
    if let Err(error) = finished {
        let _ = std::fs::remove_file(&partial); // the first error is the one to report
        return Err(error);
    }
    std::fs::rename(&partial, path).map_err(|error| io_failed("write", path, &error))
}

async fn write(survivor: &Survivor, out: &mut impl Write) -> Result<(), Failed> {
    let mut after = Vec::new();
    let mut lines = Vec::new();
    loop {
        let chunk = survivor.list(&after).await.map_err(|error| Failed::Read(error.into()))?;
        for pin in changes::decode(&chunk).map_err(|error| Failed::Read(error.into()))? {
            let pin = Pin::try_from(pin).map_err(|error| Failed::Read(error.into()))?;
            append_go_json(&mut lines, &PinJson::new(&pin, PinSource::State));
        }
        out.write_all(&lines).map_err(Failed::Write)?;
        lines.clear();
        match chunk.next {
            Some(next) => after = next,
            None => return out.flush().map_err(Failed::Write),
        }
    }
}

/// On stderr, so that the pinset stays alone on stdout.
fn tell(survivor: &Survivor) {
    let pins = survivor.pin_count();
    match survivor.last() {
        Some(last) => eprintln!("exported {pins} pins, as entry {} of term {} left them", last.index, last.term),
        None => eprintln!("exported {pins} pins"),
    }
    if survivor.undecided > 0 {
        eprintln!(
            "the last {} entries are in this peer's log, and it was not told that they are committed; they are included. \
             Another peer may know more: the highest term, then the highest entry counts",
            survivor.undecided
        );
    }
}
