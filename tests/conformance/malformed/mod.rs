//! Bad packets: a generator that spoils each packet of each version in every way there is, and a check
//! that each gets what its clause says. The packets come from a model of their own, the answers from
//! a table written from the standards; `FLOTTE_TEST_CASES=text` runs the cases whose name holds it.

mod framing;
mod model;
mod properties;
mod runner;
mod states;
mod strings;
mod table;
mod templates;
mod values;

use std::collections::HashSet;

use flotte_tests::Version;

use crate::target::{Place, Setting, run};
use model::Case;

fn all() -> Vec<Case> {
    let parts = [
        framing::cases(),
        strings::cases(),
        properties::cases(),
        values::cases(),
        states::cases(),
    ];
    parts.into_iter().flatten().collect()
}

fn check(version: Version, part: impl FnOnce() -> Vec<Case>) {
    let wanted = std::env::var("FLOTTE_TEST_CASES").unwrap_or_default();
    let is_wanted = |case: &Case| case.version == version && case.name.contains(&wanted);
    run(
        (Place::Single, Setting::Usual),
        version,
        |target| async move {
            let cases = part().into_iter().filter(is_wanted).collect();
            runner::run(target.address, cases).await;
        },
    );
}

macro_rules! tests {
    ($($name:ident: $version:expr;)*) => {
        $(mod $name {
            use super::Version;

            #[test]
            fn spoiled_lengths_and_flags_get_what_the_standard_says() {
                super::check($version, super::framing::cases);
            }

            #[test]
            fn spoiled_strings_get_what_the_standard_says() {
                super::check($version, super::strings::cases);
            }

            #[test]
            fn spoiled_values_get_what_the_standard_says() {
                super::check($version, super::values::cases);
            }

            #[test]
            fn packets_out_of_place_get_what_the_standard_says() {
                super::check($version, super::states::cases);
            }
        })*
    };
}

tests! {
    v31: Version::V31;
    v311: Version::V311;
    v5: Version::V5;
}

#[test]
fn spoiled_properties_get_what_the_standard_says() {
    check(Version::V5, properties::cases);
}

/// A generator that makes nothing would find nothing.
#[test]
fn generator_makes_thousands_of_cases_and_uses_every_row() {
    let cases = all();
    for version in templates::VERSIONS {
        let count = cases.iter().filter(|case| case.version == version).count();
        assert!(count > 1_000, "{count} cases of {version:?}");
    }
    let used: HashSet<_> = cases.iter().map(|case| case.row.name).collect();
    let unused = table::TABLE.iter().filter(|row| !used.contains(row.name));
    let unused: Vec<_> = unused.map(|row| row.name).collect();
    assert!(unused.is_empty(), "rows without a case: {unused:?}");
    for case in &cases {
        assert!(
            !case.row.allowed(case.version).is_empty() && !case.row.source.is_empty(),
            "{} has no answer",
            case.name
        );
    }
    eprintln!("{} cases", cases.len());
}
