//! `ctl state export`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use pinfold_common::json::{PinJson, PinSource, to_go_json};
use pinfold_common::pin::Pin;
use pinfold_proto::api;

use crate::cli::StateExport;
use crate::client::{Client, Failure, Outcome};

/// The whole pinset as one log index left it, one JSON object a line, as `consensus-svc state export` writes it.
pub async fn export(client: &Client, arguments: StateExport) -> Outcome {
    let request = api::ExportRequest { consistent: arguments.consistent };
    let stream = client.state().export(request).await?.into_inner();
    let Some(path) = arguments.file else {
        let out = BufWriter::new(std::io::stdout().lock());
        return match write(stream, out, Path::new("standard output")).await {
            Ok(_) => Ok(()),
            Err(Failure::Local { message, .. }) if message.contains("Broken pipe") => Ok(()),
            Err(failure) => Err(failure),
        };
    };
    // Beside it first: a file of that name is a whole export, or an older one.
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let failed = |error: std::io::Error| Failure::local(format!("writing {}", partial.display()), error);
    let file = File::create(&partial).map_err(failed)?;
    match write(stream, BufWriter::new(file), &partial).await {
        Ok(out) => {
            let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
            file.sync_all().and_then(|()| std::fs::rename(&partial, &path)).map_err(failed)
        }
        Err(failure) => {
            let _ = std::fs::remove_file(&partial); // the first failure is the one to report
            Err(failure)
        }
    }
}

async fn write<W: Write>(
    mut stream: tonic::Streaming<api::ExportReply>,
    mut out: BufWriter<W>,
    path: &Path,
) -> Outcome<BufWriter<W>> {
    let failed = |error: std::io::Error| Failure::local(format!("writing {}", path.display()), error);
    let (mut written, mut promised, mut index) = (0, 0, 0);
    while let Some(reply) = stream.message().await? {
        (promised, index) = (reply.total, reply.index);
        for pin in reply.pins {
            out.write_all(&to_go_json(&PinJson::new(&Pin::try_from(pin)?, PinSource::State))).map_err(failed)?;
            written += 1;
        }
    }
    out.flush().map_err(failed)?;
    if written != promised {
        // A stream that was cut looks like its end to some proxies.
        return Err(Failure::local("exporting", format!("{written} of {promised} pins came")));
    }
    eprintln!("exported {written} pins, as entry {index} left them");
    Ok(out)
}
