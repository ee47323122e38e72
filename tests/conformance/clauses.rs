//! CLAUSES.md is complete and names tests that exist.

use std::collections::BTreeSet;

use crate::{configured, v5, v311};

const LIST: &str = include_str!("CLAUSES.md");

/// How many clauses the standards number.
const CLAUSES_OF_3_1_1: usize = 141;
const CLAUSES_OF_5_0: usize = 251;

/// Of a hundred clauses that a server has to keep, how many may go without a test.
const UNTESTED_PER_CENT_MAX: usize = 5;

/// A row: the clause, whose it is, and the cell that names its test or says why there is none.
fn rows(version: &str) -> Vec<(&'static str, &'static str, &'static str)> {
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
        let mut next = || cells.next().expect("a row has cells").trim();
        let (clause, party) = (next(), next());
        let last = cells.next_back().expect("a row has cells").trim();
        (clause, party, last)
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
    let reasons = ["the client's duty", "cannot be observed from outside"];
    assert!(
        reasons.iter().any(|reason| cell.starts_with(reason)),
        "{clause} has no test and no reason: {cell}"
    );
}

fn check_version(version: &str, count: usize, names: &[&'static str]) {
    let rows = rows(version);
    let clauses: BTreeSet<_> = rows.iter().map(|(clause, ..)| *clause).collect();
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
    for (clause, _, cell) in &rows {
        check(clause, cell, &tests);
    }
    let listed: BTreeSet<_> = rows
        .iter()
        .map(|(.., cell)| cell.trim_matches('`'))
        .collect();
    for name in tests.iter().filter(|name| name.starts_with("mqtt_")) {
        assert!(listed.contains(name), "CLAUSES.md does not list {name}");
    }
}

#[test]
fn every_clause_is_listed_with_a_test_that_exists() {
    let of_3_1_1 = [v311::NAMES, configured::limited_v311::NAMES].concat();
    let of_5_0 = [
        v5::NAMES,
        configured::limited_v5::NAMES,
        configured::loose_v5::NAMES,
    ]
    .concat();
    check_version("3.1.1", CLAUSES_OF_3_1_1, &of_3_1_1);
    check_version("5.0", CLAUSES_OF_5_0, &of_5_0);
}

#[test]
fn few_clauses_of_the_server_have_no_test() {
    let all = [rows("3.1.1"), rows("5.0")].concat();
    let of_server = all.iter().filter(|(_, party, _)| *party != "client");
    let untested: Vec<_> = of_server
        .clone()
        .filter(|(.., cell)| !cell.starts_with('`'))
        .map(|(clause, ..)| clause)
        .collect();
    let count = of_server.count();
    assert!(
        untested.len() * 100 <= count * UNTESTED_PER_CENT_MAX,
        "{} of {count}: {untested:?}",
        untested.len()
    );
}
