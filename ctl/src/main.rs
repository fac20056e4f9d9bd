//! Arguments, one command, exit code.

use clap::Parser as _;
use ctl::{cli::Cli, commands};

fn main() -> std::process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return std::process::ExitCode::from(if error.use_stderr() { 1 } else { 0 });
        }
    };
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(commands::run(cli));
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            std::process::ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("error starting: {error}");
            std::process::ExitCode::from(1)
        }
    }
}
