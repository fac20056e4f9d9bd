//! Tests that need a real Kubo find `ipfs` on the PATH. Without it each says so, and `make test` counts them at its end.

/// Names a folder in which a skipped test leaves a file of its name.
const SKIPPED: &str = "PINFOLD_SKIPPED";

/// Whether there is a Kubo; when not, the calling test says so and returns.
pub fn is_here(test: &str) -> bool {
    if ctl::local::on_path("ipfs").is_some() {
        return true;
    }
    eprintln!("kubo: not on the PATH, {test} skipped");
    if let Some(folder) = std::env::var_os(SKIPPED) {
        let _ = std::fs::write(std::path::Path::new(&folder).join(test), "kubo");
    }
    false
}
