//! Figures by name, ratios to a baseline, and goals that pass or fail.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

pub struct Report {
    figures: BTreeMap<String, f64>,
    baseline: Option<BTreeMap<String, f64>>,
    failed: usize,
    passed: usize,
    ours: bool,
}

impl Report {
    pub fn new(baseline: Option<&Path>) -> Report {
        let read = |path: &Path| {
            let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
            text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()))
                .unwrap_or_else(|error| panic!("baseline {}: {error}", path.display()))
        };
        Report { figures: BTreeMap::new(), baseline: baseline.map(read), failed: 0, passed: 0, ours: false }
    }

    /// Goals are ours alone; another cluster is only measured.
    pub fn mark_ours(&mut self) {
        self.ours = true;
    }

    pub fn is_ours(&self) -> bool {
        self.ours
    }

    pub fn section(&self, title: &str) {
        println!("\n{title}");
    }

    /// Prints one figure, and its ratio to the baseline's.
    pub fn figure(&mut self, name: &str, what: &str, value: f64, unit: &str) {
        let ratio = self.ratio(name, value).map(|ratio| format!("   {ratio:.2} x baseline")).unwrap_or_default();
        let digits = if value.abs() < 10.0 { 2 } else { usize::from(value.abs() < 100.0) };
        println!("  {what:<58} {value:>12.digits$} {unit}{ratio}");
        self.figures.insert(name.to_owned(), value);
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }

    fn ratio(&self, name: &str, value: f64) -> Option<f64> {
        let other = self.baseline.as_ref()?.get(name)?;
        (*other > 0.0).then(|| value / other)
    }

    /// The baseline's figure of the same name, or one that was measured before (spec: measured.md part C).
    pub fn reference(&self, name: &str, published: f64) -> (f64, &'static str) {
        match self.baseline.as_ref().and_then(|baseline| baseline.get(name)) {
            Some(value) => (*value, "measured beside"),
            None => (published, "published, another machine"),
        }
    }

    pub fn goal(&mut self, what: &str, holds: bool, detail: &str) {
        println!("  {} {what}: {detail}", if holds { "PASS" } else { "FAIL" });
        if holds {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    pub fn save(&self, path: &Path) {
        let text = serde_json::to_string_pretty(&self.figures).unwrap_or_default();
        if let Err(error) = std::fs::write(path, text) {
            eprintln!("bench: write {}: {error}", path.display());
        }
    }

    pub fn finish(&self) -> ExitCode {
        println!("\ngoals: {} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
