//! CLAUSES.md is complete and names tests that exist.

use std::collections::BTreeSet;

use crate::{v5, v311};

const LIST: &str = include_str!("CLAUSES.md");

/// How many clauses the standards number.
const CLAUSES_OF_3_1_1: usize = 141;
const CLAUSES_OF_5_0: usize = 251;

/// A row: the clause, and the cell that names its test or says why there is none.
fn rows(version: &str) -> Vec<(&'static str, &'static str)> {
    let heading = format!("## MQTT {version}\n");
    let (_, section) = LIST
        .split_once(&heading)
        .expect("a section for each version");
    let section = section
        .split("\n## ")
        .next()
        .expect("`split` gives at least one part");
    let lines = section.lines().filter(|line| line.starts_with("| MQTT-"));
    let cells = |line: &'static str| {
        let mut cells = line.trim_matches('|').split('|');
        let clause = cells.next().expect("a row has cells").trim();
        (clause, cells.next_back().expect("a row has cells").trim())
    };
    lines.map(cells).collect()
}

/// `MQTT-3.1.2-3` begins the names of its tests with `mqtt_3_1_2_3_`.
fn prefix(clause: &str) -> String {
    format!("{}_", clause.to_lowercase().replace(['.', '-'], "_"))
}

/// Whether the cell names a test of this version, or gives a reason that names only such tests.
fn check(clause: &str, cell: &str, tests: &BTreeSet<&str>) {
    let named: Vec<_> = cell
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.starts_with("mqtt_"))
        .collect();
    for name in &named {
        assert!(
            tests.contains(name),
            "{clause} names {name}, which is no test"
        );
    }
    if let [name] = named.as_slice()
        && cell == format!("`{name}`")
    {
        assert!(
            name.starts_with(&prefix(clause)),
            "{clause} has the test of another: {name}"
        );
        return;
    }
    let reasons = [
        "later",
        "seen in",
        "the client's duty",
        "cannot be",
        "none: ",
    ];
    assert!(
        reasons.iter().any(|reason| cell.starts_with(reason)),
        "{clause} has no test and no reason: {cell}"
    );
}

fn check_version(version: &str, count: usize, names: &[&'static str]) {
    let rows = rows(version);
    let clauses: BTreeSet<_> = rows.iter().map(|(clause, _)| *clause).collect();
    assert_eq!(
        (rows.len(), clauses.len()),
        (count, count),
        "rows and different clauses of {version}"
    );
    let tests: BTreeSet<_> = names.iter().copied().collect();
    assert_eq!(
        tests.len(),
        names.len(),
        "two tests of {version} have one name"
    );
    for (clause, cell) in &rows {
        check(clause, cell, &tests);
    }
    let listed: BTreeSet<_> = rows
        .iter()
        .map(|(_, cell)| cell.trim_matches('`'))
        .collect();
    for name in tests.iter().filter(|name| name.starts_with("mqtt_")) {
        assert!(listed.contains(name), "CLAUSES.md does not list {name}");
    }
}

#[test]
fn every_clause_is_listed_with_a_test_that_exists() {
    check_version("3.1.1", CLAUSES_OF_3_1_1, v311::NAMES);
    check_version("5.0", CLAUSES_OF_5_0, v5::NAMES);
}
