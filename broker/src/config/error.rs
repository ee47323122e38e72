//! What can be wrong with a configuration, and where a value came from. Every error names the key, the value and what is
//! allowed, so that whoever reads it need not look anything up.

use std::fmt;
use std::path::PathBuf;

/// Where an effective value comes from; the order is the order of precedence, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nothing was given.
    Default,
    /// A line (from 1) of the configuration file.
    File { path: PathBuf, line: usize },
    /// An environment variable, by name.
    Environment(String),
    /// A command line flag, with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(out, "default"),
            Self::File { path, line } => write!(out, "{}:{line}", path.display()),
            Self::Environment(name) => write!(out, "environment {name}"),
            Self::Flag(flag) => write!(out, "flag {flag}"),
        }
    }
}

/// One thing that is wrong. The process ends with 64 before it opens a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read at all.
    #[error("{}: cannot be read: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    /// The file is not TOML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        message: String,
    },
    /// No such key; the nearest known one, if one is near.
    #[error("{origin}: unknown key `{key}`{}", nearest.as_ref().map(|near| format!(", the nearest known one is `{near}`")).unwrap_or_default())]
    UnknownKey {
        origin: Origin,
        key: String,
        nearest: Option<String>,
    },
    /// The key or the value belongs to a feature that this version does not have.
    #[error("{origin}: `{key} = {value}` is not available in this version")]
    NotAvailable {
        origin: Origin,
        key: String,
        value: String,
    },
    /// The value is of the wrong kind or out of range.
    #[error("{origin}: `{key} = {value}` is not allowed: {allowed}")]
    BadValue {
        origin: Origin,
        key: String,
        value: String,
        allowed: String,
    },
    /// The value is fine by itself, but not together with others, or not safe.
    #[error("{origin}: `{key} = {value}` is refused: {why}")]
    Refused {
        origin: Origin,
        key: String,
        value: String,
        why: String,
    },
}
