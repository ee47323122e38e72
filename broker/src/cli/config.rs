//! `flotte config check | show | default`: what a configuration says, without starting anything.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;

use super::output::{print, tell};
use super::serve::refused;
use super::{Exit, written};
use crate::auth::acl::{Acl, AclFileError};
use crate::auth::{Authenticator, PasswordFileError};
use crate::config::{Config, Sources, default_file, effective_values};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell everything that is wrong with a file, together with the environment.
    Check {
        /// The file; none: the environment alone.
        file: Option<PathBuf>,
    },
    /// Print every effective value and where it comes from.
    Show {
        /// The file; none: the environment alone.
        file: Option<PathBuf>,
    },
    /// Print every key with a comment and its default.
    Default {
        /// The file to make; none: stdout.
        file: Option<PathBuf>,
    },
}

impl Command {
    /// Does it.
    pub fn run(self) -> Exit {
        match self {
            Self::Check { file } => check(file),
            Self::Show { file } => show(file),
            Self::Default { file: None } => written(print(&default_file())),
            Self::Default { file: Some(path) } => make_default_file(&path),
        }
    }
}

fn check(file: Option<PathBuf>) -> Exit {
    let loaded = match Config::load(&Sources {
        file,
        ..Sources::of_process()
    }) {
        Ok(loaded) => loaded,
        Err(errors) => return refused(&errors),
    };
    for warning in &loaded.warnings {
        tell(format_args!("warning: {warning}"));
    }
    // What the configuration points at may live on another machine than the one that checks it; what is here has to be right.
    let mut exit = Exit::Done;
    let mut wrong = |error: String, is_here: bool| {
        let kind = if is_here { "flotte" } else { "warning" };
        tell(format_args!("{kind}: {error}"));
        if is_here {
            exit = Exit::BadConfiguration;
        }
    };
    if let Err(error) = Authenticator::new(&loaded.config.auth, Duration::ZERO) {
        let is_here = matches!(error, PasswordFileError::Malformed { .. });
        wrong(error.to_string(), is_here);
    }
    if let Err(error) = Acl::new(&loaded.config.acl) {
        let is_here = matches!(error, AclFileError::Malformed { .. });
        wrong(error.to_string(), is_here);
    }
    exit
}

fn show(file: Option<PathBuf>) -> Exit {
    match Config::load(&Sources {
        file,
        ..Sources::of_process()
    }) {
        Ok(loaded) => written(print(&effective_values(&loaded.effective))),
        Err(errors) => refused(&errors),
    }
}

fn make_default_file(path: &Path) -> Exit {
    let made = OpenOptions::new().write(true).create_new(true).open(path);
    match made.and_then(|mut file| file.write_all(default_file().as_bytes())) {
        Ok(()) => Exit::Done,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            tell(format_args!(
                "flotte: {} is there already and stays as it is",
                path.display()
            ));
            Exit::Refused
        }
        Err(error) => {
            tell(format_args!("flotte: {}: {error}", path.display()));
            Exit::DiskFailed
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_made_file_passes_the_check_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flotte.toml");
        let made = || {
            Command::Default {
                file: Some(path.clone()),
            }
            .run()
        };
        assert_eq!(made(), Exit::Done);
        assert_eq!(
            Command::Check {
                file: Some(path.clone())
            }
            .run(),
            Exit::Done
        );
        assert_eq!(made(), Exit::Refused);
    }

    #[test]
    fn a_bad_file_ends_with_64() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flotte.toml");
        std::fs::write(&path, "[mqtt]\nmax_qos = 9\n").unwrap();
        assert_eq!(
            Command::Check {
                file: Some(path.clone())
            }
            .run(),
            Exit::BadConfiguration
        );
        assert_eq!(
            Command::Show { file: Some(path) }.run(),
            Exit::BadConfiguration
        );
    }
}
