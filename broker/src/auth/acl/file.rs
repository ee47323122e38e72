//! Reads an ACL file in either format, as a whole, and says line by line what is wrong with one.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::rules::{Rules, Wide};
use super::{flotte, mosquitto};
use crate::config::acl::{Effect, Format};

/// More rules than a node should go through belong elsewhere.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How many errors of a file are told.
const PROBLEMS_MAX: usize = 10;

/// Why an ACL file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AclFileError {
    #[error("ACL file {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("ACL file {}: {}", path.display(), shown(problems))]
    Malformed {
        path: PathBuf,
        problems: Vec<Problem>,
    },
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    pub why: String,
}

/// What was read, and what is wrong with it.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Problem>);

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "line {}: {}", self.line, self.why)
    }
}

fn shown(problems: &[Problem]) -> String {
    let shown: Vec<String> = problems.iter().map(Problem::to_string).collect();
    shown.join("; ")
}

impl Problems {
    pub(super) fn add(&mut self, line: usize, why: impl Into<String>) {
        if !self.is_full() {
            let why = why.into();
            self.0.push(Problem { line, why });
        }
    }

    /// Whether there are so many that it makes no sense to read on.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= PROBLEMS_MAX
    }

    pub(super) fn into_result<T>(mut self, value: T) -> Result<T, Vec<Problem>> {
        if self.0.is_empty() {
            return Ok(value);
        }
        self.0.sort_by_key(|problem| problem.line);
        Err(self.0)
    }
}

/// Reads a file; blocks.
pub fn read(path: &Path, format: Format, default: Effect) -> Result<Rules, AclFileError> {
    let unreadable = |reason: String| AclFileError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let file = std::fs::File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    let bytes = read.map_err(|error| unreadable(error.to_string()))?;
    if bytes as u64 > FILE_BYTES_MAX {
        return Err(unreadable(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let (rules, wide) = match format {
        Format::Flotte => (flotte::parse(text), Wide::Refused),
        Format::Mosquitto => (mosquitto::parse(text), Wide::Narrowed),
    };
    match rules {
        Ok(rules) => Ok(Rules::new(rules, default, wide)),
        Err(problems) => Err(AclFileError::Malformed {
            path: path.to_owned(),
            problems,
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file_the_line_and_what_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules.toml");
        let error = |text: &str, format| {
            std::fs::write(&path, text).unwrap();
            let error = read(&path, format, Effect::Deny).unwrap_err().to_string();
            error.replace(&path.display().to_string(), "FILE")
        };
        assert_eq!(
            error("[[rule]]\neffect = \"permit\"\n", Format::Flotte),
            "ACL file FILE: line 2: `effect = \"permit\"`: allowed is \"allow\" or \"deny\""
        );
        assert_eq!(
            error("topic write\nuser\n", Format::Mosquitto),
            "ACL file FILE: line 2: `user` names no user"
        );
        let garbage = error(&"garbage\n".repeat(100), Format::Mosquitto);
        assert_eq!(garbage.matches("line ").count(), PROBLEMS_MAX, "{garbage}");
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("missing"), dir.path().to_owned()] {
            let error = read(&path, Format::Flotte, Effect::Deny).unwrap_err();
            assert!(matches!(error, AclFileError::Unreadable { .. }), "{error}");
        }
        let binary = dir.path().join("binary");
        std::fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
        let error = read(&binary, Format::Mosquitto, Effect::Deny).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }

    #[test]
    fn an_empty_file_has_only_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        std::fs::write(&path, "\u{feff}").unwrap();
        for format in [Format::Flotte, Format::Mosquitto] {
            assert!(read(&path, format, Effect::Deny).unwrap().is_empty());
        }
    }
}
