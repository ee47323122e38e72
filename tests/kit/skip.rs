//! Skips that are counted: a test that cannot run here says why, and `tests/run` fails when there are
//! more of them than `tests/skips.txt` allows.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Notes the skip in the file named by `FLOTTE_SKIPS`, and on the test's output.
pub fn record(test: &str, reason: &str) {
    eprintln!("skip: {test}: {reason}");
    let Some(path) = std::env::var_os("FLOTTE_SKIPS") else {
        return;
    };
    let line = format!("skip: {test}: {reason}\n");
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    assert!(
        written.is_ok(),
        "a skip that cannot be counted is a failure: {path:?}: {written:?}"
    );
}

/// Leaves the test, noting why: `skip!("needs root")`.
#[macro_export]
macro_rules! skip {
    ($reason:expr) => {{
        $crate::skip::record(
            std::thread::current().name().unwrap_or(module_path!()),
            &$reason,
        );
        return;
    }};
}
