//! With what the process ends. The codes are part of the product: scripts and tests rely on them.

use std::fmt;
use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The cluster, or the broker, said no.
    Refused = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// `sub -W` waited in vain.
    TimedOut = 27,
    /// The configuration is wrong or not safe.
    BadConfiguration = 64,
    /// Nobody answers there.
    Unreachable = 69,
    /// A port is taken or not allowed.
    CannotBind = 71,
    /// The data directory is locked, foreign or corrupt.
    DataDirectory = 73,
    /// The disk failed: what was written may not be there.
    DiskFailed = 74,
}

impl Exit {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Done,
        Self::Refused,
        Self::Usage,
        Self::TimedOut,
        Self::BadConfiguration,
        Self::Unreachable,
        Self::CannotBind,
        Self::DataDirectory,
        Self::DiskFailed,
    ];

    /// The code that the process ends with.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What a process meant that ended with `code`.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|exit| i32::from(exit.code()) == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error that ends a command: it is shown, and the process ends with its code.
pub trait Failure: fmt::Display {
    /// The code that the process ends with.
    fn exit(&self) -> Exit;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_that_scripts_rely_on() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert_eq!(codes, [0, 1, 2, 27, 64, 69, 71, 73, 74]);
        assert_eq!(Exit::from_code(73), Some(Exit::DataDirectory));
        assert_eq!(Exit::from_code(3), None);
    }
}
