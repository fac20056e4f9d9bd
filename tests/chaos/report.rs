//! What a scenario did, in one line: operations, unknown ones, faults by kind, time. A failing one says how to replay it.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use crate::extent::seed;
use crate::history::Operation;

/// Names a file to which every finished scenario adds its line.
const REPORT: &str = "PINFOLD_CHAOS_REPORT";

pub struct Report {
    name: &'static str,
    started: Instant,
    faults: BTreeMap<String, usize>,
    operations: usize,
    unknown: usize,
    notes: Vec<String>,
}

impl Report {
    pub fn new(name: &'static str) -> Report {
        Report { name, started: Instant::now(), faults: BTreeMap::new(), operations: 0, unknown: 0, notes: Vec::new() }
    }

    /// One more fault that was proven.
    pub fn fault(&mut self, kind: &str) {
        *self.faults.entry(kind.to_owned()).or_default() += 1;
    }

    pub fn history(&mut self, operations: &[Operation]) {
        self.operations += operations.len();
        self.unknown += operations.iter().filter(|operation| operation.answered.is_none()).count();
    }

    pub fn counted(&mut self, operations: usize, unknown: usize) {
        self.operations += operations;
        self.unknown += unknown;
    }

    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// A run without a fault shows nothing.
    pub fn finish(self) {
        assert!(!self.faults.is_empty(), "{}: no fault took effect", self.name);
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let notes = self.notes.iter().map(|note| format!("; {note}")).collect::<String>();
        let line = format!(
            "{}: seed {}, {} operations, {} unknown; faults: {}; {:.1} s{notes}",
            self.name,
            seed(),
            self.operations,
            self.unknown,
            faults.join(", "),
            self.started.elapsed().as_secs_f64(),
        );
        eprintln!("{line}");
        if let Some(path) = std::env::var_os(REPORT) {
            let file = std::fs::File::options().create(true).append(true).open(&path);
            let mut file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            writeln!(file, "{line}").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} failed; the same faults again: PINFOLD_CHAOS_SEED={}", self.name, seed());
        }
    }
}
