//! docs/seed.md against the sources: the list of promises is whole, and each test that it names exists and bears the
//! promise's name.

use std::collections::BTreeSet;

use pinfold_tests::house::root;

/// The items of the list, as ranges.
const PROMISED: &str = "A2-A5 B6 C2-C7 C11-C14 C16 D1 D3 D6 D8 D9 E1 E3 E5 F1-F23 G1-G7 H1-H8 H9.1-H9.11 H10 I1-I12";

fn promised() -> BTreeSet<String> {
    let number = |item: &str| -> (String, u32) {
        let at = item.rfind(|letter: char| !letter.is_ascii_digit()).map_or(0, |at| at + 1);
        (item[..at].to_owned(), item[at..].parse().expect("a number"))
    };
    PROMISED
        .split(' ')
        .flat_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let ((letter, first), (_, last)) = (number(first), number(last));
            (first..=last).map(move |number| format!("{letter}{number}"))
        })
        .collect()
}

/// `F16` → `seed_f16`; a test for several items is `seed_f5_f10_…`.
fn bears(test: &str, item: &str) -> bool {
    let name = item.to_lowercase().replace('.', "_");
    test.starts_with("seed_") && format!("{test}_").contains(&format!("_{name}_"))
}

/// Goal: nobody claims a promise without a test, drops one from the list, or renames a test without the list.
#[test]
fn every_promise_is_listed_and_every_listed_test_exists() {
    let text = std::fs::read_to_string(root().join("docs/seed.md")).unwrap();
    let mut listed = BTreeSet::new();
    let mut wrong = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| seed:")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [item, _, tests] = cells[..] else {
            wrong.push(format!("not three cells: {line}"));
            continue;
        };
        let item = item.trim_start_matches("seed:");
        assert!(listed.insert(item.to_owned()), "{item} is listed twice");
        for place in tests.split(", ") {
            let found = place.trim_matches('`').split_once("::").is_some_and(|(file, test)| {
                let source = std::fs::read_to_string(root().join(file)).unwrap_or_default();
                bears(test, item) && source.contains(&format!("fn {test}()"))
            });
            if !found {
                wrong.push(format!("{item}: {place} is not `file::seed_{}_…`", item.to_lowercase().replace('.', "_")));
            }
        }
    }
    assert_eq!(listed, promised());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
